//! Matrix products, with what is written together with them, and attention.

use opt_core::ops::{Attention, BinaryOp, MatMul, Op};
use opt_core::{DType, Node, NodeId, Result, Tensor, ValueId};

use super::attributes::{float, int, ints, signed};
use super::{Cx, integers, nbits};

/// The addition of a bias that a product is written together with.
fn bias_of(cx: &Cx<'_>, product: ValueId) -> Option<(NodeId, ValueId, ValueId)> {
    let reader = cx.only_reader(product)?;
    let node = cx.graph.node(reader);
    let Op::Binary(op) = node.op() else {
        return None;
    };
    if op.op != BinaryOp::Add || node.inputs()[0] == node.inputs()[1] {
        return None;
    }
    let bias = if node.inputs()[0] == product {
        node.inputs()[1]
    } else {
        node.inputs()[0]
    };
    // Only what is there before the product: an initializer.
    let value = cx.graph.value(bias);
    let out = cx.ty(product);
    let width = &out.shape.dims()[out.rank() - 1];
    let is_row = value.ty().rank() == 1 && (value.ty().shape[0] == *width);
    (value.tensor().is_some() && is_row).then(|| (reader, bias, node.outputs()[0]))
}

pub(super) fn matmul(cx: &mut Cx<'_>, _: NodeId, node: &Node, op: &MatMul) -> Result<()> {
    let name = node.name().to_string();
    let (a, b) = (node.inputs()[0], node.inputs()[1]);
    let product = node.outputs()[0];
    if nbits::matmul(cx, node, op)? {
        return Ok(());
    }
    if integers::matmul(cx, node, op)? {
        return Ok(());
    }
    let matrices = cx.ty(a).rank() == 2 && cx.ty(b).rank() == 2;
    let float32 = cx.ty(a).dtype.is_float();
    if matrices && float32 {
        let attributes = || {
            let mut list = Vec::new();
            if op.trans_a {
                list.push(int("transA", 1));
            }
            if op.trans_b {
                list.push(int("transB", 1));
            }
            list
        };
        if let Some((reader, bias, out)) = bias_of(cx, product) {
            // Named after the node whose output it has.
            let name = cx.graph.node(reader).name().to_string();
            let inputs = cx.read_all(&[a, b, bias]);
            let out = cx.name(out);
            cx.fused.insert(reader);
            cx.emit("Gemm", &name, inputs, vec![out], attributes());
            return Ok(());
        }
        if op.trans_a || op.trans_b {
            let inputs = cx.read_all(&[a, b]);
            let out = cx.name(product);
            cx.emit("Gemm", &name, inputs, vec![out], attributes());
            return Ok(());
        }
    }
    let mut inputs = Vec::new();
    for (x, transposed) in [(a, op.trans_a), (b, op.trans_b)] {
        let source = cx.read(x);
        inputs.push(if transposed {
            let rank = cx.ty(x).rank();
            let mut perm: Vec<usize> = (0..rank).collect();
            perm.swap(rank - 1, rank - 2);
            cx.helper(
                "Transpose",
                &name,
                vec![source],
                vec![ints("perm", signed(&perm))],
            )
        } else {
            source
        });
    }
    let out = cx.name(product);
    cx.emit("MatMul", &name, inputs, vec![out], vec![]);
    Ok(())
}

pub(super) fn attention(cx: &mut Cx<'_>, node: &Node, op: &Attention) -> Result<()> {
    let name = node.name().to_string();
    let (q, k, v) = (node.inputs()[0], node.inputs()[1], node.inputs()[2]);
    let mask = node.inputs().get(3).copied();
    let scale = op.scale_for(cx.ty(q))?;
    let rank = cx.ty(q).rank();
    let out = cx.name(node.outputs()[0]);
    let full_mask = mask.is_none_or(|m| {
        let (m, s) = (&cx.ty(m).shape, &cx.ty(q).shape);
        m.rank() >= 2 && m[m.rank() - 2] == s[rank - 2]
    });
    if cx.opset >= 23 && rank == 4 && full_mask {
        let inputs = cx.read_all(node.inputs());
        let mut attributes = Vec::new();
        if let Some(scale) = op.scale {
            attributes.push(float("scale", scale));
        }
        if op.causal {
            attributes.push(int("is_causal", 1));
        }
        cx.emit("Attention", &name, inputs, vec![out], attributes);
        return Ok(());
    }
    let (query, key, value) = (cx.read(q), cx.read(k), cx.read(v));
    let mut perm: Vec<usize> = (0..rank).collect();
    perm.swap(rank - 1, rank - 2);
    let key = cx.helper(
        "Transpose",
        &name,
        vec![key],
        vec![ints("perm", signed(&perm))],
    );
    let factor = cx.scalar(&format!("{name}/scale"), q, scale)?;
    let query = cx.helper("Mul", &name, vec![query, factor], vec![]);
    let mut scores = cx.helper("MatMul", &name, vec![query, key], vec![]);
    // Left out entries get the lowest number and, after the softmax, exactly nothing: a query
    // that sees no key then gives zeros, as the op does.
    let mut seen: Vec<String> = Vec::new();
    if op.causal {
        let (l, s) = (
            cx.ty(q).shape[rank - 2].expr(),
            cx.ty(k).shape[rank - 2].expr(),
        );
        let count = |cx: &mut Cx<'_>, size: &opt_core::SizeExpr| -> Result<String> {
            let len = cx.size(&format!("{name}/len"), size)?;
            let scalar = cx.ints(&format!("{name}/scalar"), &[])?;
            let len = cx.helper("Reshape", &name, vec![len, scalar], vec![]);
            let zero = cx.constant(&format!("{name}/start"), Tensor::scalar(0i64));
            let one = cx.constant(&format!("{name}/delta"), Tensor::scalar(1i64));
            Ok(cx.helper("Range", &name, vec![zero, len, one], vec![]))
        };
        let (rows, columns) = (count(cx, &l)?, count(cx, &s)?);
        let axis = cx.ints(&format!("{name}/axis"), &[1])?;
        let rows = cx.helper("Unsqueeze", &name, vec![rows, axis], vec![]);
        seen.push(cx.helper("LessOrEqual", &name, vec![columns, rows], vec![]));
    }
    if let Some(m) = mask {
        let read = cx.read(m);
        if cx.ty(m).dtype == DType::Bool {
            seen.push(read);
        } else {
            scores = cx.helper("Add", &name, vec![scores, read], vec![]);
        }
    }
    let lowest = match cx.ty(q).dtype {
        DType::F16 => -65504.0,
        DType::BF16 => -3.38e38,
        _ => f64::from(f32::MIN),
    };
    for condition in &seen {
        let low = cx.scalar(&format!("{name}/lowest"), q, lowest)?;
        scores = cx.helper("Where", &name, vec![condition.clone(), scores, low], vec![]);
    }
    let mut p = cx.helper(
        "Softmax",
        &name,
        vec![scores],
        vec![int("axis", rank as i64 - 1)],
    );
    for condition in seen {
        let zero = cx.scalar(&format!("{name}/zero"), q, 0.0)?;
        p = cx.helper("Where", &name, vec![condition, p, zero], vec![]);
    }
    cx.emit("MatMul", &name, vec![p, value], vec![out], vec![]);
    Ok(())
}
