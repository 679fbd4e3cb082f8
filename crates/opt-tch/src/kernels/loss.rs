//! Softmax cross-entropy.

use opt_core::Result;

use super::{CompileCx, Kernel};
use crate::native::{Arg, aten};
use smallvec::smallvec;

/// `Reduction::None`
const NONE: i64 = 0;
/// A label that no class has.
const IGNORED: i64 = i64::MIN;

pub(super) fn compile(cx: &CompileCx<'_>) -> Result<Kernel> {
    let shape = cx.shape(0)?;
    let out = cx.out_shape(0)?;
    let classes = shape[1];
    // Two axes, or four with any number of places.
    let places: i64 = shape[2..].iter().product();
    let (n, flat) = (shape[0], shape.len() == 2);
    Ok(Kernel::new("cross_entropy", move |x, cx| {
        let labels = cx.guard(x[1].shallow_clone(), classes, "the labels")?;
        let log = aten!("_log_softmax", x[0], 1i64, false)?;
        if flat {
            let loss = aten!("nll_loss_forward", &log, &labels, Arg::None, NONE, IGNORED)?;
            return Ok(smallvec![loss]);
        }
        let log = aten!("reshape", &log, &[n, classes, places, 1])?;
        let labels = aten!("reshape", &labels, &[n, places, 1])?;
        let loss = aten!("nll_loss2d_forward", &log, &labels, Arg::None, NONE, IGNORED)?;
        Ok(smallvec![aten!("reshape", &loss, &out)?])
    }))
}
