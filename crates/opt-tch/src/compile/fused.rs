//! Steps that libtorch has one kernel for.

use opt_core::Result;

use super::ir::Ir;
use crate::Device;
use crate::kernels::{CompileCx, Kernel};

/// What a fused step runs.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Fused {}

impl Fused {
    pub(crate) fn compile(&self, _: &CompileCx<'_>) -> Result<Kernel> {
        match *self {}
    }

    /// Whether it writes its inputs.
    pub(crate) fn writes(&self) -> bool {
        match *self {}
    }

    /// Which of so many inputs it writes.
    pub(crate) fn written(&self, _: usize) -> Vec<usize> {
        match *self {}
    }

    pub(crate) fn gives_new_memory(&self) -> bool {
        match *self {}
    }
}

/// Recognises them.
pub(super) fn fuse(_: &mut Ir, _: Device) -> Result<()> {
    Ok(())
}
