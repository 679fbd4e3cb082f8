//! Transposed convolution: also the gradient of a convolution by its input.

use opt_core::ops;
use opt_core::{DType, Result};

use super::Sizes;
use super::backward::Backward;
use super::depthwise::Depthwise;
use super::panels::{After, Panels};
use super::real::Real;
use super::winograd::Winograd;
use crate::kernels::gemm::Mat;
use crate::kernels::{Arg, CompileCx, Kernel, Out, RunCx, parallel_chunks, real};

/// Transposed convolution: the convolution `sizes` goes from the output back to the input.
#[derive(Debug)]
struct TransposeKernel {
    sizes: Sizes,
    way: Way,
}

/// How a transposed convolution is computed.
#[derive(Debug)]
enum Way {
    /// As the convolution with the turned kernel.
    Panels(Panels),
    Winograd(Winograd),
    Depthwise(Depthwise),
    Backward(Backward),
    Columns,
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
    let way = match cx.inputs[0].dtype {
        DType::F32 => way(&sizes),
        _ => Way::Columns,
    };
    Ok(Box::new(TransposeKernel { way, sizes }))
}

fn way(s: &Sizes) -> Way {
    if let Some(turned) = s.geometry.turned() {
        if s.groups > 1 && s.c == 1 && s.o == 1 {
            if let Some(depthwise) = Depthwise::new(s.groups, 1, &turned) {
                return Way::Depthwise(depthwise);
            }
        } else if let Some(winograd) = Winograd::new(s, [s.o, s.c], &turned) {
            return Way::Winograd(winograd);
        } else if let Some(panels) = Panels::new(s.groups, s.o, s.c, &turned) {
            return Way::Panels(panels);
        }
    }
    Backward::new(s.o, &s.geometry).map_or(Way::Columns, Way::Backward)
}

impl TransposeKernel {
    /// As a convolution with the turned kernel.
    fn run_turned(&self, args: &[Arg<'_>], out: &mut [f32], cx: &mut RunCx<'_>) {
        let (s, taps) = (&self.sizes, self.sizes.geometry.taps());
        let (x, w) = (args[0].typed::<f32>(), args[1].typed::<f32>());
        let after = After {
            bias: args.get(2).map(Arg::typed),
            ..After::default()
        };
        let own: &mut [f32] = bytemuck::cast_slice_mut(cx.scratch);
        match &self.way {
            Way::Panels(panels) => {
                panels.pack(
                    |row, entry| {
                        let (group, c) = (row / s.c, row % s.c);
                        let (o, tap) = (group * s.o + entry / taps, taps - 1 - entry % taps);
                        w[(o * s.c + c) * taps + tap]
                    },
                    own,
                );
                panels.run(x, own, None, &after, out, cx.threads);
            }
            Way::Winograd(winograd) => {
                let weight =
                    |c: usize, o: usize, tap: usize| w[(o * s.c + c) * taps + taps - 1 - tap];
                winograd.pack(weight, own, cx.threads);
                winograd.run(x, own, after.bias, out, cx.threads);
            }
            Way::Depthwise(depthwise) => {
                for (to, from) in own.chunks_exact_mut(taps).zip(w.chunks_exact(taps)) {
                    to.copy_from_slice(from);
                    to.reverse();
                }
                depthwise.run(x, own, &after, out, cx.threads);
            }
            _ => unreachable!("not a convolution with the turned kernel"),
        }
    }

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
        let [k, input, pixels] = [s.rows(), s.geometry.input_len(), s.geometry.output_len()];
        let len = backward.packed_len(s.c).max(1);
        for (w, packed) in w.chunks((s.o * k).max(1)).zip(packed.chunks_exact_mut(len)) {
            backward.pack(s.c, s.geometry.taps(), w, packed);
        }
        let packed = &*packed;
        parallel_chunks(cx.threads, out, s.c * input, |i, out| {
            let group = i % s.groups;
            let bias = bias.map(|b| &b[group * s.c..][..s.c]);
            let (g, packed) = (
                &g[i * s.o * pixels..][..s.o * pixels],
                &packed[group * len..],
            );
            f32::buffer(backward.buffer_len(s.c), |buffer| {
                backward.run(g, packed, bias, out, buffer);
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
        let out = &mut outs[0];
        match (args[0].dtype, &self.way) {
            (DType::F64, _) => self.run_as::<f64>(args, out.typed(), cx.threads),
            (_, Way::Backward(backward)) => self.run_backward(backward, args, out.typed(), cx),
            (_, Way::Columns) => self.run_as::<f32>(args, out.typed(), cx.threads),
            (_, Way::Panels(_) | Way::Winograd(_) | Way::Depthwise(_)) => {
                self.run_turned(args, out.typed(), cx)
            }
        }
        Ok(())
    }

    fn scratch(&self) -> usize {
        let s = &self.sizes;
        let entries = match &self.way {
            Way::Panels(panels) => panels.packed_len(),
            Way::Winograd(winograd) => winograd.packed_len(),
            Way::Depthwise(_) => s.groups * s.geometry.taps(),
            Way::Backward(backward) => s.groups * backward.packed_len(s.c).max(1),
            Way::Columns => 0,
        };
        entries * size_of::<f32>()
    }
}
