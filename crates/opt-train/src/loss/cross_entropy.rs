//! Softmax cross-entropy, with class indices and with probabilities.

use opt_core::{DType, Error, GraphBuilder, Result, Shape, TensorType, ValueId};

use super::Loss;

fn check(prediction: &TensorType) -> Result<()> {
    if prediction.rank() >= 2 && prediction.dtype.is_float() {
        return Ok(());
    }
    Err(Error::shape(format!(
        "cross-entropy takes floating-point logits [N, C, ..], found {prediction}"
    )))
}

/// Softmax cross-entropy of logits `[N, C, ..]` with class indices `[N, ..]` (`i64`), the mean
/// over all entries (PyTorch's `CrossEntropyLoss`).
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct CrossEntropy;

impl Loss for CrossEntropy {
    fn target_type(&self, prediction: &TensorType) -> Result<TensorType> {
        check(prediction)?;
        let dims = prediction.shape.dims().iter().enumerate();
        let shape: Shape = dims
            .filter(|&(i, _)| i != 1)
            .map(|(_, d)| d.clone())
            .collect();
        Ok(TensorType::new(DType::I64, shape))
    }

    fn build(&self, b: &mut GraphBuilder, prediction: ValueId, target: ValueId) -> Result<ValueId> {
        let losses = b.softmax_cross_entropy(prediction, target)?;
        b.mean_all(losses)
    }
}

/// Softmax cross-entropy of logits `[N, C, ..]` with probabilities of the same shape, the mean
/// over all but the class axis (PyTorch's `CrossEntropyLoss` with class probabilities).
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct SoftCrossEntropy;

impl Loss for SoftCrossEntropy {
    fn target_type(&self, prediction: &TensorType) -> Result<TensorType> {
        check(prediction)?;
        Ok(prediction.clone())
    }

    fn build(&self, b: &mut GraphBuilder, prediction: ValueId, target: ValueId) -> Result<ValueId> {
        let log = b.log_softmax(prediction, 1)?;
        let product = b.mul(log, target)?;
        let sums = b.sum(product, &[1], false)?;
        let mean = b.mean_all(sums)?;
        b.neg(mean)
    }
}
