//! Mean absolute error.

use opt_core::{GraphBuilder, Result, TensorType, ValueId};

use super::Loss;

/// `mean(|prediction - target|)` over all elements (PyTorch's `L1Loss`); the gradient is 0 where
/// they are equal.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Mae;

impl Loss for Mae {
    fn target_type(&self, prediction: &TensorType) -> Result<TensorType> {
        Ok(prediction.clone())
    }

    fn build(&self, b: &mut GraphBuilder, prediction: ValueId, target: ValueId) -> Result<ValueId> {
        let difference = b.sub(prediction, target)?;
        let size = b.abs(difference)?;
        b.mean_all(size)
    }
}
