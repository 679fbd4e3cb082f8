//! Reductions, scans and what is made of them.

use opt_core::ops::{ArgReduce, CumSum, Reduce, ReduceOp, TopK};
use opt_core::{DType, Dim, Error, Result, Shape, ValueId};

use super::{Lower, axes, axis, count};
use crate::import::Cx;
use crate::import::node::{Node, V};

pub(super) fn find(op: &str) -> Option<Lower> {
    Some(match op {
        "ReduceSum" | "ReduceMean" | "ReduceMax" | "ReduceMin" | "ReduceProd" | "ReduceL1"
        | "ReduceL2" | "ReduceLogSum" | "ReduceLogSumExp" | "ReduceSumSquare" => reduce,
        "ArgMax" | "ArgMin" => arg_reduce,
        "Softmax" | "LogSoftmax" => softmax,
        "Hardmax" => hardmax,
        "TopK" => top_k,
        "CumSum" => cum_sum,
        "CumProd" => cum_prod,
        _ => return None,
    })
}

fn by(
    cx: &mut Cx<'_>,
    op: ReduceOp,
    x: ValueId,
    axes: &[usize],
    keepdims: bool,
) -> Result<ValueId> {
    let op = Reduce {
        op,
        axes: axes.into(),
        keepdims,
    };
    cx.b.op(op, &[x])
}

fn reduce(cx: &mut Cx<'_>, node: &Node<'_>) -> Result<Vec<V>> {
    let x = cx.x(node, 0)?;
    let ty = cx.b.type_of(x).clone();
    let keep = node.flag("keepdims", true)?;
    let noop = node.flag("noop_with_empty_axes", false)?;
    let list = cx.ints(node, "axes", 1)?.unwrap_or_default();
    let over = if !list.is_empty() {
        axes(&list, ty.rank())?
    } else if noop {
        // Nothing is reduced, but what is done to each entry is.
        Vec::new()
    } else {
        (0..ty.rank()).collect()
    };
    let fold = |cx: &mut Cx<'_>, op: ReduceOp, x: ValueId| {
        if over.is_empty() {
            Ok(x)
        } else {
            by(cx, op, x, &over, keep)
        }
    };
    let y = match node.op() {
        "ReduceSum" => fold(cx, ReduceOp::Sum, x)?,
        "ReduceMean" => fold(cx, ReduceOp::Mean, x)?,
        op @ ("ReduceMax" | "ReduceMin") => {
            let empty = over.iter().any(|&a| ty.shape[a] == Dim::Fixed(0));
            let kind = if op == "ReduceMax" {
                ReduceOp::Max
            } else {
                ReduceOp::Min
            };
            if empty {
                extreme_of_nothing(cx, &ty.shape, ty.dtype, kind, &over, keep)?
            } else if ty.dtype == DType::Bool {
                let bytes = cx.b.cast(x, DType::U8)?;
                let y = fold(cx, kind, bytes)?;
                cx.b.cast(y, DType::Bool)?
            } else {
                fold(cx, kind, x)?
            }
        }
        "ReduceProd" => fold(cx, ReduceOp::Prod, x)?,
        "ReduceL1" => {
            let size = cx.b.abs(x)?;
            fold(cx, ReduceOp::Sum, size)?
        }
        "ReduceSumSquare" => {
            let square = cx.b.mul(x, x)?;
            fold(cx, ReduceOp::Sum, square)?
        }
        "ReduceL2" => {
            let square = cx.b.mul(x, x)?;
            let sum = fold(cx, ReduceOp::Sum, square)?;
            cx.b.sqrt(sum)?
        }
        "ReduceLogSum" => {
            let sum = fold(cx, ReduceOp::Sum, x)?;
            cx.b.log(sum)?
        }
        _ => {
            if over.is_empty() {
                return Ok(vec![node.input(0)?]);
            }
            if over.iter().any(|&a| ty.shape[a] == Dim::Fixed(0)) {
                let e = cx.b.exp(x)?;
                let sum = fold(cx, ReduceOp::Sum, e)?;
                cx.b.log(sum)?
            } else {
                log_sum_exp(cx, x, &over, keep)?
            }
        }
    };
    if y == x {
        return Ok(vec![node.input(0)?]);
    }
    Ok(cx.one(y))
}

