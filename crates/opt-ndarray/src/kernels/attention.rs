//! Scaled dot-product attention, some query rows at a time: no full score matrix.

use std::cell::RefCell;

use opt_core::ops;
use opt_core::{DType, Result};

use super::gemm::{Base, Gemm, Lhs, Mat, Rhs, on_tiles};
use super::softmax::{exp_in_place, largest, scale};
use super::{Arg, CompileCx, Kernel, Out, RunCx, SharedMut, parallel, parallel_chunks, real};

/// Query rows whose scores are in memory at once.
const BLOCK: usize = 64;

#[derive(Debug)]
struct Attention {
    scale: f64,
    causal: bool,
    queries: usize,
    keys: usize,
    width: usize,
    values: usize,
    /// For each query row of each leading index the start of its row in the mask, and the step
    /// between the mask's entries.
    mask: Option<(Vec<usize>, usize)>,
}

/// Scaled dot-product attention.
pub(crate) fn compile_attention(
    op: &ops::Attention,
    cx: &CompileCx<'_>,
) -> Result<Box<dyn Kernel>> {
    real(&cx.inputs[0], "Attention")?;
    let (q, k) = (cx.inputs[0].shape.fixed()?, cx.inputs[1].shape.fixed()?);
    let out = cx.outputs[0].shape.fixed()?;
    let rank = q.len();
    let (queries, width, keys) = (q[rank - 2], q[rank - 1], k[k.len() - 2]);
    let mask = match cx.inputs.get(3) {
        None => None,
        Some(ty) => {
            let shape = ty.shape.fixed()?;
            let strides = opt_core::tensor::contiguous_strides(&shape);
            let mut full = out[..rank - 2].to_vec();
            full.push(queries);
            let lead = rank - shape.len();
            let mut starts = Vec::with_capacity(full.iter().product());
            for i in 0..full.iter().product() {
                let (mut rest, mut at) = (i, 0);
                for axis in (0..full.len()).rev() {
                    let index = rest % full[axis];
                    rest /= full[axis];
                    if axis >= lead && shape[axis - lead] != 1 {
                        at += index * strides[axis - lead] as usize;
                    }
                }
                starts.push(at);
            }
            let last = shape.last().is_some_and(|&d| d != 1);
            Some((starts, usize::from(last)))
        }
    };
    Ok(Box::new(Attention {
        scale: op.scale.unwrap_or(1.0 / (width as f64).sqrt()),
        causal: op.causal,
        queries,
        keys,
        width,
        values: out[rank - 1],
        mask,
    }))
}

