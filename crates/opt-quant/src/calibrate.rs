//! Ranges of activations from examples.

use opt_core::data::Dataset;
use opt_core::{Backend, Graph, Result, ValueId};

use crate::batches::Batches;
use crate::observations::Observations;
use crate::observer::ObserverKind;

/// How to calibrate.
#[derive(Debug, Clone, Copy, PartialEq)]
#[non_exhaustive]
pub struct Calibration {
    /// The observer of each value.
    pub observer: ObserverKind,
    /// Examples at a time.
    pub batch_size: usize,
    /// The most examples to look at, from the start of the data set.
    pub max_examples: usize,
}

impl Default for Calibration {
    fn default() -> Calibration {
        Calibration {
            observer: ObserverKind::MinMax,
            batch_size: 64,
            max_examples: 1024,
        }
    }
}

/// Runs a graph over examples and observes values, which stream by batch by batch: memory does
/// not grow with the number of examples.
///
/// Examples may have more fields (targets) after the graph's inputs.
///
/// # Errors
/// [`ErrorKind::Data`](opt_core::ErrorKind::Data) if there are no examples or a value is NaN or infinite, at the value's
/// name.
pub fn calibrate(
    graph: &Graph,
    values: &[ValueId],
    data: &dyn Dataset,
    backend: &dyn Backend,
    options: &Calibration,
) -> Result<Observations> {
    let batches = Batches::new(data, backend, options)?;
    let outputs: Vec<(String, ValueId)> = values
        .iter()
        .map(|&v| (graph.value(v).name().to_string(), v))
        .collect();
    let names = outputs.iter().map(|(name, _)| name.clone());
    let mut observations = Observations::new(options.observer, names)?;
    let watched = graph.extract(&outputs, false)?;
    batches.run(&watched, |examples, tensors| {
        let named = outputs.iter().map(|(name, _)| name.as_str());
        observations.update(examples, named.zip(&tensors))
    })?;
    Ok(observations)
}
