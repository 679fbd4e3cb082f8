//! What each op is in ONNX.

use opt_core::ops::{
    BinaryOp, Direction, Op, PadMode, ReduceOp, ScatterReduction, UnaryOp, Window,
};
use opt_core::{DType, Dim, Error, Node, NodeId, Result, Tensor};

use super::attributes::{float, int, ints, signed, text};
use super::products::{attention, matmul};
use super::{Cx, integers, nbits};
use crate::proto::AttributeProto;
use crate::tensor;

fn older(what: &str, opset: i64) -> Error {
    Error::unsupported(format!("operator set {opset} has no {what}"))
}

/// Writes a node, and those that are written together with it.
pub(super) fn write(cx: &mut Cx<'_>, id: NodeId, node: &Node) -> Result<()> {
    let name = node.name().to_string();
    let y = cx.name(node.outputs()[0]);
    match node.op() {
        Op::Unary(op) => unary(cx, node, op.op),
        Op::Binary(op) => binary(cx, node, op.op),
        Op::MatMul(op) => matmul(cx, id, node, op),
        Op::Attention(op) => attention(cx, node, op),
        Op::Where(_) => plain(cx, node, "Where", vec![]),
        Op::Cast(op) => {
            check_dtype(cx, op.dtype)?;
            check_dtype(cx, cx.ty(node.inputs()[0]).dtype)?;
            let to = int("to", tensor::code(op.dtype)?.into());
            plain(cx, node, "Cast", vec![to])
        }
        Op::Identity(_) | Op::StopGradient(_) => plain(cx, node, "Identity", vec![]),
        Op::Reduce(op) => {
            let axes = signed(&op.axes);
            let keep = int("keepdims", op.keepdims.into());
            let kind = match op.op {
                ReduceOp::Sum => "ReduceSum",
                ReduceOp::Mean => "ReduceMean",
                ReduceOp::Max => "ReduceMax",
                ReduceOp::Min => "ReduceMin",
                ReduceOp::Prod => "ReduceProd",
                other => {
                    return Err(Error::unsupported(format!(
                        "the reduction {}",
                        other.name()
                    )));
                }
            };
            // The sum took its axes as an input first.
            if cx.opset >= 18 || kind == "ReduceSum" {
                let input = cx.read(node.inputs()[0]);
                let axes = cx.ints(&format!("{name}/axes"), &axes)?;
                cx.emit(kind, &name, vec![input, axes], vec![y], vec![keep]);
                Ok(())
            } else {
                plain(cx, node, kind, vec![ints("axes", axes), keep])
            }
        }
        Op::ArgReduce(op) => {
            let kind = if op.largest { "ArgMax" } else { "ArgMin" };
            let mut attributes = vec![
                int("axis", op.axis as i64),
                int("keepdims", op.keepdims.into()),
            ];
            if op.last {
                attributes.push(int("select_last_index", 1));
            }
            plain(cx, node, kind, attributes)
        }
        Op::TopK(op) => {
            let input = cx.read(node.inputs()[0]);
            let k = cx.ints(&format!("{name}/k"), &[op.k as i64])?;
            let outputs = node.outputs().iter().map(|&o| cx.name(o)).collect();
            let attributes = vec![
                int("axis", op.axis as i64),
                int("largest", op.largest.into()),
            ];
            cx.emit("TopK", &name, vec![input, k], outputs, attributes);
            Ok(())
        }
        Op::CumSum(op) => {
            let input = cx.read(node.inputs()[0]);
            let axis = cx.constant(&format!("{name}/axis"), Tensor::scalar(op.axis as i64));
            let attributes = vec![
                int("exclusive", op.exclusive.into()),
                int("reverse", op.reverse.into()),
            ];
            cx.emit("CumSum", &name, vec![input, axis], vec![y], attributes);
            Ok(())
        }
        Op::Softmax(op) => plain(cx, node, "Softmax", vec![int("axis", op.axis as i64)]),
        Op::LogSoftmax(op) => plain(cx, node, "LogSoftmax", vec![int("axis", op.axis as i64)]),
        Op::SoftmaxCrossEntropy(_) => plain(
            cx,
            node,
            "SoftmaxCrossEntropyLoss",
            vec![text("reduction", "none")],
        ),
        Op::Conv(op) => {
            let mut attributes = window(&op.window);
            attributes.push(int("group", op.groups as i64));
            plain(cx, node, "Conv", attributes)
        }
        Op::ConvTranspose(op) => {
            let mut attributes = window(&op.window);
            attributes.push(int("group", op.groups as i64));
            attributes.push(ints("output_padding", signed(&op.output_padding)));
            plain(cx, node, "ConvTranspose", attributes)
        }
        Op::MaxPool(op) => {
            let mut attributes = window(&op.window);
            attributes.push(ints("kernel_shape", signed(&op.kernel)));
            attributes.push(int("ceil_mode", op.ceil_mode.into()));
            plain(cx, node, "MaxPool", attributes)
        }
        Op::AvgPool(op) => {
            let mut attributes = window(&op.window);
            if cx.opset < 19 {
                if op.window.dilations.iter().any(|&d| d != 1) {
                    return Err(older("average pooling with dilations", cx.opset));
                }
                attributes.retain(|a| a.name() != "dilations");
            }
            attributes.push(ints("kernel_shape", signed(&op.kernel)));
            attributes.push(int("ceil_mode", op.ceil_mode.into()));
            attributes.push(int("count_include_pad", op.count_include_pad.into()));
            plain(cx, node, "AveragePool", attributes)
        }
        Op::BatchNorm(op) if !op.training => {
            let dtype = |i: usize| cx.graph.type_of(node.inputs()[i]).dtype;
            if cx.opset < 15 && dtype(0) != dtype(1) {
                let what = "batch normalization with parameters of another dtype than its input";
                return Err(older(what, cx.opset));
            }
            plain(
                cx,
                node,
                "BatchNormalization",
                vec![
                    float("epsilon", op.epsilon),
                    float("momentum", 1.0 - op.momentum),
                ],
            )
        }
        Op::InstanceNorm(op) => plain(
            cx,
            node,
            "InstanceNormalization",
            vec![float("epsilon", op.epsilon)],
        ),
        Op::LayerNorm(op) if cx.opset >= 17 => plain(
            cx,
            node,
            "LayerNormalization",
            vec![int("axis", op.axis as i64), float("epsilon", op.epsilon)],
        ),
        Op::LayerNorm(op) => {
            let first = node.inputs()[0];
            let axes: Vec<usize> = (op.axis..cx.ty(first).rank()).collect();
            let source = cx.read(first);
            let mean = mean(cx, &name, source.clone(), &axes)?;
            let centred = cx.helper("Sub", &name, vec![source, mean], vec![]);
            normalized(cx, node, &name, centred, &axes, op.epsilon)
        }
        Op::RmsNorm(op) if cx.opset >= 23 => plain(
            cx,
            node,
            "RMSNormalization",
            vec![int("axis", op.axis as i64), float("epsilon", op.epsilon)],
        ),
        Op::RmsNorm(op) => {
            let first = node.inputs()[0];
            let axes: Vec<usize> = (op.axis..cx.ty(first).rank()).collect();
            let source = cx.read(first);
            normalized(cx, node, &name, source, &axes, op.epsilon)
        }
        Op::GroupNorm(op) if cx.opset >= 21 => plain(
            cx,
            node,
            "GroupNormalization",
            vec![
                int("num_groups", op.groups as i64),
                float("epsilon", op.epsilon),
            ],
        ),
        Op::GroupNorm(_) => Err(older(
            "group normalization with one scale a channel",
            cx.opset,
        )),
        Op::Reshape(op) => {
            let from = cx.ty(node.inputs()[0]).shape.clone();
            let input = cx.read(node.inputs()[0]);
            let target = cx.reshape_target(&format!("{name}/shape"), &from, &op.shape)?;
            let zero = op.shape.fixed().is_ok_and(|s| s.contains(&0));
            if zero && cx.opset < 14 {
                return Err(older("reshape to an empty shape", cx.opset));
            }
            let attributes = if zero {
                vec![int("allowzero", 1)]
            } else {
                vec![]
            };
            cx.emit("Reshape", &name, vec![input, target], vec![y], attributes);
            Ok(())
        }
        Op::Transpose(op) => plain(cx, node, "Transpose", vec![ints("perm", signed(&op.perm))]),
        Op::Slice(op) => {
            let shape = cx.ty(node.inputs()[0]).shape.clone();
            let mut ends = Vec::new();
            for (i, &end) in op.ends.iter().enumerate() {
                // Before the first entry is no index of its own: counted from the end it is.
                ends.push(if end < 0 {
                    -(shape[op.axes[i]].fixed()? as i64) - 1
                } else {
                    end as i64
                });
            }
            let starts: Vec<i64> = op.starts.iter().map(|&s| s as i64).collect();
            let steps: Vec<i64> = op.steps.iter().map(|&s| s as i64).collect();
            let input = cx.read(node.inputs()[0]);
            let inputs = vec![
                input,
                cx.ints(&format!("{name}/starts"), &starts)?,
                cx.ints(&format!("{name}/ends"), &ends)?,
                cx.ints(&format!("{name}/axes"), &signed(&op.axes))?,
                cx.ints(&format!("{name}/steps"), &steps)?,
            ];
            cx.emit("Slice", &name, inputs, vec![y], vec![]);
            Ok(())
        }
        Op::Concat(op) => plain(cx, node, "Concat", vec![int("axis", op.axis as i64)]),
        Op::Split(op) => {
            let input = cx.read(node.inputs()[0]);
            let sizes = cx.ints(&format!("{name}/split"), &signed(&op.sizes))?;
            let outputs = node.outputs().iter().map(|&o| cx.name(o)).collect();
            let attributes = vec![int("axis", op.axis as i64)];
            cx.emit("Split", &name, vec![input, sizes], outputs, attributes);
            Ok(())
        }
        Op::Pad(op) => {
            let input = cx.read(node.inputs()[0]);
            let pads: Vec<i64> = signed(&op.begin)
                .into_iter()
                .chain(signed(&op.end))
                .collect();
            let mut inputs = vec![input, cx.ints(&format!("{name}/pads"), &pads)?];
            let mode = match op.mode {
                PadMode::Constant(value) => {
                    inputs.push(cx.scalar(&format!("{name}/value"), node.inputs()[0], value)?);
                    "constant"
                }
                PadMode::Reflect => "reflect",
                PadMode::Edge => "edge",
                _ => return Err(Error::unsupported("the padding mode")),
            };
            cx.emit("Pad", &name, inputs, vec![y], vec![text("mode", mode)]);
            Ok(())
        }
        Op::Expand(op) => {
            let from = cx.ty(node.inputs()[0]).shape.clone();
            let lead = op.shape.rank() - from.rank();
            // A size that is there already needs no mention.
            let target = op.shape.dims().iter().enumerate().map(|(i, d)| {
                let there = i >= lead && from[i - lead] == *d && d.as_fixed().is_none();
                if there { Dim::Fixed(1) } else { d.clone() }
            });
            let target = opt_core::Shape::new(target);
            let input = cx.read(node.inputs()[0]);
            let target = cx.shape(&format!("{name}/shape"), &target)?;
            cx.emit("Expand", &name, vec![input, target], vec![y], vec![]);
            Ok(())
        }
        Op::Tile(op) => {
            let input = cx.read(node.inputs()[0]);
            let repeats = cx.ints(&format!("{name}/repeats"), &signed(&op.repeats))?;
            cx.emit("Tile", &name, vec![input, repeats], vec![y], vec![]);
            Ok(())
        }
        Op::Squeeze(op) => with_axes(cx, node, "Squeeze", &op.axes),
        Op::Unsqueeze(op) => with_axes(cx, node, "Unsqueeze", &op.axes),
        Op::Gather(op) => plain(cx, node, "Gather", vec![int("axis", op.axis as i64)]),
        Op::GatherElements(op) => plain(
            cx,
            node,
            "GatherElements",
            vec![int("axis", op.axis as i64)],
        ),
        Op::ScatterElements(op) => {
            let mut attributes = vec![int("axis", op.axis as i64)];
            match op.reduction {
                ScatterReduction::None => {}
                ScatterReduction::Add if cx.opset >= 16 => {
                    attributes.push(text("reduction", "add"))
                }
                _ => return Err(older("this scatter with a reduction", cx.opset)),
            }
            plain(cx, node, "ScatterElements", attributes)
        }
        Op::OneHot(op) => {
            let input = cx.read(node.inputs()[0]);
            let depth = cx.ints(&format!("{name}/depth"), &[op.depth as i64])?;
            let values = Tensor::from_f64s(op.dtype, [2], &[0.0, 1.0])?;
            let values = cx.constant(&format!("{name}/values"), values);
            let attributes = vec![int("axis", op.axis as i64)];
            cx.emit(
                "OneHot",
                &name,
                vec![input, depth, values],
                vec![y],
                attributes,
            );
            Ok(())
        }
        Op::Lstm(op) => recurrent(cx, node, "LSTM", op.hidden, op.direction, vec![]),
        Op::Gru(op) => {
            let linear = int("linear_before_reset", op.linear_before_reset.into());
            recurrent(cx, node, "GRU", op.hidden, op.direction, vec![linear])
        }
        Op::Dropout(op) if !op.training => {
            let input = cx.read(node.inputs()[0]);
            let ratio = cx.constant(&format!("{name}/ratio"), Tensor::scalar(op.p as f32));
            let seed = int("seed", op.seed as i64);
            cx.emit("Dropout", &name, vec![input, ratio], vec![y], vec![seed]);
            Ok(())
        }
        Op::Quantize(op) => {
            check_quantized(cx, op.dtype, op.block)?;
            let mut attributes = grid(op.axis, op.block);
            let mut inputs = cx.read_all(node.inputs());
            // Without a zero point the type has to be said otherwise.
            if inputs.len() == 2 && cx.opset >= 21 {
                attributes.push(int("output_dtype", tensor::code(op.dtype)?.into()));
            } else if inputs.len() == 2 {
                let shape = cx.ty(node.inputs()[1]).shape.fixed()?;
                let zeros = Tensor::zeros(op.dtype, shape)?;
                inputs.push(cx.constant(&format!("{name}/zero_point"), zeros));
            }
            cx.emit("QuantizeLinear", &name, inputs, vec![y], attributes);
            Ok(())
        }
        Op::Dequantize(op) => {
            let q = node.inputs()[0];
            check_quantized(cx, cx.ty(q).dtype, op.block)?;
            // Written where it is read, if a product of integers takes its place.
            if node
                .outputs()
                .iter()
                .all(|&o| integers::reader(cx, o).is_some() || nbits::readers_are_products(cx, o))
            {
                return Ok(());
            }
            // An `i32` takes no zero point.
            let wide = cx.ty(q).dtype == DType::I32;
            let count = if wide { 2 } else { node.inputs().len() };
            if let (true, Some(&zero)) = (wide, node.inputs().get(2)) {
                let zero = cx.graph.value(zero).tensor();
                if !zero.is_some_and(|z| z.to_f64s().iter().all(|&v| v == 0.0)) {
                    return Err(Error::unsupported("i32 with a zero point other than 0"));
                }
            }
            let inputs = cx.read_all(&node.inputs()[..count]);
            cx.emit(
                "DequantizeLinear",
                &name,
                inputs,
                vec![y],
                grid(op.axis, op.block),
            );
            Ok(())
        }
        Op::DynamicQuantize(_) => {
            let input = cx.read(node.inputs()[0]);
            let outputs = node.outputs().iter().map(|&o| cx.name(o)).collect();
            cx.emit("DynamicQuantizeLinear", &name, vec![input], outputs, vec![]);
            Ok(())
        }
        Op::Sizes(op) => {
            let shape = cx.shape(&format!("{name}/sizes"), &op.dims)?;
            cx.emit("Identity", &name, vec![shape], vec![y], vec![]);
            Ok(())
        }
        Op::Iota(op) => {
            let len = cx.size(&format!("{name}/len"), &op.len.expr())?;
            let scalar = cx.ints(&format!("{name}/scalar"), &[])?;
            let len = cx.helper("Reshape", &name, vec![len, scalar], vec![]);
            let zero = cx.constant(&format!("{name}/start"), Tensor::scalar(0i64));
            let one = cx.constant(&format!("{name}/delta"), Tensor::scalar(1i64));
            cx.emit("Range", &name, vec![zero, len, one], vec![y], vec![]);
            Ok(())
        }
        Op::BatchNorm(_) | Op::Dropout(_) | Op::Assign(_) => Err(Error::unsupported(
            "it belongs to training; apply the pass `EvalMode` first",
        )),
        Op::FakeQuantize(_) => Err(Error::unsupported(
            "it belongs to quantization-aware training; apply the pass `ConvertQat` first",
        )),
        _ => Err(Error::unsupported("ONNX has no counterpart of it")),
    }
}

