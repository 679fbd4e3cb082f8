//! Ops of downstream crates, evaluated on the host.

use std::sync::Arc;

use opt_core::Result;
use opt_core::ops::CustomOp;

use super::{CompileCx, Kernel};
use crate::convert::{from_host, to_host};

pub(super) fn compile(op: &Arc<dyn CustomOp>, cx: &CompileCx<'_>) -> Result<Kernel> {
    let op = op.clone();
    let dtypes: Vec<_> = cx.inputs.iter().map(|t| t.dtype).collect();
    Ok(Kernel::new(op.name().to_string(), move |x, cx| {
        let inputs = x.iter().zip(&dtypes);
        let inputs: Vec<_> = inputs
            .map(|(x, &dtype)| to_host(x, dtype))
            .collect::<Result<_>>()?;
        let outputs = op.eval(&inputs)?;
        outputs.iter().map(|y| from_host(y, cx.device)).collect()
    }))
}
