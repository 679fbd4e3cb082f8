//! Copies into memory of their own; assignments, identities and views are none of a kernel's
//! business: the session swaps buffers, and they share their input's memory.

use opt_core::Result;

use super::{Arg, Kernel, Out, RunCx};

/// The input, in memory of its own.
#[derive(Debug)]
pub(crate) struct Copy;

impl Kernel for Copy {
    fn name(&self) -> String {
        "copy".into()
    }

    fn run(&self, args: &[Arg<'_>], outs: &mut [Out<'_>], _: &mut RunCx<'_>) -> Result<()> {
        outs[0].bytes.copy_from_slice(args[0].bytes);
        Ok(())
    }
}
