//! The rules of the element-wise ops.

use std::f64::consts::{FRAC_1_SQRT_2, FRAC_2_SQRT_PI, PI};

use super::{Binary, BinaryOp, Cast, Unary, UnaryOp, Where};
use crate::ops::rules::{arity, float, no_gradient, of_dtype, same_dtype};
use crate::ops::{AxisRules, Cost, InputGrads, OpRules, Vjp};
use crate::{DType, Error, GraphBuilder, Result, TensorType, ValueId};

/// Constants of Klambauer et al. 2017, as PyTorch and ONNX have them.
const SELU_ALPHA: f64 = 1.673_263_242_354_377_2;
const SELU_GAMMA: f64 = 1.050_700_987_355_480_5;

/// Fails for booleans and for types that only store numbers.
pub(crate) fn numeric(ty: &TensorType, what: &str) -> Result<()> {
    if ty.dtype == DType::Bool || ty.dtype.is_storage() {
        return Err(Error::dtype(format!(
            "{what} must be floating-point or an unpacked integer, found {ty}"
        )));
    }
    Ok(())
}

/// `value`, but 0 wherever `g` is 0: a zero cotangent times an infinite derivative is 0, not NaN.
fn guarded(b: &mut GraphBuilder, g: ValueId, value: ValueId) -> Result<ValueId> {
    let zero = b.scalar_like(g, 0.0)?;
    let is_zero = b.equal(g, zero)?;
    b.select(is_zero, zero, value)
}

/// Whether a value is a small constant without zeros, by which a division needs no guard.
fn known_nonzero(b: &GraphBuilder, v: ValueId) -> bool {
    let tensor = match b.graph().value(v).kind() {
        crate::ValueKind::Constant(t) if t.len() <= 64 => t,
        _ => return false,
    };
    tensor.to_f64s().iter().all(|&v| v != 0.0 && v.is_finite())
}

/// The number that a rank-0 constant holds.
fn known_scalar(b: &GraphBuilder, v: ValueId) -> Option<f64> {
    match b.graph().value(v).kind() {
        crate::ValueKind::Constant(t) if t.rank() == 0 => t.item().ok(),
        _ => None,
    }
}

/// `1 - x^2`.
fn one_minus_square(b: &mut GraphBuilder, x: ValueId) -> Result<ValueId> {
    let square = b.mul(x, x)?;
    let one = b.scalar_like(x, 1.0)?;
    b.sub(one, square)
}

impl OpRules for Unary {
    fn infer(&self, inputs: &[TensorType]) -> Result<Vec<TensorType>> {
        arity(inputs, 1..=1)?;
        let x = &inputs[0];
        match self.op {
            UnaryOp::Not => of_dtype(x, DType::Bool, "the input")?,
            UnaryOp::Abs | UnaryOp::Sign => numeric(x, "the input")?,
            UnaryOp::Neg => {
                numeric(x, "the input")?;
                if x.dtype == DType::U8 {
                    return Err(Error::dtype("u8 has no negative numbers; insert a cast"));
                }
            }
            _ => float(x, "the input")?,
        }
        Ok(vec![match self.op {
            UnaryOp::IsNan | UnaryOp::IsInf => x.with_dtype(DType::Bool),
            _ => x.clone(),
        }])
    }

    fn vjp(&self, cx: &mut Vjp<'_>) -> Result<InputGrads> {
        let g = cx.grad()?;
        Ok(vec![Some(self.gradient(
            cx.b,
            cx.inputs[0],
            cx.outputs[0],
            g,
        )?)])
    }

    fn axes(&self, inputs: &[TensorType], outputs: &[TensorType]) -> AxisRules {
        AxisRules::broadcast(inputs, outputs)
    }

    fn cost(&self, _: &[TensorType], outputs: &[TensorType]) -> Result<Cost> {
        Cost::elementwise(outputs)
    }
}

