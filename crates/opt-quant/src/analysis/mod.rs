//! Where the error of a quantized graph is, and what to do about it.
//!
//! - [`compare`] runs a graph and its quantized form side by side, and tells for each layer how far
//!   its output has moved, what the layers before it contributed included.
//! - [`sensitivity`] quantizes one layer at a time, and tells what each does to the outputs alone.
//! - [`QuantizeBudget`] gives each weight one of several schemes, so that the file keeps within a
//!   number of bytes and the outputs move least.
//! - [`AccuracyControl`] keeps the fewest layers in float that a metric's bound asks for.
//!
//! ```
//! use opt_core::nn::{Linear, ModelBuilder};
//! use opt_core::{Context, Pass, Tensor};
//! use opt_data::TensorDataset;
//! use opt_ndarray::NdarrayBackend;
//! use opt_quant::analysis::compare;
//! use opt_quant::{QuantizeWeights, Scheme};
//!
//! let mut m = ModelBuilder::new("model", 0);
//! let x = m.batch("x", [64])?;
//! let h = m.layer("fc1", Linear::new(64), x)?;
//! let h = m.relu(h)?;
//! let y = m.layer("fc2", Linear::new(3), h)?;
//! m.output("y", y)?;
//! let float = m.finish()?;
//! let (int4, _) = QuantizeWeights::new(Scheme::int4()).apply(float.clone(), &mut Context::new())?;
//!
//! let x: Vec<f32> = (0..640).map(|i| (i as f32).sin()).collect();
//! let data = TensorDataset::new(vec![Tensor::new([10, 64], x)?])?;
//! let table = compare(&float, &int4, &data, &NdarrayBackend::new())?;
//! println!("{table}");
//! assert!(table.layers.iter().all(|layer| layer.cosine > 0.98));
//! # Ok::<(), opt_quant::Error>(())
//! ```

mod accuracy;
mod budget;
mod compare;
mod moved;
mod sensitivity;

pub use accuracy::{AccuracyControl, AccuracyReport};
pub use budget::QuantizeBudget;
pub use compare::compare;
pub use moved::{LayerError, LayerErrors};
pub use sensitivity::{Quantizer, sensitivity};
