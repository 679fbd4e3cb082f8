//! libtorch backend of the opt model-optimization libraries: the same graphs, training steps
//! included, on CUDA, on MPS, and on libtorch's processor device.
//!
//! ```
//! use opt_core::{Backend, DType, GraphBuilder, Tensor, TensorType};
//! use opt_tch::{Device, TchBackend};
//!
//! let mut b = GraphBuilder::new("layer");
//! let x = b.input("x", TensorType::new(DType::F32, [1, 2]))?;
//! let w = b.variable("w", Tensor::new([2, 2], [1f32, 2., 3., 4.])?)?;
//! let y = b.matmul(x, w)?;
//! let y = b.relu(y)?;
//! b.output("y", y)?;
//! let graph = b.finish()?;
//!
//! let backend = TchBackend::new(Device::best())?;
//! let x = Tensor::new([1, 2], [1f32, -1.])?;
//! let out = backend.run_once(&graph, &[x])?;
//! assert_eq!(out[0].to_vec::<f32>()?, [0., 0.]);
//! # Ok::<(), opt_core::Error>(())
//! ```
//!
//! # Setting up
//!
//! The crate needs libtorch 2.11.0. Either of these, when building:
//!
//! ```sh
//! pip install torch==2.11.0      # in the active Python environment
//! export LIBTORCH_USE_PYTORCH=1  # take its libtorch
//! ```
//!
//! ```sh
//! export LIBTORCH=/path/to/libtorch  # unpacked from pytorch.org: holds include and lib
//! ```
//!
//! `cargo run` and `cargo test` then find the shared libraries by themselves. A program that is
//! started otherwise wants them on its library path:
//!
//! ```sh
//! export LD_LIBRARY_PATH=$(python3 -c "import torch, os; print(os.path.dirname(torch.__file__))")/lib
//! ```
//!
//! CUDA needs nothing more: libtorch's CUDA half is loaded when the first CUDA device is asked
//! for, so no build script has to keep the linker from dropping it. [`doctor`] says what was
//! found, what is missing, and the command that mends it.
//!
//! # How graphs run
//!
//! Compiling binds all dimensions, merges equal nodes, folds constants, and runs several nodes as
//! one where libtorch has a kernel for them: convolution and its three gradients, batch and layer
//! normalization with their gradients, scaled dot-product attention, LSTM and GRU, pooling,
//! cross-entropy, activations, linear layers, and whole optimizer steps (Adam, AdamW, SGD) for
//! all parameters in one multi-tensor call that writes them in place.
//! [`Executable::steps`] names the kernels.
//!
//! Variables, optimizer state and constants stay on the device; a run moves inputs (through
//! pinned memory, while the program goes on) and outputs, and nothing else. A value is dropped
//! after its last use, and written over where nothing else reads it; on the processor a session
//! keeps the memory of its values between runs. No autograd graph is recorded but for attention and recurrent networks,
//! whose gradients libtorch has in no other form.
//!
//! Products of quantized operands have exact integer sums: `_int_mm` where libtorch takes the
//! sizes, else whole numbers in f32, in blocks that keep every sum exact; the step is then called
//! `matmul (dequantized)` or `convolution (dequantized)`. Matrices of 4-bit integers in blocks
//! are packed for libtorch's own kernel where the device has it. f32 is not rounded to TF32
//! unless [`TchBackend::tf32`] allows it.
//!
//! Random numbers are those of every other backend (Philox, from a counter), so dropout masks
//! agree between devices. Sums on a GPU may differ between runs in their last bits where libtorch
//! adds atomically (gradients of gathers on other axes than the first, scatter with add), and where a
//! scatter has one index twice, which of the two it writes is not said.

#![cfg_attr(docsrs, feature(doc_cfg))]

mod compile;
mod convert;
mod device;
mod doctor;
mod kernels;
mod load;
mod native;
mod session;

use std::sync::Arc;

