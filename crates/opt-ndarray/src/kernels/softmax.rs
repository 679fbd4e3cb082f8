//! Softmax and its logarithm.

use opt_core::{DType, Error, Result};

use super::index::Around;
use super::{Arg, CompileCx, Kernel, Out, RunCx};

#[derive(Debug)]
struct SoftmaxKernel {
    around: Around,
    log: bool,
}

macro_rules! softmax {
    ($name:ident, $t:ty) => {
        fn $name(kernel: &SoftmaxKernel, x: &[$t], y: &mut [$t]) {
            let Around { outer, size, inner } = kernel.around;
            for o in 0..outer {
                for i in 0..inner {
                    let start = o * size * inner + i;
                    let at = |k: usize| start + k * inner;
                    let mut max = <$t>::NEG_INFINITY;
                    for k in 0..size {
                        max = max.max(x[at(k)]);
                    }
                    // All entries are -inf: subtracting would give NaN, the limit is uniform.
                    let shift = if max == <$t>::NEG_INFINITY { 0.0 } else { max };
                    let mut sum = 0.0;
                    for k in 0..size {
                        let e = (x[at(k)] - shift).exp();
                        y[at(k)] = e;
                        sum += e;
                    }
                    if kernel.log {
                        let log_sum = sum.ln();
                        for k in 0..size {
                            y[at(k)] = x[at(k)] - shift - log_sum;
                        }
                    } else {
                        let scale = 1.0 / sum;
                        for k in 0..size {
                            y[at(k)] *= scale;
                        }
                    }
                }
            }
        }
    };
}

softmax!(rows_f32, f32);
softmax!(rows_f64, f64);

impl Kernel for SoftmaxKernel {
    fn name(&self) -> String {
        if self.log { "log-softmax" } else { "softmax" }.to_string()
    }

    fn run(&self, args: &[Arg<'_>], outs: &mut [Out<'_>], _: &mut RunCx<'_>) -> Result<()> {
        if args[0].dtype == DType::F64 {
            rows_f64(self, args[0].typed(), outs[0].typed());
        } else {
            rows_f32(self, args[0].typed(), outs[0].typed());
        }
        Ok(())
    }
}

/// Softmax, or its logarithm, along an axis.
pub(crate) fn compile_softmax(
    axis: usize,
    log: bool,
    cx: &CompileCx<'_>,
) -> Result<Box<dyn Kernel>> {
    let dtype = cx.inputs[0].dtype;
    if !matches!(dtype, DType::F32 | DType::F64) {
        return Err(Error::unsupported(format!(
            "softmax of {dtype}; cast to f32 first"
        )));
    }
    Ok(Box::new(SoftmaxKernel {
        around: Around::new(&cx.inputs[0], axis)?,
        log,
    }))
}