/// The maximum or minimum of no entries: the lowest or highest number of the type.
fn extreme_of_nothing(
    cx: &mut Cx<'_>,
    shape: &Shape,
    dtype: DType,
    op: ReduceOp,
    over: &[usize],
    keep: bool,
) -> Result<ValueId> {
    let low = op == ReduceOp::Max;
    let value = match dtype {
        d if d.is_float() => f64::INFINITY,
        DType::Bool => 1.0,
        _ => return Err(Error::unsupported(format!("the extreme of no {dtype}"))),
    };
    let value = match (low, dtype) {
        (true, DType::Bool) => 0.0,
        (true, _) => -value,
        (false, _) => value,
    };
    let dims: Vec<Dim> = (0..shape.rank())
        .filter_map(|a| match (over.contains(&a), keep) {
            (false, _) => Some(shape[a].clone()),
            (true, true) => Some(Dim::Fixed(1)),
            (true, false) => None,
        })
        .collect();
    let value = cx.b.scalar(dtype, value)?;
    cx.b.expand(value, dims)
}

/// `log(sum(exp(x)))` without overflow.
pub(super) fn log_sum_exp(
    cx: &mut Cx<'_>,
    x: ValueId,
    over: &[usize],
    keep: bool,
) -> Result<ValueId> {
    let max = by(cx, ReduceOp::Max, x, over, true)?;
    // An infinite maximum would give infinity minus infinity.
    let infinite = cx.b.unary(opt_core::ops::UnaryOp::IsInf, max)?;
    let zero = cx.like(max, 0.0)?;
    let max = cx.b.select(infinite, zero, max)?;
    let shifted = cx.b.sub(x, max)?;
    let e = cx.b.exp(shifted)?;
    let sum = by(cx, ReduceOp::Sum, e, over, true)?;
    let log = cx.b.log(sum)?;
    let y = cx.b.add(log, max)?;
    if keep { Ok(y) } else { cx.b.squeeze(y, over) }
}

fn arg_reduce(cx: &mut Cx<'_>, node: &Node<'_>) -> Result<Vec<V>> {
    let x = cx.x(node, 0)?;
    let op = ArgReduce {
        largest: node.op() == "ArgMax",
        axis: axis(node.int_or("axis", 0)?, cx.b.type_of(x).rank())?,
        keepdims: node.flag("keepdims", true)?,
        last: node.flag("select_last_index", false)?,
    };
    let y = cx.b.op(op, &[x])?;
    Ok(cx.one(y))
}

/// The input as a matrix cut at an axis, as these operators had it up to opset 12.
fn coerced(
    cx: &mut Cx<'_>,
    node: &Node<'_>,
    x: ValueId,
) -> Result<(ValueId, usize, Option<Shape>)> {
    let shape = cx.b.type_of(x).shape.clone();
    if node.version >= 13 {
        let axis = axis(node.int_or("axis", -1)?, shape.rank())?;
        return Ok((x, axis, None));
    }
    let at = axis(node.int_or("axis", 1)?, shape.rank())?;
    // The last axis alone is the same thing in both.
    if at + 1 == shape.rank() {
        return Ok((x, at, None));
    }
    let part = |d: &[Dim]| d.iter().cloned().collect::<Shape>().size();
    let rows = part(&shape.dims()[..at])?;
    let columns = part(&shape.dims()[at..])?;
    let flat = cx.b.reshape(x, vec![rows, columns])?;
    Ok((flat, 1, Some(shape)))
}

