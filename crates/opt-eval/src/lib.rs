//! Metrics, cost, latency and before/after comparison of neural-network graphs, and reports of it.
//!
//! ```
//! use opt_eval::{Average, Comparison, ConfusionMatrix, Row};
//!
//! // What a model predicted for four examples of three classes.
//! let matrix = ConfusionMatrix::new(&[0, 1, 2, 2], &[0, 2, 2, 2], 3)?;
//! assert_eq!(matrix.accuracy(), 0.75);
//! println!("macro F1 {:.3}", matrix.f1(Average::Macro));
//!
//! // Before and after; the JSON is for machines, `{}` prints a table.
//! let row = |name: &str, bytes, latency_us| Row {
//!     name: name.into(), accuracy: Some(0.75), parameters: bytes, bytes, macs: 0, latency_us,
//! };
//! let table = Comparison::new(vec![row("f32", 4000, Some(8.0)), row("int8", 1000, Some(10.0))]);
//! assert!(table.to_string().contains("1.25x slower"));
//! # Ok::<(), opt_core::Error>(())
//! ```
//!
//! - [`evaluate`] runs a classifier over a data set; [`ConfusionMatrix`] has the metrics of what it
//!   predicted, [`top_k_accuracy`], [`log_loss`], [`roc_auc`] and [`roc_auc_ovr`] those of its
//!   scores, [`RegressionMetrics`] those of predicted numbers. All are equal to scikit-learn's.
//! - [`ModelCost`] counts parameters, non-zeros, multiply-adds, bytes on disk and the peak memory
//!   of activations, for the model and [layer by layer](LayerCost).
//! - [`LatencyBench`] times several models in turns, so that their ratio is fair; [`layer_times`]
//!   times their layers.
//! - [`compare`] measures models and gives a [`Comparison`]: a table for the terminal, Markdown or
//!   JSON.
//! - [`HtmlReport`] shows all of it, with plots, as one HTML file; [`TrainingCurves`] keeps what
//!   training reports for it.

#![forbid(unsafe_code)]

mod activation;
mod compare;
mod cost;
mod evaluate;
mod latency;
mod layer_time;
mod layers;
mod metrics;
mod regression;
mod report;
mod scores;
mod size;
#[cfg(test)]
mod testing;
mod training;
mod weights;

pub use compare::{CompareOptions, Comparison, Row, compare};
pub use cost::{ModelCost, NodeCost};
pub use evaluate::{Evaluation, evaluate, predict};
pub use latency::{Candidate, Latency, LatencyBench};
pub use layer_time::{LayerTime, layer_times};
pub use layers::LayerCost;
pub use metrics::{Average, ClassMetrics, ConfusionMatrix};
pub use opt_core::{Error, ErrorKind, Result};
pub use regression::RegressionMetrics;
pub use report::{Curve, HtmlReport};
pub use scores::{argmax, log_loss, roc_auc, roc_auc_ovr, softmax, top_k_accuracy};
pub use size::{weights, weights_bytes};
pub use training::TrainingCurves;
