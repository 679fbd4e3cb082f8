//! Optimizer steps for many parameters at once, in place.

use opt_core::Result;
use tch::Tensor;

use super::Kernel;
use crate::compile::fused::{Adam, Sgd};
use crate::native::{Arg, Operator, Outs, aten, atens};

static ADAM: Operator = Operator::new("_fused_adam_.tensor_lr");
static ADAMW: Operator = Operator::new("_fused_adamw_.tensor_lr");

/// Whether to leave the step out, where an input says so, and the other inputs.
fn guard<'a, 'b>(guarded: bool, x: &'a [&'b Tensor]) -> (Option<&'b Tensor>, &'a [&'b Tensor]) {
    match x {
        [found, rest @ ..] if guarded => (Some(found), rest),
        rest => (None, rest),
    }
}

/// Gradients with the strides of the parameters: the kernels read memory in order, and do not
/// look whether that is the same.
fn contiguous(grads: &[&Tensor]) -> Result<Vec<Tensor>> {
    grads.iter().map(|g| aten!("contiguous", *g)).collect()
}

pub(crate) fn compile_adam(adam: &Adam) -> Kernel {
    let adam = adam.clone();
    let (name, operator) = match adam.decoupled {
        true => ("_fused_adamw_", &ADAMW),
        false => ("_fused_adam_", &ADAM),
    };
    Kernel::new(name, move |x, _| {
        let n = adam.count;
        let (found, rest) = guard(adam.guarded, &x[2..]);
        let lists: Vec<&[&Tensor]> = rest.chunks(n).collect();
        let grads = contiguous(lists[1])?;
        let grads: Vec<&Tensor> = grads.iter().collect();
        let steps = vec![x[1]; n];
        let none: &[&Tensor] = &[];
        let args = [
            Arg::Tensors(lists[0]),
            Arg::Tensors(&grads),
            Arg::Tensors(lists[2]),
            Arg::Tensors(lists[3]),
            Arg::Tensors(none),
            Arg::Tensors(&steps),
            Arg::Tensor(x[0]),
            Arg::Float(adam.beta1),
            Arg::Float(adam.beta2),
            Arg::Float(adam.weight_decay),
            Arg::Float(adam.eps),
            Arg::Bool(false),
            Arg::Bool(false),
            Arg::None,
            Arg::from(found),
        ];
        operator.call(&args)?;
        Ok(Outs::new())
    })
}

pub(crate) fn compile_sgd(sgd: &Sgd) -> Kernel {
    let sgd = sgd.clone();
    Kernel::new("_fused_sgd_", move |x, _| {
        let n = sgd.count;
        let (found, rest) = guard(sgd.guarded, &x[1..]);
        let lists: Vec<&[&Tensor]> = rest.chunks(n).collect();
        let grads = contiguous(lists[1])?;
        let grads: Vec<&Tensor> = grads.iter().collect();
        let buffers: &[&Tensor] = lists.get(2).copied().unwrap_or(&[]);
        atens!(
            "_fused_sgd_.tensor_lr",
            lists[0],
            &grads,
            buffers,
            sgd.weight_decay,
            sgd.momentum,
            x[0],
            0.0,
            sgd.nesterov,
            false,
            false,
            Arg::None,
            found
        )?;
        Ok(Outs::new())
    })
}

pub(crate) fn compile_mask() -> Kernel {
    Kernel::new("mul_", |x, _| -> Result<Outs> {
        atens!("mul_.Tensor", x[0], x[1])?;
        Ok(Outs::new())
    })
}
