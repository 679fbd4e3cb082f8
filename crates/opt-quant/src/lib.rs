//! Post-training and quantization-aware int8 quantization of neural-network graphs.
//!
//! ```
//! use opt_core::{Context, DType, Dim, GraphBuilder, Pass, Shape, Tensor, TensorType};
//! use opt_data::TensorDataset;
//! use opt_ndarray::NdarrayBackend;
//! use opt_quant::QuantizeStatic;
//!
//! # fn main() -> opt_core::Result<()> {
//! let mut b = GraphBuilder::new("linear");
//! let shape = Shape::new([Dim::from("batch"), 2.into()]);
//! let x = b.input("x", TensorType::new(DType::F32, shape))?;
//! let w = b.variable("weight", Tensor::new([3, 2], [1f32, -0.5, 0.25, 0.75, -1.0, 0.5])?)?;
//! let y = b.matmul_t(x, w, false, true)?;
//! b.output("y", y)?;
//!
//! let samples = TensorDataset::new(vec![Tensor::new([4, 2], [0f32, 1., -1., 0.5, 2., -2., 1., 1.])?])?;
//! let backend = NdarrayBackend::new();
//! let mut cx = Context::new().with_backend(&backend).with_calibration(&samples);
//! let (int8, report) = QuantizeStatic::new().apply(b.finish()?, &mut cx)?;
//! assert_eq!(report.changed, 1);
//! println!("{int8}");
//! # Ok(())
//! # }
//! ```
//!
//! # The form of the result
//!
//! A QDQ graph, as ONNX Runtime and TensorRT read it. The input of each quantized convolution or
//! matrix product, and what it is made from through pooling and reshaping, is followed by one
//! `Quantize` and `Dequantize`; weights are integer constants before a `Dequantize`; biases are
//! `i32` constants at the scale of the products. A ReLU stands between a layer and its
//! `Quantize`. Backends fuse each such layer into one integer kernel.

#![forbid(unsafe_code)]

mod awq;
mod calibrate;
mod cholesky;
mod dynamic_pass;
mod emit;
mod fold;
pub mod gguf;
mod gptq;
mod gram;
mod grid;
mod hqq;
mod layout;
mod methods;
mod nodes;
pub mod observer;
mod params;
mod plan;
mod qat;
mod quantized;
mod rules;
mod scheme;
mod static_pass;
mod stored;
mod task;
mod weights_pass;

pub use awq::Awq;
pub use calibrate::{Calibration, calibrate};
pub use dynamic_pass::QuantizeDynamic;
pub use gptq::Gptq;
pub use gram::Samples;
pub use hqq::Hqq;
pub use layout::Axes;
pub use methods::{Method, Nearest};
pub use observer::{Kl, MinMax, Mse, ObserverKind, Percentile, RangeObserver};
pub use opt_core::{Error, ErrorKind, Result};
pub use params::QParams;
pub use qat::{ConvertQat, PrepareQat, QuantizeAware};
pub use quantized::{NF4, QuantizedTensor, quantize_along, quantize_tensor};
pub use rules::{Rules, Select};
pub use scheme::{Format, Granularity, Scheme};
pub use static_pass::{Config, QuantizeStatic};
pub use weights_pass::QuantizeWeights;
