//! Sparsity as a function of progress.

use opt_core::Result;

use crate::select::sparsity_in_range;

/// The sparsity at a point of a pruning run.
pub trait SparsitySchedule: std::fmt::Debug + Send + Sync {
    /// The sparsity when a share of the run is done, from 0 (before) to 1 (the end).
    fn sparsity(&self, progress: f64) -> f64;
}

/// One sparsity throughout: one-shot pruning.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Constant(
    /// The sparsity.
    pub f64,
);

/// `final + (initial - final) * (1 - progress)^3`: fast at first, when there is much to remove,
/// slow at the end (Zhu & Gupta 2017, equation 1).
///
/// ```
/// use opt_prune::{PolynomialDecay, SparsitySchedule};
///
/// let schedule = PolynomialDecay::new(0.0, 0.8)?;
/// assert_eq!(schedule.sparsity(0.0), 0.0);
/// assert!((schedule.sparsity(0.5) - 0.7).abs() < 1e-12);
/// assert_eq!(schedule.sparsity(1.0), 0.8);
/// # Ok::<(), opt_core::Error>(())
/// ```
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct PolynomialDecay {
    initial: f64,
    last: f64,
}

impl PolynomialDecay {
    /// From one sparsity to another.
    ///
    /// # Errors
    /// If either is not in `[0, 1]`.
    pub fn new(initial: f64, last: f64) -> Result<PolynomialDecay> {
        sparsity_in_range(initial)?;
        sparsity_in_range(last)?;
        Ok(PolynomialDecay { initial, last })
    }
}

impl SparsitySchedule for Constant {
    fn sparsity(&self, _: f64) -> f64 {
        self.0
    }
}

impl SparsitySchedule for PolynomialDecay {
    fn sparsity(&self, progress: f64) -> f64 {
        let left = 1.0 - progress.clamp(0.0, 1.0);
        self.last + (self.initial - self.last) * left.powi(3)
    }
}
