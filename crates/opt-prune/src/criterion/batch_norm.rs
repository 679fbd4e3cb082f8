//! The scale of the batch normalization that a channel goes through.

use std::collections::BTreeMap;

use opt_core::ops::Op;
use opt_core::{Context, Error, ErrorKind, Graph, Result, ValueId};

use super::{Criterion, Structures};

/// The size of a channel's batch-norm scale (Liu et al. 2017, "Learning Efficient Convolutional
/// Networks through Network Slimming"): `|gamma|`, and the mean of them where residual sums couple
/// channels that go through several.
///
/// The paper trains with an L1 penalty on the scales first, so that those of channels that do not
/// matter come near 0, and ranks all layers together
/// ([`ChannelPrune::global`](crate::ChannelPrune::global)).
///
/// It scores channels only; a layer without batch normalization is an error that names it, to be
/// [excluded](crate::ChannelPrune::exclude).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct BatchNormScale;

impl Criterion for BatchNormScale {
    fn score_structures(
        &self,
        graph: &Graph,
        layers: &[Structures],
        _: &[ValueId],
        _: &mut Context<'_>,
    ) -> Result<Vec<Vec<f64>>> {
        let mut scales: BTreeMap<ValueId, Vec<f64>> = BTreeMap::new();
        for (_, node) in graph.nodes() {
            if let Op::BatchNorm(_) = node.op() {
                let scale = node.inputs()[1];
                if let Some(tensor) = graph.value(scale).tensor() {
                    scales.insert(scale, tensor.to_f64s());
                }
            }
        }
        let score = |layer: &Structures| -> Result<Vec<f64>> {
            let mut out = Vec::with_capacity(layer.groups.len());
            for group in &layer.groups {
                let (mut sum, mut count) = (0.0, 0usize);
                for ((value, _), indices) in &group.entries {
                    if let Some(scale) = scales.get(value) {
                        sum += indices.iter().map(|&i| scale[i].abs()).sum::<f64>();
                        count += indices.len();
                    }
                }
                if count == 0 {
                    return Err(Error::new(
                        ErrorKind::InvalidArgument,
                        "no batch normalization follows this layer; exclude it, or rank by \
                         another criterion",
                    )
                    .at(layer.layer.clone()));
                }
                out.push(sum / count as f64);
            }
            Ok(out)
        };
        layers.iter().map(score).collect()
    }
}
