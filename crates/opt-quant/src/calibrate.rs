//! Ranges of activations from examples.

use std::collections::BTreeMap;

use opt_core::data::Dataset;
use opt_core::{Backend, Graph, Result, ResultExt, ValueId};

use crate::batches::Batches;
use crate::observer::{ObserverKind, RangeObserver};

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
) -> Result<BTreeMap<ValueId, Box<dyn RangeObserver>>> {
    let batches = Batches::new(data, backend, options)?;
    let mut observers: BTreeMap<ValueId, Box<dyn RangeObserver>> = BTreeMap::new();
    for &v in values {
        observers.insert(v, options.observer.observer()?);
    }
    let outputs: Vec<(String, ValueId)> = values
        .iter()
        .map(|&v| (graph.value(v).name().to_string(), v))
        .collect();
    let watched = graph.extract(&outputs, false)?;
    batches.run(&watched, |_, tensors| {
        for ((name, v), tensor) in outputs.iter().zip(tensors) {
            let observer = observers.get_mut(v).expect("one a value");
            observer.update(&tensor).at(|| name.clone())?;
        }
        Ok(())
    })?;
    Ok(observers)
}
