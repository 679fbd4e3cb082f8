//! Softmax cross-entropy.

use opt_core::{Error, ErrorKind, Result};
use smallvec::smallvec;
use tch::Tensor;

use super::{CompileCx, Kernel, RunCx};
use crate::convert::{kind, kind_number};
use crate::native::{Arg, aten};

/// `Reduction::None`
const NONE: i64 = 0;
/// A label that no class has.
const IGNORED: i64 = i64::MIN;

/// The sizes of a loss: libtorch takes two axes, or four with any number of places.
#[derive(Debug, Clone)]
struct Sizes {
    n: i64,
    classes: i64,
    places: i64,
    flat: bool,
    logits: Vec<i64>,
    labels: Vec<i64>,
}

impl Sizes {
    fn new(logits: Vec<i64>) -> Sizes {
        let mut labels = logits.clone();
        labels.remove(1);
        Sizes {
            n: logits[0],
            classes: logits[1],
            places: logits[2..].iter().product(),
            flat: logits.len() == 2,
            logits,
            labels,
        }
    }

    fn four(&self, x: &Tensor) -> Result<Tensor> {
        aten!("reshape", x, &[self.n, self.classes, self.places, 1])
    }

    fn three(&self, x: &Tensor) -> Result<Tensor> {
        aten!("reshape", x, &[self.n, self.places, 1])
    }

    fn forward(&self, log: &Tensor, labels: &Tensor, cx: &RunCx) -> Result<Tensor> {
        let labels = cx.guard(labels.shallow_clone(), self.classes, "the labels")?;
        if self.n * self.places == 0 {
            return aten!("new_zeros", log, &self.labels);
        }
        let loss = match self.flat {
            true => aten!("nll_loss_forward", log, &labels, Arg::None, NONE, IGNORED),
            false => {
                let (log, labels) = (self.four(log)?, self.three(&labels)?);
                aten!(
                    "nll_loss2d_forward",
                    &log,
                    &labels,
                    Arg::None,
                    NONE,
                    IGNORED
                )
            }
        };
        let loss = loss.map_err(|e| match e.message().contains("out of bounds") {
            true => Error::new(
                ErrorKind::Data,
                format!("a label is not in 0..{}: {}", self.classes, e.message()),
            ),
            false => e,
        })?;
        aten!("reshape", &loss, &self.labels)
    }
}

pub(super) fn compile(cx: &CompileCx<'_>) -> Result<Kernel> {
    let sizes = Sizes::new(cx.shape(0)?);
    Ok(Kernel::new("cross_entropy", move |x, cx| {
        let log = aten!("_log_softmax", x[0], 1i64, false)?;
        Ok(smallvec![sizes.forward(&log, x[1], cx)?])
    }))
}

/// The loss, and the logarithms for its gradient.
pub(crate) fn compile_recorded(cx: &CompileCx<'_>) -> Result<Kernel> {
    let sizes = Sizes::new(cx.shape(0)?);
    Ok(Kernel::new("cross_entropy", move |x, cx| {
        let log = aten!("_log_softmax", x[0], 1i64, false)?;
        Ok(smallvec![sizes.forward(&log, x[1], cx)?, log])
    }))
}

/// The gradient by the logits; inputs are the arriving one, the labels and the logarithms.
pub(crate) fn compile_grad(cx: &CompileCx<'_>) -> Result<Kernel> {
    let sizes = Sizes::new(cx.out_shape(0)?);
    let dtype = kind_number(kind(cx.outputs[0].dtype)?);
    Ok(Kernel::new("cross_entropy_backward", move |x, cx| {
        let labels = cx.guard(x[1].shallow_clone(), sizes.classes, "the labels")?;
        let log = x[2];
        if sizes.n * sizes.places == 0 {
            return Ok(smallvec![aten!("new_zeros", log, &sizes.logits)?]);
        }
        // Only counts of a reduction, which there is none of.
        let total = aten!("new_zeros", log, &[] as &[i64])?;
        let g = match sizes.flat {
            true => aten!(
                "nll_loss_backward",
                x[0],
                log,
                &labels,
                Arg::None,
                NONE,
                IGNORED,
                &total
            )?,
            false => {
                let (g, four, labels) =
                    (sizes.three(x[0])?, sizes.four(log)?, sizes.three(&labels)?);
                let g = aten!(
                    "nll_loss2d_backward",
                    &g,
                    &four,
                    &labels,
                    Arg::None,
                    NONE,
                    IGNORED,
                    &total
                )?;
                aten!("reshape", &g, &sizes.logits)?
            }
        };
        let g = aten!("_log_softmax_backward_data", &g, log, 1i64, dtype)?;
        Ok(smallvec![g])
    }))
}
