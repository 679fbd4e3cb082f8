//! Quantization.

use opt_core::ops::{BinaryOp, Dequantize, DynamicQuantize, MatMul, Quantize, UnaryOp};
use opt_core::tensor::MiniFloat;
use opt_core::{DType, Error, Result, Tensor, ValueId};

use super::{Lower, axis, count};
use crate::import::Cx;
use crate::import::node::{Node, V};
use crate::tensor;

pub(super) fn find(op: &str) -> Option<Lower> {
    Some(match op {
        "QuantizeLinear" => quantize,
        "DequantizeLinear" => dequantize,
        "DynamicQuantizeLinear" => dynamic_quantize,
        "QLinearMatMul" => qlinear_matmul,
        "QLinearConv" => qlinear_conv,
        _ => return None,
    })
}

/// Axis and block of a scale; a scale of one entry is one for the whole tensor.
fn layout(
    cx: &mut Cx<'_>,
    node: &Node<'_>,
    x: ValueId,
    scale: ValueId,
) -> Result<(ValueId, Option<usize>, Option<usize>)> {
    let (tx, ts) = (cx.b.type_of(x).clone(), cx.b.type_of(scale).clone());
    let given = node.int_or("axis", 1)?;
    let block = count(node.int_or("block_size", 0)?, "`block_size`")?;
    match ts.rank() {
        0 => Ok((scale, None, None)),
        // One entry stands for the tensor; along an axis of one entry that is the same.
        1 if ts.shape[0].as_fixed() == Some(1) && block == 0 => {
            Ok((cx.b.reshape(scale, [0usize; 0])?, None, None))
        }
        1 if block == 0 => {
            let axis = axis(given, tx.rank())?;
            if ts.shape[0] != tx.shape[axis] {
                return Err(Error::shape(format!(
                    "scales {ts} along axis {axis} of {tx}"
                )));
            }
            Ok((scale, Some(axis), None))
        }
        _ => {
            let axis = axis(given, tx.rank())?;
            if ts.rank() != tx.rank() {
                return Err(Error::shape(format!("scales {ts} for {tx}")));
            }
            let block = match block {
                0 => {
                    let (n, m) = (tx.shape[axis].fixed()?, ts.shape[axis].fixed()?);
                    n.div_ceil(m.max(1))
                }
                n => n,
            };
            Ok((scale, Some(axis), Some(block)))
        }
    }
}

/// A zero point of a scale's shape, zeros if there is none.
fn zero_point(
    cx: &mut Cx<'_>,
    zero: Option<ValueId>,
    scale: ValueId,
    dtype: DType,
) -> Result<ValueId> {
    let shape = cx.b.type_of(scale).shape.clone();
    match zero {
        Some(zero) => cx.b.reshape(zero, shape),
        None => Ok(cx.b.constant(Tensor::zeros(dtype, shape.fixed()?)?)),
    }
}

/// The zero point of an explicit quantization, in the scale's shape; `None` where there is none, and
/// for floats, whose only use is to say the type.
fn explicit_zero(
    cx: &mut Cx<'_>,
    node: &Node<'_>,
    scale: ValueId,
    dtype: DType,
) -> Result<Option<ValueId>> {
    let Some(v) = node.maybe(2) else {
        return Ok(None);
    };
    if MiniFloat::of(dtype).is_some() {
        let id = cx.id(v)?;
        let content = cx.b.graph().value(id).tensor();
        return match content {
            Some(t) if t.to_f64s().iter().all(|&z| z == 0.0) => Ok(None),
            _ => Err(Error::unsupported(format!(
                "a zero point of {dtype} other than a constant 0"
            ))),
        };
    }
    let zero = cx.x(node, 2)?;
    let shape = cx.b.type_of(scale).shape.clone();
    Ok(Some(cx.b.reshape(zero, shape)?))
}

