//! Adam and AdamW.

use opt_core::{GraphBuilder, Result, ValueId};

use super::{Optimizer, Slots, adaptive_in_range, decayed, in_range, moments, shrunk};

/// Adam (Kingma & Ba 2015, algorithm 1), with both bias corrections.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Adam {
    /// Smoothing of the gradient's running mean, in `[0, 1)`.
    pub beta1: f64,
    /// Smoothing of the squared gradient's running mean, in `[0, 1)`.
    pub beta2: f64,
    /// Added to the root.
    pub eps: f64,
    /// L2 penalty, added to the gradient; see [`AdamW`] for the decoupled kind.
    pub weight_decay: f64,
    /// Whether the largest mean square so far takes the place of the last one (AMSGrad, Reddi et
    /// al. 2018).
    pub amsgrad: bool,
}

impl Default for Adam {
    fn default() -> Adam {
        Adam {
            beta1: 0.9,
            beta2: 0.999,
            eps: 1e-8,
            weight_decay: 0.0,
            amsgrad: false,
        }
    }
}

/// Adam with decoupled weight decay (Loshchilov & Hutter 2019): the parameter shrinks by
/// `1 - lr * weight_decay` before the step.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct AdamW {
    /// The step.
    pub adam: Adam,
    /// Decoupled decay.
    pub weight_decay: f64,
}

impl Default for AdamW {
    fn default() -> AdamW {
        AdamW {
            adam: Adam::default(),
            weight_decay: 0.01,
        }
    }
}

impl Adam {
    /// The parameter after a step from `from` along the corrected mean.
    fn step(
        &self,
        b: &mut GraphBuilder,
        (param, from): (ValueId, ValueId),
        grad: ValueId,
        lr: ValueId,
        slots: &mut Slots,
    ) -> Result<ValueId> {
        adaptive_in_range((self.beta1, self.beta2), self.eps, self.weight_decay)?;
        let dtype = b.type_of(param).dtype;
        let g = decayed(b, param, grad, self.weight_decay)?;
        let betas = (self.beta1, self.beta2);
        let (new_m, new_v) = moments(b, param, g, betas, slots)?;
        let first = slots.of_step(b, dtype, |b, t| correction(b, t, self.beta1, false))?;
        let second = slots.of_step(b, dtype, |b, t| correction(b, t, self.beta2, true))?;
        let largest = match self.amsgrad {
            true => {
                let old = slots.get(b, param, "max_exp_avg_sq", 0.0)?;
                let largest = b.maximum(old, new_v)?;
                b.assign(old, largest)?;
                largest
            }
            false => new_v,
        };
        let root = b.sqrt(largest)?;
        let root = b.mul(root, second)?;
        let root = b.add_scalar(root, self.eps)?;
        let rate = b.mul(lr, first)?;
        let d = b.div(new_m, root)?;
        let d = b.mul(d, rate)?;
        b.sub(from, d)
    }
}

impl Optimizer for Adam {
    fn update(
        &self,
        b: &mut GraphBuilder,
        param: ValueId,
        grad: ValueId,
        lr: ValueId,
        slots: &mut Slots,
    ) -> Result<ValueId> {
        self.step(b, (param, param), grad, lr, slots)
    }
}

impl Optimizer for AdamW {
    fn update(
        &self,
        b: &mut GraphBuilder,
        param: ValueId,
        grad: ValueId,
        lr: ValueId,
        slots: &mut Slots,
    ) -> Result<ValueId> {
        in_range("weight decay", self.weight_decay, 0.0, f64::INFINITY)?;
        let from = shrunk(b, param, lr, self.weight_decay)?;
        self.adam.step(b, (param, from), grad, lr, slots)
    }
}

/// `1 - beta^t`
pub(super) fn power_rest(b: &mut GraphBuilder, step: ValueId, beta: f64) -> Result<ValueId> {
    let beta = b.scalar_like(step, beta)?;
    let power = b.pow(beta, step)?;
    let rest = b.neg(power)?;
    b.add_scalar(rest, 1.0)
}

/// `1 / (1 - beta^t)` or, with `root`, `1 / sqrt(1 - beta^t)`.
pub(super) fn correction(
    b: &mut GraphBuilder,
    step: ValueId,
    beta: f64,
    root: bool,
) -> Result<ValueId> {
    let rest = power_rest(b, step, beta)?;
    let rest = if root { b.sqrt(rest)? } else { rest };
    b.reciprocal(rest)
}
