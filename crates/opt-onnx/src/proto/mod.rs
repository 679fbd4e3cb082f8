//! The messages of an ONNX file.
//!
//! `onnx.rs` is what `prost-build` (through `protox`, with `bytes` for the content of tensors)
//! makes of the specification's `onnx.proto`; CONTRIBUTING.md says how to write it anew.

#[rustfmt::skip]
#[allow(missing_docs, missing_debug_implementations, unreachable_pub, dead_code, clippy::all, clippy::pedantic)]
mod onnx;

pub(crate) use onnx::*;
