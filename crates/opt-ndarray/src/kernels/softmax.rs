//! Softmax and its logarithm along an axis.

use half::{bf16, f16};
use opt_core::{DType, Element, Error, Result};

use super::lanes::by_isa;
use super::{Arg, CompileCx, Kernel, Out, RunCx, math, parallel_chunks};

/// Columns that are treated at once where the axis is not the last.
const WIDTH: usize = 64;

/// Elements from which a second thread is worth its start.
const PARALLEL: usize = 1 << 14;

/// The sizes before, at and after the axis.
#[derive(Debug, Clone, Copy)]
pub(super) struct Axis {
    pub(super) outer: usize,
    pub(super) len: usize,
    pub(super) inner: usize,
}

impl Axis {
    pub(super) fn new(shape: &[usize], axis: usize) -> Axis {
        Axis {
            outer: shape[..axis].iter().product(),
            len: shape[axis],
            inner: shape[axis + 1..].iter().product(),
        }
    }
}

by_isa! {
    /// The sum of `e^(x - shift)`.
    pub(super) fn exp_sum(x: &[f32], shift: f32) -> f32 = |FMA| {
        let mut lanes = [0f32; 16];
        let mut chunks = x.chunks_exact(16);
        for chunk in &mut chunks {
            for (lane, &x) in lanes.iter_mut().zip(chunk) {
                *lane += math::exp::<FMA>(x - shift);
            }
        }
        for (lane, &x) in lanes.iter_mut().zip(chunks.remainder()) {
            *lane += math::exp::<FMA>(x - shift);
        }
        lanes.iter().sum()
    }
}

by_isa! {
    /// Writes `e^(x - shift)` and returns the sum.
    pub(super) fn exp_to(x: &[f32], shift: f32, out: &mut [f32]) -> f32 = |FMA| {
        let mut lanes = [0f32; 16];
        for (x, out) in x.chunks(16).zip(out.chunks_mut(16)) {
            for ((lane, &x), out) in lanes.iter_mut().zip(x).zip(out) {
                let y = math::exp::<FMA>(x - shift);
                *lane += y;
                *out = y;
            }
        }
        lanes.iter().sum()
    }
}

by_isa! {
    /// Replaces entries by `e^(x - shift)` and returns their sum.
    pub(super) fn exp_in_place(x: &mut [f32], shift: f32) -> f32 = |FMA| {
        let mut lanes = [0f32; 16];
        for x in x.chunks_mut(16) {
            for (lane, x) in lanes.iter_mut().zip(x) {
                *x = math::exp::<FMA>(*x - shift);
                *lane += *x;
            }
        }
        lanes.iter().sum()
    }
}

by_isa! {
    /// The largest entry; a NaN spoils the sums anyway.
    pub(super) fn largest(x: &[f32]) -> f32 = |_FMA| {
        let larger = |a: f32, b: f32| if a > b { a } else { b };
        let mut lanes = [f32::NEG_INFINITY; 16];
        let mut chunks = x.chunks_exact(16);
        for chunk in &mut chunks {
            for (lane, &x) in lanes.iter_mut().zip(chunk) {
                *lane = larger(x, *lane);
            }
        }
        for (lane, &x) in lanes.iter_mut().zip(chunks.remainder()) {
            *lane = larger(x, *lane);
        }
        lanes.into_iter().fold(f32::NEG_INFINITY, larger)
    }
}

by_isa! {
    /// Multiplies entries by a factor.
    pub(super) fn scale(x: &mut [f32], factor: f32) = |_FMA| {
        for x in x {
            *x *= factor;
        }
    }
}

by_isa! {
    /// `x - max - log`, in this order: the sum of the two would lose digits of the smaller.
    fn subtract(x: &[f32], max: f32, log: f32, out: &mut [f32]) = |_FMA| {
        for (out, &x) in out.iter_mut().zip(x) {
            *out = x - max - log;
        }
    }
}