impl Unary {
    /// The gradient by the input from input, output and the gradient by the output; from the
    /// output where that is cheaper, and then the input need not be kept.
    fn gradient(self, b: &mut GraphBuilder, x: ValueId, y: ValueId, g: ValueId) -> Result<ValueId> {
        let zero = b.scalar_like(x, 0.0)?;
        let one = b.scalar_like(x, 1.0)?;
        let derivative = match self.op {
            UnaryOp::Neg => return b.neg(g),
            UnaryOp::Abs => b.sign(x)?,
            UnaryOp::Sign | UnaryOp::Floor | UnaryOp::Ceil | UnaryOp::Round => {
                return b.full_like(x, 0.0);
            }
            UnaryOp::Exp => y,
            UnaryOp::Log => {
                let d = b.div(g, x)?;
                return guarded(b, g, d);
            }
            UnaryOp::Log1p => {
                let below = b.add(x, one)?;
                let d = b.div(g, below)?;
                return guarded(b, g, d);
            }
            UnaryOp::Expm1 => b.add(y, one)?,
            UnaryOp::Sqrt => {
                let half = b.mul_scalar(g, 0.5)?;
                let d = b.div(half, y)?;
                return guarded(b, g, d);
            }
            UnaryOp::Reciprocal => {
                let square = b.mul(y, y)?;
                let d = b.mul(g, square)?;
                let d = b.neg(d)?;
                return guarded(b, g, d);
            }
            UnaryOp::Sin => b.unary(UnaryOp::Cos, x)?,
            UnaryOp::Cos => {
                let sin = b.unary(UnaryOp::Sin, x)?;
                b.neg(sin)?
            }
            UnaryOp::Tan => {
                let square = b.mul(y, y)?;
                b.add(square, one)?
            }
            UnaryOp::Asin | UnaryOp::Acos => {
                // (1 - x)(1 + x) keeps the digits that 1 - x^2 loses near 1.
                let (minus, plus) = (b.sub(one, x)?, b.add(x, one)?);
                let below = b.mul(minus, plus)?;
                let below = b.sqrt(below)?;
                let d = b.div(g, below)?;
                let d = match self.op {
                    UnaryOp::Acos => b.neg(d)?,
                    _ => d,
                };
                return guarded(b, g, d);
            }
            UnaryOp::Atan => {
                let square = b.mul(x, x)?;
                let below = b.add(square, one)?;
                return b.div(g, below);
            }
            UnaryOp::Sinh => b.unary(UnaryOp::Cosh, x)?,
            UnaryOp::Cosh => b.unary(UnaryOp::Sinh, x)?,
            UnaryOp::Erf => {
                let square = b.mul(x, x)?;
                let square = b.neg(square)?;
                let bell = b.exp(square)?;
                b.mul_scalar(bell, FRAC_2_SQRT_PI)?
            }
            UnaryOp::Not | UnaryOp::IsNan | UnaryOp::IsInf => {
                return Err(no_gradient(self.op.name(), "its output is boolean"));
            }
            UnaryOp::Relu => {
                let above = b.greater(y, zero)?;
                return b.select(above, g, zero);
            }
            UnaryOp::LeakyRelu { alpha } => {
                let above = b.greater(x, zero)?;
                let scaled = b.mul_scalar(g, alpha)?;
                return b.select(above, g, scaled);
            }
            UnaryOp::Elu { alpha } => {
                let above = b.greater(x, zero)?;
                let slope = b.add_scalar(y, alpha)?;
                b.select(above, one, slope)?
            }
            UnaryOp::Selu => {
                let above = b.greater(x, zero)?;
                let slope = b.add_scalar(y, SELU_GAMMA * SELU_ALPHA)?;
                let gamma = b.scalar_like(x, SELU_GAMMA)?;
                b.select(above, gamma, slope)?
            }
            UnaryOp::Sigmoid => {
                let rest = b.sub(one, y)?;
                b.mul(y, rest)?
            }
            UnaryOp::HardSigmoid { alpha, .. } => {
                let (above, below) = (b.greater(y, zero)?, b.less(y, one)?);
                let inside = b.and(above, below)?;
                let scaled = b.mul_scalar(g, alpha)?;
                return b.select(inside, scaled, zero);
            }
            UnaryOp::Tanh => one_minus_square(b, y)?,
            UnaryOp::Gelu { tanh: false } => {
                let scaled = b.mul_scalar(x, FRAC_1_SQRT_2)?;
                let erf = b.erf(scaled)?;
                let phi = b.add(erf, one)?;
                let phi = b.mul_scalar(phi, 0.5)?;
                let square = b.mul(scaled, scaled)?;
                let square = b.neg(square)?;
                let bell = b.exp(square)?;
                let density = b.mul_scalar(bell, 0.5 * FRAC_2_SQRT_PI * FRAC_1_SQRT_2)?;
                let tail = b.mul(x, density)?;
                b.add(phi, tail)?
            }
            UnaryOp::Gelu { tanh: true } => {
                let (scale, cubic) = ((2.0 / PI).sqrt(), 0.044_715);
                let square = b.mul(x, x)?;
                let factor = b.mul_scalar(square, cubic * scale)?;
                let factor = b.add_scalar(factor, scale)?;
                let inner = b.mul(x, factor)?;
                let t = b.tanh(inner)?;
                let left = b.add(t, one)?;
                let slope = b.mul_scalar(square, 3.0 * cubic * scale)?;
                let slope = b.add_scalar(slope, scale)?;
                let right = one_minus_square(b, t)?;
                let right = b.mul(right, slope)?;
                let right = b.mul(right, x)?;
                let sum = b.add(left, right)?;
                b.mul_scalar(sum, 0.5)?
            }
            UnaryOp::Silu => {
                let s = b.sigmoid(x)?;
                let rest = b.sub(one, s)?;
                let tail = b.mul(y, rest)?;
                b.add(s, tail)?
            }
            UnaryOp::HardSwish => {
                let slope = b.mul_scalar(x, 1.0 / 3.0)?;
                let slope = b.add_scalar(slope, 0.5)?;
                let (low, high) = (b.scalar_like(x, -3.0)?, b.scalar_like(x, 3.0)?);
                let below = b.less_or_equal(x, low)?;
                let above = b.greater_or_equal(x, high)?;
                let inner = b.select(above, one, slope)?;
                b.select(below, zero, inner)?
            }
            UnaryOp::Mish => {
                let soft = b.softplus(x)?;
                let t = b.tanh(soft)?;
                let s = b.sigmoid(x)?;
                let tail = one_minus_square(b, t)?;
                let tail = b.mul(tail, s)?;
                let tail = b.mul(tail, x)?;
                b.add(t, tail)?
            }
            UnaryOp::Softplus => b.sigmoid(x)?,
            UnaryOp::Softsign => {
                let size = b.abs(x)?;
                let below = b.add(size, one)?;
                let r = b.reciprocal(below)?;
                b.mul(r, r)?
            }
        };
        b.mul(g, derivative)
    }
}