macro_rules! attend {
    ($name:ident, $t:ty) => {
        fn $name(kernel: &Attention, args: &[Arg<'_>], out: &mut [$t], threads: usize) {
            thread_local!(static SCORES: std::cell::RefCell<Vec<$t>> =
                const { std::cell::RefCell::new(Vec::new()) });
            let (q, k, v) = (
                args[0].typed::<$t>(),
                args[1].typed::<$t>(),
                args[2].typed::<$t>(),
            );
            let Attention {
                queries,
                keys,
                width,
                values,
                ..
            } = *kernel;
            let scale = kernel.scale as $t;
            let threads = if out.len() * keys < 1 << 14 { 1 } else { threads };
            parallel_chunks(threads, out, values.max(1), |row, out| {
                let (lead, at) = (row / queries, row % queries);
                let q = &q[row * width..][..width];
                let visible = if kernel.causal { keys.min(at + 1) } else { keys };
                SCORES.with_borrow_mut(|scores| {
                    scores.clear();
                    for j in 0..visible {
                        let k = &k[(lead * keys + j) * width..][..width];
                        let dot: $t = q.iter().zip(k).map(|(&a, &b)| a * b).sum();
                        scores.push(dot * scale);
                    }
                    if let Some((starts, step)) = &kernel.mask {
                        let start = starts[row];
                        for (j, score) in scores.iter_mut().enumerate() {
                            let at = start + j * step;
                            if args[3].dtype == DType::Bool {
                                if args[3].bytes[at] == 0 {
                                    *score = <$t>::NEG_INFINITY;
                                }
                            } else {
                                *score += args[3].typed::<$t>()[at];
                            }
                        }
                    }
                    out.fill(0.0);
                    let max = scores.iter().copied().fold(<$t>::NEG_INFINITY, <$t>::max);
                    // Nothing is visible: the output is zero rather than NaN.
                    if max == <$t>::NEG_INFINITY {
                        return;
                    }
                    let mut sum = 0.0;
                    for (j, &score) in scores.iter().enumerate() {
                        let p = (score - max).exp();
                        sum += p;
                        let v = &v[(lead * keys + j) * values..][..values];
                        for (o, &v) in out.iter_mut().zip(v) {
                            *o += p * v;
                        }
                    }
                    let over = 1.0 / sum;
                    for o in out.iter_mut() {
                        *o *= over;
                    }
                });
            });
        }
    };
}

impl Attention {
    /// Adds the mask to the scores of a query row.
    fn mask_row(&self, row: usize, mask: &Arg<'_>, scores: &mut [f32]) {
        let Some((starts, step)) = &self.mask else {
            return;
        };
        for (j, score) in scores.iter_mut().enumerate() {
            let at = starts[row] + j * step;
            if mask.dtype == DType::Bool {
                if mask.bytes[at] == 0 {
                    *score = f32::NEG_INFINITY;
                }
            } else {
                *score += mask.typed::<f32>()[at];
            }
        }
    }

    /// Attention by matrix products, block by block of query rows.
    fn blocks(&self, args: &[Arg<'_>], out: &mut [f32], threads: usize) {
        thread_local!(static SCORES: RefCell<Vec<f32>> = const { RefCell::new(Vec::new()) });
        let Attention {
            queries,
            keys,
            width,
            values,
            ..
        } = *self;
        let [q, k, v] = [0, 1, 2].map(|i| args[i].typed::<f32>());
        let blocks = queries.div_ceil(BLOCK);
        let threads = if out.len() * keys < 1 << 14 {
            1
        } else {
            threads
        };
        let leads = out.len() / (queries * values).max(1);
        let out = SharedMut::new(out);
        parallel(threads, leads * blocks, |task| {
            let (lead, first) = (task / blocks, task % blocks * BLOCK);
            let rows = BLOCK.min(queries - first);
            let row = lead * queries + first;
            // Later keys are invisible to all rows of a causal block.
            let seen = if self.causal {
                keys.min(first + rows)
            } else {
                keys
            };
            #[expect(unsafe_code, reason = "each task has rows of its own")]
            // SAFETY: no other task writes these rows.
            let out = unsafe { out.part(row * values..(row + rows) * values) };
            SCORES.with_borrow_mut(|scores| {
                scores.resize(rows * seen, 0.0);
                let product = |m, n, k, a, b, out: &mut [f32]| {
                    let gemm = Gemm {
                        m,
                        n,
                        k,
                        a: Lhs::Plain(a),
                        b: Rhs::Plain(b),
                        base: Base::Zero,
                        threads: 1,
                    };
                    gemm.run(out, n);
                };
                let query = Mat::new(&q[row * width..][..rows * width], width);
                let key = Mat::new(&k[lead * keys * width..][..seen * width], width);
                product(rows, seen, width, query, key.transposed(), scores);
                let mut sums = [0f32; BLOCK];
                for (r, scores) in scores.chunks_exact_mut(seen.max(1)).enumerate() {
                    scale(scores, self.scale as f32);
                    if self.causal {
                        let visible = keys.min(first + r + 1);
                        scores[visible..].fill(f32::NEG_INFINITY);
                    }
                    if let Some(mask) = args.get(3) {
                        self.mask_row(row + r, mask, scores);
                    }
                    let max = largest(scores);
                    if max > f32::NEG_INFINITY || scores.iter().any(|s| s.is_nan()) {
                        sums[r] = exp_in_place(scores, max);
                    } else {
                        // Nothing is visible: the output is zero rather than NaN.
                        scores.fill(0.0);
                    }
                }
                let weights = Mat::new(&scores[..rows * seen], seen);
                let value = Mat::new(&v[lead * keys * values..][..seen * values], values);
                product(rows, values, seen, weights, value, out);
                for (out, &sum) in out.chunks_exact_mut(values.max(1)).zip(&sums) {
                    match sum == 0.0 {
                        true => out.fill(0.0),
                        false => scale(out, 1.0 / sum),
                    }
                }
            });
        });
    }

    /// Whether [`Attention::blocks`] serves: products on own tiles, of which several run at once.
    fn has_blocks(&self) -> bool {
        let rows = BLOCK.min(self.queries);
        let sizes = [self.queries, self.keys, self.width, self.values];
        !sizes.contains(&0)
            && on_tiles(rows, self.keys, self.width)
            && on_tiles(rows, self.values, self.keys)
    }
}

attend!(attend_f32, f32);
attend!(attend_f64, f64);

impl Kernel for Attention {
    fn name(&self) -> String {
        "attention".to_string()
    }

    fn run(&self, args: &[Arg<'_>], outs: &mut [Out<'_>], cx: &mut RunCx<'_>) -> Result<()> {
        match args[0].dtype {
            DType::F64 => attend_f64(self, args, outs[0].typed(), cx.threads),
            _ if self.has_blocks() => self.blocks(args, outs[0].typed(), cx.threads),
            _ => attend_f32(self, args, outs[0].typed(), cx.threads),
        }
        Ok(())
    }
}
