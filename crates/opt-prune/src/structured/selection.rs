//! What structured pruning chose.

use opt_core::pass::{AxisGroup, AxisMap, shrink};
use opt_core::{Graph, Result, Tensor};

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
        let mut out = graph.clone();
        for (id, value, tensor) in graph.variables() {
            if !value.ty().dtype.is_float() {
                continue;
            }
            let mut data = tensor.to_f64s();
            let mut touched = false;
            for group in &self.groups {
                for ((_, axis), indices) in group.entries.iter().filter(|((v, _), _)| *v == id) {
                    let inner: usize = tensor.shape()[axis + 1..].iter().product();
                    for (i, v) in data.iter_mut().enumerate() {
                        if indices.contains(&(i / inner.max(1) % tensor.shape()[*axis])) {
                            *v = 0.0;
                            touched = true;
                        }
                    }
                }
            }
            if touched {
                let masked = Tensor::from_f64s(tensor.dtype(), tensor.shape(), &data)?;
                out.set_variable(id, masked)?;
            }
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
