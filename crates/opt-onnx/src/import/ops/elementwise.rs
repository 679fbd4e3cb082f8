//! Element-wise operators.

use opt_core::ops::{BinaryOp, UnaryOp};
use opt_core::{DType, Error, Result, ValueId};

use super::Lower;
use crate::import::Cx;
use crate::import::node::{Node, V};
use crate::tensor;

pub(super) fn find(op: &str) -> Option<Lower> {
    Some(match op {
        "Neg" | "Abs" | "Sign" | "Exp" | "Log" | "Sqrt" | "Reciprocal" | "Floor" | "Ceil"
        | "Round" | "Sin" | "Cos" | "Tan" | "Asin" | "Acos" | "Atan" | "Sinh" | "Cosh"
        | "Asinh" | "Acosh" | "Atanh" | "Erf" | "Not" | "IsNaN" | "Relu" | "Sigmoid" | "Tanh"
        | "Mish" | "Softplus" | "Softsign" | "HardSwish" | "BitwiseNot" => plain,
        "LeakyRelu" | "Elu" | "Celu" | "Selu" | "HardSigmoid" | "ThresholdedRelu" | "Shrink"
        | "Gelu" | "Swish" => activation,
        "IsInf" => is_inf,
        "Add" | "Sub" | "Mul" | "Div" | "And" | "Or" | "Xor" | "Equal" | "Less" | "LessOrEqual"
        | "Greater" | "GreaterOrEqual" | "PRelu" | "BitwiseAnd" | "BitwiseOr" | "BitwiseXor" => {
            binary
        }
        "Pow" => pow,
        "Mod" => modulo,
        "BitShift" => bit_shift,
        "Max" | "Min" | "Sum" | "Mean" => variadic,
        "Where" => select,
        "Clip" => clip,
        "Cast" => cast,
        "CastLike" => cast_like,
        _ => return None,
    })
}

fn plain(cx: &mut Cx<'_>, node: &Node<'_>) -> Result<Vec<V>> {
    let x = cx.x(node, 0)?;
    let op = match node.op() {
        "Neg" => UnaryOp::Neg,
        "Abs" => {
            // The absolute value of what has no sign.
            if matches!(cx.b.type_of(x).dtype, DType::U8) {
                return Ok(vec![node.input(0)?]);
            }
            UnaryOp::Abs
        }
        "Sign" => UnaryOp::Sign,
        "Exp" => UnaryOp::Exp,
        "Log" => UnaryOp::Log,
        "Sqrt" => UnaryOp::Sqrt,
        "Reciprocal" => UnaryOp::Reciprocal,
        "Floor" => UnaryOp::Floor,
        "Ceil" => UnaryOp::Ceil,
        "Round" => UnaryOp::Round,
        "Sin" => UnaryOp::Sin,
        "Cos" => UnaryOp::Cos,
        "Tan" => UnaryOp::Tan,
        "Asin" => UnaryOp::Asin,
        "Acos" => UnaryOp::Acos,
        "Atan" => UnaryOp::Atan,
        "Sinh" => UnaryOp::Sinh,
        "Cosh" => UnaryOp::Cosh,
        "Erf" => UnaryOp::Erf,
        "Not" => UnaryOp::Not,
        "IsNaN" => UnaryOp::IsNan,
        "Relu" => {
            if !cx.b.type_of(x).dtype.is_float() {
                let zero = cx.like(x, 0.0)?;
                let y =
                    cx.b.op(opt_core::ops::Binary { op: BinaryOp::Max }, &[x, zero])?;
                return Ok(cx.one(y));
            }
            UnaryOp::Relu
        }
        "Sigmoid" => UnaryOp::Sigmoid,
        "Tanh" => UnaryOp::Tanh,
        "Mish" => UnaryOp::Mish,
        "Softplus" => UnaryOp::Softplus,
        "Softsign" => UnaryOp::Softsign,
        "HardSwish" => UnaryOp::HardSwish,
        "Asinh" | "Acosh" | "Atanh" => {
            let y = inverse_hyperbolic(cx, node.op(), x)?;
            return Ok(cx.one(y));
        }
        _ => return Err(Error::unsupported("bits of integers are not supported")),
    };
    let y = cx.b.unary(op, x)?;
    Ok(cx.one(y))
}

