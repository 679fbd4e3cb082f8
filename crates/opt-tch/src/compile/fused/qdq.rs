//! Products of dequantized operands as products of their integers.

use std::collections::HashMap;

use opt_core::ops::{Cast, Dequantize, MatMul, Reduce, ReduceOp};
use opt_core::{DType, Op, Result, Shape, Tensor as Host, TensorType};

use super::Fused;
use crate::Device;
use crate::compile::ir::{Ir, Kind, Step, Value};
use crate::kernels::{packed, sizes};

/// A value that a `Dequantize` makes.
struct OnGrid {
    op: Dequantize,
    /// Integers, scale, zero point.
    parts: [Value; 3],
}

fn on_grid(ir: &Ir, producers: &HashMap<Value, usize>, v: Value) -> Option<OnGrid> {
    let step = &ir.steps[*producers.get(&v)?];
    let (Op::Dequantize(op), &[q, scale, zero]) = (step.op()?, &step.inputs[..]) else {
        return None;
    };
    Some(OnGrid {
        op: op.clone(),
        parts: [q, scale, zero],
    })
}

/// Adds the zeros that stand for missing zero points of integers, which the fused kernels read.
fn add_zero_points(ir: &mut Ir) -> Result<()> {
    for i in 0..ir.steps.len() {
        let step = &ir.steps[i];
        let (Some(Op::Dequantize(_)), &[q, scale]) = (step.op(), &step.inputs[..]) else {
            continue;
        };
        let dtype = ir.types[q].dtype;
        if dtype.int_range().is_err() {
            continue;
        }
        let ty = ir.types[scale].with_dtype(dtype);
        let zeros = Host::zeros(dtype, ty.shape.fixed()?)?;
        let zero = ir.value(ty);
        ir.constants.insert(zero, zeros);
        ir.steps[i].inputs.push(zero);
    }
    Ok(())
}

/// Whether a value has integers of a byte or less.
fn bytes(ir: &Ir, v: Value) -> bool {
    ir.types[v].dtype.int_range().is_ok()
}

pub(super) fn fuse(ir: &mut Ir, device: Device) -> Result<()> {
    add_zero_points(ir)?;
    let producers = ir.producers();
    for i in 0..ir.steps.len() {
        let Some(op) = ir.steps[i].op().cloned() else {
            continue;
        };
        let inputs = ir.steps[i].inputs.clone();
        match op {
            Op::MatMul(op) => {
                let Some(w) = on_grid(ir, &producers, inputs[1]) else {
                    continue;
                };
                if let Some(x) = on_grid(ir, &producers, inputs[0]) {
                    matmul(ir, i, op, &x, &w);
                } else {
                    packed(ir, i, op, &w, device)?;
                }
            }
            Op::Conv(op) => {
                let (Some(x), Some(w)) = (
                    on_grid(ir, &producers, inputs[0]),
                    on_grid(ir, &producers, inputs[1]),
                ) else {
                    continue;
                };
                let plain = x.op.axis.is_none()
                    && matches!(w.op.axis, None | Some(0))
                    && w.op.block.is_none()
                    && bytes(ir, x.parts[0])
                    && bytes(ir, w.parts[0]);
                if !plain {
                    continue;
                }
                let output = ir.steps[i].outputs[0];
                let mut operands = x.parts.to_vec();
                operands.extend(w.parts);
                let product = match inputs.get(2) {
                    None => output,
                    Some(&bias) => {
                        let ty = ir.types[output].clone();
                        let product = ir.value(ty);
                        with_bias(ir, i, product, bias, output)?;
                        product
                    }
                };
                let step = &mut ir.steps[i];
                step.kind = Kind::Fused(Fused::IntConv(op));
                step.inputs = operands;
                step.outputs = vec![product];
            }
            _ => {}
        }
    }
    ir.remove_dead_unsorted()
}

