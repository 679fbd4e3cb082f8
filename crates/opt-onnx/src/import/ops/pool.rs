//! Pooling.

use opt_core::ops::{AvgPool, BinaryOp, MaxPool};
use opt_core::{Error, Result, ValueId};

use super::conv::window;
use super::{Lower, counts};
use crate::import::Cx;
use crate::import::node::{Node, V};

pub(super) fn find(op: &str) -> Option<Lower> {
    Some(match op {
        "MaxPool" => max_pool,
        "AveragePool" => average_pool,
        "LpPool" => lp_pool,
        "GlobalAveragePool" | "GlobalMaxPool" | "GlobalLpPool" => global,
        _ => return None,
    })
}

fn kernel(node: &Node<'_>) -> Result<Vec<usize>> {
    let kernel = node
        .ints("kernel_shape")?
        .ok_or_else(|| Error::invalid("there is no `kernel_shape`"))?;
    counts(&kernel, "`kernel_shape`")
}

fn max_pool(cx: &mut Cx<'_>, node: &Node<'_>) -> Result<Vec<V>> {
    let x = cx.x(node, 0)?;
    node.int("storage_order")?;
    let kernel = kernel(node)?;
    let op = MaxPool {
        window: window(node, &cx.b.type_of(x).shape.clone(), &kernel)?,
        kernel: kernel.into(),
        ceil_mode: node.flag("ceil_mode", false)?,
    };
    let y = cx.b.op(op, &[x])?;
    Ok(cx.one(y))
}

/// Average pooling of a node's attributes.
pub(super) fn average(
    cx: &mut Cx<'_>,
    node: &Node<'_>,
    x: ValueId,
    count_include_pad: bool,
) -> Result<ValueId> {
    let kernel = kernel(node)?;
    let op = AvgPool {
        window: window(node, &cx.b.type_of(x).shape.clone(), &kernel)?,
        kernel: kernel.into(),
        ceil_mode: node.flag("ceil_mode", false)?,
        count_include_pad,
    };
    cx.b.op(op, &[x])
}

fn average_pool(cx: &mut Cx<'_>, node: &Node<'_>) -> Result<Vec<V>> {
    let x = cx.x(node, 0)?;
    let include = node.flag("count_include_pad", false)?;
    let y = average(cx, node, x, include)?;
    Ok(cx.one(y))
}

/// `|x|^p` by a multiplication where that is one.
fn power(cx: &mut Cx<'_>, x: ValueId, p: f64) -> Result<ValueId> {
    if p == 1.0 {
        return cx.b.abs(x);
    }
    if p == 2.0 {
        return cx.b.mul(x, x);
    }
    let (size, p) = (cx.b.abs(x)?, cx.like(x, p)?);
    cx.b.op(opt_core::ops::Binary { op: BinaryOp::Pow }, &[size, p])
}

fn root(cx: &mut Cx<'_>, x: ValueId, p: f64) -> Result<ValueId> {
    if p == 1.0 {
        return Ok(x);
    }
    if p == 2.0 {
        return cx.b.sqrt(x);
    }
    let p = cx.like(x, 1.0 / p)?;
    cx.b.op(opt_core::ops::Binary { op: BinaryOp::Pow }, &[x, p])
}

fn lp_pool(cx: &mut Cx<'_>, node: &Node<'_>) -> Result<Vec<V>> {
    let x = cx.x(node, 0)?;
    let p = node.int_or("p", 2)? as f64;
    if node.flag("ceil_mode", false)? {
        // The divisor of a window that reaches over the end is not the kernel's size.
        return Err(Error::unsupported("LpPool with ceil_mode = 1"));
    }
    let powered = power(cx, x, p)?;
    let mean = average(cx, node, powered, true)?;
    let size: usize = kernel(node)?.iter().product();
    let sum = cx.b.mul_scalar(mean, size as f64)?;
    let y = root(cx, sum, p)?;
    Ok(cx.one(y))
}

fn global(cx: &mut Cx<'_>, node: &Node<'_>) -> Result<Vec<V>> {
    let x = cx.x(node, 0)?;
    let axes: Vec<usize> = (2..cx.b.type_of(x).rank()).collect();
    if axes.is_empty() {
        return Err(Error::shape("there are no spatial axes"));
    }
    let y = match node.op() {
        "GlobalAveragePool" => cx.b.mean(x, &axes, true)?,
        "GlobalMaxPool" => cx.b.reduce(opt_core::ops::ReduceOp::Max, x, &axes, true)?,
        _ => {
            let p = node.int_or("p", 2)? as f64;
            let powered = power(cx, x, p)?;
            let sum = cx.b.sum(powered, &axes, true)?;
            root(cx, sum, p)?
        }
    };
    Ok(cx.one(y))
}
