//! Copies of patches into panels, a vector of pixels at a time.

#![expect(unsafe_code, reason = "vector intrinsics over raw pointers")]

use super::patch::Chunk;
use crate::kernels::tile::Isa;

/// Rows of a panel to copy: entries `first..last` of the weight's, channel after channel and
/// kernel entry after kernel entry.
#[derive(Clone, Copy)]
pub(super) struct Pack<'a> {
    pub(super) image: *const f32,
    pub(super) channel: usize,
    /// As many for each kernel entry, entry after entry.
    pub(super) chunks: &'a [Chunk],
    pub(super) taps: usize,
    pub(super) stride: usize,
    pub(super) first: usize,
    pub(super) last: usize,
    pub(super) out: *mut f32,
    pub(super) pitch: usize,
    /// A factor and an offset for each channel, and a lower bound; only with one kernel entry and
    /// no padding.
    pub(super) before: Option<(*const f32, *const f32, f32)>,
}

macro_rules! kernels {
    ($pack:ident, $features:literal, $lanes:literal, $vec:ty, $zero:expr, $store:ident, $fma:ident,
     $splat:ident, $or:ident, $max:ident, $load_mask:ident, $bits:ident, $halve:ident,
     $gather:ident) => {
        /// # Safety
        /// As [`pack`].
        #[target_feature(enable = $features)]
        unsafe fn $pack<const STRIDE: usize, const BEFORE: bool>(p: Pack<'_>) {
            let each = (p.chunks.len() / p.taps).max(1);
            for (tap, chunks) in p.chunks.chunks_exact(each).enumerate() {
                // The channels whose entry `tap` is among the rows.
                let start = p.first.saturating_sub(tap).div_ceil(p.taps);
                let end = (p.last + p.taps - 1 - tap) / p.taps;
                let row = (start * p.taps + tap).wrapping_sub(p.first);
                let image = p.image.wrapping_add(start * p.channel);
                let out = p.out.wrapping_add(row.wrapping_mul(p.pitch));
                // The parts of one vector after the other.
                for (v, parts) in chunks.split_inclusive(|chunk| chunk.last).enumerate() {
                    let (mut image, mut out) = (image, out.wrapping_add(v * $lanes));
                    macro_rules! channels {
                        ($parts:expr) => {
                            for channel in start..end {
                                let mut vector = $zero;
                                for part in $parts {
                                    let from = image.wrapping_offset(part.from as isize);
                                    // SAFETY: the caller vouches for what the masks let through.
                                    let own: $vec = unsafe {
                                        match STRIDE {
                                            1 => $load_mask(from, $bits(part.mask)),
                                            2 => $halve(from, part.mask),
                                            _ => $gather(from, $bits(part.mask), p.stride),
                                        }
                                    };
                                    vector = $or(vector, own);
                                }
                                if let (true, Some((scale, offset, low))) = (BEFORE, p.before) {
                                    let (a, b) =
                                        (scale.wrapping_add(channel), offset.wrapping_add(channel));
                                    // SAFETY: there are numbers for all channels.
                                    let (a, b) = unsafe { (*a, *b) };
                                    vector = $max($splat(low), $fma(vector, $splat(a), $splat(b)));
                                }
                                // SAFETY: the caller vouches for rows of whole vectors.
                                unsafe { $store(out, vector) };
                                image = image.wrapping_add(p.channel);
                                out = out.wrapping_add(p.pitch * p.taps);
                            }
                        };
                    }
                    match *parts {
                        [one] => channels!([one]),
                        [one, two] => channels!([one, two]),
                        _ => channels!(parts),
                    }
                }
            }
        }
    };
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    use std::arch::x86_64::*;

    use super::super::masks::x86::*;
    use super::Pack;

    #[target_feature(enable = "avx512f")]
    fn or512(a: __m512, b: __m512) -> __m512 {
        _mm512_castsi512_ps(_mm512_or_epi32(
            _mm512_castps_si512(a),
            _mm512_castps_si512(b),
        ))
    }

    kernels!(
        pack512,
        "avx512f",
        16,
        __m512,
        _mm512_setzero_ps(),
        _mm512_storeu_ps,
        _mm512_fmadd_ps,
        _mm512_set1_ps,
        or512,
        _mm512_max_ps,
        load_mask512,
        bits512,
        halve512,
        gather512
    );

    kernels!(
        pack256,
        "avx2,fma",
        8,
        __m256,
        _mm256_setzero_ps(),
        _mm256_storeu_ps,
        _mm256_fmadd_ps,
        _mm256_set1_ps,
        _mm256_or_ps,
        _mm256_max_ps,
        load_mask256,
        bits256,
        halve256,
        gather256
    );

    macro_rules! by_stride {
        ($f:ident, $p:expr) => {
            match ($p.stride, $p.before.is_some()) {
                (1, false) => $f::<1, false>($p),
                (2, false) => $f::<2, false>($p),
                (_, false) => $f::<3, false>($p),
                (1, true) => $f::<1, true>($p),
                (2, true) => $f::<2, true>($p),
                (_, true) => $f::<3, true>($p),
            }
        };
    }

    /// # Safety
    /// As [`super::pack`].
    pub(super) unsafe fn pack_avx512(p: Pack<'_>) {
        // SAFETY: passed on.
        unsafe { by_stride!(pack512, p) }
    }

    /// # Safety
    /// As [`super::pack`].
    pub(super) unsafe fn pack_avx2(p: Pack<'_>) {
        // SAFETY: passed on.
        unsafe { by_stride!(pack256, p) }
    }
}

/// Calls for the pixels that [`pack`] will copy, with a kernel of one entry.
pub(super) fn fetch(p: &Pack<'_>) {
    #[cfg(target_arch = "x86_64")]
    {
        use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
        for channel in p.first..p.last {
            let image = p.image.wrapping_add(channel * p.channel);
            for chunk in p.chunks {
                let at = image.wrapping_offset(chunk.from as isize);
                #[expect(unsafe_code, reason = "vector intrinsics")]
                // SAFETY: a hint, which may name any address; every such processor has it.
                unsafe {
                    _mm_prefetch::<_MM_HINT_T0>(at.cast());
                }
            }
        }
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = p;
}

/// # Safety
/// `isa` is not portable and the processor has it; the chunks' masks let elements of the image
/// through only; each kernel entry has chunks, of as many vectors as a row of `pitch` has; `out` has
/// the rows, and what comes before has numbers for all channels.
pub(super) unsafe fn pack(isa: Isa, p: Pack<'_>) {
    // SAFETY: passed on.
    unsafe {
        match isa {
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512 => x86::pack_avx512(p),
            #[cfg(target_arch = "x86_64")]
            Isa::Avx2 => x86::pack_avx2(p),
            Isa::Portable => unreachable!("{} rows at {}", p.last - p.first, p.pitch),
        }
    }
}
