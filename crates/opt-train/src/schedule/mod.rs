//! Learning-rate schedules, one a file. Each counts in steps (updates), not in epochs.

mod cosine;
mod decay;
mod one_cycle;
mod plateau;
mod warmup;

pub use cosine::{Cosine, CosineRestarts};
pub use decay::{Exponential, MultiStepDecay, Polynomial, StepDecay};
pub use one_cycle::{Anneal, OneCycle};
pub use plateau::{Metric, ReduceOnPlateau};
pub use warmup::Warmup;

use opt_core::{Error, Result};

use crate::Epoch;

/// The learning rate as a function of the step, and of the epochs so far.
///
/// ```
/// use opt_train::{Cosine, Schedule, Warmup};
///
/// let schedule = Warmup { steps: 10, then: Cosine::new(1e-3) };
/// assert_eq!(schedule.lr(0, 1000), 1e-4);
/// assert!(schedule.lr(990, 1000) < 1e-6);
/// ```
pub trait Schedule: std::fmt::Debug + Send + Sync {
    /// The learning rate of a step (0 for the first) of `total`.
    fn lr(&self, step: u64, total: u64) -> f64;

    /// The learning rate of a step of `total` when these epochs are done. A function of its
    /// arguments alone, so that a resumed run goes on as it would have; at first that of the step.
    fn lr_after(&self, step: u64, total: u64, _epochs: &[Epoch]) -> f64 {
        self.lr(step, total)
    }

    /// Looks at the settings before anything is trained.
    ///
    /// # Errors
    /// If one is out of its range; here never.
    fn check(&self) -> Result<()> {
        Ok(())
    }
}

/// One rate throughout.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Constant(
    /// The rate.
    pub f64,
);

impl Schedule for Constant {
    fn lr(&self, _: u64, _: u64) -> f64 {
        self.0
    }

    fn check(&self) -> Result<()> {
        rates(&[self.0])
    }
}

/// Fails unless learning rates are finite and not negative.
fn rates(rates: &[f64]) -> Result<()> {
    match rates.iter().find(|r| !(r.is_finite() && **r >= 0.0)) {
        None => Ok(()),
        Some(rate) => Err(Error::invalid(format!(
            "a learning rate of {rate}; it has to be finite and at least 0"
        ))),
    }
}

/// Fails unless a condition on a setting holds.
fn expect(holds: bool, what: &str, value: impl std::fmt::Display, range: &str) -> Result<()> {
    if holds {
        return Ok(());
    }
    Err(Error::invalid(format!(
        "the schedule's {what} is {value}, not {range}"
    )))
}
