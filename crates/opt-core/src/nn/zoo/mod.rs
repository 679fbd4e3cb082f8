//! A small zoo: known architectures, untrained.
//!
//! Each function builds a graph with initial weights that depend on the seed. The batch size is
//! the symbol `batch`; images are `[batch, C, H, W]`. Dropout and batch normalization are in eval
//! mode until the pass `TrainMode` switches them.
//!
//! ```
//! use opt_core::nn::zoo;
//!
//! let graph = zoo::lenet_300_100(784, 10, 0)?;
//! assert_eq!(graph.parameter_count(), 266_610);
//! # Ok::<(), opt_core::Error>(())
//! ```

mod factorization;
mod lenet;
mod lstm;
mod mobilenet;
mod resnet;
mod transformer;

pub use factorization::matrix_factorization;
pub use lenet::{lenet_300_100, lenet5};
pub use lstm::{LstmClassifier, lstm_classifier};
pub use mobilenet::{InvertedResidual, MobileNetV2, mobilenet_v2};
pub use resnet::resnet20;
pub use transformer::{TransformerClassifier, transformer_classifier};
