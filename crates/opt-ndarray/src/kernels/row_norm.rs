//! Layer, group, instance and root-mean-square normalization.

use opt_core::ops;
use opt_core::{DType, Result};

use super::lanes::by_isa;
use super::norm::{Channels, Real, sum_of};
use super::{Arg, CompileCx, Kernel, Out, RunCx, parallel_chunks, real};

/// Entries from which a second thread is worth its start.
const PARALLEL: usize = 1 << 14;

/// Entries that a thread takes at once.
const CHUNK: usize = 1 << 12;

/// Running sums of a row: several, since each addition waits for the one before.
const SUMS: usize = 64;

/// The sum of a function of the entries.
#[inline(always)]
fn total(x: &[f32], f: impl Fn(f32) -> f32) -> f32 {
    let mut sums = [0f32; SUMS];
    let (chunks, rest) = x.as_chunks::<SUMS>();
    for chunk in chunks {
        for (s, &v) in sums.iter_mut().zip(chunk) {
            *s += f(v);
        }
    }
    for (s, &v) in sums.iter_mut().zip(rest) {
        *s += f(v);
    }
    let mut width = SUMS / 2;
    while width > 0 {
        for i in 0..width {
            sums[i] += sums[i + width];
        }
        width /= 2;
    }
    sums[0]
}

by_isa! {
    /// Normalizes rows as long as `scale`: `(x - mean) / sqrt(var + epsilon) * scale + bias`, or
    /// the same without the mean.
    fn normalize(x: &[f32], scale: &[f32], bias: Option<&[f32]>, centre: bool, epsilon: f32, out: &mut [f32]) = |_FMA| {
        let len = scale.len();
        let over = 1.0 / len as f32;
        for (x, out) in x.chunks_exact(len).zip(out.chunks_exact_mut(len)) {
            let mean = if centre { total(x, |v| v) * over } else { 0.0 };
            let var = total(x, |v| (v - mean) * (v - mean)) * over;
            let inv = 1.0 / (var + epsilon).sqrt();
            match bias {
                Some(bias) => {
                    for (((y, &x), &a), &b) in out.iter_mut().zip(x).zip(scale).zip(bias) {
                        *y = (x - mean) * (inv * a) + b;
                    }
                }
                None => {
                    for ((y, &x), &a) in out.iter_mut().zip(x).zip(scale) {
                        *y = (x - mean) * (inv * a);
                    }
                }
            }
        }
    }
}

/// Normalizes each of equal runs of entries, then scales and shifts.
#[derive(Debug)]
struct RowNorm {
    name: &'static str,
    /// Entries normalized together.
    row: usize,
    epsilon: f64,
    /// Whether the mean is subtracted.
    centre: bool,
    /// Entry `i` of the tensor has parameter `i / inner % parameters`.
    inner: usize,
    parameters: usize,
}

impl RowNorm {
    /// Rows whose parameters differ from entry to entry, by vector instructions.
    fn rows(&self, args: &[Arg<'_>], out: &mut [f32], threads: usize) {
        let (x, scale) = (args[0].typed::<f32>(), args[1].typed::<f32>());
        let bias = args.get(2).map(|b| b.typed::<f32>());
        let threads = if x.len() < PARALLEL { 1 } else { threads };
        let count = (CHUNK / self.row).max(1) * self.row;
        parallel_chunks(threads, out, count, |chunk, out| {
            let x = &x[chunk * count..][..out.len()];
            normalize(x, scale, bias, self.centre, self.epsilon as f32, out);
        });
    }

    fn run_as<T: Real>(&self, args: &[Arg<'_>], out: &mut [T], threads: usize) {
        let (x, scale) = (args[0].typed::<T>(), args[1].typed::<T>());
        let bias = args.get(2).map(|b| b.typed::<T>());
        let threads = if x.len() < PARALLEL { 1 } else { threads };
        let over = T::of(1.0 / self.row as f64);
        parallel_chunks(threads, out, self.row.max(1), |row, out| {
            let start = row * self.row;
            let x = &x[start..][..self.row];
            let mean = if self.centre {
                sum_of(x, |v| v) * over
            } else {
                T::ZERO
            };
            let var = sum_of(x, |v| (v - mean) * (v - mean)) * over;
            let inv = (var + T::of(self.epsilon)).root().inverse();
            for (j, out) in out.chunks_mut(self.inner).enumerate() {
                let first = start + j * self.inner;
                let p = first / self.inner % self.parameters;
                let a = inv * scale[p];
                let b = bias.map_or(T::ZERO, |b| b[p]);
                for (y, &x) in out.iter_mut().zip(&x[j * self.inner..]) {
                    *y = (x - mean) * a + b;
                }
            }
        });
    }
}

impl Kernel for RowNorm {
    fn name(&self) -> String {
        self.name.to_string()
    }

    fn run(&self, args: &[Arg<'_>], outs: &mut [Out<'_>], cx: &mut RunCx<'_>) -> Result<()> {
        match args[0].dtype {
            DType::F64 => self.run_as::<f64>(args, outs[0].typed(), cx.threads),
            _ if self.inner == 1 && self.parameters == self.row => {
                self.rows(args, outs[0].typed(), cx.threads)
            }
            _ => self.run_as::<f32>(args, outs[0].typed(), cx.threads),
        }
        Ok(())
    }
}

/// Normalization over the axes from `axis` on.
fn tail(
    name: &'static str,
    axis: usize,
    epsilon: f64,
    centre: bool,
    cx: &CompileCx<'_>,
) -> Result<Box<dyn Kernel>> {
    real(&cx.inputs[0], name)?;
    let row = cx.inputs[0].shape.fixed()?[axis..].iter().product();
    Ok(Box::new(RowNorm {
        name,
        row,
        epsilon,
        centre,
        inner: 1,
        parameters: row.max(1),
    }))
}

/// Layer normalization.
pub(crate) fn compile_layer_norm(
    op: &ops::LayerNorm,
    cx: &CompileCx<'_>,
) -> Result<Box<dyn Kernel>> {
    tail("layer norm", op.axis, op.epsilon, true, cx)
}

/// Root-mean-square normalization.
pub(crate) fn compile_rms_norm(op: &ops::RmsNorm, cx: &CompileCx<'_>) -> Result<Box<dyn Kernel>> {
    tail("rms norm", op.axis, op.epsilon, false, cx)
}

/// Normalization of runs of channels of `[N, C, ..]`.
fn grouped(
    name: &'static str,
    groups: impl Fn(usize) -> usize,
    epsilon: f64,
    cx: &CompileCx<'_>,
) -> Result<Box<dyn Kernel>> {
    real(&cx.inputs[0], name)?;
    let Channels { c, inner, .. } = Channels::new(&cx.inputs[0])?;
    Ok(Box::new(RowNorm {
        name,
        row: c / groups(c).max(1) * inner,
        epsilon,
        centre: true,
        inner: inner.max(1),
        parameters: c.max(1),
    }))
}

/// Group normalization.
pub(crate) fn compile_group_norm(
    op: &ops::GroupNorm,
    cx: &CompileCx<'_>,
) -> Result<Box<dyn Kernel>> {
    grouped("group norm", |_| op.groups, op.epsilon, cx)
}

/// Instance normalization.
pub(crate) fn compile_instance_norm(
    op: &ops::InstanceNorm,
    cx: &CompileCx<'_>,
) -> Result<Box<dyn Kernel>> {
    grouped("instance norm", |c| c, op.epsilon, cx)
}
