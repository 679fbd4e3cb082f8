//! Quantization of neural networks: number formats of 2 to 16 bits, after training and in training.
//!
//! A [`Scheme`] says how numbers are stored; a pass applies it to a graph.
//!
//! ```
//! use opt_core::nn::{Linear, ModelBuilder};
//! use opt_core::{Backend, Context, Pass};
//! use opt_data::digits;
//! use opt_ndarray::NdarrayBackend;
//! use opt_quant::{QuantizeStatic, QuantizeWeights, Rules, Scheme, Select};
//!
//! # fn main() -> opt_core::Result<()> {
//! let mut m = ModelBuilder::new("perceptron", 0);
//! let x = m.batch("image", [1, 8, 8])?;
//! let h = m.flatten(x, 1)?;
//! let h = m.layer("fc1", Linear::new(32), h)?;
//! let h = m.relu(h)?;
//! let y = m.layer("fc2", Linear::new(10), h)?;
//! m.output("logits", y)?;
//! let graph = m.finish()?;
//!
//! // Weights in 4 bits; those of the last layer in 8. Computing stays in float.
//! let rules = Rules::new().apply(Select::contains("fc2"), Scheme::int8());
//! let pass = QuantizeWeights::new(Scheme::int4().group(32)).rules(rules);
//! let (int4, report) = pass.apply(graph.clone(), &mut Context::new())?;
//! assert_eq!(report.changed, 2);
//!
//! // Weights and activations in 8 bits, computing in integers; ranges come from examples.
//! let (backend, samples) = (NdarrayBackend::new(), digits()?.train);
//! let mut cx = Context::new().with_backend(&backend).with_calibration(&samples);
//! let (int8, _) = QuantizeStatic::new().apply(graph, &mut cx)?;
//! # let _ = (int4, int8);
//! # Ok(())
//! # }
//! ```
//!
//! # Passes
//!
//! | pass | weights | activations | needs |
//! | --- | --- | --- | --- |
//! | [`QuantizeWeights`] | any scheme | float | nothing; calibration examples for some methods |
//! | [`QuantizeDynamic`] | 8-bit integers | 8-bit integers, scales found in each run: for the tensor or each token | nothing |
//! | [`QuantizeStatic`] | integers per channel or tensor | 8-bit integers, scales from examples | calibration examples |
//! | [`QuantizeAware`] | the same, trained with rounding in the forward pass | the same | training examples |
//!
//! [`QuantizeWeights`] rounds to nearest, or finds codes and scales by a [`Method`]: [`Gptq`] and
//! [`Awq`] by the error of layers' outputs on calibration examples, [`Hqq`] and searched ranges
//! without data.
//!
//! For a transformer in 8 bits without examples start with [`QuantizeDynamic::recommended`].
//!
//! # Calibration
//!
//! Static scales come from ranges that observers find in one pass over examples, in memory that does
//! not grow with their number. [`Config::observer`] chooses:
//!
//! | observer | range |
//! | --- | --- |
//! | [`ObserverKind::MinMax`] | all values |
//! | [`ObserverKind::MovingAverage`] | the average of the batches' ranges |
//! | [`ObserverKind::Percentile`] | all values but a share at either end |
//! | [`ObserverKind::Kl`] | the least loss of information |
//! | [`ObserverKind::Mse`] | the least squared error |
//!
//! [`Observations`] of parts of the examples can be saved, read and merged. Where the graph bounds a
//! value (ReLU6, sigmoid, softmax, 8-bit inputs) or its range is [given](Config::range) no examples are
//! needed for it.
//!
//! # Repair
//!
//! Passes before [`QuantizeStatic`] and [`QuantizeDynamic`] get back what rounding would lose. They
//! are float to float: `Equalize, AdaRound, CorrectBias, QuantizeStatic` is a pipeline.
//!
//! | pass | what it does | needs |
//! | --- | --- | --- |
//! | [`Equalize`] | gives channels equal ranges, where one scale a tensor has to do | nothing |
//! | [`SmoothQuant`] | moves outliers of activations into the weights of matrix products | calibration examples |
//! | [`Rotate`] | spreads outliers of a transformer's residual stream over all channels | nothing |
//! | [`SplitOutliers`] | keeps input channels with outliers apart, to stay in float | calibration examples, or nothing |
//! | [`AdaRound`] | learns whether each weight is rounded up or down | calibration examples |
//! | [`CorrectBias`] | takes the mean error of each channel out of its bias | calibration examples |
//!
//! # Schemes
//!
//! Bits of a weight are those of its code and its part of scales and zero points, for the usual
//! group or for long rows. Any integer format can be [per tensor](Scheme::per_tensor), [per
//! channel](Scheme::per_channel) or in [groups](Scheme::group), with zero points or without.
//!
//! | scheme | numbers | a scale for | bits |
//! | --- | --- | --- | --- |
//! | [`Scheme::int8`] | -128 to 127 | channel | 8 |
//! | [`Scheme::uint8`] | 0 to 255 less a zero point | channel | 8 |
//! | [`Scheme::int4`] | -8 to 7 | 32 (`f32`) | 5 |
//! | [`Scheme::int4`]`().group(128)` | -8 to 7 | 128 (`f32`) | 4.25 |
//! | [`Scheme::uint4`] | 0 to 15 less a zero point | 32 (`f32`, 4-bit zero point) | 5.125 |
//! | [`Scheme::int2`] | -2 to 1 | 32 (`f32`) | 3 |
//! | [`Scheme::uint2`] | 0 to 3 less a zero point | 32 (`f32`, 2-bit zero point) | 3.0625 |
//! | [`Scheme::fp8_e4m3`], [`Scheme::fp8_e5m2`] | floats up to 448, 57344 | channel | 8 |
//! | [`Scheme::nf4`] | 16 quantiles of the normal distribution | 64 (`f32`) | 4.5 |
//! | [`Scheme::mxfp8`], [`Scheme::mxfp8_e5m2`] | floats up to 448, 57344 | 32 (a power of two, 8 bits) | 8.25 |
//! | [`Scheme::mxfp6`], [`Scheme::mxfp6_e3m2`] | floats up to 7.5, 28 | 32 (a power of two) | 6.25 |
//! | [`Scheme::mxfp4`] | floats up to 6 | 32 (a power of two) | 4.25 |
//! | [`Scheme::nvfp4`] | floats up to 6 | 16 (E4M3), and the tensor (`f32`) | 4.5 |
//! | [`Scheme::f16`], [`Scheme::bf16`] | 16-bit floats | nothing | 16 |
//!
//! [`quantize_tensor`] applies a scheme to one tensor, without a graph. [`gguf`] has the block formats of
//! llama.cpp's files.
//!
//! # The form of the result
//!
//! A QDQ graph, as ONNX Runtime and TensorRT read it. Of static quantization, the input of each
//! quantized convolution or matrix product, and what it is made from through pooling and reshaping,
//! is followed by one `Quantize` and `Dequantize`; weights are integer constants before a
//! `Dequantize`; biases are `i32` constants at the scale of the products, or `f32` where weights and
//! activations have fewer than 10 bits together, which would round them too coarsely. A ReLU stands
//! between a layer and its `Quantize`. Backends fuse each such layer into one integer kernel.
//!
//! Weights alone are constants before a `Dequantize`, with blocks for groups, but for these: a
//! power-of-two scale is cast to `f32` first; the scales of NVFP4 are dequantized themselves; codes
//! of NF4 are looked up in a constant with `Gather` and multiplied by their scales; 16-bit floats
//! are cast. Rows of 8-bit and 16-bit embeddings are looked up first. All of these are operators of
//! ONNX, of operator set 21, or newer for some dtypes: 23 for 4-bit floats, 24 for the scales of
//! microscaling formats, 25 for 2-bit integers, 28 for 6-bit floats.