/// The inverse hyperbolic functions by logarithms, in forms that are accurate near 0.
fn inverse_hyperbolic(cx: &mut Cx<'_>, op: &str, x: ValueId) -> Result<ValueId> {
    match op {
        // log(1 + |x| + x^2 / (1 + sqrt(x^2 + 1))), odd
        "Asinh" => {
            let (size, sign) = (cx.b.abs(x)?, cx.b.sign(x)?);
            let square = cx.b.mul(x, x)?;
            let inner = cx.b.add_scalar(square, 1.0)?;
            let root = cx.b.sqrt(inner)?;
            let divisor = cx.b.add_scalar(root, 1.0)?;
            let part = cx.b.div(square, divisor)?;
            let sum = cx.b.add(size, part)?;
            let log = cx.b.log1p(sum)?;
            cx.b.mul(sign, log)
        }
        // log(1 + t + sqrt(2 t + t^2)) with t = x - 1
        "Acosh" => {
            let t = cx.b.add_scalar(x, -1.0)?;
            let factor = cx.b.add_scalar(x, 1.0)?;
            let inner = cx.b.mul(t, factor)?;
            let root = cx.b.sqrt(inner)?;
            let sum = cx.b.add(t, root)?;
            cx.b.log1p(sum)
        }
        // (log(1 + x) - log(1 - x)) / 2
        _ => {
            let minus = cx.b.neg(x)?;
            let (a, b) = (cx.b.log1p(x)?, cx.b.log1p(minus)?);
            let gap = cx.b.sub(a, b)?;
            cx.b.mul_scalar(gap, 0.5)
        }
    }
}

fn activation(cx: &mut Cx<'_>, node: &Node<'_>) -> Result<Vec<V>> {
    let x = cx.x(node, 0)?;
    let op = match node.op() {
        "LeakyRelu" => UnaryOp::LeakyRelu {
            alpha: node.float_or("alpha", 0.01)?,
        },
        "Elu" => UnaryOp::Elu {
            alpha: node.float_or("alpha", 1.0)?,
        },
        "Celu" => {
            // celu(x) = alpha * elu(x / alpha) with elu's own alpha 1.
            let alpha = node.float_or("alpha", 1.0)?;
            let inner = cx.b.mul_scalar(x, 1.0 / alpha)?;
            let elu = cx.b.unary(UnaryOp::Elu { alpha: 1.0 }, inner)?;
            let y = cx.b.mul_scalar(elu, alpha)?;
            return Ok(cx.one(y));
        }
        "Selu" => {
            const ALPHA: f64 = 1.673_263_242_354_377_2;
            const GAMMA: f64 = 1.050_700_987_355_480_5;
            let alpha = node.float_or("alpha", ALPHA)?;
            let gamma = node.float_or("gamma", GAMMA)?;
            if (alpha - ALPHA).abs() < 1e-6 && (gamma - GAMMA).abs() < 1e-6 {
                UnaryOp::Selu
            } else {
                let elu = cx.b.unary(UnaryOp::Elu { alpha }, x)?;
                let y = cx.b.mul_scalar(elu, gamma)?;
                return Ok(cx.one(y));
            }
        }
        "HardSigmoid" => UnaryOp::HardSigmoid {
            alpha: node.float_or("alpha", 0.2)?,
            beta: node.float_or("beta", 0.5)?,
        },
        "ThresholdedRelu" => {
            let alpha = node.float_or("alpha", 1.0)?;
            let (limit, zero) = (cx.like(x, alpha)?, cx.like(x, 0.0)?);
            let above = cx.b.greater(x, limit)?;
            let y = cx.b.select(above, x, zero)?;
            return Ok(cx.one(y));
        }
        "Shrink" => {
            let (lambd, bias) = (node.float_or("lambd", 0.5)?, node.float_or("bias", 0.0)?);
            let (high, low) = (cx.like(x, lambd)?, cx.like(x, -lambd)?);
            let zero = cx.like(x, 0.0)?;
            let (above, below) = (cx.b.greater(x, high)?, cx.b.less(x, low)?);
            let (minus, plus) = (cx.b.add_scalar(x, -bias)?, cx.b.add_scalar(x, bias)?);
            let inner = cx.b.select(below, plus, zero)?;
            let y = cx.b.select(above, minus, inner)?;
            return Ok(cx.one(y));
        }
        "Gelu" => UnaryOp::Gelu {
            tanh: match node.text_or("approximate", "none")? {
                "none" => false,
                "tanh" => true,
                other => return Err(Error::unsupported(format!("the approximation `{other}`"))),
            },
        },
        _ => {
            let alpha = node.float_or("alpha", 1.0)?;
            if alpha == 1.0 {
                UnaryOp::Silu
            } else {
                let y = swish(cx, x, alpha)?;
                return Ok(cx.one(y));
            }
        }
    };
    let y = cx.b.unary(op, x)?;
    Ok(cx.one(y))
}

