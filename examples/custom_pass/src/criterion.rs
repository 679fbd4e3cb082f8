//! A pruning criterion of our own.

use opt_core::Result;
use opt_prune::{Criterion, ScoreContext};

/// `|w - mean(w)|`: entries near the tensor's mean matter least.
#[derive(Debug, Clone, Copy, Default)]
pub struct FromMean;

impl Criterion for FromMean {
    fn score(&self, cx: &ScoreContext<'_>) -> Result<Vec<f64>> {
        let data = cx.tensor.to_f64s();
        let mean = data.iter().sum::<f64>() / data.len().max(1) as f64;
        Ok(data.into_iter().map(|w| (w - mean).abs()).collect())
    }
}
