//! Learning-rate schedules.

/// The learning rate as a function of the step.
pub trait Schedule: std::fmt::Debug + Send + Sync {
    /// The learning rate of a step (0 for the first) of `total`.
    fn lr(&self, step: u64, total: u64) -> f64;
}

/// One rate throughout.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Constant(
    /// The rate.
    pub f64,
);

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

/// `min + (lr - min) * (1 + cos(pi * step / total)) / 2` (Loshchilov & Hutter 2017, PyTorch's
/// `CosineAnnealingLR`).
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Cosine {
    /// The first rate.
    pub lr: f64,
    /// The last rate.
    pub min: f64,
}

/// The rate of another schedule times `(step + 1) / steps` for the first `steps` steps.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Warmup<S> {
    /// Length of the warm-up.
    pub steps: u64,
    /// The schedule that is warmed up.
    pub then: S,
}

impl Schedule for Constant {
    fn lr(&self, _: u64, _: u64) -> f64 {
        self.0
    }
}

impl Schedule for StepDecay {
    fn lr(&self, step: u64, _: u64) -> f64 {
        let decays = i32::try_from(step / self.every.max(1)).unwrap_or(i32::MAX);
        self.lr * self.gamma.powi(decays)
    }
}

impl Cosine {
    /// From a rate to 0.
    pub fn new(lr: f64) -> Cosine {
        Cosine { lr, min: 0.0 }
    }
}

impl Schedule for Cosine {
    fn lr(&self, step: u64, total: u64) -> f64 {
        let done = step as f64 / total.max(1) as f64;
        self.min + (self.lr - self.min) * (1.0 + (std::f64::consts::PI * done).cos()) / 2.0
    }
}

impl<S: Schedule> Schedule for Warmup<S> {
    fn lr(&self, step: u64, total: u64) -> f64 {
        let factor = (step + 1) as f64 / self.steps.max(1) as f64;
        self.then.lr(step, total) * factor.min(1.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn schedules_pass_through_their_marks() {
        let close = |a: f64, b: f64| assert!((a - b).abs() < 1e-12, "{a} {b}");
        let step = StepDecay {
            lr: 1.0,
            every: 10,
            gamma: 0.1,
        };
        close(step.lr(9, 100), 1.0);
        close(step.lr(25, 100), 0.01);
        let cosine = Cosine { lr: 1.0, min: 0.2 };
        close(cosine.lr(0, 10), 1.0);
        close(cosine.lr(5, 10), 0.6);
        close(cosine.lr(10, 10), 0.2);
        let warm = Warmup {
            steps: 4,
            then: Constant(2.0),
        };
        close(warm.lr(0, 10), 0.5);
        close(warm.lr(3, 10), 2.0);
        close(warm.lr(9, 10), 2.0);
    }
}
