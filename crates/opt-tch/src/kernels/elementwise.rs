//! Element-wise functions, choice and conversion.

use opt_core::ops::{BinaryOp, UnaryOp};
use opt_core::tensor::MiniFloat;
use opt_core::{DType, Error, Op, Result};
use tch::{Kind, Tensor};

use super::{CompileCx, Kernel};
use crate::compile::fused::missing;
use crate::convert::{kind, kind_number};
use crate::native::{Arg, aten};

/// `threshold` of softplus, above which it is x: ln(1 + e^x) differs from it in f64 up to 37.
const LINEAR: f64 = 40.0;

/// Scale and negative scale of SELU (Klambauer et al. 2017).
const SELU: (f64, f64) = (1.050_700_987_355_480_5, 1.673_263_242_354_377_2);

pub(super) fn compile(op: &Op, cx: &CompileCx<'_>) -> Result<Kernel> {
    match op {
        Op::Unary(op) => Ok(unary(op.op)),
        Op::Binary(op) => binary(op.op, cx),
        Op::Where(_) => Ok(Kernel::one("where", |x| {
            aten!("where.self", x[0], x[1], x[2])
        })),
        Op::Cast(op) => cast(cx.inputs[0].dtype, op.dtype),
        other => Err(Error::unsupported(format!("{} here", other.name()))),
    }
}

macro_rules! plain {
    ($($name:literal)*; $op:ident) => {
        match $op {
            $($name => Kernel::one($name, |x| aten!($name, x[0])),)*
            other => unreachable!("{other} is no function of one tensor"),
        }
    };
}

fn unary(op: UnaryOp) -> Kernel {
    let name = match op {
        UnaryOp::LeakyRelu { alpha } => {
            return Kernel::one("leaky_relu", move |x| aten!("leaky_relu", x[0], alpha));
        }
        UnaryOp::Elu { alpha } => {
            return Kernel::one("elu", move |x| aten!("elu", x[0], alpha));
        }
        UnaryOp::HardSigmoid { alpha, beta } => {
            return Kernel::one("hard_sigmoid", move |x| {
                let y = aten!("mul.Scalar", x[0], alpha)?;
                let y = aten!("add.Scalar", &y, beta)?;
                aten!("clamp", &y, 0.0, 1.0)
            });
        }
        UnaryOp::Gelu { tanh } => {
            let form = if tanh { "tanh" } else { "none" };
            return Kernel::one("gelu", move |x| aten!("gelu", x[0], form));
        }
        UnaryOp::Softplus => {
            return Kernel::one("softplus", |x| aten!("softplus", x[0], 1.0, LINEAR));
        }
        UnaryOp::Softsign => {
            return Kernel::one("softsign", |x| {
                let size = aten!("abs", x[0])?;
                let size = aten!("add.Scalar", &size, 1.0)?;
                aten!("div.Tensor", x[0], &size)
            });
        }
        UnaryOp::Neg => "neg",
        UnaryOp::Abs => "abs",
        UnaryOp::Sign => "sign",
        UnaryOp::Exp => "exp",
        UnaryOp::Log => "log",
        UnaryOp::Log1p => "log1p",
        UnaryOp::Expm1 => "expm1",
        UnaryOp::Sqrt => "sqrt",
        UnaryOp::Reciprocal => "reciprocal",
        UnaryOp::Floor => "floor",
        UnaryOp::Ceil => "ceil",
        UnaryOp::Round => "round",
        UnaryOp::Sin => "sin",
        UnaryOp::Cos => "cos",
        UnaryOp::Tan => "tan",
        UnaryOp::Asin => "asin",
        UnaryOp::Acos => "acos",
        UnaryOp::Atan => "atan",
        UnaryOp::Sinh => "sinh",
        UnaryOp::Cosh => "cosh",
        UnaryOp::Erf => "erf",
        UnaryOp::Not => "logical_not",
        UnaryOp::IsNan => "isnan",
        UnaryOp::IsInf => "isinf",
        UnaryOp::Relu => "relu",
        UnaryOp::Selu => "selu",
        UnaryOp::Sigmoid => "sigmoid",
        UnaryOp::Tanh => "tanh",
        UnaryOp::Silu => "silu",
        UnaryOp::HardSwish => "hardswish",
        UnaryOp::Mish => "mish",
        other => {
            return Kernel::one(other.name(), move |_| {
                Err(Error::unsupported(format!(
                    "{} on the libtorch backend",
                    other.name()
                )))
            });
        }
    };
    if name == "relu" {
        let relu = Kernel::one("relu", |x| aten!("relu", x[0]));
        return relu.over(&[0], |x, _| aten!("relu_", x[0]));
    }
    plain!("neg" "abs" "sign" "exp" "log" "log1p" "expm1" "sqrt" "reciprocal" "floor" "ceil"
        "round" "sin" "cos" "tan" "asin" "acos" "atan" "sinh" "cosh" "erf" "logical_not" "isnan"
        "isinf" "relu" "selu" "sigmoid" "tanh" "silu" "hardswish" "mish"; name)
}

