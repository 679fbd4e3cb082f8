//! The innermost loop of gradients by the weight of a convolution: output channels in the lanes, each
//! pixel's gradient times the kernel entries that read the image there.

#![expect(unsafe_code, reason = "vector intrinsics over raw pointers")]

use crate::kernels::tile::Isa;

/// Rows of kernel entries that [`outer`] can take at once, ascending, where rows have so many
/// entries; none for other lengths.
pub(super) fn tiles(isa: Isa, entries: usize) -> &'static [usize] {
    match (isa, entries) {
        #[cfg(target_arch = "x86_64")]
        (Isa::Avx512, 1) => &[4, 8, 12],
        #[cfg(target_arch = "x86_64")]
        (Isa::Avx512, 2) => &[4, 8],
        #[cfg(target_arch = "x86_64")]
        (Isa::Avx512, 3) => &[3, 5, 6, 8],
        #[cfg(target_arch = "x86_64")]
        (Isa::Avx512, 4) => &[3, 6],
        #[cfg(target_arch = "x86_64")]
        (Isa::Avx512, 5) => &[3, 5],
        #[cfg(target_arch = "x86_64")]
        (Isa::Avx512, 7) => &[3],
        #[cfg(target_arch = "x86_64")]
        (Isa::Avx2, 1) => &[4, 8],
        #[cfg(target_arch = "x86_64")]
        (Isa::Avx2, 2) => &[2, 4],
        #[cfg(target_arch = "x86_64")]
        (Isa::Avx2, 3) => &[3],
        #[cfg(target_arch = "x86_64")]
        (Isa::Avx2, 4 | 5) => &[2],
        _ => &[],
    }
}

/// One tile: `sums[r][e][lane] += sum over y, x of left[y][x][lane] * right[rows[r] + y * pitch +
/// x * stride + e]`, over images that lie at distances from each other.
#[derive(Clone, Copy)]
pub(super) struct Outer<'a> {
    /// `[height, width, lanes]`.
    pub(super) left: *const f32,
    pub(super) left_image: usize,
    pub(super) right: *const f32,
    pub(super) right_image: usize,
    pub(super) images: usize,
    /// As many as one of [`tiles`] says.
    pub(super) rows: &'a [usize],
    pub(super) height: usize,
    pub(super) width: usize,
    pub(super) pitch: usize,
    pub(super) stride: usize,
    /// `[rows, entries, lanes]`.
    pub(super) sums: *mut f32,
}

macro_rules! kernel {
    ($name:ident, $features:literal, $lanes:literal, $vec:ty, $zero:expr, $load:ident, $store:ident,
     $fma:ident, $splat:ident, $add:ident) => {
        /// # Safety
        /// As [`outer`].
        #[target_feature(enable = $features)]
        unsafe fn $name<const ROWS: usize, const E: usize>(t: Outer<'_>) {
            let mut sums = [[$zero; E]; ROWS];
            for image in 0..t.images {
                // SAFETY: the caller vouches for the pointers.
                unsafe {
                    let mut left = t.left.add(image * t.left_image);
                    let right = t.right.add(image * t.right_image);
                    let mut rows = [right; ROWS];
                    for r in 0..ROWS {
                        rows[r] = right.add(t.rows[r]);
                    }
                    for _ in 0..t.height {
                        for x in 0..t.width {
                            let l = $load(left.add(x * $lanes));
                            for r in 0..ROWS {
                                for e in 0..E {
                                    let right = $splat(*rows[r].add(x * t.stride + e));
                                    sums[r][e] = $fma(l, right, sums[r][e]);
                                }
                            }
                        }
                        left = left.add(t.width * $lanes);
                        for r in 0..ROWS {
                            rows[r] = rows[r].wrapping_add(t.pitch);
                        }
                    }
                }
            }
            for r in 0..ROWS {
                for e in 0..E {
                    // SAFETY: the caller vouches for the sums.
                    unsafe {
                        let at = t.sums.add((r * E + e) * $lanes);
                        $store(at, $add($load(at), sums[r][e]));
                    }
                }
            }
        }
    };
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    use std::arch::x86_64::*;

    use super::Outer;

    kernel!(
        outer512,
        "avx512f",
        16,
        __m512,
        _mm512_setzero_ps(),
        _mm512_loadu_ps,
        _mm512_storeu_ps,
        _mm512_fmadd_ps,
        _mm512_set1_ps,
        _mm512_add_ps
    );

    kernel!(
        outer256,
        "avx2,fma",
        8,
        __m256,
        _mm256_setzero_ps(),
        _mm256_loadu_ps,
        _mm256_storeu_ps,
        _mm256_fmadd_ps,
        _mm256_set1_ps,
        _mm256_add_ps
    );

    macro_rules! by_tile {
        ($t:expr, $entries:expr, $outer:ident, [$(($rows:literal, $e:literal))*]) => {
            match ($t.rows.len(), $entries) {
                $(
                    ($rows, $e) => $outer::<$rows, $e>($t),
                )*
                (rows, entries) => unreachable!("a tile of {rows} rows of {entries} entries"),
            }
        };
    }

    /// # Safety
    /// As [`super::outer`].
    pub(super) unsafe fn avx512(entries: usize, t: Outer<'_>) {
        // SAFETY: passed on.
        unsafe {
            by_tile!(
                t,
                entries,
                outer512,
                [(4, 1)(8, 1)(12, 1)(4, 2)(8, 2)(3, 3)(5, 3)(6, 3)(8, 3)(
                    3, 4
                )(6, 4)(3, 5)(5, 5)(3, 7)]
            );
        }
    }

    /// # Safety
    /// As [`super::outer`].
    pub(super) unsafe fn avx2(entries: usize, t: Outer<'_>) {
        // SAFETY: passed on.
        unsafe {
            by_tile!(
                t,
                entries,
                outer256,
                [(4, 1)(8, 1)(2, 2)(4, 2)(3, 3)(2, 4)(2, 5)]
            );
        }
    }
}

/// # Safety
/// `isa` comes from [`Isa::get`]; [`tiles`] of it and `entries` has the number of `t.rows`; both sides
/// cover the images' pixels, the right one with `entries` entries from each row and pixel on, and
/// the sums are a vector for each row and entry.
pub(super) unsafe fn outer(isa: Isa, entries: usize, t: Outer<'_>) {
    // SAFETY: passed on.
    unsafe {
        match isa {
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512 => x86::avx512(entries, t),
            #[cfg(target_arch = "x86_64")]
            Isa::Avx2 => x86::avx2(entries, t),
            Isa::Portable => unreachable!("{entries} entries of {} pixels", t.width * t.height),
        }
    }
}
