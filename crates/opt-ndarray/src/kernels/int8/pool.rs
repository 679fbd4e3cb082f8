//! Max pooling of bytes in two dimensions: the rows of a window by vectors, then its columns.
//! Windows of 2 x 2 that tile the image, the common case, are pairs of bytes in two rows.

#![expect(unsafe_code, reason = "vector intrinsics over raw pointers")]

use std::cell::RefCell;

use opt_core::{DType, Result};

use super::super::conv::Geometry;
#[cfg(target_arch = "x86_64")]
use super::super::tile::Isa;
use super::super::{Arg, Kernel, Out, RunCx, lanes, parallel_chunks};

/// Max pooling of images `[N, C, H, W]` of bytes.
#[derive(Debug, Clone)]
pub(crate) struct IntMaxPool {
    /// Window, padding and strides, as a convolution has them; no dilation.
    pub(crate) geometry: Geometry,
    pub(crate) dtype: DType,
}

/// Bytes of the input that a task reads at least.
const TASK: usize = 1 << 14;

impl Kernel for IntMaxPool {
    fn name(&self) -> String {
        "int max pool".to_string()
    }

    fn run(&self, args: &[Arg<'_>], outs: &mut [Out<'_>], cx: &mut RunCx<'_>) -> Result<()> {
        // Two rows of the input: signed bytes with the sign flipped are in the order of unsigned.
        thread_local!(static ROWS: RefCell<[Vec<u8>; 2]> = const {
            RefCell::new([Vec::new(), Vec::new()])
        });
        let (x, g) = (args[0].bytes, &self.geometry);
        let (input, output) = (g.input_len(), g.output_len());
        if input == 0 || output == 0 {
            return Ok(());
        }
        let flip = if self.dtype == DType::I8 { 0x80 } else { 0 };
        let per = TASK.div_ceil(input);
        let tiles = g.kernel == [1, 2, 2] && g.stride == [1, 2, 2] && g.pad == [0; 3];
        if tiles && (1..3).all(|axis| 2 * g.output[axis] <= g.input[axis]) {
            parallel_chunks(cx.threads, outs[0].bytes, per * output, |task, out| {
                self.halve(&x[task * per * input..], flip, out);
            });
            return Ok(());
        }
        parallel_chunks(cx.threads, outs[0].bytes, per * output, |task, out| {
            ROWS.with_borrow_mut(|[tall, wide]| {
                for (c, out) in out.chunks_mut(output).enumerate() {
                    let x = &x[(task * per + c) * input..][..input];
                    self.channel(x, flip, tall, wide, out);
                }
            });
        });
        Ok(())
    }
}

impl IntMaxPool {
    /// The maxima of windows that tile the images of as many channels as `out` holds.
    fn halve(&self, x: &[u8], flip: u8, out: &mut [u8]) {
        #[cfg(target_arch = "x86_64")]
        if Isa::get() == Isa::Avx512 {
            // SAFETY: the processor has the instructions.
            return unsafe { halve_avx512(&self.geometry, x, flip, out) };
        }
        halve(&self.geometry, x, out, |top, bottom, out| {
            let pairs = top.chunks_exact(2).zip(bottom.chunks_exact(2));
            for (to, (a, b)) in out.iter_mut().zip(pairs) {
                let [a, b] = [a, b].map(|pair| (pair[0] ^ flip).max(pair[1] ^ flip));
                *to = a.max(b) ^ flip;
            }
        });
    }

