//! What structured pruning chose.

use std::collections::BTreeMap;

use opt_core::pass::{AxisGroup, AxisMap, shrink};
use opt_core::{Graph, Result, Tensor, ValueId, ValueKind};

use crate::criterion::each_slice;

/// What a [`ChannelPrune`](crate::ChannelPrune) chose: the groups to remove.
#[derive(Debug, Clone)]
pub struct ChannelSelection {
    pub(crate) groups: Vec<AxisGroup>,
}

impl ChannelSelection {
    /// The number of channels that go.
    pub fn len(&self) -> usize {
        self.groups.len()
    }

    /// Whether none go.
    pub fn is_empty(&self) -> bool {
        self.groups.is_empty()
    }

    /// The graph without the channels.
    ///
    /// # Errors
    /// If an op cannot be expressed for what is left, at its node.
    pub fn shrink(&self, graph: &Graph) -> Result<Graph> {
        shrink(graph, &self.axis_map(graph)?)
    }

    /// The graph with the channels' parameters set to zero instead: it computes the same as the
    /// [shrunk](ChannelSelection::shrink) one.
    ///
    /// # Errors
    /// None for graphs that verify.
    pub fn mask(&self, graph: &Graph) -> Result<Graph> {
        let mut gone: BTreeMap<ValueId, Vec<f64>> = BTreeMap::new();
        for group in &self.groups {
            for (&(id, axis), indices) in &group.entries {
                let value = graph.value(id);
                let (ValueKind::Variable(tensor), true) =
                    (value.kind(), value.ty().dtype.is_float())
                else {
                    continue;
                };
                let data = gone.entry(id).or_insert_with(|| tensor.to_f64s());
                each_slice(tensor.shape(), axis, indices, |range| data[range].fill(0.0));
            }
        }
        let mut out = graph.clone();
        for (id, data) in gone {
            let ty = graph.type_of(id);
            let masked = Tensor::from_f64s(ty.dtype, ty.shape.fixed()?, &data)?;
            out.set_variable(id, masked)?;
        }
        Ok(out)
    }

    /// Which indices of each value stay; slices optimizer state and the like.
    ///
    /// # Errors
    /// If the graph is not the one that the selection was made for.
    pub fn axis_map(&self, graph: &Graph) -> Result<AxisMap> {
        AxisMap::removing(graph, &self.groups)
    }
}
