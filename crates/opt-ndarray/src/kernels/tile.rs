//! Register tiles: the innermost part of a matrix product, for each instruction set.

#![expect(unsafe_code, reason = "vector intrinsics over raw pointers")]

use std::sync::OnceLock;

/// The vector instructions that the processor has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Isa {
    /// 512-bit vectors.
    #[cfg(target_arch = "x86_64")]
    Avx512,
    /// 256-bit vectors with fused multiply-add.
    #[cfg(target_arch = "x86_64")]
    Avx2,
    /// What every processor of the target has.
    Portable,
}

impl Isa {
    /// The best that this processor has.
    pub(crate) fn get() -> Isa {
        static ISA: OnceLock<Isa> = OnceLock::new();
        *ISA.get_or_init(|| {
            #[cfg(target_arch = "x86_64")]
            {
                if is_x86_feature_detected!("avx512f")
                    && is_x86_feature_detected!("avx512dq")
                    && is_x86_feature_detected!("avx512bw")
                    && is_x86_feature_detected!("avx512vl")
                    && is_x86_feature_detected!("fma")
                {
                    return Isa::Avx512;
                }
                if is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") {
                    return Isa::Avx2;
                }
            }
            Isa::Portable
        })
    }

    /// Lanes of an `f32` vector.
    pub(super) fn lanes(self) -> usize {
        match self {
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512 => 16,
            #[cfg(target_arch = "x86_64")]
            Isa::Avx2 => 8,
            Isa::Portable => 4,
        }
    }
}

/// Columns of a panel of the right operand: two vectors, or one where that is enough.
pub(super) fn panel(isa: Isa, n: usize) -> usize {
    let lanes = isa.lanes();
    if n <= lanes { lanes } else { 2 * lanes }
}

/// One register tile: `out[rows, cols]` from `rows` rows of `a` and a panel of `b`.
#[derive(Clone, Copy)]
pub(super) struct Tile {
    pub(super) k: usize,
    pub(super) a: *const f32,
    /// Between rows of `a`; 1 where they are packed.
    pub(super) a_row: usize,
    pub(super) a_col: usize,
    /// Rows of `vectors * lanes` readable entries, `b_row` apart.
    pub(super) b: *const f32,
    pub(super) b_row: usize,
    pub(super) out: *mut f32,
    pub(super) out_row: usize,
    /// Columns of `out` to write.
    pub(super) cols: usize,
    /// Entries that the product is added to, in rows of a distance.
    pub(super) base: Option<(*const f32, usize)>,
    pub(super) bias: Bias,
}

/// A bias that a tile's product is added to.
#[derive(Clone, Copy)]
pub(super) enum Bias {
    None,
    /// An entry a column.
    Row(*const f32),
    /// An entry a row.
    Column(*const f32),
}

/// Vectors side by side in the widest tile of so many rows of an instruction set: with few rows
/// there are registers for more, and longer runs of `b` are read at once.
pub(super) fn wide(isa: Isa, rows: usize) -> usize {
    match (isa, rows) {
        #[cfg(target_arch = "x86_64")]
        (Isa::Avx512, 1) => 16,
        #[cfg(target_arch = "x86_64")]
        (Isa::Avx512, 2) => 8,
        #[cfg(target_arch = "x86_64")]
        (Isa::Avx512, 3 | 4) => 4,
        #[cfg(target_arch = "x86_64")]
        (Isa::Avx2, 1) => 8,
        #[cfg(target_arch = "x86_64")]
        (Isa::Avx2, 2) => 4,
        _ => 2,
    }
}

