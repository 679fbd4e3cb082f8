//! The element-wise functions over slices, for each type that registers hold.

use opt_core::ops::{BinaryOp, UnaryOp};

#[cfg(target_arch = "x86_64")]
use super::divide;
use super::math;

/// An operand of a binary function: a slice as long as the output, or one value.
#[derive(Clone, Copy)]
pub(super) enum Side<'a, R> {
    Slice(&'a [R]),
    Scalar(R),
}

/// What becomes of a product and a third operand; both steps round.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Product {
    /// `a b + c`
    Plus,
    /// `a b - c`
    Minus,
    /// `c - a b`
    From,
}

/// A type of registers.
pub(super) trait Lane:
    bytemuck::Pod + Default + PartialEq + PartialOrd + Send + Sync + std::fmt::Debug
{
    fn from_f32(x: f32) -> Self;
    fn from_f64(x: f64) -> Self;
    fn from_i64(x: i64) -> Self;
    fn to_f32(self) -> f32;
    fn to_f64(self) -> f64;
    fn to_i64(self) -> i64;

    /// Applies a function of one operand.
    fn unary(op: UnaryOp, x: &[Self], out: &mut [Self]);

    /// Applies a function of two operands.
    fn binary(op: BinaryOp, a: Side<'_, Self>, b: Side<'_, Self>, out: &mut [Self]);

    /// A product and a third operand.
    fn product(
        _kind: Product,
        _a: &[Self],
        _b: Side<'_, Self>,
        _c: Side<'_, Self>,
        _out: &mut [Self],
    ) {
        unreachable!("programs join products of `f32` only");
    }

    /// `a` where the condition is not 0, `b` elsewhere.
    fn select(c: &[Self], a: Side<'_, Self>, b: Side<'_, Self>, out: &mut [Self]) {
        choose(c, a, b, out);
    }
}

#[inline(always)]
fn choose<R: Copy + Default + PartialEq>(c: &[R], a: Side<'_, R>, b: Side<'_, R>, out: &mut [R]) {
    map3(
        c,
        a,
        b,
        out,
        |c, a, b| if c == R::default() { b } else { a },
    );
}

macro_rules! conversions {
    ($t:ty) => {
        fn from_f32(x: f32) -> Self {
            x as $t
        }
        fn from_f64(x: f64) -> Self {
            x as $t
        }
        fn from_i64(x: i64) -> Self {
            x as $t
        }
        fn to_f32(self) -> f32 {
            self as f32
        }
        fn to_f64(self) -> f64 {
            self as f64
        }
        fn to_i64(self) -> i64 {
            self as i64
        }
    };
}

/// Whether registers of floats, or else of integers, have a function.
pub(super) fn has_unary(op: UnaryOp, floats: bool) -> bool {
    use UnaryOp::*;
    match op {
        Neg | Abs | Sign | Not | Relu => true,
        Exp
        | Log
        | Log1p
        | Expm1
        | Sqrt
        | Reciprocal
        | Floor
        | Ceil
        | Round
        | Sin
        | Cos
        | Tan
        | Asin
        | Acos
        | Atan
        | Sinh
        | Cosh
        | Erf
        | IsNan
        | IsInf
        | LeakyRelu { .. }
        | Elu { .. }
        | Selu
        | Sigmoid
        | HardSigmoid { .. }
        | Tanh
        | Gelu { .. }
        | Silu
        | HardSwish
        | Mish
        | Softplus
        | Softsign => floats,
        // One that `opt-core` has added since.
        _ => false,
    }
}

/// Whether registers have a function.
pub(super) fn has_binary(op: BinaryOp) -> bool {
    use BinaryOp::*;
    matches!(
        op,
        Add | Sub
            | Mul
            | Div
            | Pow
            | Max
            | Min
            | Mod
            | And
            | Or
            | Xor
            | Equal
            | NotEqual
            | Less
            | LessOrEqual
            | Greater
            | GreaterOrEqual
            | PRelu
    )
}

#[inline(always)]
fn map1<R: Copy>(x: &[R], out: &mut [R], f: impl Fn(R) -> R) {
    for (out, &x) in out.iter_mut().zip(x) {
        *out = f(x);
    }
}

#[inline(always)]
fn map2<R: Copy>(a: Side<'_, R>, b: Side<'_, R>, out: &mut [R], f: impl Fn(R, R) -> R) {
    match (a, b) {
        (Side::Slice(a), Side::Slice(b)) => {
            for ((out, &a), &b) in out.iter_mut().zip(a).zip(b) {
                *out = f(a, b);
            }
        }
        (Side::Slice(a), Side::Scalar(b)) => {
            for (out, &a) in out.iter_mut().zip(a) {
                *out = f(a, b);
            }
        }
        (Side::Scalar(a), Side::Slice(b)) => {
            for (out, &b) in out.iter_mut().zip(b) {
                *out = f(a, b);
            }
        }
        (Side::Scalar(a), Side::Scalar(b)) => out.fill(f(a, b)),
    }
}

