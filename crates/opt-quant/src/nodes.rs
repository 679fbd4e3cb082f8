//! Quantized tensors as constants and nodes of a graph.

use opt_core::ops::Dequantize;
use opt_core::{DType, GraphPatch, Result, Tensor, ValueId};

use crate::quantized::{NF4, QuantizedTensor};
use crate::scheme::Format;

/// The constants of a quantized tensor in a graph.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Constants {
    pub(crate) codes: ValueId,
    pub(crate) scales: Option<ValueId>,
    pub(crate) zero_points: Option<ValueId>,
    tensor_scale: Option<ValueId>,
}

impl Constants {
    /// Adds the constants, under the tensor's name with an ending each.
    pub(crate) fn add(patch: &mut GraphPatch, name: &str, q: &QuantizedTensor) -> Constants {
        let mut constant = |ending: &str, content: Option<&Tensor>| {
            content.map(|t| patch.named_constant(&format!("{name}.{ending}"), t.clone()))
        };
        let codes = constant("q", Some(q.codes())).expect("given");
        Constants {
            codes,
            scales: constant("s", q.scales()),
            zero_points: constant("z", q.zero_points()),
            tensor_scale: constant("t", q.tensor_scale()),
        }
    }

    /// Adds the nodes that compute the tensor in `f32`: a `Dequantize`; for microscaling formats a
    /// cast of the scales before it, for NVFP4 a `Dequantize` of the scales; for NF4 a lookup of the
    /// levels, times the scales.
    pub(crate) fn dequantize(
        &self,
        patch: &mut GraphPatch,
        q: &QuantizedTensor,
    ) -> Result<ValueId> {
        let Some(scales) = self.scales else {
            return patch.cast(self.codes, DType::F32);
        };
        let whole = Dequantize {
            axis: None,
            block: None,
        };
        let scales = match (q.scheme().format(), self.tensor_scale) {
            (Format::Mx(_), _) => patch.cast(scales, DType::F32)?,
            _ if patch.type_of(scales).dtype == DType::F16 => patch.cast(scales, DType::F32)?,
            (_, Some(tensor_scale)) => patch.op(whole, &[scales, tensor_scale])?,
            _ => scales,
        };
        if q.scheme().format() == Format::Nf4 {
            return levels(patch, q, self.codes, scales);
        }
        let op = Dequantize {
            axis: q.axis(),
            block: q.block(),
        };
        let inputs: Vec<ValueId> = [self.codes, scales]
            .into_iter()
            .chain(self.zero_points)
            .collect();
        patch.op(op, &inputs)
    }
}

/// The levels of NF4 that codes number, times the scales.
fn levels(
    patch: &mut GraphPatch,
    q: &QuantizedTensor,
    codes: ValueId,
    scales: ValueId,
) -> Result<ValueId> {
    let shape = q.codes().shape().to_vec();
    let book = patch.named_constant("nf4", Tensor::new([16], NF4)?);
    let numbers = patch.cast(codes, DType::I32)?;
    let values = patch.gather(book, numbers, 0)?;
    let Some(axis) = q.axis() else {
        return patch.mul(values, scales);
    };
    let Some(block) = q.block() else {
        let mut along = vec![1; shape.len()];
        along[axis] = shape[axis];
        let scales = patch.reshape(scales, along.as_slice())?;
        return patch.mul(values, scales);
    };
    // Blocks as an axis of their own, which the scales broadcast along.
    let blocks = shape[axis].div_ceil(block);
    let mut split = shape.clone();
    split.splice(axis..=axis, [blocks, block]);
    let scales = patch.unsqueeze(scales, &[axis + 1])?;
    if blocks * block == shape[axis] {
        let values = patch.reshape(values, split.as_slice())?;
        let scaled = patch.mul(values, scales)?;
        return patch.reshape(scaled, shape.as_slice());
    }
    let spread = patch.expand(scales, split.as_slice())?;
    let mut joined = shape.clone();
    joined[axis] = blocks * block;
    let spread = patch.reshape(spread, joined.as_slice())?;
    let scales = patch.slice(spread, axis, 0, shape[axis])?;
    patch.mul(values, scales)
}
