//! Elementary functions in `f32` without branches, so that loops over them become vector code.
//!
//! Each is within a few units in the last place of the exact value. `FMA` says whether the
//! caller's instruction set has fused multiply-add: without it `mul_add` would be a call.

#[inline(always)]
fn fma<const FMA: bool>(a: f32, b: f32, c: f32) -> f32 {
    if FMA { a.mul_add(b, c) } else { a * b + c }
}

/// Horner's scheme, the highest coefficient first.
#[inline(always)]
fn poly<const FMA: bool, const N: usize>(x: f32, c: [f32; N]) -> f32 {
    let mut y = c[0];
    let mut i = 1;
    while i < N {
        y = fma::<FMA>(y, x, c[i]);
        i += 1;
    }
    y
}

/// Added to a number of moderate size, it leaves the nearest integer in the low bits.
const MAGIC: f32 = 12_582_912.0;

/// `x = n ln 2 + r` with `|r| <= ln(2) / 2`; returns `e^r - 1` and `n` (Cephes).
#[inline(always)]
fn exp_parts<const FMA: bool>(x: f32) -> (f32, i32) {
    let shifted = fma::<FMA>(x, std::f32::consts::LOG2_E, MAGIC);
    let n = shifted - MAGIC;
    let r = fma::<FMA>(n, 2.121_944_4e-4, fma::<FMA>(n, -0.693_359_4, x));
    let p = poly::<FMA, 6>(
        r,
        [
            1.987_569_1e-4,
            1.398_199_9e-3,
            8.333_452e-3,
            4.166_579_6e-2,
            1.666_666_5e-1,
            0.5,
        ],
    );
    let n = shifted.to_bits().wrapping_sub(MAGIC.to_bits()) as i32;
    (fma::<FMA>(p, r * r, r), n)
}

/// `2^n` for n within -252..=254, as two factors, since one would overflow.
#[inline(always)]
fn exp2_parts(n: i32) -> (f32, f32) {
    let half = n >> 1;
    let power = |n: i32| f32::from_bits((n.wrapping_add(127) as u32) << 23);
    (power(half), power(n.wrapping_sub(half)))
}

/// `e^x`
#[inline(always)]
pub(super) fn exp<const FMA: bool>(x: f32) -> f32 {
    // NaN falls through both bounds.
    let bounded = if x > 89.0 { 89.0 } else { x };
    let bounded = if bounded < -104.0 { -104.0 } else { bounded };
    let (p, n) = exp_parts::<FMA>(bounded);
    let (a, b) = exp2_parts(n);
    (p + 1.0) * a * b
}

/// `e^x - 1`
#[inline(always)]
pub(super) fn expm1<const FMA: bool>(x: f32) -> f32 {
    let bounded = if x > 89.0 { 89.0 } else { x };
    let bounded = if bounded < -104.0 { -104.0 } else { bounded };
    let (p, n) = exp_parts::<FMA>(bounded);
    let (a, b) = exp2_parts(n);
    // Up to n = 64 the `- 1` counts and 2^n fits one factor; above, it does not count.
    let y = if n > 64 {
        (p + 1.0) * a * b
    } else {
        fma::<FMA>(p, a * b, a * b - 1.0)
    };
    // Keeps the sign of a zero.
    if x == 0.0 { x } else { y }
}

/// The natural logarithm (Cephes).
#[inline(always)]
pub(super) fn log<const FMA: bool>(x: f32) -> f32 {
    let tiny = x < f32::MIN_POSITIVE;
    let scaled = if tiny { x * 8_388_608.0 } else { x };
    let bits = scaled.to_bits();
    // The mantissa in [sqrt(1/2), sqrt(2)).
    let offset = bits.wrapping_sub(0x3f35_04f3);
    let e = (offset as i32 >> 23) as f32 - if tiny { 23.0 } else { 0.0 };
    let m = f32::from_bits((offset & 0x007f_ffff).wrapping_add(0x3f35_04f3));
    let f = m - 1.0;
    let p = poly::<FMA, 9>(
        f,
        [
            7.037_683_6e-2,
            -1.151_461e-1,
            1.167_699_9e-1,
            -1.242_014_1e-1,
            1.424_932_3e-1,
            -1.666_805_8e-1,
            2.000_071_5e-1,
            -2.499_999_4e-1,
            3.333_333e-1,
        ],
    );
    let z = f * f;
    let y = fma::<FMA>(e, -2.121_944_4e-4, p * f * z);
    let y = fma::<FMA>(-0.5, z, y);
    let y = fma::<FMA>(e, 0.693_359_4, f + y);
    let y = if x == f32::INFINITY { x } else { y };
    let y = if x == 0.0 { f32::NEG_INFINITY } else { y };
    if x < 0.0 || x.is_nan() { f32::NAN } else { y }
}

