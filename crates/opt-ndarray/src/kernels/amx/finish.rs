//! From tiles of sums to outputs: what is added, scale, activation, rounding.

use std::arch::x86_64::{
    __m256i, __m512, __m512i, _MM_FROUND_NO_EXC, _MM_FROUND_TO_NEAREST_INT, _mm_mask_storeu_epi8,
    _mm256_mask_storeu_epi8, _mm512_add_epi32, _mm512_adds_epi16, _mm512_castsi512_si256,
    _mm512_cvt_roundps_epi32, _mm512_cvtepi32_epi8, _mm512_cvtepi32_ps, _mm512_extracti64x4_epi64,
    _mm512_loadu_ps, _mm512_loadu_si512, _mm512_mask_storeu_ps, _mm512_maskz_compress_ps,
    _mm512_max_ps, _mm512_min_ps, _mm512_mul_ps, _mm512_packs_epi16, _mm512_packs_epi32,
    _mm512_packus_epi16, _mm512_permutexvar_epi32, _mm512_set1_epi16, _mm512_set1_epi32,
    _mm512_set1_ps, _mm512_setr_epi32, _mm512_setzero_ps,
};

use super::super::SharedMut;
use super::super::int8::Finish;
use super::{ROWS, TILE};

/// Four tiles of sums as [`super::Block::run`] writes them, and what becomes of them.
pub(super) struct Sums<'a> {
    pub(super) finish: &'a Finish,
    pub(super) sums: *const i32,
    /// What is added, one an output of the two tiles.
    pub(super) start: &'a [i32],
    /// The scales, one an output of the two tiles.
    pub(super) multiplier: &'a [f32],
}

/// Where the sums of a block go: row `r` starts at element `first + r * pitch`.
pub(super) struct Target<'a> {
    pub(super) out: &'a SharedMut<'a, u8>,
    /// Bytes of an element.
    pub(super) size: usize,
    pub(super) first: usize,
    pub(super) pitch: usize,
}

impl Target<'_> {
    /// The address of `len` elements of a row.
    #[inline(always)]
    fn row(&self, row: usize, skip: usize, len: usize) -> *mut u8 {
        let at = (self.first + row * self.pitch + skip) * self.size;
        assert!(at + len * self.size <= self.out.len());
        self.out.at(at)
    }
}

/// Rounds half to even, as `f32::round_ties_even`.
const NEAREST: i32 = _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC;

/// The lowest `n` lanes.
fn lowest(n: usize) -> u32 {
    if n >= 32 { u32::MAX } else { (1 << n) - 1 }
}

/// Sixteen sums and what is added, scaled.
///
/// # Safety
/// `sums` points to 16 numbers.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl")]
unsafe fn scaled(sums: *const i32, start: __m512i, multiplier: __m512) -> __m512 {
    // SAFETY: as the caller vouches.
    let sums = unsafe { _mm512_loadu_si512(sums.cast()) };
    _mm512_mul_ps(
        _mm512_cvtepi32_ps(_mm512_add_epi32(sums, start)),
        multiplier,
    )
}

/// Writes the lanes of a mask.
///
/// # Safety
/// The lanes of the mask can be written at `to`, which is aligned for the output's type.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl")]
unsafe fn put(finish: &Finish, scaled: __m512, mask: u16, to: *mut u8) {
    match *finish {
        // Clamping to integers before rounding is the same as after, and cannot overflow; the
        // multipliers are finite, so that there is no NaN.
        Finish::Requantize { zero, low, high } => {
            let scaled = _mm512_max_ps(scaled, _mm512_set1_ps((low - zero) as f32));
            let scaled = _mm512_min_ps(scaled, _mm512_set1_ps((high - zero) as f32));
            let rounded = _mm512_cvt_roundps_epi32::<NEAREST>(scaled);
            let bytes = _mm512_cvtepi32_epi8(_mm512_add_epi32(rounded, _mm512_set1_epi32(zero)));
            // SAFETY: as the caller vouches.
            unsafe { _mm_mask_storeu_epi8(to.cast(), mask, bytes) };
        }
        Finish::Dequantize { relu } => {
            // The second operand where the first is a NaN.
            let scaled = if relu {
                _mm512_max_ps(scaled, _mm512_setzero_ps())
            } else {
                scaled
            };
            // SAFETY: as the caller vouches.
            unsafe { _mm512_mask_storeu_ps(to.cast(), mask, scaled) };
        }
    }
}

