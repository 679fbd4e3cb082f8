//! Max pooling of `f32` images by rows: the maxima of the rows of a window first, then those of its
//! columns; by vectors of output pixels where the processor has them for it ([`Rows`]).

use opt_core::Result;
use opt_core::{DType, ops};

use super::conv::Geometry;
use super::pool::Rows;
use super::{Arg, CompileCx, Kernel, Out, RunCx, parallel_chunks};

/// Elements of an input that make a task.
const TASK: usize = 1 << 15;

#[derive(Debug)]
struct MaxRows {
    geometry: Geometry,
    /// Where the processor has vectors for it.
    vectors: Option<Rows>,
}

/// Max pooling in two dimensions; `None` where another kernel does it: on other types, in other
/// dimensions, and where a window may lie outside of the image.
pub(super) fn compile(op: &ops::MaxPool, cx: &CompileCx<'_>) -> Result<Option<Box<dyn Kernel>>> {
    if cx.inputs[0].dtype != DType::F32 || op.kernel.len() != 2 {
        return Ok(None);
    }
    let (x, y) = (cx.inputs[0].shape.fixed()?, cx.outputs[0].shape.fixed()?);
    let g = Geometry::new(&x[2..], &y[2..], &op.kernel, &op.window);
    let inside = |axis: usize| {
        (0..g.output[axis]).all(|at| {
            let taps = 0..g.kernel[axis];
            taps.into_iter()
                .any(|tap| g.inside(axis, tap).contains(&at))
        })
    };
    // Windows that tile the image have a kernel of their own.
    let tiles = g.kernel == [1, 2, 2] && g.stride == [1, 2, 2] && g.pad == [0; 3];
    if tiles || g.taps() == 1 || g.input_len() == 0 || g.output_len() == 0 {
        return Ok(None);
    }
    if !inside(1) || !inside(2) {
        return Ok(None);
    }
    let vectors = Rows::max(&g);
    Ok(Some(Box::new(MaxRows {
        geometry: g,
        vectors,
    })))
}

/// The larger of two; NaN if one is.
#[inline(always)]
fn larger(old: f32, new: f32) -> f32 {
    if new > old || new.is_nan() { new } else { old }
}

/// The larger of two rows' entries.
fn raise(row: &mut [f32], by: &[f32]) {
    for (o, &v) in row.iter_mut().zip(by) {
        *o = larger(*o, v);
    }
}

impl MaxRows {
    /// The maxima of an image of one channel; `row` and `wide` have the length of an input row.
    fn channel(&self, x: &[f32], y: &mut [f32], row: &mut [f32], wide: &mut [f32]) {
        let g = &self.geometry;
        let (width, stride) = (g.input[2], g.stride[2]);
        for (at, y) in y.chunks_exact_mut(g.output[2]).enumerate() {
            let rows = (0..g.kernel[1]).filter(|&ky| g.inside(1, ky).contains(&at));
            for (i, ky) in rows.enumerate() {
                let x = &x[g.source(1, at, ky) * width..][..width];
                match i {
                    0 => row.copy_from_slice(x),
                    _ => raise(row, x),
                }
            }
            // Windows that lie in the row are maxima of shifted rows, of which each `stride`-th
            // is one; the others are few.
            let reach = (g.kernel[2] - 1) * g.dilation[2];
            let whole = width.saturating_sub(reach);
            wide[..whole].copy_from_slice(&row[..whole]);
            for kx in (1..g.kernel[2]).filter(|_| whole > 0) {
                raise(&mut wide[..whole], &row[kx * g.dilation[2]..]);
            }
            let first = g.pad[2].div_ceil(stride).min(y.len());
            let inner = (whole + g.pad[2])
                .saturating_sub(first * stride)
                .div_ceil(stride);
            let end = (first + inner).min(y.len());
            if first < end {
                let from = wide[first * stride - g.pad[2]..].iter().step_by(stride);
                for (o, &v) in y[first..end].iter_mut().zip(from) {
                    *o = v;
                }
            }
            for x in (0..first).chain(end..y.len()) {
                let taps = (0..g.kernel[2]).filter(|&kx| g.inside(2, kx).contains(&x));
                let best = taps.map(|kx| row[g.source(2, x, kx)]).reduce(larger);
                y[x] = best.expect("each window has pixels");
            }
        }
    }
}

impl Kernel for MaxRows {
    fn name(&self) -> String {
        "max pool".to_string()
    }

