//! Element-wise ops: unary functions and activations, binary arithmetic and comparison, choice,
//! conversion.

mod rules;
pub(crate) use rules::numeric;

use crate::{DType, GraphBuilder, Result, ValueId};

/// An element-wise function of one input; see [`Unary`].
#[derive(Debug, Clone, Copy, PartialEq)]
#[non_exhaustive]
pub enum UnaryOp {
    /// `-x`
    Neg,
    /// `|x|`; gradient 0 at 0 (PyTorch).
    Abs,
    /// -1, 0 or 1.
    Sign,
    /// `e^x`
    Exp,
    /// Natural logarithm.
    Log,
    /// `ln(1 + x)`
    Log1p,
    /// `e^x - 1`
    Expm1,
    /// Square root.
    Sqrt,
    /// `1 / x`
    Reciprocal,
    /// Largest integer not above x.
    Floor,
    /// Smallest integer not below x.
    Ceil,
    /// Nearest integer, ties to even.
    Round,
    /// Sine.
    Sin,
    /// Cosine.
    Cos,
    /// Tangent.
    Tan,
    /// Inverse sine.
    Asin,
    /// Inverse cosine.
    Acos,
    /// Inverse tangent.
    Atan,
    /// Hyperbolic sine.
    Sinh,
    /// Hyperbolic cosine.
    Cosh,
    /// The error function.
    Erf,
    /// Logical not of a boolean.
    Not,
    /// Whether x is NaN; the output is boolean.
    IsNan,
    /// Whether x is infinite; the output is boolean.
    IsInf,
    /// `max(x, 0)`; gradient 0 at 0.
    Relu,
    /// `x` above 0, else `alpha * x`; gradient `alpha` at 0.
    LeakyRelu {
        /// Slope below 0.
        alpha: f64,
    },
    /// `x` above 0, else `alpha * (e^x - 1)`.
    Elu {
        /// Scale below 0.
        alpha: f64,
    },
    /// `gamma * (x above 0, else alpha * (e^x - 1))` with the constants of Klambauer et al. 2017.
    Selu,
    /// `1 / (1 + e^-x)`
    Sigmoid,
    /// `min(max(alpha * x + beta, 0), 1)`
    HardSigmoid {
        /// Slope (ONNX's default is 0.2, PyTorch's function has 1/6).
        alpha: f64,
        /// Value at 0 (0.5).
        beta: f64,
    },
    /// Hyperbolic tangent.
    Tanh,
    /// `x * Phi(x)` with the normal distribution function (Hendrycks & Gimpel 2016); exact, or
    /// by the tanh approximation.
    Gelu {
        /// Whether to use `0.5 x (1 + tanh(sqrt(2/pi) (x + 0.044715 x^3)))`.
        tanh: bool,
    },
    /// `x * sigmoid(x)` (swish).
    Silu,
    /// `x * min(max(x / 6 + 0.5, 0), 1)`
    HardSwish,
    /// `x * tanh(softplus(x))`
    Mish,
    /// `ln(1 + e^x)`
    Softplus,
    /// `x / (1 + |x|)`
    Softsign,
}

/// An element-wise function of one input. The output has the input's type, but boolean for
/// [`UnaryOp::IsNan`] and [`UnaryOp::IsInf`]. `Neg`, `Abs` and `Sign` take floating-point and
/// (unpacked) integer inputs, `Neg` no unsigned ones; `Not` takes booleans; all others take
/// floating-point inputs only.
///
/// Gradients follow PyTorch's conventions where a function has a kink. That of `Sign`, `Floor`,
/// `Ceil` and `Round` is 0.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Unary {
    /// The function.
    pub op: UnaryOp,
}

/// An element-wise function of two inputs; see [`Binary`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum BinaryOp {
    /// `a + b`
    Add,
    /// `a - b`
    Sub,
    /// `a * b`
    Mul,
    /// `a / b`; integers truncate toward zero, division of an integer by zero gives 0.
    Div,
    /// `a^b`
    Pow,
    /// The larger; a tie gives half of the gradient to each side (PyTorch). NaN wins.
    Max,
    /// The smaller; ties and NaN as for `Max`.
    Min,
    /// Remainder with the divisor's sign (ONNX `Mod` with `fmod = 0`, Python's `%`).
    Mod,
    /// Logical and.
    And,
    /// Logical or.
    Or,
    /// Logical exclusive or.
    Xor,
    /// Whether equal.
    Equal,
    /// Whether not equal.
    NotEqual,
    /// Whether `a < b`.
    Less,
    /// Whether `a <= b`.
    LessOrEqual,
    /// Whether `a > b`.
    Greater,
    /// Whether `a >= b`.
    GreaterOrEqual,
    /// `a` above 0, else `a * b`: parametric ReLU, `b` is the slope.
    PRelu,
}

