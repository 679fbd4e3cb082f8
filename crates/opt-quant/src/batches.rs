//! Running a graph over examples.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;

use opt_core::backend::{CompileSpec, bindings_of};
use opt_core::data::Dataset;
use opt_core::graph::Bindings;
use opt_core::{Backend, Error, ErrorKind, Graph, Result, Session, Tensor};

use crate::calibrate::Calibration;

/// The examples that methods look at, a batch at a time.
#[derive(Clone, Copy)]
pub(crate) struct Batches<'a> {
    data: &'a dyn Dataset,
    pub(crate) backend: &'a dyn Backend,
    count: usize,
    size: usize,
}

impl<'a> Batches<'a> {
    /// The first examples of a data set.
    pub(crate) fn new(
        data: &'a dyn Dataset,
        backend: &'a dyn Backend,
        options: &Calibration,
    ) -> Result<Batches<'a>> {
        let count = data.len().min(options.max_examples);
        if count == 0 || options.batch_size == 0 {
            return Err(Error::new(ErrorKind::Data, "no examples to calibrate on"));
        }
        Ok(Batches {
            data,
            backend,
            count,
            size: options.batch_size,
        })
    }

    /// How many batches there are.
    pub(crate) fn len(&self) -> usize {
        self.count.div_ceil(self.size)
    }

    /// Runs a graph over all batches; `take` gets the number of examples and the outputs of each.
    /// Fields of examples after the graph's inputs are left out.
    pub(crate) fn run(
        &self,
        graph: &Graph,
        mut take: impl FnMut(usize, Vec<Tensor>) -> Result<()>,
    ) -> Result<()> {
        let mut sessions: BTreeMap<Bindings, Box<dyn Session>> = BTreeMap::new();
        for start in (0..self.count).step_by(self.size) {
            let batch: Vec<usize> = (start..self.count.min(start + self.size)).collect();
            let mut fields = self.data.batch(&batch)?;
            fields.truncate(graph.inputs().len());
            let bindings = bindings_of(graph, &fields)?;
            let session = match sessions.entry(bindings) {
                Entry::Occupied(e) => e.into_mut(),
                Entry::Vacant(e) => {
                    let mut spec = CompileSpec::new();
                    spec.bindings.clone_from(e.key());
                    e.insert(self.backend.compile(graph, &spec)?.session()?)
                }
            };
            take(batch.len(), session.run(&fields)?)?;
        }
        Ok(())
    }
}