impl OpRules for Binary {
    fn infer(&self, inputs: &[TensorType]) -> Result<Vec<TensorType>> {
        arity(inputs, 2..=2)?;
        let (x, y) = (&inputs[0], &inputs[1]);
        same_dtype(x, y)?;
        match self.op {
            BinaryOp::And | BinaryOp::Or | BinaryOp::Xor => of_dtype(x, DType::Bool, "inputs")?,
            BinaryOp::Equal | BinaryOp::NotEqual if x.dtype == DType::Bool => {}
            BinaryOp::PRelu => float(x, "inputs")?,
            _ => numeric(x, "inputs")?,
        }
        let dtype = match self.op.is_comparison() {
            true => DType::Bool,
            false => x.dtype,
        };
        Ok(vec![TensorType::new(dtype, x.shape.broadcast(&y.shape)?)])
    }

    fn vjp(&self, cx: &mut Vjp<'_>) -> Result<InputGrads> {
        let g = cx.grad()?;
        let (x, y, out) = (cx.inputs[0], cx.inputs[1], cx.outputs[0]);
        let (want_x, want_y) = (cx.wanted[0], cx.wanted[1]);
        let b = &mut *cx.b;
        let (mut dx, mut dy) = (None, None);
        match self.op {
            BinaryOp::Add => (dx, dy) = (Some(g), Some(g)),
            BinaryOp::Sub => {
                dx = Some(g);
                if want_y {
                    dy = Some(b.neg(g)?);
                }
            }
            BinaryOp::Mul => {
                if want_x {
                    dx = Some(b.mul(g, y)?);
                }
                if want_y {
                    dy = Some(b.mul(g, x)?);
                }
            }
            BinaryOp::Div => {
                let safe = known_nonzero(b, y);
                let q = b.div(g, y)?;
                if want_x {
                    dx = Some(if safe { q } else { guarded(b, g, q)? });
                }
                if want_y {
                    let d = b.mul(q, out)?;
                    let d = b.neg(d)?;
                    dy = Some(if safe { d } else { guarded(b, g, d)? });
                }
            }
            BinaryOp::Pow => {
                if want_x {
                    dx = Some(pow_by_base(b, x, y, g)?);
                }
                if want_y {
                    dy = Some(pow_by_exponent(b, x, y, out, g)?);
                }
            }
            BinaryOp::Max | BinaryOp::Min => {
                let zero = b.scalar_like(g, 0.0)?;
                let half = b.mul_scalar(g, 0.5)?;
                let tie = b.equal(x, y)?;
                let less = b.less(x, y)?;
                let more = b.greater(x, y)?;
                let (x_loses, y_loses) = match self.op {
                    BinaryOp::Max => (less, more),
                    _ => (more, less),
                };
                let mut side = |loses| -> Result<ValueId> {
                    let d = b.select(loses, zero, g)?;
                    b.select(tie, half, d)
                };
                if want_x {
                    dx = Some(side(x_loses)?);
                }
                if want_y {
                    dy = Some(side(y_loses)?);
                }
            }
            BinaryOp::Mod => {
                dx = Some(g);
                if want_y {
                    let q = b.div(x, y)?;
                    let q = b.floor(q)?;
                    let d = b.mul(g, q)?;
                    let d = b.neg(d)?;
                    dy = Some(guarded(b, g, d)?);
                }
            }
            BinaryOp::PRelu => {
                let zero = b.scalar_like(g, 0.0)?;
                let above = b.greater(x, zero)?;
                if want_x {
                    let scaled = b.mul(g, y)?;
                    dx = Some(b.select(above, g, scaled)?);
                }
                if want_y {
                    let d = b.mul(g, x)?;
                    dy = Some(b.select(above, zero, d)?);
                }
            }
            BinaryOp::And
            | BinaryOp::Or
            | BinaryOp::Xor
            | BinaryOp::Equal
            | BinaryOp::NotEqual
            | BinaryOp::Less
            | BinaryOp::LessOrEqual
            | BinaryOp::Greater
            | BinaryOp::GreaterOrEqual => {
                return Err(no_gradient(self.op.name(), "its output is boolean"));
            }
        }
        Ok(vec![dx, dy])
    }