pub(super) fn quantize(cx: &mut Cx<'_>, node: &Node<'_>) -> Result<Vec<V>> {
    let (x, scale) = (cx.x(node, 0)?, cx.x(node, 1)?);
    let saturate = node.int_or("saturate", 1)? != 0;
    node.int("precision")?;
    let zero = node.maybe(2).map(|v| cx.id(v)).transpose()?;
    let dtype = match (zero, node.int_or("output_dtype", 0)?) {
        (Some(z), _) => cx.b.type_of(z).dtype,
        (None, 0) => DType::U8,
        (None, code) => tensor::dtype_of(code)?,
    };
    if matches!(dtype, DType::F8E4M3 | DType::F8E5M2) && !saturate {
        return Err(Error::unsupported(format!(
            "quantization to {dtype} that does not saturate"
        )));
    }
    let (scale, axis, block) = layout(cx, node, x, scale)?;
    let zero = explicit_zero(cx, node, scale, dtype)?;
    // The quotient is taken in f32, the type that kernels have.
    let x = cx.b.cast(x, DType::F32)?;
    let scale = cx.b.cast(scale, DType::F32)?;
    let op = Quantize { dtype, axis, block };
    let inputs: Vec<ValueId> = [x, scale].into_iter().chain(zero).collect();
    let y = cx.b.op(op, &inputs)?;
    Ok(cx.one(y))
}

pub(super) fn dequantize(cx: &mut Cx<'_>, node: &Node<'_>) -> Result<Vec<V>> {
    let (q, scale) = (cx.x(node, 0)?, cx.x(node, 1)?);
    let (scale, axis, block) = layout(cx, node, q, scale)?;
    let dtype = cx.b.type_of(q).dtype;
    let out = match node.int_or("output_dtype", 0)? {
        0 => cx.b.type_of(scale).dtype,
        code => tensor::dtype_of(code)?,
    };
    if !out.is_float() {
        return Err(Error::unsupported(format!(
            "dequantization to {out}; `output_dtype` has to say a wider type"
        )));
    }
    // An `i32` has its zero point even where it is 0: the form of biases.
    let zero = match explicit_zero(cx, node, scale, dtype)? {
        None if dtype == DType::I32 => Some(zero_point(cx, None, scale, dtype)?),
        zero => zero,
    };
    let scale = cx.b.cast(scale, DType::F32)?;
    let inputs: Vec<ValueId> = [q, scale].into_iter().chain(zero).collect();
    let y = cx.b.op(Dequantize { axis, block }, &inputs)?;
    let y = cx.b.cast(y, out)?;
    Ok(cx.one(y))
}

fn dynamic_quantize(cx: &mut Cx<'_>, node: &Node<'_>) -> Result<Vec<V>> {
    let x = cx.x(node, 0)?;
    let out = cx.b.node(DynamicQuantize, &[x])?;
    Ok(out.into_iter().map(|id| cx.val(id)).collect())
}

/// An integer operand as floats: operand, scale and zero point are consecutive inputs.
fn operand(cx: &mut Cx<'_>, node: &Node<'_>, at: usize, along: usize) -> Result<ValueId> {
    let (q, scale) = (cx.x(node, at)?, cx.x(node, at + 1)?);
    let zero = cx.maybe_x(node, at + 2)?;
    dequantized(cx, q, scale, zero, along)
}

fn dequantized(
    cx: &mut Cx<'_>,
    q: ValueId,
    scale: ValueId,
    zero: Option<ValueId>,
    along: usize,
) -> Result<ValueId> {
    let dtype = cx.b.type_of(q).dtype;
    let scale = cx.b.cast(scale, DType::F32)?;
    let ty = cx.b.type_of(scale).clone();
    let single = ty.shape.dims().iter().all(|d| d.as_fixed() == Some(1));
    let (scale, axis) = if single {
        (cx.b.reshape(scale, [0usize; 0])?, None)
    } else if ty.rank() == 1 {
        (scale, Some(along))
    } else {
        return Err(Error::unsupported(format!("scales of shape {}", ty.shape)));
    };
    // One zero point may serve many scales.
    let zero = match zero {
        Some(z) if axis.is_some() && cx.b.type_of(z).shape != cx.b.type_of(scale).shape => {
            let z = cx.b.reshape(z, [0usize; 0])?;
            let shape = cx.b.type_of(scale).shape.clone();
            Some(cx.b.expand(z, shape)?)
        }
        other => other,
    };
    let zero = zero_point(cx, zero, scale, dtype)?;
    let op = Dequantize { axis, block: None };
    cx.b.op(op, &[q, scale, zero])
}

