//! Softmax and its logarithm.

use opt_core::Result;

use super::{Kernel, int};
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
