//! Unstructured and structured pruning of neural-network graphs: smaller, and physically so.
//!
//! ```
//! use opt_core::{Context, DType, Dim, GraphBuilder, Pass, Shape, Tensor, TensorType};
//! use opt_prune::{ChannelPrune, Magnitude, UnstructuredPrune};
//!
//! # fn main() -> opt_core::Result<()> {
//! let mut b = GraphBuilder::new("mlp");
//! let shape = Shape::new([Dim::from("batch"), 4.into()]);
//! let x = b.input("x", TensorType::new(DType::F32, shape))?;
//! let rows: Vec<f32> = (0..32).map(|i| (i / 4) as f32 + 1.0).collect();
//! let w1 = b.variable("fc1.weight", Tensor::new([8, 4], rows)?)?;
//! let w2 = b.variable("fc2.weight", Tensor::full(DType::F32, [3, 8], 0.5)?)?;
//! let h = b.matmul_t(x, w1, false, true)?;
//! let h = b.relu(h)?;
//! let y = b.matmul_t(h, w2, false, true)?;
//! b.output("y", y)?;
//! let graph = b.finish()?;
//!
//! // Half of the hidden neurons go, and the matrices are really smaller.
//! let mut cx = Context::new();
//! let (small, report) = ChannelPrune::new(0.5).apply(graph.clone(), &mut cx)?;
//! assert_eq!(small.type_of(w1).to_string(), "f32[4,4]");
//! assert_eq!(small.type_of(w2).to_string(), "f32[3,4]");
//! println!("{report}");
//!
//! // Or three quarters of the weights become zero, and stay zero in training.
//! let (sparse, _) = UnstructuredPrune::new(0.75).criterion(Magnitude::l1()).apply(graph, &mut cx)?;
//! assert!(sparse.facts().mask(w1).is_some());
//! # Ok(())
//! # }
//! ```
//!
//! - [`ChannelPrune`] removes channels, neurons and attention heads: a share of each layer or of
//!   all together, down to widths, or until a [`Budget`] of parameters, multiply-adds, bytes or
//!   latency is met.
//! - [`UnstructuredPrune`] sets single weights or tiles of them to zero, [`NmPrune`] all but N of
//!   each M; masks hold through training.
//! - A [`Criterion`] says what goes: [`Magnitude`], [`Taylor`], [`BatchNormScale`], [`Fpgm`],
//!   [`Lamp`], [`Random`], or one of your own.
//! - [`PruneRetrain`] prunes and trains in turn by a [`SparsitySchedule`].
//! - [`LotteryTicket`] looks for sparse networks that train from their initial values; [`Rewind`],
//!   [`Reinitialize`] and [`ShuffleMasks`] are its parts and controls.
//! - [`PruneReport`] says what became of each layer.

#![forbid(unsafe_code)]

mod blocks;
pub mod criterion;
mod lottery;
mod masks;
mod nm;
mod report;
mod retrain;
mod rewind;
pub mod schedule;
mod select;
pub mod structured;
mod unstructured;

pub use criterion::{
    BatchNormScale, Criterion, Fpgm, Lamp, Magnitude, Random, ScoreContext, Structures, Taylor,
};
pub use lottery::LotteryTicket;
pub use nm::NmPrune;
pub use opt_core::{Error, ErrorKind, Result};
pub use report::{LayerRow, PruneReport};
pub use retrain::{GradualPrune, PruneRetrain};
pub use rewind::{Reinitialize, Rewind, ShuffleMasks};
pub use schedule::{Between, Constant, Geometric, PolynomialDecay, SparsitySchedule};
pub use structured::{Budget, ChannelPrune, ChannelSelection};
pub use unstructured::{Scope, UnstructuredPrune};
