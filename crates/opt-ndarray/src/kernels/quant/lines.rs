//! Runs of elements that share a scale, by vectors.

use std::ops::Range;

use super::super::lanes;

/// Elements of a task.
pub(in super::super) const TASK: usize = 1 << 14;

/// Elements of a task where each of `size` scales has runs of `inner` entries: any part of one
/// run, or whole runs.
pub(super) fn task(size: usize, inner: usize) -> usize {
    if size == 1 {
        TASK
    } else {
        TASK.div_ceil(inner) * inner
    }
}

/// The runs of a task of `len` elements from `start`: the number of the scale, and where.
pub(super) fn runs(
    start: usize,
    len: usize,
    size: usize,
    inner: usize,
) -> impl Iterator<Item = (usize, Range<usize>)> {
    let inner = if size == 1 { len.max(1) } else { inner };
    let first = if size == 1 { 0 } else { start / inner };
    (0..len.div_ceil(inner)).map(move |run| {
        let range = run * inner..len.min((run + 1) * inner);
        ((first + run) % size, range)
    })
}

/// The integer nearest to a number of at most 2^21, halves to the even one.
#[inline(always)]
pub(in super::super) fn nearest(v: f32) -> i32 {
    // From 2^23 on the numbers of 24 bits are the integers.
    const MAGIC: f32 = 12_582_912.0;
    ((v + MAGIC).to_bits() as i32).wrapping_sub(MAGIC.to_bits() as i32)
}

lanes::by_isa! {
    /// `clamp(round_half_even(x / scale) + zero, low, high)`; NaN gives zero's point.
    pub(super) fn quantize(x: &[f32], scale: f32, zero: i32, range: (i32, i32), out: &mut [u8]) = |_FMA| {
        // Clamping before rounding is the same, since the ends are integers.
        let (low, high) = ((range.0 - zero) as f32, (range.1 - zero) as f32);
        for (to, &x) in out.iter_mut().zip(x) {
            let v = x / scale;
            let v = if v.is_nan() { 0.0 } else { v };
            let v = if v > low { v } else { low };
            let v = if v < high { v } else { high };
            *to = nearest(v).wrapping_add(zero) as u8;
        }
    }
}

lanes::by_isa! {
    /// `(q - zero) * scale`, of signed bytes or unsigned ones.
    pub(super) fn dequantize(q: &[u8], signed: bool, scale: f32, zero: i32, out: &mut [f32]) = |_FMA| {
        // A signed byte with its sign flipped is an unsigned one, 128 higher.
        let (flip, zero) = if signed { (0x80, zero + 128) } else { (0, zero) };
        for (to, &q) in out.iter_mut().zip(q) {
            *to = (i32::from(q ^ flip) - zero) as f32 * scale;
        }
    }
}

lanes::by_isa! {
    /// The least and the greatest number, at most and at least 0; NaN does not count.
    pub(super) fn range(x: &[f32]) -> [f32; 2] = |_FMA| {
        const LANES: usize = 64;
        let (mut low, mut high) = ([0f32; LANES], [0f32; LANES]);
        let (chunks, rest) = x.as_chunks::<LANES>();
        for chunk in chunks {
            for ((low, high), &v) in low.iter_mut().zip(&mut high).zip(chunk) {
                *low = if v < *low { v } else { *low };
                *high = if v > *high { v } else { *high };
            }
        }
        for ((low, high), &v) in low.iter_mut().zip(&mut high).zip(rest) {
            *low = if v < *low { v } else { *low };
            *high = if v > *high { v } else { *high };
        }
        let least = low.into_iter().fold(0f32, |a, b| if b < a { b } else { a });
        let most = high.into_iter().fold(0f32, |a, b| if b > a { b } else { a });
        [least, most]
    }
}
