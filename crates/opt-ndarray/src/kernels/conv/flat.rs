//! Depthwise convolutions whose output rows are as long as the input's: a channel is one row of
//! pixels then, and each kernel entry reads it at a distance, but for the pixels at the edges.

#![expect(unsafe_code, reason = "vector intrinsics over raw pointers")]

use super::columns::Geometry;
use crate::kernels::tile::Isa;

/// The most masks that are kept: beyond, the table of them is no small thing beside the image.
const KEPT: usize = 1 << 16;

/// Where the entries of a kernel read.
#[derive(Debug, Clone)]
pub(super) struct Flat {
    /// From an output pixel to the input pixel that each entry reads.
    shifts: Vec<i32>,
    /// For each vector of output pixels, those that each entry reads inside the image.
    masks: Vec<u32>,
    /// Pixels of the output, and of the input.
    pixels: usize,
    input: usize,
}

impl Flat {
    /// `None` where rows have other lengths, or there are too many.
    pub(super) fn new(isa: Isa, g: &Geometry) -> Option<Flat> {
        let lanes = isa.lanes();
        let (pixels, width) = (g.output_len(), g.output[2]);
        let masks = pixels.div_ceil(lanes) * g.taps();
        if g.stride != [1; 3] || g.input[2] != width || masks > KEPT {
            return None;
        }
        let taps = |i: usize| (i / g.kernel[2], i % g.kernel[2]);
        let shifts = (0..g.taps()).map(taps).map(|(ky, kx)| {
            let y = (ky * g.dilation[1]) as i32 - g.pad[1] as i32;
            let x = (kx * g.dilation[2]) as i32 - g.pad[2] as i32;
            y * width as i32 + x
        });
        let mut flat = Flat {
            shifts: shifts.collect(),
            masks: Vec::with_capacity(masks),
            pixels,
            input: g.input_len(),
        };
        for start in (0..pixels).step_by(lanes) {
            for (ky, kx) in (0..g.taps()).map(taps) {
                let (ys, xs) = (g.inside(1, ky), g.inside(2, kx));
                let own = (start..pixels.min(start + lanes)).enumerate();
                let bits = own.map(|(lane, i)| {
                    let inside = ys.contains(&(i / width)) && xs.contains(&(i % width));
                    u32::from(inside) << lane
                });
                flat.masks.push(bits.sum());
            }
        }
        Some(flat)
    }

    /// Computes a channel of an image, with bias and bounds.
    pub(super) fn run(
        &self,
        isa: Isa,
        image: &[f32],
        weight: &[f32],
        bias: f32,
        clamp: [f32; 2],
        out: &mut [f32],
    ) {
        assert!(image.len() >= self.input && out.len() >= self.pixels);
        assert!(weight.len() == self.shifts.len());
        // SAFETY: the sizes were checked; `isa` is the processor's, and the masks let pixels of the
        // image through only.
        unsafe {
            match isa {
                #[cfg(target_arch = "x86_64")]
                Isa::Avx512 if weight.len() == 9 => {
                    x86::nine512(self, image, weight, bias, clamp, out)
                }
                #[cfg(target_arch = "x86_64")]
                Isa::Avx512 => x86::any512(self, image, weight, bias, clamp, out),
                #[cfg(target_arch = "x86_64")]
                Isa::Avx2 => x86::any256(self, image, weight, bias, clamp, out),
                Isa::Portable => unreachable!("{} pixels with {bias}, {clamp:?}", image.len()),
            }
        }
    }
}

macro_rules! kernels {
    ($any:ident, $features:literal, $lanes:literal, $fma:ident, $splat:ident, $max:ident,
     $min:ident, $mask:ident, $load_mask:ident, $store_mask:ident, $bits:ident) => {
        /// # Safety
        /// The processor has the features; the slices have the sizes of `f`.
        #[target_feature(enable = $features)]
        pub(super) unsafe fn $any(
            f: &Flat,
            image: &[f32],
            weight: &[f32],
            bias: f32,
            [low, high]: [f32; 2],
            out: &mut [f32],
        ) {
            let (low, high, bias) = ($splat(low), $splat(high), $splat(bias));
            let starts = (0..f.pixels).step_by($lanes);
            for (at, masks) in starts.zip(f.masks.chunks_exact(weight.len())) {
                let from = image.as_ptr().wrapping_add(at);
                let mut sum = bias;
                for ((&mask, &shift), &w) in masks.iter().zip(&f.shifts).zip(weight) {
                    let from = from.wrapping_offset(shift as isize);
                    // SAFETY: the masks let pixels of the image through only.
                    let v = unsafe { $load_mask(from, $bits(mask)) };
                    sum = $fma($splat(w), v, sum);
                }
                // The second operand wins if one is NaN.
                sum = $min(high, $max(low, sum));
                let mask = $mask((f.pixels - at).min($lanes));
                // SAFETY: masked to the channel.
                unsafe { $store_mask(out.as_mut_ptr().wrapping_add(at), mask, sum) };
            }
        }
    };
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    use std::arch::x86_64::*;

    use super::super::masks::x86::*;
    use super::Flat;

    kernels!(
        any512,
        "avx512f",
        16,
        _mm512_fmadd_ps,
        _mm512_set1_ps,
        _mm512_max_ps,
        _mm512_min_ps,
        mask512,
        load_mask512,
        _mm512_mask_storeu_ps,
        bits512
    );

    kernels!(
        any256,
        "avx2,fma",
        8,
        _mm256_fmadd_ps,
        _mm256_set1_ps,
        _mm256_max_ps,
        _mm256_min_ps,
        mask256,
        load_mask256,
        _mm256_maskstore_ps,
        bits256
    );

    /// A kernel of nine entries, which stay in registers.
    ///
    /// # Safety
    /// As [`any512`].
    #[target_feature(enable = "avx512f")]
    pub(super) unsafe fn nine512(
        f: &Flat,
        image: &[f32],
        weight: &[f32],
        bias: f32,
        [low, high]: [f32; 2],
        out: &mut [f32],
    ) {
        let (low, high, bias) = (
            _mm512_set1_ps(low),
            _mm512_set1_ps(high),
            _mm512_set1_ps(bias),
        );
        let (mut weights, mut shifts) = ([_mm512_setzero_ps(); 9], [0isize; 9]);
        for tap in 0..9 {
            weights[tap] = _mm512_set1_ps(weight[tap]);
            shifts[tap] = f.shifts[tap] as isize;
        }
        let (masks, _) = f.masks.as_chunks::<9>();
        for (at, masks) in (0..f.pixels).step_by(16).zip(masks) {
            let from = image.as_ptr().wrapping_add(at);
            let mut sum = bias;
            for tap in 0..9 {
                let from = from.wrapping_offset(shifts[tap]);
                // SAFETY: the masks let pixels of the image through only.
                let v = unsafe { load_mask512(from, bits512(masks[tap])) };
                sum = _mm512_fmadd_ps(weights[tap], v, sum);
            }
            // The second operand wins if one is NaN.
            sum = _mm512_min_ps(high, _mm512_max_ps(low, sum));
            let mask = mask512((f.pixels - at).min(16));
            // SAFETY: masked to the channel.
            unsafe { _mm512_mask_storeu_ps(out.as_mut_ptr().wrapping_add(at), mask, sum) };
        }
    }
}
