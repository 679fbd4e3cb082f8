//! Ops that downstream crates define, evaluated by themselves.

use std::sync::Arc;

use opt_core::ops::CustomOp;
use opt_core::tensor::Buffer;
use opt_core::{Error, Result, Tensor};

use super::{Arg, Kernel, Out, RunCx};

/// Calls [`CustomOp::eval`]; the only kernel that allocates when it runs.
#[derive(Debug)]
pub(crate) struct Custom(pub(crate) Arc<dyn CustomOp>);

impl Kernel for Custom {
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
                "{} gave {} outputs, its rule promises {}",
                self.0.name(),
                results.len(),
                outs.len()
            )));
        }
        for (i, (result, out)) in results.iter().zip(outs).enumerate() {
            if result.dtype() != out.dtype || result.shape() != out.shape {
                return Err(Error::shape(format!(
                    "output {i} of {} is {}{:?}, its rule promises {}{:?}",
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