/// `ln(1 + x)`
#[inline(always)]
pub(super) fn log1p<const FMA: bool>(x: f32) -> f32 {
    let u = 1.0 + x;
    // Corrects for what `1 + x` lost (Kahan).
    let y = log::<FMA>(u) * (x / (u - 1.0));
    let y = if u == f32::INFINITY { u } else { y };
    let y = if u == 0.0 { f32::NEG_INFINITY } else { y };
    if u == 1.0 { x } else { y }
}

/// The hyperbolic tangent, by a rational function.
#[inline(always)]
pub(super) fn tanh<const FMA: bool>(x: f32) -> f32 {
    let c = if x > 7.905_311 { 7.905_311 } else { x };
    let c = if c < -7.905_311 { -7.905_311 } else { c };
    let z = c * c;
    let p = poly::<FMA, 7>(
        z,
        [
            -2.760_768_5e-16,
            2.000_188e-13,
            -8.604_672e-11,
            5.122_297e-8,
            1.485_722_4e-5,
            6.372_619e-4,
            4.893_524_6e-3,
        ],
    );
    let q = poly::<FMA, 4>(
        z,
        [1.198_258_4e-6, 1.185_347_1e-4, 2.268_434_6e-3, 4.893_525e-3],
    );
    let y = c * p / q;
    // The rational function ends a few units short of 1.
    let y = if x >= 9.02 { 1.0 } else { y };
    let y = if x <= -9.02 { -1.0 } else { y };
    if x.abs() < 4e-4 { x } else { y }
}

/// The error function, by a rational function.
#[inline(always)]
pub(super) fn erf<const FMA: bool>(x: f32) -> f32 {
    let c = if x > 4.0 { 4.0 } else { x };
    let c = if c < -4.0 { -4.0 } else { c };
    let z = c * c;
    let p = poly::<FMA, 7>(
        z,
        [
            -2.726_142_3e-10,
            2.770_681_4e-8,
            -2.101_024e-6,
            -5.692_506_4e-5,
            -7.349_906_3e-4,
            -2.954_6e-3,
            -1.609_603_3e-2,
        ],
    );
    let q = poly::<FMA, 5>(
        z,
        [
            -1.456_607_2e-5,
            -2.133_740_5e-4,
            -1.682_827e-3,
            -7.373_329e-3,
            -1.426_473_9e-2,
        ],
    );
    // From 4 on the nearest number is 1.
    if x.abs() >= 4.0 {
        1f32.copysign(x)
    } else {
        c * p / q
    }
}

/// `1 / (1 + e^-x)`
#[inline(always)]
pub(super) fn sigmoid<const FMA: bool>(x: f32) -> f32 {
    1.0 / (1.0 + exp::<FMA>(-x))
}

/// `ln(1 + e^x)`
#[inline(always)]
pub(super) fn softplus<const FMA: bool>(x: f32) -> f32 {
    let y = log1p::<FMA>(exp::<FMA>(-x.abs()));
    if x > 0.0 { x + y } else { y }
}

/// `x tanh(ln(1 + e^x))`
#[inline(always)]
pub(super) fn mish<const FMA: bool>(x: f32) -> f32 {
    // tanh(ln(1 + e)) = e (e + 2) / (e (e + 2) + 2)
    let e = exp::<FMA>(if x > 20.0 { 20.0 } else { x });
    let w = e * (e + 2.0);
    let y = x * (w / (w + 2.0));
    if x > 20.0 { x } else { y }
}

