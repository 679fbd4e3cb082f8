//! Quotients and square roots of `f32` by multiplication, sixteen at once.
//!
//! The processor's own division and root take 16 to 20 cycles for a vector of sixteen, one after
//! the other; half of that is enough for an estimate of 14 bits, Newton's step, and a last step
//! with the exact remainder, after which the result is the correctly rounded one (Markstein 1990,
//! Computation of elementary functions on the IBM RISC System/6000 processor). That holds while
//! nothing in between overflows or loses bits near 0: other lanes take the processor's own.

#![expect(unsafe_code, reason = "vector intrinsics over raw pointers")]

use std::arch::x86_64::*;

use super::lanes::Side;
use super::tile::Isa;

/// Whether the processor has what these functions need.
pub(super) fn has() -> bool {
    Isa::get() == Isa::Avx512
}

/// `a / b`, entry by entry.
pub(super) fn quotients(a: Side<'_, f32>, b: Side<'_, f32>, out: &mut [f32]) {
    assert!(has());
    for side in [a, b] {
        if let Side::Slice(x) = side {
            assert!(x.len() >= out.len());
        }
    }
    // SAFETY: `Isa::get` has found the features; slices are long enough.
    unsafe { quotients_of(a, b, out) }
}

/// The square root of each entry.
pub(super) fn roots(x: &[f32], out: &mut [f32]) {
    assert!(has() && x.len() >= out.len());
    // SAFETY: as above.
    unsafe { roots_of(x, out) }
}

/// The first `n` of 16 lanes; all if there are more.
fn lanes(n: usize) -> __mmask16 {
    if n >= 16 { !0 } else { (1 << n) - 1 }
}

/// The lanes of absolute values from `2^low` to below `2^(high + 1)`.
#[target_feature(enable = "avx512f")]
fn within(x: __m512, low: i32, high: i32) -> __mmask16 {
    let magnitude = _mm512_slli_epi32::<1>(_mm512_castps_si512(x));
    let above = _mm512_sub_epi32(magnitude, _mm512_set1_epi32((low + 127) << 24));
    _mm512_cmplt_epu32_mask(above, _mm512_set1_epi32((high + 1 - low) << 24))
}

/// Sixteen entries of an operand, as many as `mask` has.
///
/// # Safety
/// A slice has them.
#[target_feature(enable = "avx512f")]
unsafe fn load(side: Side<'_, f32>, at: usize, mask: __mmask16) -> __m512 {
    match side {
        // SAFETY: masked lanes are not read; the others are there as the caller vouches.
        Side::Slice(x) => unsafe { _mm512_maskz_loadu_ps(mask, x.as_ptr().add(at)) },
        Side::Scalar(x) => _mm512_set1_ps(x),
    }
}

/// # Safety
/// Slices are as long as `out` at least.
#[target_feature(enable = "avx512f")]
unsafe fn quotients_of(a: Side<'_, f32>, b: Side<'_, f32>, out: &mut [f32]) {
    let one = _mm512_set1_ps(1.0);
    for at in (0..out.len()).step_by(16) {
        let mask = lanes(out.len() - at);
        // SAFETY: entry `at` and as many more as `mask` has are there.
        let (a, b) = unsafe { (load(a, at, mask), load(b, at, mask)) };
        let zero = _mm512_cmp_ps_mask::<_CMP_EQ_OQ>(a, _mm512_setzero_ps());
        // The remainder's last bit is 2^-48 of `a`, and the quotient is no subnormal.
        let safe = (within(a, -75, 80) | zero) & within(b, -45, 45);
        let y = _mm512_rcp14_ps(b);
        let y = _mm512_fmadd_ps(_mm512_fnmadd_ps(b, y, one), y, y);
        let y = _mm512_fmadd_ps(_mm512_fnmadd_ps(b, y, one), y, y);
        let q = _mm512_mul_ps(a, y);
        let exact = _mm512_fmadd_ps(_mm512_fnmadd_ps(b, q, a), y, q);
        // The last step would lose the sign of a zero.
        let mut result = _mm512_mask_mov_ps(exact, zero, q);
        if !safe & mask != 0 {
            result = _mm512_mask_div_ps(result, !safe, a, b);
        }
        // SAFETY: masked lanes are not written; the others are there.
        unsafe { _mm512_mask_storeu_ps(out.as_mut_ptr().add(at), mask, result) };
    }
}