fn swish(cx: &mut Cx<'_>, x: ValueId, alpha: f64) -> Result<ValueId> {
    let inner = cx.b.mul_scalar(x, alpha)?;
    let gate = cx.b.sigmoid(inner)?;
    cx.b.mul(x, gate)
}

/// A sum with an optional bias, the second input.
fn biased(cx: &mut Cx<'_>, node: &Node<'_>) -> Result<ValueId> {
    let x = cx.x(node, 0)?;
    match cx.maybe_x(node, 1)? {
        Some(bias) => cx.b.add(x, bias),
        None => Ok(x),
    }
}

pub(super) fn gelu_exact(cx: &mut Cx<'_>, node: &Node<'_>) -> Result<Vec<V>> {
    let x = biased(cx, node)?;
    let y = cx.b.gelu(x)?;
    Ok(cx.one(y))
}

pub(super) fn gelu_fast(cx: &mut Cx<'_>, node: &Node<'_>) -> Result<Vec<V>> {
    let x = biased(cx, node)?;
    let y = cx.b.unary(UnaryOp::Gelu { tanh: true }, x)?;
    Ok(cx.one(y))
}

pub(super) fn quick_gelu(cx: &mut Cx<'_>, node: &Node<'_>) -> Result<Vec<V>> {
    let x = cx.x(node, 0)?;
    let alpha = node.float_or("alpha", 1.702)?;
    let y = swish(cx, x, alpha)?;
    Ok(cx.one(y))
}

fn is_inf(cx: &mut Cx<'_>, node: &Node<'_>) -> Result<Vec<V>> {
    let x = cx.x(node, 0)?;
    let negative = node.flag("detect_negative", true)?;
    let positive = node.flag("detect_positive", true)?;
    let infinite = cx.b.unary(UnaryOp::IsInf, x)?;
    if negative && positive {
        return Ok(cx.one(infinite));
    }
    let zero = cx.like(x, 0.0)?;
    let side = match (negative, positive) {
        (true, _) => cx.b.less(x, zero)?,
        (_, true) => cx.b.greater(x, zero)?,
        _ => {
            // Nothing is looked for.
            let not = cx.b.not(infinite)?;
            let none = cx.b.and(infinite, not)?;
            return Ok(cx.one(none));
        }
    };
    let y = cx.b.and(infinite, side)?;
    Ok(cx.one(y))
}

pub(super) fn op_of(name: &str) -> Option<BinaryOp> {
    Some(match name {
        "Add" | "Sum" | "Mean" => BinaryOp::Add,
        "Sub" => BinaryOp::Sub,
        "Mul" => BinaryOp::Mul,
        "Div" => BinaryOp::Div,
        "And" => BinaryOp::And,
        "Or" => BinaryOp::Or,
        "Xor" => BinaryOp::Xor,
        "Equal" => BinaryOp::Equal,
        "Less" => BinaryOp::Less,
        "LessOrEqual" => BinaryOp::LessOrEqual,
        "Greater" => BinaryOp::Greater,
        "GreaterOrEqual" => BinaryOp::GreaterOrEqual,
        "Max" => BinaryOp::Max,
        "Min" => BinaryOp::Min,
        "PRelu" => BinaryOp::PRelu,
        _ => return None,
    })
}

fn apply(cx: &mut Cx<'_>, op: BinaryOp, a: ValueId, b: ValueId) -> Result<ValueId> {
    cx.b.op(opt_core::ops::Binary { op }, &[a, b])
}

