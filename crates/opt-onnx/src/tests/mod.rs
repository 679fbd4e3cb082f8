//! Tests that write ONNX's messages themselves.

mod hostile;
mod models;
mod round_trip;
