//! Softmax and its logarithm.

use opt_core::Result;

use super::{CompileCx, Kernel, int};
use crate::convert::{kind, kind_number};
use crate::native::aten;

pub(super) fn compile(axis: usize, log: bool) -> Result<Kernel> {
    let axis = int(axis)?;
    Ok(match log {
        true => Kernel::one("log_softmax", move |x| {
            aten!("_log_softmax", x[0], axis, false)
        }),
        false => Kernel::one("softmax", move |x| aten!("_softmax", x[0], axis, false)),
    })
}

/// The gradient from the arriving one and the output.
pub(crate) fn compile_grad(axis: usize, log: bool, cx: &CompileCx<'_>) -> Result<Kernel> {
    let axis = int(axis)?;
    let dtype = kind_number(kind(cx.inputs[0].dtype)?);
    Ok(match log {
        true => Kernel::one("log_softmax_backward", move |x| {
            aten!("_log_softmax_backward_data", x[0], x[1], axis, dtype)
        }),
        false => Kernel::one("softmax_backward", move |x| {
            aten!("_softmax_backward_data", x[0], x[1], axis, dtype)
        }),
    })
}
