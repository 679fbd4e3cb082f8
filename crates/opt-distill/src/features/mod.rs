//! Losses between layers of a student and its teacher, one a file.

mod attention_transfer;
mod hint;
mod pad;
mod rkd;
mod softmax_regression;

pub use attention_transfer::AttentionTransfer;
pub use hint::Hint;
pub use pad::Pad;
pub use rkd::Rkd;
pub use softmax_regression::SoftmaxRegression;

use opt_core::{GraphBuilder, Result, Shape, ValueId};

/// What has to agree of the shapes that a [`FeatureLoss`] compares.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Matching {
    /// All of it.
    Shape,
    /// All but the number of channels.
    Positions,
    /// The number of examples.
    Batch,
}

/// The values that a [`FeatureLoss`] compares.
#[derive(Debug, Clone, Copy)]
#[non_exhaustive]
pub struct Features {
    /// The student's layer, projected and pooled as the [`LayerPair`](crate::LayerPair) says.
    pub student: ValueId,
    /// The teacher's layer, pooled as the pair says. No gradient passes to it.
    pub teacher: ValueId,
    /// The teacher's layer as the teacher has it.
    pub teacher_layer: ValueId,
    /// The teacher's first output, if it has one.
    pub teacher_output: Option<ValueId>,
}

impl Features {
    /// Two layers that are compared as they are.
    pub fn new(student: ValueId, teacher: ValueId) -> Features {
        Features {
            student,
            teacher,
            teacher_layer: teacher,
            teacher_output: None,
        }
    }

    /// The teacher's first output, for losses that run the rest of the teacher.
    #[must_use]
    pub fn teacher_output(mut self, output: ValueId) -> Features {
        self.teacher_output = Some(output);
        self
    }
}

/// A loss between a layer of a student and one of its teacher.
///
/// Channels are axis 1 of values `[N, C]` and `[N, C, H, W]` (and of rank 5), and the last axis of
/// `[N, T, C]`, as transformers have them; all other axes but the first are positions.
///
/// [`Distillation::features`](crate::Distillation::features) takes any.
pub trait FeatureLoss: std::fmt::Debug + Send + Sync {
    /// What of the two shapes has to agree.
    fn matching(&self) -> Matching;

    /// Adds the loss, a value of rank 0. Both values have one dtype, `f32` or `f64`, and agree
    /// as [`FeatureLoss::matching`] says. Variables that are added are trained with the student
    /// and are no part of what comes back.
    ///
    /// # Errors
    /// If a setting is out of its range or the types do not fit.
    fn build(&self, b: &mut GraphBuilder, features: &Features) -> Result<ValueId>;
}

/// The axis of the channels in a shape of rank 2 at least.
pub(crate) fn channel_axis(shape: &Shape) -> usize {
    match shape.rank() {
        3 => 2,
        _ => 1,
    }
}

/// The axes of a shape that are positions: neither examples nor channels.
pub(crate) fn positions(shape: &Shape) -> Vec<usize> {
    let channels = channel_axis(shape);
    (1..shape.rank()).filter(|&a| a != channels).collect()
}
