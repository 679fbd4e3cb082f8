//! Random scores: what any criterion has to beat.

use opt_core::Result;
use opt_core::random::Philox;

use super::{Criterion, ScoreContext};

/// Uniform random scores, by the context's seed and the parameter.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Random;

impl Criterion for Random {
    fn score(&self, cx: &ScoreContext<'_>) -> Result<Vec<f64>> {
        let stream = Philox::new(cx.seed);
        let step = cx.value.index() as u64;
        let len = cx.tensor.len() as u64;
        Ok((0..len).map(|i| stream.uniform(step, i)).collect())
    }
}
