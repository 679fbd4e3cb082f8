//! Convolution.

use opt_core::ops::{self, UnaryOp};
use opt_core::{DType, Error, Result, Tensor};

use super::Sizes;
use super::depthwise::Depthwise;
use super::direct;
use super::panels::{After, Before, Panels, finish_row};
use super::real::{Packed, Real};
use super::winograd::Winograd;
use crate::kernels::gemm::Mat;
use crate::kernels::{
    Arg, CompileCx, Kernel, Normalize, Out, RunCx, elementwise, parallel_chunks, real,
};

/// How a convolution is computed.
#[derive(Debug)]
enum Way {
    Panels(Panels),
    /// With weights that change from run to run, and nothing before or after.
    Winograd(Winograd),
    Depthwise(Depthwise),
    /// By columns, or directly; the weights of each group, prepacked.
    Columns(Vec<Packed>),
}

#[derive(Debug)]
struct ConvKernel {
    name: String,
    sizes: Sizes,
    way: Way,
    /// The weight as [`Way::Panels`] reads it; empty where it changes from run to run.
    weight: Vec<f32>,
    /// Whether there is a bias among the operands.
    biased: bool,
    /// The weight and bias that a normalization after the convolution leaves.
    plain: Option<Vec<f32>>,
    bias: Option<Vec<f32>>,
    before: Option<Before>,
    residual: bool,
    functions: Vec<UnaryOp>,
    clamp: Option<[f32; 2]>,
}

/// Elements of an output that a task finishes.
const CHUNK: usize = 1 << 14;

/// Convolution.
pub(crate) fn compile_conv(op: &ops::Conv, cx: &CompileCx<'_>) -> Result<Box<dyn Kernel>> {
    real(&cx.inputs[0], "convolution")?;
    let shape = cx.inputs[1].shape.fixed()?;
    let sizes = Sizes::new(
        &cx.inputs[0],
        &cx.outputs[0],
        &shape[2..],
        &op.window,
        op.groups,
    )?;
    let biased = cx.inputs.len() > 2 + cx.extras.inputs();
    let (mut content, mut plain, mut bias) = (floats(cx, 1)?, None, None);
    let mut at = 2 + usize::from(biased);
    let before = match cx.extras.before {
        Some(norm) => {
            let (scale, offset) = affine(cx, at, norm)?;
            at += 4;
            let low = if norm.relu { 0.0 } else { f32::NEG_INFINITY };
            Some(Before { scale, offset, low })
        }
        None => None,
    };
    if let Some(norm) = cx.extras.after {
        let (scale, mut offset) = affine(cx, at, norm)?;
        let own = if biased { Some(given(cx, 2)?) } else { None };
        for (i, o) in offset.iter_mut().enumerate() {
            *o += own.as_ref().map_or(0.0, |b| b[i] * scale[i]);
        }
        let mut weight = given(cx, 1)?;
        let len = weight.len() / scale.len().max(1);
        for (w, a) in weight.chunks_mut(len.max(1)).zip(&scale) {
            w.iter_mut().for_each(|w| *w *= a);
        }
        (content, plain, bias) = (None, Some(weight), Some(offset));
    }
    let content = plain.as_deref().or(content.as_deref());
    let (o, k) = (sizes.o, sizes.rows());
    let serves = cx.inputs[0].dtype == DType::F32;
    let slides = serves && sizes.c == 1 && sizes.groups > 1;
    let depthwise = slides.then(|| Depthwise::new(sizes.groups, o, &sizes.geometry));
    let panels = serves.then(|| Panels::new(sizes.groups, sizes.c, o, &sizes.geometry));
    let bare = before.is_none() && !cx.extras.residual && cx.extras.clamp.is_none();
    let trains = serves && content.is_none() && bare && cx.epilogue.is_empty();
    let winograd = trains.then(|| Winograd::new(&sizes, [sizes.c, o], &sizes.geometry));
    let mut weight = Vec::new();
    let way = match (depthwise.flatten(), winograd.flatten(), panels.flatten()) {
        (Some(depthwise), ..) => Way::Depthwise(depthwise),
        (None, Some(winograd), _) => Way::Winograd(winograd),
        (None, None, Some(panels)) => {
            if let Some(w) = content {
                weight.resize(panels.packed_len(), 0.0);
                panels.pack(|r, entry| w[r * k + entry], &mut weight);
            }
            Way::Panels(panels)
        }
        (None, None, None) => {
            let pack = |group: &[f32]| Packed::new(Mat::new(group, k), o, sizes.block(), k);
            let groups = content.filter(|_| sizes.c > 1 && o * k > 0);
            Way::Columns(groups.map_or(Vec::new(), |w| w.chunks(o * k).map(pack).collect()))
        }
    };
    let (mut functions, mut clamp) = (cx.epilogue.to_vec(), cx.extras.clamp);
    if functions == [UnaryOp::Relu] && clamp.is_none() {
        functions.clear();
        clamp = Some([0.0, f32::INFINITY]);
    }
    Ok(Box::new(ConvKernel {
        name: (cx.extras).name(elementwise::with_epilogue("conv", cx.epilogue)),
        sizes,
        way,
        weight,
        biased,
        plain,
        bias,
        before,
        residual: cx.extras.residual,
        functions,
        clamp,
    }))
}

