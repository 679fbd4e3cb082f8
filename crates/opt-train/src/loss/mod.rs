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
///
/// [`Supervised`](crate::Supervised) makes it the objective of a [`Trainer`](crate::Trainer):
///
/// ```
/// use opt_core::{GraphBuilder, Result, TensorType, ValueId};
/// use opt_train::{Adam, Constant, Huber, Loss, Supervised, Trainer};
///
/// let robust = Trainer::new(Supervised(Huber { delta: 0.5 }), Adam::default(), Constant(1e-3));
///
/// /// The mean of `log(cosh(prediction - target))`.
/// #[derive(Debug)]
/// struct LogCosh;
///
/// impl Loss for LogCosh {
///     fn target_type(&self, prediction: &TensorType) -> Result<TensorType> {
///         Ok(prediction.clone())
///     }
///
///     fn build(&self, b: &mut GraphBuilder, prediction: ValueId, target: ValueId) -> Result<ValueId> {
///         // log(cosh(x)) = x + softplus(-2 x) - log(2)
///         let x = b.sub(prediction, target)?;
///         let soft = b.mul_scalar(x, -2.0)?;
///         let soft = b.unary(opt_core::ops::UnaryOp::Softplus, soft)?;
///         let sum = b.add(x, soft)?;
///         let loss = b.add_scalar(sum, -std::f64::consts::LN_2)?;
///         b.mean_all(loss)
///     }
/// }
///
/// let smooth = Trainer::new(Supervised(LogCosh), Adam::default(), Constant(1e-3));
/// # let _ = (robust, smooth);
/// ```
pub trait Loss: std::fmt::Debug + Send + Sync {
    /// The type of the target for a prediction of a type.
    ///
    /// # Errors
    /// If the loss takes no such prediction.
    fn target_type(&self, prediction: &TensorType) -> Result<TensorType>;

    /// Whether the target is a distribution over classes, so that a class index can stand for it;
    /// at first not.
    fn takes_probabilities(&self) -> bool {
        false
    }

    /// Adds the loss, a value of rank 0.
    ///
    /// # Errors
    /// If the types do not fit.
    fn build(&self, b: &mut GraphBuilder, prediction: ValueId, target: ValueId) -> Result<ValueId>;
}
