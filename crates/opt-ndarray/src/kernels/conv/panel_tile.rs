//! The innermost loops of convolutions by panels: products of a packed weight with a panel.

#![expect(unsafe_code, reason = "vector intrinsics over raw pointers")]

use crate::kernels::tile::Isa;

/// How far ahead of its use the weight is called for: large ones come from afar.
#[cfg(target_arch = "x86_64")]
const AHEAD: usize = 512;

/// The columns of a tile of one column more than its vectors have, where there is one.
pub(super) fn odd(isa: Isa) -> Option<usize> {
    match isa {
        #[cfg(target_arch = "x86_64")]
        Isa::Avx512 => Some(49),
        _ => None,
    }
}

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

/// What is done to a sum when it is whole.
#[derive(Clone, Copy)]
pub(super) struct Finish {
    /// A number for each row of the tile, or null.
    pub(super) bias: *const f32,
    /// Laid out as `out`, or null.
    pub(super) residual: *const f32,
    pub(super) clamp: Option<[f32; 2]>,
}

/// Rows of pixels that are called for while a tile is computed, a row for every two entries of the
/// weight: what is read and written when the sums are whole, and what comes after.
#[derive(Clone, Copy)]
pub(super) struct Ahead {
    pub(super) from: *const f32,
    pub(super) pitch: usize,
    pub(super) rows: usize,
}

impl Ahead {
    pub(super) const NOTHING: Ahead = Ahead {
        from: std::ptr::null(),
        pitch: 0,
        rows: 0,
    };
}

/// One tile: `out[r][j] = sum over p < k of a[p][r] * b[p][j]`.
#[derive(Clone, Copy)]
pub(super) struct Tile {
    pub(super) k: usize,
    /// `[k, rows]`.
    pub(super) a: *const f32,
    /// Rows of whole vectors.
    pub(super) b: *const f32,
    pub(super) b_row: usize,
    pub(super) out: *mut f32,
    pub(super) out_row: usize,
    /// Columns of `out` to write.
    pub(super) cols: usize,
    /// Whether the sum starts with what `out` holds.
    pub(super) add: bool,
    pub(super) finish: Option<Finish>,
    pub(super) ahead: [Ahead; 3],
}

