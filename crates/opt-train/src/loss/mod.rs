//! Losses as graph builders, one a file; each gives one number, the mean over the batch.

mod bce;
mod cross_entropy;
mod huber;
mod kl_div;
mod mae;
mod mse;

pub use bce::Bce;
pub use cross_entropy::{CrossEntropy, SmoothedCrossEntropy, SoftCrossEntropy};
pub use huber::Huber;
pub use kl_div::KlDiv;
pub use mae::Mae;
pub use mse::Mse;

use opt_core::{GraphBuilder, Result, TensorType, ValueId};

/// A loss between a prediction and a target.
pub trait Loss: std::fmt::Debug + Send + Sync {
    /// The type of the target for a prediction of a type.
    ///
    /// # Errors
    /// If the loss takes no such prediction.
    fn target_type(&self, prediction: &TensorType) -> Result<TensorType>;

    /// Adds the loss, a value of rank 0.
    ///
    /// # Errors
    /// If the types do not fit.
    fn build(&self, b: &mut GraphBuilder, prediction: ValueId, target: ValueId) -> Result<ValueId>;
}
