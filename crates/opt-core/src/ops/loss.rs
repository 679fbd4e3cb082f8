//! Losses that are ops; the others are a few nodes each and stand in `opt-train`.

use crate::{GraphBuilder, Result, ValueId};

/// `-log_softmax(x)[label]` along axis 1: inputs are logits `[N, C, ..]` and class indices
/// `[N, ..]` (`i64`), the output `[N, ..]` is one loss an entry. A label out of `0..C` is an
/// error at run time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SoftmaxCrossEntropy;

impl GraphBuilder {
    /// Softmax cross-entropy of each entry; take the mean for a loss.
    ///
    /// # Errors
    /// If the shapes are not those that [`SoftmaxCrossEntropy`] names.
    pub fn softmax_cross_entropy(&mut self, logits: ValueId, labels: ValueId) -> Result<ValueId> {
        self.op(SoftmaxCrossEntropy, &[logits, labels])
    }
}

crate::ops::rules::pending_rules!(SoftmaxCrossEntropy);