    fn axes(&self, inputs: &[TensorType], outputs: &[TensorType]) -> AxisRules {
        AxisRules::broadcast(inputs, outputs)
    }

    fn cost(&self, _: &[TensorType], outputs: &[TensorType]) -> Result<Cost> {
        Cost::elementwise(outputs)
    }
}

/// `g * y * x^(y - 1)`, with 0 where `y` is 0 or `g` is 0.
fn pow_by_base(b: &mut GraphBuilder, x: ValueId, y: ValueId, g: ValueId) -> Result<ValueId> {
    if let Some(p) = known_scalar(b, y) {
        if p == 0.0 {
            return b.full_like(x, 0.0);
        }
        if p == 1.0 {
            return Ok(g);
        }
        let scaled = b.mul_scalar(g, p)?;
        let power = if p == 2.0 {
            x
        } else if p == 3.0 {
            b.mul(x, x)?
        } else {
            let less = b.scalar_like(x, p - 1.0)?;
            b.pow(x, less)?
        };
        let d = b.mul(scaled, power)?;
        return if p < 1.0 { guarded(b, g, d) } else { Ok(d) };
    }
    let less = b.add_scalar(y, -1.0)?;
    let power = b.pow(x, less)?;
    let d = b.mul(g, y)?;
    // Where the exponent or the cotangent is 0 the product is, whatever the power.
    let e = b.mul(d, power)?;
    guarded(b, d, e)
}