/// The tile function of an instruction set, from its vector operations.
macro_rules! tile_kernel {
    ($name:ident, $features:literal, $lanes:literal, $vec:ty, $zero:expr, $load:ident,
     $fma:ident, $splat:ident, $add:ident, $mask:ident, $load_mask:ident, $store_mask:ident) => {
        /// # Safety
        /// The processor has the features, and the pointers of the tile are valid for its sizes;
        /// `a_row` is 1 if `PACKED`.
        #[target_feature(enable = $features)]
        unsafe fn $name<
            const ROWS: usize,
            const NV: usize,
            const UNROLL: usize,
            const PACKED: bool,
        >(
            t: Tile,
        ) {
            let zero: $vec = $zero;
            let a_row = if PACKED { 1 } else { t.a_row };
            let mut sums = [[[zero; NV]; ROWS]; UNROLL];
            for r in 0..ROWS {
                for v in 0..NV {
                    let out = t.out.wrapping_add(r * t.out_row + v * $lanes);
                    _mm_prefetch::<_MM_HINT_T0>(out.cast());
                }
            }
            // SAFETY: the caller vouches for `k` rows of `b` and `ROWS` rows of `a`.
            unsafe {
                let (mut a, mut b) = (t.a, t.b);
                for _ in 0..t.k / UNROLL {
                    for u in 0..UNROLL {
                        let mut columns = [zero; NV];
                        for v in 0..NV {
                            columns[v] = $load(b.add(v * $lanes));
                        }
                        if PACKED {
                            let ahead = a.wrapping_add(PREFETCH * t.a_col);
                            _mm_prefetch::<_MM_HINT_T0>(ahead.cast());
                        }
                        // Few rows wait for `b`, whose rows may be pages apart.
                        for v in 0..if NV > 2 { NV } else { 0 } {
                            let ahead = b.wrapping_add(ROWS_AHEAD * t.b_row + v * $lanes);
                            _mm_prefetch::<_MM_HINT_T0>(ahead.cast());
                        }
                        for r in 0..ROWS {
                            let x = $splat(*a.add(r * a_row));
                            for v in 0..NV {
                                sums[u][r][v] = $fma(x, columns[v], sums[u][r][v]);
                            }
                        }
                        a = a.wrapping_add(t.a_col);
                        b = b.wrapping_add(t.b_row);
                    }
                }
                for _ in 0..t.k % UNROLL {
                    let mut columns = [zero; NV];
                    for v in 0..NV {
                        columns[v] = $load(b.add(v * $lanes));
                    }
                    for r in 0..ROWS {
                        let x = $splat(*a.add(r * a_row));
                        for v in 0..NV {
                            sums[0][r][v] = $fma(x, columns[v], sums[0][r][v]);
                        }
                    }
                    a = a.wrapping_add(t.a_col);
                    b = b.wrapping_add(t.b_row);
                }
            }
            for u in 1..UNROLL {
                for r in 0..ROWS {
                    for v in 0..NV {
                        sums[0][r][v] = $add(sums[0][r][v], sums[u][r][v]);
                    }
                }
            }
            let sums = &mut sums[0];
            let mut masks = [$mask(0); NV];
            for v in 0..NV {
                masks[v] = $mask(t.cols.saturating_sub(v * $lanes).min($lanes));
            }
            // Each loop is short enough to be unrolled whole. One that is not keeps the sums in
            // memory, from where every multiplication above would then fetch them.
            // SAFETY: masked to the tile's columns, which the caller vouches for.
            unsafe {
                if let Some((base, row)) = t.base {
                    for r in 0..ROWS {
                        for v in 0..NV {
                            let p = base.wrapping_add(r * row + v * $lanes);
                            sums[r][v] = $add(sums[r][v], $load_mask(p, masks[v]));
                        }
                    }
                }
                match t.bias {
                    Bias::None => {}
                    Bias::Row(p) => {
                        for v in 0..NV {
                            let x = $load_mask(p.wrapping_add(v * $lanes), masks[v]);
                            for r in 0..ROWS {
                                sums[r][v] = $add(sums[r][v], x);
                            }
                        }
                    }
                    Bias::Column(p) => {
                        for r in 0..ROWS {
                            let x = $splat(*p.add(r));
                            for v in 0..NV {
                                sums[r][v] = $add(sums[r][v], x);
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
pub(super) mod x86 {
    use std::arch::x86_64::*;

    use super::{Bias, Tile};

    /// Steps of `k` that packed rows are fetched ahead.
    const PREFETCH: usize = 16;

    /// Rows of a wide panel that are fetched ahead.
    const ROWS_AHEAD: usize = 4;

    /// A tile function with the number of rows as a constant, so that the sums stay in registers.
    macro_rules! by_rows {
        ($rows:expr, $f:ident, $tile:expr, $nv:tt, $packed:tt, [$($large:literal)*]) => {
            match $rows {
                // Few rows give few independent sums: several entries of k at once hide the
                // latency.
                1 => $f::<1, $nv, 4, $packed>($tile),
                2 => $f::<2, $nv, 2, $packed>($tile),
                3 => $f::<3, $nv, 2, $packed>($tile),
                $($large => $f::<$large, $nv, 1, $packed>($tile),)*
                rows => unreachable!("a tile of {rows} rows"),
            }
        };
    }

    #[target_feature(enable = "avx512f")]
    fn mask512(n: usize) -> __mmask16 {
        ((1u32 << n) - 1) as __mmask16
    }

    #[target_feature(enable = "avx512f")]
    unsafe fn load_mask512(p: *const f32, mask: __mmask16) -> __m512 {
        // SAFETY: only masked entries are read.
        unsafe { _mm512_maskz_loadu_ps(mask, p) }
    }

    tile_kernel!(
        tile512,
        "avx512f",
        16,
        __m512,
        _mm512_setzero_ps(),
        _mm512_loadu_ps,
        _mm512_fmadd_ps,
        _mm512_set1_ps,
        _mm512_add_ps,
        mask512,
        load_mask512,
        _mm512_mask_storeu_ps
    );

    #[target_feature(enable = "avx2,fma")]
    fn mask256(n: usize) -> __m256i {
        let lanes = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
        _mm256_cmpgt_epi32(_mm256_set1_epi32(n as i32), lanes)
    }

    #[target_feature(enable = "avx2,fma")]
    unsafe fn load_mask256(p: *const f32, mask: __m256i) -> __m256 {
        // SAFETY: only masked entries are read.
        unsafe { _mm256_maskload_ps(p, mask) }
    }

    /// Transposes a square of 8 rows and columns.
    #[target_feature(enable = "avx2")]
    pub(in crate::kernels) fn transpose8(
        source: &[f32],
        from: usize,
        target: &mut [f32],
        to: usize,
    ) {
        assert!(source.len() >= 7 * from + 8 && target.len() >= 7 * to + 8);
        // SAFETY: the bounds were checked.
        let load = |i: usize| unsafe { _mm256_loadu_ps(source.as_ptr().add(i * from)) };
        let mut pairs = [_mm256_setzero_ps(); 8];
        for i in 0..4 {
            let (a, b) = (load(2 * i), load(2 * i + 1));
            pairs[2 * i] = _mm256_unpacklo_ps(a, b);
            pairs[2 * i + 1] = _mm256_unpackhi_ps(a, b);
        }
        let mut quads = [_mm256_setzero_ps(); 8];
        for i in 0..2 {
            for half in 0..2 {
                let (a, b) = (pairs[4 * i + half], pairs[4 * i + 2 + half]);
                quads[4 * i + 2 * half] = _mm256_shuffle_ps::<0b01_00_01_00>(a, b);
                quads[4 * i + 2 * half + 1] = _mm256_shuffle_ps::<0b11_10_11_10>(a, b);
            }
        }
        for i in 0..4 {
            let (a, b) = (quads[i], quads[4 + i]);
            let low = _mm256_permute2f128_ps::<0x20>(a, b);
            let high = _mm256_permute2f128_ps::<0x31>(a, b);
            // SAFETY: the bounds were checked.
            unsafe {
                _mm256_storeu_ps(target.as_mut_ptr().add(i * to), low);
                _mm256_storeu_ps(target.as_mut_ptr().add((i + 4) * to), high);
            }
        }
    }

    tile_kernel!(
        tile256,
        "avx2,fma",
        8,
        __m256,
        _mm256_setzero_ps(),
        _mm256_loadu_ps,
        _mm256_fmadd_ps,
        _mm256_set1_ps,
        _mm256_add_ps,
        mask256,
        load_mask256,
        _mm256_maskstore_ps
    );

    /// # Safety
    /// As [`tile512`]; `vectors` is at most 2 or what [`super::wide`] says.
    pub(super) unsafe fn avx512(rows: usize, vectors: usize, t: Tile) {
        // SAFETY: passed on.
        unsafe {
            match (vectors, t.a_row == 1) {
                (1, false) => by_rows!(rows, tile512, t, 1, false, [4 5 6 7 8 9 10 11 12]),
                (1, true) => by_rows!(rows, tile512, t, 1, true, [4 5 6 7 8 9 10 11 12]),
                (2, false) => by_rows!(rows, tile512, t, 2, false, [4 5 6 7 8 9 10 11 12]),
                (2, true) => by_rows!(rows, tile512, t, 2, true, [4 5 6 7 8 9 10 11 12]),
                _ => match (rows, vectors) {
                    (1, 16) => tile512::<1, 16, 1, false>(t),
                    (2, 8) => tile512::<2, 8, 1, false>(t),
                    (3, 4) => tile512::<3, 4, 1, false>(t),
                    (4, 4) => tile512::<4, 4, 1, false>(t),
                    _ => unreachable!("a tile of {rows} rows and {vectors} vectors"),
                },
            }
        }
    }

    /// # Safety
    /// As [`tile256`]; `vectors` is at most 2 or what [`super::wide`] says.
    pub(super) unsafe fn avx2(rows: usize, vectors: usize, t: Tile) {
        // The 16 registers hold the sums of six rows.
        for start in (0..rows).step_by(6) {
            let part = Tile {
                a: t.a.wrapping_add(start * t.a_row),
                out: t.out.wrapping_add(start * t.out_row),
                base: t.base.map(|(p, row)| (p.wrapping_add(start * row), row)),
                bias: match t.bias {
                    Bias::Column(p) => Bias::Column(p.wrapping_add(start)),
                    other => other,
                },
                ..t
            };
            let rows = (rows - start).min(6);
            // SAFETY: passed on.
            unsafe {
                match (vectors, part.a_row == 1) {
                    (1, false) => by_rows!(rows, tile256, part, 1, false, [4 5 6]),
                    (1, true) => by_rows!(rows, tile256, part, 1, true, [4 5 6]),
                    (2, false) => by_rows!(rows, tile256, part, 2, false, [4 5 6]),
                    (2, true) => by_rows!(rows, tile256, part, 2, true, [4 5 6]),
                    _ => match (rows, vectors) {
                        (1, 8) => tile256::<1, 8, 1, false>(part),
                        (2, 4) => tile256::<2, 4, 1, false>(part),
                        _ => unreachable!("a tile of {rows} rows and {vectors} vectors"),
                    },
                }
            }
        }
    }
}

/// # Safety
/// The pointers of the tile are valid for its sizes.
unsafe fn portable(rows: usize, vectors: usize, t: Tile) {
    let width = vectors * Isa::Portable.lanes();
    for r in 0..rows {
        let mut sums = [0f32; 8];
        // SAFETY: the caller vouches for the pointers.
        unsafe {
            for p in 0..t.k {
                let x = *t.a.add(r * t.a_row + p * t.a_col);
                let b = std::slice::from_raw_parts(t.b.add(p * t.b_row), width);
                for (sum, &y) in sums.iter_mut().zip(b) {
                    *sum += x * y;
                }
            }
            for (j, &sum) in sums.iter().enumerate().take(t.cols) {
                let base = t.base.map_or(0.0, |(p, row)| *p.add(r * row + j));
                let bias = match t.bias {
                    Bias::None => 0.0,
                    Bias::Row(p) => *p.add(j),
                    Bias::Column(p) => *p.add(r),
                };
                *t.out.add(r * t.out_row + j) = sum + base + bias;
            }
        }
    }
}

/// # Safety
/// The pointers of the tile are valid for its sizes; `isa` comes from [`Isa::get`]; `vectors` is
/// at most 2 or what [`wide`] says.
pub(super) unsafe fn tile(isa: Isa, rows: usize, vectors: usize, t: Tile) {
    // SAFETY: passed on.
    unsafe {
        match isa {
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512 => x86::avx512(rows, vectors, t),
            #[cfg(target_arch = "x86_64")]
            Isa::Avx2 => x86::avx2(rows, vectors, t),
            Isa::Portable => portable(rows, vectors, t),
        }
    }
}
