//! Graphs in float that round as the quantized graph will.

use std::collections::BTreeMap;

use opt_core::ops::FakeQuantize;
use opt_core::{
    DType, Error, Fact, FactKind, Graph, GraphPatch, Result, ResultExt, Tensor, ValueId,
};

use crate::params::QParams;
use crate::plan::Layer;
use crate::scheme::Granularity;

/// Rounds activations to the grids of their ranges, for everything that reads them.
pub(crate) fn fake_activations(
    patch: &mut GraphPatch,
    ranges: &BTreeMap<ValueId, QParams>,
) -> Result<()> {
    for (&origin, params) in ranges {
        let scale = patch.named_constant("s", params.scale.clone());
        let zero = patch.named_constant("z", params.zero_point.cast(DType::F32));
        let (low, high) = params.grid;
        let axis = None;
        let op = FakeQuantize { low, high, axis };
        let fake = patch.named_node("qat", op, &[origin, scale, zero])?[0];
        patch.replace(origin, fake)?;
    }
    Ok(())
}

/// The grid of a weight: the one that an earlier pass has rounded it to, which its
/// [`Fact::Grid`] says, else that of its range.
///
/// # Errors
/// If it was rounded to a grid of another type or shape than the layer's scheme has.
pub(crate) fn weight_grid(graph: &Graph, layer: &Layer) -> Result<QParams> {
    let (value, scheme) = (graph.value(layer.weight), &layer.scheme);
    let name = || value.name().to_string();
    let content = value
        .tensor()
        .ok_or_else(|| Error::invalid("a layer's weight is not stored").at(name()))?;
    let Some(Fact::Grid {
        dtype,
        scale,
        zero_point,
        axis: found,
    }) = graph.facts().get(layer.weight, FactKind::Grid)
    else {
        return scheme.of_tensor(content, layer.axes()).at(name);
    };
    let params = QParams {
        scale: scale.clone(),
        zero_point: zero_point.clone(),
        axis: *found,
        block: None,
        grid: scheme.grid()?,
    };
    let expected = (scheme.granularity() == Granularity::Channel).then_some(layer.axis);
    let fits = *dtype == scheme.dtype() && *found == expected;
    let levels = rounded(content, &params).at(name)?;
    let close = content.to_f64s().into_iter().zip(levels.to_f64s());
    let step = scale.to_f64s().into_iter().fold(0.0, f64::max);
    if !fits || close.into_iter().any(|(a, b)| (a - b).abs() > 1e-3 * step) {
        return Err(Error::invalid(format!(
            "this weight was rounded to a grid of {dtype} along axis {found:?}; quantize with the \
             configuration that it was rounded for, not as `{scheme}`"
        ))
        .at(name()));
    }
    Ok(params)
}

/// A weight as its integers give it back.
pub(crate) fn rounded(content: &Tensor, params: &QParams) -> Result<Tensor> {
    params.dequantize(&params.quantize(content)?)
}

/// A value cut off at the ends of its grid, where that is narrower than the integer type: the
/// quantization itself would go on to the ends of the type.
pub(crate) fn within_grid(
    patch: &mut GraphPatch,
    value: ValueId,
    params: &QParams,
) -> Result<ValueId> {
    let (least, most) = params.zero_point.dtype().int_range()?;
    let (scale, zero) = (params.scale.item()?, params.zero_point.item()?);
    let mut inside = value;
    if params.grid.0 > least {
        let bound = patch.scalar_like(value, (f64::from(params.grid.0) - zero) * scale)?;
        inside = patch.maximum(inside, bound)?;
    }
    if params.grid.1 < most {
        let bound = patch.scalar_like(value, (f64::from(params.grid.1) - zero) * scale)?;
        inside = patch.minimum(inside, bound)?;
    }
    Ok(inside)
}