/// A result rounded to the grid of two inputs, its scale and zero point.
fn requantized(cx: &mut Cx<'_>, node: &Node<'_>, y: ValueId, at: usize) -> Result<Vec<V>> {
    let scale = cx.x(node, at)?;
    let zero = cx.maybe_x(node, at + 1)?;
    let scale = cx.b.cast(scale, DType::F32)?;
    let scale = cx.b.reshape(scale, [0usize; 0])?;
    let dtype = zero.map_or(DType::U8, |z| cx.b.type_of(z).dtype);
    let zero = zero_point(cx, zero, scale, dtype)?;
    let op = Quantize {
        dtype,
        axis: None,
        block: None,
    };
    let q = cx.b.op(op, &[y, scale, zero])?;
    Ok(cx.one(q))
}

fn qlinear_matmul(cx: &mut Cx<'_>, node: &Node<'_>) -> Result<Vec<V>> {
    let rank = |cx: &Cx<'_>, v: V| cx.rank(v);
    let (ra, rb) = (rank(cx, node.input(0)?), rank(cx, node.input(3)?));
    // Per row on the left, per column on the right.
    let a = operand(cx, node, 0, ra.saturating_sub(2))?;
    let b = operand(cx, node, 3, rb.saturating_sub(1))?;
    let y = super::matmul::product(cx, a, b, false, false)?;
    requantized(cx, node, y, 6)
}

fn qlinear_conv(cx: &mut Cx<'_>, node: &Node<'_>) -> Result<Vec<V>> {
    let x = operand(cx, node, 0, 1)?;
    let w = operand(cx, node, 3, 0)?;
    let bias = match cx.maybe_x(node, 8)? {
        None => None,
        // The bias has the scale of the products.
        Some(q) => {
            let (sx, sw) = (cx.x(node, 1)?, cx.x(node, 4)?);
            Some(product_bias(cx, q, sx, sw)?)
        }
    };
    let y = super::conv::convolve(cx, node, x, w, bias)?;
    requantized(cx, node, y, 6)
}

/// An `i32` bias in steps of the product of two scales.
fn product_bias(cx: &mut Cx<'_>, q: ValueId, a: ValueId, b: ValueId) -> Result<ValueId> {
    let a = cx.b.reshape(a, [0usize; 0])?;
    let scale = cx.b.mul(b, a)?;
    dequantized(cx, q, scale, None, 0)
}

pub(super) fn qgemm(cx: &mut Cx<'_>, node: &Node<'_>) -> Result<Vec<V>> {
    let trans_a = node.flag("transA", false)?;
    let trans_b = node.flag("transB", false)?;
    let alpha = node.float_or("alpha", 1.0)?;
    let a = operand(cx, node, 0, 0)?;
    let b = operand(cx, node, 3, usize::from(!trans_b))?;
    let mut y = cx.b.op(MatMul { trans_a, trans_b }, &[a, b])?;
    if alpha != 1.0 {
        y = cx.b.mul_scalar(y, alpha)?;
    }
    if let Some(q) = cx.maybe_x(node, 6)? {
        let (sa, sb) = (cx.x(node, 1)?, cx.x(node, 4)?);
        let bias = product_bias(cx, q, sa, sb)?;
        let bias = if alpha == 1.0 {
            bias
        } else {
            cx.b.mul_scalar(bias, alpha)?
        };
        y = cx.b.add(y, bias)?;
    }
    if node.maybe(7).is_none() {
        return Ok(cx.one(y));
    }
    requantized(cx, node, y, 7)
}

