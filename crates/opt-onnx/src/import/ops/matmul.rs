//! Matrix products.

use std::collections::BTreeMap;

use opt_core::ops::{MatMul, Op};
use opt_core::{DType, Dim, Error, Result, ValueId};

use super::Lower;
use crate::import::Cx;
use crate::import::node::{Node, V};

pub(super) fn find(op: &str) -> Option<Lower> {
    Some(match op {
        "MatMul" => matmul,
        "Gemm" => gemm,
        "MatMulInteger" => matmul_integer,
        "Einsum" => einsum,
        _ => return None,
    })
}

/// numpy's `matmul`: vectors are rows on the left and columns on the right.
pub(super) fn product(
    cx: &mut Cx<'_>,
    a: ValueId,
    b: ValueId,
    trans_a: bool,
    trans_b: bool,
) -> Result<ValueId> {
    let (rank_a, rank_b) = (cx.b.type_of(a).rank(), cx.b.type_of(b).rank());
    if rank_a == 0 || rank_b == 0 {
        return Err(Error::shape("a matrix product with a scalar"));
    }
    let x = if rank_a == 1 {
        cx.b.unsqueeze(a, &[0])?
    } else {
        a
    };
    let y = if rank_b == 1 {
        cx.b.unsqueeze(b, &[1])?
    } else {
        b
    };
    let mut out = cx.b.op(MatMul { trans_a, trans_b }, &[x, y])?;
    let rank = cx.b.type_of(out).rank();
    if rank_b == 1 {
        out = cx.b.squeeze(out, &[rank - 1])?;
    }
    if rank_a == 1 {
        let row = cx.b.type_of(out).rank() - if rank_b == 1 { 1 } else { 2 };
        out = cx.b.squeeze(out, &[row])?;
    }
    Ok(out)
}

fn matmul(cx: &mut Cx<'_>, node: &Node<'_>) -> Result<Vec<V>> {
    let (a, b) = (cx.x(node, 0)?, cx.x(node, 1)?);
    // A stored weight behind a transposition is PyTorch's linear layer.
    let turned = match cx.b.graph().producer(b) {
        Some((_, t)) => match t.op() {
            Op::Transpose(op) if op.perm[..] == [1, 0] => {
                let source = t.inputs()[0];
                let stored = cx.b.graph().value(source).tensor().is_some();
                stored.then_some(source)
            }
            _ => None,
        },
        None => None,
    };
    let y = match turned {
        Some(weight) if cx.b.type_of(a).rank() > 1 => product(cx, a, weight, false, true)?,
        _ => product(cx, a, b, false, false)?,
    };
    Ok(cx.one(y))
}

pub(super) fn fused_matmul(cx: &mut Cx<'_>, node: &Node<'_>) -> Result<Vec<V>> {
    let (a, b) = (cx.x(node, 0)?, cx.x(node, 1)?);
    let (ta, tb) = (node.flag("transA", false)?, node.flag("transB", false)?);
    if node.flag("transBatchA", false)? || node.flag("transBatchB", false)? {
        return Err(Error::unsupported("a transposed batch"));
    }
    let alpha = node.float_or("alpha", 1.0)?;
    let mut y = product(cx, a, b, ta, tb)?;
    if alpha != 1.0 {
        y = cx.b.mul_scalar(y, alpha)?;
    }
    Ok(cx.one(y))
}

fn gemm(cx: &mut Cx<'_>, node: &Node<'_>) -> Result<Vec<V>> {
    let (a, b) = (cx.x(node, 0)?, cx.x(node, 1)?);
    let (alpha, beta) = (node.float_or("alpha", 1.0)?, node.float_or("beta", 1.0)?);
    let op = MatMul {
        trans_a: node.flag("transA", false)?,
        trans_b: node.flag("transB", false)?,
    };
    if cx.b.type_of(a).rank() != 2 || cx.b.type_of(b).rank() != 2 {
        return Err(Error::shape(format!(
            "Gemm takes matrices, found {} and {}",
            cx.b.type_of(a),
            cx.b.type_of(b)
        )));
    }
    let mut y = cx.b.op(op, &[a, b])?;
    if alpha != 1.0 {
        y = cx.b.mul_scalar(y, alpha)?;
    }
    if node.version < 7 {
        // Broadcasting had to be asked for.
        node.int("broadcast")?;
    }
    if let Some(c) = cx.maybe_x(node, 2)?
        && beta != 0.0
    {
        let c = if beta == 1.0 {
            c
        } else {
            cx.b.mul_scalar(c, beta)?
        };
        y = cx.b.add(y, c)?;
    }
    Ok(cx.one(y))
}

