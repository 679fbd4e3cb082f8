//! Epilogues: what follows a product or convolution moves into it.

use std::collections::HashMap;

use opt_core::ops::{BinaryOp, Op, UnaryOp};
use opt_core::{DType, Result, TensorType};

use super::fuse::producers;
use super::plan::{Id, Ir, Kind, Step};

/// What moves into a product.
enum Part {
    Function(UnaryOp),
    /// A number for each output channel.
    Bias(Id),
    /// A value of the result's type that is added.
    Residual(Id),
    /// The result is at least, or at most, so much.
    Bound(BinaryOp, f32),
}

/// Moves biases, residuals, functions and bounds into the products and convolutions that they
/// follow.
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
        let found = match op {
            Op::Unary(unary) => source(step.inputs[0])
                .filter(|&from| ir.steps[from].extras.clamp.is_none())
                .map(|from| (from, Part::Function(unary.op))),
            Op::Binary(binary) => {
                let (a, b) = (step.inputs[0], step.inputs[1]);
                [(a, b), (b, a)].into_iter().find_map(|(x, other)| {
                    let from = source(x)?;
                    // Bounds may be expanded to the result's shape.
                    let narrow = producers.get(&other).map(|&p| &ir.steps[p]);
                    let narrow = narrow.filter(|p| matches!(p.kind, Kind::Op(Op::Expand(_))));
                    let bound = narrow.map_or(other, |p| p.inputs[0]);
                    let operands = [other, bound];
                    let part = operand(ir, &ir.steps[from], binary.op, operands, out)?;
                    Some((from, part))
                })
            }
            _ => None,
        };
        let Some((from, part)) = found else { continue };
        // The product moves to where its result is final, so that the operands are there.
        let mut product = ir.steps[from].clone();
        match part {
            Part::Function(function) => product.epilogue.push(function),
            Part::Bias(bias) => {
                let len = ir.types[bias].shape.len()?;
                let flat = ir.add_value(TensorType::new(dtype, [len]));
                ir.alias[flat] = ir.alias[bias];
                product.inputs.push(ir.same(flat));
            }
            Part::Residual(residual) => {
                product.inputs.push(residual);
                product.extras.residual = true;
            }
            Part::Bound(op, bound) => {
                let own = product.extras.clamp;
                let [low, high] = own.unwrap_or([f32::NEG_INFINITY, f32::INFINITY]);
                product.extras.clamp = Some(match op {
                    BinaryOp::Max => [low.max(bound), high],
                    _ => [low, high.min(bound)],
                });
            }
        }
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

/// What a function of a product's result and another operand is to the product, if it can take it;
/// the operand as it is, and before it was expanded.
fn operand(
    ir: &Ir,
    product: &Step,
    op: BinaryOp,
    [other, narrow]: [Id; 2],
    out: Id,
) -> Option<Part> {
    let (ty, to) = (&ir.types[other], &ir.types[out]);
    let extras = &product.extras;
    let plain = product.epilogue.is_empty() && !extras.residual && extras.clamp.is_none();
    let biased = product.inputs.len() > 2 + extras.inputs();
    let single = to.dtype == DType::F32;
    let adds = single && matches!(product.kind, Kind::Op(Op::Conv(_) | Op::MatMul(_)));
    // The kernels of products have no bounds.
    let extends = single && matches!(product.kind, Kind::Op(Op::Conv(_)));
    match op {
        BinaryOp::Add if plain && extras.is_empty() && !biased && is_bias(product, to, ty) => {
            Some(Part::Bias(other))
        }
        BinaryOp::Add if plain && adds && ty == to => Some(Part::Residual(other)),
        BinaryOp::Max | BinaryOp::Min if extends => {
            let bound = ir.constant(narrow).filter(|c| c.len() == 1)?.item().ok()? as f32;
            // The lower bound comes first.
            let high = product.extras.clamp.map_or(f32::INFINITY, |[_, high]| high);
            let fits = op == BinaryOp::Min || high == f32::INFINITY;
            (fits && !bound.is_nan()).then_some(Part::Bound(op, bound))
        }
        _ => None,
    }
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