/// The two operands; before opset 7 the second was aligned with the first at an axis.
fn operands(cx: &mut Cx<'_>, node: &Node<'_>) -> Result<(ValueId, ValueId)> {
    let (a, mut b) = (cx.x(node, 0)?, cx.x(node, 1)?);
    if node.version < 7 {
        let broadcast = node.flag("broadcast", false)?;
        let axis = node.int("axis")?;
        let (ra, rb) = (cx.b.type_of(a).rank(), cx.b.type_of(b).rank());
        if let (true, Some(axis)) = (broadcast && rb > 0, axis) {
            let axis = super::axis(axis, ra)?;
            let after = ra
                .checked_sub(axis + rb)
                .ok_or_else(|| Error::shape(format!("rank {rb} at axis {axis} of rank {ra}")))?;
            let axes: Vec<usize> = (rb..rb + after).collect();
            if !axes.is_empty() {
                b = cx.b.unsqueeze(b, &axes)?;
            }
        }
    }
    Ok((a, b))
}

fn binary(cx: &mut Cx<'_>, node: &Node<'_>) -> Result<Vec<V>> {
    let (a, b) = if node.op() == "PRelu" && node.version < 7 {
        // One slope, or one for each channel.
        let (a, b) = (cx.x(node, 0)?, cx.x(node, 1)?);
        let after = cx.b.type_of(a).rank().saturating_sub(2);
        let per_channel = cx.b.type_of(b).shape.len().is_ok_and(|n| n > 1);
        if per_channel && cx.b.type_of(b).rank() == 1 && after > 0 {
            let axes: Vec<usize> = (1..=after).collect();
            (a, cx.b.unsqueeze(b, &axes)?)
        } else {
            (a, b)
        }
    } else {
        operands(cx, node)?
    };
    let Some(op) = op_of(node.op()) else {
        return Err(Error::unsupported(format!(
            "{} is not supported yet",
            node.op()
        )));
    };
    let y = apply(cx, op, a, b)?;
    Ok(cx.one(y))
}

fn pow(cx: &mut Cx<'_>, node: &Node<'_>) -> Result<Vec<V>> {
    let (a, b) = operands(cx, node)?;
    let (base, exponent) = (cx.b.type_of(a).dtype, cx.b.type_of(b).dtype);
    // The result has the type of the base; the power is taken in a type that holds both.
    let wide = match (base.is_float(), exponent.is_float()) {
        (true, _) => base,
        _ => DType::F64,
    };
    let y = if base == exponent && base.is_float() {
        apply(cx, BinaryOp::Pow, a, b)?
    } else {
        let (x, y) = (cx.b.cast(a, wide)?, cx.b.cast(b, wide)?);
        let power = apply(cx, BinaryOp::Pow, x, y)?;
        cx.b.cast(power, base)?
    };
    Ok(cx.one(y))
}

fn modulo(cx: &mut Cx<'_>, node: &Node<'_>) -> Result<Vec<V>> {
    let (a, b) = (cx.x(node, 0)?, cx.x(node, 1)?);
    if node.flag("fmod", false)? {
        // The remainder with the sign of the dividend: that of the sizes, with its sign.
        let (sign, x, m) = (cx.b.sign(a)?, cx.b.abs(a)?, cx.b.abs(b)?);
        let rest = apply(cx, BinaryOp::Mod, x, m)?;
        let y = cx.b.mul(sign, rest)?;
        return Ok(cx.one(y));
    }
    let y = apply(cx, BinaryOp::Mod, a, b)?;
    Ok(cx.one(y))
}

fn bit_shift(cx: &mut Cx<'_>, node: &Node<'_>) -> Result<Vec<V>> {
    let _ = (cx.x(node, 0)?, cx.x(node, 1)?, node.text("direction")?);
    Err(Error::unsupported("bits of integers are not supported"))
}

fn variadic(cx: &mut Cx<'_>, node: &Node<'_>) -> Result<Vec<V>> {
    let inputs = node.rest(0)?;
    let mut ids = Vec::with_capacity(inputs.len());
    for v in inputs {
        ids.push(cx.id(v)?);
    }
    let Some((&first, rest)) = ids.split_first() else {
        return Err(Error::invalid("there is no input"));
    };
    let op = op_of(node.op()).expect("listed in `find`");
    let mut sum = first;
    for &x in rest {
        sum = apply(cx, op, sum, x)?;
    }
    if node.op() == "Mean" {
        sum = cx.b.mul_scalar(sum, 1.0 / ids.len() as f64)?;
    } else if rest.is_empty() {
        return Ok(vec![node.input(0)?]);
    }
    Ok(cx.one(sum))
}

