//! libtorch backend of the opt model-optimization libraries.

mod compile;
mod convert;
mod device;
mod kernels;
mod load;
mod native;
mod session;

use std::sync::Arc;

use opt_core::{Backend, CompileSpec, Executable, Graph, Result};

pub use device::Device;
use session::TchExecutable;

/// Compiles graphs for a device of libtorch.
#[derive(Debug, Clone)]
pub struct TchBackend {
    options: compile::Options,
}

impl TchBackend {
    /// A backend for a device.
    ///
    /// # Errors
    /// If libtorch has no such device.
    pub fn new(device: Device) -> Result<TchBackend> {
        device.check()?;
        Ok(TchBackend {
            options: compile::Options {
                device,
                tf32: false,
                fusion: true,
            },
        })
    }
}

impl TchBackend {
    /// The same with or without running several nodes as one (on by default).
    ///
    /// Off, each node is computed by itself, in the order of the graph: slower, and closer to
    /// what the graph says.
    #[must_use]
    pub fn fusion(mut self, on: bool) -> TchBackend {
        self.options.fusion = on;
        self
    }
}

impl Backend for TchBackend {
    fn name(&self) -> &str {
        "tch"
    }

    fn compile(&self, graph: &Graph, spec: &CompileSpec) -> Result<Arc<dyn Executable>> {
        let plan = compile::compile(graph, spec, self.options)?;
        Ok(Arc::new(TchExecutable {
            plan: Arc::new(plan),
        }))
    }
}