macro_rules! kernels {
    ($tile:ident, $write:ident, $features:literal, $lanes:literal, $vec:ty, $zero:expr,
     $load:ident, $fma:ident, $splat:ident, $add:ident, $max:ident, $min:ident, $mask:ident,
     $load_mask:ident, $store_mask:ident) => {
        /// # Safety
        /// As [`tile`].
        #[target_feature(enable = $features)]
        unsafe fn $tile<const ROWS: usize, const NV: usize>(t: Tile) {
            let zero: $vec = $zero;
            let mut sums = [[zero; NV]; ROWS];
            let (mut a, mut b) = (t.a, t.b);
            // One entry of the weight.
            macro_rules! entry {
                () => {
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
                };
                (next) => {
                    entry!();
                    a = a.add(ROWS);
                    b = b.add(t.b_row);
                };
            }
            // SAFETY: the caller vouches for `k` rows of both.
            unsafe {
                let mut pairs = t.k / 2;
                for ahead in t.ahead {
                    let mut from = ahead.from;
                    let own = ahead.rows.min(pairs);
                    pairs -= own;
                    for _ in 0..own {
                        for v in 0..NV {
                            _mm_prefetch::<_MM_HINT_T0>(from.wrapping_add(v * $lanes).cast());
                        }
                        from = from.wrapping_add(ahead.pitch);
                        // The tiles of a block lie one after the other.
                        _mm_prefetch::<_MM_HINT_T0>(a.wrapping_add(AHEAD).cast());
                        entry!(next);
                        entry!(next);
                    }
                }
                for _ in 0..pairs {
                    _mm_prefetch::<_MM_HINT_T0>(a.wrapping_add(AHEAD).cast());
                    entry!(next);
                    entry!(next);
                }
                if t.k % 2 == 1 {
                    entry!();
                }
            }
            // SAFETY: passed on.
            unsafe { $write::<ROWS, NV, 0>(&t, sums) };
        }

        /// Finishes the sums of a tile. A function of its own for each `CALLER`, so that it becomes a
        /// part of it, and takes the sums from where they are.
        ///
        /// # Safety
        /// As [`tile`].
        #[inline]
        #[target_feature(enable = $features)]
        unsafe fn $write<const ROWS: usize, const NV: usize, const CALLER: usize>(
            t: &Tile,
            mut sums: [[$vec; NV]; ROWS],
        ) {
            let mut masks = [$mask(0); NV];
            for v in 0..NV {
                masks[v] = $mask(t.cols.saturating_sub(v * $lanes).min($lanes));
            }
            // Each loop is short enough to be unrolled whole. One that is not keeps the sums in
            // memory, from where every multiplication before would then fetch them.
            // SAFETY: masked to the tile's columns, which the caller vouches for.
            unsafe {
                if t.add {
                    for r in 0..ROWS {
                        for v in 0..NV {
                            let old = t.out.wrapping_add(r * t.out_row + v * $lanes);
                            sums[r][v] = $add(sums[r][v], $load_mask(old, masks[v]));
                        }
                    }
                }
                if let Some(finish) = t.finish {
                    if !finish.bias.is_null() {
                        for r in 0..ROWS {
                            let bias = $splat(*finish.bias.add(r));
                            for v in 0..NV {
                                sums[r][v] = $add(sums[r][v], bias);
                            }
                        }
                    }
                    if !finish.residual.is_null() {
                        for r in 0..ROWS {
                            for v in 0..NV {
                                let at = r * t.out_row + v * $lanes;
                                let residual = finish.residual.wrapping_add(at);
                                sums[r][v] = $add(sums[r][v], $load_mask(residual, masks[v]));
                            }
                        }
                    }
                    if let Some([low, high]) = finish.clamp {
                        let (low, high) = ($splat(low), $splat(high));
                        for r in 0..ROWS {
                            for v in 0..NV {
                                // The second operand wins if one is NaN.
                                sums[r][v] = $min(high, $max(low, sums[r][v]));
                            }
                        }
                    }
                }
                for r in 0..ROWS {
                    for v in 0..NV {
                        let out = t.out.wrapping_add(r * t.out_row + v * $lanes);
                        $store_mask(out, masks[v], sums[r][v]);
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
    use super::super::panels::bounded;
    use super::{AHEAD, Ahead, Finish, Tile};

    kernels!(
        tile512,
        write512,
        "avx512f",
        16,
        __m512,
        _mm512_setzero_ps(),
        _mm512_loadu_ps,
        _mm512_fmadd_ps,
        _mm512_set1_ps,
        _mm512_add_ps,
        _mm512_max_ps,
        _mm512_min_ps,
        mask512,
        load_mask512,
        _mm512_mask_storeu_ps
    );

    kernels!(
        tile256,
        write256,
        "avx2,fma",
        8,
        __m256,
        _mm256_setzero_ps(),
        _mm256_loadu_ps,
        _mm256_fmadd_ps,
        _mm256_set1_ps,
        _mm256_add_ps,
        _mm256_max_ps,
        _mm256_min_ps,
        mask256,
        load_mask256,
        _mm256_maskstore_ps
    );

    /// A tile of eight rows and few columns: the rows in the lanes, `UNROLL` entries at once to hide
    /// the latency.
    ///
    /// # Safety
    /// As [`super::tile`].
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
                    b = b.add(t.b_row);
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
                b = b.add(t.b_row);
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
        unsafe { write512::<8, 1, 1>(&t, block) };
    }

    /// A tile of eight rows, three vectors, and one column more, whose sums are in the lanes of one
    /// vector: images whose sides are multiples of 7 are cut into such.
    ///
    /// # Safety
    /// As [`super::tile`].
    #[target_feature(enable = "avx512f")]
    unsafe fn odd512(t: Tile) {
        let mut sums = [[_mm512_setzero_ps(); 3]; 8];
        let mut more = _mm256_setzero_ps();
        let (mut a, mut b) = (t.a, t.b);
        let mut k = t.k;
        macro_rules! entry {
            () => {
                let mut columns = [_mm512_setzero_ps(); 3];
                for v in 0..3 {
                    columns[v] = _mm512_loadu_ps(b.add(v * 16));
                }
                for r in 0..8 {
                    let x = _mm512_set1_ps(*a.add(r));
                    for v in 0..3 {
                        sums[r][v] = _mm512_fmadd_ps(x, columns[v], sums[r][v]);
                    }
                }
                more = _mm256_fmadd_ps(_mm256_loadu_ps(a), _mm256_set1_ps(*b.add(48)), more);
                _mm_prefetch::<_MM_HINT_T0>(a.wrapping_add(AHEAD).cast());
                a = a.add(8);
                b = b.add(t.b_row);
            };
        }
        // SAFETY: the caller vouches for `k` rows of both.
        unsafe {
            for ahead in t.ahead {
                let mut from = ahead.from;
                let own = ahead.rows.min(k);
                k -= own;
                for _ in 0..own {
                    for v in 0..4 {
                        _mm_prefetch::<_MM_HINT_T0>(from.wrapping_add(v * 16).cast());
                    }
                    from = from.wrapping_add(ahead.pitch);
                    entry!();
                }
            }
            for _ in 0..k {
                entry!();
            }
        }
        let mut column = [0f32; 8];
        // SAFETY: eight lanes; the tile has eight rows of 49 columns.
        unsafe {
            _mm256_storeu_ps(column.as_mut_ptr(), more);
            for (r, mut sum) in column.into_iter().enumerate() {
                let at = r * t.out_row + 48;
                let out = t.out.wrapping_add(at);
                if t.add {
                    sum += *out;
                }
                if let Some(finish) = t.finish {
                    if !finish.bias.is_null() {
                        sum += *finish.bias.add(r);
                    }
                    if !finish.residual.is_null() {
                        sum += *finish.residual.wrapping_add(at);
                    }
                    if let Some([low, high]) = finish.clamp {
                        sum = bounded(sum, low, high);
                    }
                }
                *out = sum;
            }
            write512::<8, 3, 2>(&Tile { cols: 48, ..t }, sums);
        }
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
    /// As [`super::tile`].
    pub(super) unsafe fn tile_avx512(rows: usize, vectors: usize, t: Tile) {
        // SAFETY: passed on.
        unsafe {
            if vectors == 4 {
                if rows == 8 {
                    return odd512(t);
                }
                tile_avx512(rows, 3, Tile { cols: 48, ..t });
                let more = |p: *const f32| match p.is_null() {
                    true => p,
                    false => p.wrapping_add(48),
                };
                let last = Tile {
                    b: t.b.wrapping_add(48),
                    out: t.out.wrapping_add(48),
                    cols: 1,
                    finish: t.finish.map(|finish| Finish {
                        residual: more(finish.residual),
                        ..finish
                    }),
                    ahead: [Ahead::NOTHING; 3],
                    ..t
                };
                return tile_avx512(rows, 1, last);
            }
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

/// # Safety
/// `isa` is not portable and the processor has it; `rows` and `vectors` are 1 to those of
/// [`size`], or one vector more for the columns of [`odd`]; the pointers cover the tile's sizes.
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
