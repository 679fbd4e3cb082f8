//! Max pooling by windows of 2 x 2 that tile the image: the common case.

use half::{bf16, f16};
use opt_core::Element;

use super::{Geometry, beats};

/// How the rows of an image and of its maxima lie.
#[derive(Debug, Clone, Copy)]
pub(super) struct Halving {
    /// Rows and columns of a plane of the input.
    input: (usize, usize),
    /// Rows and columns of a plane of the maxima: half as many, rounded down.
    output: (usize, usize),
}

impl Halving {
    /// What a geometry is if it halves the last two axes.
    pub(super) fn new(g: &Geometry) -> Option<Halving> {
        let halves = g.kernel == [1, 2, 2]
            && g.stride == [1, 2, 2]
            && g.pad == [0; 3]
            && g.dilation == [1; 3]
            && g.output[1] * 2 <= g.input[1]
            && g.output[2] * 2 <= g.input[2];
        halves.then_some(Halving {
            input: (g.input[1], g.input[2]),
            output: (g.output[1], g.output[2]),
        })
    }

    /// Where the two input rows of an output row start.
    fn rows(self, row: usize) -> (usize, usize) {
        let plane = row / self.output.0 * self.input.0;
        let top = (plane + row % self.output.0 * 2) * self.input.1;
        (top, top + self.input.1)
    }

    /// Whether every input entry is in a window.
    fn covers(self) -> bool {
        self.output.0 * 2 == self.input.0 && self.output.1 * 2 == self.input.1
    }
}

/// An element type with the maxima of windows and their gradient, for images of whole planes.
pub(super) trait Halve: Element + PartialOrd {
    /// The largest entry of each window.
    fn maxima(how: Halving, x: &[Self], y: &mut [Self]) {
        portable_maxima(how, x, y);
    }

    /// Writes each entry of `g` to where the maximum of its window is, and 0 elsewhere.
    fn gradient(how: Halving, x: &[Self], g: &[Self], dx: &mut [Self]) {
        portable_gradient(how, x, g, dx);
    }
}

macro_rules! halve {
    ($($t:ty),*) => {$( impl Halve for $t {} )*};
}
halve!(f64, f16, bf16, i8, u8, i32);

impl Halve for f32 {
    fn maxima(how: Halving, x: &[f32], y: &mut [f32]) {
        #[cfg(target_arch = "x86_64")]
        if avx512::has() {
            return avx512::maxima(how, x, y);
        }
        portable_maxima(how, x, y);
    }

    fn gradient(how: Halving, x: &[f32], g: &[f32], dx: &mut [f32]) {
        #[cfg(target_arch = "x86_64")]
        if avx512::has() {
            return avx512::gradient(how, x, g, dx);
        }
        portable_gradient(how, x, g, dx);
    }
}

fn portable_maxima<T: Copy + PartialOrd>(how: Halving, x: &[T], y: &mut [T]) {
    let out = how.output.1;
    for (row, y) in y.chunks_exact_mut(out.max(1)).enumerate() {
        let (top, bottom) = how.rows(row);
        let (top, bottom) = (&x[top..top + 2 * out], &x[bottom..bottom + 2 * out]);
        for ((y, top), bottom) in y
            .iter_mut()
            .zip(top.chunks_exact(2))
            .zip(bottom.chunks_exact(2))
        {
            let mut best = top[0];
            for v in [top[1], bottom[0], bottom[1]] {
                best = if beats(v, best) { v } else { best };
            }
            *y = best;
        }
    }
}

fn portable_gradient<T: Element + PartialOrd>(how: Halving, x: &[T], g: &[T], dx: &mut [T]) {
    let zero = T::from_f64(0.0);
    if !how.covers() {
        dx.fill(zero);
    }
    let (width, out) = (how.input.1, how.output.1);
    for (row, g) in g.chunks_exact(out.max(1)).enumerate() {
        let (top, bottom) = how.rows(row);
        let (up, down) = dx[top..bottom + 2 * out].split_at_mut(width);
        let (top, bottom) = (&x[top..top + 2 * out], &x[bottom..bottom + 2 * out]);
        for (i, &g) in g.iter().enumerate() {
            let (mut best, mut which) = (top[2 * i], 0);
            let others = [top[2 * i + 1], bottom[2 * i], bottom[2 * i + 1]];
            for (j, v) in others.into_iter().enumerate() {
                if beats(v, best) {
                    (best, which) = (v, j + 1);
                }
            }
            let of = |j: usize| if which == j { g } else { zero };
            (up[2 * i], up[2 * i + 1]) = (of(0), of(1));
            (down[2 * i], down[2 * i + 1]) = (of(2), of(3));
        }
    }
}