/// Adds a bias `[O]` to a convolution's result.
fn with_bias(ir: &mut Ir, at: usize, product: Value, bias: Value, output: Value) -> Result<()> {
    let ty = &ir.types[output];
    let mut shape = vec![1; ty.rank()];
    shape[1] = ty.shape.fixed()?[1];
    let along = ir.value(TensorType::new(ir.types[bias].dtype, shape.as_slice()));
    let nodes = ir.steps[at].nodes.clone();
    let reshape = Op::from(opt_core::ops::Reshape {
        shape: Shape::from_iter(shape.into_iter().map(opt_core::Dim::from)),
    });
    let add = Op::from(opt_core::ops::Binary {
        op: opt_core::ops::BinaryOp::Add,
    });
    for (op, inputs, output) in [
        (reshape, vec![bias], along),
        (add, vec![product, along], output),
    ] {
        ir.steps.push(Step {
            kind: Kind::Op(op),
            inputs,
            outputs: vec![output],
            nodes: nodes.clone(),
        });
    }
    Ok(())
}

fn matmul(ir: &mut Ir, i: usize, op: MatMul, x: &OnGrid, w: &OnGrid) {
    let weight = ir.types[w.parts[0]].clone();
    let rank = weight.rank();
    let (inner, columns) = match op.trans_b {
        true => (rank - 1, rank - 2),
        false => (rank - 2, rank - 1),
    };
    let by_column = w.op.axis == Some(columns) && rank == 2;
    let plain = x.op.axis.is_none()
        && (w.op.axis.is_none() || by_column)
        && w.op.block.is_none()
        && bytes(ir, x.parts[0])
        && bytes(ir, w.parts[0]);
    if !plain {
        return;
    }
    // The sums of the columns, which are constants where the weight is.
    let wide = ir.value(weight.with_dtype(DType::I32));
    let mut dims = weight.shape.dims().to_vec();
    dims.remove(inner);
    let sums = ir.value(TensorType::new(
        DType::I32,
        dims.into_iter().collect::<Shape>(),
    ));
    let nodes = ir.steps[i].nodes.clone();
    let cast = Op::from(Cast { dtype: DType::I32 });
    let sum = Op::from(Reduce {
        op: ReduceOp::Sum,
        axes: [inner].into_iter().collect(),
        keepdims: false,
    });
    for (op, input, output) in [(cast, w.parts[0], wide), (sum, wide, sums)] {
        ir.steps.push(Step {
            kind: Kind::Op(op),
            inputs: vec![input],
            outputs: vec![output],
            nodes: nodes.clone(),
        });
    }
    let step = &mut ir.steps[i];
    step.kind = Kind::Fused(Fused::IntMatMul(op));
    step.inputs = [&x.parts[..], &w.parts[..], &[sums]].concat();
}

/// A product with a constant matrix of 4-bit integers in blocks.
fn packed(ir: &mut Ir, i: usize, op: MatMul, w: &OnGrid, device: Device) -> Result<()> {
    let [q, scale, zero] = w.parts;
    let weight = &ir.types[q];
    let inner = if op.trans_b { 1 } else { 0 };
    let constant = w.parts.iter().all(|v| ir.constants.contains_key(v));
    let four = matches!(weight.dtype, DType::I4 | DType::U4);
    let (Some(block), true) = (w.op.block, constant && four && !op.trans_a) else {
        return Ok(());
    };
    if weight.rank() != 2 || w.op.axis != Some(inner) {
        return Ok(());
    }
    let x = ir.steps[i].inputs[0];
    let (rows, shape) = (sizes(&ir.types[x])?, sizes(weight)?);
    let m = rows[..rows.len() - 1].iter().product();
    let (k, n) = (shape[inner], shape[1 - inner]);
    if packed::fits(device, ir.types[x].dtype, [m, k, n], block) {
        let step = &mut ir.steps[i];
        step.kind = Kind::Fused(Fused::PackedMatMul(op, w.op.clone()));
        step.inputs = vec![x, q, scale, zero];
    }
    Ok(())
}
