//! ONNX and safetensors in and out.
#![warn(missing_docs)]

pub mod hub;
mod import;
mod mmap;
mod proto;
pub mod safetensors;
mod source;
mod tensor;
mod unsupported;

pub use import::{Importer, NEWEST_OPSET, OLDEST_OPSET, input_names};
pub use opt_core::{Error, ErrorKind, Result};
pub use tensor::read_tensor;
pub use unsupported::{Refused, Unsupported};
