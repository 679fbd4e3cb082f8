//! Quantization: to a grid of integers or narrow floats, back, and rounding to the grid in float.

use super::rules::{arity, float, no_gradient, of_dtype, same_dtype};
use super::{AxisRules, Cost, IndexMap, InputGrads, OpRules, Port, Vjp};
use crate::tensor::MiniFloat;
use crate::{DType, Dim, Error, GraphBuilder, Result, Shape, Tensor, TensorType, ValueId};

/// `clamp(round_half_even(x / scale) + zero_point)` to `dtype`, an integer of 8, 4 or 2 bits; or the
/// number of `dtype` that is nearest to `x / scale`, a float of 8, 6 or 4 bits, as
/// [`MiniFloat::encode`](crate::tensor::MiniFloat::encode) has it. Inputs: x, scale (of x's dtype),
/// and for integers, if it is not 0, the zero point (of `dtype`). Scale and zero point are scalars,
/// or `[C]` along `axis`, or with `block` have x's shape with `axis` divided by the block, rounded
/// up. No gradient. Source: ONNX `QuantizeLinear`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Quantize {
    /// The dtype of the output.
    pub dtype: DType,
    /// The axis of per-channel or blocked scales.
    pub axis: Option<usize>,
    /// Entries of the axis that share a scale; `None` is one an entry.
    pub block: Option<usize>,
}

/// `(q - zero_point) * scale`. Inputs: q (of a dtype that [`Quantize`] has, or i32), scale, and for
/// integers, if it is not 0, the zero point (of q's dtype), shaped as for [`Quantize`]; the output
/// has the scale's dtype. The gradient by the scale is that of the formula. Source: ONNX
/// `DequantizeLinear`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Dequantize {
    /// The axis of per-channel or blocked scales.
    pub axis: Option<usize>,
    /// Entries of the axis that share a scale; `None` is one an entry.
    pub block: Option<usize>,
}

