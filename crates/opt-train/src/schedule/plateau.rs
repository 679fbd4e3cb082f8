//! Lower rates where nothing improves.

use opt_core::Result;

use super::{Schedule, expect, rates};
use crate::Epoch;

/// What [`ReduceOnPlateau`] watches.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Metric {
    /// The validation loss, or the training loss where there is no validation set.
    #[default]
    Loss,
    /// The validation accuracy; epochs without one count as 0.
    Accuracy,
}

/// Multiplies the rate of another schedule by a factor whenever the metric has not improved for
/// some epochs (PyTorch's `ReduceLROnPlateau`).
///
/// ```
/// use opt_train::{Constant, CrossEntropy, ReduceOnPlateau, Sgd, Trainer};
///
/// let schedule = ReduceOnPlateau { patience: 3, ..ReduceOnPlateau::new(Constant(0.1)) };
/// let trainer = Trainer::new(CrossEntropy, Sgd::momentum(0.9), schedule);
/// # let _ = trainer;
/// ```
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct ReduceOnPlateau<S> {
    /// The schedule whose rate is reduced.
    pub of: S,
    /// What is watched.
    pub metric: Metric,
    /// The factor of a reduction, in `(0, 1)`.
    pub factor: f64,
    /// Epochs without improvement that are waited for.
    pub patience: u64,
    /// The share of the best value by which a better one has to differ.
    pub threshold: f64,
    /// Epochs after a reduction that do not count.
    pub cooldown: u64,
    /// The lowest rate.
    pub min_lr: f64,
}

impl<S> ReduceOnPlateau<S> {
    /// PyTorch's settings: a tenth of the rate after more than 10 epochs in which the loss did not
    /// fall by a ten-thousandth.
    pub fn new(of: S) -> ReduceOnPlateau<S> {
        ReduceOnPlateau {
            of,
            metric: Metric::Loss,
            factor: 0.1,
            patience: 10,
            threshold: 1e-4,
            cooldown: 0,
            min_lr: 0.0,
        }
    }

    /// How often the rate has been reduced.
    fn reductions(&self, epochs: &[Epoch]) -> u64 {
        let (mut best, mut bad, mut cooling, mut reductions) = (None, 0, 0, 0);
        for epoch in epochs {
            let value = match self.metric {
                Metric::Loss => epoch.val_loss.unwrap_or(epoch.loss),
                Metric::Accuracy => epoch.val_accuracy.unwrap_or(0.0),
            };
            let better = |best: f64| match self.metric {
                Metric::Loss => value < best * (1.0 - self.threshold),
                Metric::Accuracy => value > best * (1.0 + self.threshold),
            };
            if best.is_none_or(better) {
                best = Some(value);
                bad = 0;
            } else {
                bad += 1;
            }
            if cooling > 0 {
                cooling -= 1;
                bad = 0;
            }
            if bad > self.patience {
                reductions += 1;
                cooling = self.cooldown;
                bad = 0;
            }
        }
        reductions
    }
}

impl<S: Schedule> Schedule for ReduceOnPlateau<S> {
    fn lr(&self, step: u64, total: u64) -> f64 {
        self.of.lr(step, total)
    }

    fn lr_after(&self, step: u64, total: u64, epochs: &[Epoch]) -> f64 {
        let lr = self.of.lr_after(step, total, epochs);
        let times = i32::try_from(self.reductions(epochs)).unwrap_or(i32::MAX);
        (lr * self.factor.powi(times)).max(self.min_lr.min(lr))
    }

    fn check(&self) -> Result<()> {
        let factor = self.factor > 0.0 && self.factor < 1.0;
        expect(factor, "factor", self.factor, "between 0 and 1")?;
        let threshold = (0.0..1.0).contains(&self.threshold);
        expect(threshold, "threshold", self.threshold, "in [0, 1)")?;
        rates(&[self.min_lr])?;
        self.of.check()
    }
}
