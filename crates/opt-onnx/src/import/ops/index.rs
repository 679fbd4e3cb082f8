//! Operators that pick and place entries by index.

use opt_core::ops::{ScatterElements, ScatterReduction};
use opt_core::tensor::contiguous_strides;
use opt_core::{DType, Dim, Error, Result, Shape, Tensor, ValueId};

use super::{Lower, axis, count};
use crate::import::Cx;
use crate::import::node::{Node, V};

pub(super) fn find(op: &str) -> Option<Lower> {
    Some(match op {
        "Gather" => gather,
        "GatherElements" => gather_elements,
        "GatherND" => gather_nd,
        "Scatter" | "ScatterElements" => scatter_elements,
        "ScatterND" => scatter_nd,
        "OneHot" => one_hot,
        "Compress" => compress,
        "NonZero" => non_zero,
        "TensorScatter" => tensor_scatter,
        _ => return None,
    })
}

fn gather(cx: &mut Cx<'_>, node: &Node<'_>) -> Result<Vec<V>> {
    let (x, index) = (cx.x(node, 0)?, cx.x(node, 1)?);
    let axis = axis(node.int_or("axis", 0)?, cx.b.type_of(x).rank())?;
    let y = cx.b.gather(x, index, axis)?;
    Ok(cx.one(y))
}

fn gather_elements(cx: &mut Cx<'_>, node: &Node<'_>) -> Result<Vec<V>> {
    let (x, index) = (cx.x(node, 0)?, cx.x(node, 1)?);
    let axis = axis(node.int_or("axis", 0)?, cx.b.type_of(x).rank())?;
    let y = cx.b.gather_elements(x, index, axis)?;
    Ok(cx.one(y))
}

fn reduction(node: &Node<'_>) -> Result<ScatterReduction> {
    match node.text_or("reduction", "none")? {
        "none" => Ok(ScatterReduction::None),
        "add" => Ok(ScatterReduction::Add),
        other => Err(Error::unsupported(format!("the reduction `{other}`"))),
    }
}

fn scatter_elements(cx: &mut Cx<'_>, node: &Node<'_>) -> Result<Vec<V>> {
    let (x, index, updates) = (cx.x(node, 0)?, cx.x(node, 1)?, cx.x(node, 2)?);
    let axis = axis(node.int_or("axis", 0)?, cx.b.type_of(x).rank())?;
    let reduction = reduction(node)?;
    let op = ScatterElements { axis, reduction };
    let y = cx.b.op(op, &[x, index, updates])?;
    Ok(cx.one(y))
}

/// The row-major position that the tuples along the last axis of `index` name within the axes
/// `dims`.
fn positions(cx: &mut Cx<'_>, index: ValueId, dims: &[usize]) -> Result<ValueId> {
    let ty = cx.b.type_of(index).clone();
    let last = ty.rank() - 1;
    let strides = contiguous_strides(dims);
    let sizes: Vec<i64> = dims.iter().map(|&d| d as i64).collect();
    let index = cx.b.cast(index, DType::I64)?;
    // Negative indices count from the end.
    let sizes = cx.b.constant(Tensor::new([dims.len()], sizes)?);
    let zero = cx.like(index, 0.0)?;
    let negative = cx.b.less(index, zero)?;
    let wrapped = cx.b.add(index, sizes)?;
    let index = cx.b.select(negative, wrapped, index)?;
    let strides: Vec<i64> = strides.iter().map(|&s| s as i64).collect();
    let strides = cx.b.constant(Tensor::new([dims.len()], strides)?);
    let parts = cx.b.mul(index, strides)?;
    cx.b.sum(parts, &[last], false)
}

