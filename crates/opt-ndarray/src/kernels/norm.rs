//! Batch, layer, group, instance and root-mean-square normalization.

use bytemuck::Pod;
use opt_core::ops;
use opt_core::{DType, Element, Error, Result, TensorType};

use super::{Arg, CompileCx, Kernel, Out, RunCx, SharedMut, parallel, parallel_chunks};

/// What the normalizations need of an element type.
trait Real:
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

macro_rules! real {
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
real!(f32, f64);

fn float(ty: &TensorType, what: &str) -> Result<()> {
    if matches!(ty.dtype, DType::F32 | DType::F64) {
        return Ok(());
    }
    Err(Error::unsupported(format!(
        "{what} of {}; cast to f32 first",
        ty.dtype
    )))
}

/// The sum of a function over entries in sixteen running sums: as accurate as pairwise for the
/// sizes at hand, and the compiler keeps them in registers.
fn sum_of<T: Real>(x: &[T], f: impl Fn(T) -> T) -> T {
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
struct Channels {
    n: usize,
    c: usize,
    inner: usize,
}

impl Channels {
    fn new(ty: &TensorType) -> Result<Channels> {
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

#[derive(Debug)]
struct BatchNorm {
    op: ops::BatchNorm,
    channels: Channels,
}

impl BatchNorm {
    fn eval<T: Real>(&self, args: &[Arg<'_>], out: &mut [T], threads: usize) {
        let [x, scale, bias, mean, var] = [0, 1, 2, 3, 4].map(|i| args[i].typed::<T>());
        let Channels { c, inner, .. } = self.channels;
        parallel_chunks(
            self.channels.threads(threads),
            out,
            (c * inner).max(1),
            |n, out| {
                for (i, y) in out.chunks_mut(inner.max(1)).enumerate() {
                    let a = scale[i] * (var[i] + T::of(self.op.epsilon)).root().inverse();
                    let b = bias[i] - mean[i] * a;
                    for (y, &x) in y.iter_mut().zip(&x[self.channels.run(n, i)]) {
                        *y = x * a + b;
                    }
                }
            },
        );
    }

    fn train<T: Real>(&self, args: &[Arg<'_>], outs: &mut [Out<'_>], threads: usize) {
        let [x, scale, bias, mean, var] = [0, 1, 2, 3, 4].map(|i| args[i].typed::<T>());
        let Channels { n, c, inner } = self.channels;
        let count = n * inner;
        let mut outs = outs.iter_mut();
        let mut next = || SharedMut::new(outs.next().expect("five outputs").typed::<T>());
        let (y, new_mean, new_var, batch_mean, batch_inv) =
            (next(), next(), next(), next(), next());
        let momentum = T::of(self.op.momentum);
        let keep = T::of(1.0 - self.op.momentum);
        let unbiased = T::of(count as f64 / (count.max(2) - 1) as f64);
        parallel(self.channels.threads(threads), c, |i| {
            let over = T::of(1.0 / count as f64);
            let run = |k: usize| &x[self.channels.run(k, i)];
            let m = (0..n).fold(T::ZERO, |s, k| s + sum_of(run(k), |v| v)) * over;
            let square = |v: T| (v - m) * (v - m);
            let v = (0..n).fold(T::ZERO, |s, k| s + sum_of(run(k), square)) * over;
            let inv = (v + T::of(self.op.epsilon)).root().inverse();
            let (a, b) = (scale[i] * inv, bias[i] - m * scale[i] * inv);
            #[expect(
                unsafe_code,
                reason = "each channel has its own entries of the outputs"
            )]
            // SAFETY: task i is the only one to touch channel i of any output.
            unsafe {
                for k in 0..n {
                    for (y, &x) in y.part(self.channels.run(k, i)).iter_mut().zip(run(k)) {
                        *y = x * a + b;
                    }
                }
                new_mean.part(i..i + 1)[0] = keep * mean[i] + momentum * m;
                new_var.part(i..i + 1)[0] = keep * var[i] + momentum * v * unbiased;
                batch_mean.part(i..i + 1)[0] = m;
                batch_inv.part(i..i + 1)[0] = inv;
            }
        });
    }
}

impl Kernel for BatchNorm {
    fn name(&self) -> String {
        "batch norm".to_string()
    }

    fn run(&self, args: &[Arg<'_>], outs: &mut [Out<'_>], cx: &mut RunCx<'_>) -> Result<()> {
        match (args[0].dtype, self.op.training) {
            (DType::F64, false) => self.eval::<f64>(args, outs[0].typed(), cx.threads),
            (_, false) => self.eval::<f32>(args, outs[0].typed(), cx.threads),
            (DType::F64, true) => self.train::<f64>(args, outs, cx.threads),
            (_, true) => self.train::<f32>(args, outs, cx.threads),
        }
        Ok(())
    }
}

/// Batch normalization in either mode.
pub(crate) fn compile_batch_norm(
    op: &ops::BatchNorm,
    cx: &CompileCx<'_>,
) -> Result<Box<dyn Kernel>> {
    float(&cx.inputs[0], "batch normalization")?;
    Ok(Box::new(BatchNorm {
        op: op.clone(),
        channels: Channels::new(&cx.inputs[0])?,
    }))
}

#[derive(Debug)]
struct BatchNormGrad(Channels);

impl BatchNormGrad {
    fn run_as<T: Real>(&self, args: &[Arg<'_>], outs: &mut [Out<'_>], threads: usize) {
        let [x, scale, mean, inv, g] = [0, 1, 2, 3, 4].map(|i| args[i].typed::<T>());
        let channels = self.0;
        let Channels { n, c, inner } = channels;
        let mut outs = outs.iter_mut();
        let mut next = || SharedMut::new(outs.next().expect("three outputs").typed::<T>());
        let (dx, dscale, dbias) = (next(), next(), next());
        let over = T::of(1.0 / (n * inner) as f64);
        parallel(channels.threads(threads), c, |i| {
            let (m, r) = (mean[i], inv[i]);
            let (mut sum, mut dot) = (T::ZERO, T::ZERO);
            for k in 0..n {
                let run = channels.run(k, i);
                sum += sum_of(&g[run.clone()], |v| v);
                dot += sum_of_two(&g[run.clone()], &x[run], |g, x| g * (x - m));
            }
            // dx = scale * inv * (g - mean(g) - (x - m) * inv^2 * mean(g (x - m)))
            let a = scale[i] * r;
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
                    for ((d, &g), &x) in dx.part(run).iter_mut().zip(g).zip(x) {
                        *d = a * g - slope * x + shift;
                    }
                }
                dscale.part(i..i + 1)[0] = dot * r;
                dbias.part(i..i + 1)[0] = sum;
            }
        });
    }
}

impl Kernel for BatchNormGrad {
    fn name(&self) -> String {
        "batch norm grad".to_string()
    }

    fn run(&self, args: &[Arg<'_>], outs: &mut [Out<'_>], cx: &mut RunCx<'_>) -> Result<()> {
        match args[0].dtype {
            DType::F64 => self.run_as::<f64>(args, outs, cx.threads),
            _ => self.run_as::<f32>(args, outs, cx.threads),
        }
        Ok(())
    }
}

/// Gradient of batch normalization in training mode.
pub(crate) fn compile_batch_norm_grad(cx: &CompileCx<'_>) -> Result<Box<dyn Kernel>> {
    float(&cx.inputs[0], "batch normalization")?;
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

impl RowNorm {
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
    float(&cx.inputs[0], name)?;
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
    float(&cx.inputs[0], name)?;
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
