//! Warm-up.

use opt_core::Result;

use super::Schedule;
use crate::Epoch;

/// The rate of another schedule times `(step + 1) / steps` for the first `steps` steps (Goyal et
/// al. 2017).
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Warmup<S> {
    /// Length of the warm-up.
    pub steps: u64,
    /// The schedule that is warmed up.
    pub then: S,
}

impl<S> Warmup<S> {
    fn factor(&self, step: u64) -> f64 {
        let factor = (step as f64 + 1.0) / self.steps.max(1) as f64;
        factor.min(1.0)
    }
}

impl<S: Schedule> Schedule for Warmup<S> {
    fn lr(&self, step: u64, total: u64) -> f64 {
        self.then.lr(step, total) * self.factor(step)
    }

    fn lr_after(&self, step: u64, total: u64, epochs: &[Epoch]) -> f64 {
        self.then.lr_after(step, total, epochs) * self.factor(step)
    }

    fn check(&self) -> Result<()> {
        self.then.check()
    }
}
