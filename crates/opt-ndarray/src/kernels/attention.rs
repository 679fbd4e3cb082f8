//! Scaled dot-product attention, one query row at a time: no full score matrix.

use opt_core::ops;
use opt_core::{DType, Result};

use super::{Arg, CompileCx, Kernel, Out, RunCx, parallel_chunks, real};

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

attend!(attend_f32, f32);
attend!(attend_f64, f64);

impl Kernel for Attention {
    fn name(&self) -> String {
        "attention".to_string()
    }

    fn run(&self, args: &[Arg<'_>], outs: &mut [Out<'_>], cx: &mut RunCx<'_>) -> Result<()> {
        match args[0].dtype {
            DType::F64 => attend_f64(self, args, outs[0].typed(), cx.threads),
            _ => attend_f32(self, args, outs[0].typed(), cx.threads),
        }
        Ok(())
    }
}
