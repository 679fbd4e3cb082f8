//! Matrix products of floats by weights that stay packed at 4 or 8 bits.
//!
//! Few rows are bound by the memory that the weights come from: codes are turned into floats in
//! registers, and never written. More rows are worth a panel of weights in float, which stays in
//! the cache while the product runs over it.
//!
//! A weight is `(code - zero) * scale`, where code and zero are small integers: their difference
//! is exact in float, is multiplied by the activation and added up over a group of entries with
//! one scale, and then scaled. So a sum has the rounding errors of as many additions as that of
//! the dequantized weights, and less from the weights themselves.

#![expect(unsafe_code, reason = "tasks write disjoint parts of one output")]

mod decode;
mod pack;

use std::cell::RefCell;

use opt_core::Result;
use opt_core::ops::UnaryOp;

use super::elementwise::{apply, with_epilogue};
use super::gemm::{Base, Gemm, Lhs, Mat, Rhs};
use super::{Arg, Kernel, Out, RunCx, SharedMut, parallel};
pub(crate) use pack::{Codes, Packed};

/// Outputs of a block.
pub(crate) const LANES: usize = 16;

/// Rows that are multiplied at once where weights are decoded in registers.
const ROWS: usize = 4;

/// Rows from which a panel of decoded weights pays.
const PANEL: usize = 12;

/// Blocks of outputs of a panel: the columns of the product's register tiles.
const PANEL_BLOCKS: usize = 2;

/// Bytes of weights that are worth being handed to another thread.
const TASK: usize = 1 << 15;

/// `x[m, k] * w[k, n] (+ bias)`, and functions of it.
#[derive(Debug, Clone)]
pub(crate) struct WeightOnly {
    pub(crate) packed: Packed,
    /// One an output, or empty.
    pub(crate) bias: Vec<f32>,
    pub(crate) epilogue: Vec<UnaryOp>,
}

/// What a thread works with.
struct Work {
    panel: Vec<f32>,
    out: Vec<f32>,
}

impl WeightOnly {
    /// A few rows by all outputs.
    fn rows(&self, x: &[f32], m: usize, out: &mut [f32], threads: usize) {
        let (packed, n) = (&self.packed, self.packed.outputs);
        let blocks = n.div_ceil(LANES);
        let size = packed.block_bytes().max(1);
        let pieces = (blocks * size / TASK).clamp(1, 8 * threads).min(blocks);
        let out = SharedMut::new(out);
        parallel(threads, pieces, |piece| {
            let range = piece * blocks / pieces..(piece + 1) * blocks / pieces;
            for block in range.clone() {
                let first = block * LANES;
                let lanes = LANES.min(n - first);
                for row in (0..m).step_by(ROWS) {
                    let count = ROWS.min(m - row);
                    let x = &x[row * packed.padded..][..count * packed.padded];
                    let sums = decode::sums(packed, block, x, count);
                    for (r, sums) in sums[..count].iter().enumerate() {
                        let at = (row + r) * n + first;
                        // SAFETY: each block of outputs belongs to one task.
                        let out = unsafe { out.part(at..at + lanes) };
                        out.copy_from_slice(&sums[..lanes]);
                        self.end(out, first);
                    }
                }
            }
        });
    }

    /// Many rows by all outputs.
    fn panels(&self, x: &[f32], m: usize, out: &mut [f32], threads: usize) {
        thread_local!(static WORK: RefCell<Work> = const {
            RefCell::new(Work { panel: Vec::new(), out: Vec::new() })
        });
        let (packed, n) = (&self.packed, self.packed.outputs);
        let (k, width) = (packed.inputs, PANEL_BLOCKS * LANES);
        let out = SharedMut::new(out);
        parallel(threads, n.div_ceil(width), |panel| {
            // Taken out, since a thread that waits for others may start another task meanwhile.
            let mut work = WORK.replace(Work {
                panel: Vec::new(),
                out: Vec::new(),
            });
            let first = panel * width;
            let columns = width.min(n - first);
            work.panel.resize(packed.padded * width, 0.0);
            work.out.resize(m * width, 0.0);
            for block in first / LANES..(first + columns).div_ceil(LANES) {
                let at = block * LANES - first;
                decode::weights(packed, block, &mut work.panel[at..], width);
            }
            let gemm = Gemm {
                m,
                n: columns,
                k,
                a: Lhs::Plain(Mat::new(x, k)),
                b: Rhs::Plain(Mat::new(&work.panel, width)),
                base: Base::Zero,
                threads: 1,
            };
            gemm.run(&mut work.out, columns);
            for (row, sums) in work.out.chunks_exact(columns).take(m).enumerate() {
                let at = row * n + first;
                // SAFETY: each panel belongs to one task.
                let out = unsafe { out.part(at..at + columns) };
                out.copy_from_slice(sums);
                self.end(out, first);
            }
            WORK.set(work);
        });
    }

    /// What comes after the sums of a part of a row from output `first` on.
    fn end(&self, out: &mut [f32], first: usize) {
        if !self.bias.is_empty() {
            for (out, &bias) in out.iter_mut().zip(&self.bias[first..]) {
                *out += bias;
            }
        }
        apply(&self.epilogue, out);
    }
}

impl Kernel for WeightOnly {
    fn name(&self) -> String {
        let name = format!("matmul of {}-bit weights", self.packed.bits());
        with_epilogue(&name, &self.epilogue)
    }

    fn run(&self, args: &[Arg<'_>], outs: &mut [Out<'_>], cx: &mut RunCx<'_>) -> Result<()> {
        thread_local!(static ROW: RefCell<Vec<f32>> = const { RefCell::new(Vec::new()) });
        let (x, out) = (args[0].typed::<f32>(), outs[0].typed::<f32>());
        let Packed { inputs, padded, .. } = self.packed;
        let m = out.len() / self.packed.outputs.max(1);
        if m == 0 {
            return Ok(());
        }
        if m >= PANEL {
            self.panels(x, m, out, cx.threads);
        } else if padded == inputs {
            self.rows(x, m, out, cx.threads);
        } else {
            // Codes lie in whole words; those beyond the inputs meet zeros.
            let mut rows = ROW.take();
            rows.clear();
            rows.resize(m * padded, 0.0);
            for (to, from) in rows.chunks_exact_mut(padded).zip(x.chunks(inputs.max(1))) {
                to[..inputs].copy_from_slice(from);
            }
            self.rows(&rows, m, out, cx.threads);
            ROW.set(rows);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;
