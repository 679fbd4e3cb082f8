//! Sparsity as a function of progress.

use opt_core::{Error, Result};

use crate::select::sparsity_in_range;

/// The sparsity at a point of a pruning run.
pub trait SparsitySchedule: std::fmt::Debug + Send + Sync {
    /// The sparsity when a share of the run is done, from 0 (before) to 1 (the end).
    fn sparsity(&self, progress: f64) -> f64;
}

impl<S: SparsitySchedule + ?Sized> SparsitySchedule for Box<S> {
    fn sparsity(&self, progress: f64) -> f64 {
        self.as_ref().sparsity(progress)
    }
}

/// One sparsity throughout: one-shot pruning.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Constant(
    /// The sparsity.
    pub f64,
);

impl SparsitySchedule for Constant {
    fn sparsity(&self, _: f64) -> f64 {
        self.0
    }
}

/// `last + (initial - last) * (1 - progress)^power`.
///
/// With the power 3 it is fast at first, when there is much to remove, and slow at the end (Zhu &
/// Gupta 2017, equation 1); with the power 1 it is a straight line.
///
/// ```
/// use opt_prune::{PolynomialDecay, SparsitySchedule};
///
/// let schedule = PolynomialDecay::new(0.0, 0.8)?;
/// assert_eq!(schedule.sparsity(0.0), 0.0);
/// assert!((schedule.sparsity(0.5) - 0.7).abs() < 1e-12);
/// assert_eq!(schedule.sparsity(1.0), 0.8);
/// assert_eq!(PolynomialDecay::linear(0.0, 0.8)?.sparsity(0.5), 0.4);
/// # Ok::<(), opt_core::Error>(())
/// ```
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct PolynomialDecay {
    initial: f64,
    last: f64,
    power: f64,
}

impl PolynomialDecay {
    /// From one sparsity to another, by the third power.
    ///
    /// # Errors
    /// If either is not in `[0, 1]`.
    pub fn new(initial: f64, last: f64) -> Result<PolynomialDecay> {
        PolynomialDecay::with_power(initial, last, 3.0)
    }

    /// From one sparsity to another in a straight line.
    ///
    /// # Errors
    /// If either is not in `[0, 1]`.
    pub fn linear(initial: f64, last: f64) -> Result<PolynomialDecay> {
        PolynomialDecay::with_power(initial, last, 1.0)
    }

    /// From one sparsity to another by a power.
    ///
    /// # Errors
    /// If either is not in `[0, 1]`, or the power is not a positive number.
    pub fn with_power(initial: f64, last: f64, power: f64) -> Result<PolynomialDecay> {
        sparsity_in_range(initial)?;
        sparsity_in_range(last)?;
        if !(power > 0.0 && power.is_finite()) {
            return Err(Error::invalid(format!(
                "the power is {power}, expected a positive number"
            )));
        }
        Ok(PolynomialDecay {
            initial,
            last,
            power,
        })
    }
}

impl SparsitySchedule for PolynomialDecay {
    fn sparsity(&self, progress: f64) -> f64 {
        let left = 1.0 - progress.clamp(0.0, 1.0);
        self.last + (self.initial - self.last) * left.powf(self.power)
    }
}

/// The same share of what is left at equal steps: the density goes from `1 - initial` to
/// `1 - last` as a geometric sequence. Frankle & Carbin 2019 prune so: in n rounds to a density p,
/// `1 - p^(1/n)` of the surviving weights each.
///
/// ```
/// use opt_prune::{Geometric, SparsitySchedule};
///
/// // A fifth of what is left, twice.
/// let schedule = Geometric::new(0.0, 0.36)?;
/// assert!((schedule.sparsity(0.5) - 0.2).abs() < 1e-12);
/// # Ok::<(), opt_core::Error>(())
/// ```
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Geometric {
    initial: f64,
    last: f64,
}

