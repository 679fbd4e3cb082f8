//! The innermost loops of convolutions by panels: copies of patches, and products of a packed
//! weight with a panel.

#![expect(unsafe_code, reason = "vector intrinsics over raw pointers")]

use super::patch::Chunk;
use crate::kernels::tile::Isa;

/// How far ahead of its use the weight is called for: large ones come from afar.
#[cfg(target_arch = "x86_64")]
const AHEAD: usize = 512;

/// Output channels and vectors of pixels that a [`tile`] has in registers.
pub(super) fn size(isa: Isa) -> (usize, usize) {
    match isa {
        #[cfg(target_arch = "x86_64")]
        Isa::Avx512 => (8, 3),
        #[cfg(target_arch = "x86_64")]
        Isa::Avx2 => (4, 3),
        Isa::Portable => (1, 1),
    }
}

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

/// What is done to a sum when it is whole.
#[derive(Clone, Copy)]
pub(super) struct Finish {
    /// A number for each row of the tile, or null.
    pub(super) bias: *const f32,
    /// Laid out as `out`, or null.
    pub(super) residual: *const f32,
    pub(super) clamp: Option<[f32; 2]>,
}

/// One tile: `out[r][j] = sum over p < k of a[p][r] * b[p][j]`.
#[derive(Clone, Copy)]
pub(super) struct Tile {
    pub(super) k: usize,
    /// `[k, rows]`.
    pub(super) a: *const f32,
    /// `[k, whole vectors]`.
    pub(super) b: *const f32,
    pub(super) out: *mut f32,
    pub(super) out_row: usize,
    /// Columns of `out` to write.
    pub(super) cols: usize,
    /// Whether the sum starts with what `out` holds.
    pub(super) add: bool,
    pub(super) finish: Option<Finish>,
}