/// Two rows of 32 sums, scaled, as bytes.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl")]
fn requantize(rows: [__m512; 4], zero: i32, low: i32, high: i32) -> [__m256i; 2] {
    let signed = high <= i32::from(i8::MAX);
    let (low, high) = (
        _mm512_set1_ps((low - zero) as f32),
        _mm512_set1_ps((high - zero) as f32),
    );
    let mut rounded = [_mm512_set1_epi32(0); 4];
    for (to, row) in rounded.iter_mut().zip(rows) {
        let row = _mm512_min_ps(_mm512_max_ps(row, low), high);
        *to = _mm512_cvt_roundps_epi32::<NEAREST>(row);
    }
    let [a, b, c, d] = rounded;
    let zeros = _mm512_set1_epi16(zero as i16);
    let upper = _mm512_adds_epi16(_mm512_packs_epi32(a, b), zeros);
    let lower = _mm512_adds_epi16(_mm512_packs_epi32(c, d), zeros);
    // The range is clamped already, so that packing with the type's sign loses nothing.
    let bytes = if signed {
        _mm512_packs_epi16(upper, lower)
    } else {
        _mm512_packus_epi16(upper, lower)
    };
    // The packing goes by 128-bit lanes.
    let order = _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
    let bytes = _mm512_permutexvar_epi32(order, bytes);
    [
        _mm512_castsi512_si256(bytes),
        _mm512_extracti64x4_epi64::<1>(bytes),
    ]
}

