//! Max and average pooling and their gradients, on the geometry of the convolutions.

mod halving;
mod rows;

use bytemuck::Pod;
use opt_core::ops;
use opt_core::{DType, Element, Error, Result, TensorType};

use super::conv::Geometry;
use super::{Arg, CompileCx, Kernel, Out, RunCx, parallel_chunks, real};
use halving::{Halve, Halving};
pub(super) use rows::Rows;

/// Elements from which a second thread is worth its start.
const PARALLEL: usize = 1 << 15;

/// Channel images of `[N, C, ..]` and how the window lies on one.
#[derive(Debug)]
struct Images {
    geometry: Geometry,
    input: usize,
    output: usize,
}

impl Images {
    fn new(
        x: &TensorType,
        y: &TensorType,
        kernel: &[usize],
        window: &ops::Window,
    ) -> Result<Images> {
        let (x, y) = (x.shape.fixed()?, y.shape.fixed()?);
        let geometry = Geometry::new(&x[2..], &y[2..], kernel, window);
        Ok(Images {
            input: geometry.input_len(),
            output: geometry.output_len(),
            geometry,
        })
    }

    fn threads(&self, elements: usize, threads: usize) -> usize {
        if elements < PARALLEL { 1 } else { threads }
    }

    /// Calls `visit(output index, input index)` for every pair of an output pixel and an input
    /// pixel of its window, window entries in ascending order for each output.
    fn pairs(&self, mut visit: impl FnMut(usize, usize)) {
        let g = &self.geometry;
        let taps = [0, 1, 2].map(|axis| {
            let inside = (0..g.kernel[axis]).map(|k| g.inside(axis, k));
            inside.collect::<smallvec::SmallVec<[_; 8]>>()
        });
        let mut outs = 0;
        for z in 0..g.output[0] {
            for y in 0..g.output[1] {
                for x in 0..g.output[2] {
                    for kz in (0..g.kernel[0]).filter(|&k| taps[0][k].contains(&z)) {
                        for ky in (0..g.kernel[1]).filter(|&k| taps[1][k].contains(&y)) {
                            for kx in (0..g.kernel[2]).filter(|&k| taps[2][k].contains(&x)) {
                                let row = g.source(0, z, kz) * g.input[1] + g.source(1, y, ky);
                                visit(outs, row * g.input[2] + g.source(2, x, kx));
                            }
                        }
                    }
                    outs += 1;
                }
            }
        }
    }

    /// The pairs of [`Images::pairs`], output by output.
    fn table(&self) -> Vec<(u32, u32)> {
        let mut table = Vec::new();
        self.pairs(|o, i| table.push((o as u32, i as u32)));
        table
    }
}

macro_rules! by_number {
    ($dtype:expr, $t:ident => $body:expr) => {
        match $dtype {
            DType::F64 => {
                type $t = f64;
                $body
            }
            DType::F16 => {
                type $t = half::f16;
                $body
            }
            DType::BF16 => {
                type $t = half::bf16;
                $body
            }
            DType::I8 => {
                type $t = i8;
                $body
            }
            DType::U8 => {
                type $t = u8;
                $body
            }
            DType::I32 => {
                type $t = i32;
                $body
            }
            _ => {
                type $t = f32;
                $body
            }
        }
    };
}

/// Pairs of output and input pixel, precomputed up to this many; larger windows walk.
const TABLE: usize = 1 << 20;

#[derive(Debug)]
struct MaxPool {
    images: Images,
    halving: Option<Halving>,
    table: Vec<(u32, u32)>,
}

/// Whether a maximum gives way: to a larger entry, and to NaN.
fn beats<T: PartialOrd>(new: T, old: T) -> bool {
    new > old || new.partial_cmp(&new).is_none()
}

impl MaxPool {
    fn new(x: &TensorType, y: &TensorType, op: &ops::MaxPool) -> Result<MaxPool> {
        let images = Images::new(x, y, &op.kernel, &op.window)?;
        let halving = Halving::new(&images.geometry);
        let pairs = images.output.saturating_mul(images.geometry.taps());
        let table = if halving.is_none() && pairs <= TABLE {
            images.table()
        } else {
            Vec::new()
        };
        Ok(MaxPool {
            images,
            halving,
            table,
        })
    }

    fn pairs(&self, mut visit: impl FnMut(usize, usize)) {
        if self.table.is_empty() {
            self.images.pairs(visit);
        } else {
            for &(o, i) in &self.table {
                visit(o as usize, i as usize);
            }
        }
    }