#![forbid(unsafe_code)]

mod adaround;
pub mod analysis;
mod awq;
mod batches;
mod bias_correction;
mod calibrate;
mod cholesky;
mod dynamic_pass;
mod emit;
mod equalize;
mod fold;
pub mod gguf;
mod gptq;
mod gram;
mod grid;
mod hqq;
mod known;
mod layers;
mod layout;
mod methods;
mod moments;
mod nodes;
mod observations;
pub mod observer;
mod outliers;
mod params;
mod plan;
mod qat;
mod quantized;
mod ranges;
mod rotate;
mod rules;
mod scales;
mod scheme;
mod simulate;
mod smooth;
mod static_pass;
mod stored;
pub mod stream;
mod task;
mod weights_pass;

pub use adaround::AdaRound;
pub use awq::Awq;
pub use bias_correction::CorrectBias;
pub use calibrate::{Calibration, calibrate};
pub use dynamic_pass::QuantizeDynamic;
pub use equalize::Equalize;
pub use gptq::Gptq;
pub use gram::Samples;
pub use hqq::Hqq;
pub use layout::Axes;
pub use methods::{Method, Nearest};
pub use observations::Observations;
pub use observer::{
    AnyObserver, Kl, MinMax, MovingAverage, Mse, ObserverKind, Percentile, RangeObserver,
};
pub use opt_core::{Error, ErrorKind, Result};
pub use outliers::SplitOutliers;
pub use params::QParams;
pub use qat::{ConvertQat, FreezeBatchNorm, PrepareQat, QuantizeAware};
pub use quantized::{NF4, QuantizedTensor, quantize_along, quantize_tensor};
pub use rotate::Rotate;
pub use rules::{Rules, Select};
pub use scheme::{Format, Granularity, Scheme};
pub use smooth::SmoothQuant;
pub use static_pass::{Config, QuantizeStatic};
pub use weights_pass::QuantizeWeights;