/// The content of an input, if it is constant.
fn floats(cx: &CompileCx<'_>, input: usize) -> Result<Option<Vec<f32>>> {
    let tensor = cx.constants[input].as_ref();
    let tensor = tensor.filter(|t| t.dtype() == DType::F32);
    tensor.map(Tensor::to_vec::<f32>).transpose()
}

/// The content of an input that the compiler has found constant.
fn given(cx: &CompileCx<'_>, input: usize) -> Result<Vec<f32>> {
    floats(cx, input)?
        .ok_or_else(|| Error::invalid(format!("input {input} of a convolution is not constant")))
}

/// The factors and offsets that a normalization is, from its four inputs.
fn affine(cx: &CompileCx<'_>, at: usize, norm: Normalize) -> Result<(Vec<f32>, Vec<f32>)> {
    let (mut scale, mut offset) = (given(cx, at)?, given(cx, at + 1)?);
    let (mean, variance) = (given(cx, at + 2)?, given(cx, at + 3)?);
    for i in 0..scale.len() {
        let factor = f64::from(scale[i]) / (f64::from(variance[i]) + norm.epsilon).sqrt();
        scale[i] = factor as f32;
        offset[i] = (f64::from(offset[i]) - f64::from(mean[i]) * factor) as f32;
    }
    Ok((scale, offset))
}

impl ConvKernel {
    fn bias<'a, T: Real>(&self, args: &[Arg<'a>]) -> Option<&'a [T]> {
        self.biased.then(|| args[2].typed())
    }

    /// What follows; `f32` graphs only have anything but a bias.
    fn after<'a>(&'a self, args: &[Arg<'a>]) -> After<'a> {
        let residual = args.last().filter(|_| self.residual);
        After {
            bias: self.bias.as_deref().or_else(|| self.bias(args)),
            residual: residual.map(Arg::typed),
            functions: &self.functions,
            clamp: self.clamp,
        }
    }

    /// Does what comes before the convolution.
    fn prepare(&self, before: &Before, x: &[f32], out: &mut [f32], threads: usize) {
        let (input, channels) = (self.sizes.geometry.input_len(), before.scale.len());
        parallel_chunks(threads, out, input.max(1), |i, out| {
            let (scale, offset) = (before.scale[i % channels], before.offset[i % channels]);
            for (o, &v) in out.iter_mut().zip(&x[i * input..]) {
                let v = v * scale + offset;
                *o = if before.low > v { before.low } else { v };
            }
        });
    }

    /// By columns, or directly, without what comes before and what follows.
    fn run_as<T: Real>(
        &self,
        packed: &[Packed],
        (x, w, bias): (&[T], &[T], Option<&[T]>),
        out: &mut [T],
        threads: usize,
    ) {
        let s = &self.sizes;
        let image = |n: usize, out: &mut [T], threads: usize| {
            let x = &x[n * s.image()..][..s.image()];
            if s.c == 1 {
                direct::conv(s, x, w, bias, out);
            } else {
                self.image(packed, x, w, bias, out, threads);
            }
        };
        if s.n == 1 {
            image(0, out, threads);
        } else {
            parallel_chunks(threads, out, s.output(), |n, out| image(n, out, 1));
        }
    }

    fn image<T: Real>(
        &self,
        packed: &[Packed],
        x: &[T],
        w: &[T],
        bias: Option<&[T]>,
        out: &mut [T],
        threads: usize,
    ) {
        let s = &self.sizes;
        let (k, pixels, input) = (s.rows(), s.geometry.output_len(), s.geometry.input_len());
        for group in 0..s.groups {
            let x = &x[group * s.c * input..][..s.c * input];
            let weight = Mat::new(&w[group * s.o * k..][..s.o * k], k);
            let bias = bias.map(|b| &b[group * s.o..][..s.o]);
            let out = &mut out[group * s.o * pixels..][..s.o * pixels];
            let product = |columns: Mat<'_, T>, at: usize, len: usize, out: &mut [T], threads| {
                T::product(
                    (s.o, len, k),
                    (weight, packed.get(group).filter(|_| len == s.block())),
                    columns,
                    bias,
                    false,
                    &mut out[at..],
                    pixels,
                    threads,
                );
            };
            if s.geometry.is_pointwise() {
                // The input is its own column matrix.
                let block = s.block();
                for at in (0..pixels).step_by(block.max(1)) {
                    let columns = Mat {
                        data: &x[at..],
                        row: pixels,
                        col: 1,
                    };
                    product(columns, at, block.min(pixels - at), out, threads);
                }
                continue;
            }
            T::buffer(k * s.block(), |columns| {
                for at in (0..pixels).step_by(s.block().max(1)) {
                    let len = s.block().min(pixels - at);
                    s.geometry.gather(x, s.c, at..at + len, columns);
                    product(Mat::new(&columns[..k * len], len), at, len, out, threads);
                }
            });
        }
    }
}