    /// The maxima of some channel images.
    fn images<T: Halve>(&self, x: &[T], y: &mut [T]) {
        if let Some(halving) = self.halving {
            return T::maxima(halving, x, y);
        }
        let (input, output) = (self.images.input, self.images.output);
        for (x, y) in x.chunks_exact(input).zip(y.chunks_exact_mut(output)) {
            self.channel(x, y);
        }
    }

    fn channel<T: Element + PartialOrd>(&self, x: &[T], y: &mut [T]) {
        let mut last = usize::MAX;
        self.pairs(|o, i| {
            if o != last || beats(x[i], y[o]) {
                y[o] = x[i];
            }
            last = o;
        });
    }

    fn forward<T: Halve>(&self, x: &[T], y: &mut [T], threads: usize) {
        let (input, output) = (self.images.input, self.images.output);
        let threads = self.images.threads(x.len(), threads);
        let per = channels_a_task(output);
        parallel_chunks(threads, y, output * per, |task, y| {
            self.images(&x[task * per * input..][..y.len() / output * input], y);
        });
    }

    fn backward<T: Halve + std::ops::AddAssign>(
        &self,
        x: &[T],
        g: &[T],
        dx: &mut [T],
        threads: usize,
    ) {
        let (input, output) = (self.images.input, self.images.output);
        let threads = self.images.threads(x.len(), threads);
        let per = channels_a_task(input);
        parallel_chunks(threads, dx, input * per, |task, dx| {
            let channels = dx.len() / input;
            let x = &x[task * per * input..][..channels * input];
            let g = &g[task * per * output..][..channels * output];
            if let Some(halving) = self.halving {
                return T::gradient(halving, x, g, dx);
            }
            for (c, dx) in dx.chunks_exact_mut(input).enumerate() {
                let (x, g) = (&x[c * input..][..input], &g[c * output..][..output]);
                self.channel_gradient(x, g, dx);
            }
        });
    }

    fn channel_gradient<T: Halve + std::ops::AddAssign>(&self, x: &[T], g: &[T], dx: &mut [T]) {
        dx.fill(T::from_f64(0.0));
        let (mut last, mut best) = (usize::MAX, 0);
        self.pairs(|o, i| {
            if o != last {
                if last != usize::MAX {
                    dx[best] += g[last];
                }
                (last, best) = (o, i);
            } else if beats(x[i], x[best]) {
                best = i;
            }
        });
        if last != usize::MAX {
            dx[best] += g[last];
        }
    }
}

/// Channel images that one task takes, so that small images do not make a task each.
fn channels_a_task(image: usize) -> usize {
    (4096 / image.max(1)).max(1)
}

impl Kernel for MaxPool {
    fn name(&self) -> String {
        "max pool".to_string()
    }

    fn run(&self, args: &[Arg<'_>], outs: &mut [Out<'_>], cx: &mut RunCx<'_>) -> Result<()> {
        by_number!(args[0].dtype, T => {
            self.forward::<T>(args[0].typed(), outs[0].typed(), cx.threads);
        });
        Ok(())
    }
}

/// Max pooling.
pub(crate) fn compile_max_pool(op: &ops::MaxPool, cx: &CompileCx<'_>) -> Result<Box<dyn Kernel>> {
    let dtype = cx.inputs[0].dtype;
    if !matches!(
        dtype,
        DType::F32 | DType::F64 | DType::F16 | DType::BF16 | DType::I8 | DType::U8 | DType::I32
    ) {
        return Err(Error::unsupported(format!("max pooling of {dtype}")));
    }
    Ok(Box::new(MaxPool::new(&cx.inputs[0], &cx.outputs[0], op)?))
}

#[derive(Debug)]
struct MaxPoolGrad(MaxPool);

impl Kernel for MaxPoolGrad {
    fn name(&self) -> String {
        "max pool grad".to_string()
    }

    fn run(&self, args: &[Arg<'_>], outs: &mut [Out<'_>], cx: &mut RunCx<'_>) -> Result<()> {
        let threads = cx.threads;
        if args[0].dtype == DType::F64 {
            let (x, g) = (args[0].typed::<f64>(), args[1].typed());
            self.0.backward(x, g, outs[0].typed(), threads);
        } else {
            let (x, g) = (args[0].typed::<f32>(), args[1].typed());
            self.0.backward(x, g, outs[0].typed(), threads);
        }
        Ok(())
    }
}

/// Gradient of max pooling.
pub(crate) fn compile_max_pool_grad(
    op: &ops::MaxPoolGrad,
    cx: &CompileCx<'_>,
) -> Result<Box<dyn Kernel>> {
    real(&cx.inputs[0], "gradient of max pooling")?;
    Ok(Box::new(MaxPoolGrad(MaxPool::new(
        &cx.inputs[0],
        &cx.inputs[1],
        &op.pool,
    )?)))
}

