//! Normalization.

use opt_core::ops::{AvgPool, BatchNorm, BinaryOp, GroupNorm, InstanceNorm, RmsNorm, Window};
use opt_core::{DType, Dim, Error, Result, Shape, ValueId};

use super::{Lower, axes, axis, count};
use crate::import::Cx;
use crate::import::node::{Node, V};

pub(super) fn find(op: &str) -> Option<Lower> {
    Some(match op {
        "BatchNormalization" => batch_norm,
        "InstanceNormalization" => instance_norm,
        "LayerNormalization" => layer_norm,
        "GroupNormalization" => group_norm,
        "RMSNormalization" | "SimplifiedLayerNormalization" => rms_norm,
        "LpNormalization" => lp_norm,
        "MeanVarianceNormalization" => mean_variance,
        "LRN" => lrn,
        _ => return None,
    })
}

fn batch_norm(cx: &mut Cx<'_>, node: &Node<'_>) -> Result<Vec<V>> {
    let inputs = [0, 1, 2, 3, 4].map(|i| cx.x(node, i));
    let [x, scale, bias, mean, var] = inputs;
    let (x, scale, bias, mean, var) = (x?, scale?, bias?, mean?, var?);
    // Opsets 7 and 8 could normalize each entry by itself.
    if !node.flag("spatial", true)? {
        return Err(Error::unsupported("spatial = 0"));
    }
    let momentum = 1.0 - node.float_or("momentum", 0.9)?;
    let training = if node.version >= 14 {
        node.flag("training_mode", false)?
    } else if node.version < 7 {
        !node.flag("is_test", false)?
    } else {
        node.output_count() > 1
    };
    let epsilon = node.float_or("epsilon", 1e-5)?;
    // The op has one dtype for all parameters: x's, or f32 beside 16 bits.
    let mut parameters = [scale, bias, mean, var];
    let own = cx.b.type_of(x).dtype;
    let dtype = match own {
        DType::F16 | DType::BF16 if parameters.iter().any(|&p| cx.b.type_of(p).dtype != own) => {
            DType::F32
        }
        _ => own,
    };
    for p in &mut parameters {
        *p = cx.b.cast(*p, dtype)?;
    }
    let [scale, bias, mean, var] = parameters;
    let op = BatchNorm {
        epsilon,
        momentum,
        training,
    };
    let out = cx.b.node(op, &[x, scale, bias, mean, var])?;
    if !training {
        return Ok(cx.one(out[0]));
    }
    if node.output_count() > 3 {
        return Err(Error::unsupported("the saved statistics as outputs"));
    }
    // ONNX takes the biased variance for the running one; this library's op, as PyTorch, the
    // unbiased.
    let axes: Vec<usize> = (0..cx.b.type_of(x).rank()).filter(|&a| a != 1).collect();
    let batch_mean = cx.b.mean(x, &axes, true)?;
    let centred = cx.b.sub(x, batch_mean)?;
    let square = cx.b.mul(centred, centred)?;
    let batch_var = cx.b.mean(square, &axes, false)?;
    let (old, new) = (
        cx.b.mul_scalar(var, 1.0 - momentum)?,
        cx.b.mul_scalar(batch_var, momentum)?,
    );
    let running_var = cx.b.add(old, new)?;
    Ok(vec![cx.val(out[0]), cx.val(out[1]), cx.val(running_var)])
}

fn instance_norm(cx: &mut Cx<'_>, node: &Node<'_>) -> Result<Vec<V>> {
    let (x, scale, bias) = (cx.x(node, 0)?, cx.x(node, 1)?, cx.x(node, 2)?);
    let op = InstanceNorm {
        epsilon: node.float_or("epsilon", 1e-5)?,
    };
    let y = cx.b.op(op, &[x, scale, bias])?;
    Ok(cx.one(y))
}

/// A parameter of the shape of the normalized axes, to which it may have to be broadcast.
fn spread(cx: &mut Cx<'_>, parameter: ValueId, x: ValueId, axis: usize) -> Result<ValueId> {
    let shape: Shape = cx.b.type_of(x).shape.dims()[axis..]
        .iter()
        .cloned()
        .collect();
    let ty = cx.b.type_of(parameter).clone();
    if ty.shape == shape {
        return Ok(parameter);
    }
    if ty.rank() > shape.rank() {
        return Err(Error::unsupported(format!(
            "a scale of shape {} for normalized axes of shape {shape}",
            ty.shape
        )));
    }
    cx.b.expand(parameter, shape)
}

