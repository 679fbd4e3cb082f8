//! Softmax cross-entropy.

use half::{bf16, f16};
use opt_core::{DType, Element, Error, Result};

use super::softmax::{Axis, exp_sum, largest};
use super::{Arg, CompileCx, Kernel, Out, RunCx};

pub(crate) fn compile(cx: &CompileCx<'_>) -> Result<Box<dyn Kernel>> {
    let axis = Axis::new(&cx.inputs[0].shape.fixed()?, 1);
    Ok(Box::new(CrossEntropy { axis }))
}

#[derive(Debug)]
struct CrossEntropy {
    axis: Axis,
}

impl CrossEntropy {
    /// The class of a label.
    fn class(&self, label: i64) -> Result<usize> {
        usize::try_from(label)
            .ok()
            .filter(|&class| class < self.axis.len)
            .ok_or_else(|| {
                Error::invalid(format!(
                    "label {label} is out of range for {} classes",
                    self.axis.len
                ))
            })
    }

    fn rows(&self, x: &[f32], labels: &[i64], out: &mut [f32]) -> Result<()> {
        for ((row, &label), out) in x.chunks_exact(self.axis.len.max(1)).zip(labels).zip(out) {
            let max = largest(row);
            *out = exp_sum(row, max).ln() + (max - row[self.class(label)?]);
        }
        Ok(())
    }

    fn any<T: Element>(&self, x: &[T], labels: &[i64], out: &mut [T]) -> Result<()> {
        let Axis { len, inner, .. } = self.axis;
        for (line, (&label, out)) in labels.iter().zip(out).enumerate() {
            let at = |i: usize| (line / inner * len + i) * inner + line % inner;
            let values = || (0..len).map(|i| x[at(i)].to_f64());
            let max = values().fold(f64::NEG_INFINITY, f64::max);
            let sum: f64 = values().map(|x| (x - max).exp()).sum();
            *out = T::from_f64(sum.ln() + (max - x[at(self.class(label)?)].to_f64()));
        }
        Ok(())
    }
}

impl Kernel for CrossEntropy {
    fn name(&self) -> String {
        "softmaxcrossentropy".into()
    }

    fn run(&self, args: &[Arg<'_>], outs: &mut [Out<'_>], _: &mut RunCx<'_>) -> Result<()> {
        let (x, labels, out) = (&args[0], args[1].typed::<i64>(), &mut outs[0]);
        match x.dtype {
            DType::F32 if self.axis.inner == 1 && self.axis.len > 0 => {
                self.rows(x.typed(), labels, out.typed())
            }
            DType::F32 => self.any::<f32>(x.typed(), labels, out.typed()),
            DType::F64 => self.any::<f64>(x.typed(), labels, out.typed()),
            DType::F16 => self.any::<f16>(x.typed(), labels, out.typed()),
            DType::BF16 => self.any::<bf16>(x.typed(), labels, out.typed()),
            other => Err(Error::unsupported(format!(
                "SoftmaxCrossEntropy of {other}"
            ))),
        }
    }
}