/// One node with the op's inputs and outputs as they are.
fn plain(cx: &mut Cx<'_>, node: &Node, op: &str, attributes: Vec<AttributeProto>) -> Result<()> {
    let inputs = cx.read_all(node.inputs());
    let outputs = node.outputs().iter().map(|&o| cx.name(o)).collect();
    cx.emit(op, node.name(), inputs, outputs, attributes);
    Ok(())
}

fn with_axes(cx: &mut Cx<'_>, node: &Node, op: &str, axes: &[usize]) -> Result<()> {
    let input = cx.read(node.inputs()[0]);
    let axes = cx.ints(&format!("{}/axes", node.name()), &signed(axes))?;
    let y = cx.name(node.outputs()[0]);
    cx.emit(op, node.name(), vec![input, axes], vec![y], vec![]);
    Ok(())
}

fn window(window: &Window) -> Vec<AttributeProto> {
    let pads = signed(&window.pads_begin)
        .into_iter()
        .chain(signed(&window.pads_end));
    vec![
        ints("strides", signed(&window.strides)),
        ints("pads", pads),
        ints("dilations", signed(&window.dilations)),
    ]
}

fn grid(axis: Option<usize>, block: Option<usize>) -> Vec<AttributeProto> {
    let mut attributes = Vec::new();
    if let Some(axis) = axis {
        attributes.push(int("axis", axis as i64));
    }
    if let Some(block) = block {
        attributes.push(int("block_size", block as i64));
    }
    attributes
}

