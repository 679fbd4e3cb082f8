//! Quantized patterns to integer kernels.
//!
//! `Dequantize -> conv or matmul (weight and bias from Dequantize of constants) -> [Relu] ->
//! [Quantize]` becomes one integer layer, also if the activation's grid is found at run time, and
//! in the form that ONNX's `MatMulInteger` is read in; products of floats by stored weights keep
//! those packed; `Dequantize -> Quantize` on one grid, also through a reshape, disappears; max
//! pooling between them works on the integers, and so do sums of two values.

mod add;
mod built;
mod find;
mod layer;
mod pool;
mod weights;

use opt_core::ops::Op;
use opt_core::{Result, Tensor, TensorType};

use super::plan::{Ir, Kind, Step};
use crate::kernels::int8::IntPath;
use built::built;
use find::{Index, on_grid, op, view};

/// A step for several others.
struct Found {
    step: Step,
    /// The steps that it replaces, ascending; it stands in the place of the last, where all its
    /// inputs are known.
    covered: Vec<usize>,
}

/// Replaces the patterns by integer kernels.
pub(crate) fn lower(ir: &mut Ir, path: IntPath) -> Result<()> {
    let is_quantized = |s: &Step| match &s.kind {
        Kind::Op(Op::Dequantize(_)) => true,
        // What products of integers are computed in.
        Kind::Op(Op::MatMul(_)) => ir.types[s.outputs[0]].dtype == opt_core::DType::F64,
        _ => false,
    };
    if !ir.steps.iter().any(is_quantized) {
        return Ok(());
    }
    explicit_zeros(ir)?;
    while let Some(step) = moved(ir) {
        ir.steps.remove(step);
    }
    let mut index = Index::new(ir);
    let mut i = 0;
    while i < ir.steps.len() {
        let found = match layer::layer(ir, &index, i, path)? {
            Some(found) => Some(found),
            None => match add::add(ir, &index, i)? {
                Some(found) => Some(found),
                None => weights::product(ir, &index, i)?,
            },
        };
        let Some(Found { step, covered }) = found else {
            i += 1;
            continue;
        };
        let last = *covered.last().expect("covers the product");
        ir.steps[last] = step;
        for &gone in covered[..covered.len() - 1].iter().rev() {
            ir.steps.remove(gone);
        }
        index = Index::new(ir);
    }
    ir.remove_dead();
    Ok(())
}

/// Gives quantizations to and from integers the zero points that they leave out.
fn explicit_zeros(ir: &mut Ir) -> Result<()> {
    for i in 0..ir.steps.len() {
        let step = &ir.steps[i];
        let integers = match op(ir, i) {
            Some(Op::Quantize(_)) => step.outputs[0],
            Some(Op::Dequantize(_)) => step.inputs[0],
            _ => continue,
        };
        let (dtype, scale) = (ir.types[integers].dtype, step.inputs[1]);
        if step.inputs.len() > 2 || !dtype.is_int() {
            continue;
        }
        let zeros = Tensor::zeros(dtype, ir.types[scale].shape.fixed()?)?;
        let id = ir.add_value(TensorType::new(dtype, zeros.shape()));
        ir.constants.insert(id, zeros);
        ir.steps[i].inputs.push(id);
    }
    Ok(())
}

/// Rewrites one quantization that undoes a dequantization, directly or around a max pooling; the
/// step to remove.
fn moved(ir: &mut Ir) -> Option<usize> {
    let index = Index::new(ir);
    for i in 0..ir.steps.len() {
        let Some(Op::Quantize(q)) = op(ir, i) else {
            continue;
        };
        if q.axis.is_some() {
            continue;
        }
        let (dtype, inputs) = (q.dtype, ir.steps[i].inputs.clone());
        let out = ir.steps[i].outputs[0];
        let same = |grid: &find::OnGrid| {
            ir.types[grid.q].dtype == dtype
                && grid.axis.is_none()
                && ir
                    .constant(inputs[1])
                    .is_some_and(|s| ir.constant(grid.scale) == Some(s))
                && ir
                    .constant(inputs[2])
                    .is_some_and(|z| ir.constant(grid.zero) == Some(z))
        };
        if let Some(grid) = on_grid(ir, &index, inputs[0]).filter(&same) {
            let root = ir.alias[grid.q];
            for alias in &mut ir.alias {
                if *alias == out {
                    *alias = root;
                }
            }
            return Some(i);
        }
        let Some(&pool) = index.producer.get(&ir.alias[inputs[0]]) else {
            continue;
        };
        let direct = ir.types[inputs[0]] == ir.types[ir.alias[inputs[0]]];
        if let Some(Op::MaxPool(_)) = op(ir, pool)
            && direct
            && index.only_reader(ir, inputs[0]) == Some(i)
            && let Some(grid) = on_grid(ir, &index, ir.steps[pool].inputs[0]).filter(&same)
        {
            let source = ir.steps[pool].inputs[0];
            let shape = ir.types[source].shape.clone();
            let integers = view(ir, grid.q, shape.fixed().ok()?.to_vec());
            let mut step = ir.steps[pool].clone();
            if let Some(kernel) = pool::max_pool(ir, &step, out) {
                step.kind = built(Box::new(kernel), 0);
            }
            step.inputs = vec![integers];
            step.outputs = vec![out];
            step.nodes.extend(ir.steps[i].nodes.clone());
            ir.steps[i] = step;
            return Some(pool);
        }
    }
    None
}
