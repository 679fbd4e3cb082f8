//! Mean squared error.

use opt_core::{GraphBuilder, Result, TensorType, ValueId};

use super::Loss;

/// `mean((prediction - target)^2)` over all elements (PyTorch's `MSELoss`).
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Mse;

impl Loss for Mse {
    fn target_type(&self, prediction: &TensorType) -> Result<TensorType> {
        Ok(prediction.clone())
    }

    fn build(&self, b: &mut GraphBuilder, prediction: ValueId, target: ValueId) -> Result<ValueId> {
        let difference = b.sub(prediction, target)?;
        let square = b.mul(difference, difference)?;
        b.mean_all(square)
    }
}
