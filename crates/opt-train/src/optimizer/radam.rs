//! RAdam.

use opt_core::{GraphBuilder, Result, ValueId};

use super::adam::{correction, power_rest};
use super::{Optimizer, Slots, adaptive_in_range, decayed, in_range, moments};

/// Rectified Adam (Liu et al. 2020), as PyTorch has it: while the variance of the adaptive rate is
/// not known well (in the first steps), momentum without it; then Adam with a factor that grows
/// to 1.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct RAdam {
    /// Smoothing of the mean, in `[0, 1)`.
    pub beta1: f64,
    /// Smoothing of the mean square, in `[0, 1)`.
    pub beta2: f64,
    /// Added to the root.
    pub eps: f64,
    /// L2 penalty, added to the gradient.
    pub weight_decay: f64,
}

impl Default for RAdam {
    fn default() -> RAdam {
        RAdam {
            beta1: 0.9,
            beta2: 0.999,
            eps: 1e-8,
            weight_decay: 0.0,
        }
    }
}

impl RAdam {
    /// The length of the simple moving average that the step's exponential one stands for.
    fn length(&self, b: &mut GraphBuilder, step: ValueId) -> Result<ValueId> {
        let rest = power_rest(b, step, self.beta2)?;
        // beta2^t = 1 - (1 - beta2^t)
        let power = b.neg(rest)?;
        let power = b.add_scalar(power, 1.0)?;
        let above = b.mul(step, power)?;
        let above = b.mul_scalar(above, -2.0)?;
        let lost = b.div(above, rest)?;
        b.add_scalar(lost, self.longest())
    }

    /// Its limit.
    fn longest(&self) -> f64 {
        2.0 / (1.0 - self.beta2) - 1.0
    }

    /// The factor of the adaptive rate: 0 while it is not used.
    fn rectification(&self, b: &mut GraphBuilder, step: ValueId) -> Result<ValueId> {
        let (length, limit) = (self.length(b, step)?, self.longest());
        let five = b.scalar_like(length, 5.0)?;
        // The root is of a negative number where the factor is not used.
        let safe = b.maximum(length, five)?;
        let (minus4, minus2) = (b.add_scalar(safe, -4.0)?, b.add_scalar(safe, -2.0)?);
        let above = b.mul(minus4, minus2)?;
        let above = b.mul_scalar(above, limit / ((limit - 4.0) * (limit - 2.0)))?;
        let square = b.div(above, safe)?;
        let factor = b.sqrt(square)?;
        let zero = b.scalar_like(length, 0.0)?;
        let used = b.greater(length, five)?;
        b.select(used, factor, zero)
    }
}

impl Optimizer for RAdam {
    fn update(
        &self,
        b: &mut GraphBuilder,
        param: ValueId,
        grad: ValueId,
        lr: ValueId,
        slots: &mut Slots,
    ) -> Result<ValueId> {
        adaptive_in_range((self.beta1, self.beta2), self.eps, self.weight_decay)?;
        if self.longest() <= 4.0 {
            // The rectification divides by what is left of 4.
            in_range("beta2", self.beta2, 0.6 + f64::EPSILON, 1.0)?;
        }
        let dtype = b.type_of(param).dtype;
        let g = decayed(b, param, grad, self.weight_decay)?;
        let betas = (self.beta1, self.beta2);
        let (new_m, new_v) = moments(b, param, g, betas, slots)?;
        let first = slots.of_step(b, dtype, |b, t| correction(b, t, self.beta1, false))?;
        let step = slots.step(b)?;
        let rectification = self.rectification(b, step)?;
        let rest = power_rest(b, step, self.beta2)?;
        let root = b.sqrt(rest)?;
        let factor = b.mul(rectification, root)?;
        let factor = b.cast(factor, dtype)?;
        let zero = b.scalar_like(rectification, 0.0)?;
        let unused = b.equal(rectification, zero)?;
        let plain = b.cast(unused, dtype)?;
        // Either of the two factors is 0.
        let root = b.sqrt(new_v)?;
        let root = b.add_scalar(root, self.eps)?;
        let adaptive = b.reciprocal(root)?;
        let adaptive = b.mul(adaptive, factor)?;
        let scale = b.add(adaptive, plain)?;
        let rate = b.mul(lr, first)?;
        let d = b.mul(new_m, rate)?;
        let d = b.mul(d, scale)?;
        b.sub(param, d)
    }
}
