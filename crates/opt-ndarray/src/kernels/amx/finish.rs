//! From tiles of sums to outputs: what is added, scale, activation, rounding.

use std::arch::x86_64::{
    __m512, __m512i, _MM_FROUND_NO_EXC, _MM_FROUND_TO_NEAREST_INT, _mm_mask_storeu_epi8,
    _mm256_mask_storeu_epi8, _mm256_maskz_compress_epi8, _mm512_add_epi32, _mm512_add_ps,
    _mm512_adds_epi16, _mm512_castsi512_si256, _mm512_cvt_roundps_epi32, _mm512_cvtepi32_epi8,
    _mm512_cvtepi32_ps, _mm512_extracti64x4_epi64, _mm512_loadu_ps, _mm512_loadu_si512,
    _mm512_mask_storeu_epi32, _mm512_mask_storeu_ps, _mm512_maskz_compress_epi32,
    _mm512_maskz_compress_ps, _mm512_max_epi8, _mm512_max_epu8, _mm512_max_ps, _mm512_min_ps,
    _mm512_mul_ps, _mm512_packs_epi16, _mm512_packs_epi32, _mm512_packus_epi16,
    _mm512_permutexvar_epi32, _mm512_set1_epi8, _mm512_set1_epi16, _mm512_set1_epi32,
    _mm512_set1_ps, _mm512_setr_epi32, _mm512_setzero_ps,
};

use super::super::SharedMut;
use super::super::int8::Finish;
use super::{ROW, ROWS, TILE};

/// Four tiles of sums as [`super::Block::run`] writes them, and what becomes of them.
pub(super) struct Sums<'a> {
    pub(super) finish: &'a Finish,
    pub(super) sums: *const i32,
    /// What is added, one an output of the two tiles.
    pub(super) start: &'a [i32],
    /// The scales, one an output of the two tiles.
    pub(super) multiplier: &'a [f32],
    /// What is added to dequantized sums, one an output of the two tiles.
    pub(super) offset: Option<&'a [f32]>,
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

    /// The address of the first of some rows of `len` elements.
    fn rows(&self, rows: usize, len: usize) -> *mut u8 {
        self.row(rows - 1, 0, len);
        self.row(0, 0, len)
    }
}

/// Rounds half to even, as `f32::round_ties_even`.
const NEAREST: i32 = _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC;

/// The lowest `n` lanes.
pub(super) fn lowest(n: usize) -> u32 {
    if n >= 32 { u32::MAX } else { (1 << n) - 1 }
}

/// Writes the lanes of a mask.
///
/// # Safety
/// The lanes of the mask can be written at `to`, which is aligned for the output's type.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vbmi2")]
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
        Finish::Sums => unreachable!("sums are not scaled"),
    }
}

/// What turns sums into bytes.
#[derive(Clone, Copy)]
struct Grid {
    zero: __m512i,
    /// The lowest byte.
    low: __m512i,
    /// The highest byte, relative to the zero point.
    high: __m512,
    signed: bool,
}

impl Grid {
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vbmi2")]
    fn new(zero: i32, low: i32, high: i32) -> Grid {
        Grid {
            zero: _mm512_set1_epi16(zero as i16),
            low: _mm512_set1_epi8(low as i8),
            high: _mm512_set1_ps((high - zero) as f32),
            signed: high <= i32::from(i8::MAX),
        }
    }

    /// Two rows of 32 scaled sums as bytes, one behind the other.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vbmi2")]
    fn bytes(&self, rows: [__m512; 4]) -> __m512i {
        let round = |row| {
            // What is too low becomes the lowest integer, and saturates from there on.
            _mm512_cvt_roundps_epi32::<NEAREST>(_mm512_min_ps(row, self.high))
        };
        let [a, b, c, d] = rows;
        let upper = _mm512_adds_epi16(_mm512_packs_epi32(round(a), round(b)), self.zero);
        let lower = _mm512_adds_epi16(_mm512_packs_epi32(round(c), round(d)), self.zero);
        let bytes = if self.signed {
            _mm512_max_epi8(_mm512_packs_epi16(upper, lower), self.low)
        } else {
            _mm512_max_epu8(_mm512_packus_epi16(upper, lower), self.low)
        };
        // Packing goes by 128-bit lanes.
        let order = _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
        _mm512_permutexvar_epi32(order, bytes)
    }
}

