//! Sums of two quantized values.

use opt_core::ops::{Binary, BinaryOp, Op};
use opt_core::{DType, Result};

use super::super::plan::Ir;
use super::Found;
use super::built::built;
use super::find::{Chain, Index, on_grid, op, scalar_grid, view};
use crate::kernels::int8::add::IntAdd;

/// `Dequantize, Dequantize -> Add -> [Relu] -> Quantize` as one step, found at the addition.
pub(super) fn add(ir: &mut Ir, index: &Index, at: usize) -> Result<Option<Found>> {
    let Some(Op::Binary(Binary { op: BinaryOp::Add })) = op(ir, at) else {
        return Ok(None);
    };
    let step = ir.steps[at].clone();
    let mut operands = Vec::new();
    for &v in &step.inputs {
        let same = ir.types[v].shape == ir.types[step.outputs[0]].shape;
        let Some(grid) = on_grid(ir, index, v).filter(|_| same) else {
            return Ok(None);
        };
        let dtype = ir.types[grid.q].dtype;
        match scalar_grid(ir, &grid) {
            Some((scale, zero)) if matches!(dtype, DType::U8 | DType::I8) => {
                operands.push((grid.q, dtype, scale, zero));
            }
            _ => return Ok(None),
        }
    }
    let mut chain = Chain::new(index, ir, at);
    let relu = chain.relu(ir);
    let value = chain.value;
    let Some(n) = chain.next(ir) else {
        return Ok(None);
    };
    let Some(Op::Quantize(q)) = op(ir, n) else {
        return Ok(None);
    };
    let inputs = &ir.steps[n].inputs;
    let (Some(s), Some(z)) = (ir.constant(inputs[1]), ir.constant(inputs[2])) else {
        return Ok(None);
    };
    let whole = q.axis.is_none() && matches!(q.dtype, DType::U8 | DType::I8);
    if !whole || ir.alias[inputs[0]] != ir.alias[value] {
        return Ok(None);
    }
    let (scale, zero) = (s.item()?, z.item()? as i32);
    let (low, high) = q.dtype.int_range()?;
    let [a, b] = [0, 1].map(|i| {
        let (_, dtype, own, zero) = operands[i];
        (dtype, (own / scale) as f32, zero)
    });
    let finite = [a.1, b.1].iter().all(|m| m.is_finite());
    if !finite {
        return Ok(None);
    }
    let kernel = IntAdd {
        operands: [a, b],
        zero,
        low: if relu { low.max(zero) } else { low },
        high,
    };
    chain.take(ir, n);
    let shape = ir.types[step.outputs[0]].shape.fixed()?.to_vec();
    let inputs = operands.iter().map(|o| view(ir, o.0, shape.clone()));
    let inputs = inputs.collect();
    Ok(Some(chain.end(built(Box::new(kernel), 0), inputs)))
}
