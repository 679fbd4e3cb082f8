//! Ranges of activations from examples.

use std::collections::BTreeMap;

use opt_core::backend::CompileSpec;
use opt_core::data::Dataset;
use opt_core::{
    Backend, Dim, Error, ErrorKind, Graph, Result, ResultExt, Session, Symbol, ValueId,
};

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
    let symbol: Option<Symbol> =
        watched
            .inputs()
            .iter()
            .find_map(|&v| match watched.type_of(v).shape.dims().first() {
                Some(Dim::Symbol(s)) => Some(s.clone()),
                _ => None,
            });
    let mut sessions: BTreeMap<usize, Box<dyn Session>> = BTreeMap::new();
    let indices: Vec<usize> = (0..count).collect();
    for batch in indices.chunks(options.batch_size) {
        let mut fields = data.batch(batch)?;
        fields.truncate(watched.inputs().len());
        if let std::collections::btree_map::Entry::Vacant(e) = sessions.entry(batch.len()) {
            let mut spec = CompileSpec::new();
            if let Some(symbol) = &symbol {
                spec.bindings.insert(symbol.clone(), batch.len());
            }
            let session = backend.compile(&watched, &spec)?.session()?;
            e.insert(session);
        }
        let session = sessions.get_mut(&batch.len()).expect("inserted above");
        for ((name, v), tensor) in outputs.iter().zip(session.run(&fields)?) {
            let observer = observers.get_mut(v).expect("one a value");
            observer.update(&tensor).at(|| name.clone())?;
        }
    }
    Ok(observers)
}
