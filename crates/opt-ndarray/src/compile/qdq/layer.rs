//! Convolutions and matrix products of quantized values by stored weights.

use opt_core::ops::{Binary, BinaryOp, Op};
use opt_core::{DType, Result, Tensor, TensorType};

use super::super::plan::{Id, Ir, Step};
use super::Found;
use super::built::built;
use super::find::{Chain, Index, is_row, on_grid, op, view};
use crate::kernels::conv::Geometry;
use crate::kernels::int8::{self, Finish, IntPath, Layer};

/// A number for the whole activation.
enum Scalar {
    Known(f64),
    /// A value of each run.
    Run(Id),
}

impl Scalar {
    /// If it is one number.
    fn of(ir: &Ir, v: Id) -> Option<Scalar> {
        if ir.types[v].shape.len().ok()? != 1 {
            return None;
        }
        Some(match ir.constant(v) {
            Some(t) => Scalar::Known(t.to_f64s()[0]),
            None => Scalar::Run(v),
        })
    }
}

/// The operands of a product of integers.
struct Operands {
    x: Id,
    /// None is a sum that is not scaled.
    scale: Option<Scalar>,
    zero: Scalar,
    /// Integers, zero points and scales of the weight.
    weight: Tensor,
    zeros: Vec<f64>,
    scales: Vec<f64>,
}

/// What one tensor per output channel says, or one for all.
fn each(values: &[f64], channels: usize) -> Option<Vec<f64>> {
    match values.len() {
        1 => Some(vec![values[0]; channels]),
        n if n == channels => Some(values.to_vec()),
        _ => None,
    }
}

/// The layer that starts at a step.
pub(super) fn layer(ir: &mut Ir, index: &Index, at: usize, path: IntPath) -> Result<Option<Found>> {
    let Some(product) = op(ir, at).cloned() else {
        return Ok(None);
    };
    let step = ir.steps[at].clone();
    let wide = match &product {
        Op::Conv(conv) if conv.window.rank() <= 2 => ir.types[step.inputs[1]].shape.fixed()?,
        Op::MatMul(m) if !m.trans_a => ir.types[step.inputs[1]].shape.fixed()?,
        _ => return Ok(None),
    };
    let (groups, inputs, outputs, axis) = match &product {
        Op::Conv(c) => (c.groups, wide[1], wide[0] / c.groups, 0),
        Op::MatMul(m) if wide.len() == 2 && m.trans_b => (1, wide[1], wide[0], 0),
        _ if wide.len() == 2 => (1, wide[0], wide[1], 1),
        _ => return Ok(None),
    };
    let channels = groups * outputs;
    let mut chain = Chain::new(index, ir, at);
    let operands = if ir.types[step.outputs[0]].dtype == DType::F64 {
        integers(ir, &mut chain, &step, channels)
    } else {
        dequantized(ir, index, &step, axis)
    };
    let Some(operands) = operands else {
        return Ok(None);
    };
    let dtype = ir.types[operands.x].dtype;
    let Some(weight) = centred(&operands, axis, channels)? else {
        return Ok(None);
    };
    if !matches!(dtype, DType::U8 | DType::I8) {
        return Ok(None);
    }
    let Some(weight_scales) = each(&operands.scales, channels) else {
        return Ok(None);
    };
    // Constant scales are multiplied here, others when it runs.
    let fixed = match (&operands.scale, &operands.zero) {
        (Some(Scalar::Known(scale)), Scalar::Known(zero)) => Some((*scale, *zero as i32)),
        _ => None,
    };
    let scales: Vec<f64> = match fixed {
        Some((scale, _)) => weight_scales.iter().map(|w| w * scale).collect(),
        None => weight_scales,
    };
    let mut multiplier = scales.clone();
    let mut bias = vec![0i32; channels];
    let mut offset = Vec::new();
    let mut relu = false;
    let mut finish = Finish::Sums;
    let mut epilogue = Vec::new();
    if operands.scale.is_some() {
        let (adds, bias_value) = match &product {
            Op::Conv(_) => (None, step.inputs.get(2).copied()),
            _ => chain.binary(ir, BinaryOp::Add).unzip(),
        };
        let fixed = fixed.is_some().then_some(&scales[..]);
        let found = match bias_value {
            Some(v) => added(ir, index, v, channels, fixed)?,
            None => None,
        };
        match (found, adds) {
            (Some(found), adds) => {
                match found {
                    Added::Integers(v) => bias = v,
                    Added::Floats(v) => offset = v,
                }
                if let Some(add) = adds {
                    chain.take(ir, add);
                }
            }
            // A convolution's bias that is no constant.
            (None, None) if bias_value.is_some() => return Ok(None),
            (None, _) => {}
        }
        relu = chain.relu(ir);
        finish = Finish::Dequantize { relu };
    }
    // A quantization of the whole result on one grid ends the layer; else it ends in float.
    let quantize = chain
        .next(ir)
        .filter(|&n| matches!(op(ir, n), Some(Op::Quantize(q)) if q.axis.is_none()));
    if let (Some(n), Some(_), true) = (quantize, fixed, offset.is_empty()) {
        let inputs = &ir.steps[n].inputs;
        let (Some(s), Some(z)) = (ir.constant(inputs[1]), ir.constant(inputs[2])) else {
            return Ok(None);
        };
        let out_type = z.dtype();
        if inputs[0] == chain.value && matches!(out_type, DType::U8 | DType::I8) {
            let (s, z) = (s.item()?, z.item()? as i32);
            let (low, high) = out_type.int_range()?;
            multiplier = scales.iter().map(|v| v / s).collect();
            finish = Finish::Requantize {
                zero: z,
                low: if relu { low.max(z) } else { low },
                high,
            };
            chain.take(ir, n);
        }
    }
    if let (Finish::Dequantize { .. }, Op::MatMul(_)) = (&finish, &product) {
        epilogue = chain.functions(ir);
    }
    let x_shape = ir.types[step.inputs[0]].shape.fixed()?;
    let geometry = match &product {
        Op::Conv(c) => {
            let y = ir.types[step.outputs[0]].shape.fixed()?;
            Some(Geometry::new(&x_shape[2..], &y[2..], &wide[2..], &c.window))
        }
        _ => None,
    };
    let rows = x_shape[..x_shape.len() - 1].iter().product();
    let mut reads = vec![view(ir, operands.x, x_shape.to_vec())];
    let whole = fixed.is_some() || matches!(finish, Finish::Sums);
    let zero = match operands.zero {
        Scalar::Known(zero) if whole => Some(zero as i32),
        zero => {
            let scale = operands.scale.unwrap_or(Scalar::Known(1.0));
            reads.push(value_of(ir, scale, DType::F32)?);
            reads.push(value_of(ir, zero, dtype)?);
            None
        }
    };
    let layer = Layer {
        geometry,
        groups,
        inputs,
        outputs,
        weight,
        bias,
        zero,
        dtype,
        multiplier: multiplier.iter().map(|&m| m as f32).collect(),
        offset,
        finish,
        epilogue,
        path,
    };
    let bytes = layer.bytes();
    let kernel = int8::compile(layer, rows);
    Ok(Some(chain.end(built(kernel, bytes), reads)))
}

