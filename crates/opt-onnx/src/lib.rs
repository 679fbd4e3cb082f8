//! ONNX and safetensors in and out.
#![warn(missing_docs)]

pub mod hub;
mod mmap;
mod proto;
pub mod safetensors;
