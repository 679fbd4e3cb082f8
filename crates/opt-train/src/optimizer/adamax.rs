//! Adamax.

use opt_core::{GraphBuilder, Result, ValueId};

use super::adam::correction;
use super::{Optimizer, Slots, adaptive_in_range, blend, decayed};

/// Adamax (Kingma & Ba 2015, algorithm 2), as PyTorch has it: Adam with a decaying maximum of the
/// gradient's size in place of the root of its mean square.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Adamax {
    /// Smoothing of the mean, in `[0, 1)`.
    pub beta1: f64,
    /// Decay of the maximum, in `[0, 1)`.
    pub beta2: f64,
    /// Added to the gradient's size.
    pub eps: f64,
    /// L2 penalty, added to the gradient.
    pub weight_decay: f64,
}

impl Default for Adamax {
    fn default() -> Adamax {
        Adamax {
            beta1: 0.9,
            beta2: 0.999,
            eps: 1e-8,
            weight_decay: 0.0,
        }
    }
}

impl Optimizer for Adamax {
    fn update(
        &self,
        b: &mut GraphBuilder,
        param: ValueId,
        grad: ValueId,
        lr: ValueId,
        slots: &mut Slots,
    ) -> Result<ValueId> {
        adaptive_in_range((self.beta1, self.beta2), self.eps, self.weight_decay)?;
        let dtype = b.type_of(param).dtype;
        let g = decayed(b, param, grad, self.weight_decay)?;
        let m = slots.get(b, param, "exp_avg", 0.0)?;
        let u = slots.get(b, param, "exp_inf", 0.0)?;
        let new_m = blend(b, self.beta1, m, 1.0 - self.beta1, g)?;
        let size = b.abs(g)?;
        let size = b.add_scalar(size, self.eps)?;
        let old = b.mul_scalar(u, self.beta2)?;
        let new_u = b.maximum(old, size)?;
        b.assign(m, new_m)?;
        b.assign(u, new_u)?;
        let first = slots.of_step(b, dtype, |b, t| correction(b, t, self.beta1, false))?;
        let rate = b.mul(lr, first)?;
        let d = b.div(new_m, new_u)?;
        let d = b.mul(d, rate)?;
        b.sub(param, d)
    }
}
