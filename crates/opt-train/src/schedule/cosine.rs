//! Rates along a cosine.

use std::f64::consts::PI;

use opt_core::Result;

use super::{Schedule, expect, rates};

/// `min + (lr - min) * (1 + cos(pi * step / total)) / 2` (Loshchilov & Hutter 2017, PyTorch's
/// `CosineAnnealingLR`).
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Cosine {
    /// The first rate.
    pub lr: f64,
    /// The last rate.
    pub min: f64,
}

/// A cosine that starts again after each period, each period longer than the last by a factor
/// (SGDR, Loshchilov & Hutter 2017; PyTorch's `CosineAnnealingWarmRestarts`).
///
/// ```
/// use opt_train::{CosineRestarts, Schedule};
///
/// let schedule = CosineRestarts { lr: 0.1, min: 0.0, period: 10, factor: 2 };
/// // The periods start at steps 0, 10 and 30.
/// assert_eq!([0, 10, 30].map(|step| schedule.lr(step, 70)), [0.1, 0.1, 0.1]);
/// assert!((schedule.lr(20, 70) - 0.05).abs() < 1e-12);
/// ```
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct CosineRestarts {
    /// The first rate of a period.
    pub lr: f64,
    /// The rate towards which a period falls.
    pub min: f64,
    /// Steps of the first period, at least 1.
    pub period: u64,
    /// How many times longer than the last a period is, at least 1.
    pub factor: u64,
}

impl Cosine {
    /// From a rate to 0.
    pub fn new(lr: f64) -> Cosine {
        Cosine { lr, min: 0.0 }
    }
}

fn along(lr: f64, min: f64, done: f64) -> f64 {
    min + (lr - min) * (1.0 + (PI * done).cos()) / 2.0
}

impl Schedule for Cosine {
    fn lr(&self, step: u64, total: u64) -> f64 {
        along(self.lr, self.min, step as f64 / total.max(1) as f64)
    }

    fn check(&self) -> Result<()> {
        rates(&[self.lr, self.min])
    }
}

impl Schedule for CosineRestarts {
    fn lr(&self, step: u64, _: u64) -> f64 {
        let (mut at, mut period) = (step, self.period.max(1));
        if self.factor <= 1 {
            at %= period;
        }
        while at >= period {
            at -= period;
            period = period.saturating_mul(self.factor);
        }
        along(self.lr, self.min, at as f64 / period as f64)
    }

    fn check(&self) -> Result<()> {
        expect(self.period > 0, "period", self.period, "at least 1")?;
        expect(
            self.factor > 0,
            "factor of the period",
            self.factor,
            "at least 1",
        )?;
        rates(&[self.lr, self.min])
    }
}
