//! Sums of two quantized tensors on a third grid, in one pass over bytes.

use opt_core::{DType, Result};

use super::super::quant::lines::nearest;
use super::super::{Arg, Kernel, Out, RunCx, parallel_chunks};

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

    fn run(&self, args: &[Arg<'_>], outs: &mut [Out<'_>], cx: &mut RunCx<'_>) -> Result<()> {
        let (a, b) = (args[0].bytes, args[1].bytes);
        // A signed byte with its sign flipped is an unsigned one, 128 higher.
        let plain = |(dtype, scale, zero): (DType, f32, i32)| match dtype {
            DType::I8 => (0x80, scale, zero + 128),
            _ => (0, scale, zero),
        };
        let operands = self.operands.map(plain);
        parallel_chunks(cx.threads, outs[0].bytes, CHUNK, |i, out| {
            let range = i * CHUNK..i * CHUNK + out.len();
            let (a, b) = (&a[range.clone()], &b[range]);
            sum(a, b, operands, self.zero, self.low, self.high, out);
        });
        Ok(())
    }
}

crate::kernels::lanes::by_isa! {
    fn sum(
        a: &[u8],
        b: &[u8],
        operands: [(u8, f32, i32); 2],
        zero: i32,
        low: i32,
        high: i32,
        out: &mut [u8]
    ) = |_FMA| {
        let [(flip_a, scale_a, zero_a), (flip_b, scale_b, zero_b)] = operands;
        // Clamped before rounding, which is the same and stays in the range of integers; the
        // scales are finite, so that there is no NaN.
        let (least, most) = ((low - zero) as f32, (high - zero) as f32);
        for ((to, &a), &b) in out.iter_mut().zip(a).zip(b) {
            let a = (i32::from(a ^ flip_a) - zero_a) as f32 * scale_a;
            let b = (i32::from(b ^ flip_b) - zero_b) as f32 * scale_b;
            let v = a + b;
            let v = if v > least { v } else { least };
            let v = if v < most { v } else { most };
            *to = nearest(v).wrapping_add(zero) as u8;
        }
    }
}