/// The zero point of an integer operand subtracted, in `f64`: sums of products of 8-bit integers
/// are exact there.
pub(super) fn centred(
    cx: &mut Cx<'_>,
    x: ValueId,
    zero: Option<ValueId>,
    per_row: bool,
) -> Result<ValueId> {
    let wide = cx.b.cast(x, DType::F64)?;
    let Some(zero) = zero else { return Ok(wide) };
    let mut zero = cx.b.cast(zero, DType::F64)?;
    if per_row && cx.b.type_of(zero).rank() == 1 {
        zero = cx.b.unsqueeze(zero, &[1])?;
    }
    cx.b.sub(wide, zero)
}

fn matmul_integer(cx: &mut Cx<'_>, node: &Node<'_>) -> Result<Vec<V>> {
    let (a, b) = (cx.x(node, 0)?, cx.x(node, 1)?);
    let (za, zb) = (cx.maybe_x(node, 2)?, cx.maybe_x(node, 3)?);
    let a = centred(cx, a, za, true)?;
    let b = centred(cx, b, zb, false)?;
    let y = product(cx, a, b, false, false)?;
    let y = cx.b.cast(y, DType::I32)?;
    Ok(cx.one(y))
}

fn einsum(cx: &mut Cx<'_>, node: &Node<'_>) -> Result<Vec<V>> {
    let equation: String = node
        .text("equation")?
        .ok_or_else(|| Error::invalid("there is no equation"))?
        .chars()
        .filter(|c| !c.is_whitespace())
        .collect();
    let inputs = node.rest(0)?;
    let mut operands = Vec::new();
    for v in inputs {
        operands.push(cx.id(v)?);
    }
    let ranks: Vec<usize> = operands.iter().map(|&x| cx.b.type_of(x).rank()).collect();
    let (terms, output) = parse(&equation, &ranks)?;
    // Operands are contracted from the left; a label goes when nothing on the right needs it.
    let mut current: Option<(ValueId, Vec<Label>)> = None;
    for (i, (&x, labels)) in operands.iter().zip(&terms).enumerate() {
        let (x, labels) = diagonal(cx, x, labels)?;
        let needed = |l: &Label| output.contains(l) || terms[i + 1..].iter().any(|t| t.contains(l));
        current = Some(match current {
            None => sum_out(cx, x, labels, &needed)?,
            Some((y, left)) => {
                let (x, labels) = {
                    let keep = |l: &Label| needed(l) || left.contains(l);
                    sum_out(cx, x, labels, &keep)?
                };
                contract(cx, (y, left), (x, labels), &needed)?
            }
        });
    }
    let Some((y, labels)) = current else {
        return Err(Error::invalid("there is no operand"));
    };
    let perm: Option<Vec<usize>> = output
        .iter()
        .map(|l| labels.iter().position(|m| m == l))
        .collect();
    let perm = perm.ok_or_else(|| {
        Error::invalid(format!(
            "`{equation}` has a label in its result that no operand has"
        ))
    })?;
    let y = if perm.iter().copied().eq(0..perm.len()) {
        y
    } else {
        cx.b.transpose(y, &perm)?
    };
    Ok(cx.one(y))
}

/// A letter, or one of the axes that an ellipsis stands for, counted from the last.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Label {
    Ellipsis(std::cmp::Reverse<usize>),
    Letter(char),
}

fn parse(equation: &str, ranks: &[usize]) -> Result<(Vec<Vec<Label>>, Vec<Label>)> {
    let bad = || {
        Error::invalid(format!(
            "the equation `{equation}` does not fit its operands"
        ))
    };
    let (left, right) = match equation.split_once("->") {
        Some((l, r)) => (l, Some(r)),
        None => (equation, None),
    };
    let labels = |text: &str, ellipsis: usize| -> Result<Vec<Label>> {
        let mut out = Vec::new();
        let mut rest = text;
        while let Some(c) = rest.chars().next() {
            if let Some(after) = rest.strip_prefix("...") {
                out.extend(
                    (0..ellipsis)
                        .rev()
                        .map(|i| Label::Ellipsis(std::cmp::Reverse(i))),
                );
                rest = after;
            } else if c.is_ascii_alphabetic() {
                out.push(Label::Letter(c));
                rest = &rest[1..];
            } else {
                return Err(bad());
            }
        }
        Ok(out)
    };
    let texts: Vec<&str> = left.split(',').collect();
    if texts.len() != ranks.len() {
        return Err(bad());
    }
    let mut terms = Vec::new();
    let mut widest = 0;
    for (text, &rank) in texts.iter().zip(ranks) {
        let letters = text.chars().filter(char::is_ascii_alphabetic).count();
        let spare = rank.checked_sub(letters).ok_or_else(bad)?;
        if spare > 0 && !text.contains("...") {
            return Err(bad());
        }
        widest = widest.max(spare);
        terms.push(labels(text, spare)?);
    }
    let output = match right {
        Some(text) => labels(text, widest)?,
        None => {
            // Ellipsis axes, then letters that stand once, in alphabetical order.
            let mut seen: BTreeMap<Label, usize> = BTreeMap::new();
            for l in terms.iter().flatten() {
                *seen.entry(*l).or_default() += 1;
            }
            let once =
                |(l, n): (Label, usize)| (n == 1 || matches!(l, Label::Ellipsis(_))).then_some(l);
            seen.into_iter().filter_map(once).collect()
        }
    };
    Ok((terms, output))
}