/// Quantizes a whole tensor of `f32` to u8 with a scale and zero point found at run time:
/// outputs are `clamp(round_half_even(x / scale) + zero_point, 0, 255)`, the scale
/// `(max(x, 0) - min(x, 0)) / 255` and the zero point `clamp(round(-min(x, 0) / scale), 0, 255)`
/// (scalars). A tensor of zeros has scale 1, an empty one too. No gradient. Source: ONNX
/// `DynamicQuantizeLinear`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DynamicQuantize;

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

    /// Quantizes to u8 with a scale and zero point found at run time; returns the integers, the
    /// scale and the zero point.
    ///
    /// # Errors
    /// If the input is not `f32`.
    pub fn dynamic_quantize(&mut self, x: ValueId) -> Result<[ValueId; 3]> {
        let out = self.node(DynamicQuantize, &[x])?;
        Ok([out[0], out[1], out[2]])
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

/// Fails unless a dtype is one of quantized values, and a zero point goes with it.
fn grid_of(inputs: &[TensorType], dtype: DType) -> Result<()> {
    match (inputs.get(2), MiniFloat::of(dtype)) {
        (_, Some(_)) if dtype == DType::F8E8M0 => Err(Error::dtype(format!(
            "{dtype} is a type of scales, not of quantized values"
        ))),
        (None, Some(_)) => Ok(()),
        (Some(zero), Some(_)) => Err(Error::dtype(format!(
            "{dtype} is symmetric about 0: it takes no zero point, found {zero}"
        ))),
        (None, None) => dtype.int_range().map(|_| ()),
        (Some(zero), None) => {
            dtype.int_range()?;
            of_dtype(zero, dtype, "the zero point")
        }
    }
}

/// Fails unless scale and zero point have the shape that goes with x, axis and block.
fn parameters(inputs: &[TensorType], axis: Option<usize>, block: Option<usize>) -> Result<()> {
    let x = &inputs[0];
    let expected = match (axis, block) {
        (None, None) => Shape::default(),
        (None, Some(_)) => return Err(Error::invalid("a block needs an axis")),
        (Some(axis), _) if axis >= x.rank() => {
            return Err(Error::invalid(format!("axis {axis} of {x} does not exist")));
        }
        (Some(axis), None) => Shape::new([x.shape[axis].clone()]),
        (Some(_), Some(0)) => return Err(Error::invalid("a block of no entries")),
        (Some(axis), Some(block)) => {
            let mut shape = x.shape.clone();
            shape.dims_mut()[axis] = x.shape[axis].fixed()?.div_ceil(block).into();
            shape
        }
    };
    for (ty, what) in inputs[1..].iter().zip(["scale", "zero point"]) {
        if ty.shape != expected {
            return Err(Error::shape(format!(
                "the {what} of {x} must have shape {expected} (axis {axis:?}, block {block:?}), \
                 found {ty}"
            )));
        }
    }
    Ok(())
}

/// Axes of the input are those of the output; the scale's follow the axis it stands along.
fn axis_rules(inputs: &[TensorType], axis: Option<usize>, block: Option<usize>) -> AxisRules {
    use Port::{Input, Output};
    let mut rules = AxisRules::new();
    for a in 0..inputs[0].rank() {
        rules.same((Input(0), a), (Output(0), a));
    }
    for i in 1..inputs.len() {
        match (axis, block) {
            (Some(axis), None) => rules.same((Input(i), 0), (Input(0), axis)),
            (Some(axis), Some(block)) => {
                for a in (0..inputs[i].rank()).filter(|&a| a != axis) {
                    rules.same((Input(i), a), (Input(0), a));
                }
                if inputs[0].shape[axis]
                    .as_fixed()
                    .is_some_and(|n| n % block == 0)
                {
                    let map = IndexMap::Merge { inner: block };
                    rules.link((Input(i), axis), (Input(0), axis), map);
                } else {
                    rules.block((Input(i), axis));
                    rules.block((Input(0), axis));
                }
            }
            (None, _) => {}
        }
    }
    rules
}

/// A per-channel parameter `[C]` shaped to broadcast along `axis` of a rank; a scalar as it is.
fn along(b: &mut GraphBuilder, v: ValueId, axis: Option<usize>, rank: usize) -> Result<ValueId> {
    let Some(axis) = axis else {
        return Ok(v);
    };
    let mut shape: Shape = (0..rank).map(|_| Dim::from(1)).collect();
    shape.dims_mut()[axis] = b.type_of(v).shape[0].clone();
    b.reshape(v, shape)
}

/// The sum of a gradient over all entries that share a parameter.
fn sum_to_parameter(
    b: &mut GraphBuilder,
    g: ValueId,
    axis: Option<usize>,
    block: Option<usize>,
) -> Result<ValueId> {
    let shape = b.type_of(g).shape.clone();
    match (axis, block) {
        (None, _) => b.sum_all(g),
        (Some(axis), None) => {
            let others: Vec<usize> = (0..shape.rank()).filter(|&a| a != axis).collect();
            b.sum(g, &others, false)
        }
        (Some(axis), Some(block)) => {
            let size = shape[axis].fixed()?;
            if size % block != 0 {
                return Err(Error::unsupported(format!(
                    "the gradient by a scale whose block {block} does not divide the axis' \
                     size {size}"
                )));
            }
            let mut dims = shape.dims().to_vec();
            dims.splice(axis..=axis, [(size / block).into(), block.into()]);
            let blocks = b.reshape(g, dims)?;
            b.sum(blocks, &[axis + 1], false)
        }
    }
}

impl OpRules for Quantize {
    fn infer(&self, inputs: &[TensorType]) -> Result<Vec<TensorType>> {
        arity(inputs, 2..=3)?;
        float(&inputs[0], "the input")?;
        same_dtype(&inputs[0], &inputs[1])?;
        grid_of(inputs, self.dtype)?;
        parameters(inputs, self.axis, self.block)?;
        Ok(vec![inputs[0].with_dtype(self.dtype)])
    }

    fn vjp(&self, _: &mut Vjp<'_>) -> Result<InputGrads> {
        Err(no_gradient("Quantize", "train with FakeQuantize instead"))
    }

    fn axes(&self, inputs: &[TensorType], _: &[TensorType]) -> AxisRules {
        axis_rules(inputs, self.axis, self.block)
    }

    fn cost(&self, _: &[TensorType], outputs: &[TensorType]) -> Result<Cost> {
        Cost::elementwise(outputs)
    }
}

impl OpRules for Dequantize {
    fn infer(&self, inputs: &[TensorType]) -> Result<Vec<TensorType>> {
        arity(inputs, 2..=3)?;
        let (q, scale) = (&inputs[0], &inputs[1]);
        float(scale, "the scale")?;
        if q.dtype != DType::I32 {
            grid_of(inputs, q.dtype)?;
        } else if let Some(zero) = inputs.get(2) {
            of_dtype(zero, q.dtype, "the zero point")?;
        }
        parameters(inputs, self.axis, self.block)?;
        Ok(vec![q.with_dtype(scale.dtype)])
    }

    fn vjp(&self, cx: &mut Vjp<'_>) -> Result<InputGrads> {
        let g = cx.grad()?;
        let scale = cx.input_type(1);
        // With a scale of 1 the op gives `q - zero_point`, for packed and blocked inputs too.
        let ones = Tensor::full(scale.dtype, scale.shape.fixed()?, 1.0)?;
        let ones = cx.b.constant(ones);
        let mut operands = cx.inputs.to_vec();
        operands[1] = ones;
        let steps = cx.b.op(self.clone(), &operands)?;
        let by_scale = cx.b.mul(g, steps)?;
        let by_scale = sum_to_parameter(cx.b, by_scale, self.axis, self.block)?;
        let mut grads = vec![None; cx.inputs.len()];
        grads[1] = Some(by_scale);
        Ok(grads)
    }

    fn axes(&self, inputs: &[TensorType], _: &[TensorType]) -> AxisRules {
        axis_rules(inputs, self.axis, self.block)
    }

    fn cost(&self, _: &[TensorType], outputs: &[TensorType]) -> Result<Cost> {
        Cost::elementwise(outputs)
    }
}

impl OpRules for DynamicQuantize {
    fn infer(&self, inputs: &[TensorType]) -> Result<Vec<TensorType>> {
        arity(inputs, 1..=1)?;
        of_dtype(&inputs[0], DType::F32, "the input")?;
        Ok(vec![
            inputs[0].with_dtype(DType::U8),
            TensorType::new(DType::F32, Shape::default()),
            TensorType::new(DType::U8, Shape::default()),
        ])
    }

    fn vjp(&self, _: &mut Vjp<'_>) -> Result<InputGrads> {
        Err(no_gradient(
            "DynamicQuantize",
            "its output is an integer; train with FakeQuantize",
        ))
    }

    fn axes(&self, inputs: &[TensorType], outputs: &[TensorType]) -> AxisRules {
        AxisRules::broadcast(inputs, &outputs[..1])
    }

    fn cost(&self, inputs: &[TensorType], _: &[TensorType]) -> Result<Cost> {
        Ok(Cost {
            macs: 0,
            elements: 2 * inputs[0].shape.len()? as u64,
        })
    }
}

impl OpRules for FakeQuantize {
    fn infer(&self, inputs: &[TensorType]) -> Result<Vec<TensorType>> {
        arity(inputs, 3..=3)?;
        float(&inputs[0], "the input")?;
        same_dtype(&inputs[0], &inputs[1])?;
        same_dtype(&inputs[0], &inputs[2])?;
        if self.low >= self.high {
            return Err(Error::invalid(format!(
                "a grid from {} to {} has no range",
                self.low, self.high
            )));
        }
        parameters(inputs, self.axis, None)?;
        Ok(vec![inputs[0].clone()])
    }

    fn vjp(&self, cx: &mut Vjp<'_>) -> Result<InputGrads> {
        let g = cx.grad()?;
        let rank = cx.input_type(0).rank();
        let b = &mut *cx.b;
        let x = cx.inputs[0];
        let scale = along(b, cx.inputs[1], self.axis, rank)?;
        let zero_point = along(b, cx.inputs[2], self.axis, rank)?;
        let exact = b.div(x, scale)?;
        let exact = b.add(exact, zero_point)?;
        let grid = b.round(exact)?;
        let low = b.scalar_like(x, f64::from(self.low))?;
        let high = b.scalar_like(x, f64::from(self.high))?;
        let (above, below) = (b.greater_or_equal(grid, low)?, b.less_or_equal(grid, high)?);
        let inside = b.and(above, below)?;
        let zero = b.scalar_like(x, 0.0)?;
        let mut grads = vec![None; 3];
        if cx.wanted[0] {
            grads[0] = Some(b.select(inside, g, zero)?);
        }
        if cx.wanted[1] {
            let clamped = b.maximum(grid, low)?;
            let clamped = b.minimum(clamped, high)?;
            let origin = b.select(inside, exact, zero_point)?;
            let slope = b.sub(clamped, origin)?;
            let by_scale = b.mul(g, slope)?;
            grads[1] = Some(sum_to_parameter(b, by_scale, self.axis, None)?);
        }
        if cx.wanted[2] {
            let outside = b.mul(g, scale)?;
            let outside = b.neg(outside)?;
            let by_zero_point = b.select(inside, zero, outside)?;
            grads[2] = Some(sum_to_parameter(b, by_zero_point, self.axis, None)?);
        }
        Ok(grads)
    }

    fn axes(&self, inputs: &[TensorType], _: &[TensorType]) -> AxisRules {
        axis_rules(inputs, self.axis, None)
    }

    fn cost(&self, _: &[TensorType], outputs: &[TensorType]) -> Result<Cost> {
        Cost::elementwise(outputs)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::Op;
    use crate::ops::testing::{axes, infer};

    #[test]
    fn types_of_outputs() {
        let quantize = |dtype, axis, block| Op::from(Quantize { dtype, axis, block });
        let dequantize = |axis, block| Op::from(Dequantize { axis, block });
        let fake = |low, axis| {
            Op::from(FakeQuantize {
                low,
                high: 127,
                axis,
            })
        };
        let int8 = |axis, block| quantize(DType::I8, axis, block);
        for (op, inputs, expected) in [
            (int8(None, None), "f32[n,3] f32[] i8[]", "i8[n,3]"),
            (int8(Some(1), None), "f32[n,3] f32[3] i8[3]", "i8[n,3]"),
            (
                int8(Some(1), Some(2)),
                "f32[n,5] f32[n,3] i8[n,3]",
                "i8[n,5]",
            ),
            (int8(None, None), "f32[n,3] f32[1] i8[1]", "error"),
            (int8(None, None), "f32[3] f32[] u8[]", "error"),
            (int8(None, None), "f32[3] f64[] i8[]", "error"),
            (int8(None, None), "i32[3] f32[] i8[]", "error"),
            (int8(None, Some(2)), "f32[4] f32[] i8[]", "error"),
            (int8(Some(0), Some(0)), "f32[4] f32[2] i8[2]", "error"),
            (int8(Some(0), Some(2)), "f32[n] f32[2] i8[2]", "error"),
            (int8(Some(1), None), "f32[4] f32[4] i8[4]", "error"),
            (int8(Some(0), None), "f32[4] f32[3] i8[3]", "error"),
            (int8(Some(0), None), "f32[4] f32[4] i8[]", "error"),
            (
                quantize(DType::U4, None, None),
                "f32[4] f32[] u4[]",
                "u4[4]",
            ),
            (
                quantize(DType::I32, None, None),
                "f32[4] f32[] i32[]",
                "error",
            ),
            (dequantize(None, None), "i32[n] f32[] i32[]", "f32[n]"),
            (dequantize(Some(0), Some(4)), "i4[8] f16[2] i4[2]", "f16[8]"),
            (dequantize(None, None), "i64[n] f32[] i64[]", "error"),
            (dequantize(None, None), "i8[n] f32[] u8[]", "error"),
            (dequantize(None, None), "i8[n] i8[] i8[]", "error"),
            (dequantize(Some(0), Some(4)), "i2[8] f32[2]", "f32[8]"),
            (dequantize(Some(0), None), "f8e4m3[8] f16[8]", "f16[8]"),
            (dequantize(None, None), "f8e4m3[8] f32[] f8e4m3[]", "error"),
            (dequantize(None, None), "f8e8m0[8] f32[]", "error"),
            (dequantize(None, None), "f16[8] f32[]", "error"),
            (
                quantize(DType::F4E2M1, Some(1), Some(2)),
                "f32[n,5] f32[n,3]",
                "f4e2m1[n,5]",
            ),
            (quantize(DType::U2, None, None), "f32[4] f32[]", "u2[4]"),
            (fake(-128, None), "f32[n,3] f32[] f32[]", "f32[n,3]"),
            (fake(-128, Some(1)), "f32[n,3] f32[3] f32[3]", "f32[n,3]"),
            (fake(-128, None), "f32[n,3] f32[] i8[]", "error"),
            (fake(127, None), "f32[n,3] f32[] f32[]", "error"),
        ] {
            assert_eq!(infer(&op, inputs), expected, "{op:?} {inputs}");
        }
    }

    #[test]
    fn scales_follow_their_axis() {
        use Port::Input;
        let per_channel = Op::from(FakeQuantize {
            low: 0,
            high: 15,
            axis: Some(1),
        });
        let rules = axes(&per_channel, "f32[2,3] f32[3] f32[3]");
        let linked = |rules: &AxisRules, a, b, map| {
            rules.links.iter().any(|l| (l.a, l.b, l.map) == (a, b, map))
        };
        assert!(linked(&rules, (Input(1), 0), (Input(0), 1), IndexMap::Same));
        assert!(linked(&rules, (Input(2), 0), (Input(0), 1), IndexMap::Same));
        let blocked = Op::from(Dequantize {
            axis: Some(1),
            block: Some(2),
        });
        let rules = axes(&blocked, "i4[3,4] f32[3,2] i4[3,2]");
        let merge = IndexMap::Merge { inner: 2 };
        assert!(linked(&rules, (Input(1), 1), (Input(0), 1), merge));
        let ragged = axes(&blocked, "i4[3,5] f32[3,3] i4[3,3]");
        assert!(ragged.blocked.contains(&(Input(0), 1)));
    }
}