/// A number of a dtype's kind.
#[derive(Debug, Clone, Copy)]
enum Number {
    Float(f64),
    Int(i64),
}

impl From<Number> for Arg<'_> {
    fn from(number: Number) -> Self {
        match number {
            Number::Float(v) => Arg::Float(v),
            Number::Int(v) => Arg::Int(v),
        }
    }
}

fn number(value: f64, dtype: DType) -> Number {
    match dtype.is_float() {
        true => Number::Float(value),
        // Within 2^53, as `CompileCx::scalar` has it.
        false => Number::Int(value as i64),
    }
}

fn binary(op: BinaryOp, cx: &CompileCx<'_>) -> Result<Kernel> {
    let dtype = cx.inputs[0].dtype;
    let whole = |i: usize| cx.inputs[i].shape == cx.outputs[0].shape;
    if dtype != DType::Bool {
        let second = cx.scalar(1).filter(|_| whole(0));
        if let Some(kernel) = second.and_then(|c| with_scalar(op, c, dtype)) {
            return Ok(kernel);
        }
        let first = cx.scalar(0).filter(|_| whole(1));
        if let Some(kernel) = first.and_then(|c| of_scalar(op, c, dtype)) {
            return Ok(kernel);
        }
    }
    macro_rules! two {
        ($name:literal) => {
            Kernel::one($name.split('.').next().unwrap_or($name), |x| {
                aten!($name, x[0], x[1])
            })
        };
    }
    let float = dtype.is_float();
    Ok(match op {
        BinaryOp::Add => {
            two!("add.Tensor").over(&[0, 1], |x, i| aten!("add_.Tensor", x[i], x[1 - i]))
        }
        BinaryOp::Sub => two!("sub.Tensor").over(&[0], |x, _| aten!("sub_.Tensor", x[0], x[1])),
        BinaryOp::Mul => {
            two!("mul.Tensor").over(&[0, 1], |x, i| aten!("mul_.Tensor", x[i], x[1 - i]))
        }
        BinaryOp::Div if float => two!("div.Tensor"),
        BinaryOp::Div => Kernel::one("div", |x| {
            by_zero(x, |a, b| aten!("div.Tensor_mode", a, b, "trunc"))
        }),
        BinaryOp::Pow if float => two!("pow.Tensor_Tensor"),
        BinaryOp::Pow => Kernel::one("pow", |x| {
            // A negative power of an integer is 0 but for the bases 1 and -1; libtorch refuses
            // them, so they are taken modulo 2, which is right for both, and masked.
            let negative = aten!("lt.Scalar", x[1], 0i64)?;
            let parity = aten!("remainder.Scalar", x[1], 2i64)?;
            let power = aten!("where.self", &negative, &parity, x[1])?;
            let unit = aten!("eq.Scalar", &aten!("abs", x[0])?, 1i64)?;
            let result = aten!("pow.Tensor_Tensor", x[0], &power)?;
            let keep = aten!("logical_or", &aten!("logical_not", &negative)?, &unit)?;
            aten!("mul.Tensor", &result, &to(&keep, x[0].kind())?)
        }),
        BinaryOp::Max => two!("maximum"),
        BinaryOp::Min => two!("minimum"),
        BinaryOp::Mod if float => two!("remainder.Tensor"),
        BinaryOp::Mod => Kernel::one("remainder", |x| {
            by_zero(x, |a, b| aten!("remainder.Tensor", a, b))
        }),
        BinaryOp::And => two!("logical_and"),
        BinaryOp::Or => two!("logical_or"),
        BinaryOp::Xor => two!("logical_xor"),
        BinaryOp::Equal => two!("eq.Tensor"),
        BinaryOp::NotEqual => two!("ne.Tensor"),
        BinaryOp::Less => two!("lt.Tensor"),
        BinaryOp::LessOrEqual => two!("le.Tensor"),
        BinaryOp::Greater => two!("gt.Tensor"),
        BinaryOp::GreaterOrEqual => two!("ge.Tensor"),
        BinaryOp::PRelu => Kernel::one("prelu", |x| {
            let below = aten!("mul.Tensor", x[0], x[1])?;
            aten!("where.self", &aten!("gt.Scalar", x[0], 0.0)?, x[0], &below)
        }),
        other => {
            return Err(Error::unsupported(format!(
                "{} on the libtorch backend",
                other.name()
            )));
        }
    })
}

