//! Lion.

use opt_core::{GraphBuilder, Result, ValueId};

use super::{Optimizer, Slots, blend, in_range};

/// Lion (Chen et al. 2023, algorithm 2): a step of equal length in every entry, against the sign
/// of a blend of gradient and momentum; weight decay is decoupled. Learning rates are a third to
/// a tenth of Adam's.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Lion {
    /// Weight of the momentum in the step, in `[0, 1)`.
    pub beta1: f64,
    /// Smoothing of the momentum, in `[0, 1)`.
    pub beta2: f64,
    /// Decoupled weight decay.
    pub weight_decay: f64,
}

impl Default for Lion {
    fn default() -> Lion {
        Lion {
            beta1: 0.9,
            beta2: 0.99,
            weight_decay: 0.0,
        }
    }
}

impl Optimizer for Lion {
    fn update(
        &self,
        b: &mut GraphBuilder,
        param: ValueId,
        grad: ValueId,
        lr: ValueId,
        slots: &mut Slots,
    ) -> Result<ValueId> {
        in_range("beta1", self.beta1, 0.0, 1.0)?;
        in_range("beta2", self.beta2, 0.0, 1.0)?;
        in_range("weight decay", self.weight_decay, 0.0, f64::INFINITY)?;
        let m = slots.get(b, param, "exp_avg", 0.0)?;
        let blended = blend(b, self.beta1, m, 1.0 - self.beta1, grad)?;
        let new_m = blend(b, self.beta2, m, 1.0 - self.beta2, grad)?;
        b.assign(m, new_m)?;
        let mut d = b.sign(blended)?;
        if self.weight_decay > 0.0 {
            let decay = b.mul_scalar(param, self.weight_decay)?;
            d = b.add(d, decay)?;
        }
        let step = b.mul(d, lr)?;
        b.sub(param, step)
    }
}
