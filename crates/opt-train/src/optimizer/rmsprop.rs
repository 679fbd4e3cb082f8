//! RMSprop.

use opt_core::{GraphBuilder, Result, ValueId};

use super::{Optimizer, Slots, blend, decayed, in_range};

/// RMSprop (Tieleman & Hinton 2012), as PyTorch has it: the gradient divided by the root of a
/// running mean of its square.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct RmsProp {
    /// Smoothing of the running mean, in `[0, 1)`.
    pub alpha: f64,
    /// Added to the root.
    pub eps: f64,
    /// Factor of the velocity; 0 is none.
    pub momentum: f64,
    /// Whether the running variance replaces the running mean square.
    pub centered: bool,
    /// L2 penalty, added to the gradient.
    pub weight_decay: f64,
}

impl Default for RmsProp {
    fn default() -> RmsProp {
        RmsProp {
            alpha: 0.99,
            eps: 1e-8,
            momentum: 0.0,
            centered: false,
            weight_decay: 0.0,
        }
    }
}

impl Optimizer for RmsProp {
    fn update(
        &self,
        b: &mut GraphBuilder,
        param: ValueId,
        grad: ValueId,
        lr: ValueId,
        slots: &mut Slots,
    ) -> Result<ValueId> {
        in_range("alpha", self.alpha, 0.0, 1.0)?;
        in_range("momentum", self.momentum, 0.0, 1.0)?;
        in_range("eps", self.eps, 0.0, f64::INFINITY)?;
        in_range("weight decay", self.weight_decay, 0.0, f64::INFINITY)?;
        let g = decayed(b, param, grad, self.weight_decay)?;
        let square = slots.get(b, param, "square_avg", 0.0)?;
        let g2 = b.mul(g, g)?;
        let new_square = blend(b, self.alpha, square, 1.0 - self.alpha, g2)?;
        b.assign(square, new_square)?;
        let mut variance = new_square;
        if self.centered {
            let mean = slots.get(b, param, "grad_avg", 0.0)?;
            let new_mean = blend(b, self.alpha, mean, 1.0 - self.alpha, g)?;
            b.assign(mean, new_mean)?;
            let mean2 = b.mul(new_mean, new_mean)?;
            variance = b.sub(variance, mean2)?;
        }
        let root = b.sqrt(variance)?;
        let root = b.add_scalar(root, self.eps)?;
        let mut d = b.div(g, root)?;
        if self.momentum > 0.0 {
            let buffer = slots.get(b, param, "momentum_buffer", 0.0)?;
            d = blend(b, self.momentum, buffer, 1.0, d)?;
            b.assign(buffer, d)?;
        }
        let step = b.mul(d, lr)?;
        b.sub(param, step)
    }
}