impl Geometric {
    /// From one sparsity to another. To 1 there is no such sequence: it jumps at the end.
    ///
    /// # Errors
    /// If either is not in `[0, 1]`.
    pub fn new(initial: f64, last: f64) -> Result<Geometric> {
        sparsity_in_range(initial)?;
        sparsity_in_range(last)?;
        Ok(Geometric { initial, last })
    }
}

impl SparsitySchedule for Geometric {
    fn sparsity(&self, progress: f64) -> f64 {
        let progress = progress.clamp(0.0, 1.0);
        if progress == 1.0 {
            return self.last;
        }
        if self.last == 1.0 || self.initial == 1.0 {
            return self.initial;
        }
        let (from, to) = (1.0 - self.initial, 1.0 - self.last);
        1.0 - from * (to / from).powf(progress)
    }
}

/// Another schedule between two points of a run: before it begins that schedule's first sparsity,
/// after it ends its last, so that a model trains densely at first and settles in the end (Keras'
/// `begin_step` and `end_step`, as shares of the run).
///
/// ```
/// use opt_prune::{Between, Constant, PolynomialDecay, SparsitySchedule};
///
/// let schedule = Between::new(0.25, 0.75, PolynomialDecay::linear(0.2, 0.6)?)?;
/// assert_eq!(schedule.sparsity(0.1), 0.2);
/// assert!((schedule.sparsity(0.5) - 0.4).abs() < 1e-12);
/// assert_eq!(schedule.sparsity(0.9), 0.6);
///
/// // Nothing for the first half of the run, then all at once.
/// let late = Between::new(0.5, 1.0, Constant(0.9))?.dense_before();
/// assert_eq!((late.sparsity(0.4), late.sparsity(0.5)), (0.0, 0.9));
/// # Ok::<(), opt_core::Error>(())
/// ```
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Between<S> {
    begin: f64,
    end: f64,
    schedule: S,
    dense_before: bool,
}

impl<S: SparsitySchedule> Between<S> {
    /// A schedule between two shares of the run.
    ///
    /// # Errors
    /// Unless `0 <= begin < end <= 1`.
    pub fn new(begin: f64, end: f64, schedule: S) -> Result<Between<S>> {
        if !(0.0 <= begin && begin < end && end <= 1.0) {
            return Err(Error::invalid(format!(
                "a schedule from {begin} to {end} of a run, expected 0 <= begin < end <= 1"
            )));
        }
        Ok(Between {
            begin,
            end,
            schedule,
            dense_before: false,
        })
    }

    /// Sparsity 0 before it begins.
    #[must_use]
    pub fn dense_before(mut self) -> Between<S> {
        self.dense_before = true;
        self
    }
}

impl<S: SparsitySchedule> SparsitySchedule for Between<S> {
    fn sparsity(&self, progress: f64) -> f64 {
        if self.dense_before && progress < self.begin {
            return 0.0;
        }
        let inner = (progress - self.begin) / (self.end - self.begin);
        self.schedule.sparsity(inner.clamp(0.0, 1.0))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn geometric_rounds_remove_the_same_share() {
        let schedule = Geometric::new(0.0, 0.98).unwrap();
        let density: Vec<f64> = (0..=17)
            .map(|r| 1.0 - schedule.sparsity(f64::from(r) / 17.0))
            .collect();
        for pair in density.windows(2) {
            assert!((pair[1] / pair[0] - 0.02f64.powf(1.0 / 17.0)).abs() < 1e-12);
        }
        assert_eq!(schedule.sparsity(1.0), 0.98);
        assert_eq!(Geometric::new(0.1, 1.0).unwrap().sparsity(0.9), 0.1);
    }

    #[test]
    fn what_is_out_of_range_is_an_error() {
        for bad in [-0.1, 1.1, f64::NAN] {
            assert!(PolynomialDecay::new(bad, 0.5).is_err());
            assert!(Geometric::new(0.0, bad).is_err());
            assert!(Between::new(bad, 1.0, Constant(0.5)).is_err());
        }
        assert!(PolynomialDecay::with_power(0.0, 0.5, 0.0).is_err());
        assert!(Between::new(0.5, 0.5, Constant(0.5)).is_err());
    }
}