#[target_feature(enable = "avx512f")]
fn roots_of(x: &[f32], out: &mut [f32]) {
    let half = _mm512_set1_ps(0.5);
    for at in (0..out.len()).step_by(16) {
        let mask = lanes(out.len() - at);
        // SAFETY: entry `at` and as many more as `mask` has are there: `roots` compares lengths.
        let x = unsafe { _mm512_maskz_loadu_ps(mask, x.as_ptr().add(at)) };
        let zero = _mm512_cmp_ps_mask::<_CMP_EQ_OQ>(x, _mm512_setzero_ps());
        let negative = signs(x);
        let safe = (within(x, -75, 100) & !negative) | zero;
        // The root s and half its inverse h, by Goldschmidt's steps.
        let y = _mm512_rsqrt14_ps(x);
        let (s, h) = (_mm512_mul_ps(x, y), _mm512_mul_ps(half, y));
        let e = _mm512_fnmadd_ps(s, h, half);
        let (s, h) = (_mm512_fmadd_ps(s, e, s), _mm512_fmadd_ps(h, e, h));
        let exact = _mm512_fmadd_ps(_mm512_fnmadd_ps(s, s, x), h, s);
        let mut result = _mm512_mask_mov_ps(exact, zero, x);
        if !safe & mask != 0 {
            result = _mm512_mask_sqrt_ps(result, !safe, x);
        }
        // SAFETY: masked lanes are not written; the others are there.
        unsafe { _mm512_mask_storeu_ps(out.as_mut_ptr().add(at), mask, result) };
    }
}

/// The lanes whose sign is set.
#[target_feature(enable = "avx512f")]
fn signs(x: __m512) -> __mmask16 {
    _mm512_cmplt_epi32_mask(_mm512_castps_si512(x), _mm512_setzero_si512())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn same(found: f32, expected: f32) -> bool {
        found.to_bits() == expected.to_bits() || (found.is_nan() && expected.is_nan())
    }

    fn check(a: &[f32], b: &[f32]) {
        if !has() {
            return;
        }
        let mut out = vec![7.0; a.len()];
        quotients(Side::Slice(a), Side::Slice(b), &mut out);
        for ((&a, &b), &q) in a.iter().zip(b).zip(&out) {
            assert!(same(q, a / b), "{a:e} / {b:e}: {q:e}, not {:e}", a / b);
        }
        quotients(Side::Slice(a), Side::Scalar(b[0]), &mut out);
        for (&a, &q) in a.iter().zip(&out) {
            assert!(same(q, a / b[0]), "{a:e} / {:e}: {q:e}", b[0]);
        }
        quotients(Side::Scalar(a[0]), Side::Slice(b), &mut out);
        for (&b, &q) in b.iter().zip(&out) {
            assert!(same(q, a[0] / b), "{:e} / {b:e}: {q:e}", a[0]);
        }
        roots(a, &mut out);
        for (&a, &s) in a.iter().zip(&out) {
            assert!(
                same(s, a.sqrt()),
                "root of {a:e}: {s:e}, not {:e}",
                a.sqrt()
            );
        }
    }

    #[test]
    fn results_are_rounded_as_the_processor_does() {
        // All sorts of mantissas and of exponents, also next to powers of two.
        let edges = [0.0, -0.0, 1.0, f32::INFINITY, f32::NEG_INFINITY, f32::NAN];
        let mut numbers: Vec<f32> = edges.to_vec();
        let mut state = 1u32;
        for i in 0..200_000u32 {
            state = state
                .wrapping_mul(0x9e37_79b9)
                .wrapping_add(i ^ 0x7f4a_7c15);
            let mixed = state ^ (state >> 15);
            numbers.push(f32::from_bits(mixed));
            let mantissa = [mixed & 0x7f_ffff, mixed & 0xff, (!mixed & 0xff) ^ 0x7f_ffff];
            let exponent = 87 + (mixed >> 24) % 80;
            numbers.push(f32::from_bits((exponent << 23) | mantissa[i as usize % 3]));
        }
        let shifted: Vec<f32> = numbers[12_345..]
            .iter()
            .chain(&numbers[..12_345])
            .copied()
            .collect();
        check(&numbers, &shifted);
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(200))]

        #[test]
        fn any_length_and_any_bits(
            pairs in prop::collection::vec((any::<u32>(), any::<u32>()), 1..40),
        ) {
            let (a, b): (Vec<f32>, Vec<f32>) = pairs
                .into_iter()
                .map(|(a, b)| (f32::from_bits(a), f32::from_bits(b)))
                .unzip();
            check(&a, &b);
        }
    }
}
