//! ONNX and safetensors in and out: any model becomes a graph, to train, prune, quantize and write
//! back.
//!
//! ```
//! # use opt_core::nn::{BatchNorm, Conv, Linear, ModelBuilder};
//! use opt_ndarray::NdarrayBackend;
//! use opt_core::{Backend, Tensor};
//! use opt_onnx::{Exporter, Importer, trainable};
//!
//! # let mut m = ModelBuilder::new("model", 0);
//! # let x = m.batch("x", [8])?;
//! # let y = m.layer("fc", Linear::new(3), x)?;
//! # m.output("y", y)?;
//! # let path = std::env::temp_dir().join(format!("opt-onnx-doc-{}.onnx", std::process::id()));
//! # Exporter::new().save(&m.finish()?, &path)?;
//! // Any model: from PyTorch, TensorFlow, a model zoo.
//! let graph = Importer::new().load(&path)?;
//! let x = Tensor::zeros(opt_core::DType::F32, [2, 8])?;
//! let y = NdarrayBackend::new().run_once(&graph, &[x])?;
//! assert_eq!(y[0].shape(), [2, 3]);
//!
//! // Its weights become variables: training, pruning and quantization take it from here.
//! let graph = trainable(graph, |_name| true)?;
//!
//! // And back.
//! Exporter::new().opset(21).save(&graph, &path)?;
//! # std::fs::remove_file(&path)?;
//! # Ok::<(), opt_onnx::Error>(())
//! ```
//!
//! - [`Importer`] reads operator sets 6 to 28. Operators that `opt-core` has no op for are
//!   expressed by those that it has; shape arithmetic is carried out while reading, with symbols
//!   for sizes that are not bound yet. What cannot be read is refused by name, all of it at once
//!   ([`Unsupported`]).
//! - [`Exporter`] writes operator sets 13 to 28, 21 by default, in the forms that ONNX Runtime
//!   fuses: `Gemm`, `LayerNormalization`, `Gelu`, quantize-dequantize pairs, `MatMulInteger`,
//!   blocked 4-bit weights.
//! - [`trainable`], [`freeze`] and [`cut`] prepare an imported graph for training.
//! - [`safetensors`] loads weights of other libraries by name, [`hub`] whole encoders.
#![warn(missing_docs)]
#![deny(unsafe_code)]

mod export;
pub mod hub;
mod import;
mod mmap;
mod proto;
pub mod safetensors;
mod source;
mod tensor;
#[cfg(test)]
mod tests;
mod trainable;
mod unsupported;

pub use export::{DEFAULT_OPSET, Exporter, OLDEST_EXPORT_OPSET};
pub use import::{Importer, NEWEST_OPSET, OLDEST_OPSET, input_names};
pub use opt_core::{Error, ErrorKind, Result};
pub use tensor::read_tensor;
pub use trainable::{cut, freeze, trainable};
pub use unsupported::{Refused, Unsupported};
