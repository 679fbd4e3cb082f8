//! Softmax cross-entropy.

use opt_core::ops::SoftmaxCrossEntropy;
use opt_core::{DType, Error, ErrorKind, Result};

use super::index::{Around, index_at};
use super::{Arg, CompileCx, Kernel, Out, RunCx};

#[derive(Debug)]
struct CrossEntropyKernel {
    around: Around,
}

macro_rules! cross_entropy {
    ($name:ident, $t:ty) => {
        fn $name(around: Around, x: &[$t], labels: &Arg<'_>, loss: &mut [$t]) -> Result<()> {
            let Around { outer, size, inner } = around;
            for o in 0..outer {
                for i in 0..inner {
                    let at = |k: usize| x[(o * size + k) * inner + i];
                    let index = index_at(labels, o * inner + i);
                    let label = usize::try_from(index)
                        .ok()
                        .filter(|&l| l < size)
                        .ok_or_else(|| {
                            Error::new(
                                ErrorKind::Data,
                                format!("label {index} of entry {o} is not in 0..{size}"),
                            )
                        })?;
                    let max = (0..size).map(at).fold(<$t>::NEG_INFINITY, <$t>::max);
                    let sum: $t = (0..size).map(|k| (at(k) - max).exp()).sum();
                    loss[o * inner + i] = sum.ln() - (at(label) - max);
                }
            }
            Ok(())
        }
    };
}

cross_entropy!(losses_f32, f32);
cross_entropy!(losses_f64, f64);

impl Kernel for CrossEntropyKernel {
    fn name(&self) -> String {
        "softmax cross-entropy".to_string()
    }

    fn run(&self, args: &[Arg<'_>], outs: &mut [Out<'_>], _: &mut RunCx<'_>) -> Result<()> {
        if args[0].dtype == DType::F64 {
            losses_f64(self.around, args[0].typed(), &args[1], outs[0].typed())
        } else {
            losses_f32(self.around, args[0].typed(), &args[1], outs[0].typed())
        }
    }
}

/// Softmax cross-entropy with class indices.
pub(crate) fn compile_cross_entropy(
    _: SoftmaxCrossEntropy,
    cx: &CompileCx<'_>,
) -> Result<Box<dyn Kernel>> {
    let dtype = cx.inputs[0].dtype;
    if !matches!(dtype, DType::F32 | DType::F64) {
        return Err(Error::unsupported(format!(
            "cross-entropy of {dtype}; cast to f32 first"
        )));
    }
    Ok(Box::new(CrossEntropyKernel {
        around: Around::new(&cx.inputs[0], 1)?,
    }))
}
