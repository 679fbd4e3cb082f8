//! Adadelta.

use opt_core::{GraphBuilder, Result, ValueId};

use super::{Optimizer, Slots, blend, decayed, in_range};

/// Adadelta (Zeiler 2012), as PyTorch has it: the gradient times the root of a running mean of
/// squared steps over that of squared gradients. The paper's learning rate is 1.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Adadelta {
    /// Smoothing of both running means, in `[0, 1)`.
    pub rho: f64,
    /// Added under both roots.
    pub eps: f64,
    /// L2 penalty, added to the gradient.
    pub weight_decay: f64,
}

impl Default for Adadelta {
    fn default() -> Adadelta {
        Adadelta {
            rho: 0.9,
            eps: 1e-6,
            weight_decay: 0.0,
        }
    }
}

impl Optimizer for Adadelta {
    fn update(
        &self,
        b: &mut GraphBuilder,
        param: ValueId,
        grad: ValueId,
        lr: ValueId,
        slots: &mut Slots,
    ) -> Result<ValueId> {
        in_range("rho", self.rho, 0.0, 1.0)?;
        in_range("eps", self.eps, 0.0, f64::INFINITY)?;
        in_range("weight decay", self.weight_decay, 0.0, f64::INFINITY)?;
        let g = decayed(b, param, grad, self.weight_decay)?;
        let square = slots.get(b, param, "square_avg", 0.0)?;
        let steps = slots.get(b, param, "acc_delta", 0.0)?;
        let g2 = b.mul(g, g)?;
        let new_square = blend(b, self.rho, square, 1.0 - self.rho, g2)?;
        b.assign(square, new_square)?;
        let below = b.add_scalar(new_square, self.eps)?;
        let below = b.sqrt(below)?;
        let above = b.add_scalar(steps, self.eps)?;
        let above = b.sqrt(above)?;
        let ratio = b.div(above, below)?;
        let delta = b.mul(ratio, g)?;
        let delta2 = b.mul(delta, delta)?;
        let new_steps = blend(b, self.rho, steps, 1.0 - self.rho, delta2)?;
        b.assign(steps, new_steps)?;
        let step = b.mul(delta, lr)?;
        b.sub(param, step)
    }
}