/// What follows a result that has its bias.
fn finish(after: &After<'_>, out: &mut [f32], threads: usize) {
    if after.residual.is_none() && after.functions.is_empty() && after.clamp.is_none() {
        return;
    }
    parallel_chunks(threads, out, CHUNK, |i, out| {
        if let Some(residual) = after.residual {
            for (o, &r) in out.iter_mut().zip(&residual[i * CHUNK..]) {
                *o += r;
            }
        }
        finish_row(after, out);
    });
}

impl Kernel for ConvKernel {
    fn name(&self) -> String {
        self.name.clone()
    }

    fn run(&self, args: &[Arg<'_>], outs: &mut [Out<'_>], cx: &mut RunCx<'_>) -> Result<()> {
        let out = &mut outs[0];
        if args[0].dtype == DType::F64 {
            let operands = (args[0].typed::<f64>(), args[1].typed(), self.bias(args));
            self.run_as(&[], operands, out.typed(), cx.threads);
            return Ok(());
        }
        let mut x: &[f32] = args[0].typed();
        let w: &[f32] = match &self.plain {
            Some(weight) => weight,
            None => args[1].typed(),
        };
        let after = self.after(args);
        match &self.way {
            Way::Panels(panels) => {
                let packed: &[f32] = match self.weight.is_empty() {
                    false => &self.weight,
                    true => {
                        let own: &mut [f32] = bytemuck::cast_slice_mut(cx.scratch);
                        let k = self.sizes.rows();
                        panels.pack(|r, entry| w[r * k + entry], own);
                        own
                    }
                };
                let before = self.before.as_ref();
                panels.run(x, packed, before, &after, out.typed(), cx.threads);
            }
            Way::Winograd(winograd) => {
                let (own, taps) = (bytemuck::cast_slice_mut(cx.scratch), 9);
                let k = self.sizes.rows();
                winograd.pack(|o, c, tap| w[o * k + c * taps + tap], own, cx.threads);
                winograd.run(x, own, after.bias, out.typed(), cx.threads);
            }
            Way::Depthwise(depthwise) => {
                depthwise.run(x, w, &after, out.typed(), cx.threads);
            }
            Way::Columns(packed) => {
                if let Some(before) = &self.before {
                    let own: &mut [f32] = bytemuck::cast_slice_mut(cx.scratch);
                    self.prepare(before, x, own, cx.threads);
                    x = own;
                }
                self.run_as(packed, (x, w, after.bias), out.typed(), cx.threads);
                finish(&after, out.typed(), cx.threads);
            }
        }
        Ok(())
    }

    fn scratch(&self) -> usize {
        match &self.way {
            Way::Panels(panels) if self.weight.is_empty() => panels.packed_len() * size_of::<f32>(),
            Way::Winograd(winograd) => winograd.packed_len() * size_of::<f32>(),
            Way::Columns(_) if self.before.is_some() => {
                self.sizes.n * self.sizes.image() * size_of::<f32>()
            }
            _ => 0,
        }
    }
}