/// Takes the diagonal over axes that have one label.
fn diagonal(cx: &mut Cx<'_>, x: ValueId, labels: &[Label]) -> Result<(ValueId, Vec<Label>)> {
    let (mut x, mut labels) = (x, labels.to_vec());
    loop {
        let twice = (0..labels.len()).find_map(|i| {
            (i + 1..labels.len())
                .find(|&j| labels[i] == labels[j])
                .map(|j| (i, j))
        });
        let Some((i, j)) = twice else {
            return Ok((x, labels));
        };
        // Both axes to the end as one of n * n entries, of which every n + 1st is wanted.
        let rank = labels.len();
        let mut perm: Vec<usize> = (0..rank).filter(|&a| a != i && a != j).collect();
        perm.extend([i, j]);
        let moved = cx.b.transpose(x, &perm)?;
        let mut dims = cx.b.type_of(moved).shape.dims().to_vec();
        let n = dims[rank - 1].fixed()?;
        if dims[rank - 2] != dims[rank - 1] {
            return Err(Error::shape("a label stands for two sizes"));
        }
        dims.truncate(rank - 2);
        dims.push(Dim::Fixed(n * n));
        let flat = cx.b.reshape(moved, dims)?;
        let index: Vec<i64> = (0..n).map(|k| (k * (n + 1)) as i64).collect();
        let index = cx.b.constant(opt_core::Tensor::new([n], index)?);
        x = cx.b.gather(flat, index, rank - 2)?;
        let label = labels[i];
        labels = perm[..rank - 2].iter().map(|&a| labels[a]).collect();
        labels.push(label);
    }
}

fn sum_out(
    cx: &mut Cx<'_>,
    x: ValueId,
    labels: Vec<Label>,
    needed: &dyn Fn(&Label) -> bool,
) -> Result<(ValueId, Vec<Label>)> {
    let axes: Vec<usize> = (0..labels.len()).filter(|&a| !needed(&labels[a])).collect();
    if axes.is_empty() {
        return Ok((x, labels));
    }
    let y = cx.b.sum(x, &axes, false)?;
    Ok((y, labels.into_iter().filter(|l| needed(l)).collect()))
}

/// The product of two operands as one batched matrix product.
fn contract(
    cx: &mut Cx<'_>,
    (a, la): (ValueId, Vec<Label>),
    (b, lb): (ValueId, Vec<Label>),
    needed: &dyn Fn(&Label) -> bool,
) -> Result<(ValueId, Vec<Label>)> {
    let shared: Vec<Label> = la.iter().filter(|l| lb.contains(l)).copied().collect();
    let batch: Vec<Label> = shared.iter().filter(|l| needed(l)).copied().collect();
    let summed: Vec<Label> = shared.iter().filter(|l| !needed(l)).copied().collect();
    let rows: Vec<Label> = la.iter().filter(|l| !lb.contains(l)).copied().collect();
    let columns: Vec<Label> = lb.iter().filter(|l| !la.contains(l)).copied().collect();
    let arrange = |cx: &mut Cx<'_>, x: ValueId, labels: &[Label], groups: [&[Label]; 3]| {
        let perm: Vec<usize> = groups
            .iter()
            .flat_map(|g| g.iter())
            .map(|l| {
                labels
                    .iter()
                    .position(|m| m == l)
                    .expect("it is a label of x")
            })
            .collect();
        let moved = if perm.iter().copied().eq(0..perm.len()) {
            x
        } else {
            cx.b.transpose(x, &perm)?
        };
        let dims = cx.b.type_of(moved).shape.dims().to_vec();
        let split = groups[0].len();
        let mut shape = dims[..split].to_vec();
        let mut at = split;
        for group in &groups[1..] {
            let part: opt_core::Shape = dims[at..at + group.len()].iter().cloned().collect();
            shape.push(part.size()?);
            at += group.len();
        }
        cx.b.reshape(moved, shape).map(|y| (y, dims))
    };
    let (x, dims_x) = arrange(cx, a, &la, [&batch, &rows, &summed])?;
    let (y, dims_y) = arrange(cx, b, &lb, [&batch, &summed, &columns])?;
    let z = cx.b.matmul(x, y)?;
    let lead = cx.b.type_of(z).shape.dims()[..batch.len()].to_vec();
    let mut shape = lead;
    shape.extend_from_slice(&dims_x[batch.len()..batch.len() + rows.len()]);
    shape.extend_from_slice(&dims_y[batch.len() + summed.len()..]);
    let z = cx.b.reshape(z, shape)?;
    let labels = batch.into_iter().chain(rows).chain(columns).collect();
    Ok((z, labels))
}
