//! NAdam.

use opt_core::{DType, GraphBuilder, Result, ValueId};

use super::adam::correction;
use super::{Optimizer, Slots, adaptive_in_range, decayed, in_range, moments};

/// NAdam (Dozat 2016), as PyTorch has it: Adam with Nesterov's momentum, whose factor grows from
/// half of `beta1` to `beta1`.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct NAdam {
    /// Smoothing of the mean, in `[0, 1)`.
    pub beta1: f64,
    /// Smoothing of the mean square, in `[0, 1)`.
    pub beta2: f64,
    /// Added to the root.
    pub eps: f64,
    /// L2 penalty, added to the gradient.
    pub weight_decay: f64,
    /// How fast the momentum grows.
    pub momentum_decay: f64,
}

impl Default for NAdam {
    fn default() -> NAdam {
        NAdam {
            beta1: 0.9,
            beta2: 0.999,
            eps: 1e-8,
            weight_decay: 0.0,
            momentum_decay: 4e-3,
        }
    }
}

impl NAdam {
    /// `beta1 * (1 - 0.96^(step * momentum_decay) / 2)`, in `f64`.
    fn momentum(&self, b: &mut GraphBuilder, step: ValueId) -> Result<ValueId> {
        let base = b.scalar_like(step, 0.96)?;
        let exponent = b.mul_scalar(step, self.momentum_decay)?;
        let power = b.pow(base, exponent)?;
        let scaled = b.mul_scalar(power, -0.5 * self.beta1)?;
        b.add_scalar(scaled, self.beta1)
    }
}

/// `x / (1 - y)`
fn over_rest(b: &mut GraphBuilder, x: ValueId, y: ValueId) -> Result<ValueId> {
    let rest = b.neg(y)?;
    let rest = b.add_scalar(rest, 1.0)?;
    b.div(x, rest)
}

impl Optimizer for NAdam {
    fn update(
        &self,
        b: &mut GraphBuilder,
        param: ValueId,
        grad: ValueId,
        lr: ValueId,
        slots: &mut Slots,
    ) -> Result<ValueId> {
        adaptive_in_range((self.beta1, self.beta2), self.eps, self.weight_decay)?;
        in_range("momentum decay", self.momentum_decay, 0.0, f64::INFINITY)?;
        let dtype = b.type_of(param).dtype;
        let g = decayed(b, param, grad, self.weight_decay)?;
        let product = slots.number(b, "mu_product", 1.0)?;
        let betas = (self.beta1, self.beta2);
        let (new_m, new_v) = moments(b, param, g, betas, slots)?;

        let step = slots.step(b)?;
        let after = b.add_scalar(step, 1.0)?;
        let (mu, next) = (self.momentum(b, step)?, self.momentum(b, after)?);
        let new_product = b.mul(product, mu)?;
        b.assign(product, new_product)?;
        let both = b.mul(new_product, next)?;
        let rest = b.neg(mu)?;
        let rest = b.add_scalar(rest, 1.0)?;
        let of_g = over_rest(b, rest, new_product)?;
        let of_m = over_rest(b, next, both)?;

        let second = slots.of_step(b, dtype, |b, t| correction(b, t, self.beta2, true))?;
        let root = b.sqrt(new_v)?;
        let root = b.mul(root, second)?;
        let root = b.add_scalar(root, self.eps)?;
        let wide = b.cast(lr, DType::F64)?;
        let mut new = param;
        for (x, factor) in [(g, of_g), (new_m, of_m)] {
            let rate = b.mul(wide, factor)?;
            let rate = b.cast(rate, dtype)?;
            let d = b.div(x, root)?;
            let d = b.mul(d, rate)?;
            new = b.sub(new, d)?;
        }
        Ok(new)
    }
}
