//! Deep mutual learning.

use opt_core::data::Dataset;
use opt_core::graph::Inlined;
use opt_core::observer::Silent;
use opt_core::pass::EvalMode;
use opt_core::{
    Backend, Error, Graph, GraphBuilder, Observer, Result, ResultExt, TensorType, ValueId,
};
use opt_train::{CrossEntropy, History, KlDiv, Loss, ModelIo, Objective, Trainer};

use crate::inline::inline;
use crate::math::{expect_positive, in_loss_dtype};

/// Deep mutual learning (Zhang, Xiang, Hospedales & Lu, "Deep mutual learning", 2018): students
/// without a teacher that learn together, each from the labels and from the others' current
/// probabilities.
///
/// The loss is the sum over the students k of `CE(z_k, label) + weight * T^2 / (K - 1) * sum over l
/// of KL(softmax(z_l / T) || softmax(z_k / T))`, where no gradient passes to student l. All take
/// their step at once, where the paper's take turns within a batch.
///
/// ```
/// use opt_core::nn::{Linear, ModelBuilder};
/// use opt_core::Tensor;
/// use opt_data::TensorDataset;
/// use opt_distill::Mutual;
/// use opt_ndarray::NdarrayBackend;
/// use opt_train::{Adam, Constant, CrossEntropy, Trainer};
///
/// # fn main() -> opt_core::Result<()> {
/// let network = |hidden: usize, seed: u64| -> opt_core::Result<opt_core::Graph> {
///     let mut b = ModelBuilder::new("mlp", seed);
///     let x = b.batch("x", &[2])?;
///     let x = b.layer("hidden", Linear::new(hidden), x)?;
///     let x = b.relu(x)?;
///     let y = b.layer("head", Linear::new(2), x)?;
///     b.output("logits", y)?;
///     b.finish()
/// };
/// let data = TensorDataset::new(vec![
///     Tensor::new([4, 2], [1f32, 0., 0., 1., 2., 1., 1., 2.])?,
///     Tensor::new([4], [0i64, 1, 0, 1])?,
/// ])?;
/// let trainer = Trainer::new(CrossEntropy, Adam::default(), Constant(0.01)).epochs(3);
/// let students = vec![network(4, 0)?, network(8, 1)?];
/// let (students, history) =
///     Mutual::default().fit(students, &trainer, &data, &NdarrayBackend::new())?;
/// assert_eq!(students.len(), 2);
/// # let _ = history;
/// # Ok(())
/// # }
/// ```
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Mutual {
    /// T, above 0.
    pub temperature: f64,
    /// Weight of what a student learns from the others, above 0.
    pub weight: f64,
}

impl Default for Mutual {
    /// The paper's: temperature 1, weight 1.
    fn default() -> Mutual {
        Mutual {
            temperature: 1.0,
            weight: 1.0,
        }
    }
}

/// The scope of a student in the graph of all.
fn scope(student: usize) -> String {
    format!("student{student}")
}

impl Mutual {
    /// Trains students together; the trainer's own objective is replaced.
    ///
    /// # Errors
    /// Those of [`Mutual::fit_with`].
    pub fn fit(
        &self,
        students: Vec<Graph>,
        trainer: &Trainer,
        data: &dyn Dataset,
        backend: &dyn Backend,
    ) -> Result<(Vec<Graph>, History)> {
        self.fit_with(students, trainer, data, None, backend, &mut Silent)
    }

