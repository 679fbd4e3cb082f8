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

    fn takes_probabilities(&self) -> bool {
        true
    }

    fn build(&self, b: &mut GraphBuilder, prediction: ValueId, target: ValueId) -> Result<ValueId> {
        let log = b.log_softmax(prediction, 1)?;
        let product = b.mul(log, target)?;
        let sums = b.sum(product, &[1], false)?;
        let mean = b.mean_all(sums)?;
        b.neg(mean)
    }
}

/// Softmax cross-entropy with class indices of which some probability is spread over all classes
/// (Szegedy et al. 2016; PyTorch's `CrossEntropyLoss` with `label_smoothing`): logits
/// `[N, C, ..]`, indices `[N, ..]` (`i64`), the mean over all entries.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct SmoothedCrossEntropy {
    /// The probability that is spread, in `[0, 1]`.
    pub label_smoothing: f64,
}

impl Default for SmoothedCrossEntropy {
    fn default() -> SmoothedCrossEntropy {
        SmoothedCrossEntropy {
            label_smoothing: 0.1,
        }
    }
}

impl Loss for SmoothedCrossEntropy {
    fn target_type(&self, prediction: &TensorType) -> Result<TensorType> {
        if !(0.0..=1.0).contains(&self.label_smoothing) {
            return Err(Error::invalid(format!(
                "label smoothing is {}, not in [0, 1]",
                self.label_smoothing
            )));
        }
        CrossEntropy.target_type(prediction)
    }

    fn build(&self, b: &mut GraphBuilder, prediction: ValueId, target: ValueId) -> Result<ValueId> {
        let of_label = CrossEntropy.build(b, prediction, target)?;
        // The mean over the classes is the cross-entropy with each of them.
        let log = b.log_softmax(prediction, 1)?;
        let of_all = b.mean_all(log)?;
        let of_label = b.mul_scalar(of_label, 1.0 - self.label_smoothing)?;
        let of_all = b.mul_scalar(of_all, -self.label_smoothing)?;
        b.add(of_label, of_all)
    }
}