fn check_dtype(cx: &Cx<'_>, dtype: DType) -> Result<()> {
    let since = tensor::since(dtype);
    if cx.opset < since {
        return Err(older(
            &format!("{dtype}; export to {since} or newer"),
            cx.opset,
        ));
    }
    Ok(())
}

fn check_quantized(cx: &Cx<'_>, dtype: DType, block: Option<usize>) -> Result<()> {
    check_dtype(cx, dtype)?;
    if cx.opset < 21 && block.is_some() {
        return Err(older("blocks; export to 21 or newer", cx.opset));
    }
    Ok(())
}

/// The mean over axes that stay with size 1.
fn mean(cx: &mut Cx<'_>, base: &str, x: String, axes: &[usize]) -> Result<String> {
    if cx.opset >= 18 {
        let axes = cx.ints(&format!("{base}/axes"), &signed(axes))?;
        Ok(cx.helper("ReduceMean", base, vec![x, axes], vec![]))
    } else {
        Ok(cx.helper(
            "ReduceMean",
            base,
            vec![x],
            vec![ints("axes", signed(axes))],
        ))
    }
}

/// `x / sqrt(mean(x^2) + epsilon)` times the scale, plus the bias if there is one.
fn normalized(
    cx: &mut Cx<'_>,
    node: &Node,
    base: &str,
    x: String,
    axes: &[usize],
    epsilon: f64,
) -> Result<()> {
    let square = cx.helper("Mul", base, vec![x.clone(), x.clone()], vec![]);
    let mean = mean(cx, base, square, axes)?;
    let epsilon = cx.scalar(&format!("{base}/epsilon"), node.inputs()[0], epsilon)?;
    let sum = cx.helper("Add", base, vec![mean, epsilon], vec![]);
    let root = cx.helper("Sqrt", base, vec![sum], vec![]);
    let y = cx.helper("Div", base, vec![x, root], vec![]);
    let scale = cx.read(node.inputs()[1]);
    let out = cx.name(node.outputs()[0]);
    match node.inputs().get(2) {
        None => cx.emit("Mul", base, vec![y, scale], vec![out], vec![]),
        Some(&bias) => {
            let scaled = cx.helper("Mul", base, vec![y, scale], vec![]);
            let bias = cx.read(bias);
            cx.emit("Add", base, vec![scaled, bias], vec![out], vec![]);
        }
    }
    Ok(())
}

