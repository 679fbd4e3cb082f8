//! The innermost loops of convolutions over shifted images: products of a packed weight with
//! vectors that start anywhere, and sums of products of two images.

#![expect(unsafe_code, reason = "vector intrinsics over raw pointers")]

use crate::kernels::tile::Isa;

/// Output channels and vectors of pixels that a [`product`] has in registers.
pub(super) fn product_tile(isa: Isa) -> (usize, usize) {
    match isa {
        #[cfg(target_arch = "x86_64")]
        Isa::Avx512 => (8, 3),
        #[cfg(target_arch = "x86_64")]
        Isa::Avx2 => (4, 3),
        Isa::Portable => (1, 1),
    }
}

/// Rows of the left and of the right image that [`dots`] has in registers.
pub(super) fn dots_tile(isa: Isa) -> (usize, usize) {
    match isa {
        #[cfg(target_arch = "x86_64")]
        Isa::Avx512 => (4, 6),
        #[cfg(target_arch = "x86_64")]
        Isa::Avx2 => (2, 4),
        Isa::Portable => (1, 1),
    }
}

/// One tile: `out[r][j] = sum over k of a[k][r] * image[offsets[k] + j]`.
#[derive(Clone, Copy)]
pub(super) struct Product<'a> {
    /// `[offsets.len(), rows]`.
    pub(super) a: *const f32,
    pub(super) image: *const f32,
    pub(super) offsets: &'a [u32],
    pub(super) out: *mut f32,
    pub(super) out_row: usize,
}

/// One tile: `sums[i][j] += sum over p of left[i * left_row + p] * right[offsets[j] + p]` for
/// `p < len`, a multiple of the lanes.
#[derive(Clone, Copy)]
pub(super) struct Dots<'a> {
    pub(super) left: *const f32,
    pub(super) left_row: usize,
    pub(super) right: *const f32,
    pub(super) offsets: &'a [u32],
    pub(super) len: usize,
    /// Images that lie one after the other, and their distances.
    pub(super) images: usize,
    pub(super) left_image: usize,
    pub(super) right_image: usize,
    pub(super) out: *mut f32,
    pub(super) out_row: usize,
}

