//! Ranges of activations from examples.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;

use opt_core::backend::{CompileSpec, bindings_of};
use opt_core::data::Dataset;
use opt_core::graph::Bindings;
use opt_core::{Backend, Error, ErrorKind, Graph, Result, ResultExt, Session, ValueId};

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
/// [`ErrorKind::Data`] if there are no examples or a value is NaN or infinite, at the value's
/// name.
pub fn calibrate(
    graph: &Graph,
    values: &[ValueId],
    data: &dyn Dataset,
    backend: &dyn Backend,
    options: &Calibration,
) -> Result<BTreeMap<ValueId, Box<dyn RangeObserver>>> {
    let count = data.len().min(options.max_examples);
    if count == 0 || options.batch_size == 0 {
        return Err(Error::new(ErrorKind::Data, "no examples to calibrate on"));
    }
    let mut observers = BTreeMap::new();
    for &v in values {
        observers.insert(v, options.observer.observer()?);
    }
    let outputs: Vec<(String, ValueId)> = values
        .iter()
        .map(|&v| (graph.value(v).name().to_string(), v))
        .collect();
    let watched = graph.extract(&outputs, false)?;
    let mut sessions: BTreeMap<Bindings, Box<dyn Session>> = BTreeMap::new();
    let indices: Vec<usize> = (0..count).collect();
    for batch in indices.chunks(options.batch_size) {
        let mut fields = data.batch(batch)?;
        fields.truncate(watched.inputs().len());
        let bindings = bindings_of(&watched, &fields)?;
        let session = match sessions.entry(bindings) {
            Entry::Occupied(e) => e.into_mut(),
            Entry::Vacant(e) => {
                let mut spec = CompileSpec::new();
                spec.bindings.clone_from(e.key());
                e.insert(backend.compile(&watched, &spec)?.session()?)
            }
        };
        for ((name, v), tensor) in outputs.iter().zip(session.run(&fields)?) {
            let observer = observers.get_mut(v).expect("one a value");
            observer.update(&tensor).at(|| name.clone())?;
        }
    }
    Ok(observers)
}
