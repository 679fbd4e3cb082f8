//! Layers with standard initial weights, and a small [zoo] of models.
//!
//! A [`ModelBuilder`] is a [`GraphBuilder`](crate::GraphBuilder) that also knows the dtype of the
//! parameters and the seed of their initial content. A [`Layer`] adds its parameters and nodes
//! under a name; input sizes are read off the value that it is applied to.
//!
//! ```
//! use opt_core::nn::{Conv, Linear, ModelBuilder};
//!
//! let mut m = ModelBuilder::new("cnn", 42);
//! let x = m.batch("image", [1, 28, 28])?;
//! let x = m.layer("conv1", Conv::new(8, [3, 3]).pad(1), x)?;
//! let x = m.relu(x)?;
//! let x = m.max_pool(x, 2)?;
//! let x = m.flatten(x, 1)?;
//! let logits = m.layer("fc", Linear::new(10), x)?;
//! m.output("logits", logits)?;
//! let graph = m.finish()?;
//!
//! assert_eq!(graph.type_of(logits).to_string(), "f32[batch,10]");
//! assert_eq!(graph.type_of(graph.find("fc.weight")?).to_string(), "f32[10,1568]");
//! assert_eq!(graph.parameter_count(), 8 * 9 + 8 + 1568 * 10 + 10);
//! # Ok::<(), opt_core::Error>(())
//! ```
//!
//! Names and shapes of parameters are PyTorch's where the ops' layouts are the same (linear,
//! convolution, normalization, embedding), so that a checkpoint's entries can be found by name.

mod attention;
mod builder;
mod conv;
mod init;
mod linear;
mod norm;
mod recurrent;
pub mod zoo;

use std::collections::{BTreeSet, HashSet};

pub use attention::{MultiHeadAttention, TransformerEncoderLayer};
pub use builder::{Layer, ModelBuilder};
pub use conv::{Conv, ConvTranspose};
pub use init::{Fan, Init, gain};
pub use linear::{Dropout, Embedding, Linear};
pub use norm::{BatchNorm, GroupNorm, LayerNorm, RmsNorm};
pub use recurrent::{Gru, Lstm, States};

use crate::ops::Op;
use crate::{Graph, ValueId, ValueKind};

impl Graph {
    /// The variables to train, in order of their ids: those of a floating-point type that an
    /// output depends on other than through [`StopGradient`](crate::ops::StopGradient) or as the
    /// running statistics of a batch normalization. The moments of an optimizer are none, since
    /// only assignments depend on them.
    pub fn parameters(&self) -> Vec<ValueId> {
        let mut live: HashSet<ValueId> = self.outputs().collect();
        for (_, node) in self.nodes().rev() {
            if !node.outputs().iter().any(|o| live.contains(o)) {
                continue;
            }
            let read = match node.op() {
                Op::StopGradient(_) => 0,
                Op::BatchNorm(_) => 3,
                _ => node.inputs().len(),
            };
            live.extend(node.inputs().iter().take(read));
        }
        let trained = |v: &ValueId| {
            let value = self.value(*v);
            matches!(value.kind(), ValueKind::Variable(_)) && value.ty().dtype.is_float()
        };
        let found: BTreeSet<ValueId> = live.into_iter().filter(trained).collect();
        found.into_iter().collect()
    }

    /// The number of entries of the [parameters](Graph::parameters).
    pub fn parameter_count(&self) -> usize {
        let tensors = self.parameters();
        let tensors = tensors.iter().filter_map(|&v| self.value(v).tensor());
        tensors.map(|t| t.len()).sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Tensor;

    #[test]
    fn running_statistics_frozen_weights_and_moments_are_no_parameters() {
        let mut m = ModelBuilder::new("m", 0);
        let x = m.batch("x", [4]).unwrap();
        let x = m.layer("bn", BatchNorm::new(), x).unwrap();
        let frozen = m.variable("frozen", Tensor::full(crate::DType::F32, [4], 2.0).unwrap());
        let frozen = frozen.unwrap();
        let stopped = m.stop_gradient(frozen).unwrap();
        let x = m.mul(x, stopped).unwrap();
        let moment = m.variable("moment", Tensor::scalar(0f32)).unwrap();
        let next = m.add_scalar(moment, 1.0).unwrap();
        m.assign(moment, next).unwrap();
        m.output("y", x).unwrap();
        let graph = m.finish().unwrap();
        let names: Vec<_> = graph
            .parameters()
            .iter()
            .map(|&v| graph.value(v).name())
            .collect();
        assert_eq!(names, ["bn.weight", "bn.bias"]);
        assert_eq!(graph.parameter_count(), 8);
    }
}