macro_rules! kernels {
    ($pack:ident, $tile:ident, $write:ident, $features:literal, $lanes:literal, $vec:ty, $zero:expr,
     $load:ident, $store:ident, $fma:ident, $splat:ident, $add:ident, $max:ident, $min:ident,
     $mask:ident, $load_mask:ident, $store_mask:ident, $bits:ident, $halve:ident,
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
                for chunk in chunks {
                    let mut from = p.image.wrapping_offset(chunk.from as isize);
                    from = from.wrapping_add(start * p.channel);
                    let row = (start * p.taps + tap).wrapping_sub(p.first);
                    let mut out = p
                        .out
                        .wrapping_add(row.wrapping_mul(p.pitch) + chunk.to as usize);
                    let room = p.pitch - chunk.to as usize;
                    let (bits, whole) = ($bits(chunk.mask), room >= $lanes);
                    let mask = $mask(room.min($lanes));
                    let (scale, offset, low) = match p.before {
                        Some(before) if BEFORE => before,
                        _ => (std::ptr::null(), std::ptr::null(), 0.0),
                    };
                    for channel in start..end {
                        // SAFETY: the caller vouches for what the masks let through, and for rows
                        // of `pitch`.
                        unsafe {
                            let mut v: $vec = match STRIDE {
                                1 => $load_mask(from, bits),
                                2 => $halve(from, chunk.mask),
                                _ => $gather(from, bits, p.stride),
                            };
                            if BEFORE {
                                let (a, b) = (*scale.add(channel), *offset.add(channel));
                                v = $max($splat(low), $fma(v, $splat(a), $splat(b)));
                            }
                            // What a whole vector writes too much, the next chunk overwrites.
                            if whole {
                                $store(out, v);
                            } else {
                                $store_mask(out, mask, v);
                            }
                        }
                        from = from.wrapping_add(p.channel);
                        out = out.wrapping_add(p.pitch * p.taps);
                    }
                }
            }
        }

        /// # Safety
        /// As [`tile`].
        #[target_feature(enable = $features)]
        unsafe fn $tile<const ROWS: usize, const NV: usize>(t: Tile) {
            let zero: $vec = $zero;
            let mut sums = [[zero; NV]; ROWS];
            // What is read and written when the sums are whole.
            let residual = t.finish.map_or(std::ptr::null(), |finish| finish.residual);
            let olds = [t.out.cast_const(), residual];
            for old in olds.into_iter().filter(|old| !old.is_null()) {
                for r in 0..ROWS {
                    for v in 0..NV {
                        let at = old.wrapping_add(r * t.out_row + v * $lanes);
                        _mm_prefetch::<_MM_HINT_T0>(at.cast());
                    }
                }
            }
            let (mut a, mut b) = (t.a, t.b);
            for _ in 0..t.k {
                // SAFETY: the caller vouches for `k` rows of both.
                unsafe {
                    // The tiles of a block lie one after the other.
                    _mm_prefetch::<_MM_HINT_T0>(a.wrapping_add(AHEAD).cast());
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
                    b = b.add(NV * $lanes);
                }
            }
            // By way of memory: a loop that branches would keep the sums from registers.
            let mut block = [[zero; NV]; ROWS];
            for r in 0..ROWS {
                for v in 0..NV {
                    // SAFETY: one vector of the block.
                    unsafe { $store((&raw mut block[r][v]).cast(), sums[r][v]) };
                }
            }
            // SAFETY: passed on.
            unsafe { $write(&t, &block) };
        }

        /// Finishes the sums of a tile.
        ///
        /// # Safety
        /// As [`tile`].
        #[inline]
        #[target_feature(enable = $features)]
        unsafe fn $write<const ROWS: usize, const NV: usize>(t: &Tile, block: &[[$vec; NV]; ROWS]) {
            for (r, row) in block.iter().enumerate() {
                for (v, &sum) in row.iter().enumerate() {
                    let mask = $mask(t.cols.saturating_sub(v * $lanes).min($lanes));
                    let at = r * t.out_row + v * $lanes;
                    let mut sum = sum;
                    // SAFETY: masked to the tile's columns, which the caller vouches for.
                    unsafe {
                        let out = t.out.wrapping_add(at);
                        if t.add {
                            sum = $add(sum, $load_mask(out, mask));
                        }
                        if let Some(finish) = t.finish {
                            if !finish.bias.is_null() {
                                sum = $add(sum, $splat(*finish.bias.add(r)));
                            }
                            if !finish.residual.is_null() {
                                let residual = finish.residual.wrapping_add(at);
                                sum = $add(sum, $load_mask(residual, mask));
                            }
                            if let Some([low, high]) = finish.clamp {
                                // The second operand wins if one is NaN.
                                sum = $min($splat(high), $max($splat(low), sum));
                            }
                        }
                        $store_mask(out, mask, sum);
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
    use super::{AHEAD, Pack, Tile};

    kernels!(
        pack512,
        tile512,
        write512,
        "avx512f",
        16,
        __m512,
        _mm512_setzero_ps(),
        _mm512_loadu_ps,
        _mm512_storeu_ps,
        _mm512_fmadd_ps,
        _mm512_set1_ps,
        _mm512_add_ps,
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
        pack256,
        tile256,
        write256,
        "avx2,fma",
        8,
        __m256,
        _mm256_setzero_ps(),
        _mm256_loadu_ps,
        _mm256_storeu_ps,
        _mm256_fmadd_ps,
        _mm256_set1_ps,
        _mm256_add_ps,
        _mm256_max_ps,
        _mm256_min_ps,
        mask256,
        load_mask256,
        _mm256_maskstore_ps,
        bits256,
        halve256,
        gather256
    );

    /// A tile of eight rows and few columns: the rows in the lanes, `UNROLL` entries at once to hide
    /// the latency.
    ///
    /// # Safety
    /// As [`super::tile`]; the panel has rows of one vector.
    #[target_feature(enable = "avx512f")]
    unsafe fn narrow512<const COLS: usize, const UNROLL: usize>(t: Tile) {
        let mut sums = [[_mm256_setzero_ps(); COLS]; UNROLL];
        let (mut a, mut b) = (t.a, t.b);
        for _ in 0..t.k / UNROLL {
            for of in &mut sums {
                // SAFETY: the caller vouches for `k` rows of both.
                unsafe {
                    let rows = _mm256_loadu_ps(a);
                    for c in 0..COLS {
                        of[c] = _mm256_fmadd_ps(rows, _mm256_set1_ps(*b.add(c)), of[c]);
                    }
                    a = a.add(8);
                    b = b.add(16);
                }
            }
        }
        for _ in 0..t.k % UNROLL {
            // SAFETY: as above.
            unsafe {
                let rows = _mm256_loadu_ps(a);
                for c in 0..COLS {
                    sums[0][c] = _mm256_fmadd_ps(rows, _mm256_set1_ps(*b.add(c)), sums[0][c]);
                }
                a = a.add(8);
                b = b.add(16);
            }
        }
        for u in 1..UNROLL {
            for c in 0..COLS {
                sums[0][c] = _mm256_add_ps(sums[0][c], sums[u][c]);
            }
        }
        let mut turned = [0f32; 128];
        for c in 0..COLS {
            let mut column = [0f32; 8];
            // SAFETY: eight lanes.
            unsafe { _mm256_storeu_ps(column.as_mut_ptr(), sums[0][c]) };
            for (r, v) in column.into_iter().enumerate() {
                turned[r * 16 + c] = v;
            }
        }
        let mut block = [[_mm512_setzero_ps(); 1]; 8];
        for (of, row) in block.iter_mut().zip(turned.chunks_exact(16)) {
            // SAFETY: sixteen lanes.
            of[0] = unsafe { _mm512_loadu_ps(row.as_ptr()) };
        }
        // SAFETY: passed on.
        unsafe { write512(&t, &block) };
    }

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

    macro_rules! by_vectors {
        ($f:ident, $rows:literal, $vectors:expr, $t:expr) => {
            match $vectors {
                1 => $f::<$rows, 1>($t),
                2 => $f::<$rows, 2>($t),
                _ => $f::<$rows, 3>($t),
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

    /// # Safety
    /// As [`super::tile`].
    pub(super) unsafe fn tile_avx512(rows: usize, vectors: usize, t: Tile) {
        // SAFETY: passed on.
        unsafe {
            match rows {
                8 if vectors == 1 && t.cols <= 4 => match t.cols {
                    1 => narrow512::<1, 8>(t),
                    2 => narrow512::<2, 4>(t),
                    3 => narrow512::<3, 4>(t),
                    _ => narrow512::<4, 2>(t),
                },
                1 => by_vectors!(tile512, 1, vectors, t),
                2 => by_vectors!(tile512, 2, vectors, t),
                3 => by_vectors!(tile512, 3, vectors, t),
                4 => by_vectors!(tile512, 4, vectors, t),
                5 => by_vectors!(tile512, 5, vectors, t),
                6 => by_vectors!(tile512, 6, vectors, t),
                7 => by_vectors!(tile512, 7, vectors, t),
                _ => by_vectors!(tile512, 8, vectors, t),
            }
        }
    }

    /// # Safety
    /// As [`super::tile`].
    pub(super) unsafe fn tile_avx2(rows: usize, vectors: usize, t: Tile) {
        // SAFETY: passed on.
        unsafe {
            match rows {
                1 => by_vectors!(tile256, 1, vectors, t),
                2 => by_vectors!(tile256, 2, vectors, t),
                3 => by_vectors!(tile256, 3, vectors, t),
                _ => by_vectors!(tile256, 4, vectors, t),
            }
        }
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
/// through only; chunks start in a row of `pitch`, ascending; `out` has the rows, and what comes
/// before has numbers for all channels.
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

/// # Safety
/// `isa` is not portable and the processor has it; `rows` and `vectors` are 1 to those of
/// [`size`]; the pointers cover the tile's sizes.
pub(super) unsafe fn tile(isa: Isa, rows: usize, vectors: usize, t: Tile) {
    // SAFETY: passed on.
    unsafe {
        match isa {
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512 => x86::tile_avx512(rows, vectors, t),
            #[cfg(target_arch = "x86_64")]
            Isa::Avx2 => x86::tile_avx2(rows, vectors, t),
            Isa::Portable => unreachable!("{rows} by {vectors} of {}", t.k),
        }
    }
}
