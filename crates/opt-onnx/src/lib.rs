//! ONNX and safetensors in and out.
#![warn(missing_docs)]

mod mmap;
mod proto;
pub mod safetensors;
