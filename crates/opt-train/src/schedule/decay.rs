//! Rates that fall by steps, exponentially or along a power.

use opt_core::Result;

use super::{Schedule, expect, rates};

/// `lr * gamma^(step / every)`, the exponent rounded down (PyTorch's `StepLR`).
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct StepDecay {
    /// The first rate.
    pub lr: f64,
    /// Steps between two decays, at least 1.
    pub every: u64,
    /// The factor of a decay.
    pub gamma: f64,
}

/// `lr * gamma^n` after `n` of the milestones (PyTorch's `MultiStepLR`).
///
/// ```
/// use opt_train::{MultiStepDecay, Schedule};
///
/// let schedule = MultiStepDecay { lr: 0.1, milestones: vec![100, 150], gamma: 0.5 };
/// assert_eq!([99, 100, 150].map(|step| schedule.lr(step, 200)), [0.1, 0.05, 0.025]);
/// ```
#[derive(Debug, Clone, PartialEq)]
pub struct MultiStepDecay {
    /// The first rate.
    pub lr: f64,
    /// The steps from which the rate is lower.
    pub milestones: Vec<u64>,
    /// The factor of a decay.
    pub gamma: f64,
}

/// `lr * gamma^step` (PyTorch's `ExponentialLR`).
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Exponential {
    /// The first rate.
    pub lr: f64,
    /// The factor of a step.
    pub gamma: f64,
}

/// `lr * (1 - step / total)^power` (PyTorch's `PolynomialLR` over the whole run): linear with a
/// power of 1.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Polynomial {
    /// The first rate.
    pub lr: f64,
    /// The power.
    pub power: f64,
}

impl Schedule for StepDecay {
    fn lr(&self, step: u64, _: u64) -> f64 {
        decayed(self.lr, self.gamma, step / self.every.max(1))
    }

    fn check(&self) -> Result<()> {
        expect(
            self.every > 0,
            "length between decays",
            self.every,
            "at least 1",
        )?;
        rates(&[self.lr, self.gamma])
    }
}

impl Schedule for MultiStepDecay {
    fn lr(&self, step: u64, _: u64) -> f64 {
        let passed = self.milestones.iter().filter(|&&m| m <= step).count();
        decayed(self.lr, self.gamma, passed as u64)
    }

    fn check(&self) -> Result<()> {
        rates(&[self.lr, self.gamma])
    }
}

impl Schedule for Exponential {
    fn lr(&self, step: u64, _: u64) -> f64 {
        decayed(self.lr, self.gamma, step)
    }

    fn check(&self) -> Result<()> {
        rates(&[self.lr, self.gamma])
    }
}

impl Schedule for Polynomial {
    fn lr(&self, step: u64, total: u64) -> f64 {
        let left = 1.0 - step as f64 / total.max(1) as f64;
        self.lr * left.max(0.0).powf(self.power)
    }

    fn check(&self) -> Result<()> {
        let power = self.power;
        expect(power.is_finite() && power > 0.0, "power", power, "above 0")?;
        rates(&[self.lr])
    }
}

fn decayed(lr: f64, gamma: f64, times: u64) -> f64 {
    lr * gamma.powi(i32::try_from(times).unwrap_or(i32::MAX))
}
