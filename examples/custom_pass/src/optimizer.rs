//! An optimizer of our own: Lion.

use opt_core::{GraphBuilder, Result, ValueId};
use opt_train::{Optimizer, Slots};

/// Steps of equal length along the sign of a blend of gradient and momentum, with decoupled
/// weight decay (Chen et al. 2023, algorithm 2).
#[derive(Debug, Clone, PartialEq)]
pub struct Lion {
    /// Weight of the momentum in the step.
    pub beta1: f64,
    /// Smoothing of the momentum.
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

/// `beta * momentum + (1 - beta) * grad`.
fn blend(b: &mut GraphBuilder, beta: f64, momentum: ValueId, grad: ValueId) -> Result<ValueId> {
    let old = b.mul_scalar(momentum, beta)?;
    let new = b.mul_scalar(grad, 1.0 - beta)?;
    b.add(old, new)
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
        let momentum = slots.get(b, param, "momentum", 0.0)?;
        let blended = blend(b, self.beta1, momentum, grad)?;
        let sign = b.sign(blended)?;
        let next = blend(b, self.beta2, momentum, grad)?;
        b.assign(momentum, next)?;
        let decay = b.mul_scalar(param, self.weight_decay)?;
        let direction = b.add(sign, decay)?;
        let step = b.mul(direction, lr)?;
        b.sub(param, step)
    }
}
