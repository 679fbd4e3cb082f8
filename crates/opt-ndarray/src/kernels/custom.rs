//! Ops of downstream crates, evaluated on host tensors.

use std::sync::Arc;

use opt_core::ops::CustomOp;
use opt_core::tensor::Buffer;
use opt_core::{Error, Result, Tensor};

use super::{Arg, Kernel, Out, RunCx};

#[derive(Debug)]
struct CustomKernel(Arc<dyn CustomOp>);

impl Kernel for CustomKernel {
    fn name(&self) -> String {
        self.0.name().to_string()
    }

    fn run(&self, args: &[Arg<'_>], outs: &mut [Out<'_>], _: &mut RunCx<'_>) -> Result<()> {
        let inputs = args
            .iter()
            .map(|a| Tensor::from_buffer(a.dtype, a.shape, Buffer::from_slice(a.bytes)))
            .collect::<Result<Vec<_>>>()?;
        let results = self.0.eval(&inputs)?;
        if results.len() != outs.len() {
            return Err(Error::invalid(format!(
                "`eval` of {} gave {} outputs, its types say {}",
                self.0.name(),
                results.len(),
                outs.len()
            )));
        }
        for (result, out) in results.iter().zip(outs) {
            if result.dtype() != out.dtype || result.shape() != out.shape {
                return Err(Error::shape(format!(
                    "`eval` of {} gave {}{:?}, its types say {}{:?}",
                    self.0.name(),
                    result.dtype(),
                    result.shape(),
                    out.dtype,
                    out.shape
                )));
            }
            out.bytes.copy_from_slice(result.contiguous().bytes()?);
        }
        Ok(())
    }
}

/// An op of a downstream crate.
pub(crate) fn compile_custom(op: &Arc<dyn CustomOp>) -> Box<dyn Kernel> {
    Box::new(CustomKernel(Arc::clone(op)))
}