fn select(cx: &mut Cx<'_>, node: &Node<'_>) -> Result<Vec<V>> {
    let (c, a, b) = (cx.x(node, 0)?, cx.x(node, 1)?, cx.x(node, 2)?);
    let y = cx.b.select(c, a, b)?;
    Ok(cx.one(y))
}

fn clip(cx: &mut Cx<'_>, node: &Node<'_>) -> Result<Vec<V>> {
    let x = cx.x(node, 0)?;
    let mut y = x;
    // Attributes up to opset 10, inputs from 11 on.
    let low = match node.float("min")? {
        Some(min) => Some(cx.like(x, min)?),
        None => cx.maybe_x(node, 1)?,
    };
    if let Some(low) = low {
        y = apply(cx, BinaryOp::Max, y, low)?;
    }
    let high = match node.float("max")? {
        Some(max) => Some(cx.like(x, max)?),
        None => cx.maybe_x(node, 2)?,
    };
    if let Some(high) = high {
        y = apply(cx, BinaryOp::Min, y, high)?;
    }
    if y == x {
        return Ok(vec![node.input(0)?]);
    }
    Ok(cx.one(y))
}

fn convert(cx: &mut Cx<'_>, node: &Node<'_>, to: DType) -> Result<Vec<V>> {
    let v = node.input(0)?;
    if cx.dtype(v) == to {
        return Ok(vec![v]);
    }
    let x = cx.id(v)?;
    let y = cast_to(cx, x, to)?;
    Ok(cx.one(y))
}

/// A conversion, by way of quantization with scale 1 to packed integers.
fn cast_to(cx: &mut Cx<'_>, x: ValueId, to: DType) -> Result<ValueId> {
    if !(to.is_packed() && to.is_int()) {
        return cx.b.cast(x, to);
    }
    // Toward zero, and then the low bits.
    let y = cx.b.cast(x, DType::I32)?;
    let (low, high) = to.int_range()?;
    let low = f64::from(low);
    let shifted = cx.b.add_scalar(y, -low)?;
    let count = cx.like(shifted, f64::from(high) - low + 1.0)?;
    let wrapped = apply(cx, BinaryOp::Mod, shifted, count)?;
    let y = cx.b.add_scalar(wrapped, low)?;
    let y = cx.b.cast(y, DType::F32)?;
    let (one, zero) = (cx.b.scalar(DType::F32, 1.0)?, cx.b.scalar(to, 0.0)?);
    cx.b.quantize(y, one, zero, None)
}

fn cast(cx: &mut Cx<'_>, node: &Node<'_>) -> Result<Vec<V>> {
    let code = node
        .int("to")?
        .ok_or_else(|| Error::invalid("there is no attribute `to`"))?;
    let to = tensor::dtype_of(code)?;
    check_rounding(node, to)?;
    convert(cx, node, to)
}

/// Reads how numbers become 8-bit floats: as [`opt_core::tensor::MiniFloat`] has it, or not at all.
fn check_rounding(node: &Node<'_>, to: DType) -> Result<()> {
    let saturate = node.int_or("saturate", 1)? != 0;
    let mode = node.text_or("round_mode", "up")?;
    let eight = matches!(to, DType::F8E4M3 | DType::F8E5M2 | DType::F8E8M0);
    if eight && !saturate {
        return Err(Error::unsupported(format!(
            "conversion to {to} that does not saturate"
        )));
    }
    if to == DType::F8E8M0 && mode != "up" {
        return Err(Error::unsupported(format!(
            "conversion to {to} that rounds `{mode}`; `up` is supported"
        )));
    }
    Ok(())
}

fn cast_like(cx: &mut Cx<'_>, node: &Node<'_>) -> Result<Vec<V>> {
    let like = node.input(1)?;
    let to = cx.dtype(like);
    check_rounding(node, to)?;
    convert(cx, node, to)
}