/// `g * out * ln(x)`, with 0 where `x` is 0 and `y` is not negative, or `g` is 0.
fn pow_by_exponent(
    b: &mut GraphBuilder,
    x: ValueId,
    y: ValueId,
    out: ValueId,
    g: ValueId,
) -> Result<ValueId> {
    let zero = b.scalar_like(x, 0.0)?;
    let log = b.log(x)?;
    let d = b.mul(out, log)?;
    let d = b.mul(g, d)?;
    let base_zero = b.equal(x, zero)?;
    let exponent = b.greater_or_equal(y, zero)?;
    let flat = b.and(base_zero, exponent)?;
    let d = b.select(flat, zero, d)?;
    guarded(b, g, d)
}

impl OpRules for Where {
    fn infer(&self, inputs: &[TensorType]) -> Result<Vec<TensorType>> {
        arity(inputs, 3..=3)?;
        of_dtype(&inputs[0], DType::Bool, "the condition")?;
        same_dtype(&inputs[1], &inputs[2])?;
        if inputs[1].dtype.is_storage() {
            return Err(Error::dtype(format!(
                "{} only stores numbers; insert a dequantize",
                inputs[1]
            )));
        }
        let values = inputs[1].shape.broadcast(&inputs[2].shape)?;
        let shape = inputs[0].shape.broadcast(&values)?;
        Ok(vec![TensorType::new(inputs[1].dtype, shape)])
    }

    fn vjp(&self, cx: &mut Vjp<'_>) -> Result<InputGrads> {
        let g = cx.grad()?;
        let condition = cx.inputs[0];
        let zero = cx.b.scalar_like(g, 0.0)?;
        let mut grads = vec![None; 3];
        if cx.wanted[1] {
            grads[1] = Some(cx.b.select(condition, g, zero)?);
        }
        if cx.wanted[2] {
            grads[2] = Some(cx.b.select(condition, zero, g)?);
        }
        Ok(grads)
    }

    fn axes(&self, inputs: &[TensorType], outputs: &[TensorType]) -> AxisRules {
        AxisRules::broadcast(inputs, outputs)
    }

    fn cost(&self, _: &[TensorType], outputs: &[TensorType]) -> Result<Cost> {
        Cost::elementwise(outputs)
    }
}

impl OpRules for Cast {
    fn infer(&self, inputs: &[TensorType]) -> Result<Vec<TensorType>> {
        arity(inputs, 1..=1)?;
        if self.dtype.is_packed() && self.dtype.is_int() {
            return Err(Error::dtype(format!(
                "cannot cast {} to packed {}; use quantize",
                inputs[0], self.dtype
            )));
        }
        Ok(vec![inputs[0].with_dtype(self.dtype)])
    }

    fn vjp(&self, cx: &mut Vjp<'_>) -> Result<InputGrads> {
        let g = cx.grad()?;
        let dtype = cx.input_type(0).dtype;
        if !dtype.is_float() {
            return Ok(vec![None]);
        }
        Ok(vec![Some(cx.b.cast(g, dtype)?)])
    }

    fn axes(&self, inputs: &[TensorType], outputs: &[TensorType]) -> AxisRules {
        AxisRules::broadcast(inputs, outputs)
    }