fn unary(cx: &mut Cx<'_>, node: &Node, op: UnaryOp) -> Result<()> {
    let name = node.name().to_string();
    let x = node.inputs()[0];
    let out = cx.name(node.outputs()[0]);
    let attributes = match op {
        UnaryOp::LeakyRelu { alpha } | UnaryOp::Elu { alpha } => vec![float("alpha", alpha)],
        UnaryOp::HardSigmoid { alpha, beta } => vec![float("alpha", alpha), float("beta", beta)],
        UnaryOp::Gelu { tanh } if cx.opset >= 20 => {
            let kind = if tanh { "tanh" } else { "none" };
            vec![text("approximate", kind)]
        }
        UnaryOp::Gelu { tanh } => {
            let source = cx.read(x);
            let inner = if tanh {
                let square = cx.helper("Mul", &name, vec![source.clone(), source.clone()], vec![]);
                let c = cx.scalar(&format!("{name}/cubic"), x, 0.044_715)?;
                let small = cx.helper("Mul", &name, vec![square, c], vec![]);
                let one = cx.scalar(&format!("{name}/one"), x, 1.0)?;
                let factor = cx.helper("Add", &name, vec![small, one], vec![]);
                let poly = cx.helper("Mul", &name, vec![source.clone(), factor], vec![]);
                let root = (2.0 / std::f64::consts::PI).sqrt();
                let c = cx.scalar(&format!("{name}/root"), x, root)?;
                let scaled = cx.helper("Mul", &name, vec![poly, c], vec![]);
                cx.helper("Tanh", &name, vec![scaled], vec![])
            } else {
                let c = cx.scalar(&format!("{name}/root"), x, std::f64::consts::SQRT_2)?;
                let scaled = cx.helper("Div", &name, vec![source.clone(), c], vec![]);
                cx.helper("Erf", &name, vec![scaled], vec![])
            };
            let one = cx.scalar(&format!("{name}/one"), x, 1.0)?;
            let sum = cx.helper("Add", &name, vec![inner, one], vec![]);
            let product = cx.helper("Mul", &name, vec![source, sum], vec![]);
            let half = cx.scalar(&format!("{name}/half"), x, 0.5)?;
            cx.emit("Mul", &name, vec![product, half], vec![out], vec![]);
            return Ok(());
        }
        UnaryOp::Silu if cx.opset >= 24 => {
            let source = cx.read(x);
            cx.emit("Swish", &name, vec![source], vec![out], vec![]);
            return Ok(());
        }
        UnaryOp::Silu => {
            let source = cx.read(x);
            let gate = cx.helper("Sigmoid", &name, vec![source.clone()], vec![]);
            cx.emit("Mul", &name, vec![source, gate], vec![out], vec![]);
            return Ok(());
        }
        UnaryOp::HardSwish if cx.opset < 14 => {
            let source = cx.read(x);
            let slopes = vec![float("alpha", 1.0 / 6.0), float("beta", 0.5)];
            let gate = cx.helper("HardSigmoid", &name, vec![source.clone()], slopes);
            cx.emit("Mul", &name, vec![source, gate], vec![out], vec![]);
            return Ok(());
        }
        UnaryOp::Mish if cx.opset < 18 => {
            let source = cx.read(x);
            let soft = cx.helper("Softplus", &name, vec![source.clone()], vec![]);
            let t = cx.helper("Tanh", &name, vec![soft], vec![]);
            cx.emit("Mul", &name, vec![source, t], vec![out], vec![]);
            return Ok(());
        }
        UnaryOp::Log1p => {
            let source = cx.read(x);
            let one = cx.scalar(&format!("{name}/one"), x, 1.0)?;
            let sum = cx.helper("Add", &name, vec![source, one], vec![]);
            cx.emit("Log", &name, vec![sum], vec![out], vec![]);
            return Ok(());
        }
        UnaryOp::Expm1 => {
            let source = cx.read(x);
            let e = cx.helper("Exp", &name, vec![source], vec![]);
            let one = cx.scalar(&format!("{name}/one"), x, 1.0)?;
            cx.emit("Sub", &name, vec![e, one], vec![out], vec![]);
            return Ok(());
        }
        _ => vec![],
    };
    plain(cx, node, op.name(), attributes)
}