use opt_core::{Backend, CompileSpec, Executable, Graph, Result};

pub use device::Device;
pub use doctor::{DeviceInfo, Diagnosis, Problem, doctor};
use session::TchExecutable;

/// Compiles graphs for a device of libtorch.
///
/// ```
/// use opt_core::nn::zoo;
/// use opt_core::{Backend, CompileSpec, DType, Tensor};
/// use opt_tch::{Device, TchBackend};
///
/// let backend = TchBackend::new(Device::Cpu)?.threads(1);
/// let spec = CompileSpec::new().bind("batch", 2);
/// let executable = backend.compile(&zoo::lenet5([1, 28, 28], 10, 0)?, &spec)?;
/// // Linear layers are one kernel each.
/// assert_eq!(executable.steps().iter().filter(|s| s.kernel == "addmm").count(), 2);
///
/// let mut session = executable.session()?;
/// let images = Tensor::zeros(DType::F32, [2, 1, 28, 28])?;
/// let mut outputs = Vec::new();
/// for _ in 0..3 {
///     session.run_into(std::slice::from_ref(&images), &mut outputs)?;
/// }
/// backend.synchronize()?;
/// assert_eq!(outputs[0].shape(), [2, 10]);
/// # Ok::<(), opt_core::Error>(())
/// ```
#[derive(Debug, Clone)]
pub struct TchBackend {
    options: compile::Options,
}

impl TchBackend {
    /// A backend for a device.
    ///
    /// # Errors
    /// If libtorch has no such device; [`doctor`] then says why.
    pub fn new(device: Device) -> Result<TchBackend> {
        // libtorch looks for its CUDA half once, at the first call that could need it.
        if device != Device::Cpu || load::has_gpu() {
            load::cuda();
        }
        device.check()?;
        Ok(TchBackend {
            options: compile::Options {
                device,
                tf32: false,
                threads: None,
                fusion: true,
                foreach: device != Device::Cpu,
            },
        })
    }

    /// The device.
    pub fn device(&self) -> Device {
        self.options.device
    }

    /// The same with a number of threads for each operator on the processor, at least 1; as many
    /// as libtorch chooses, by default.
    ///
    /// libtorch has one such number for a thread that calls it. A run sets it for the thread that
    /// it is on, where it then stays.
    #[must_use]
    pub fn threads(mut self, threads: usize) -> TchBackend {
        self.options.threads = Some(i32::try_from(threads.max(1)).unwrap_or(i32::MAX));
        self
    }

    /// The same with f32 products on CUDA rounded to TF32 (10 bits of mantissa) before they are
    /// multiplied, or not; not, by default. PyTorch does it for convolutions unless told not to.
    #[must_use]
    pub fn tf32(mut self, on: bool) -> TchBackend {
        self.options.tf32 = on;
        self
    }

    /// The same with or without running several nodes as one (with, by default).
    ///
    /// Without, each node is computed by itself: slower, and with the roundings that the graph
    /// says.
    #[must_use]
    pub fn fusion(mut self, on: bool) -> TchBackend {
        self.options.fusion = on;
        self
    }

    /// Waits until the device has done all it was given: what is timed ends here.
    ///
    /// # Errors
    /// If a kernel failed.
    pub fn synchronize(&self) -> Result<()> {
        native::synchronize(self.options.device)
    }
}

/// The backend's name.
const NAME: &str = "tch";

impl Backend for TchBackend {
    fn name(&self) -> &str {
        NAME
    }

    #[tracing::instrument(level = "debug", name = "compile", skip_all, fields(graph = graph.name()))]
    fn compile(&self, graph: &Graph, spec: &CompileSpec) -> Result<Arc<dyn Executable>> {
        let plan = compile::compile(graph, spec, self.options)?;
        Ok(Arc::new(TchExecutable {
            plan: Arc::new(plan),
        }))
    }
}

#[cfg(test)]
mod tests;
