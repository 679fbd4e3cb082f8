//! Max pooling of bytes in two dimensions: the rows of a window by vectors, then its columns.

use std::cell::RefCell;

use opt_core::{DType, Result};

use super::super::conv::Geometry;
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
            for (to, &v) in out.iter_mut().zip(wide.iter().step_by(stride)) {
                *to = v ^ flip;
            }
        }
    }
}

lanes::by_isa! {
    /// The larger of two rows of bytes, entry by entry; those of `other` have bits flipped.
    fn raise(row: &mut [u8], other: &[u8], flip: u8) = |_FMA| {
        for (a, &b) in row.iter_mut().zip(other) {
            *a = (*a).max(b ^ flip);
        }
    }
}
