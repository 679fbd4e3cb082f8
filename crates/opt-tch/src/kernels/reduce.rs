//! Reductions over axes.

use opt_core::Result;
use opt_core::ops::{Reduce, ReduceOp};

use super::{CompileCx, Kernel, ints};
use crate::convert::{kind, kind_number};
use crate::native::{Arg, aten};

pub(super) fn compile(op: &Reduce, cx: &CompileCx<'_>) -> Result<Kernel> {
    let (axes, keep) = (ints(&op.axes)?, op.keepdims);
    let dtype = kind_number(kind(cx.inputs[0].dtype)?);
    if axes.is_empty() {
        return Ok(Kernel::one("identity", |x| aten!("alias", x[0])));
    }
    Ok(match op.op {
        ReduceOp::Sum => Kernel::one("sum", move |x| {
            aten!("sum.dim_IntList", x[0], &axes, keep, dtype)
        }),
        ReduceOp::Mean => Kernel::one("mean", move |x| {
            aten!("mean.dim", x[0], &axes, keep, Arg::None)
        }),
        ReduceOp::Max => Kernel::one("amax", move |x| aten!("amax", x[0], &axes, keep)),
        ReduceOp::Min => Kernel::one("amin", move |x| aten!("amin", x[0], &axes, keep)),
        ReduceOp::Prod => Kernel::one("prod", move |x| {
            let mut y = x[0].shallow_clone();
            for &axis in axes.iter().rev() {
                y = aten!("prod.dim_int", &y, axis, keep, dtype)?;
            }
            Ok(y)
        }),
        other => {
            return Err(opt_core::Error::unsupported(format!(
                "{} on the libtorch backend",
                other.name()
            )));
        }
    })
}
