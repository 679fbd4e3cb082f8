//! Convolution, its transpose and its gradient by the weight, in one to three dimensions.
//!
//! In two dimensions and `f32` all three read shifted images (`shifted.rs`). Elsewhere they are
//! matrix products with the patches of the input ("columns"), which are laid out image by image,
//! and within an image pixel block by pixel block, in a buffer of the thread. Convolutions with one
//! input channel a group run directly.

mod columns;
mod direct;
mod real;
mod shift_tile;
mod shifted;

use opt_core::ops::{self, UnaryOp, Window};
use opt_core::{DType, Result, TensorType};

pub(crate) use self::columns::Geometry;
use self::real::{Packed, Real};
use self::shifted::{Backward, Shifted, biased};
use super::gemm::Mat;
use super::{
    Arg, CompileCx, Kernel, Out, RunCx, SharedMut, elementwise, parallel, parallel_chunks, real,
};

/// Elements of a block of columns: what stays in the second-level cache beside the weight.
const BLOCK: usize = 1 << 17;

/// Sizes of a convolution of `[n, groups * c, ..]` to `[n, groups * o, ..]`.
#[derive(Debug, Clone)]
struct Sizes {
    n: usize,
    groups: usize,
    /// Input channels of a group.
    c: usize,
    /// Output channels of a group.
    o: usize,
    geometry: Geometry,
}

impl Sizes {
    fn new(
        x: &TensorType,
        y: &TensorType,
        kernel: &[usize],
        window: &Window,
        groups: usize,
    ) -> Result<Sizes> {
        let (x, y) = (x.shape.fixed()?, y.shape.fixed()?);
        Ok(Sizes {
            n: x[0],
            groups,
            c: x[1] / groups,
            o: y[1] / groups,
            geometry: Geometry::new(&x[2..], &y[2..], kernel, window),
        })
    }

    /// Rows of the column matrix of a group.
    fn rows(&self) -> usize {
        self.c * self.geometry.taps()
    }

    /// Elements of an input image.
    fn image(&self) -> usize {
        self.groups * self.c * self.geometry.input_len()
    }

    /// Elements of an output image.
    fn output(&self) -> usize {
        self.groups * self.o * self.geometry.output_len()
    }

    /// The layout of shifted images, where that serves.
    fn shifted(&self, dtype: DType) -> Option<Shifted> {
        let serves = self.groups == 1 && dtype == DType::F32;
        serves.then(|| Shifted::new(self.c, &self.geometry))?
    }

    /// Output pixels of which the columns are laid out at a time: whole rows of the output.
    fn block(&self) -> usize {
        let row = self.geometry.row_len();
        let rows = (BLOCK / (self.rows() * row).max(1)).max(1);
        (rows * row).min(self.geometry.output_len().max(1))
    }
}

#[derive(Debug)]
struct ConvKernel {
    sizes: Sizes,
    /// The weights of each group, prepacked.
    packed: Vec<Packed>,
    shifted: Option<Shifted>,
    /// The weight for shifted images, prepacked; empty where it changes from run to run.
    shifted_weight: Vec<f32>,
    epilogue: Vec<UnaryOp>,
}

/// Convolution.
pub(crate) fn compile_conv(op: &ops::Conv, cx: &CompileCx<'_>) -> Result<Box<dyn Kernel>> {
    real(&cx.inputs[0], "convolution")?;
    let weight = cx.inputs[1].shape.fixed()?;
    let sizes = Sizes::new(
        &cx.inputs[0],
        &cx.outputs[0],
        &weight[2..],
        &op.window,
        op.groups,
    )?;
    let shifted = sizes.shifted(cx.inputs[0].dtype);
    let (mut packed, mut shifted_weight) = (Vec::new(), Vec::new());
    if let Some(w) = &cx.constants[1]
        && w.dtype() == DType::F32
    {
        let w = w.contiguous();
        let (o, k) = (sizes.o, sizes.rows());
        if let Some(shifted) = &shifted {
            let w = w.as_slice::<f32>()?;
            shifted_weight.resize(shifted.packed_len(o), 0.0);
            shifted.pack(o, |r, entry| w[r * k + entry], &mut shifted_weight);
        } else if sizes.c > 1 {
            for group in w.as_slice::<f32>()?.chunks(o * k) {
                packed.push(Packed::new(Mat::new(group, k), o, sizes.block(), k));
            }
        }
    }
    Ok(Box::new(ConvKernel {
        sizes,
        packed,
        shifted,
        shifted_weight,
        epilogue: cx.epilogue.to_vec(),
    }))
}

