//! Optimizers, losses, schedules and the training loop of the opt model-optimization libraries.
//!
//! A training step is one graph: forward, loss, backward, clipping, update. [`Trainer`] builds it,
//! runs it over shuffled batches, watches a validation set and hands back the trained graph.
//!
//! ```
//! use opt_core::{DType, Tensor};
//! use opt_data::TensorDataset;
//! use opt_ndarray::NdarrayBackend;
//! use opt_train::{Adam, CrossEntropy, Trainer, Constant};
//!
//! # fn main() -> opt_core::Result<()> {
//! // Two classes of points, told apart by the sign of their first coordinate.
//! let points: Vec<f32> = (0..64).flat_map(|i| [if i % 2 == 0 { 1.0 } else { -1.0 }, i as f32 / 64.0]).collect();
//! let labels: Vec<i64> = (0..64).map(|i| i % 2).collect();
//! let data = TensorDataset::new(vec![
//!     Tensor::new([64, 2], points)?,
//!     Tensor::new([64], labels)?,
//! ])?;
//!
//! let mut b = opt_core::GraphBuilder::new("linear");
//! let shape = opt_core::Shape::new([opt_core::Dim::from("batch"), 2.into()]);
//! let x = b.input("x", opt_core::TensorType::new(DType::F32, shape))?;
//! let w = b.variable("weight", Tensor::zeros(DType::F32, [2, 2])?)?;
//! let y = b.matmul_t(x, w, false, true)?;
//! b.output("logits", y)?;
//!
//! let backend = NdarrayBackend::new();
//! let (trained, history) = Trainer::new(CrossEntropy, Adam::default(), Constant(0.1))
//!     .epochs(5)
//!     .batch_size(16)
//!     .fit(b.finish()?, &data, &backend)?;
//! assert!(history.epochs.last().unwrap().loss < 0.3);
//! # let _ = trained;
//! # Ok(())
//! # }
//! ```

#![forbid(unsafe_code)]

pub mod accumulate;
pub mod checkpoint;
mod ema;
pub mod loss;
pub mod loss_scale;
pub mod observers;
pub mod optimizer;
pub mod schedule;
pub mod step;
pub mod trainer;

pub use loss::{
    Bce, CrossEntropy, Huber, KlDiv, Loss, Mae, Mse, SmoothedCrossEntropy, SoftCrossEntropy,
};
pub use loss_scale::LossScale;
#[cfg(feature = "progress")]
pub use observers::ProgressBar;
pub use observers::{CsvLog, Tee, TracingLog};
pub use opt_core::{Error, ErrorKind, Result};
pub use optimizer::{
    Adadelta, Adagrad, Adam, AdamW, Adamax, GradientDescent, Groups, Lion, Muon, MuonScale, NAdam,
    Optimizer, RAdam, RmsProp, Sgd, Slots,
};
pub use schedule::{
    Anneal, Constant, Cosine, CosineRestarts, Exponential, Metric, MultiStepDecay, OneCycle,
    Polynomial, ReduceOnPlateau, Schedule, StepDecay, Warmup,
};
pub use step::{Clip, ModelIo, Objective, StepOptions, Supervised, training_graph};
pub use trainer::{CrossValidation, Epoch, FineTune, FoldResult, History, Score, Trainer};