/// Mean and inverse standard deviation over the axes from `axis` on.
fn statistics(cx: &mut Cx<'_>, x: ValueId, axis: usize, epsilon: f64) -> Result<[ValueId; 2]> {
    let axes: Vec<usize> = (axis..cx.b.type_of(x).rank()).collect();
    let mean = cx.b.mean(x, &axes, true)?;
    let centred = cx.b.sub(x, mean)?;
    let square = cx.b.mul(centred, centred)?;
    let var = cx.b.mean(square, &axes, true)?;
    let var = cx.b.add_scalar(var, epsilon)?;
    let root = cx.b.sqrt(var)?;
    Ok([mean, cx.b.reciprocal(root)?])
}

fn layer_norm(cx: &mut Cx<'_>, node: &Node<'_>) -> Result<Vec<V>> {
    let x = cx.x(node, 0)?;
    let axis = axis(node.int_or("axis", -1)?, cx.b.type_of(x).rank())?;
    let epsilon = node.float_or("epsilon", 1e-5)?;
    // The type that statistics are computed in; 1 is f32, and 16-bit floats are computed so.
    if !matches!(node.int_or("stash_type", 1)?, 1 | 11) {
        return Err(Error::unsupported("statistics in 16-bit floats"));
    }
    let scale = cx.x(node, 1)?;
    let scale = spread(cx, scale, x, axis)?;
    let bias = match cx.maybe_x(node, 2)? {
        Some(bias) => Some(spread(cx, bias, x, axis)?),
        None => None,
    };
    let mut out = Vec::new();
    if node.wants(1) || node.wants(2) {
        let wide = if matches!(cx.b.type_of(x).dtype, DType::F16 | DType::BF16) {
            cx.b.cast(x, DType::F32)?
        } else {
            x
        };
        let [mean, inverse] = statistics(cx, wide, axis, epsilon)?;
        out = vec![cx.val(mean), cx.val(inverse)];
    }
    let y = cx.b.layer_norm(x, scale, bias, axis, epsilon)?;
    out.insert(0, cx.val(y));
    Ok(out)
}

/// ONNX Runtime's layer normalization of a sum.
pub(super) fn skip_layer_norm(cx: &mut Cx<'_>, node: &Node<'_>) -> Result<Vec<V>> {
    let (x, skip, gamma) = (cx.x(node, 0)?, cx.x(node, 1)?, cx.x(node, 2)?);
    let beta = cx.maybe_x(node, 3)?;
    let bias = cx.maybe_x(node, 4)?;
    let mut sum = cx.b.add(x, skip)?;
    if let Some(bias) = bias {
        sum = cx.b.add(sum, bias)?;
    }
    let axis = cx.b.type_of(sum).rank().saturating_sub(1);
    let epsilon = node.float_or("epsilon", 1e-12)?;
    let y = cx.b.layer_norm(sum, gamma, beta, axis, epsilon)?;
    Ok(cx.one(y))
}

fn group_norm(cx: &mut Cx<'_>, node: &Node<'_>) -> Result<Vec<V>> {
    let (x, mut scale, mut bias) = (cx.x(node, 0)?, cx.x(node, 1)?, cx.x(node, 2)?);
    if !matches!(node.int_or("stash_type", 1)?, 1 | 11) {
        return Err(Error::unsupported("statistics in 16-bit floats"));
    }
    let op = GroupNorm {
        groups: count(node.int_or("num_groups", 0)?, "`num_groups`")?,
        epsilon: node.float_or("epsilon", 1e-5)?,
    };
    // Up to opset 20 there is one entry a group.
    if node.version < 21 {
        let ty = cx.b.type_of(x).clone();
        let channels = match ty.shape.dims().get(1) {
            Some(c) => c.fixed()?,
            None => return Err(Error::shape(format!("{ty} has no channels"))),
        };
        let per = channels / op.groups.max(1);
        for parameter in [&mut scale, &mut bias] {
            let column = cx.b.unsqueeze(*parameter, &[1])?;
            let wide = cx.b.expand(column, [op.groups, per])?;
            *parameter = cx.b.reshape(wide, [channels])?;
        }
    }
    let y = cx.b.op(op, &[x, scale, bias])?;
    Ok(cx.one(y))
}

