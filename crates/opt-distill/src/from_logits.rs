//! The objective of a student whose teacher has run already.

use opt_core::backend::CompileSpec;
use opt_core::data::Dataset;
use opt_core::graph::Bindings;
use opt_core::{
    Backend, Error, ErrorKind, Graph, GraphBuilder, Result, ResultExt, Tensor, TensorType, ValueId,
    backend,
};
use opt_train::{ModelIo, Objective};

use crate::Distillation;
use crate::distillation::Total;
use crate::from_teacher::{SCOPE, first_output, frozen};

/// The objective of a student whose examples carry its teacher's logits: see
/// [`Distillation::from_logits`].
///
/// The targets of an example are its label (unless the distillation is
/// [unlabelled](Distillation::unlabelled)) and the teacher's logits, of the type of the student's.
#[derive(Debug, Clone)]
pub struct FromLogits {
    distillation: Distillation,
}

impl FromLogits {
    pub(crate) fn new(distillation: Distillation) -> FromLogits {
        FromLogits { distillation }
    }
}

impl Objective for FromLogits {
    fn targets(&self, b: &GraphBuilder, model: &ModelIo) -> Result<Vec<TensorType>> {
        self.distillation.check()?;
        if !self.distillation.features.is_empty() {
            return Err(Error::invalid(
                "a loss between layers needs the teacher itself, not its logits alone",
            ));
        }
        let logits = b.type_of(first_output(model)?).clone();
        let labels = self.distillation.label_type(&logits)?;
        Ok(labels.into_iter().chain([logits]).collect())
    }

    fn build(&self, b: &mut GraphBuilder, model: &ModelIo, targets: &[ValueId]) -> Result<ValueId> {
        let student = first_output(model)?;
        let (logits, labels) = match targets {
            [labels, logits] => (*logits, Some(*labels)),
            [logits] => (*logits, None),
            _ => return Err(Error::invalid("the targets are labels and logits")),
        };
        b.scope(SCOPE, |b| {
            let mut total = Total::default();
            let mut teacher = |_: &mut GraphBuilder, _| Ok(logits);
            self.distillation
                .logit_terms(b, &mut total, student, labels, &mut teacher)?;
            total.sum()
        })
    }
}

/// A data set whose examples carry a teacher's logits behind their other fields; made by
/// [`with_teacher_logits`].
#[derive(Debug, Clone)]
pub struct WithTeacherLogits<D> {
    data: D,
    logits: Tensor,
}

impl<D: Dataset> WithTeacherLogits<D> {
    /// The logits, `[N, C, ..]`, in the order of the examples.
    pub fn logits(&self) -> &Tensor {
        &self.logits
    }
}

impl<D: Dataset> Dataset for WithTeacherLogits<D> {
    fn len(&self) -> usize {
        self.data.len()
    }

    fn get(&self, index: usize) -> Result<Vec<Tensor>> {
        let mut example = self.data.get(index)?;
        let row = self.logits.slice(0, index, index + 1)?;
        let shape: Vec<usize> = row.shape()[1..].to_vec();
        example.push(row.reshape(shape)?);
        Ok(example)
    }
}

/// Runs a teacher once over a data set and adds its first output to every example, so that a
/// student learns from it without running it again: the objective is
/// [`Distillation::from_logits`]. Examples must not be changed on the way to the student
/// (augmented), whose logits would be others.
///
/// The teacher runs in evaluation mode on the first fields of the examples, `batch_size` at a time.
///
/// ```
/// use opt_core::{DType, Dim, GraphBuilder, Shape, Tensor, TensorType};
/// use opt_data::{Dataset, TensorDataset};
/// use opt_distill::with_teacher_logits;
/// use opt_ndarray::NdarrayBackend;
///
/// # fn main() -> opt_core::Result<()> {
/// let mut b = GraphBuilder::new("teacher");
/// let shape = Shape::new([Dim::from("batch"), 2.into()]);
/// let x = b.input("x", TensorType::new(DType::F32, shape))?;
/// let y = b.mul_scalar(x, 3.0)?;
/// b.output("logits", y)?;
/// let data = TensorDataset::new(vec![
///     Tensor::new([3, 2], [1f32, 0., 0., 1., 2., 1.])?,
///     Tensor::new([3], [0i64, 1, 0])?,
/// ])?;
/// let data = with_teacher_logits(&b.finish()?, data, &NdarrayBackend::new(), 2)?;
/// assert_eq!(data.get(2)?[2].to_vec::<f32>()?, [6.0, 3.0]);
/// # Ok(())
/// # }
/// ```
///
/// # Errors
/// [`ErrorKind::Data`] if there are no examples or the teacher gives a number that is NaN or
/// infinite (naming the example); an error if the batch size is 0, the examples are not what the
/// teacher takes, or its output does not have one row an example.
pub fn with_teacher_logits<D: Dataset>(
    teacher: &Graph,
    data: D,
    backend: &dyn Backend,
    batch_size: usize,
) -> Result<WithTeacherLogits<D>> {
    if batch_size == 0 {
        return Err(Error::invalid("the batch size is 0"));
    }
    if data.is_empty() {
        return Err(Error::new(ErrorKind::Data, "the data set has no examples"));
    }
    let teacher = frozen(teacher).at(|| "teacher")?;
    let inputs = teacher.inputs().len();
    let mut parts = Vec::new();
    let mut open: Option<(Bindings, Box<dyn opt_core::Session>)> = None;
    let mut start = 0;
    while start < data.len() {
        let end = data.len().min(start + batch_size);
        let indices: Vec<usize> = (start..end).collect();
        let place = || format!("examples {start}..{end}");
        let mut batch = data.batch(&indices).at(place)?;
        if batch.len() < inputs {
            return Err(Error::new(
                ErrorKind::Data,
                format!(
                    "an example has {} fields, the teacher takes {inputs} inputs",
                    batch.len()
                ),
            ));
        }
        batch.truncate(inputs);
        let bindings = backend::bindings_of(&teacher, &batch).at(|| "teacher")?;
        if open.as_ref().is_none_or(|(known, _)| *known != bindings) {
            let mut spec = CompileSpec::new();
            spec.bindings.clone_from(&bindings);
            open = Some((bindings, backend.compile(&teacher, &spec)?.session()?));
        }
        let Some((_, session)) = &mut open else {
            unreachable!("it was opened above")
        };
        let logits = session.run(&batch).at(place)?.swap_remove(0);
        if logits.shape().first() != Some(&(end - start)) {
            return Err(Error::shape(format!(
                "the teacher's output for {} examples is {:?}, not one row an example",
                end - start,
                logits.shape()
            )));
        }
        if !logits.is_finite() {
            let row: usize = logits.shape()[1..].iter().product();
            let bad = logits.to_f64s().iter().position(|v| !v.is_finite());
            let example = start + bad.unwrap_or(0) / row.max(1);
            return Err(Error::new(
                ErrorKind::Data,
                format!("the teacher's output for example {example} is NaN or infinite"),
            ));
        }
        parts.push(logits);
        start = end;
    }
    Ok(WithTeacherLogits {
        data,
        logits: Tensor::concat(&parts, 0)?,
    })
}
