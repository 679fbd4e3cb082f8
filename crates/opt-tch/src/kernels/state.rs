//! Values that change nothing, and counts.

use opt_core::{Error, Op, Result};

use super::{CompileCx, Kernel, Shared, sizes};
use crate::native::aten;

pub(super) fn compile(op: &Op, cx: &CompileCx<'_>) -> Result<Kernel> {
    match op {
        Op::Identity(_) | Op::StopGradient(_) => {
            Ok(Kernel::one("identity", |x| Ok(x[0].shallow_clone())))
        }
        Op::Assign(_) => Ok(Kernel::one("identity", |x| Ok(x[1].shallow_clone()))),
        Op::Sizes(op) => counted(
            &op.dims
                .fixed()?
                .iter()
                .map(|&n| n as i64)
                .collect::<Vec<_>>(),
            cx,
        ),
        Op::Iota(_) => counted(&(0..sizes(&cx.outputs[0])?[0]).collect::<Vec<_>>(), cx),
        other => Err(Error::unsupported(format!("{} here", other.name()))),
    }
}

fn counted(values: &[i64], cx: &CompileCx<'_>) -> Result<Kernel> {
    let values = Shared::ints(values, cx.device)?;
    Ok(Kernel::one("constant", move |_| {
        aten!("alias", values.get())
    }))
}