fn gather_nd(cx: &mut Cx<'_>, node: &Node<'_>) -> Result<Vec<V>> {
    let (x, index) = (cx.x(node, 0)?, cx.x(node, 1)?);
    let batch = count(node.int_or("batch_dims", 0)?, "`batch_dims`")?;
    let (tx, ti) = (cx.b.type_of(x).clone(), cx.b.type_of(index).clone());
    let depth = match ti.shape.dims().last() {
        Some(d) => d.fixed()?,
        None => return Err(Error::shape("indices of rank 0")),
    };
    if batch + depth > tx.rank() || batch >= ti.rank() || depth == 0 {
        return Err(Error::shape(format!(
            "indices {ti} with {batch} batch axes into {tx}"
        )));
    }
    let named = Shape::new(tx.shape.dims()[batch..batch + depth].iter().cloned()).fixed()?;
    let mut at = positions(cx, index, &named)?;
    // Each batch entry starts a block of its own.
    if batch > 0 {
        let block: usize = named.iter().product();
        let outer = Shape::new(tx.shape.dims()[..batch].iter().cloned()).size()?;
        let rest = ti.rank() - 1 - batch;
        let number = cx.b.iota(outer)?;
        let start = cx.b.mul_scalar(number, block as f64)?;
        let mut shape: Vec<Dim> = tx.shape.dims()[..batch].to_vec();
        shape.extend(std::iter::repeat_n(Dim::Fixed(1), rest));
        let start = cx.b.reshape(start, shape)?;
        at = cx.b.add(at, start)?;
    }
    let lead: Shape = tx.shape.dims()[..batch + depth].iter().cloned().collect();
    let mut flat = vec![lead.size()?];
    flat.extend_from_slice(&tx.shape.dims()[batch + depth..]);
    let rows = cx.b.reshape(x, flat)?;
    let y = cx.b.gather(rows, at, 0)?;
    Ok(cx.one(y))
}

fn scatter_nd(cx: &mut Cx<'_>, node: &Node<'_>) -> Result<Vec<V>> {
    let (x, index, updates) = (cx.x(node, 0)?, cx.x(node, 1)?, cx.x(node, 2)?);
    let reduction = reduction(node)?;
    let (tx, ti) = (cx.b.type_of(x).clone(), cx.b.type_of(index).clone());
    let depth = match ti.shape.dims().last() {
        Some(d) => d.fixed()?,
        None => return Err(Error::shape("indices of rank 0")),
    };
    if depth > tx.rank() || depth == 0 {
        return Err(Error::shape(format!("indices {ti} into {tx}")));
    }
    let dims = tx.shape.fixed()?;
    let at = positions(cx, index, &dims[..depth])?;
    let (rows, width): (usize, usize) = (
        dims[..depth].iter().product(),
        dims[depth..].iter().product(),
    );
    let count = cx.b.type_of(at).shape.size()?;
    let at = cx.b.reshape(at, vec![count.clone(), Dim::Fixed(1)])?;
    let at = cx.b.expand(at, vec![count.clone(), Dim::Fixed(width)])?;
    let updates = cx.b.reshape(updates, vec![count, Dim::Fixed(width)])?;
    let flat = cx.b.reshape(x, [rows, width])?;
    let op = ScatterElements { axis: 0, reduction };
    let y = cx.b.op(op, &[flat, at, updates])?;
    let y = cx.b.reshape(y, tx.shape)?;
    Ok(cx.one(y))
}