    fn channel(&self, x: &[u8], flip: u8, tall: &mut Vec<u8>, wide: &mut Vec<u8>, out: &mut [u8]) {
        let g = &self.geometry;
        let (width, pad, stride) = (g.input[2], g.pad[2], g.stride[2]);
        // A row with as much before and after it as windows reach.
        let reach = (g.output[2] - 1) * stride + g.kernel[2];
        tall.clear();
        tall.resize(reach.max(pad + width), 0);
        wide.resize(tall.len(), 0);
        for (y, out) in out.chunks_mut(g.output[2]).enumerate() {
            let first = (y * g.stride[1]).saturating_sub(g.pad[1]);
            let end = (y * g.stride[1] + g.kernel[1]).saturating_sub(g.pad[1]);
            let row = &mut tall[pad..pad + width];
            row.fill(0);
            for from in x[first * width..]
                .chunks_exact(width)
                .take(end.saturating_sub(first))
            {
                raise(row, from, flip);
            }
            wide.copy_from_slice(tall);
            for k in 1..g.kernel[2] {
                let len = wide.len() - k;
                raise(&mut wide[..len], &tall[k..], 0);
            }
            if stride == 2 && wide.len() >= 2 * out.len() {
                evens(wide, flip, out);
                continue;
            }
            for (to, &v) in out.iter_mut().zip(wide.iter().step_by(stride)) {
                *to = v ^ flip;
            }
        }
    }
}

/// Calls `row` with the two rows of each row of `out`, which have twice as many bytes.
#[inline(always)]
fn halve(g: &Geometry, x: &[u8], out: &mut [u8], row: impl Fn(&[u8], &[u8], &mut [u8])) {
    let (len, plane) = (g.output[2], g.input[1] * g.input[2]);
    for (out, x) in out
        .chunks_exact_mut(g.output_len())
        .zip(x.chunks_exact(plane))
    {
        let pairs = x.chunks_exact(2 * g.input[2]);
        for (out, pair) in out.chunks_exact_mut(len).zip(pairs) {
            row(&pair[..2 * len], &pair[g.input[2]..][..2 * len], out);
        }
    }
}

/// The maxima of 2 x 2 bytes with bits flipped, 32 at once.
///
/// # Safety
/// The processor has the features.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx512bw,avx512vl")]
unsafe fn halve_avx512(g: &Geometry, x: &[u8], flip: u8, out: &mut [u8]) {
    use std::arch::x86_64::{
        _mm512_mask_cvtepi16_storeu_epi8, _mm512_maskz_loadu_epi8, _mm512_max_epu8,
        _mm512_set1_epi8, _mm512_srli_epi16, _mm512_xor_si512,
    };
    let flip = _mm512_set1_epi8(flip as i8);
    halve(g, x, out, |top, bottom, out| {
        assert!(top.len() == 2 * out.len() && bottom.len() == top.len());
        for at in (0..out.len()).step_by(32) {
            let n = (out.len() - at).min(32);
            let pairs = u64::MAX >> (64 - 2 * n);
            // SAFETY: lanes beyond the mask are neither read nor written; those of the mask lie in
            // the rows, which have two bytes for each of `out`, and in `out`.
            unsafe {
                let a = _mm512_maskz_loadu_epi8(pairs, top.as_ptr().add(2 * at).cast());
                let b = _mm512_maskz_loadu_epi8(pairs, bottom.as_ptr().add(2 * at).cast());
                let tall = _mm512_max_epu8(_mm512_xor_si512(a, flip), _mm512_xor_si512(b, flip));
                let best = _mm512_max_epu8(tall, _mm512_srli_epi16::<8>(tall));
                let best = _mm512_xor_si512(best, flip);
                let lanes = u32::MAX >> (32 - n);
                _mm512_mask_cvtepi16_storeu_epi8(out.as_mut_ptr().add(at).cast(), lanes, best);
            }
        }
    });
}

lanes::by_isa! {
    /// The larger of two rows of bytes, entry by entry; those of `other` have bits flipped.
    fn raise(row: &mut [u8], other: &[u8], flip: u8) = |_FMA| {
        for (a, &b) in row.iter_mut().zip(other) {
            *a = (*a).max(b ^ flip);
        }
    }
}

lanes::by_isa! {
    /// The first byte of each pair, with bits flipped.
    fn evens(row: &[u8], flip: u8, out: &mut [u8]) = |_FMA| {
        for (to, &[v, _]) in out.iter_mut().zip(row.as_chunks::<2>().0) {
            *to = v ^ flip;
        }
    }
}