    /// Trains students together, with a validation set and an observer. They come back in their
    /// order, in the modes that they had; their masks hold. All take the same inputs, and their
    /// first outputs are logits for the same classes.
    ///
    /// The trainer sees one model whose parameters are called `student0.`, `student1.` and so on
    /// before their names. The loss is that of all, the validation accuracy that of the first.
    ///
    /// # Errors
    /// If there are fewer than two students, a setting is out of its range, or inputs or logits
    /// differ (naming the student); those of [`Trainer::fit_with`].
    pub fn fit_with(
        &self,
        students: Vec<Graph>,
        trainer: &Trainer,
        data: &dyn Dataset,
        validation: Option<&dyn Dataset>,
        backend: &dyn Backend,
        observer: &mut dyn Observer,
    ) -> Result<(Vec<Graph>, History)> {
        let merged = merge(&students)?;
        let trainer = trainer.clone().objective(*self);
        let (merged, history) = trainer.fit_with(merged, data, validation, backend, observer)?;
        let mut trained = students;
        for (i, student) in trained.iter_mut().enumerate() {
            let names: Vec<_> = student
                .variables()
                .map(|(id, v, _)| (id, format!("{}.{}", scope(i), v.name())))
                .collect();
            for (id, name) in names {
                // What only training mode has, such as the counter of dropout, is not in there.
                let Ok(found) = merged.find(&name) else {
                    continue;
                };
                if let Some(content) = merged.value(found).tensor() {
                    student.set_variable(id, content.clone())?;
                }
            }
            student.verify()?;
        }
        Ok((trained, history))
    }
}

/// All students on the inputs of the first; an output each, its logits.
fn merge(students: &[Graph]) -> Result<Graph> {
    let [first, _, ..] = students else {
        return Err(Error::invalid(format!(
            "mutual learning takes two students at least, found {}",
            students.len()
        )));
    };
    let mut b = GraphBuilder::new("students");
    let mut inputs = Vec::new();
    for &v in first.inputs() {
        inputs.push(b.input(first.value(v).name(), first.type_of(v).clone())?);
    }
    for (i, student) in students.iter().enumerate() {
        let mut put = || {
            let (student, _) = EvalMode::switch(student.clone())?;
            let output = student
                .outputs()
                .next()
                .ok_or_else(|| Error::invalid("the student has no output"))?;
            let values = inline(&mut b, &student, &inputs, &scope(i), Inlined::Variables)?;
            b.output(&format!("{}.logits", scope(i)), values[&output])
        };
        put().at(|| scope(i))?;
    }
    b.finish()
}

impl Objective for Mutual {
    fn targets(&self, b: &GraphBuilder, model: &ModelIo) -> Result<Vec<TensorType>> {
        expect_positive("temperature", self.temperature)?;
        expect_positive("weight of mutual learning", self.weight)?;
        let [first, _, ..] = &model.outputs[..] else {
            return Err(Error::invalid(format!(
                "mutual learning takes two logits at least, the model has {} outputs",
                model.outputs.len()
            )));
        };
        let first = b.type_of(*first);
        for (i, &output) in model.outputs.iter().enumerate() {
            let ty = b.type_of(output);
            if ty.shape != first.shape {
                return Err(Error::shape(format!(
                    "its logits are {ty}, those of {} are {first}",
                    scope(0)
                ))
                .at(scope(i)));
            }
        }
        Ok(vec![CrossEntropy.target_type(first)?])
    }

    fn build(&self, b: &mut GraphBuilder, model: &ModelIo, targets: &[ValueId]) -> Result<ValueId> {
        let first = model.outputs[0];
        let mut logs = Vec::new();
        let mut total = None;
        let mut add = |b: &mut GraphBuilder, term: ValueId| -> Result<()> {
            total = Some(match total {
                Some(sum) => b.add(sum, term)?,
                None => term,
            });
            Ok(())
        };
        for &output in &model.outputs {
            let (z, _) = in_loss_dtype(b, output, first)?;
            let hard = Loss::build(&CrossEntropy, b, z, targets[0])?;
            add(b, hard)?;
            let cool = b.mul_scalar(z, 1.0 / self.temperature)?;
            logs.push(b.log_softmax(cool, 1)?);
        }
        let share = self.weight * self.temperature * self.temperature / (logs.len() - 1) as f64;
        for (l, &other) in logs.iter().enumerate() {
            let fixed = b.stop_gradient(other)?;
            let fixed = b.exp(fixed)?;
            for (_, &own) in logs.iter().enumerate().filter(|(k, _)| *k != l) {
                let term = KlDiv.build(b, own, fixed)?;
                let term = b.mul_scalar(term, share)?;
                add(b, term)?;
            }
        }
        total.ok_or_else(|| Error::invalid("there are no students"))
    }
}
