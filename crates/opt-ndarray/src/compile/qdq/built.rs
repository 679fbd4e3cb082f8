//! Kernels that patterns are replaced by. They hold their weights, and so are built once.

use std::sync::Arc;

use opt_core::Result;

use super::super::plan::{Kind, Lowered};
use crate::kernels::{Arg, CompileCx, Kernel, Out, RunCx};

#[derive(Debug)]
struct Built {
    kernel: Arc<dyn Kernel>,
    bytes: usize,
}

/// A kernel, with the bytes of the constants that it holds, as what a step computes.
pub(super) fn built(kernel: Box<dyn Kernel>, bytes: usize) -> Kind {
    Kind::Lowered(Arc::new(Built {
        kernel: kernel.into(),
        bytes,
    }))
}

impl Lowered for Built {
    fn compile(&self, _: &CompileCx<'_>) -> Result<Box<dyn Kernel>> {
        Ok(Box::new(Shared(self.kernel.clone())))
    }

    fn bytes(&self) -> usize {
        self.bytes
    }
}

#[derive(Debug)]
struct Shared(Arc<dyn Kernel>);

impl Kernel for Shared {
    fn name(&self) -> String {
        self.0.name()
    }

    fn scratch(&self) -> usize {
        self.0.scratch()
    }

    fn in_place(&self) -> &[(usize, usize)] {
        self.0.in_place()
    }

    fn run(&self, args: &[Arg<'_>], outs: &mut [Out<'_>], cx: &mut RunCx<'_>) -> Result<()> {
        self.0.run(args, outs, cx)
    }
}
