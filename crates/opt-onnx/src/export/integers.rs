//! Products of values quantized at run time and quantized weights, as products of integers.

use opt_core::ops::{MatMul, Op};
use opt_core::{DType, Node, NodeId, Result, ValueId};

use super::Cx;
use super::attributes::int;
use crate::tensor;

/// The most entries that a product sums over: more might leave the range of `i32`.
const MOST: usize = 1 << 15;

/// The product of integers that a dequantized value goes to, if its only reader is one.
pub(super) fn reader(cx: &Cx<'_>, value: ValueId) -> Option<NodeId> {
    let reader = cx.only_reader(value)?;
    let node = cx.graph.node(reader);
    matches!(node.op(), Op::MatMul(_))
        .then(|| product(cx, node))
        .flatten()
        .map(|_| reader)
}

/// Integers, and how they are dequantized.
#[derive(Clone, Copy)]
struct Parts {
    q: ValueId,
    scale: ValueId,
    zero: Option<ValueId>,
    axis: Option<usize>,
    block: Option<usize>,
}

/// The parts of a product of a value quantized at run time and a quantized weight.
struct Product {
    a: Parts,
    b: Parts,
    /// Whether each row of the first factor has a scale.
    rows: bool,
}

/// A value that is dequantized for one product alone, or it has to be written for the others.
fn parts(cx: &Cx<'_>, value: ValueId) -> Option<Parts> {
    cx.only_reader(value)?;
    match cx.maker(value)? {
        (_, Op::Dequantize(op), inputs) => Some(Parts {
            q: inputs[0],
            scale: inputs[1],
            zero: inputs.get(2).copied(),
            axis: op.axis,
            block: op.block,
        }),
        _ => None,
    }
}

/// Whether each row of a value is quantized when the model runs, by one scale.
fn by_rows(cx: &Cx<'_>, a: &Parts) -> bool {
    let ty = cx.ty(a.q);
    let (Some(block), Some(last)) = (a.block, ty.rank().checked_sub(1)) else {
        return false;
    };
    let Some((_, Op::Quantize(op), inputs)) = cx.maker(a.q) else {
        return false;
    };
    let same = (op.axis, op.block) == (a.axis, a.block)
        && inputs[1] == a.scale
        && inputs.get(2).copied() == a.zero;
    let computed = cx.graph.value(a.scale).tensor().is_none();
    // Older operator sets have no blocks.
    let written = cx.opset >= 21 && matches!(op.dtype, DType::I8 | DType::U8);
    let whole = a.axis == Some(last) && ty.shape[last].as_fixed() == Some(block);
    same && computed && written && whole && cx.ty(a.scale).dtype == DType::F32
}

fn product(cx: &Cx<'_>, node: &Node) -> Option<Product> {
    let Op::MatMul(op) = node.op() else {
        return None;
    };
    if op.trans_a {
        return None;
    }
    let (a, b) = (parts(cx, node.inputs()[0])?, parts(cx, node.inputs()[1])?);
    let whole = a.axis.is_none()
        && a.block.is_none()
        && matches!(cx.maker(a.q), Some((_, Op::DynamicQuantize(_), _)));
    let rows = by_rows(cx, &a);
    let weight = cx.graph.value(b.q);
    let columns = usize::from(!op.trans_b);
    let stored = |v: ValueId| cx.graph.value(v).tensor().is_some();
    let fits = (whole || rows)
        && b.block.is_none()
        && stored(b.q)
        && stored(b.scale)
        && b.zero.is_none_or(stored)
        && weight.ty().rank() == 2
        && matches!(weight.ty().dtype, DType::I8 | DType::U8)
        && (!rows || weight.ty().shape[1 - columns].as_fixed() <= Some(MOST))
        && b.axis.is_none_or(|axis| axis == columns)
        // Written as `[K, N]`, which only this product may then read.
        && (!op.trans_b || cx.only_reader(b.q).is_some());
    fits.then_some(Product { a, b, rows })
}

/// Writes a product as one of integers, scaled: the form that ONNX Runtime has kernels for. False
/// if it is none.
pub(super) fn matmul(cx: &mut Cx<'_>, node: &Node, op: &MatMul) -> Result<bool> {
    let Some(Product { a, b, rows }) = product(cx, node) else {
        return Ok(false);
    };
    let name = node.name().to_string();
    let (qa, sa) = (cx.read(a.q), cx.read(a.scale));
    let weight = if op.trans_b {
        let content = cx.graph.value(b.q).tensor().expect("stored");
        let base = cx.graph.value(b.q).name().to_string();
        cx.constant(&base, content.transpose(&[1, 0])?.contiguous())
    } else {
        cx.read(b.q)
    };
    let sb = cx.read(b.scale);
    let zero_b = zero_points(cx, &b);
    let mut operands = vec![qa, weight.clone()];
    // `MatMulInteger` takes zero points of rows by its specification, but not by its kernels.
    for zero in [a.zero.filter(|_| !rows), zero_b] {
        operands.push(zero.map_or(String::new(), |zero| cx.read(zero)));
    }
    while operands.last().is_some_and(String::is_empty) {
        operands.pop();
    }
    let mut sum = cx.helper("MatMulInteger", &name, operands, vec![]);
    let cast = |dtype: DType| -> Result<_> { Ok(vec![int("to", tensor::code(dtype)?.into())]) };
    if let (true, Some(zero)) = (rows, a.zero) {
        // Computed once, when a runtime folds constants: stored, sums are as large as biases.
        let mut columns = cx.helper("Cast", &name, vec![weight], cast(DType::I32)?);
        if let Some(zero) = zero_b {
            let zero = cx.read(zero);
            let zero = cx.helper("Cast", &name, vec![zero], cast(DType::I32)?);
            columns = cx.helper("Sub", &name, vec![columns, zero], vec![]);
        }
        let axes = cx.ints(&format!("{name}/axes"), &[0])?;
        let keep = vec![int("keepdims", 0)];
        let columns = cx.helper("ReduceSum", &name, vec![columns, axes], keep);
        let zero = cx.read(zero);
        let zero = cx.helper("Cast", &name, vec![zero], cast(DType::I32)?);
        let above = cx.helper("Mul", &name, vec![zero, columns], vec![]);
        sum = cx.helper("Sub", &name, vec![sum, above], vec![]);
    }
    let sum = cx.helper("Cast", &name, vec![sum], cast(DType::F32)?);
    let out = cx.name(node.outputs()[0]);
    let (factor, scale) = match rows {
        true => (cx.helper("Mul", &name, vec![sum, sa], vec![]), sb),
        false => (sum, cx.helper("Mul", &name, vec![sa, sb], vec![])),
    };
    cx.emit("Mul", &name, vec![factor, scale], vec![out], vec![]);
    Ok(true)
}

/// The zero points of a weight, unless all are 0.
fn zero_points(cx: &Cx<'_>, b: &Parts) -> Option<ValueId> {
    b.zero.filter(|&zero| {
        let content = cx.graph.value(zero).tensor();
        !content.is_some_and(|z| z.to_f64s().iter().all(|&v| v == 0.0))
    })
}