#[inline(always)]
fn map3<R: Copy>(a: &[R], b: Side<'_, R>, c: Side<'_, R>, out: &mut [R], f: impl Fn(R, R, R) -> R) {
    match (b, c) {
        (Side::Slice(b), Side::Slice(c)) => {
            for (((out, &a), &b), &c) in out.iter_mut().zip(a).zip(b).zip(c) {
                *out = f(a, b, c);
            }
        }
        (Side::Slice(b), Side::Scalar(c)) => {
            for ((out, &a), &b) in out.iter_mut().zip(a).zip(b) {
                *out = f(a, b, c);
            }
        }
        (Side::Scalar(b), Side::Slice(c)) => {
            for ((out, &a), &c) in out.iter_mut().zip(a).zip(c) {
                *out = f(a, b, c);
            }
        }
        (Side::Scalar(b), Side::Scalar(c)) => {
            for (out, &a) in out.iter_mut().zip(a) {
                *out = f(a, b, c);
            }
        }
    }
}

/// The functions that both floating-point types have in the same words.
macro_rules! float_unary {
    ($t:ty, $op:expr, $x:expr, $out:expr, {$($rest:tt)*}) => {
        match $op {
            UnaryOp::Neg => map1($x, $out, |x| -x),
            UnaryOp::Abs => map1($x, $out, <$t>::abs),
            UnaryOp::Sign => map1($x, $out, |x| {
                // NaN stays.
                if x > 0.0 { 1.0 } else if x < 0.0 { -1.0 } else { x }
            }),
            UnaryOp::Sqrt => map1($x, $out, <$t>::sqrt),
            UnaryOp::Reciprocal => map1($x, $out, |x| 1.0 / x),
            UnaryOp::Floor => map1($x, $out, <$t>::floor),
            UnaryOp::Ceil => map1($x, $out, <$t>::ceil),
            UnaryOp::Round => map1($x, $out, <$t>::round_ties_even),
            UnaryOp::Sin => map1($x, $out, <$t>::sin),
            UnaryOp::Cos => map1($x, $out, <$t>::cos),
            UnaryOp::Tan => map1($x, $out, <$t>::tan),
            UnaryOp::Asin => map1($x, $out, <$t>::asin),
            UnaryOp::Acos => map1($x, $out, <$t>::acos),
            UnaryOp::Atan => map1($x, $out, <$t>::atan),
            UnaryOp::Sinh => map1($x, $out, <$t>::sinh),
            UnaryOp::Cosh => map1($x, $out, <$t>::cosh),
            UnaryOp::Not => map1($x, $out, |x| 1.0 - x),
            UnaryOp::IsNan => map1($x, $out, |x| if x.is_nan() { 1.0 } else { 0.0 }),
            UnaryOp::IsInf => map1($x, $out, |x| if x.is_infinite() { 1.0 } else { 0.0 }),
            // A NaN is not below 0.
            UnaryOp::Relu => map1($x, $out, |x| if x < 0.0 { 0.0 } else { x }),
            UnaryOp::LeakyRelu { alpha } => {
                map1($x, $out, |x| if x > 0.0 { x } else { x * alpha as $t });
            }
            UnaryOp::HardSigmoid { alpha, beta } => {
                let (alpha, beta) = (alpha as $t, beta as $t);
                map1($x, $out, |x| clamp01(x * alpha + beta));
            }
            UnaryOp::HardSwish => map1($x, $out, |x| x * clamp01(x * (1.0 / 6.0) + 0.5)),
            UnaryOp::Softsign => map1($x, $out, |x| x / (1.0 + x.abs())),
            $($rest)*
        }
    };
}

