//! Running a classifier over a data set.

use std::collections::HashMap;

use opt_core::backend::bindings_of;
use opt_core::data::Dataset;
use opt_core::{Backend, CompileSpec, Error, ErrorKind, Graph, Result, ResultExt, Session, Tensor};

use crate::{ConfusionMatrix, argmax};

/// What a classifier predicted for a data set, and the truth.
#[derive(Debug, Clone, PartialEq)]
pub struct Evaluation {
    /// The predicted class of each example.
    pub predictions: Vec<i64>,
    /// The true class of each example.
    pub labels: Vec<i64>,
    /// The number of classes that the model tells apart.
    pub classes: usize,
}

impl Evaluation {
    /// The share of examples predicted as their class.
    pub fn accuracy(&self) -> f64 {
        let hits = self.predictions.iter().zip(&self.labels);
        hits.filter(|(p, l)| p == l).count() as f64 / self.labels.len() as f64
    }

    /// The confusion matrix, from which precision, recall and F1 follow.
    ///
    /// # Errors
    /// If there are no examples, or a label is not among the model's classes.
    pub fn confusion(&self) -> Result<ConfusionMatrix> {
        ConfusionMatrix::new(&self.labels, &self.predictions, self.classes)
    }
}

/// Runs a graph over a data set in batches and concatenates its first output.
///
/// The first fields of the data set are the graph's inputs, in order. The graph is compiled once
/// for each batch size that occurs: once, and once more for a smaller last batch.
///
/// # Errors
/// If the data set is empty, has fewer fields than the graph has inputs, or the graph does not
/// compile or run on them.
pub fn predict(
    graph: &Graph,
    data: &dyn Dataset,
    backend: &dyn Backend,
    batch_size: usize,
) -> Result<Tensor> {
    let mut outputs = Vec::new();
    run(graph, data, backend, batch_size, |output, _| {
        outputs.push(output);
        Ok(())
    })?;
    Tensor::concat(&outputs, 0)
}

/// Runs a classifier over a data set and collects predictions and labels.
///
/// The graph's first output is the scores or logits `[N, classes]`; the first fields of the data
/// set are the graph's inputs in their order, the field after them the label, an `i64` scalar an
/// example. A graph in training mode is evaluated as it is: switch it to eval mode first.
///
/// ```
/// use opt_core::{DType, Dim, GraphBuilder, Tensor, TensorType};
/// use opt_data::TensorDataset;
/// use opt_ndarray::NdarrayBackend;
///
/// // A classifier whose scores are two fixed functions of its input.
/// let mut b = GraphBuilder::new("sign");
/// let x = b.input("x", TensorType::new(DType::F32, ["batch".into(), Dim::from(1)]))?;
/// let w = b.variable("w", Tensor::new([1, 2], [-1f32, 1.])?)?;
/// let scores = b.matmul(x, w)?;
/// b.output("scores", scores)?;
/// let graph = b.finish()?;
///
/// let x = Tensor::new([3, 1], [-2f32, 3., 4.])?;
/// let labels = Tensor::new([3], [0i64, 1, 0])?;
/// let test = TensorDataset::new(vec![x, labels])?;
/// let evaluation = opt_eval::evaluate(&graph, &test, &NdarrayBackend::new(), 2)?;
/// assert_eq!(evaluation.predictions, [0, 1, 1]);
/// assert_eq!(evaluation.confusion()?.count(0, 1), 1);
/// # Ok::<(), opt_core::Error>(())
/// ```
///
/// # Errors
/// [`ErrorKind::InvalidArgument`] if `batch_size` is 0 or the data set has no field for an input
/// or the label; [`ErrorKind::Data`] if the data set is empty, a label is not in `0..classes`, or
/// a score is NaN; and those of compiling and running.
pub fn evaluate(
    graph: &Graph,
    data: &dyn Dataset,
    backend: &dyn Backend,
    batch_size: usize,
) -> Result<Evaluation> {
    let mut out = Evaluation {
        predictions: Vec::with_capacity(data.len()),
        labels: Vec::with_capacity(data.len()),
        classes: 0,
    };
    let label = graph.inputs().len();
    run(graph, data, backend, batch_size, |scores, batch| {
        let labels = batch.get(label).ok_or_else(|| {
            Error::invalid(format!(
                "the graph `{}` takes {label} inputs, so field {label} should be the label; the \
                 data set has {} fields",
                graph.name(),
                batch.len()
            ))
        })?;
        let place = || format!("field {label}");
        let found = labels.to_vec::<i64>().at(place)?;
        let predictions = argmax(&scores)?;
        if found.len() != predictions.len() {
            return Err(Error::shape(format!(
                "expected a label for each of {} rows of scores, found shape {:?}",
                predictions.len(),
                labels.shape()
            ))
            .at(place()));
        }
        out.classes = scores.shape()[1];
        let range = 0..out.classes as i64;
        if let Some(i) = found.iter().position(|l| !range.contains(l)) {
            return Err(Error::new(
                ErrorKind::Data,
                format!("label {} is not in 0..{}", found[i], out.classes),
            )
            .at(format!("row {}", out.labels.len() + i))
            .at(place()));
        }
        out.predictions.extend(predictions);
        out.labels.extend(found);
        Ok(())
    })?;
    Ok(out)
}