/// A scalar as a value of the graph.
fn value_of(ir: &mut Ir, scalar: Scalar, dtype: DType) -> Result<Id> {
    Ok(match scalar {
        Scalar::Run(v) => v,
        Scalar::Known(number) => {
            let v = ir.add_value(TensorType::new(dtype, [0usize; 0]));
            ir.constants
                .insert(v, Tensor::from_f64s(dtype, [], &[number])?);
            v
        }
    })
}

/// The operands of `Dequantize, Dequantize -> product`.
fn dequantized(ir: &Ir, index: &Index, step: &Step, axis: usize) -> Option<Operands> {
    let x = on_grid(ir, index, step.inputs[0])?;
    let w = on_grid(ir, index, step.inputs[1])?;
    if x.axis.is_some() || w.axis.is_some_and(|a| a != axis) {
        return None;
    }
    if ir.types[step.outputs[0]].dtype != DType::F32 {
        return None;
    }
    Some(Operands {
        x: x.q,
        scale: Some(Scalar::of(ir, x.scale)?),
        zero: Scalar::of(ir, x.zero)?,
        weight: ir
            .constant(w.q)?
            .reshape(ir.types[step.inputs[1]].shape.fixed().ok()?)
            .ok()?,
        zeros: ir.constant(w.zero)?.to_f64s(),
        scales: ir.constant(w.scale)?.to_f64s(),
    })
}