fn binary(cx: &mut Cx<'_>, node: &Node, op: BinaryOp) -> Result<()> {
    let name = node.name().to_string();
    let (a, b) = (node.inputs()[0], node.inputs()[1]);
    let out = cx.name(node.outputs()[0]);
    match op {
        BinaryOp::NotEqual => {
            let inputs = cx.read_all(node.inputs());
            let equal = cx.helper("Equal", &name, inputs, vec![]);
            cx.emit("Not", &name, vec![equal], vec![out], vec![]);
            Ok(())
        }
        // ONNX has Python's remainder for integers only.
        BinaryOp::Mod if cx.ty(a).dtype.is_float() => {
            let (x, y) = (cx.read(a), cx.read(b));
            let quotient = cx.helper("Div", &name, vec![x.clone(), y.clone()], vec![]);
            let floor = cx.helper("Floor", &name, vec![quotient], vec![]);
            let whole = cx.helper("Mul", &name, vec![floor, y], vec![]);
            cx.emit("Sub", &name, vec![x, whole], vec![out], vec![]);
            Ok(())
        }
        _ => plain(cx, node, op.name(), vec![]),
    }
}

fn recurrent(
    cx: &mut Cx<'_>,
    node: &Node,
    op: &str,
    hidden: usize,
    direction: Direction,
    mut attributes: Vec<AttributeProto>,
) -> Result<()> {
    let mut inputs = cx.read_all(node.inputs());
    if inputs.len() > 4 {
        // No lengths: every sequence has all steps.
        inputs.insert(4, String::new());
    }
    let way = match direction {
        Direction::Reverse => "reverse",
        Direction::Bidirectional => "bidirectional",
        _ => "forward",
    };
    attributes.extend([int("hidden_size", hidden as i64), text("direction", way)]);
    let outputs = node.outputs().iter().map(|&o| cx.name(o)).collect();
    cx.emit(op, node.name(), inputs, outputs, attributes);
    Ok(())
}
