//! A matrix product and a bias as one.

use std::collections::HashSet;

use opt_core::Op;
use opt_core::ops::{BinaryOp, MatMul};

use super::Fused;
use crate::compile::ir::{Ir, Kind, Value};

pub(super) fn fuse(ir: &mut Ir) {
    let (producers, consumers) = (ir.producers(), ir.consumers());
    let mut dropped: HashSet<usize> = HashSet::new();
    for i in 0..ir.steps.len() {
        let step = &ir.steps[i];
        if !matches!(step.op(), Some(Op::Binary(b)) if b.op == BinaryOp::Add) {
            continue;
        }
        let found = [(0, 1), (1, 0)].into_iter().find_map(|(p, b)| {
            let (product, bias) = (step.inputs[p], step.inputs[b]);
            let &at = producers.get(&product)?;
            let alone = consumers.get(&product).is_some_and(|c| c.len() == 1);
            let trans_b = matches(ir, at, product, bias)?;
            (alone && !ir.is_result(product) && !dropped.contains(&at))
                .then_some((at, bias, trans_b))
        });
        let Some((at, bias, trans_b)) = found else {
            continue;
        };
        let mut inputs = ir.steps[at].inputs.clone();
        inputs.push(bias);
        let mut nodes = ir.steps[at].nodes.clone();
        nodes.extend(ir.steps[i].nodes.clone());
        let step = &mut ir.steps[i];
        step.kind = Kind::Fused(Fused::Linear { trans_b });
        step.inputs = inputs;
        step.nodes = nodes;
        dropped.insert(at);
    }
    let mut i = 0;
    ir.steps.retain(|_| {
        i += 1;
        !dropped.contains(&(i - 1))
    });
}

/// Whether a step multiplies by one matrix, and the other operand of the sum is a bias of its
/// columns; then whether the matrix is transposed.
fn matches(ir: &Ir, at: usize, product: Value, bias: Value) -> Option<bool> {
    let step = &ir.steps[at];
    let Some(Op::MatMul(MatMul {
        trans_a: false,
        trans_b,
    })) = step.op()
    else {
        return None;
    };
    let (ty, bias) = (&ir.types[product], &ir.types[bias]);
    let fits = ty.dtype.is_float()
        && ir.types[step.inputs[1]].rank() == 2
        && bias.rank() == 1
        && ty.shape.dims().last() == bias.shape.dims().last();
    fits.then_some(*trans_b)
}