#[derive(Debug)]
struct AvgPool {
    images: Images,
    /// One over the divisor of each output pixel.
    factors: Vec<f64>,
    backward: bool,
}

impl AvgPool {
    fn new(x: &TensorType, y: &TensorType, op: &ops::AvgPool, backward: bool) -> Result<AvgPool> {
        let images = Images::new(x, y, &op.kernel, &op.window)?;
        let g = &images.geometry;
        // Entries of a window inside the image, or inside the image and its padding.
        let count = |axis: usize, out: usize, end_pad: usize| -> usize {
            let size = g.input[axis] + g.pad[axis];
            (0..g.kernel[axis])
                .map(|k| out * g.stride[axis] + k * g.dilation[axis])
                .filter(|&at| match op.count_include_pad {
                    true => at < size + end_pad,
                    false => at >= g.pad[axis] && at < size,
                })
                .count()
        };
        let mut end = [0; 3];
        end[3 - op.window.rank()..].copy_from_slice(&op.window.pads_end);
        let mut factors = Vec::with_capacity(images.output);
        for z in 0..g.output[0] {
            for y in 0..g.output[1] {
                for x in 0..g.output[2] {
                    let n = count(0, z, end[0]) * count(1, y, end[1]) * count(2, x, end[2]);
                    factors.push(1.0 / n as f64);
                }
            }
        }
        Ok(AvgPool {
            images,
            factors,
            backward,
        })
    }

    fn run_as<T>(&self, from: &[T], to: &mut [T], threads: usize)
    where
        T: Element + Pod + std::ops::AddAssign + std::ops::Mul<Output = T>,
    {
        let (input, output) = (self.images.input, self.images.output);
        let threads = self.images.threads(from.len().max(to.len()), threads);
        let (source, target) = if self.backward {
            (output, input)
        } else {
            (input, output)
        };
        let per = channels_a_task(target);
        parallel_chunks(threads, to, target * per, |task, to| {
            for (c, to) in to.chunks_mut(target).enumerate() {
                let from = &from[(task * per + c) * source..][..source];
                to.fill(T::from_f64(0.0));
                if self.backward {
                    self.images
                        .pairs(|o, i| to[i] += from[o] * T::from_f64(self.factors[o]));
                } else {
                    self.images.pairs(|o, i| to[o] += from[i]);
                    for (v, &f) in to.iter_mut().zip(&self.factors) {
                        *v = *v * T::from_f64(f);
                    }
                }
            }
        });
    }
}

impl Kernel for AvgPool {
    fn name(&self) -> String {
        if self.backward {
            "average pool grad"
        } else {
            "average pool"
        }
        .to_string()
    }

    fn run(&self, args: &[Arg<'_>], outs: &mut [Out<'_>], cx: &mut RunCx<'_>) -> Result<()> {
        if args[0].dtype == DType::F64 {
            self.run_as::<f64>(args[0].typed(), outs[0].typed(), cx.threads);
        } else {
            self.run_as::<f32>(args[0].typed(), outs[0].typed(), cx.threads);
        }
        Ok(())
    }
}

/// Average pooling of `f32` images in two dimensions.
#[derive(Debug)]
struct Mean(Rows);

impl Kernel for Mean {
    fn name(&self) -> String {
        "average pool".to_string()
    }

    fn run(&self, args: &[Arg<'_>], outs: &mut [Out<'_>], cx: &mut RunCx<'_>) -> Result<()> {
        self.0.run(args[0].typed(), outs[0].typed(), cx.threads);
        Ok(())
    }
}

/// Average pooling.
pub(crate) fn compile_avg_pool(op: &ops::AvgPool, cx: &CompileCx<'_>) -> Result<Box<dyn Kernel>> {
    real(&cx.inputs[0], "average pooling")?;
    let pool = AvgPool::new(&cx.inputs[0], &cx.outputs[0], op, false)?;
    let factors = pool.factors.iter().map(|&f| f as f32);
    if cx.inputs[0].dtype == DType::F32
        && let Some(rows) = Rows::mean(&pool.images.geometry, factors.collect())
    {
        return Ok(Box::new(Mean(rows)));
    }
    Ok(Box::new(pool))
}

/// Gradient of average pooling.
pub(crate) fn compile_avg_pool_grad(
    op: &ops::AvgPoolGrad,
    cx: &CompileCx<'_>,
) -> Result<Box<dyn Kernel>> {
    real(&cx.inputs[0], "gradient of average pooling")?;
    let pool = AvgPool::new(&cx.outputs[0], &cx.inputs[0], &op.pool, true)?;
    Ok(Box::new(pool))
}
