//! Batch normalization.

use bytemuck::Pod;
use half::{bf16, f16};
use opt_core::ops;
use opt_core::{DType, Element, Error, Result, TensorType};

use super::batch_norm::{Normalize, NormalizeGrad};
use super::row_norm::normalize_rows;
use super::wide::{Wide, is_half};
use super::{Arg, CompileCx, Kernel, Out, RunCx, SharedMut, parallel, parallel_chunks, real};
use crate::compile::plan::Lowered;

/// What the normalizations need of an element type.
pub(super) trait Real:
    Element
    + Pod
    + std::ops::Add<Output = Self>
    + std::ops::Sub<Output = Self>
    + std::ops::Mul<Output = Self>
    + std::ops::AddAssign
{
    const ZERO: Self;
    fn of(value: f64) -> Self;
    fn root(self) -> Self;
    fn inverse(self) -> Self;
}

macro_rules! reals {
    ($($t:ty),*) => {$(
        impl Real for $t {
            const ZERO: $t = 0.0;
            fn of(value: f64) -> $t {
                value as $t
            }
            fn root(self) -> $t {
                self.sqrt()
            }
            fn inverse(self) -> $t {
                1.0 / self
            }
        }
    )*};
}
reals!(f32, f64);

/// The sum of a function over entries in sixteen running sums: as accurate as pairwise for the
/// sizes at hand, and the compiler keeps them in registers.
pub(super) fn sum_of<T: Real>(x: &[T], f: impl Fn(T) -> T) -> T {
    let mut sums = [T::ZERO; 16];
    let chunks = x.chunks_exact(16);
    let rest = chunks.remainder();
    for chunk in chunks {
        for (s, &v) in sums.iter_mut().zip(chunk) {
            *s += f(v);
        }
    }
    for (s, &v) in sums.iter_mut().zip(rest) {
        *s += f(v);
    }
    sums.into_iter().fold(T::ZERO, |a, b| a + b)
}

/// As [`sum_of`] over pairs of entries.
fn sum_of_two<T: Real>(x: &[T], y: &[T], f: impl Fn(T, T) -> T) -> T {
    let mut sums = [T::ZERO; 16];
    let (xs, ys) = (x.chunks_exact(16), y.chunks_exact(16));
    let rest = (xs.remainder(), ys.remainder());
    for (x, y) in xs.zip(ys) {
        for i in 0..16 {
            sums[i] += f(x[i], y[i]);
        }
    }
    for (i, (&x, &y)) in rest.0.iter().zip(rest.1).enumerate() {
        sums[i] += f(x, y);
    }
    sums.into_iter().fold(T::ZERO, |a, b| a + b)
}

/// `[N, C, inner]`
#[derive(Debug, Clone, Copy)]
pub(super) struct Channels {
    n: usize,
    pub(super) c: usize,
    pub(super) inner: usize,
}

impl Channels {
    pub(super) fn new(ty: &TensorType) -> Result<Channels> {
        let shape = ty.shape.fixed()?;
        Ok(Channels {
            n: shape[0],
            c: shape[1],
            inner: shape[2..].iter().product(),
        })
    }

    /// The entries of a channel of an image.
    fn run(self, n: usize, c: usize) -> std::ops::Range<usize> {
        let start = (n * self.c + c) * self.inner;
        start..start + self.inner
    }

    fn threads(self, threads: usize) -> usize {
        if self.n * self.c * self.inner < 1 << 14 {
            1
        } else {
            threads
        }
    }
}

/// Calls a generic function for the dtypes of x and the parameters.
macro_rules! by_dtypes {
    ($what:expr, $x:expr, $p:expr, $self:ident.$f:ident($($arg:expr),*)) => {
        match ($x, $p) {
            (DType::F32, DType::F32) => $self.$f::<f32, f32, f32>($($arg),*),
            (DType::F64, DType::F64) => $self.$f::<f64, f64, f64>($($arg),*),
            (DType::F16, DType::F16) => $self.$f::<f32, f16, f16>($($arg),*),
            (DType::F16, DType::F32) => $self.$f::<f32, f16, f32>($($arg),*),
            (DType::BF16, DType::BF16) => $self.$f::<f32, bf16, bf16>($($arg),*),
            (DType::BF16, DType::F32) => $self.$f::<f32, bf16, f32>($($arg),*),
            (x, p) => {
                return Err(Error::unsupported(format!(
                    "{} of {x} with parameters of {p}",
                    $what
                )));
            }
        }
    };
}

#[derive(Debug)]
struct BatchNorm {
    op: ops::BatchNorm,
    channels: Channels,
}