/// Calls `each` with the first output and the fields of each batch.
fn run(
    graph: &Graph,
    data: &dyn Dataset,
    backend: &dyn Backend,
    batch_size: usize,
    mut each: impl FnMut(Tensor, &[Tensor]) -> Result<()>,
) -> Result<()> {
    if batch_size == 0 {
        return Err(Error::invalid("a batch size of 0"));
    }
    if data.is_empty() {
        return Err(Error::new(ErrorKind::Data, "an empty data set"));
    }
    let inputs = graph.inputs().len();
    let mut sessions: HashMap<usize, Box<dyn Session>> = HashMap::new();
    let indices: Vec<usize> = (0..data.len()).collect();
    for indices in indices.chunks(batch_size) {
        let batch = data.batch(indices)?;
        if batch.len() < inputs {
            return Err(Error::invalid(format!(
                "the graph `{}` takes {inputs} inputs, the data set has {} fields",
                graph.name(),
                batch.len()
            )));
        }
        let session = match sessions.entry(indices.len()) {
            std::collections::hash_map::Entry::Occupied(e) => e.into_mut(),
            std::collections::hash_map::Entry::Vacant(e) => {
                let mut spec = CompileSpec::new();
                spec.bindings = bindings_of(graph, &batch[..inputs])?;
                e.insert(backend.compile(graph, &spec)?.session()?)
            }
        };
        let output = session.run(&batch[..inputs])?.into_iter().next();
        let output = output
            .ok_or_else(|| Error::invalid(format!("the graph `{}` has no output", graph.name())))?;
        each(output, &batch)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{Echo, Fields, echo};

    fn data(labels: &[i64]) -> Fields {
        let n = labels.len();
        let scores: Vec<f32> = (0..n * 3).map(|i| ((i * 7) % 5) as f32).collect();
        Fields(vec![
            Tensor::new([n, 3], scores).unwrap(),
            Tensor::new([n], labels).unwrap(),
        ])
    }

    #[test]
    fn batches_of_any_size_give_the_same_predictions() {
        let data = data(&[0, 1, 2, 0, 1, 2, 0]);
        let whole = evaluate(&echo(), &data, &Echo, 7).unwrap();
        assert_eq!(whole.predictions, argmax(&data.0[0]).unwrap());
        assert_eq!(whole.labels, [0, 1, 2, 0, 1, 2, 0]);
        assert_eq!(whole.classes, 3);
        for size in [1, 2, 3, 100] {
            assert_eq!(evaluate(&echo(), &data, &Echo, size).unwrap(), whole);
        }
        assert_eq!(whole.accuracy(), whole.confusion().unwrap().accuracy());
        assert_eq!(predict(&echo(), &data, &Echo, 3).unwrap(), data.0[0]);
    }

    #[test]
    fn bad_input_is_an_error() {
        let error = |data: &Fields, size| evaluate(&echo(), data, &Echo, size).unwrap_err();
        assert_eq!(error(&data(&[0]), 0).kind(), ErrorKind::InvalidArgument);
        assert_eq!(error(&data(&[]), 1).kind(), ErrorKind::Data);
        assert_eq!(
            error(&data(&[0, 1, 3]), 2).to_string(),
            "field 1: row 2: label 3 is not in 0..3"
        );
        let mut nan = data(&[0, 1]);
        nan.0[0].as_slice_mut::<f32>().unwrap()[4] = f32::NAN;
        assert_eq!(error(&nan, 1).kind(), ErrorKind::Data);
        let unlabelled = Fields(vec![data(&[0]).0[0].clone()]);
        assert_eq!(error(&unlabelled, 1).kind(), ErrorKind::InvalidArgument);
        let wide = Fields(vec![
            Tensor::new([1, 4], [0f32; 4]).unwrap(),
            Tensor::new([1], [0i64]).unwrap(),
        ]);
        assert_eq!(error(&wide, 1).kind(), ErrorKind::Shape);
    }
}