pub(super) fn qlinear_binary(cx: &mut Cx<'_>, node: &Node<'_>) -> Result<Vec<V>> {
    let a = operand(cx, node, 0, 0)?;
    let b = operand(cx, node, 3, 0)?;
    let op = if node.op() == "QLinearAdd" {
        BinaryOp::Add
    } else {
        BinaryOp::Mul
    };
    let y = cx.b.op(opt_core::ops::Binary { op }, &[a, b])?;
    requantized(cx, node, y, 6)
}

pub(super) fn qlinear_unary(cx: &mut Cx<'_>, node: &Node<'_>) -> Result<Vec<V>> {
    let x = operand(cx, node, 0, 0)?;
    let op = if node.op() == "QLinearSigmoid" {
        UnaryOp::Sigmoid
    } else {
        UnaryOp::LeakyRelu {
            alpha: node.float_or("alpha", 0.01)?,
        }
    };
    let y = cx.b.unary(op, x)?;
    requantized(cx, node, y, 3)
}

pub(super) fn qlinear_pool(cx: &mut Cx<'_>, node: &Node<'_>) -> Result<Vec<V>> {
    if node.flag("channels_last", false)? {
        return Err(Error::unsupported("channels last"));
    }
    let x = operand(cx, node, 0, 0)?;
    let y = if node.op() == "QLinearGlobalAveragePool" {
        cx.b.global_avg_pool(x)?
    } else {
        let include = node.flag("count_include_pad", false)?;
        super::pool::average(cx, node, x, include)?
    };
    requantized(cx, node, y, 3)
}

pub(super) fn qlinear_concat(cx: &mut Cx<'_>, node: &Node<'_>) -> Result<Vec<V>> {
    let mut parts = Vec::new();
    for at in (2..node.input_count()).step_by(3) {
        parts.push(operand(cx, node, at, 0)?);
    }
    let Some(&first) = parts.first() else {
        return Err(Error::invalid("there is nothing to concatenate"));
    };
    let axis = axis(node.int_or("axis", 1)?, cx.b.type_of(first).rank())?;
    let y = cx.b.concat(&parts, axis)?;
    requantized(cx, node, y, 0)
}

/// `A` quantized at run time times a quantized `B`, in float.
pub(super) fn dynamic_matmul(cx: &mut Cx<'_>, node: &Node<'_>) -> Result<Vec<V>> {
    let (a, b, scale) = (cx.x(node, 0)?, cx.x(node, 1)?, cx.x(node, 2)?);
    let zero = cx.maybe_x(node, 3)?;
    let [q, sa, za] = cx.b.dynamic_quantize(a)?;
    let a = cx.b.dequantize(q, sa, za, None)?;
    let along = cx.b.type_of(b).rank().saturating_sub(1);
    let b = dequantized(cx, b, scale, zero, along)?;
    let mut y = super::matmul::product(cx, a, b, false, false)?;
    if let Some(bias) = cx.maybe_x(node, 4)? {
        y = cx.b.add(y, bias)?;
    }
    Ok(cx.one(y))
}

pub(super) fn matmul_integer_to_float(cx: &mut Cx<'_>, node: &Node<'_>) -> Result<Vec<V>> {
    let (a, b, sa, sb) = (
        cx.x(node, 0)?,
        cx.x(node, 1)?,
        cx.x(node, 2)?,
        cx.x(node, 3)?,
    );
    let (za, zb) = (cx.maybe_x(node, 4)?, cx.maybe_x(node, 5)?);
    let rows = cx.b.type_of(a).rank().saturating_sub(2);
    let columns = cx.b.type_of(b).rank().saturating_sub(1);
    let a = dequantized(cx, a, sa, za, rows)?;
    let b = dequantized(cx, b, sb, zb, columns)?;
    let mut y = super::matmul::product(cx, a, b, false, false)?;
    if let Some(bias) = cx.maybe_x(node, 6)? {
        y = cx.b.add(y, bias)?;
    }
    Ok(cx.one(y))
}