/// Sixteen windows at once.
#[cfg(target_arch = "x86_64")]
#[expect(unsafe_code, reason = "vector intrinsics over raw pointers")]
mod avx512 {
    use std::arch::x86_64::*;

    use super::Halving;
    use crate::kernels::tile::Isa;

    /// Whether the processor has these instructions.
    pub(super) fn has() -> bool {
        Isa::get() == Isa::Avx512
    }

    pub(super) fn maxima(how: Halving, x: &[f32], y: &mut [f32]) {
        assert!(has());
        // SAFETY: `Isa::get` has found the features.
        unsafe { maxima_rows(how, x, y) }
    }

    pub(super) fn gradient(how: Halving, x: &[f32], g: &[f32], dx: &mut [f32]) {
        assert!(has());
        // SAFETY: as above.
        unsafe { gradient_rows(how, x, g, dx) }
    }

    /// The first `n` of 16 lanes; all if there are more.
    fn lanes(n: usize) -> __mmask16 {
        if n >= 16 { !0 } else { (1 << n) - 1 }
    }

    /// Entries of even and of odd place among `2 n` at a pointer, `n` being 16 at most.
    ///
    /// # Safety
    /// As many entries can be read there.
    #[target_feature(enable = "avx512f")]
    unsafe fn split(at: *const f32, n: usize) -> (__m512, __m512) {
        let even = _mm512_setr_epi32(0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30);
        let odd = _mm512_add_epi32(even, _mm512_set1_epi32(1));
        // SAFETY: masked lanes are not read; the others are there as the caller vouches.
        let (low, high) = unsafe {
            (
                _mm512_maskz_loadu_ps(lanes(2 * n), at),
                _mm512_maskz_loadu_ps(lanes((2 * n).saturating_sub(16)), at.wrapping_add(16)),
            )
        };
        (
            _mm512_permutex2var_ps(low, even, high),
            _mm512_permutex2var_ps(low, odd, high),
        )
    }

    /// Writes `2 n` entries, from two vectors in turn.
    ///
    /// # Safety
    /// As many entries can be written there.
    #[target_feature(enable = "avx512f")]
    unsafe fn join(even: __m512, odd: __m512, at: *mut f32, n: usize) {
        let first = _mm512_setr_epi32(0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23);
        let second = _mm512_add_epi32(first, _mm512_set1_epi32(8));
        // SAFETY: masked lanes are not written; the others are there as the caller vouches.
        unsafe {
            let low = _mm512_permutex2var_ps(even, first, odd);
            _mm512_mask_storeu_ps(at, lanes(2 * n), low);
            let high = _mm512_permutex2var_ps(even, second, odd);
            let rest = lanes((2 * n).saturating_sub(16));
            _mm512_mask_storeu_ps(at.wrapping_add(16), rest, high);
        }
    }

    /// Where a maximum gives way: to a larger entry, and to NaN.
    #[target_feature(enable = "avx512f")]
    fn beats(new: __m512, old: __m512) -> __mmask16 {
        _mm512_cmp_ps_mask::<_CMP_GT_OQ>(new, old) | _mm512_cmp_ps_mask::<_CMP_UNORD_Q>(new, new)
    }

