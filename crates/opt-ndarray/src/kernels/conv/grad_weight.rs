//! The gradient of a convolution by its weight.

use opt_core::ops;
use opt_core::{DType, Result};

use super::Sizes;
use super::outer::OuterProducts;
use super::real::Real;
use super::shifted::Shifted;
use crate::kernels::gemm::Mat;
use crate::kernels::{Arg, CompileCx, Kernel, Out, RunCx, SharedMut, parallel, real};

/// How the gradient is computed.
#[derive(Debug)]
enum Way {
    Outer(OuterProducts),
    /// By sums over the pixels of a group of shifted images.
    Shifted(Shifted),
    Columns,
}

/// Parts that a batch is cut into: each sums its images on its own, and the sums are added in
/// order, whatever the number of threads.
const PARTS: usize = 8;

#[derive(Debug)]
struct GradWeightKernel {
    sizes: Sizes,
    size: usize,
    way: Way,
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
    let way = match cx.inputs[0].dtype {
        DType::F32 => way(&sizes),
        _ => Way::Columns,
    };
    Ok(Box::new(GradWeightKernel {
        size: cx.inputs[0].dtype.bits() / 8,
        way,
        sizes,
    }))
}

fn way(s: &Sizes) -> Way {
    match (OuterProducts::new(s), Shifted::new(s.c, &s.geometry)) {
        (Some(outer), _) => Way::Outer(outer),
        (None, Some(shifted)) => Way::Shifted(shifted),
        (None, None) => Way::Columns,
    }
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
            for (group, out) in out.chunks_mut((s.o * s.rows()).max(1)).enumerate() {
                shifted.weight_gradient((s.groups, group), x, g, s.o, out, buffer);
            }
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
        match &self.way {
            Way::Outer(outer) => outer.sums_len() * self.size,
            _ => {
                (self.parts() - 1)
                    * self.sizes.groups
                    * self.sizes.o
                    * self.sizes.rows()
                    * self.size
            }
        }
    }

    fn run(&self, args: &[Arg<'_>], outs: &mut [Out<'_>], cx: &mut RunCx<'_>) -> Result<()> {
        match &self.way {
            Way::Outer(outer) => {
                let (x, g) = (args[0].typed(), args[1].typed());
                let sums = bytemuck::cast_slice_mut(cx.scratch);
                outer.run(x, g, outs[0].typed(), sums, cx.threads);
            }
            Way::Shifted(shifted) => {
                self.run_as::<f32>(args, outs[0].typed(), cx, |x, g, images, out| {
                    self.sum_shifted(shifted, x, g, images, out);
                });
            }
            Way::Columns if args[0].dtype == DType::F64 => {
                self.run_as::<f64>(args, outs[0].typed(), cx, |x, g, i, o| self.sum(x, g, i, o));
            }
            Way::Columns => {
                self.run_as::<f32>(args, outs[0].typed(), cx, |x, g, i, o| self.sum(x, g, i, o));
            }
        }
        Ok(())
    }
}