fn rms_norm(cx: &mut Cx<'_>, node: &Node<'_>) -> Result<Vec<V>> {
    let x = cx.x(node, 0)?;
    let axis = axis(node.int_or("axis", -1)?, cx.b.type_of(x).rank())?;
    if !matches!(node.int_or("stash_type", 1)?, 1 | 11) {
        return Err(Error::unsupported("statistics in 16-bit floats"));
    }
    let op = RmsNorm {
        axis,
        epsilon: node.float_or("epsilon", 1e-5)?,
    };
    let scale = cx.x(node, 1)?;
    let scale = spread(cx, scale, x, axis)?;
    let y = cx.b.op(op, &[x, scale])?;
    Ok(cx.one(y))
}

fn lp_norm(cx: &mut Cx<'_>, node: &Node<'_>) -> Result<Vec<V>> {
    let x = cx.x(node, 0)?;
    let axis = axis(node.int_or("axis", -1)?, cx.b.type_of(x).rank())?;
    let norm = match node.int_or("p", 2)? {
        1 => {
            let size = cx.b.abs(x)?;
            cx.b.sum(size, &[axis], true)?
        }
        2 => {
            let square = cx.b.mul(x, x)?;
            let sum = cx.b.sum(square, &[axis], true)?;
            cx.b.sqrt(sum)?
        }
        p => return Err(Error::unsupported(format!("the norm of order {p}"))),
    };
    // 0 / 0 is 0 here.
    let zero = cx.like(norm, 0.0)?;
    let one = cx.like(norm, 1.0)?;
    let empty = cx.b.equal(norm, zero)?;
    let divisor = cx.b.select(empty, one, norm)?;
    let y = cx.b.div(x, divisor)?;
    Ok(cx.one(y))
}

fn mean_variance(cx: &mut Cx<'_>, node: &Node<'_>) -> Result<Vec<V>> {
    let x = cx.x(node, 0)?;
    let given = node.ints("axes")?.unwrap_or_else(|| vec![0, 2, 3]);
    let axes = axes(&given, cx.b.type_of(x).rank())?;
    let mean = cx.b.mean(x, &axes, true)?;
    let centred = cx.b.sub(x, mean)?;
    let square = cx.b.mul(centred, centred)?;
    let var = cx.b.mean(square, &axes, true)?;
    let deviation = cx.b.sqrt(var)?;
    let divisor = cx.b.add_scalar(deviation, 1e-9)?;
    let y = cx.b.div(centred, divisor)?;
    Ok(cx.one(y))
}

/// `x / (bias + alpha / size * sum of squares over neighbouring channels)^beta`.
fn lrn(cx: &mut Cx<'_>, node: &Node<'_>) -> Result<Vec<V>> {
    let x = cx.x(node, 0)?;
    let size = count(node.int_or("size", 0)?, "`size`")?;
    let alpha = node.float_or("alpha", 1e-4)?;
    let beta = node.float_or("beta", 0.75)?;
    let bias = node.float_or("bias", 1.0)?;
    let shape = cx.b.type_of(x).shape.clone();
    if shape.rank() < 2 || size == 0 {
        return Err(Error::invalid(format!("LRN of size {size} over {shape}")));
    }
    if size > 1 << 20 {
        return Err(Error::invalid(format!("LRN of size {size}")));
    }
    let square = cx.b.mul(x, x)?;
    // The mean over channels is average pooling with the channels as a spatial axis.
    let rest: Shape = shape.dims()[2..].iter().cloned().collect();
    let planes = cx.b.reshape(
        square,
        vec![
            shape[0].clone(),
            Dim::Fixed(1),
            shape[1].clone(),
            rest.size()?,
        ],
    )?;
    let mut window = Window::new(2);
    window.pads_begin[0] = (size - 1) / 2;
    window.pads_end[0] = size - 1 - (size - 1) / 2;
    let pool = AvgPool {
        kernel: smallvec::smallvec![size, 1],
        window,
        ceil_mode: false,
        count_include_pad: true,
    };
    let mean = cx.b.op(pool, &[planes])?;
    let mean = cx.b.reshape(mean, shape)?;
    let scaled = cx.b.mul_scalar(mean, alpha)?;
    let base = cx.b.add_scalar(scaled, bias)?;
    let beta = cx.like(x, beta)?;
    let divisor =
        cx.b.op(opt_core::ops::Binary { op: BinaryOp::Pow }, &[base, beta])?;
    let y = cx.b.div(x, divisor)?;
    Ok(cx.one(y))
}
