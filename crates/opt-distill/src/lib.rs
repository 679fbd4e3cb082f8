//! Knowledge distillation: a student learns from its teacher.
//!
//! The teacher is put into the student's training graph in evaluation mode, with its weights as
//! constants: it gets no backward nodes and cannot change. Any two graphs with the same inputs do,
//! imported ones among them.
//!
//! A [`Distillation`] is a weighted sum of losses:
//!
//! | between | losses |
//! | --- | --- |
//! | logits | [`SoftTargets`], [`Dkd`], [`Dist`], any [`LogitLoss`] |
//! | layers, paired by name | [`Hint`], [`AttentionTransfer`], [`Rkd`], [`Pad`], [`SoftmaxRegression`], any [`FeatureLoss`] |
//! | the student's logits and the labels | any [`Loss`](opt_train::Loss) |
//!
//! It is the objective of a [`Trainer`](opt_train::Trainer) with one teacher
//! ([`Distillation::from_teacher`]), several ([`Distillation::from_teachers`]) or one that has run
//! already ([`with_teacher_logits`], [`Distillation::from_logits`]); as a pass it is [`Distil`].
//! [`BornAgain`] distils generation after generation, [`Mutual`] trains students that teach each
//! other, and with [`SelfDistillation`] a network teaches its own early exits.
//!
//! ```
//! use opt_core::nn::{Linear, ModelBuilder};
//! use opt_core::{Graph, Tensor};
//! use opt_data::TensorDataset;
//! use opt_distill::{Distillation, Hint, LayerPair, SoftTargets};
//! use opt_ndarray::NdarrayBackend;
//! use opt_train::{Adam, Constant, CrossEntropy, Trainer};
//!
//! # fn main() -> opt_core::Result<()> {
//! let network = |name: &str, hidden: usize| -> opt_core::Result<Graph> {
//!     let mut b = ModelBuilder::new(name, 0);
//!     let x = b.batch("x", &[2])?;
//!     let x = b.layer("hidden", Linear::new(hidden), x)?;
//!     let x = b.relu(x)?;
//!     let y = b.layer("head", Linear::new(2), x)?;
//!     b.output("logits", y)?;
//!     b.finish()
//! };
//! let (teacher, student) = (network("teacher", 16)?, network("student", 4)?);
//! let data = TensorDataset::new(vec![
//!     Tensor::new([4, 2], [1f32, 0., 0., 1., 2., 1., 1., 2.])?,
//!     Tensor::new([4], [0i64, 1, 0, 1])?,
//! ])?;
//! let objective = Distillation::new()
//!     .logits(1.0, SoftTargets::only(2.0))
//!     .features(0.5, Hint::mse(), LayerPair::new("hidden", "hidden").project())
//!     .labels(0.1, CrossEntropy)
//!     .from_teacher(teacher);
//! let (student, history) = Trainer::new(objective, Adam::default(), Constant(0.05))
//!     .epochs(20)
//!     .fit(student, &data, &NdarrayBackend::new())?;
//! assert!(history.epochs[19].loss < history.epochs[0].loss);
//! // The projection of the hint has gone with the training graph.
//! assert_eq!(student.variables().count(), 4);
//! # Ok(())
//! # }
//! ```

#![forbid(unsafe_code)]

mod adapt;
mod born_again;
mod distillation;
mod ensemble;
mod features;
mod from_logits;
mod from_teacher;
mod inline;
mod layers;
mod logits;
mod math;
mod mutual;
mod pass;
mod self_distillation;

pub use born_again::BornAgain;
pub use distillation::Distillation;
pub use ensemble::Average;
pub use features::{
    AttentionTransfer, FeatureLoss, Features, Hint, Matching, Pad, Rkd, SoftmaxRegression,
};
pub use from_logits::{FromLogits, WithTeacherLogits, with_teacher_logits};
pub use from_teacher::FromTeacher;
pub use layers::{LayerMap, LayerPair};
pub use logits::{Dist, Dkd, LogitLoss, SoftTargets};
pub use mutual::Mutual;
pub use opt_core::{Error, ErrorKind, Result};
pub use pass::Distil;
pub use self_distillation::SelfDistillation;