    #[target_feature(enable = "avx512f")]
    fn maxima_rows(how: Halving, x: &[f32], y: &mut [f32]) {
        let out = how.output.1;
        for (row, y) in y.chunks_exact_mut(out.max(1)).enumerate() {
            let (top, bottom) = how.rows(row);
            let (top, bottom) = (&x[top..top + 2 * out], &x[bottom..bottom + 2 * out]);
            for i in (0..out).step_by(16) {
                let n = (out - i).min(16);
                // SAFETY: entries `2 i..2 (i + n)` of both rows and `i..i + n` of `y` exist.
                unsafe {
                    let (a, b) = split(top.as_ptr().add(2 * i), n);
                    let (c, d) = split(bottom.as_ptr().add(2 * i), n);
                    let mut best = a;
                    for v in [b, c, d] {
                        best = _mm512_mask_mov_ps(best, beats(v, best), v);
                    }
                    _mm512_mask_storeu_ps(y.as_mut_ptr().add(i), lanes(n), best);
                }
            }
        }
    }

    #[target_feature(enable = "avx512f")]
    fn gradient_rows(how: Halving, x: &[f32], g: &[f32], dx: &mut [f32]) {
        if !how.covers() {
            dx.fill(0.0);
        }
        let (width, out) = (how.input.1, how.output.1);
        for (row, g) in g.chunks_exact(out.max(1)).enumerate() {
            let (top, bottom) = how.rows(row);
            let (up, down) = dx[top..bottom + 2 * out].split_at_mut(width);
            let (top, bottom) = (&x[top..top + 2 * out], &x[bottom..bottom + 2 * out]);
            for i in (0..out).step_by(16) {
                let n = (out - i).min(16);
                // SAFETY: entries `2 i..2 (i + n)` of the rows of `x` and `dx` and `i..i + n` of
                // `g` exist.
                unsafe {
                    let (a, b) = split(top.as_ptr().add(2 * i), n);
                    let (c, d) = split(bottom.as_ptr().add(2 * i), n);
                    let (mut best, mut at) = (a, [!0, 0, 0, 0]);
                    for (j, v) in [b, c, d].into_iter().enumerate() {
                        let wins = beats(v, best);
                        best = _mm512_mask_mov_ps(best, wins, v);
                        for earlier in &mut at[..=j] {
                            *earlier &= !wins;
                        }
                        at[j + 1] = wins;
                    }
                    let g = _mm512_maskz_loadu_ps(lanes(n), g.as_ptr().add(i));
                    let [a, b, c, d] = at.map(|at| _mm512_maskz_mov_ps(at, g));
                    join(a, b, up.as_mut_ptr().add(2 * i), n);
                    join(c, d, down.as_mut_ptr().add(2 * i), n);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Few different numbers, so that there are ties; some of them NaN.
    fn entries(len: usize) -> impl Strategy<Value = Vec<f32>> {
        let number = prop_oneof![
            4 => (-2i8..3).prop_map(f32::from),
            1 => Just(f32::NAN),
            1 => Just(-0.0),
            1 => Just(f32::NEG_INFINITY),
        ];
        prop::collection::vec(number, len)
    }

    fn bits(x: &[f32]) -> Vec<u32> {
        x.iter().map(|x| x.to_bits()).collect()
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        #[test]
        fn vectors_find_what_single_entries_find(
            (how, x) in (1usize..4, 1usize..40, 0usize..2, 0usize..2, 1usize..3).prop_flat_map(
                |(rows, columns, more_rows, more_columns, planes)| {
                    let how = Halving {
                        input: (2 * rows + more_rows, 2 * columns + more_columns),
                        output: (rows, columns),
                    };
                    (Just(how), entries(planes * how.input.0 * how.input.1))
                }),
        ) {
            let planes = x.len() / (how.input.0 * how.input.1);
            let windows = planes * how.output.0 * how.output.1;
            let (mut y, mut expected) = (vec![9.0; windows], vec![9.0; windows]);
            f32::maxima(how, &x, &mut y);
            portable_maxima(how, &x, &mut expected);
            prop_assert_eq!(bits(&y), bits(&expected));
            let g: Vec<f32> = (1..=windows).map(|i| i as f32).collect();
            let (mut dx, mut expected) = (vec![9.0; x.len()], vec![9.0; x.len()]);
            f32::gradient(how, &x, &g, &mut dx);
            portable_gradient(how, &x, &g, &mut expected);
            prop_assert_eq!(&dx, &expected);
            prop_assert_eq!(dx.iter().sum::<f32>(), g.iter().sum::<f32>());
        }
    }
}