fn one_hot(cx: &mut Cx<'_>, node: &Node<'_>) -> Result<Vec<V>> {
    let index = cx.x(node, 0)?;
    let depth = node.input(1)?;
    let depth = cx.numbers(depth, "the depth")?;
    let &[depth] = &depth[..] else {
        return Err(Error::shape("the depth must be one number"));
    };
    let depth = count(depth as i64, "the depth")?;
    let values = cx.x(node, 2)?;
    let rank = cx.b.type_of(index).rank();
    let axis = axis(node.int_or("axis", -1)?, rank + 1)?;
    let index = cx.b.cast(index, DType::I64)?;
    let (zero, size) = (cx.like(index, 0.0)?, cx.like(index, depth as f64)?);
    let negative = cx.b.less(index, zero)?;
    let wrapped = cx.b.add(index, size)?;
    let index = cx.b.select(negative, wrapped, index)?;
    // What is out of range on either side is beyond the end.
    let below = cx.b.less(index, zero)?;
    let index = cx.b.select(below, size, index)?;
    let op = opt_core::ops::OneHot {
        depth,
        axis,
        dtype: DType::F32,
    };
    let hot = cx.b.op(op, &[index])?;
    let hot = cx.b.cast(hot, DType::Bool)?;
    let pair = |cx: &mut Cx<'_>, i: usize| -> Result<ValueId> {
        let one = cx.b.slice(values, 0, i, i + 1)?;
        cx.b.reshape(one, [0usize; 0])
    };
    let (off, on) = (pair(cx, 0)?, pair(cx, 1)?);
    let y = cx.b.select(hot, on, off)?;
    Ok(cx.one(y))
}

fn compress(cx: &mut Cx<'_>, node: &Node<'_>) -> Result<Vec<V>> {
    let x = cx.x(node, 0)?;
    let condition = node.input(1)?;
    let condition = cx.integers(condition, "the condition")?;
    let (x, axis) = match node.int("axis")? {
        Some(a) => (x, axis(a, cx.b.type_of(x).rank())?),
        None => {
            let size = cx.b.type_of(x).shape.size()?;
            (cx.b.reshape(x, [size])?, 0)
        }
    };
    let kept: Vec<i64> = (0..condition.len() as i64)
        .filter(|&i| condition[i as usize] != 0)
        .collect();
    let index = cx.b.constant(Tensor::new([kept.len()], kept)?);
    let y = cx.b.gather(x, index, axis)?;
    Ok(cx.one(y))
}

fn non_zero(cx: &mut Cx<'_>, node: &Node<'_>) -> Result<Vec<V>> {
    // Where the content is known and small it has been folded.
    let v = node.input(0)?;
    cx.content(v, "the input")?;
    Err(Error::unsupported("the input is too large to be folded"))
}

fn tensor_scatter(cx: &mut Cx<'_>, node: &Node<'_>) -> Result<Vec<V>> {
    let (cache, update) = (cx.x(node, 0)?, cx.x(node, 1)?);
    let (tc, tu) = (cx.b.type_of(cache).clone(), cx.b.type_of(update).clone());
    let axis = axis(node.int_or("axis", -2)?, tc.rank())?;
    if axis == 0 {
        return Err(Error::invalid("the first axis is the batch"));
    }
    let circular = match node.text_or("mode", "linear")? {
        "linear" => false,
        "circular" => true,
        other => return Err(Error::unsupported(format!("the mode `{other}`"))),
    };
    let steps = cx.b.iota(tu.shape[axis].clone())?;
    let mut at = match cx.maybe_x(node, 2)? {
        Some(start) => {
            let start = cx.b.cast(start, DType::I64)?;
            let start = cx.b.unsqueeze(start, &[1])?;
            cx.b.add(start, steps)?
        }
        None => cx.b.unsqueeze(steps, &[0])?,
    };
    if circular {
        let size = cx.b.sizes([tc.shape[axis].clone()])?;
        at = cx.b.op(
            opt_core::ops::Binary {
                op: opt_core::ops::BinaryOp::Mod,
            },
            &[at, size],
        )?;
    }
    // [batch, 1.., steps, 1..], spread over the other axes.
    let mut shape = vec![Dim::Fixed(1); tc.rank()];
    shape[0] = cx.b.type_of(at).shape[0].clone();
    shape[axis] = tu.shape[axis].clone();
    let at = cx.b.reshape(at, shape)?;
    let at = cx.b.expand(at, tu.shape.clone())?;
    let op = ScatterElements {
        axis,
        reduction: ScatterReduction::None,
    };
    let y = cx.b.op(op, &[cache, at, update])?;
    Ok(cx.one(y))
}