/// The operands of a product of integers that is computed in `f64`:
/// `Cast [-> Sub(zero point)], the same -> product -> Cast(i32) [-> Cast(f32) -> Mul(scale)]`,
/// as ONNX's `MatMulInteger` is read.
fn integers(ir: &Ir, chain: &mut Chain<'_>, step: &Step, channels: usize) -> Option<Operands> {
    let index = chain.index;
    let narrow = |v: Id| match index.maker(ir, v)? {
        (cast, Op::Cast(_)) => Some(ir.steps[cast].inputs[0]),
        _ => None,
    };
    let operand = |v: Id| -> Option<(Id, Option<Id>)> {
        match index.maker(ir, v)? {
            (cast, Op::Cast(_)) => Some((ir.steps[cast].inputs[0], None)),
            (sub, Op::Binary(Binary { op: BinaryOp::Sub })) => {
                let inputs = &ir.steps[sub].inputs;
                let same = ir.types[v].shape == ir.types[inputs[0]].shape;
                (same).then_some((narrow(inputs[0])?, Some(narrow(inputs[1])?)))
            }
            _ => None,
        }
    };
    let (x, zero) = operand(step.inputs[0])?;
    let (w, zeros) = operand(step.inputs[1])?;
    if !chain.cast(ir, DType::I32) {
        return None;
    }
    let weight = ir.constant(w)?;
    let shape = ir.types[step.inputs[1]].shape.fixed().ok()?;
    let zeros = match zeros {
        Some(v) if is_row(&ir.types[v], channels) => ir.constant(v)?.to_f64s(),
        Some(_) => return None,
        None => vec![0.0],
    };
    let mut operands = Operands {
        x,
        scale: None,
        zero: match zero {
            Some(v) => Scalar::of(ir, v)?,
            None => Scalar::Known(0.0),
        },
        weight: weight.reshape(&shape).ok()?,
        zeros,
        scales: vec![1.0],
    };
    let kept = chain.clone();
    if chain.cast(ir, DType::F32)
        && let Some((mul, factor)) = chain.binary(ir, BinaryOp::Mul)
        && let Some((scale, scales)) = factors(ir, index, factor, channels)
    {
        chain.take(ir, mul);
        operands.scale = Some(scale);
        operands.scales = scales;
    } else {
        *chain = kept;
    }
    Some(operands)
}

/// What sums are scaled by: a number, and constants for the outputs.
fn factors(ir: &Ir, index: &Index, v: Id, channels: usize) -> Option<(Scalar, Vec<f64>)> {
    if ir.types[v].dtype != DType::F32 {
        return None;
    }
    if let Some((mul, Op::Binary(Binary { op: BinaryOp::Mul }))) = index.maker(ir, v) {
        let inputs = &ir.steps[mul].inputs;
        for (a, b) in [(inputs[0], inputs[1]), (inputs[1], inputs[0])] {
            if let (Some(scale), Some(scales)) = (Scalar::of(ir, a), ir.constant(b))
                && is_row(&ir.types[b], channels)
            {
                return Some((scale, scales.to_f64s()));
            }
        }
    }
    Some((Scalar::of(ir, v)?, vec![1.0]))
}

/// The weights with their zero points subtracted, `[channels, ..]`, if they are 8 bits then.
fn centred(operands: &Operands, axis: usize, channels: usize) -> Result<Option<Vec<i8>>> {
    let weight = match axis {
        0 => operands.weight.clone(),
        _ => operands.weight.transpose(&[1, 0])?.contiguous(),
    };
    let Some(zeros) = each(&operands.zeros, channels) else {
        return Ok(None);
    };
    let depth = weight.len() / channels.max(1);
    let subtract = |values: &mut dyn Iterator<Item = i32>| -> Option<Vec<i8>> {
        values
            .enumerate()
            .map(|(i, w)| i8::try_from(w - zeros[i / depth.max(1)] as i32).ok())
            .collect()
    };
    Ok(match weight.dtype() {
        DType::I8 => subtract(&mut weight.to_vec::<i8>()?.into_iter().map(i32::from)),
        DType::U8 => subtract(&mut weight.to_vec::<u8>()?.into_iter().map(i32::from)),
        packed if packed.is_int() && packed.is_packed() => {
            subtract(&mut weight.to_f64s().into_iter().map(|w| w as i32))
        }
        _ => None,
    })
}

/// What is added to the sums of a layer.
enum Added {
    Integers(Vec<i32>),
    Floats(Vec<f32>),
}

/// A constant bias: integers on the grid of the sums, whose scales are `fixed`, or floats.
fn added(
    ir: &Ir,
    index: &Index,
    v: Id,
    channels: usize,
    fixed: Option<&[f64]>,
) -> Result<Option<Added>> {
    if !is_row(&ir.types[v], channels) || ir.types[v].dtype != DType::F32 {
        return Ok(None);
    }
    if let Some(content) = ir.constant(v) {
        let floats: Vec<f32> = content.to_f64s().iter().map(|&b| b as f32).collect();
        return Ok(Some(Added::Floats(match floats.len() {
            1 => vec![floats[0]; channels],
            _ => floats,
        })));
    }
    let Some(grid) = on_grid(ir, index, v) else {
        return Ok(None);
    };
    let (Some(content), Some(own), Some(zero), Some(scales)) = (
        ir.constant(grid.q),
        ir.constant(grid.scale),
        ir.constant(grid.zero),
        fixed,
    ) else {
        return Ok(None);
    };
    let Some(own) = each(&own.to_f64s(), channels) else {
        return Ok(None);
    };
    let fits = own
        .iter()
        .zip(scales)
        .all(|(a, b)| (a - b).abs() <= 1e-6 * b.abs());
    let plain = zero.to_f64s().iter().all(|&z| z == 0.0);
    if content.dtype() != DType::I32 || content.len() != channels || !fits || !plain {
        return Ok(None);
    }
    Ok(Some(Added::Integers(content.to_vec::<i32>()?)))
}