/// A function of integers that gives 0 where the divisor is 0.
fn by_zero(x: &[&Tensor], f: impl Fn(&Tensor, &Tensor) -> Result<Tensor>) -> Result<Tensor> {
    let zero = aten!("eq.Scalar", x[1], 0i64)?;
    let divisor = aten!("masked_fill.Scalar", x[1], &zero, 1i64)?;
    let result = f(x[0], &divisor)?;
    aten!("masked_fill.Scalar", &result, &zero, 0i64)
}

/// `x op c`
fn with_scalar(op: BinaryOp, c: f64, dtype: DType) -> Option<Kernel> {
    let n = number(c, dtype);
    macro_rules! scalar {
        ($name:literal) => {
            Some(Kernel::one(
                $name.split('.').next().unwrap_or($name),
                move |x| aten!($name, x[0], n),
            ))
        };
    }
    match op {
        BinaryOp::Add => {
            scalar!("add.Scalar").map(|k| k.over(&[0], move |x, _| aten!("add_.Scalar", x[0], n)))
        }
        BinaryOp::Sub => {
            scalar!("sub.Scalar").map(|k| k.over(&[0], move |x, _| aten!("sub_.Scalar", x[0], n)))
        }
        BinaryOp::Mul => {
            scalar!("mul.Scalar").map(|k| k.over(&[0], move |x, _| aten!("mul_.Scalar", x[0], n)))
        }
        BinaryOp::Div if dtype.is_float() => scalar!("div.Scalar"),
        BinaryOp::Pow if dtype.is_float() => scalar!("pow.Tensor_Scalar"),
        BinaryOp::Max if !c.is_nan() => scalar!("clamp_min"),
        BinaryOp::Min if !c.is_nan() => scalar!("clamp_max"),
        BinaryOp::Equal => scalar!("eq.Scalar"),
        BinaryOp::NotEqual => scalar!("ne.Scalar"),
        BinaryOp::Less => scalar!("lt.Scalar"),
        BinaryOp::LessOrEqual => scalar!("le.Scalar"),
        BinaryOp::Greater => scalar!("gt.Scalar"),
        BinaryOp::GreaterOrEqual => scalar!("ge.Scalar"),
        BinaryOp::PRelu => Some(Kernel::one("leaky_relu", move |x| {
            aten!("leaky_relu", x[0], c)
        })),
        _ => None,
    }
}

/// `c op x`
fn of_scalar(op: BinaryOp, c: f64, dtype: DType) -> Option<Kernel> {
    let n = number(c, dtype);
    match op {
        BinaryOp::Add | BinaryOp::Mul | BinaryOp::Max | BinaryOp::Min => with_scalar(op, c, dtype),
        BinaryOp::Equal | BinaryOp::NotEqual => with_scalar(op, c, dtype),
        BinaryOp::Sub => Some(Kernel::one("rsub", move |x| aten!("rsub.Scalar", x[1], n))),
        BinaryOp::Pow if dtype.is_float() => {
            Some(Kernel::one("pow", move |x| aten!("pow.Scalar", n, x[1])))
        }
        _ => None,
    }
    .map(|kernel| match op {
        BinaryOp::Sub | BinaryOp::Pow => kernel,
        // The function of x alone reads it as its first operand.
        _ => Kernel::new(kernel.name().to_string(), move |x, cx| {
            kernel.run(&x[1..], cx)
        }),
    })
}

/// The elements converted as libtorch does it.
pub(super) fn to(x: &Tensor, kind: Kind) -> Result<Tensor> {
    aten!("_to_copy", x, kind_number(kind))
}

fn cast(from: DType, dtype: DType) -> Result<Kernel> {
    if MiniFloat::of(dtype).is_some() {
        return Err(Error::unsupported(format!(
            "a cast to {dtype} on the libtorch backend"
        )));
    }
    let target = kind(dtype)?;
    Ok(match dtype {
        DType::Bool => Kernel::one("ne", |x| aten!("ne.Scalar", x[0], 0i64)),
        // Integers saturate, which libtorch leaves to the processor.
        DType::I64 | DType::I32 | DType::I8 | DType::U8 if from != DType::Bool => {
            let (low, high) = match dtype {
                DType::I64 => (i64::MIN, i64::MAX),
                DType::I32 => (i32::MIN.into(), i32::MAX.into()),
                DType::I8 => (-128, 127),
                _ => (0, 255),
            };
            if from.is_float() || MiniFloat::of(from).is_some() {
                Kernel::one("cast", move |x| saturated(x[0], target, low, high))
            } else if holds(dtype, from) {
                Kernel::one("cast", move |x| to(x[0], target))
            } else {
                let (low, high) = bounds(from, low, high);
                Kernel::one("cast", move |x| {
                    to(&aten!("clamp", x[0], low, high)?, target)
                })
            }
        }
        _ => Kernel::one("cast", move |x| to(x[0], target)),
    })
}