/// An element-wise function of two inputs of one dtype, broadcast by numpy's rules. Comparisons
/// give booleans (`Equal` and `NotEqual` take them too), `And`, `Or` and `Xor` take booleans;
/// types that [only store](crate::DType::is_storage) numbers are not taken.
///
/// Where the incoming gradient is 0, division and power give a gradient of 0 even where their
/// derivative is infinite.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Binary {
    /// The function.
    pub op: BinaryOp,
}

/// `condition ? a : b`, element by element: inputs are a boolean condition and two values of one
/// dtype, broadcast by numpy's rules.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Where;

/// Converts elements as [`Tensor::cast`](crate::Tensor::cast) does, but not to packed
/// integers. Between floating-point types the gradient is the cast back; else there is none.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Cast {
    /// The dtype of the output.
    pub dtype: DType,
}

impl UnaryOp {
    /// The op's name, ONNX's where ONNX has it.
    pub fn name(self) -> &'static str {
        match self {
            UnaryOp::Neg => "Neg",
            UnaryOp::Abs => "Abs",
            UnaryOp::Sign => "Sign",
            UnaryOp::Exp => "Exp",
            UnaryOp::Log => "Log",
            UnaryOp::Log1p => "Log1p",
            UnaryOp::Expm1 => "Expm1",
            UnaryOp::Sqrt => "Sqrt",
            UnaryOp::Reciprocal => "Reciprocal",
            UnaryOp::Floor => "Floor",
            UnaryOp::Ceil => "Ceil",
            UnaryOp::Round => "Round",
            UnaryOp::Sin => "Sin",
            UnaryOp::Cos => "Cos",
            UnaryOp::Tan => "Tan",
            UnaryOp::Asin => "Asin",
            UnaryOp::Acos => "Acos",
            UnaryOp::Atan => "Atan",
            UnaryOp::Sinh => "Sinh",
            UnaryOp::Cosh => "Cosh",
            UnaryOp::Erf => "Erf",
            UnaryOp::Not => "Not",
            UnaryOp::IsNan => "IsNaN",
            UnaryOp::IsInf => "IsInf",
            UnaryOp::Relu => "Relu",
            UnaryOp::LeakyRelu { .. } => "LeakyRelu",
            UnaryOp::Elu { .. } => "Elu",
            UnaryOp::Selu => "Selu",
            UnaryOp::Sigmoid => "Sigmoid",
            UnaryOp::HardSigmoid { .. } => "HardSigmoid",
            UnaryOp::Tanh => "Tanh",
            UnaryOp::Gelu { .. } => "Gelu",
            UnaryOp::Silu => "Silu",
            UnaryOp::HardSwish => "HardSwish",
            UnaryOp::Mish => "Mish",
            UnaryOp::Softplus => "Softplus",
            UnaryOp::Softsign => "Softsign",
        }
    }
}

impl BinaryOp {
    /// The op's name, ONNX's where ONNX has it.
    pub fn name(self) -> &'static str {
        match self {
            BinaryOp::Add => "Add",
            BinaryOp::Sub => "Sub",
            BinaryOp::Mul => "Mul",
            BinaryOp::Div => "Div",
            BinaryOp::Pow => "Pow",
            BinaryOp::Max => "Max",
            BinaryOp::Min => "Min",
            BinaryOp::Mod => "Mod",
            BinaryOp::And => "And",
            BinaryOp::Or => "Or",
            BinaryOp::Xor => "Xor",
            BinaryOp::Equal => "Equal",
            BinaryOp::NotEqual => "NotEqual",
            BinaryOp::Less => "Less",
            BinaryOp::LessOrEqual => "LessOrEqual",
            BinaryOp::Greater => "Greater",
            BinaryOp::GreaterOrEqual => "GreaterOrEqual",
            BinaryOp::PRelu => "PRelu",
        }
    }

    /// Whether the output is boolean whatever the inputs.
    pub fn is_comparison(self) -> bool {
        use BinaryOp::{Equal, Greater, GreaterOrEqual, Less, LessOrEqual, NotEqual};
        matches!(
            self,
            Equal | NotEqual | Less | LessOrEqual | Greater | GreaterOrEqual
        )
    }
}