by_isa! {
    /// Softmax, or its logarithm, of columns: entry `i` of column `j` is `x[i * step + j]`.
    fn columns(x: &[f32], out: &mut [f32], len: usize, step: usize, width: usize, log: bool) = |FMA| {
        let (mut max, mut sum) = ([f32::NEG_INFINITY; WIDTH], [0f32; WIDTH]);
        let (max, sum) = (&mut max[..width], &mut sum[..width]);
        for row in x.chunks(step).take(len) {
            for (max, &x) in max.iter_mut().zip(row) {
                *max = if x > *max { x } else { *max };
            }
        }
        for (row, out) in x.chunks(step).zip(out.chunks_mut(step)).take(len) {
            for (((sum, &max), &x), out) in sum.iter_mut().zip(&*max).zip(row).zip(out) {
                let y = math::exp::<FMA>(x - max);
                *sum += y;
                *out = y;
            }
        }
        for sum in &mut *sum {
            *sum = if log { math::log::<FMA>(*sum) } else { 1.0 / *sum };
        }
        for (row, out) in x.chunks(step).zip(out.chunks_mut(step)).take(len) {
            for (((&sum, &max), &x), out) in sum.iter().zip(&*max).zip(row).zip(out) {
                *out = if log { x - max - sum } else { *out * sum };
            }
        }
    }
}

/// Compiles softmax, or its logarithm.
pub(crate) fn compile(axis: usize, log: bool, cx: &CompileCx<'_>) -> Result<Box<dyn Kernel>> {
    let axis = Axis::new(&cx.inputs[0].shape.fixed()?, axis);
    Ok(Box::new(Softmax { axis, log }))
}

#[derive(Debug)]
struct Softmax {
    axis: Axis,
    log: bool,
}

impl Softmax {
    fn f32(&self, x: &[f32], out: &mut [f32], threads: usize) {
        let Axis { len, inner, .. } = self.axis;
        let plane = len * inner;
        if plane == 0 {
            return;
        }
        let threads = if x.len() < PARALLEL { 1 } else { threads };
        if inner > 1 {
            parallel_chunks(threads, out, plane, |o, out| {
                let x = &x[o * plane..][..plane];
                for j in (0..inner).step_by(WIDTH) {
                    columns(
                        &x[j..],
                        &mut out[j..],
                        len,
                        inner,
                        WIDTH.min(inner - j),
                        self.log,
                    );
                }
            });
            return;
        }
        let rows = (4096 / len).max(1);
        parallel_chunks(threads, out, rows * len, |chunk, out| {
            let x = &x[chunk * rows * len..][..out.len()];
            for (x, out) in x.chunks_exact(len).zip(out.chunks_exact_mut(len)) {
                let max = largest(x);
                if self.log {
                    subtract(x, max, exp_sum(x, max).ln(), out);
                } else {
                    let sum = exp_to(x, max, out);
                    scale(out, 1.0 / sum);
                }
            }
        });
    }

    fn any<T: Element>(&self, x: &[T], out: &mut [T]) {
        let Axis { outer, len, inner } = self.axis;
        for line in 0..outer * inner {
            let at = |i: usize| (line / inner * len + i) * inner + line % inner;
            let values = || (0..len).map(|i| x[at(i)].to_f64());
            let max = values().fold(f64::NEG_INFINITY, f64::max);
            let sum: f64 = values().map(|x| (x - max).exp()).sum();
            for i in 0..len {
                let shifted = x[at(i)].to_f64() - max;
                out[at(i)] = T::from_f64(if self.log {
                    shifted - sum.ln()
                } else {
                    shifted.exp() / sum
                });
            }
        }
    }
}

impl Kernel for Softmax {
    fn name(&self) -> String {
        if self.log { "logsoftmax" } else { "softmax" }.into()
    }

    fn run(&self, args: &[Arg<'_>], outs: &mut [Out<'_>], cx: &mut RunCx<'_>) -> Result<()> {
        let (x, out) = (&args[0], &mut outs[0]);
        match x.dtype {
            DType::F32 => self.f32(x.typed(), out.typed(), cx.threads),
            DType::F64 => self.any::<f64>(x.typed(), out.typed()),
            DType::F16 => self.any::<f16>(x.typed(), out.typed()),
            DType::BF16 => self.any::<bf16>(x.typed(), out.typed()),
            other => return Err(Error::unsupported(format!("{} of {other}", self.name()))),
        }
        Ok(())
    }
}
