//! Stochastic gradient descent.

use opt_core::{Error, GraphBuilder, Result, ValueId};

use super::{Optimizer, Slots, blend, decayed, in_range};

/// Gradient descent, `p - lr * g`: with batches as large as the data set, the full-batch method.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct GradientDescent;

/// Stochastic gradient descent with momentum, Nesterov's variant and weight decay: PyTorch's
/// `SGD`, whose learning rate is applied after the momentum (Sutskever et al. 2013 apply it
/// before).
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Sgd {
    /// Factor of the velocity, in `[0, 1)`.
    pub momentum: f64,
    /// Part of the gradient that does not enter the velocity, but for the first step.
    pub dampening: f64,
    /// Whether to look ahead by the velocity.
    pub nesterov: bool,
    /// L2 penalty, added to the gradient.
    pub weight_decay: f64,
}

impl Sgd {
    /// With a momentum.
    pub fn momentum(momentum: f64) -> Sgd {
        Sgd {
            momentum,
            ..Sgd::default()
        }
    }

    /// With Nesterov's momentum.
    pub fn nesterov(momentum: f64) -> Sgd {
        Sgd {
            nesterov: true,
            ..Sgd::momentum(momentum)
        }
    }
}

fn descend(b: &mut GraphBuilder, param: ValueId, d: ValueId, lr: ValueId) -> Result<ValueId> {
    let step = b.mul(d, lr)?;
    b.sub(param, step)
}

impl Optimizer for GradientDescent {
    fn update(
        &self,
        b: &mut GraphBuilder,
        param: ValueId,
        grad: ValueId,
        lr: ValueId,
        _: &mut Slots,
    ) -> Result<ValueId> {
        descend(b, param, grad, lr)
    }
}

impl Optimizer for Sgd {
    fn update(
        &self,
        b: &mut GraphBuilder,
        param: ValueId,
        grad: ValueId,
        lr: ValueId,
        slots: &mut Slots,
    ) -> Result<ValueId> {
        in_range("momentum", self.momentum, 0.0, 1.0)?;
        in_range("weight decay", self.weight_decay, 0.0, f64::INFINITY)?;
        in_range("dampening", self.dampening, 0.0, f64::INFINITY)?;
        if self.nesterov && (self.momentum == 0.0 || self.dampening != 0.0) {
            return Err(Error::invalid(format!(
                "Nesterov's variant needs a momentum above 0 and no dampening, found {} and {}",
                self.momentum, self.dampening
            )));
        }
        let mut d = decayed(b, param, grad, self.weight_decay)?;
        if self.momentum > 0.0 {
            let buffer = slots.get(b, param, "momentum_buffer", 0.0)?;
            let mut velocity = blend(b, self.momentum, buffer, 1.0 - self.dampening, d)?;
            if self.dampening != 0.0 {
                let step = slots.step(b)?;
                let one = b.scalar_like(step, 1.0)?;
                let first = b.equal(step, one)?;
                velocity = b.select(first, d, velocity)?;
            }
            b.assign(buffer, velocity)?;
            d = if self.nesterov {
                blend(b, 1.0, d, self.momentum, velocity)?
            } else {
                velocity
            };
        }
        descend(b, param, d, lr)
    }
}
