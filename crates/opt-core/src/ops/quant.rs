//! Quantization: to an integer grid, back, and rounding to the grid in float.

use crate::{DType, GraphBuilder, Result, ValueId};

/// `clamp(round_half_even(x / scale) + zero_point)` to `dtype` (i8, u8, i4 or u4). Inputs: x,
/// scale, zero point (of `dtype`); scale and zero point are scalars, or `[C]` along `axis`, or
/// with `block` have x's shape with `axis` divided by the block. No gradient. Source: ONNX
/// `QuantizeLinear`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Quantize {
    /// The dtype of the output.
    pub dtype: DType,
    /// The axis of per-channel or blocked scales.
    pub axis: Option<usize>,
    /// Entries of the axis that share a scale; `None` is one an entry.
    pub block: Option<usize>,
}

/// `(q - zero_point) * scale`. Inputs: q (i8, u8, i4, u4 or i32), scale, zero point (of q's
/// dtype), shaped as for [`Quantize`]; the output has the scale's dtype. Source: ONNX
/// `DequantizeLinear`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Dequantize {
    /// The axis of per-channel or blocked scales.
    pub axis: Option<usize>,
    /// Entries of the axis that share a scale; `None` is one an entry.
    pub block: Option<usize>,
}

/// Quantizes and dequantizes in float: `(clamp(round_half_even(x / scale + zero_point), low,
/// high) - zero_point) * scale`. Inputs: x, scale, zero point, all of one float dtype; scale and
/// zero point are scalars or `[C]` along `axis`.
///
/// Gradients: by x straight through inside the range and 0 outside (Jacob et al. 2018); by the
/// scale as LSQ has it (Esser et al. 2020): `round(x/s) - x/s` inside, the clamped grid value
/// outside; by the zero point `-s` outside the range, 0 inside.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FakeQuantize {
    /// The lowest integer of the grid.
    pub low: i32,
    /// The highest integer of the grid.
    pub high: i32,
    /// The axis of per-channel scales.
    pub axis: Option<usize>,
}

impl GraphBuilder {
    /// Quantizes with a scale per tensor, or per entry of `axis`.
    ///
    /// # Errors
    /// If dtypes or shapes are not those that [`Quantize`] names.
    pub fn quantize(
        &mut self,
        x: ValueId,
        scale: ValueId,
        zero_point: ValueId,
        axis: Option<usize>,
    ) -> Result<ValueId> {
        let dtype = self.type_of(zero_point).dtype;
        let op = Quantize {
            dtype,
            axis,
            block: None,
        };
        self.op(op, &[x, scale, zero_point])
    }

    /// Dequantizes with a scale per tensor, or per entry of `axis`.
    ///
    /// # Errors
    /// If dtypes or shapes are not those that [`Dequantize`] names.
    pub fn dequantize(
        &mut self,
        q: ValueId,
        scale: ValueId,
        zero_point: ValueId,
        axis: Option<usize>,
    ) -> Result<ValueId> {
        self.op(Dequantize { axis, block: None }, &[q, scale, zero_point])
    }

    /// Rounds to the grid of an integer dtype, in float.
    ///
    /// # Errors
    /// If dtypes or shapes are not those that [`FakeQuantize`] names.
    pub fn fake_quantize(
        &mut self,
        x: ValueId,
        scale: ValueId,
        zero_point: ValueId,
        dtype: DType,
        axis: Option<usize>,
    ) -> Result<ValueId> {
        let (low, high) = dtype.int_range()?;
        self.op(FakeQuantize { low, high, axis }, &[x, scale, zero_point])
    }
}

crate::ops::rules::pending_rules!(Quantize, Dequantize, FakeQuantize);
