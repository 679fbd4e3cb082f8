//! ONNX and safetensors in and out.
#![warn(missing_docs)]

mod proto;