macro_rules! kernels {
    ($product:ident, $dots:ident, $features:literal, $lanes:literal, $vec:ty, $zero:expr,
     $load:ident, $store:ident, $fma:ident, $splat:ident, $sum:ident) => {
        /// # Safety
        /// The processor has the features; `a` covers the rows, the image every offset and `NV`
        /// vectors beyond it, and `out` the rows with `NV` vectors each.
        #[target_feature(enable = $features)]
        unsafe fn $product<const ROWS: usize, const NV: usize>(t: Product<'_>) {
            let zero: $vec = $zero;
            let mut sums = [[zero; NV]; ROWS];
            let mut a = t.a;
            for &offset in t.offsets {
                // SAFETY: the caller vouches for the pointers.
                unsafe {
                    let b = t.image.add(offset as usize);
                    let mut columns = [zero; NV];
                    for v in 0..NV {
                        columns[v] = $load(b.add(v * $lanes));
                    }
                    for r in 0..ROWS {
                        let x = $splat(*a.add(r));
                        for v in 0..NV {
                            sums[r][v] = $fma(x, columns[v], sums[r][v]);
                        }
                    }
                    a = a.add(ROWS);
                }
            }
            for r in 0..ROWS {
                for v in 0..NV {
                    // SAFETY: the caller vouches for the pointers.
                    unsafe { $store(t.out.add(r * t.out_row + v * $lanes), sums[r][v]) };
                }
            }
        }

        /// # Safety
        /// The processor has the features; the images cover their rows and offsets with `len`
        /// entries, and `out` the sums.
        #[target_feature(enable = $features)]
        unsafe fn $dots<const L: usize, const R: usize>(t: Dots<'_>) {
            let zero: $vec = $zero;
            let mut sums = [[zero; R]; L];
            for image in 0..t.images {
                // SAFETY: the caller vouches for the pointers.
                unsafe {
                    let left = t.left.add(image * t.left_image);
                    let right = t.right.add(image * t.right_image);
                    let (mut lefts, mut rights) = ([left; L], [right; R]);
                    for i in 1..L {
                        lefts[i] = left.add(i * t.left_row);
                    }
                    for j in 0..R {
                        rights[j] = right.add(t.offsets[j] as usize);
                    }
                    let mut p = 0;
                    while p < t.len {
                        let mut l = [zero; L];
                        for i in 0..L {
                            l[i] = $load(lefts[i].add(p));
                        }
                        for j in 0..R {
                            let r = $load(rights[j].add(p));
                            for i in 0..L {
                                sums[i][j] = $fma(l[i], r, sums[i][j]);
                            }
                        }
                        p += $lanes;
                    }
                }
            }
            for i in 0..L {
                for j in 0..R {
                    // SAFETY: the caller vouches for the pointers.
                    unsafe { *t.out.add(i * t.out_row + j) += $sum(sums[i][j]) };
                }
            }
        }
    };
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    use std::arch::x86_64::*;

    use super::{Dots, Product};

    kernels!(
        product512,
        dots512,
        "avx512f",
        16,
        __m512,
        _mm512_setzero_ps(),
        _mm512_loadu_ps,
        _mm512_storeu_ps,
        _mm512_fmadd_ps,
        _mm512_set1_ps,
        _mm512_reduce_add_ps
    );

    #[target_feature(enable = "avx2,fma")]
    fn sum256(x: __m256) -> f32 {
        let half = _mm_add_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps::<1>(x));
        let pair = _mm_add_ps(half, _mm_movehl_ps(half, half));
        _mm_cvtss_f32(_mm_add_ss(pair, _mm_movehdup_ps(pair)))
    }

    kernels!(
        product256,
        dots256,
        "avx2,fma",
        8,
        __m256,
        _mm256_setzero_ps(),
        _mm256_loadu_ps,
        _mm256_storeu_ps,
        _mm256_fmadd_ps,
        _mm256_set1_ps,
        sum256
    );

    /// # Safety
    /// As [`product512`].
    pub(super) unsafe fn product_avx512(rows: usize, t: Product<'_>) {
        // SAFETY: passed on.
        unsafe {
            match rows {
                1 => product512::<1, 3>(t),
                2 => product512::<2, 3>(t),
                3 => product512::<3, 3>(t),
                4 => product512::<4, 3>(t),
                5 => product512::<5, 3>(t),
                6 => product512::<6, 3>(t),
                7 => product512::<7, 3>(t),
                _ => product512::<8, 3>(t),
            }
        }
    }

    /// # Safety
    /// As [`product256`].
    pub(super) unsafe fn product_avx2(rows: usize, t: Product<'_>) {
        // SAFETY: passed on.
        unsafe {
            match rows {
                1 => product256::<1, 3>(t),
                2 => product256::<2, 3>(t),
                3 => product256::<3, 3>(t),
                _ => product256::<4, 3>(t),
            }
        }
    }

    macro_rules! by_right {
        ($f:ident, $left:literal, $right:expr, $t:expr) => {
            match $right {
                1 => $f::<$left, 1>($t),
                2 => $f::<$left, 2>($t),
                3 => $f::<$left, 3>($t),
                4 => $f::<$left, 4>($t),
                5 => $f::<$left, 5>($t),
                _ => $f::<$left, 6>($t),
            }
        };
    }

    /// # Safety
    /// As [`dots512`].
    pub(super) unsafe fn dots_avx512(left: usize, t: Dots<'_>) {
        // SAFETY: passed on.
        unsafe {
            match left {
                1 => by_right!(dots512, 1, t.offsets.len(), t),
                2 => by_right!(dots512, 2, t.offsets.len(), t),
                3 => by_right!(dots512, 3, t.offsets.len(), t),
                _ => by_right!(dots512, 4, t.offsets.len(), t),
            }
        }
    }

    /// # Safety
    /// As [`dots256`].
    pub(super) unsafe fn dots_avx2(left: usize, t: Dots<'_>) {
        // SAFETY: passed on.
        unsafe {
            match (left, t.offsets.len()) {
                (1, 1) => dots256::<1, 1>(t),
                (1, 2) => dots256::<1, 2>(t),
                (1, 3) => dots256::<1, 3>(t),
                (1, _) => dots256::<1, 4>(t),
                (_, 1) => dots256::<2, 1>(t),
                (_, 2) => dots256::<2, 2>(t),
                (_, 3) => dots256::<2, 3>(t),
                (_, _) => dots256::<2, 4>(t),
            }
        }
    }
}

/// # Safety
/// `isa` is not portable and comes from [`Isa::get`]; `rows` is at most that of [`product_tile`];
/// `a` covers the rows, the image every offset and the tile's vectors beyond it, and `out` the rows
/// with that many vectors each.
pub(super) unsafe fn product(isa: Isa, rows: usize, t: Product<'_>) {
    // SAFETY: passed on.
    unsafe {
        match isa {
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512 => x86::product_avx512(rows, t),
            #[cfg(target_arch = "x86_64")]
            Isa::Avx2 => x86::product_avx2(rows, t),
            Isa::Portable => unreachable!("{rows} rows of {} offsets", t.offsets.len()),
        }
    }
}

/// # Safety
/// `isa` is not portable and comes from [`Isa::get`]; `left` rows and offsets are at most those of
/// [`dots_tile`]; the images cover their rows and offsets with `len` entries, and `out` the sums.
pub(super) unsafe fn dots(isa: Isa, left: usize, t: Dots<'_>) {
    // SAFETY: passed on.
    unsafe {
        match isa {
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512 => x86::dots_avx512(left, t),
            #[cfg(target_arch = "x86_64")]
            Isa::Avx2 => x86::dots_avx2(left, t),
            Isa::Portable => unreachable!("{left} rows of {} entries", t.len),
        }
    }
}
