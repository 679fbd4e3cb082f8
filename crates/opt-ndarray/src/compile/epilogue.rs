//! Epilogues: what follows a product or convolution moves into it.

use std::collections::HashMap;

use opt_core::ops::{BinaryOp, Op};
use opt_core::{DType, Result, TensorType};

use super::fuse::producers;
use super::plan::{Id, Ir, Kind, Step};

/// Moves biases and functions into the products and convolutions that they follow.
pub(super) fn epilogues(ir: &mut Ir) -> Result<()> {
    let uses = ir.uses();
    let producers = producers(ir);
    // Steps that were merged into the step at the index they are mapped to.
    let mut merged: HashMap<usize, usize> = HashMap::new();
    for at in 0..ir.steps.len() {
        let step = &ir.steps[at];
        let [out] = step.outputs[..] else { continue };
        // What 16-bit floats go through is computed in `f32` then, and rounded once at the end.
        let dtype = ir.types[out].dtype;
        if !matches!(dtype, DType::F32 | DType::F16 | DType::BF16) {
            continue;
        }
        let Kind::Op(op) = &step.kind else { continue };
        // The product whose result the step takes, if nothing else does.
        let source = |v: Id| -> Option<usize> {
            let mut from = *producers.get(&v)?;
            while let Some(&to) = merged.get(&from) {
                from = to;
            }
            let producer = &ir.steps[from];
            let is_product = matches!(&producer.kind, Kind::Op(Op::MatMul(_) | Op::Conv(_)));
            let fits = is_product
                && ir.alias[v] == v
                && uses[v] == 1
                && producer.outputs == [v]
                && ir.types[v] == ir.types[out];
            fits.then_some(from)
        };
        let (from, bias) = match op {
            Op::Unary(_) => match source(step.inputs[0]) {
                Some(from) => (from, None),
                None => continue,
            },
            Op::Binary(binary) if binary.op == BinaryOp::Add => {
                let (a, b) = (step.inputs[0], step.inputs[1]);
                let found = [(a, b), (b, a)].into_iter().find_map(|(x, bias)| {
                    let from = source(x)?;
                    let product = &ir.steps[from];
                    let takes = product.inputs.len() == 2
                        && product.epilogue.is_empty()
                        && is_bias(product, &ir.types[out], &ir.types[bias]);
                    takes.then_some((from, bias))
                });
                match found {
                    Some((from, bias)) => (from, Some(bias)),
                    None => continue,
                }
            }
            _ => continue,
        };
        let function = match op {
            Op::Unary(unary) => Some(unary.op),
            _ => None,
        };
        // The product moves to where its result is final, so that the bias is there.
        let mut product = ir.steps[from].clone();
        if let Some(bias) = bias {
            let len = ir.types[bias].shape.len()?;
            let flat = ir.add_value(TensorType::new(dtype, [len]));
            ir.alias[flat] = ir.alias[bias];
            product.inputs.push(ir.same(flat));
        }
        product.epilogue.extend(function);
        product
            .nodes
            .extend(std::mem::take(&mut ir.steps[at].nodes));
        product.outputs = vec![out];
        ir.steps[at] = product;
        ir.steps[from].outputs.clear();
        merged.insert(from, at);
    }
    ir.steps.retain(|s| !s.outputs.is_empty());
    Ok(())
}

/// Whether an operand is one number for each output channel of a product.
fn is_bias(product: &Step, out: &TensorType, bias: &TensorType) -> bool {
    let rank = out.rank();
    let axis = match product.kind {
        Kind::Op(Op::Conv(_)) => 1,
        _ => rank - 1,
    };
    let size = &out.shape[axis];
    // The bias lines up with the last axes.
    let Some(at) = (axis + bias.rank()).checked_sub(rank) else {
        return false;
    };
    at < bias.rank()
        && bias.rank() <= rank
        && (0..bias.rank()).all(|i| {
            let own = bias.shape[i].as_fixed();
            if i == at {
                bias.shape[i] == *size
            } else {
                own == Some(1)
            }
        })
}