/// The error function in `f64`, to full precision.
pub(super) fn erf64(x: f64) -> f64 {
    let a = x.abs();
    let scale = 2.0 / std::f64::consts::PI.sqrt();
    let y = if a.is_nan() {
        return x;
    } else if a < 2.5 {
        // e^(-x^2) sum 2^n x^(2n+1) / (2n+1)!!: all terms have one sign.
        let (mut term, mut sum, mut n) = (a, a, 1.0);
        while term > sum * 1e-17 {
            term *= 2.0 * a * a / (2.0 * n + 1.0);
            sum += term;
            n += 1.0;
        }
        scale * (-a * a).exp() * sum
    } else if a < 6.0 {
        // erfc by its continued fraction, from the innermost term.
        let mut f = a;
        for n in (1..=80).rev() {
            f = a + f64::from(n) / 2.0 / f;
        }
        1.0 - (-a * a).exp() / (f * std::f64::consts::PI.sqrt())
    } else {
        1.0
    };
    y.copysign(x)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(
        name: &str,
        range: (f64, f64),
        f: fn(f32) -> f32,
        exact: fn(f64) -> f64,
        tolerance: f64,
    ) {
        for i in 0..=20_000 {
            let x = (range.0 + (range.1 - range.0) * f64::from(i) / 20_000.0) as f32;
            let (found, want) = (f64::from(f(x)), exact(f64::from(x)));
            let error = (found - want).abs() / want.abs().max(1e-30);
            assert!(
                error <= tolerance,
                "{name}({x}) = {found}, exact {want}, relative {error:e}"
            );
        }
    }

    #[test]
    fn functions_are_exact_to_a_few_units() {
        check("exp", (-87.0, 88.7), exp::<true>, f64::exp, 3e-7);
        check(
            "exp without fma",
            (-87.0, 88.7),
            exp::<false>,
            f64::exp,
            3e-7,
        );
        check("expm1", (-20.0, 88.7), expm1::<true>, f64::exp_m1, 4e-7);
        check("expm1", (-1e-3, 1e-3), expm1::<true>, f64::exp_m1, 4e-7);
        check("log", (1e-30, 4.0), log::<true>, f64::ln, 3e-7);
        check("log", (0.5, 3e38), log::<true>, f64::ln, 3e-7);
        check("log1p", (-0.9, 1e6), log1p::<true>, f64::ln_1p, 6e-7);
        check("log1p", (-1e-3, 1e-3), log1p::<true>, f64::ln_1p, 6e-7);
        check("tanh", (-12.0, 12.0), tanh::<true>, f64::tanh, 4e-7);
        check("tanh", (-0.01, 0.01), tanh::<true>, f64::tanh, 4e-7);
        check("erf", (-6.0, 6.0), erf::<true>, erf64, 6e-7);
        check(
            "sigmoid",
            (-80.0, 80.0),
            sigmoid::<true>,
            |x| 1.0 / (1.0 + (-x).exp()),
            5e-7,
        );
        check(
            "softplus",
            (-80.0, 80.0),
            softplus::<true>,
            |x| x.max(0.0) + (-x.abs()).exp().ln_1p(),
            6e-7,
        );
        check(
            "mish",
            (-30.0, 30.0),
            mish::<true>,
            |x| x * x.exp().ln_1p().tanh(),
            1e-6,
        );
    }

    #[test]
    fn special_values() {
        let (inf, nan) = (f32::INFINITY, f32::NAN);
        assert_eq!(exp::<true>(inf), inf);
        assert_eq!(exp::<true>(-inf), 0.0);
        assert_eq!(exp::<true>(0.0), 1.0);
        assert_eq!(expm1::<true>(-inf), -1.0);
        assert_eq!(expm1::<true>(inf), inf);
        assert_eq!(log::<true>(0.0), -inf);
        assert_eq!(log::<true>(inf), inf);
        assert_eq!(log::<true>(1.0), 0.0);
        assert!((log::<true>(1e-40) - 1e-40f32.ln()).abs() < 1e-4);
        assert!(log::<true>(-1.0).is_nan());
        assert_eq!(log1p::<true>(-1.0), -inf);
        assert_eq!(log1p::<true>(inf), inf);
        assert_eq!(tanh::<true>(inf), 1.0);
        assert_eq!(tanh::<true>(-inf), -1.0);
        assert_eq!(erf::<true>(inf), 1.0);
        assert_eq!(softplus::<true>(inf), inf);
        assert_eq!(softplus::<true>(-inf), 0.0);
        assert_eq!(sigmoid::<true>(-inf), 0.0);
        for f in [
            exp::<true>,
            expm1::<true>,
            log::<true>,
            log1p::<true>,
            tanh::<true>,
            erf::<true>,
            sigmoid::<true>,
            softplus::<true>,
            mish::<true>,
        ] {
            assert!(f(nan).is_nan());
        }
    }

    #[test]
    fn the_error_function_has_published_values() {
        for (x, y) in [
            (0.5, 0.520_499_877_813_046_5),
            (1.0, 0.842_700_792_949_714_9),
            (2.0, 0.995_322_265_018_952_7),
            (3.0, 0.999_977_909_503_001_4),
        ] {
            assert!((erf64(x) - y).abs() < 1e-15, "erf({x}) = {}", erf64(x));
            assert_eq!(erf64(-x), -erf64(x));
        }
    }
}