impl Sums<'_> {
    /// A row of sums of a tile of activations (`i`) and one of weights (`j`).
    fn at(&self, i: usize, j: usize, row: usize) -> *const i32 {
        self.sums
            .wrapping_add((i * 2 + j) * (TILE / 4) + row * ROWS)
    }

    /// Finishes `rows` rows of all four tiles, of which the columns of a mask are stored side by
    /// side: rows of the output for a matrix product, channels of 32 pixels for a convolution.
    ///
    /// # Safety
    /// The processor has the features; the sums are four tiles.
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vbmi2")]
    pub(super) unsafe fn block<const CHANNELS: bool>(
        &self,
        rows: usize,
        columns: u32,
        target: &Target<'_>,
    ) {
        assert!(rows <= 2 * ROWS);
        let len = columns.count_ones() as usize;
        if len == 0 {
            return;
        }
        let gaps = columns != lowest(len);
        let (starts, scales) = (&self.start[..2 * ROWS], &self.multiplier[..2 * ROWS]);
        let mut start = [_mm512_set1_epi32(0); 2];
        let mut scale = [_mm512_setzero_ps(); 2];
        for j in 0..2 {
            // SAFETY: 16 numbers each.
            unsafe {
                start[j] = _mm512_loadu_si512(starts[j * ROWS..].as_ptr().cast());
                scale[j] = _mm512_loadu_ps(scales[j * ROWS..].as_ptr());
            }
        }
        // The sums of a row's left or right half, with what is added.
        let whole = |row: usize, side: usize| {
            let (sums, start) = if CHANNELS {
                let sums = self.at(side, row / ROWS, row % ROWS);
                (sums, _mm512_set1_epi32(starts[row]))
            } else {
                (self.at(row / ROWS, side, row % ROWS), start[side])
            };
            // SAFETY: a row of one of the four tiles.
            _mm512_add_epi32(unsafe { _mm512_loadu_si512(sums.cast()) }, start)
        };
        // The same, scaled.
        let half = |row: usize, side: usize| {
            let scale = if CHANNELS {
                _mm512_set1_ps(scales[row])
            } else {
                scale[side]
            };
            _mm512_mul_ps(_mm512_cvtepi32_ps(whole(row, side)), scale)
        };
        let mut done = 0;
        if let Finish::Requantize { zero, low, high } = *self.finish
            && rows >= 2
        {
            done = rows / 2 * 2;
            let (grid, mask) = (Grid::new(zero, low, high), lowest(len));
            let (first, pitch) = (target.rows(done, len), target.pitch);
            for row in (0..done).step_by(2) {
                let bytes = grid.bytes([
                    half(row, 0),
                    half(row, 1),
                    half(row + 1, 0),
                    half(row + 1, 1),
                ]);
                let mut upper = _mm512_castsi512_si256(bytes);
                let mut lower = _mm512_extracti64x4_epi64::<1>(bytes);
                if gaps {
                    upper = _mm256_maskz_compress_epi8(columns, upper);
                    lower = _mm256_maskz_compress_epi8(columns, lower);
                }
                let to = first.wrapping_add(row * pitch);
                // SAFETY: `rows` has found room for the lanes of the mask in all rows.
                unsafe {
                    _mm256_mask_storeu_epi8(to.cast(), mask, upper);
                    _mm256_mask_storeu_epi8(to.wrapping_add(pitch).cast(), mask, lower);
                }
            }
        }
        if let Finish::Dequantize { relu } = *self.finish
            && !gaps
            && rows > 0
        {
            done = rows;
            let masks = [lowest(len) as u16, (lowest(len) >> ROWS) as u16];
            let mut offsets = [_mm512_setzero_ps(); 2];
            if let (Some(offset), false) = (self.offset, CHANNELS) {
                let offset = &offset[..2 * ROWS];
                for (j, to) in offsets.iter_mut().enumerate() {
                    // SAFETY: 16 numbers each.
                    *to = unsafe { _mm512_loadu_ps(offset[j * ROWS..].as_ptr()) };
                }
            }
            let (first, pitch) = (target.rows(rows, len), 4 * target.pitch);
            let sides = if len > ROWS { 2 } else { 1 };
            for row in 0..rows {
                for side in 0..sides {
                    let mut scaled = half(row, side);
                    if let Some(offset) = self.offset {
                        let offset = if CHANNELS {
                            _mm512_set1_ps(offset[row])
                        } else {
                            offsets[side]
                        };
                        scaled = _mm512_add_ps(scaled, offset);
                    }
                    // The second operand where the first is a NaN.
                    if relu {
                        scaled = _mm512_max_ps(scaled, _mm512_setzero_ps());
                    }
                    let to = first.wrapping_add(row * pitch + side * ROW);
                    // SAFETY: `rows` has found room for the lanes of the mask in all rows.
                    unsafe { _mm512_mask_storeu_ps(to.cast(), masks[side], scaled) };
                }
            }
        }
        if let (Finish::Sums, false) = (self.finish, gaps) {
            done = rows;
            let masks = [lowest(len) as u16, (lowest(len) >> ROWS) as u16];
            let pitch = 4 * target.pitch;
            let sides = if len > ROWS { 2 } else { 1 };
            if rows > 0 {
                let first = target.rows(rows, len);
                for row in 0..rows {
                    for side in 0..sides {
                        let to = first.wrapping_add(row * pitch + side * ROW);
                        // SAFETY: `rows` has found room for the lanes of the mask in all rows.
                        unsafe {
                            _mm512_mask_storeu_epi32(to.cast(), masks[side], whole(row, side));
                        }
                    }
                }
            }
        }
        let (finish, left) = (self.finish, columns as u16);
        for row in done..rows {
            for (side, skip) in [(0, 0), (1, left.count_ones() as usize)] {
                let mask = (columns >> (side * ROWS)) as u16;
                let count = mask.count_ones() as usize;
                if count == 0 {
                    continue;
                }
                let to = target.row(row, skip, count);
                if let Finish::Sums = finish {
                    let sums = _mm512_maskz_compress_epi32(mask, whole(row, side));
                    // SAFETY: `row` has found room for the lanes.
                    unsafe { _mm512_mask_storeu_epi32(to.cast(), lowest(count) as u16, sums) };
                    continue;
                }
                let mut scaled = half(row, side);
                if let Some(offset) = self.offset {
                    let offset = if CHANNELS {
                        _mm512_set1_ps(offset[row])
                    } else {
                        let offset = &offset[side * ROWS..][..ROWS];
                        // SAFETY: 16 numbers.
                        unsafe { _mm512_loadu_ps(offset.as_ptr()) }
                    };
                    scaled = _mm512_add_ps(scaled, offset);
                }
                if gaps {
                    scaled = _mm512_maskz_compress_ps(mask, scaled);
                }
                // SAFETY: `row` has found room for the lanes.
                unsafe { put(finish, scaled, lowest(count) as u16, to) };
            }
        }
    }
}
