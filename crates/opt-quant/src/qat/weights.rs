//! Weights that are rounded in training.

use std::collections::BTreeMap;

use opt_core::ops::FakeQuantize;
use opt_core::{DType, Error, Graph, GraphPatch, Result, Tensor, ValueId};

use crate::params::QParams;
use crate::plan::{Layer, Plan};
use crate::scheme::Granularity;
use crate::static_pass::Config;

/// A stored weight that is rounded, or what it is folded to: the name, and the content that scales
/// start from.
#[derive(Debug, Clone)]
pub(super) struct Weight {
    pub(super) name: String,
    pub(super) content: Tensor,
}

/// The variable with the learned scales of a weight.
pub(super) fn scale_name(weight: &str) -> String {
    format!("{weight}.scale")
}

/// No learned scale is smaller: a step could make it 0 or negative.
pub(super) const LEAST_SCALE: f64 = 1e-8;

/// Adds the nodes that round a weight to its symmetric grid.
pub(super) fn fake_weight(
    patch: &mut GraphPatch,
    weight: ValueId,
    source: &Weight,
    layer: &Layer,
    config: &Config,
) -> Result<ValueId> {
    let scheme = &layer.scheme;
    let (low, high) = scheme.grid()?;
    if !scheme.is_symmetric() || low >= 0 {
        return Err(Error::unsupported(format!(
            "quantization-aware training of weights as `{scheme}`: it takes symmetric signed integers"
        )));
    }
    let axis = scale_axis(layer);
    let scale = match config.learn_scales {
        true => learned_scale(patch, source, axis, high)?,
        false => scale_of_range(patch, weight, axis, high)?,
    };
    let shape = patch.type_of(scale).shape.fixed()?;
    let zeros = patch.constant(Tensor::zeros(DType::F32, &shape)?);
    patch.op(FakeQuantize { low, high, axis }, &[weight, scale, zeros])
}

/// The axis along which a layer's weight has scales.
fn scale_axis(layer: &Layer) -> Option<usize> {
    (layer.scheme.granularity() == Granularity::Channel).then_some(layer.axis)
}

/// The scale under which the largest weight is the highest integer.
fn scale_of_range(
    patch: &mut GraphPatch,
    weight: ValueId,
    axis: Option<usize>,
    high: i32,
) -> Result<ValueId> {
    let rank = patch.type_of(weight).rank();
    let axes: Vec<usize> = (0..rank).filter(|&a| Some(a) != axis).collect();
    let fixed = patch.stop_gradient(weight)?;
    let size = patch.abs(fixed)?;
    let size = patch.reduce(opt_core::ops::ReduceOp::Max, size, &axes, false)?;
    let scale = patch.mul_scalar(size, 1.0 / f64::from(high))?;
    // An all-zero channel has scale 1, as `Scheme::scale` has it.
    let zero = patch.scalar_like(scale, 0.0)?;
    let one = patch.scalar_like(scale, 1.0)?;
    let positive = patch.greater(scale, zero)?;
    patch.select(positive, scale, one)
}

/// A scale that training learns (LSQ, Esser et al. 2020): at first `2 * mean(|w|) / sqrt(high)`,
/// with its gradient divided by `sqrt(n * high)` for n weights, so that it moves about as fast as
/// they do.
fn learned_scale(
    patch: &mut GraphPatch,
    source: &Weight,
    axis: Option<usize>,
    high: i32,
) -> Result<ValueId> {
    let Weight { name, content } = source;
    let shape = content.shape();
    let channels = axis.map_or(1, |a| shape[a]);
    let inner: usize = axis.map_or(content.len(), |a| shape[a + 1..].iter().product());
    let mut sums = vec![0.0; channels];
    for (i, w) in content.to_f64s().into_iter().enumerate() {
        sums[i / inner.max(1) % channels] += w.abs();
    }
    let count = (content.len() / channels.max(1)).max(1) as f64;
    let root = f64::from(high).sqrt();
    // A channel of zeros has scale 1, as `Scheme::scale` has it.
    let start = |sum: &f64| {
        if *sum > 0.0 {
            2.0 * sum / count / root
        } else {
            1.0
        }
    };
    let start: Vec<f64> = sums.iter().map(start).collect();
    let shape: &[usize] = if axis.is_some() { &[channels] } else { &[] };
    let start = Tensor::from_f64s(DType::F32, shape, &start)?;
    let scale = patch.variable(&scale_name(name), start)?;
    positive_part(patch, scale, 1.0 / (count * f64::from(high)).sqrt())
}

/// The value of a scale, kept above 0, with a part of its gradient.
pub(super) fn positive_part(patch: &mut GraphPatch, scale: ValueId, part: f64) -> Result<ValueId> {
    let scale = with_part_of_gradient(patch, scale, part)?;
    let least = patch.scalar_like(scale, LEAST_SCALE)?;
    patch.maximum(scale, least)
}

/// A value with a part of its gradient.
pub(super) fn with_part_of_gradient(
    patch: &mut GraphPatch,
    value: ValueId,
    part: f64,
) -> Result<ValueId> {
    let moving = patch.mul_scalar(value, part)?;
    let fixed = patch.stop_gradient(value)?;
    let fixed = patch.mul_scalar(fixed, 1.0 - part)?;
    patch.add(moving, fixed)
}

/// The parameters of the weights whose scales were learned: a plan's, of the graph without rounding,
/// from the variables of the prepared one.
pub(super) fn learned(
    prepared: &Graph,
    graph: &Graph,
    config: &Config,
    plan: &Plan,
) -> Result<BTreeMap<ValueId, QParams>> {
    let mut out = BTreeMap::new();
    if !config.learn_scales {
        return Ok(out);
    }
    for layer in &plan.layers {
        let name = graph.value(layer.weight).name();
        let scale = prepared.find(&scale_name(name)).ok();
        let Some(scale) = scale.and_then(|v| prepared.value(v).tensor()) else {
            return Err(Error::invalid(
                "this weight has no learned scale; apply `PrepareQat` with the same configuration",
            )
            .at(name.to_string()));
        };
        let scales: Vec<f64> = scale.to_f64s();
        let scales: Vec<f64> = scales.into_iter().map(|s| s.max(LEAST_SCALE)).collect();
        let params = QParams {
            scale: Tensor::from_f64s(DType::F32, scale.shape(), &scales)?,
            zero_point: Tensor::zeros(layer.scheme.dtype(), scale.shape())?,
            axis: scale_axis(layer),
            block: None,
            grid: layer.scheme.grid()?,
        };
        out.insert(layer.weight, params);
    }
    Ok(out)
}