macro_rules! unary_methods {
    ($($(#[$doc:meta])* $method:ident => $op:expr;)*) => {
        impl GraphBuilder {$(
            $(#[$doc])*
            ///
            /// # Errors
            /// If the dtype does not fit; see [`Unary`].
            pub fn $method(&mut self, x: ValueId) -> Result<ValueId> {
                self.op(Unary { op: $op }, &[x])
            }
        )*}
    };
}

unary_methods! {
    /// `-x`.
    neg => UnaryOp::Neg;
    /// `|x|`.
    abs => UnaryOp::Abs;
    /// -1, 0 or 1.
    sign => UnaryOp::Sign;
    /// `e^x`.
    exp => UnaryOp::Exp;
    /// Natural logarithm.
    log => UnaryOp::Log;
    /// `ln(1 + x)`.
    log1p => UnaryOp::Log1p;
    /// Square root.
    sqrt => UnaryOp::Sqrt;
    /// `1 / x`.
    reciprocal => UnaryOp::Reciprocal;
    /// Nearest integer, ties to even.
    round => UnaryOp::Round;
    /// Largest integer not above x.
    floor => UnaryOp::Floor;
    /// The error function.
    erf => UnaryOp::Erf;
    /// Logical not.
    not => UnaryOp::Not;
    /// `max(x, 0)`.
    relu => UnaryOp::Relu;
    /// `1 / (1 + e^-x)`.
    sigmoid => UnaryOp::Sigmoid;
    /// Hyperbolic tangent.
    tanh => UnaryOp::Tanh;
    /// Exact GELU.
    gelu => UnaryOp::Gelu { tanh: false };
    /// `x * sigmoid(x)`.
    silu => UnaryOp::Silu;
    /// `x * min(max(x / 6 + 0.5, 0), 1)`.
    hard_swish => UnaryOp::HardSwish;
    /// `x * tanh(softplus(x))`.
    mish => UnaryOp::Mish;
    /// `ln(1 + e^x)`.
    softplus => UnaryOp::Softplus;
}

macro_rules! binary_methods {
    ($($(#[$doc:meta])* $method:ident => $op:ident;)*) => {
        impl GraphBuilder {$(
            $(#[$doc])*
            ///
            /// # Errors
            /// If the dtypes differ or the shapes do not broadcast.
            pub fn $method(&mut self, a: ValueId, b: ValueId) -> Result<ValueId> {
                self.op(Binary { op: BinaryOp::$op }, &[a, b])
            }
        )*}
    };
}

binary_methods! {
    /// `a + b`.
    add => Add;
    /// `a - b`.
    sub => Sub;
    /// `a * b`.
    mul => Mul;
    /// `a / b`.
    div => Div;
    /// `a^b`.
    pow => Pow;
    /// The larger.
    maximum => Max;
    /// The smaller.
    minimum => Min;
    /// Logical and.
    and => And;
    /// Logical or.
    or => Or;
    /// Whether equal.
    equal => Equal;
    /// Whether not equal.
    not_equal => NotEqual;
    /// Whether `a < b`.
    less => Less;
    /// Whether `a <= b`.
    less_or_equal => LessOrEqual;
    /// Whether `a > b`.
    greater => Greater;
    /// Whether `a >= b`.
    greater_or_equal => GreaterOrEqual;
    /// `a` above 0, else `a * b`.
    prelu => PRelu;
}

impl GraphBuilder {
    /// Any element-wise function of one input.
    ///
    /// # Errors
    /// If the dtype does not fit; see [`Unary`].
    pub fn unary(&mut self, op: UnaryOp, x: ValueId) -> Result<ValueId> {
        self.op(Unary { op }, &[x])
    }

    /// `condition ? a : b`.
    ///
    /// # Errors
    /// If the condition is not boolean, the dtypes differ or the shapes do not broadcast.
    pub fn select(&mut self, condition: ValueId, a: ValueId, b: ValueId) -> Result<ValueId> {
        self.op(Where, &[condition, a, b])
    }

    /// Converts the elements; nothing if they have the dtype already.
    ///
    /// # Errors
    /// If the dtype is packed.
    pub fn cast(&mut self, x: ValueId, dtype: DType) -> Result<ValueId> {
        if self.type_of(x).dtype == dtype {
            return Ok(x);
        }
        self.op(Cast { dtype }, &[x])
    }

    /// `x + c`.
    ///
    /// # Errors
    /// None for numeric dtypes.
    pub fn add_scalar(&mut self, x: ValueId, c: f64) -> Result<ValueId> {
        let c = self.scalar_like(x, c)?;
        self.add(x, c)
    }

    /// `x * c`.
    ///
    /// # Errors
    /// None for numeric dtypes.
    pub fn mul_scalar(&mut self, x: ValueId, c: f64) -> Result<ValueId> {
        let c = self.scalar_like(x, c)?;
        self.mul(x, c)
    }

    /// `min(max(x, low), high)`; at a bound half of the gradient passes, as [`BinaryOp::Max`]
    /// has it.
    ///
    /// # Errors
    /// None for numeric dtypes.
    pub fn clip(&mut self, x: ValueId, low: f64, high: f64) -> Result<ValueId> {
        let (low, high) = (self.scalar_like(x, low)?, self.scalar_like(x, high)?);
        let x = self.maximum(x, low)?;
        self.minimum(x, high)
    }
}

impl GraphBuilder {
    /// A value of the same type with one number everywhere.
    ///
    /// # Errors
    /// None for the dtypes that exist today.
    pub fn full_like(&mut self, value: ValueId, content: f64) -> Result<ValueId> {
        let shape = self.type_of(value).shape.clone();
        let scalar = self.scalar_like(value, content)?;
        self.expand(scalar, shape)
    }
}
