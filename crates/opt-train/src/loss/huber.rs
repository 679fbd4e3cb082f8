//! Huber's loss.

use opt_core::{Error, GraphBuilder, Result, TensorType, ValueId};

use super::Loss;

/// Half the squared error up to `delta`, beyond it `delta * (|error| - delta / 2)`, the mean over
/// all elements (Huber 1964; PyTorch's `HuberLoss`): outliers pull no harder than an error of
/// `delta`.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Huber {
    /// Where the loss turns from a square to a line, above 0.
    pub delta: f64,
}

impl Default for Huber {
    fn default() -> Huber {
        Huber { delta: 1.0 }
    }
}

impl Loss for Huber {
    fn target_type(&self, prediction: &TensorType) -> Result<TensorType> {
        if !self.delta.is_finite() || self.delta <= 0.0 {
            return Err(Error::invalid(format!(
                "delta is {}, not a positive number",
                self.delta
            )));
        }
        Ok(prediction.clone())
    }

    fn build(&self, b: &mut GraphBuilder, prediction: ValueId, target: ValueId) -> Result<ValueId> {
        let error = b.sub(prediction, target)?;
        let size = b.abs(error)?;
        let delta = b.scalar_like(error, self.delta)?;
        let near = b.less_or_equal(size, delta)?;
        let square = b.mul(error, error)?;
        let square = b.mul_scalar(square, 0.5)?;
        let line = b.add_scalar(size, -0.5 * self.delta)?;
        let line = b.mul(line, delta)?;
        let loss = b.select(near, square, line)?;
        b.mean_all(loss)
    }
}
