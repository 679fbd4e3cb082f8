//! Matrix products of floats by weights that are stored as integers.

use opt_core::ops::{BinaryOp, Op};
use opt_core::{DType, Result, Tensor};

use super::super::plan::{Ir, Step};
use super::Found;
use super::built::built;
use super::find::{Chain, Index, is_row, op};
use crate::kernels::weight_only::{Packed, WeightOnly};

/// `product(x, Dequantize(constants))`, found at the product, with a bias and functions that
/// follow.
pub(super) fn product(ir: &Ir, index: &Index, at: usize) -> Result<Option<Found>> {
    let Some(Op::MatMul(matmul)) = op(ir, at) else {
        return Ok(None);
    };
    let step = &ir.steps[at];
    if matmul.trans_a || ir.types[step.outputs[0]].dtype != DType::F32 {
        return Ok(None);
    }
    let Some(packed) = packed(ir, index, step, matmul.trans_b)? else {
        return Ok(None);
    };
    let mut chain = Chain::new(index, ir, at);
    let mut bias = Vec::new();
    if let Some((add, v)) = chain.binary(ir, BinaryOp::Add)
        && is_row(&ir.types[v], packed.outputs)
        && let Some(content) = ir.constant(v)
        && content.dtype() == DType::F32
    {
        bias = content.to_vec::<f32>()?;
        if bias.len() == 1 {
            bias = vec![bias[0]; packed.outputs];
        }
        chain.take(ir, add);
    }
    let epilogue = chain.functions(ir);
    let bytes = packed.bytes() + size_of_val(&bias[..]);
    let kernel = WeightOnly {
        packed,
        bias,
        epilogue,
    };
    let inputs = vec![step.inputs[0]];
    Ok(Some(chain.end(built(Box::new(kernel), bytes), inputs)))
}

/// The right operand of a product, packed, if it is a weight of integers.
fn packed(ir: &Ir, index: &Index, step: &Step, rows: bool) -> Result<Option<Packed>> {
    let Some((maker, Op::Dequantize(dequantize))) = index.maker(ir, step.inputs[1]) else {
        return Ok(None);
    };
    let inputs = &ir.steps[maker].inputs;
    let shape = ir.types[step.inputs[1]].shape.fixed()?;
    if shape.len() != 2 || ir.types[inputs[0]].shape != ir.types[step.inputs[1]].shape {
        return Ok(None);
    }
    let constant = |i: usize| inputs.get(i).and_then(|&v| ir.constant(v));
    let [Some(codes), Some(scale), Some(zero)] = [0, 1, 2].map(constant) else {
        return Ok(None);
    };
    if scale.dtype() != DType::F32 {
        return Ok(None);
    }
    let (bits, signed) = match codes.dtype() {
        DType::I4 => (4, true),
        DType::U4 => (4, false),
        DType::I8 => (8, true),
        DType::U8 => (8, false),
        _ => return Ok(None),
    };
    // `[outputs, inputs]` or the other way round.
    let (k, n) = if rows {
        (shape[1], shape[0])
    } else {
        (shape[0], shape[1])
    };
    let along_inputs = usize::from(rows);
    let (group, layout) = match (dequantize.axis, dequantize.block) {
        (None, None) => (k, Layout::One),
        (Some(axis), None) if axis != along_inputs => (k, Layout::Outputs),
        (Some(axis), Some(block)) if axis == along_inputs && block > 0 => {
            (block, Layout::Groups { rows })
        }
        _ => return Ok(None),
    };
    let groups = k.div_ceil(group.max(1));
    let place = |g: usize, o: usize| match layout {
        Layout::One => 0,
        Layout::Outputs => o,
        Layout::Groups { rows: true } => o * groups + g,
        Layout::Groups { rows: false } => g * n + o,
    };
    let lift = if signed { 1u8 << (bits - 1) } else { 0 };
    let unsigned = |t: &Tensor| -> Result<Vec<u8>> {
        let wide = if bits == 4 { t.unpack()? } else { t.clone() };
        let mut codes = match wide.dtype() {
            DType::I8 => wide.to_vec::<i8>()?.into_iter().map(|v| v as u8).collect(),
            _ => wide.to_vec::<u8>()?,
        };
        for code in &mut codes {
            *code = code.wrapping_add(lift);
        }
        Ok(codes)
    };
    let (codes, zeros) = (unsigned(&codes)?, unsigned(&zero)?);
    let scales = scale.to_vec::<f32>()?;
    Ok(Packed::new(
        (k, n),
        group,
        bits,
        |i, o| codes[if rows { o * k + i } else { i * n + o }],
        |g, o| scales[place(g, o)],
        |g, o| zeros[place(g, o)],
    ))
}

/// Which scale a group of inputs and an output have.
enum Layout {
    One,
    Outputs,
    Groups { rows: bool },
}