/// Whether one integer type holds all values of another.
fn holds(wide: DType, narrow: DType) -> bool {
    matches!(
        (wide, narrow),
        (DType::I64, _) | (DType::I32, DType::I32 | DType::I8 | DType::U8 | DType::Bool)
    ) || wide == narrow
        || (narrow.is_packed() && wide == DType::I32)
}

/// Bounds within what the type that is clamped can say.
fn bounds(from: DType, low: i64, high: i64) -> (i64, i64) {
    match from {
        DType::I8 => (low.max(-128), high.min(127)),
        DType::U8 => (low.max(0), high.min(255)),
        // Held in bytes, whose numbers the bounds have to be.
        packed if packed.is_packed() => (low.max(-8), high.min(15)),
        _ => (low, high),
    }
}

/// Floats truncated to integers within bounds; NaN gives 0.
fn saturated(x: &Tensor, target: Kind, low: i64, high: i64) -> Result<Tensor> {
    // The bounds are no numbers of the short types.
    let wide;
    let x = match x.kind() {
        Kind::Half | Kind::BFloat16 => {
            wide = to(x, Kind::Float)?;
            &wide
        }
        _ => x,
    };
    let zeroed = aten!("nan_to_num", x, 0.0, Arg::None, Arg::None)?;
    // The bounds of the wide types are no floats: their powers of two are, beyond which the
    // result is set.
    let edge = high as f64;
    let inside = aten!("clamp", &zeroed, low as f64, edge)?;
    if high < 256 {
        return to(&inside, target);
    }
    let above = aten!("ge.Scalar", &zeroed, edge)?;
    let inside = aten!("masked_fill.Scalar", &inside, &above, 0.0)?;
    aten!("masked_fill.Scalar", &to(&inside, target)?, &above, high)
}

/// The gradient of an activation; inputs are the arriving gradient and what it is computed from,
/// the output for ReLU, sigmoid and tanh, else the input.
pub(crate) fn compile_grad(op: UnaryOp) -> Result<Kernel> {
    Ok(match op {
        UnaryOp::Relu => Kernel::one("threshold_backward", |x| {
            aten!("threshold_backward", x[0], x[1], 0.0)
        })
        .over(&[0], |x, _| {
            aten!("threshold_backward.grad_input", x[0], x[1], 0.0, x[0])
        }),
        UnaryOp::Sigmoid => Kernel::one("sigmoid_backward", |x| {
            aten!("sigmoid_backward", x[0], x[1])
        }),
        UnaryOp::Tanh => Kernel::one("tanh_backward", |x| aten!("tanh_backward", x[0], x[1])),
        UnaryOp::LeakyRelu { alpha } => Kernel::one("leaky_relu_backward", move |x| {
            aten!("leaky_relu_backward", x[0], x[1], alpha, false)
        }),
        UnaryOp::Elu { alpha } => Kernel::one("elu_backward", move |x| {
            aten!("elu_backward", x[0], alpha, 1.0, 1.0, false, x[1])
        }),
        UnaryOp::Selu => Kernel::one("elu_backward", |x| {
            aten!("elu_backward", x[0], SELU.1, SELU.0, 1.0, false, x[1])
        }),
        UnaryOp::Gelu { tanh } => Kernel::one("gelu_backward", move |x| {
            let form = if tanh { "tanh" } else { "none" };
            aten!("gelu_backward", x[0], x[1], form)
        }),
        UnaryOp::Silu => Kernel::one("silu_backward", |x| aten!("silu_backward", x[0], x[1])),
        UnaryOp::HardSwish => Kernel::one("hardswish_backward", |x| {
            aten!("hardswish_backward", x[0], x[1])
        }),
        UnaryOp::Mish => Kernel::one("mish_backward", |x| aten!("mish_backward", x[0], x[1])),
        UnaryOp::Softplus => Kernel::one("softplus_backward", |x| {
            aten!("softplus_backward", x[0], x[1], 1.0, LINEAR)
        }),
        other => return Err(missing(&format!("the gradient of {}", other.name()))),
    })
}
