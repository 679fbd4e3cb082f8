//! Kullback-Leibler divergence.

use opt_core::{GraphBuilder, Result, TensorType, ValueId};

use super::Loss;

/// `sum(target * (ln target - prediction)) / N` for log-probabilities `[N, ..]` and target
/// probabilities of the same shape; a target of 0 contributes 0 (PyTorch's `KLDivLoss` with
/// `batchmean`).
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct KlDiv;

impl Loss for KlDiv {
    fn target_type(&self, prediction: &TensorType) -> Result<TensorType> {
        Ok(prediction.clone())
    }

    fn build(&self, b: &mut GraphBuilder, prediction: ValueId, target: ValueId) -> Result<ValueId> {
        // ln of a positive number only, so that 0 * ln 0 is 0 and not NaN.
        let zero = b.scalar_like(target, 0.0)?;
        let one = b.scalar_like(target, 1.0)?;
        let positive = b.greater(target, zero)?;
        let safe = b.select(positive, target, one)?;
        let log = b.log(safe)?;
        let difference = b.sub(log, prediction)?;
        let product = b.mul(target, difference)?;
        let axes: Vec<usize> = (1..b.type_of(product).rank()).collect();
        let sums = b.sum(product, &axes, false)?;
        b.mean_all(sums)
    }
}
