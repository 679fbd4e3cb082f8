//! Adagrad.

use opt_core::{GraphBuilder, Result, ValueId};

use super::{Optimizer, Slots, decayed, in_range};

/// Adagrad (Duchi et al. 2011), as PyTorch has it: the gradient divided by the root of the sum
/// of its squares so far.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Adagrad {
    /// Decay of the learning rate: `lr / (1 + (step - 1) * lr_decay)`.
    pub lr_decay: f64,
    /// Initial sum of squares.
    pub initial_accumulator: f64,
    /// Added to the root.
    pub eps: f64,
    /// L2 penalty, added to the gradient.
    pub weight_decay: f64,
}

impl Default for Adagrad {
    fn default() -> Adagrad {
        Adagrad {
            lr_decay: 0.0,
            initial_accumulator: 0.0,
            eps: 1e-10,
            weight_decay: 0.0,
        }
    }
}

impl Optimizer for Adagrad {
    fn update(
        &self,
        b: &mut GraphBuilder,
        param: ValueId,
        grad: ValueId,
        lr: ValueId,
        slots: &mut Slots,
    ) -> Result<ValueId> {
        in_range("lr decay", self.lr_decay, 0.0, f64::INFINITY)?;
        in_range(
            "initial accumulator",
            self.initial_accumulator,
            0.0,
            f64::INFINITY,
        )?;
        in_range("eps", self.eps, 0.0, f64::INFINITY)?;
        in_range("weight decay", self.weight_decay, 0.0, f64::INFINITY)?;
        let g = decayed(b, param, grad, self.weight_decay)?;
        let sum = slots.get(b, param, "sum", self.initial_accumulator)?;
        let g2 = b.mul(g, g)?;
        let new_sum = b.add(sum, g2)?;
        b.assign(sum, new_sum)?;
        let mut rate = lr;
        if self.lr_decay > 0.0 {
            let dtype = b.type_of(param).dtype;
            let factor = slots.of_step(b, dtype, |b, step| {
                let before = b.add_scalar(step, -1.0)?;
                let grown = b.mul_scalar(before, self.lr_decay)?;
                let grown = b.add_scalar(grown, 1.0)?;
                b.reciprocal(grown)
            })?;
            rate = b.mul(lr, factor)?;
        }
        let root = b.sqrt(new_sum)?;
        let root = b.add_scalar(root, self.eps)?;
        let d = b.div(g, root)?;
        let step = b.mul(d, rate)?;
        b.sub(param, step)
    }
}
