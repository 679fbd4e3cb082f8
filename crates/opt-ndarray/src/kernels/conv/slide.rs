//! The innermost loop of depthwise convolutions: one channel of an image.

#![expect(unsafe_code, reason = "vector intrinsics over raw pointers")]

use super::columns::Geometry;
use super::patch::Reach;
use crate::kernels::tile::Isa;

/// One output channel of one image, and what follows it: bias and bounds.
pub(super) struct Slide<'a> {
    pub(super) image: &'a [f32],
    pub(super) geometry: &'a Geometry,
    pub(super) weight: &'a [f32],
    pub(super) bias: f32,
    pub(super) clamp: [f32; 2],
    /// Those of each column of the kernel, for each vector of an output row.
    pub(super) reaches: &'a [Reach],
    pub(super) out: &'a mut [f32],
}

/// Elements between a row and what is called for while it is read.
#[cfg(target_arch = "x86_64")]
const AHEAD: usize = 1 << 10;

/// Output rows that are computed at once.
const ROWS: usize = 4;

macro_rules! kernels {
    ($plane:ident, $rows:ident, $features:literal, $lanes:literal, $vec:ty, $fma:ident,
     $splat:ident, $max:ident, $min:ident, $mask:ident, $load_mask:ident, $store_mask:ident,
     $bits:ident, $halve:ident, $gather:ident) => {
        /// `R` rows from row `y` on, whose kernel rows `ky` all lie in the image.
        ///
        /// # Safety
        /// The processor has the features; the reaches are those of the geometry, and the slices
        /// have its sizes.
        #[inline]
        #[target_feature(enable = $features)]
        unsafe fn $rows<const STRIDE: usize, const R: usize>(
            s: &mut Slide<'_>,
            y: usize,
            ky: std::ops::Range<usize>,
        ) {
            let g = s.geometry;
            let (columns, width, out_width) = (g.kernel[2], g.input[2], g.output[2]);
            let (low, high) = ($splat(s.clamp[0]), $splat(s.clamp[1]));
            for (i, reaches) in s.reaches.chunks_exact(columns).enumerate() {
                let mut sums: [$vec; R] = [$splat(s.bias); R];
                for ky in ky.clone() {
                    // The row of the image, of the first output row.
                    let row = y * g.stride[1] + ky * g.dilation[1] - g.pad[1];
                    let row = s.image.as_ptr().wrapping_add(row * width);
                    let weight = s.weight[ky * columns..][..columns].as_ptr();
                    for (kx, reach) in reaches.iter().enumerate() {
                        // SAFETY: `weight` has a number for each column.
                        let w = $splat(unsafe { *weight.add(kx) });
                        let bits = $bits(reach.mask);
                        let mut from = row.wrapping_offset(reach.from as isize);
                        for r in 0..R {
                            // SAFETY: the masks let elements of the row through only.
                            let v = unsafe {
                                match STRIDE {
                                    1 => $load_mask(from, bits),
                                    2 => $halve(from, reach.mask),
                                    _ => $gather(from, bits, g.stride[2]),
                                }
                            };
                            sums[r] = $fma(w, v, sums[r]);
                            from = from.wrapping_add(g.stride[1] * width);
                        }
                    }
                }
                let mask = $mask((out_width - i * $lanes).min($lanes));
                for r in 0..R {
                    // The second operand wins if one is NaN.
                    let sum = $min(high, $max(low, sums[r]));
                    let at = (y + r) * out_width + i * $lanes;
                    // SAFETY: masked to the row.
                    unsafe { $store_mask(s.out.as_mut_ptr().wrapping_add(at), mask, sum) };
                }
            }
        }

        /// # Safety
        /// As the rows.
        #[target_feature(enable = $features)]
        unsafe fn $plane<const STRIDE: usize>(mut s: Slide<'_>) {
            let g = s.geometry;
            let (height, kernel, pad) = (g.input[1], g.kernel[1], g.pad[1]);
            let (stride, dilation) = (g.stride[1], g.dilation[1]);
            let mut y = 0;
            let mut ahead = s.image.as_ptr().wrapping_add(AHEAD);
            while y < g.output[1] {
                let rows = if y % ROWS == 0 { ROWS * stride } else { 0 };
                for at in (0..rows * g.input[2]).step_by(16) {
                    _mm_prefetch::<_MM_HINT_T0>(ahead.wrapping_add(at).cast());
                }
                ahead = ahead.wrapping_add(rows * g.input[2]);
                let last = (y + ROWS - 1) * stride + (kernel - 1) * dilation;
                if y + ROWS <= g.output[1] && y * stride >= pad && last < height + pad {
                    // SAFETY: passed on; all rows lie in the image.
                    unsafe { $rows::<STRIDE, ROWS>(&mut s, y, 0..kernel) };
                    y += ROWS;
                } else {
                    let first = pad
                        .saturating_sub(y * stride)
                        .div_ceil(dilation)
                        .min(kernel);
                    let end = (height + pad).saturating_sub(y * stride).div_ceil(dilation);
                    // SAFETY: passed on; these rows lie in the image.
                    unsafe { $rows::<STRIDE, 1>(&mut s, y, first..end.min(kernel).max(first)) };
                    y += 1;
                }
            }
        }
    };
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    use std::arch::x86_64::*;

    use super::super::masks::x86::*;
    use super::{AHEAD, ROWS, Slide};

    kernels!(
        plane512,
        rows512,
        "avx512f",
        16,
        __m512,
        _mm512_fmadd_ps,
        _mm512_set1_ps,
        _mm512_max_ps,
        _mm512_min_ps,
        mask512,
        load_mask512,
        _mm512_mask_storeu_ps,
        bits512,
        halve512,
        gather512
    );

    kernels!(
        plane256,
        rows256,
        "avx2,fma",
        8,
        __m256,
        _mm256_fmadd_ps,
        _mm256_set1_ps,
        _mm256_max_ps,
        _mm256_min_ps,
        mask256,
        load_mask256,
        _mm256_maskstore_ps,
        bits256,
        halve256,
        gather256
    );

    /// # Safety
    /// The processor has AVX-512; the slices have the geometry's sizes.
    pub(super) unsafe fn avx512(s: Slide<'_>) {
        // SAFETY: passed on.
        unsafe {
            match s.geometry.stride[2] {
                1 => plane512::<1>(s),
                2 => plane512::<2>(s),
                _ => plane512::<3>(s),
            }
        }
    }

    /// # Safety
    /// The processor has AVX2 and FMA; the slices have the geometry's sizes.
    pub(super) unsafe fn avx2(s: Slide<'_>) {
        // SAFETY: passed on.
        unsafe {
            match s.geometry.stride[2] {
                1 => plane256::<1>(s),
                2 => plane256::<2>(s),
                _ => plane256::<3>(s),
            }
        }
    }
}

/// Computes a channel; `isa` is the processor's and not portable, and the reaches are those of the
/// geometry.
pub(super) fn slide(isa: Isa, s: Slide<'_>) {
    let g = s.geometry;
    assert!(s.image.len() >= g.input_len() && s.out.len() >= g.output_len());
    assert!(s.weight.len() >= g.taps());
    assert!(s.reaches.len() == g.output[2].div_ceil(isa.lanes()) * g.kernel[2]);
    // SAFETY: the sizes were checked; `isa` comes from `Isa::get`.
    unsafe {
        match isa {
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512 => x86::avx512(s),
            #[cfg(target_arch = "x86_64")]
            Isa::Avx2 => x86::avx2(s),
            Isa::Portable => unreachable!("{} rows of {ROWS}", s.out.len()),
        }
    }
}
