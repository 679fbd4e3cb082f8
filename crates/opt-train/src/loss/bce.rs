//! Binary cross-entropy.

use opt_core::{GraphBuilder, Result, TensorType, ValueId};

use super::Loss;

/// `mean(softplus(x) - x * target)` for logits x and targets in `[0, 1]`: binary cross-entropy
/// without overflow (PyTorch's `BCEWithLogitsLoss`).
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Bce;

impl Loss for Bce {
    fn target_type(&self, prediction: &TensorType) -> Result<TensorType> {
        Ok(prediction.clone())
    }

    fn build(&self, b: &mut GraphBuilder, prediction: ValueId, target: ValueId) -> Result<ValueId> {
        let soft = b.softplus(prediction)?;
        let product = b.mul(prediction, target)?;
        let loss = b.sub(soft, product)?;
        b.mean_all(loss)
    }
}