    fn run(&self, args: &[Arg<'_>], outs: &mut [Out<'_>], cx: &mut RunCx<'_>) -> Result<()> {
        let (x, y): (&[f32], &mut [f32]) = (args[0].typed(), outs[0].typed());
        if let Some(vectors) = &self.vectors {
            vectors.run(x, y, cx.threads);
            return Ok(());
        }
        let g = &self.geometry;
        let (input, output, width) = (g.input_len(), g.output_len(), g.input[2]);
        let channels = (TASK / input).max(1);
        parallel_chunks(cx.threads, y, channels * output, |task, y| {
            with_rows(width, |row, wide| {
                let x = &x[task * channels * input..];
                for (x, y) in x.chunks_exact(input).zip(y.chunks_exact_mut(output)) {
                    self.channel(x, y, row, wide);
                }
            });
        });
        Ok(())
    }
}

/// Runs with two rows of the thread.
fn with_rows(width: usize, run: impl FnOnce(&mut [f32], &mut [f32])) {
    thread_local!(static ROWS: std::cell::RefCell<Vec<f32>> = const {
        std::cell::RefCell::new(Vec::new())
    });
    let mut rows = ROWS.take();
    if rows.len() < 2 * width {
        rows.resize(2 * width, 0.0);
    }
    let (row, wide) = rows[..2 * width].split_at_mut(width);
    run(row, wide);
    ROWS.set(rows);
}

#[cfg(test)]
mod tests {
    use opt_core::ops::{MaxPool, Window};
    use opt_core::random::Philox;
    use opt_core::{Tensor, TensorType};
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(60))]

        #[test]
        fn it_agrees_with_the_definition(
            size in [1usize..20, 1usize..40], kernel in [1usize..5, 1usize..5],
            stride in 1usize..4, dilation in 1usize..3, pad in 0usize..3,
            nan in 0usize..60,
        ) {
            let pad = kernel.iter().fold(pad, |pad, &k| pad.min((k - 1) * dilation));
            let out = [0, 1].map(|a| {
                let span = (kernel[a] - 1) * dilation + 1;
                (size[a] + 2 * pad).checked_sub(span).map(|rest| rest / stride + 1)
            });
            let [Some(height), Some(width)] = out else { return Ok(()) };
            let out = [height, width];
            let window = Window::new(2).stride(stride).pad(pad).dilation(dilation);
            let op = MaxPool {
                kernel: kernel.as_slice().into(),
                window,
                ceil_mode: false,
            };
            let random = Philox::new(3);
            let len = 6 * size[0] * size[1];
            let mut x: Vec<f32> = (0..len as u64).map(|i| random.uniform(0, i) as f32).collect();
            if nan < len {
                x[nan] = f32::NAN;
            }
            let (from, to) = ([2, 3, size[0], size[1]], [2, 3, out[0], out[1]]);
            let (inputs, outputs) = (
                [TensorType::new(DType::F32, from.as_slice())],
                [TensorType::new(DType::F32, to.as_slice())],
            );
            let constants: [Option<Tensor>; 1] = [None];
            let cx = CompileCx {
                inputs: &inputs,
                outputs: &outputs,
                constants: &constants,
                epilogue: &[],
                extras: Default::default(),
                threads: 1,
            };
            let Some(kernel_of) = compile(&op, &cx).unwrap() else { return Ok(()) };
            let mut y = vec![0f32; 6 * out[0] * out[1]];
            let arg = Arg { dtype: DType::F32, shape: &from, bytes: bytemuck::cast_slice(&x) };
            let mut outs = [Out {
                dtype: DType::F32,
                shape: &to,
                bytes: bytemuck::cast_slice_mut(&mut y),
            }];
            let mut run = RunCx { threads: 1, scratch: &mut [] };
            kernel_of.run(&[arg], &mut outs, &mut run).unwrap();
            for (i, &found) in y.iter().enumerate() {
                let (channel, at) = (i / (out[0] * out[1]), i % (out[0] * out[1]));
                let (oy, ox) = (at / out[1], at % out[1]);
                let mut best: Option<f32> = None;
                for (ky, kx) in (0..kernel[0]).flat_map(|y| (0..kernel[1]).map(move |x| (y, x))) {
                    let (iy, ix) = (oy * stride + ky * dilation, ox * stride + kx * dilation);
                    let (Some(iy), Some(ix)) = (iy.checked_sub(pad), ix.checked_sub(pad)) else {
                        continue;
                    };
                    if iy < size[0] && ix < size[1] {
                        let v = x[(channel * size[0] + iy) * size[1] + ix];
                        best = Some(match best {
                            Some(b) if b.is_nan() || v <= b => b,
                            _ => v,
                        });
                    }
                }
                let best = best.expect("no window is outside");
                prop_assert!(found == best || found.is_nan() && best.is_nan(), "{} {}", found, best);
            }
        }
    }
}
