//! The messages of an ONNX file.
//!
//! `onnx.rs` is generated from the specification's `onnx.proto`; `cargo xtask proto` writes it.

#[rustfmt::skip]
#[allow(missing_docs, missing_debug_implementations, unreachable_pub, dead_code, clippy::all, clippy::pedantic)]
mod onnx;

pub(crate) use onnx::*;