fn softmax(cx: &mut Cx<'_>, node: &Node<'_>) -> Result<Vec<V>> {
    let x = cx.x(node, 0)?;
    let (x, axis, shape) = coerced(cx, node, x)?;
    let mut y = if node.op() == "Softmax" {
        cx.b.softmax(x, axis)?
    } else {
        cx.b.log_softmax(x, axis)?
    };
    if let Some(shape) = shape {
        y = cx.b.reshape(y, shape)?;
    }
    Ok(cx.one(y))
}

fn hardmax(cx: &mut Cx<'_>, node: &Node<'_>) -> Result<Vec<V>> {
    let x = cx.x(node, 0)?;
    let (x, axis, shape) = coerced(cx, node, x)?;
    let ty = cx.b.type_of(x).clone();
    let best = cx.b.argmax(x, axis)?;
    let op = opt_core::ops::OneHot {
        depth: ty.shape[axis].fixed()?,
        axis,
        dtype: DType::F32,
    };
    let mut y = cx.b.op(op, &[best])?;
    y = cx.b.cast(y, ty.dtype)?;
    if let Some(shape) = shape {
        y = cx.b.reshape(y, shape)?;
    }
    Ok(cx.one(y))
}

fn top_k(cx: &mut Cx<'_>, node: &Node<'_>) -> Result<Vec<V>> {
    let x = cx.x(node, 0)?;
    let k = match node.int("k")? {
        Some(k) => k,
        None => {
            let k = node.input(1)?;
            let list = cx.integers(k, "k")?;
            let &[k] = &list[..] else {
                return Err(Error::shape("k must be one number"));
            };
            k
        }
    };
    // Sorted entries are a valid answer where any order is allowed.
    node.flag("sorted", true)?;
    let op = TopK {
        k: count(k, "k")?,
        axis: axis(node.int_or("axis", -1)?, cx.b.type_of(x).rank())?,
        largest: node.flag("largest", true)?,
    };
    let out = cx.b.node(op, &[x])?;
    Ok(vec![cx.val(out[0]), cx.val(out[1])])
}

fn cum_sum(cx: &mut Cx<'_>, node: &Node<'_>) -> Result<Vec<V>> {
    let x = cx.x(node, 0)?;
    let at = node.input(1)?;
    let list = cx.integers(at, "the axis")?;
    let &[at] = &list[..] else {
        return Err(Error::shape("the axis must be one number"));
    };
    let op = CumSum {
        axis: axis(at, cx.b.type_of(x).rank())?,
        exclusive: node.flag("exclusive", false)?,
        reverse: node.flag("reverse", false)?,
    };
    let y = cx.b.op(op, &[x])?;
    Ok(cx.one(y))
}

/// Entries of a running product, which are multiplied one after the other.
const MAX_PRODUCT: usize = 1024;

fn cum_prod(cx: &mut Cx<'_>, node: &Node<'_>) -> Result<Vec<V>> {
    let x = cx.x(node, 0)?;
    let at = node.input(1)?;
    let list = cx.integers(at, "the axis")?;
    let &[at] = &list[..] else {
        return Err(Error::shape("the axis must be one number"));
    };
    let ty = cx.b.type_of(x).clone();
    let axis = axis(at, ty.rank())?;
    let exclusive = node.flag("exclusive", false)?;
    let reverse = node.flag("reverse", false)?;
    let n = ty.shape[axis].fixed()?;
    if n == 0 || n > MAX_PRODUCT {
        return Err(Error::unsupported(format!(
            "a running product of {n} entries"
        )));
    }
    let mut parts = vec![x; n];
    let mut product: Option<ValueId> = None;
    for k in 0..n {
        let i = if reverse { n - 1 - k } else { k };
        let entry = cx.b.slice(x, axis, i, i + 1)?;
        let next = match product {
            Some(p) => cx.b.mul(p, entry)?,
            None => entry,
        };
        parts[i] = match (exclusive, product) {
            (false, _) => next,
            (true, Some(before)) => before,
            (true, None) => cx.b.full_like(entry, 1.0)?,
        };
        product = Some(next);
    }
    let y = cx.b.concat(&parts, axis)?;
    Ok(cx.one(y))
}
