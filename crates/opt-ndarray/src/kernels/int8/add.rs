//! Sums of two quantized tensors on a third grid, in one pass over bytes.

use opt_core::{DType, Result};

use super::super::quant::lines::nearest;
use super::super::{Arg, Kernel, Out, RunCx, lanes, parallel_chunks};

/// `clamp(round_half_even((a - zero_a) * scale_a + (b - zero_b) * scale_b) + zero, low, high)`,
/// the scales relative to the output's.
#[derive(Debug, Clone)]
pub(crate) struct IntAdd {
    /// Type, scale and zero point.
    pub(crate) operands: [(DType, f32, i32); 2],
    pub(crate) zero: i32,
    pub(crate) low: i32,
    pub(crate) high: i32,
}

/// Elements of a task.
const CHUNK: usize = 1 << 15;

impl Kernel for IntAdd {
    fn name(&self) -> String {
        "int add+requantize".to_string()
    }

    fn in_place(&self) -> &[(usize, usize)] {
        &[(0, 0), (1, 0)]
    }

    fn run(&self, args: &[Arg<'_>], outs: &mut [Out<'_>], cx: &mut RunCx<'_>) -> Result<()> {
        let (a, b) = (args[0].bytes, args[1].bytes);
        // A signed byte with its sign flipped is an unsigned one, 128 higher.
        let plain = |(dtype, scale, zero): (DType, f32, i32)| match dtype {
            DType::I8 => (0x80, scale, zero + 128),
            _ => (0, scale, zero),
        };
        let [first, second] = self.operands.map(plain);
        let out = &mut *outs[0].bytes;
        let over = |given: &[u8]| given.len() < out.len();
        // An operand that the output lies over, and the other; addition commutes.
        let pair = match (over(a), over(b)) {
            (true, _) => Some((first, b, second)),
            (_, true) => Some((second, a, first)),
            _ => None,
        };
        let end = (self.zero, self.low, self.high);
        parallel_chunks(cx.threads, out, CHUNK, |i, out| {
            let range = i * CHUNK..i * CHUNK + out.len();
            match pair {
                Some((own, other, grid)) => sum_over(&other[range], grid, own, end, out),
                None => sum(&a[range.clone()], &b[range], first, second, end, out),
            }
        });
        Ok(())
    }
}

/// What a byte's bits are flipped with, a scale, a zero point.
type Operand = (u8, f32, i32);

/// The output's zero point and range.
type End = (i32, i32, i32);

#[inline(always)]
fn value(byte: u8, (flip, scale, zero): Operand) -> f32 {
    (i32::from(byte ^ flip) - zero) as f32 * scale
}

#[inline(always)]
fn point(v: f32, (zero, low, high): End) -> u8 {
    // Clamped before rounding, which is the same and stays in the range of integers; the scales
    // are finite, so that there is no NaN.
    let (least, most) = ((low - zero) as f32, (high - zero) as f32);
    let v = if v > least { v } else { least };
    let v = if v < most { v } else { most };
    nearest(v).wrapping_add(zero) as u8
}

lanes::by_isa! {
    fn sum(a: &[u8], b: &[u8], first: Operand, second: Operand, end: End, out: &mut [u8]) = |_FMA| {
        for ((to, &a), &b) in out.iter_mut().zip(a).zip(b) {
            *to = point(value(a, first) + value(b, second), end);
        }
    }
}

lanes::by_isa! {
    /// [`sum`] of what `out` holds and another.
    fn sum_over(other: &[u8], grid: Operand, own: Operand, end: End, out: &mut [u8]) = |_FMA| {
        for (to, &other) in out.iter_mut().zip(other) {
            *to = point(value(*to, own) + value(other, grid), end);
        }
    }
}