macro_rules! float_binary {
    ($t:ty, $op:expr, $a:expr, $b:expr, $out:expr) => {{
        let truth = |y: bool| if y { 1.0 } else { 0.0 };
        match $op {
            BinaryOp::Add => map2($a, $b, $out, |a, b| a + b),
            BinaryOp::Sub => map2($a, $b, $out, |a, b| a - b),
            BinaryOp::Mul => map2($a, $b, $out, |a, b| a * b),
            BinaryOp::Div => map2($a, $b, $out, |a, b| a / b),
            BinaryOp::Pow => match $b {
                Side::Scalar(b) if b == 2.0 => map2($a, $b, $out, |a, _| a * a),
                Side::Scalar(b) if b == 1.0 => map2($a, $b, $out, |a, _| a),
                Side::Scalar(b) if b == -1.0 => map2($a, $b, $out, |a, _| 1.0 / a),
                _ => map2($a, $b, $out, <$t>::powf),
            },
            // The first wins if it is NaN, the second if only it is.
            BinaryOp::Max => map2($a, $b, $out, |a, b| if a > b || a.is_nan() { a } else { b }),
            BinaryOp::Min => map2($a, $b, $out, |a, b| if a < b || a.is_nan() { a } else { b }),
            BinaryOp::Mod => map2($a, $b, $out, |a, b| {
                let r = a % b;
                if r != 0.0 && (r < 0.0) != (b < 0.0) {
                    r + b
                } else {
                    r
                }
            }),
            BinaryOp::And => map2($a, $b, $out, |a, b| a * b),
            BinaryOp::Or => map2($a, $b, $out, |a, b| if a > b { a } else { b }),
            BinaryOp::Xor | BinaryOp::NotEqual => map2($a, $b, $out, |a, b| truth(a != b)),
            BinaryOp::Equal => map2($a, $b, $out, |a, b| truth(a == b)),
            BinaryOp::Less => map2($a, $b, $out, |a, b| truth(a < b)),
            BinaryOp::LessOrEqual => map2($a, $b, $out, |a, b| truth(a <= b)),
            BinaryOp::Greater => map2($a, $b, $out, |a, b| truth(a > b)),
            BinaryOp::GreaterOrEqual => map2($a, $b, $out, |a, b| truth(a >= b)),
            BinaryOp::PRelu => map2($a, $b, $out, |a, b| if a > 0.0 { a } else { a * b }),
            // The compiler of programs refuses what it does not know.
            _ => unreachable!("checked when compiled"),
        }
    }};
}

#[inline(always)]
fn clamp01<T: PartialOrd + From<u8>>(x: T) -> T {
    let (zero, one) = (T::from(0), T::from(1));
    if x < zero {
        zero
    } else if x > one {
        one
    } else {
        x
    }
}

/// The constants of Klambauer et al. 2017.
const SELU: (f64, f64) = (1.673_263_242_354_377_2, 1.050_700_987_355_480_5);

/// `sqrt(2 / pi)`, of the tanh form of GELU.
const GELU: f64 = 0.797_884_560_802_865_4;

#[inline(always)]
fn unary_f32<const FMA: bool>(op: UnaryOp, x: &[f32], out: &mut [f32]) {
    float_unary!(f32, op, x, out, {
        UnaryOp::Exp => map1(x, out, math::exp::<FMA>),
        UnaryOp::Log => map1(x, out, math::log::<FMA>),
        UnaryOp::Log1p => map1(x, out, math::log1p::<FMA>),
        UnaryOp::Expm1 => map1(x, out, math::expm1::<FMA>),
        UnaryOp::Erf => map1(x, out, math::erf::<FMA>),
        UnaryOp::Elu { alpha } => {
            let alpha = alpha as f32;
            map1(x, out, |x| if x > 0.0 { x } else { alpha * math::expm1::<FMA>(x) });
        }
        UnaryOp::Selu => {
            let (alpha, gamma) = ((SELU.0 * SELU.1) as f32, SELU.1 as f32);
            map1(x, out, |x| if x > 0.0 { gamma * x } else { alpha * math::expm1::<FMA>(x) });
        }
        UnaryOp::Sigmoid => map1(x, out, math::sigmoid::<FMA>),
        UnaryOp::Tanh => map1(x, out, math::tanh::<FMA>),
        UnaryOp::Gelu { tanh: false } => {
            let half = std::f32::consts::FRAC_1_SQRT_2;
            map1(x, out, |x| 0.5 * x * (1.0 + math::erf::<FMA>(x * half)));
        }
        UnaryOp::Gelu { tanh: true } => map1(x, out, |x| {
            let inner = GELU as f32 * (x + 0.044_715 * x * x * x);
            0.5 * x * (1.0 + math::tanh::<FMA>(inner))
        }),
        UnaryOp::Silu => map1(x, out, |x| x * math::sigmoid::<FMA>(x)),
        UnaryOp::Mish => map1(x, out, math::mish::<FMA>),
        UnaryOp::Softplus => map1(x, out, math::softplus::<FMA>),
        // The compiler of programs refuses what it does not know.
        _ => unreachable!("checked when compiled"),
    });
}