    fn cost(&self, _: &[TensorType], outputs: &[TensorType]) -> Result<Cost> {
        Cost::elementwise(outputs)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::Op;
    use crate::ops::testing::{axes, infer, types};

    #[test]
    fn types_of_outputs() {
        let unary = |op| Op::from(Unary { op });
        let binary = |op| Op::from(Binary { op });
        let cast = |dtype| Op::from(Cast { dtype });
        for (op, inputs, expected) in [
            (unary(UnaryOp::Relu), "f32[n,3]", "f32[n,3]"),
            (unary(UnaryOp::Relu), "i32[3]", "error"),
            (unary(UnaryOp::Neg), "i8[3]", "i8[3]"),
            (unary(UnaryOp::Neg), "u8[3]", "error"),
            (unary(UnaryOp::Abs), "u4[3]", "error"),
            (unary(UnaryOp::Sign), "bool[3]", "error"),
            (unary(UnaryOp::Not), "bool[]", "bool[]"),
            (unary(UnaryOp::Not), "f32[]", "error"),
            (unary(UnaryOp::IsNan), "f16[2]", "bool[2]"),
            (unary(UnaryOp::Exp), "f64[2] f64[2]", "error"),
            (binary(BinaryOp::Add), "f32[n,1,3] f32[4,1]", "f32[n,4,3]"),
            (binary(BinaryOp::Add), "f32[] f32[]", "f32[]"),
            (binary(BinaryOp::Add), "f32[3] f64[3]", "error"),
            (binary(BinaryOp::Add), "f32[n] f32[3]", "error"),
            (binary(BinaryOp::Add), "bool[3] bool[3]", "error"),
            (binary(BinaryOp::Add), "i4[3] i4[3]", "error"),
            (binary(BinaryOp::Less), "i64[3] i64[]", "bool[3]"),
            (binary(BinaryOp::Less), "bool[3] bool[3]", "error"),
            (binary(BinaryOp::Equal), "bool[3] bool[3]", "bool[3]"),
            (binary(BinaryOp::And), "bool[3] bool[3]", "bool[3]"),
            (binary(BinaryOp::And), "u8[3] u8[3]", "error"),
            (binary(BinaryOp::PRelu), "f32[2,3] f32[3]", "f32[2,3]"),
            (binary(BinaryOp::PRelu), "i32[3] i32[3]", "error"),
            (Op::from(Where), "bool[2,1] f32[3] f32[]", "f32[2,3]"),
            (Op::from(Where), "f32[3] f32[3] f32[3]", "error"),
            (Op::from(Where), "bool[3] f32[3] f64[3]", "error"),
            (Op::from(Where), "bool[3] f32[3]", "error"),
            (cast(DType::I64), "f32[n]", "i64[n]"),
            (cast(DType::Bool), "f32[n]", "bool[n]"),
            (cast(DType::I4), "f32[2]", "error"),
            (cast(DType::F32), "u4[2]", "f32[2]"),
            (cast(DType::F4E2M1), "f16[2]", "f4e2m1[2]"),
        ] {
            assert_eq!(infer(&op, inputs), expected, "{op:?} {inputs}");
        }
    }

    #[test]
    fn broadcast_axes_line_up_from_the_right() {
        let op = Op::from(Binary { op: BinaryOp::Add });
        let rules = axes(&op, "f32[2,3] f32[3]");
        let mut expected = AxisRules::new();
        use crate::ops::Port::{Input, Output};
        expected.same((Input(0), 0), (Output(0), 0));
        expected.same((Input(0), 1), (Output(0), 1));
        expected.same((Input(1), 0), (Output(0), 1));
        assert_eq!(rules, expected);
        assert_eq!(axes(&op, "f32[2,3] f32[1]").free, [(Input(1), 0)]);
    }

    #[test]
    fn the_cost_is_the_number_of_outputs() {
        let inputs = types("f32[2,3] f32[3]");
        let op = Binary { op: BinaryOp::Add };
        let outputs = op.infer(&inputs).unwrap();
        assert_eq!(op.cost(&inputs, &outputs).unwrap().elements, 6);
        let symbolic = types("f32[n]");
        assert!(op.cost(&symbolic, &symbolic).is_err());
    }
}