impl BatchNorm {
    fn eval<T: Real, X: Wide<Real = T>, P: Wide<Real = T>>(
        &self,
        args: &[Arg<'_>],
        outs: &mut [Out<'_>],
        threads: usize,
    ) {
        let x = args[0].typed::<X>();
        let [scale, bias, mean, var] = [1, 2, 3, 4].map(|i| args[i].typed::<P>());
        let Channels { c, inner, .. } = self.channels;
        parallel_chunks(
            self.channels.threads(threads),
            outs[0].typed::<X>(),
            (c * inner).max(1),
            |n, out| {
                for (i, y) in out.chunks_mut(inner.max(1)).enumerate() {
                    let var = var[i].one() + T::of(self.op.epsilon);
                    let a = scale[i].one() * var.root().inverse();
                    let b = bias[i].one() - mean[i].one() * a;
                    affine(&x[self.channels.run(n, i)], y, |x| x * a + b);
                }
            },
        );
    }

    fn train<T: Real, X: Wide<Real = T>, P: Wide<Real = T>>(
        &self,
        args: &[Arg<'_>],
        outs: &mut [Out<'_>],
        threads: usize,
    ) {
        let x = args[0].typed::<X>();
        let [scale, bias, mean, var] = [1, 2, 3, 4].map(|i| args[i].typed::<P>());
        let Channels { n, c, inner } = self.channels;
        let count = n * inner;
        let (y, statistics) = outs.split_first_mut().expect("five outputs");
        let y = SharedMut::new(y.typed::<X>());
        let mut statistics = statistics.iter_mut();
        let mut next = || SharedMut::new(statistics.next().expect("five outputs").typed::<P>());
        let (new_mean, new_var, batch_mean, batch_inv) = (next(), next(), next(), next());
        let momentum = T::of(self.op.momentum);
        let keep = T::of(1.0 - self.op.momentum);
        let unbiased = T::of(count as f64 / (count.max(2) - 1) as f64);
        parallel(self.channels.threads(threads), c, |i| {
            let over = T::of(1.0 / count as f64);
            let run = |k: usize| &x[self.channels.run(k, i)];
            let total = |f: &dyn Fn(&[T]) -> T| {
                let mut sum = T::ZERO;
                for k in 0..n {
                    X::read(run(k), |x| sum += f(x));
                }
                sum
            };
            let m = total(&|x| sum_of(x, |v| v)) * over;
            let v = total(&|x| sum_of(x, |v| (v - m) * (v - m))) * over;
            let inv = (v + T::of(self.op.epsilon)).root().inverse();
            let scale = scale[i].one();
            let (a, b) = (scale * inv, bias[i].one() - m * scale * inv);
            #[expect(
                unsafe_code,
                reason = "each channel has its own entries of the outputs"
            )]
            // SAFETY: task i is the only one to touch channel i of any output.
            unsafe {
                for k in 0..n {
                    affine(run(k), y.part(self.channels.run(k, i)), |x| x * a + b);
                }
                let next = |old: P, new: T| P::round(keep * old.one() + momentum * new);
                new_mean.part(i..i + 1)[0] = next(mean[i], m);
                new_var.part(i..i + 1)[0] = next(var[i], v * unbiased);
                batch_mean.part(i..i + 1)[0] = P::round(m);
                batch_inv.part(i..i + 1)[0] = P::round(inv);
            }
        });
    }
}

/// `y = f(x)`, entry by entry.
fn affine<T: Real, X: Wide<Real = T>>(x: &[X], y: &mut [X], f: impl Fn(T) -> T) {
    X::write(y, |at, y| {
        X::read(&x[at..][..y.len()], |x| {
            for (y, &x) in y.iter_mut().zip(x) {
                *y = f(x);
            }
        });
    });
}

impl Kernel for BatchNorm {
    fn name(&self) -> String {
        "batch norm".to_string()
    }

    fn run(&self, args: &[Arg<'_>], outs: &mut [Out<'_>], cx: &mut RunCx<'_>) -> Result<()> {
        let (x, p) = (args[0].dtype, args[1].dtype);
        if self.op.training {
            by_dtypes!("BatchNorm", x, p, self.train(args, outs, cx.threads));
        } else {
            by_dtypes!("BatchNorm", x, p, self.eval(args, outs, cx.threads));
        }
        Ok(())
    }
}

/// Fails unless x is `f32`, `f64` or of 16 bits.
fn real_or_half(ty: &TensorType) -> Result<()> {
    if is_half(ty.dtype) {
        return Ok(());
    }
    real(ty, "BatchNorm")
}

/// Whether x and the parameters are `f32`, which has kernels of its own.
fn is_single(cx: &CompileCx<'_>) -> bool {
    cx.inputs.iter().all(|ty| ty.dtype == DType::F32)
}

/// Batch normalization in either mode.
pub(crate) fn compile_batch_norm(
    op: &ops::BatchNorm,
    cx: &CompileCx<'_>,
) -> Result<Box<dyn Kernel>> {
    real_or_half(&cx.inputs[0])?;
    if op.training && is_single(cx) {
        let (op, add, relu) = (op.clone(), false, false);
        return Normalize { op, add, relu }.compile(cx);
    }
    Ok(Box::new(BatchNorm {
        op: op.clone(),
        channels: Channels::new(&cx.inputs[0])?,
    }))
}

#[derive(Debug)]
struct BatchNormGrad(Channels);

impl BatchNormGrad {
    fn run_as<T: Real, X: Wide<Real = T>, P: Wide<Real = T>>(
        &self,
        args: &[Arg<'_>],
        outs: &mut [Out<'_>],
        threads: usize,
    ) {
        let [x, g] = [0, 4].map(|i| args[i].typed::<X>());
        let [scale, mean, inv] = [1, 2, 3].map(|i| args[i].typed::<P>());
        let channels = self.0;
        let Channels { n, c, inner } = channels;
        let (dx, others) = outs.split_first_mut().expect("three outputs");
        let dx = SharedMut::new(dx.typed::<X>());
        let mut others = others.iter_mut();
        let mut next = || SharedMut::new(others.next().expect("three outputs").typed::<P>());
        let (dscale, dbias) = (next(), next());
        let over = T::of(1.0 / (n * inner) as f64);
        parallel(channels.threads(threads), c, |i| {
            let (m, r) = (mean[i].one(), inv[i].one());
            let (mut sum, mut dot) = (T::ZERO, T::ZERO);
            for k in 0..n {
                let run = channels.run(k, i);
                X::pairs(&g[run.clone()], &x[run], |g, x| {
                    sum += sum_of(g, |v| v);
                    dot += sum_of_two(g, x, |g, x| g * (x - m));
                });
            }
            // dx = scale * inv * (g - mean(g) - (x - m) * inv^2 * mean(g (x - m)))
            let a = scale[i].one() * r;
            let slope = a * r * r * dot * over;
            let shift = m * slope - a * sum * over;
            #[expect(
                unsafe_code,
                reason = "each channel has its own entries of the outputs"
            )]
            // SAFETY: task i is the only one to touch channel i of any output.
            unsafe {
                for k in 0..n {
                    let run = channels.run(k, i);
                    let (g, x) = (&g[run.clone()], &x[run.clone()]);
                    X::write(dx.part(run), |at, d| {
                        X::pairs(&g[at..][..d.len()], &x[at..][..d.len()], |g, x| {
                            for ((d, &g), &x) in d.iter_mut().zip(g).zip(x) {
                                *d = a * g - slope * x + shift;
                            }
                        });
                    });
                }
                dscale.part(i..i + 1)[0] = P::round(dot * r);
                dbias.part(i..i + 1)[0] = P::round(sum);
            }
        });
    }
}

impl Kernel for BatchNormGrad {
    fn name(&self) -> String {
        "batch norm grad".to_string()
    }

    fn run(&self, args: &[Arg<'_>], outs: &mut [Out<'_>], cx: &mut RunCx<'_>) -> Result<()> {
        let (x, p) = (args[0].dtype, args[1].dtype);
        by_dtypes!("BatchNormGrad", x, p, self.run_as(args, outs, cx.threads));
        Ok(())
    }
}

/// Gradient of batch normalization in training mode.
pub(crate) fn compile_batch_norm_grad(cx: &CompileCx<'_>) -> Result<Box<dyn Kernel>> {
    real_or_half(&cx.inputs[0])?;
    if is_single(cx) {
        return NormalizeGrad::default().compile(cx);
    }
    Ok(Box::new(BatchNormGrad(Channels::new(&cx.inputs[0])?)))
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

/// Entries of rows that a thread takes at once.
const CHUNK: usize = 1 << 12;

impl RowNorm {
    /// Rows whose parameters differ from entry to entry.
    fn rows(&self, args: &[Arg<'_>], out: &mut [f32], threads: usize) {
        let (x, scale) = (args[0].typed::<f32>(), args[1].typed::<f32>());
        let bias = args.get(2).map(|b| b.typed::<f32>());
        let threads = if x.len() < 1 << 14 { 1 } else { threads };
        let count = (CHUNK / self.row).max(1) * self.row;
        parallel_chunks(threads, out, count, |chunk, out| {
            let x = &x[chunk * count..][..out.len()];
            normalize_rows(x, scale, bias, self.centre, self.epsilon as f32, out);
        });
    }

    fn run_as<T: Real>(&self, args: &[Arg<'_>], out: &mut [T], threads: usize) {
        let (x, scale) = (args[0].typed::<T>(), args[1].typed::<T>());
        let bias = args.get(2).map(|b| b.typed::<T>());
        let threads = if x.len() < 1 << 14 { 1 } else { threads };
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
                self.rows(args, outs[0].typed(), cx.threads);
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
