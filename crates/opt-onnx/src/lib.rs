//! ONNX and safetensors in and out.
#![warn(missing_docs)]

mod export;
pub mod hub;
mod import;
mod mmap;
mod proto;
pub mod safetensors;
mod source;
mod tensor;
mod trainable;
mod unsupported;

pub use export::{DEFAULT_OPSET, Exporter, OLDEST_EXPORT_OPSET};
pub use import::{Importer, NEWEST_OPSET, OLDEST_OPSET, input_names};
pub use opt_core::{Error, ErrorKind, Result};
pub use tensor::read_tensor;
pub use trainable::{cut, freeze, trainable};
pub use unsupported::{Refused, Unsupported};
