//! From a graph to a plan: bind shapes, merge, recognise what libtorch has fused kernels for,
//! fold constants, order.

mod fold;
pub(crate) mod fused;
pub(crate) mod ir;
pub(crate) mod plan;
mod template;

use opt_core::{CompileSpec, Graph, Result};

use crate::Device;
use ir::Ir;
use plan::Plan;

/// What a backend compiles with.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Options {
    pub(crate) device: Device,
    /// Whether f32 products on CUDA may be rounded to TF32.
    pub(crate) tf32: bool,
    /// Threads of an operator on the processor.
    pub(crate) threads: Option<i32>,
    /// Whether nodes are run as one where libtorch has a kernel for them.
    pub(crate) fusion: bool,
    /// Whether element-wise steps of all parameters are run as one: a GPU is then given fewer,
    /// larger pieces of work; a processor's caches are better served with one tensor at a time.
    pub(crate) foreach: bool,
}

/// Compiles a graph.
pub(crate) fn compile(graph: &Graph, spec: &CompileSpec, options: Options) -> Result<Plan> {
    let graph = graph.bind(&spec.bindings)?;
    let mut ir = Ir::new(&graph)?;
    ir.remove_dead();
    fold::merge(&mut ir);
    if options.fusion {
        fused::fuse(&mut ir, options)?;
    }
    fold::fold(&mut ir)?;
    ir.remove_dead();
    ir.sort()?;
    Plan::new(ir, options)
}