#[inline(always)]
fn binary_f32(op: BinaryOp, a: Side<'_, f32>, b: Side<'_, f32>, out: &mut [f32]) {
    float_binary!(f32, op, a, b, out);
}

/// Defines a function once for each instruction set, and one that calls the right one. The body
/// is inlined into each, so that its loops are compiled with that set's vectors.
macro_rules! by_isa {
    ($(#[$doc:meta])* $vis:vis fn $name:ident($($arg:ident: $t:ty),*) $(-> $ret:ty)? = |$fma:ident| $body:expr) => {
        $(#[$doc])*
        #[allow(unsafe_code)]
        $vis fn $name($($arg: $t),*) $(-> $ret)? {
            #[cfg(target_arch = "x86_64")]
            #[target_feature(enable = "avx512f,avx512dq,avx512bw,avx512vl,avx2,fma")]
            fn avx512($($arg: $t),*) $(-> $ret)? {
                const $fma: bool = true;
                $body
            }
            #[cfg(target_arch = "x86_64")]
            #[target_feature(enable = "avx2,fma")]
            fn avx2($($arg: $t),*) $(-> $ret)? {
                const $fma: bool = true;
                $body
            }
            fn portable($($arg: $t),*) $(-> $ret)? {
                const $fma: bool = cfg!(target_arch = "aarch64");
                $body
            }
            match $crate::kernels::tile::Isa::get() {
                // SAFETY: `Isa::get` has found these features.
                #[cfg(target_arch = "x86_64")]
                $crate::kernels::tile::Isa::Avx512 => unsafe { avx512($($arg),*) },
                // SAFETY: as above.
                #[cfg(target_arch = "x86_64")]
                $crate::kernels::tile::Isa::Avx2 => unsafe { avx2($($arg),*) },
                $crate::kernels::tile::Isa::Portable => portable($($arg),*),
            }
        }
    };
}
pub(super) use by_isa;

by_isa! {
    fn unary_any(op: UnaryOp, x: &[f32], out: &mut [f32]) = |FMA| unary_f32::<FMA>(op, x, out)
}

by_isa! {
    fn binary_any(op: BinaryOp, a: Side<'_, f32>, b: Side<'_, f32>, out: &mut [f32]) = |_FMA| binary_f32(op, a, b, out)
}

by_isa! {
    fn product_any(
        kind: Product, a: &[f32], b: Side<'_, f32>, c: Side<'_, f32>, out: &mut [f32]
    ) = |_FMA| match kind {
        Product::Plus => map3(a, b, c, out, |a, b, c| a * b + c),
        Product::Minus => map3(a, b, c, out, |a, b, c| a * b - c),
        Product::From => map3(a, b, c, out, |a, b, c| c - a * b),
    }
}

by_isa! {
    fn select_any(
        c: &[f32], a: Side<'_, f32>, b: Side<'_, f32>, out: &mut [f32]
    ) = |_FMA| choose(c, a, b, out)
}

impl Lane for f32 {
    conversions!(f32);

    fn product(kind: Product, a: &[f32], b: Side<'_, f32>, c: Side<'_, f32>, out: &mut [f32]) {
        product_any(kind, a, b, c, out);
    }

    fn select(c: &[f32], a: Side<'_, f32>, b: Side<'_, f32>, out: &mut [f32]) {
        select_any(c, a, b, out);
    }

    fn unary(op: UnaryOp, x: &[f32], out: &mut [f32]) {
        #[cfg(target_arch = "x86_64")]
        if divide::has() {
            match op {
                UnaryOp::Sqrt => return divide::roots(x, out),
                UnaryOp::Reciprocal => {
                    return divide::quotients(Side::Scalar(1.0), Side::Slice(x), out);
                }
                _ => {}
            }
        }
        unary_any(op, x, out);
    }

    fn binary(op: BinaryOp, a: Side<'_, f32>, b: Side<'_, f32>, out: &mut [f32]) {
        #[cfg(target_arch = "x86_64")]
        if op == BinaryOp::Div && divide::has() {
            return divide::quotients(a, b, out);
        }
        binary_any(op, a, b, out);
    }
}

impl Lane for f64 {
    conversions!(f64);

    fn unary(op: UnaryOp, x: &[f64], out: &mut [f64]) {
        let sigmoid = |x: f64| 1.0 / (1.0 + (-x).exp());
        let softplus = |x: f64| x.max(0.0) + (-x.abs()).exp().ln_1p();
        float_unary!(f64, op, x, out, {
            UnaryOp::Exp => map1(x, out, f64::exp),
            UnaryOp::Log => map1(x, out, f64::ln),
            UnaryOp::Log1p => map1(x, out, f64::ln_1p),
            UnaryOp::Expm1 => map1(x, out, f64::exp_m1),
            UnaryOp::Erf => map1(x, out, math::erf64),
            UnaryOp::Elu { alpha } => {
                map1(x, out, |x| if x > 0.0 { x } else { alpha * x.exp_m1() });
            }
            UnaryOp::Selu => map1(x, out, |x| {
                SELU.1 * if x > 0.0 { x } else { SELU.0 * x.exp_m1() }
            }),
            UnaryOp::Sigmoid => map1(x, out, sigmoid),
            UnaryOp::Tanh => map1(x, out, f64::tanh),
            UnaryOp::Gelu { tanh: false } => map1(x, out, |x| {
                0.5 * x * (1.0 + math::erf64(x * std::f64::consts::FRAC_1_SQRT_2))
            }),
            UnaryOp::Gelu { tanh: true } => map1(x, out, |x| {
                0.5 * x * (1.0 + (GELU * (x + 0.044_715 * x * x * x)).tanh())
            }),
            UnaryOp::Silu => map1(x, out, |x| x * sigmoid(x)),
            UnaryOp::Mish => map1(x, out, |x| x * softplus(x).tanh()),
            UnaryOp::Softplus => map1(x, out, softplus),
            // The compiler of programs refuses what it does not know.
            _ => unreachable!("checked when compiled"),
        });
    }

    fn binary(op: BinaryOp, a: Side<'_, f64>, b: Side<'_, f64>, out: &mut [f64]) {
        float_binary!(f64, op, a, b, out);
    }
}

impl Lane for i64 {
    conversions!(i64);

    fn unary(op: UnaryOp, x: &[i64], out: &mut [i64]) {
        match op {
            UnaryOp::Neg => map1(x, out, i64::wrapping_neg),
            UnaryOp::Abs => map1(x, out, i64::wrapping_abs),
            UnaryOp::Sign => map1(x, out, i64::signum),
            UnaryOp::Not => map1(x, out, |x| 1 - x),
            UnaryOp::Relu => map1(x, out, |x| x.max(0)),
            // The compiler of programs refuses the others on integers.
            _ => unreachable!("checked when compiled"),
        }
    }

    fn binary(op: BinaryOp, a: Side<'_, i64>, b: Side<'_, i64>, out: &mut [i64]) {
        match op {
            BinaryOp::Add => map2(a, b, out, i64::wrapping_add),
            BinaryOp::Sub => map2(a, b, out, i64::wrapping_sub),
            BinaryOp::Mul => map2(a, b, out, i64::wrapping_mul),
            BinaryOp::Div => map2(a, b, out, |a, b| if b == 0 { 0 } else { a.wrapping_div(b) }),
            BinaryOp::Pow => map2(a, b, out, integer_power),
            BinaryOp::Max => map2(a, b, out, i64::max),
            BinaryOp::Min => map2(a, b, out, i64::min),
            BinaryOp::Mod => map2(a, b, out, |a, b| {
                let r = if b == 0 { 0 } else { a.wrapping_rem(b) };
                if r != 0 && (r < 0) != (b < 0) {
                    r + b
                } else {
                    r
                }
            }),
            BinaryOp::And => map2(a, b, out, |a, b| a & b),
            BinaryOp::Or => map2(a, b, out, |a, b| a | b),
            BinaryOp::Xor => map2(a, b, out, |a, b| a ^ b),
            BinaryOp::Equal => map2(a, b, out, |a, b| i64::from(a == b)),
            BinaryOp::NotEqual => map2(a, b, out, |a, b| i64::from(a != b)),
            BinaryOp::Less => map2(a, b, out, |a, b| i64::from(a < b)),
            BinaryOp::LessOrEqual => map2(a, b, out, |a, b| i64::from(a <= b)),
            BinaryOp::Greater => map2(a, b, out, |a, b| i64::from(a > b)),
            BinaryOp::GreaterOrEqual => map2(a, b, out, |a, b| i64::from(a >= b)),
            BinaryOp::PRelu => {
                map2(a, b, out, |a, b| if a > 0 { a } else { a.wrapping_mul(b) });
            }
            // The compiler of programs refuses what it does not know.
            _ => unreachable!("checked when compiled"),
        }
    }
}

/// `a^b`, wrapping around; a negative power of anything but 1 and -1 rounds to 0.
fn integer_power(a: i64, b: i64) -> i64 {
    match (a, b) {
        (_, 0..) => a.wrapping_pow(u32::try_from(b).unwrap_or(u32::MAX)),
        (1, _) => 1,
        (-1, _) => 1 - 2 * (b & 1),
        _ => 0,
    }
}