impl ConvKernel {
    fn run_as<T: Real>(&self, args: &[Arg<'_>], out: &mut [T], threads: usize) {
        let s = &self.sizes;
        let (x, w) = (args[0].typed::<T>(), args[1].typed::<T>());
        let bias = args.get(2).map(|b| b.typed::<T>());
        let image = |n: usize, out: &mut [T], threads: usize| {
            let x = &x[n * s.image()..][..s.image()];
            if s.c == 1 {
                direct::conv(s, x, w, bias, out);
            } else {
                self.image(x, w, bias, out, threads);
            }
            T::apply(&self.epilogue, out);
        };
        if s.n == 1 {
            image(0, out, threads);
        } else {
            parallel_chunks(threads, out, s.output(), |n, out| image(n, out, 1));
        }
    }

    fn run_shifted(
        &self,
        shifted: &Shifted,
        args: &[Arg<'_>],
        out: &mut [f32],
        cx: &mut RunCx<'_>,
    ) {
        let s = &self.sizes;
        let (x, w) = (args[0].typed::<f32>(), args[1].typed::<f32>());
        let bias = args.get(2).map(|b| b.typed::<f32>());
        let own: &mut [f32] = bytemuck::cast_slice_mut(cx.scratch);
        let packed: &[f32] = match self.shifted_weight.is_empty() {
            false => &self.shifted_weight,
            true => {
                let k = s.rows();
                shifted.pack(s.o, |r, entry| w[r * k + entry], own);
                own
            }
        };
        if s.n > 1 || cx.threads <= 1 {
            parallel_chunks(cx.threads, out, s.output(), |n, out| {
                let x = &x[n * s.image()..][..s.image()];
                f32::buffer(shifted.buffer_len(s.o), |buffer| {
                    shifted.run(x, packed, s.o, bias, out, buffer);
                });
                f32::apply(&self.epilogue, out);
            });
            return;
        }
        // One image: its rows are what threads share.
        let [_, height, width] = s.geometry.output;
        let rows = shifted.block_rows(s.o, cx.threads);
        let size = height * width;
        f32::buffer(shifted.readable_len(), |image| {
            shifted.pad(x, image);
            let (image, out) = (&*image, SharedMut::new(out));
            parallel(cx.threads, height.div_ceil(rows), |block| {
                let now = block * rows..height.min((block + 1) * rows);
                f32::buffer(shifted.block_len(s.o, now.len()), |run| {
                    shifted.convolve(image, packed, s.o, now, run, |channel, row, pixels| {
                        let at = channel * size + row * width;
                        #[expect(unsafe_code, reason = "each block has rows of its own")]
                        // SAFETY: no other block writes these rows.
                        let out = unsafe { out.part(at..at + width) };
                        biased(pixels, bias.map(|b| b[channel]), out);
                        f32::apply(&self.epilogue, out);
                    });
                });
            });
        });
    }

    fn image<T: Real>(&self, x: &[T], w: &[T], bias: Option<&[T]>, out: &mut [T], threads: usize) {
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
                    (weight, self.packed.get(group).filter(|_| len == s.block())),
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

impl Kernel for ConvKernel {
    fn name(&self) -> String {
        elementwise::with_epilogue("conv", &self.epilogue)
    }

    fn run(&self, args: &[Arg<'_>], outs: &mut [Out<'_>], cx: &mut RunCx<'_>) -> Result<()> {
        match (args[0].dtype, &self.shifted) {
            (DType::F64, _) => self.run_as::<f64>(args, outs[0].typed(), cx.threads),
            (_, Some(shifted)) => self.run_shifted(shifted, args, outs[0].typed(), cx),
            (_, None) => self.run_as::<f32>(args, outs[0].typed(), cx.threads),
        }
        Ok(())
    }

    fn scratch(&self) -> usize {
        match (&self.shifted, self.shifted_weight.is_empty()) {
            (Some(shifted), true) => shifted.packed_len(self.sizes.o) * size_of::<f32>(),
            _ => 0,
        }
    }
}

/// Transposed convolution: the convolution `sizes` goes from the output back to the input.
#[derive(Debug)]
struct TransposeKernel {
    sizes: Sizes,
    backward: Option<Backward>,
}

/// Transposed convolution.
pub(crate) fn compile_conv_transpose(
    op: &ops::ConvTranspose,
    cx: &CompileCx<'_>,
) -> Result<Box<dyn Kernel>> {
    real(&cx.inputs[0], "transposed convolution")?;
    let weight = cx.inputs[1].shape.fixed()?;
    let sizes = Sizes::new(
        &cx.outputs[0],
        &cx.inputs[0],
        &weight[2..],
        &op.window,
        op.groups,
    )?;
    let serves = sizes.groups == 1 && cx.inputs[0].dtype == DType::F32;
    let backward = serves.then(|| Backward::new(sizes.o, &sizes.geometry));
    Ok(Box::new(TransposeKernel {
        backward: backward.flatten(),
        sizes,
    }))
}

impl TransposeKernel {
    fn run_backward(
        &self,
        backward: &Backward,
        args: &[Arg<'_>],
        out: &mut [f32],
        cx: &mut RunCx<'_>,
    ) {
        let s = &self.sizes;
        let (g, w) = (args[0].typed::<f32>(), args[1].typed::<f32>());
        let bias = args.get(2).map(|b| b.typed::<f32>());
        let packed: &mut [f32] = bytemuck::cast_slice_mut(cx.scratch);
        backward.pack(s.c, s.geometry.taps(), w, packed);
        let packed = &*packed;
        let [_, height, width] = s.geometry.input;
        parallel_chunks(cx.threads, out, s.image().max(1), |n, out| {
            for (channel, out) in out.chunks_mut((height * width).max(1)).enumerate() {
                out.fill(bias.map_or(0.0, |b| b[channel]));
            }
            let g = &g[n * s.output()..][..s.output()];
            f32::buffer(backward.buffer_len(s.c), |buffer| {
                backward.run(g, packed, s.c, [height, width], out, buffer);
            });
        });
    }

    fn run_as<T: Real>(&self, args: &[Arg<'_>], out: &mut [T], threads: usize) {
        let s = &self.sizes;
        let (x, w) = (args[0].typed::<T>(), args[1].typed::<T>());
        let bias = args.get(2).map(|b| b.typed::<T>());
        let (k, pixels, input) = (s.rows(), s.geometry.output_len(), s.geometry.input_len());
        parallel_chunks(threads, out, s.image().max(1), |n, out| {
            let x = &x[n * s.output()..][..s.output()];
            for (channel, out) in out.chunks_mut(input.max(1)).enumerate() {
                out.fill(bias.map_or(T::default(), |b| b[channel]));
            }
            T::buffer(k * s.block(), |columns| {
                for group in 0..s.groups {
                    let weight = Mat::new(&w[group * s.o * k..][..s.o * k], k).transposed();
                    let x = &x[group * s.o * pixels..][..s.o * pixels];
                    let out = &mut out[group * s.c * input..][..s.c * input];
                    for at in (0..pixels).step_by(s.block().max(1)) {
                        let len = s.block().min(pixels - at);
                        let x = Mat {
                            data: &x[at..],
                            row: pixels,
                            col: 1,
                        };
                        let size = (k, len, s.o);
                        T::product(size, (weight, None), x, None, false, columns, len, 1);
                        s.geometry.scatter(columns, s.c, at..at + len, out);
                    }
                }
            });
        });
    }
}

impl Kernel for TransposeKernel {
    fn name(&self) -> String {
        "conv transpose".to_string()
    }

    fn run(&self, args: &[Arg<'_>], outs: &mut [Out<'_>], cx: &mut RunCx<'_>) -> Result<()> {
        match (args[0].dtype, &self.backward) {
            (DType::F64, _) => self.run_as::<f64>(args, outs[0].typed(), cx.threads),
            (_, Some(backward)) => self.run_backward(backward, args, outs[0].typed(), cx),
            (_, None) => self.run_as::<f32>(args, outs[0].typed(), cx.threads),
        }
        Ok(())
    }

    fn scratch(&self) -> usize {
        let backward = self.backward.as_ref();
        backward.map_or(0, |b| b.packed_len(self.sizes.c) * size_of::<f32>())
    }
}

/// Parts that a batch is cut into: each sums its images on its own, and the sums are added in
/// order, whatever the number of threads.
const PARTS: usize = 8;

#[derive(Debug)]
struct GradWeightKernel {
    sizes: Sizes,
    size: usize,
    shifted: Option<Shifted>,
}

/// Gradient of a convolution by its weight.
pub(crate) fn compile_conv_grad_weight(
    op: &ops::ConvGradWeight,
    cx: &CompileCx<'_>,
) -> Result<Box<dyn Kernel>> {
    real(&cx.inputs[0], "gradient of a convolution")?;
    let sizes = Sizes::new(
        &cx.inputs[0],
        &cx.inputs[1],
        &op.kernel,
        &op.window,
        op.groups,
    )?;
    Ok(Box::new(GradWeightKernel {
        size: cx.inputs[0].dtype.bits() / 8,
        shifted: sizes.shifted(cx.inputs[0].dtype),
        sizes,
    }))
}

impl GradWeightKernel {
    fn parts(&self) -> usize {
        self.sizes.n.clamp(1, PARTS)
    }

    /// Sums each part by `sum(x, g, images, out)`, and the parts.
    fn run_as<T: Real>(
        &self,
        args: &[Arg<'_>],
        out: &mut [T],
        cx: &mut RunCx<'_>,
        sum_part: impl Fn(&[T], &[T], std::ops::Range<usize>, &mut [T]) + Sync,
    ) {
        let s = &self.sizes;
        let (x, g) = (args[0].typed::<T>(), args[1].typed::<T>());
        let (parts, len) = (self.parts(), out.len());
        let sums: &mut [T] = bytemuck::cast_slice_mut(cx.scratch);
        {
            let sums = SharedMut::new(&mut sums[..(parts - 1) * len]);
            let first = SharedMut::new(out);
            parallel(cx.threads, parts, |part| {
                #[expect(unsafe_code, reason = "each part has a sum of its own")]
                // SAFETY: part 0 is the only one to write `out`, part p the only one to write
                // the (p - 1)-th sum.
                let sum = unsafe {
                    match part {
                        0 => first.part(0..len),
                        p => sums.part((p - 1) * len..p * len),
                    }
                };
                let images = part * s.n / parts..(part + 1) * s.n / parts;
                sum.fill(T::default());
                sum_part(x, g, images, sum);
            });
        }
        for sum in sums[..(parts - 1) * len].chunks(len.max(1)) {
            for (o, &v) in out.iter_mut().zip(sum) {
                *o = *o + v;
            }
        }
    }

    fn sum_shifted(
        &self,
        shifted: &Shifted,
        x: &[f32],
        g: &[f32],
        images: std::ops::Range<usize>,
        out: &mut [f32],
    ) {
        let s = &self.sizes;
        let x = &x[images.start * s.image()..images.end * s.image()];
        let g = &g[images.start * s.output()..images.end * s.output()];
        f32::buffer(shifted.gradient_buffer_len(s.o, images.len()), |buffer| {
            shifted.weight_gradient(x, g, s.o, out, buffer);
        });
    }

    fn sum<T: Real>(&self, x: &[T], g: &[T], images: std::ops::Range<usize>, out: &mut [T]) {
        let s = &self.sizes;
        let (k, pixels, input) = (s.rows(), s.geometry.output_len(), s.geometry.input_len());
        T::buffer(k * s.block(), |columns| {
            for n in images.clone() {
                for group in 0..s.groups {
                    let x = &x[n * s.image() + group * s.c * input..][..s.c * input];
                    let g = &g[n * s.output() + group * s.o * pixels..][..s.o * pixels];
                    let out = &mut out[group * s.o * k..][..s.o * k];
                    for at in (0..pixels).step_by(s.block().max(1)) {
                        let len = s.block().min(pixels - at);
                        let g = Mat {
                            data: &g[at..],
                            row: pixels,
                            col: 1,
                        };
                        s.geometry.gather(x, s.c, at..at + len, columns);
                        let columns = Mat::new(&columns[..k * len], len).transposed();
                        T::product((s.o, k, len), (g, None), columns, None, true, out, k, 1);
                    }
                }
            }
        });
    }
}

impl Kernel for GradWeightKernel {
    fn name(&self) -> String {
        "conv grad weight".to_string()
    }

    fn scratch(&self) -> usize {
        (self.parts() - 1) * self.sizes.groups * self.sizes.o * self.sizes.rows() * self.size
    }

    fn run(&self, args: &[Arg<'_>], outs: &mut [Out<'_>], cx: &mut RunCx<'_>) -> Result<()> {
        match (args[0].dtype, &self.shifted) {
            (DType::F64, _) => {
                self.run_as::<f64>(args, outs[0].typed(), cx, |x, g, i, o| self.sum(x, g, i, o));
            }
            (_, Some(shifted)) => {
                self.run_as::<f32>(args, outs[0].typed(), cx, |x, g, images, out| {
                    self.sum_shifted(shifted, x, g, images, out);
                });
            }
            (_, None) => {
                self.run_as::<f32>(args, outs[0].typed(), cx, |x, g, i, o| self.sum(x, g, i, o));
            }
        }
        Ok(())
    }
}