impl Sums<'_> {
    /// A row of sums of a tile of activations (`i`) and one of weights (`j`).
    fn at(&self, i: usize, j: usize, row: usize) -> *const i32 {
        self.sums
            .wrapping_add((i * 2 + j) * (TILE / 4) + row * ROWS)
    }

    /// Writes two rows of 32 outputs, of which the first `len` are stored.
    ///
    /// # Safety
    /// The processor has the features.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512vl")]
    unsafe fn pair(&self, rows: [__m512; 4], first: usize, len: usize, target: &Target<'_>) {
        if let Finish::Requantize { zero, low, high } = *self.finish {
            let [upper, lower] = requantize(rows, zero, low, high);
            let mask = lowest(len);
            // SAFETY: `row` has found room for the lanes of the mask.
            unsafe {
                _mm256_mask_storeu_epi8(target.row(first, 0, len).cast(), mask, upper);
                _mm256_mask_storeu_epi8(target.row(first + 1, 0, len).cast(), mask, lower);
            }
            return;
        }
        for (i, row) in rows.into_iter().enumerate() {
            let (row_index, skip) = (first + i / 2, i % 2 * ROWS);
            let count = len.saturating_sub(skip).min(ROWS);
            if count > 0 {
                let to = target.row(row_index, skip, count);
                // SAFETY: `row` has found room for the lanes.
                unsafe { put(self.finish, row, lowest(count) as u16, to) };
            }
        }
    }

    /// Finishes sums whose rows are those of the output: `rows` of them, `len` outputs each.
    ///
    /// # Safety
    /// The processor has the features; the sums are four tiles.
    #[target_feature(enable = "avx512f,avx512bw,avx512vl")]
    pub(super) unsafe fn rows(&self, rows: usize, len: usize, target: &Target<'_>) {
        assert!(rows <= 2 * ROWS && len <= 2 * ROWS);
        let mut start = [_mm512_set1_epi32(0); 2];
        let mut scale = [_mm512_setzero_ps(); 2];
        for j in 0..2 {
            // SAFETY: 16 numbers each.
            unsafe {
                start[j] = _mm512_loadu_si512(self.start[j * ROWS..][..ROWS].as_ptr().cast());
                scale[j] = _mm512_loadu_ps(self.multiplier[j * ROWS..][..ROWS].as_ptr());
            }
        }
        // SAFETY: rows of the four tiles; `pair` and `row` have found room for what is written.
        unsafe {
            let at = |row: usize, j: usize| {
                let sums = self.at(row / ROWS, j, row % ROWS);
                scaled(sums, start[j], scale[j])
            };
            for row in (0..rows / 2 * 2).step_by(2) {
                let rows = [at(row, 0), at(row, 1), at(row + 1, 0), at(row + 1, 1)];
                self.pair(rows, row, len, target);
            }
            if rows % 2 == 1 {
                for j in 0..len.div_ceil(ROWS) {
                    let count = (len - j * ROWS).min(ROWS);
                    let to = target.row(rows - 1, j * ROWS, count);
                    put(self.finish, at(rows - 1, j), lowest(count) as u16, to);
                }
            }
        }
    }

    /// Finishes sums whose rows are output channels, and whose columns are 32 neighbouring
    /// pixels.
    ///
    /// # Safety
    /// The processor has the features; the sums are four tiles.
    #[target_feature(enable = "avx512f,avx512bw,avx512vl")]
    pub(super) unsafe fn channels(&self, channels: usize, target: &Target<'_>) {
        assert!(channels <= 2 * ROWS);
        // SAFETY: rows of the four tiles; `pair` has found room for what is written.
        unsafe {
            let at = |row: usize, i: usize| {
                let sums = self.at(i, row / ROWS, row % ROWS);
                let start = _mm512_set1_epi32(self.start[row]);
                scaled(sums, start, _mm512_set1_ps(self.multiplier[row]))
            };
            for row in (0..channels / 2 * 2).step_by(2) {
                let rows = [at(row, 0), at(row, 1), at(row + 1, 0), at(row + 1, 1)];
                self.pair(rows, row, 2 * ROWS, target);
            }
        }
        if channels % 2 == 1 {
            // SAFETY: as the caller vouches.
            unsafe {
                self.channel(channels - 1, 0, u16::MAX, target, 0);
                self.channel(channels - 1, 1, u16::MAX, target, ROWS);
            }
        }
    }

    /// Finishes one tile of pixels, of which those of a mask are stored side by side.
    ///
    /// # Safety
    /// The processor has the features; the sums are four tiles.
    #[target_feature(enable = "avx512f,avx512bw,avx512vl")]
    pub(super) unsafe fn pixels(&self, i: usize, channels: usize, mask: u16, target: &Target<'_>) {
        assert!(i < 2 && channels <= 2 * ROWS);
        if mask == 0 {
            return;
        }
        for row in 0..channels {
            // SAFETY: as the caller vouches.
            unsafe { self.channel(row, i, mask, target, 0) };
        }
    }

    /// # Safety
    /// The processor has the features; the sums are four tiles.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512vl")]
    unsafe fn channel(&self, row: usize, i: usize, mask: u16, target: &Target<'_>, skip: usize) {
        let count = mask.count_ones() as usize;
        let start = _mm512_set1_epi32(self.start[row]);
        let scale = _mm512_set1_ps(self.multiplier[row]);
        // SAFETY: a row of the four tiles; `row` has found room for the lanes.
        unsafe {
            let mut row_of = scaled(self.at(i, row / ROWS, row % ROWS), start, scale);
            if mask != u16::MAX {
                row_of = _mm512_maskz_compress_ps(mask, row_of);
            }
            let to = target.row(row, skip, count);
            put(self.finish, row_of, lowest(count) as u16, to);
        }
    }
}
