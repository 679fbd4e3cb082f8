//! CPU backend of the opt model-optimization libraries: compiles graphs to fused f32 and int8
//! kernels.
//!
//! ```
//! use opt_core::{Backend, DType, GraphBuilder, Tensor, TensorType};
//! use opt_ndarray::NdarrayBackend;
//!
//! let mut b = GraphBuilder::new("layer");
//! let x = b.input("x", TensorType::new(DType::F32, [1, 2]))?;
//! let w = b.variable("w", Tensor::new([2, 2], [1f32, 2., 3., 4.])?)?;
//! let y = b.matmul(x, w)?;
//! let y = b.relu(y)?;
//! b.output("y", y)?;
//! let graph = b.finish()?;
//!
//! let backend = NdarrayBackend::new().threads(1);
//! let x = Tensor::new([1, 2], [1f32, -1.])?;
//! let out = backend.run_once(&graph, &[x])?;
//! assert_eq!(out[0].to_vec::<f32>()?, [0., 0.]);
//! # Ok::<(), opt_core::Error>(())
//! ```
//!
//! Compiling binds all dimensions, folds constants, fuses element-wise nodes and what follows a
//! matrix product or convolution into single kernels, packs weights and plans memory; a run then
//! allocates nothing. Results do not depend on the number of threads.
//!
//! [`Executable::profile`] says what a compiled graph spends its time on:
//!
//! ```
//! use opt_core::{Backend, CompileSpec, DType, GraphBuilder, ProfileOptions, Tensor, TensorType};
//! use opt_ndarray::NdarrayBackend;
//!
//! let mut b = GraphBuilder::new("layer");
//! let x = b.input("x", TensorType::new(DType::F32, [32, 64]))?;
//! let w = b.variable("w", Tensor::full(DType::F32, [64, 16], 0.1)?)?;
//! let y = b.matmul(x, w)?;
//! let y = b.relu(y)?;
//! b.output("y", y)?;
//! let graph = b.finish()?;
//!
//! let executable = NdarrayBackend::new().compile(&graph, &CompileSpec::new())?;
//! let x = Tensor::full(DType::F32, [32, 64], 1.0)?;
//! let profile = executable.profile(&[x], &ProfileOptions::new().runs(5))?;
//! println!("{profile}");
//! assert_eq!(profile.steps.len(), 1, "the ReLU is part of the product");
//! assert_eq!(profile.steps[0].macs, 32 * 64 * 16);
//! # Ok::<(), opt_core::Error>(())
//! ```

mod compile;
mod kernels;
mod session;

use std::sync::{Arc, Mutex};

use opt_core::{Backend, CompileSpec, Error, ErrorKind, Executable, Graph, Result};

#[cfg(target_arch = "x86_64")]
pub use kernels::amx::amx_peak;
pub use kernels::int8::IntPath;
use kernels::team::Team;
use session::CpuExecutable;

/// The backend's name.
const NAME: &str = "ndarray";

/// Compiles graphs for the processor that it runs on.
///
/// The threads are shared by all that one backend compiles; clones share them too.
#[derive(Debug, Clone)]
pub struct NdarrayBackend {
    threads: usize,
    int_path: IntPath,
    team: Arc<Mutex<Option<Arc<Team>>>>,
}

impl Default for NdarrayBackend {
    fn default() -> Self {
        NdarrayBackend::new()
    }
}

impl NdarrayBackend {
    /// A backend that uses as many threads as the process can run at once.
    pub fn new() -> NdarrayBackend {
        let threads = std::thread::available_parallelism().map_or(1, usize::from);
        NdarrayBackend {
            threads,
            int_path: IntPath::Auto,
            team: Arc::default(),
        }
    }

    /// The same with a number of threads, at least 1. With 1 everything runs on the calling
    /// thread.
    #[must_use]
    pub fn threads(self, threads: usize) -> NdarrayBackend {
        NdarrayBackend {
            threads: threads.max(1),
            team: Arc::default(),
            ..self
        }
    }

    /// The same with another choice of integer kernels; all give the same results bit for bit.
    #[must_use]
    pub fn int_path(self, path: IntPath) -> NdarrayBackend {
        NdarrayBackend {
            int_path: path,
            ..self
        }
    }

    /// The threads, started at their first use.
    fn team(&self, threads: usize) -> Result<Option<Arc<Team>>> {
        if threads <= 1 {
            return Ok(None);
        }
        let mut team = self
            .team
            .lock()
            .unwrap_or_else(|poisoned| poisoned.into_inner());
        if team.is_none() {
            *team = Some(Team::new(self.threads).map_err(|e| {
                Error::new(ErrorKind::Backend, "the threads could not be started").with_source(e)
            })?);
        }
        Ok(team.clone())
    }
}

impl Backend for NdarrayBackend {
    fn name(&self) -> &str {
        NAME
    }

    #[tracing::instrument(level = "debug", name = "compile", skip_all, fields(graph = graph.name()))]
    fn compile(&self, graph: &Graph, spec: &CompileSpec) -> Result<Arc<dyn Executable>> {
        let plan = compile::compile(graph, spec, self.threads, self.int_path)?;
        let team = self.team(plan.threads)?;
        Ok(Arc::new(CpuExecutable {
            plan: Arc::new(plan),
            team,
        }))
    }
}

#[cfg(test)]
mod tests;
