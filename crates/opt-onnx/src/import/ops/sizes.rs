//! Values made of sizes: constants of a shape, counting, triangles.

use opt_core::{DType, Dim, Error, Result, SizeExpr, Tensor, ValueId};

use super::Lower;
use crate::import::Cx;
use crate::import::node::{Node, V};
use crate::tensor;

pub(super) fn find(op: &str) -> Option<Lower> {
    Some(match op {
        "ConstantOfShape" => constant_of_shape,
        "Range" => range,
        "EyeLike" => eye_like,
        "Trilu" => trilu,
        _ => return None,
    })
}

fn constant_of_shape(cx: &mut Cx<'_>, node: &Node<'_>) -> Result<Vec<V>> {
    let shape = node.input(0)?;
    let shape: Vec<Dim> = cx
        .sizes(shape, "the shape")?
        .into_iter()
        .map(SizeExpr::dim)
        .collect::<Result<_>>()?;
    let value = match node.tensor("value")? {
        Some(proto) => tensor::read(proto, cx.source())?,
        None => Tensor::new([1], [0f32])?,
    };
    let value = cx.b.constant(value.reshape([])?);
    let y = cx.b.expand(value, shape)?;
    Ok(cx.one(y))
}

fn range(cx: &mut Cx<'_>, node: &Node<'_>) -> Result<Vec<V>> {
    let (start, limit, delta) = (node.input(0)?, node.input(1)?, node.input(2)?);
    let dtype = cx.dtype(start);
    if dtype.is_float() {
        let (s, l, d) = (
            cx.numbers(start, "the start")?,
            cx.numbers(limit, "the limit")?,
            cx.numbers(delta, "the step")?,
        );
        let (Some(&s), Some(&l), Some(&d)) = (s.first(), l.first(), d.first()) else {
            return Err(Error::shape("start, limit and step must be scalars"));
        };
        let n = ((l - s) / d).ceil().max(0.0);
        if !n.is_finite() || n > u32::MAX as f64 {
            return Err(Error::invalid(format!("{n} entries")));
        }
        let index = cx.b.iota(n as usize)?;
        // Computed in f64 and rounded once, as a multiple of the step.
        let index = cx.b.cast(index, DType::F64)?;
        let scaled = cx.b.mul_scalar(index, d)?;
        let y = cx.b.add_scalar(scaled, s)?;
        let y = cx.b.cast(y, dtype)?;
        return Ok(cx.one(y));
    }
    let starts = cx.sizes(start, "the start")?;
    let limits = cx.sizes(limit, "the limit")?;
    let deltas = cx.integers(delta, "the step")?;
    let (Some(s), Some(l), Some(&d)) = (starts.first(), limits.first(), deltas.first()) else {
        return Err(Error::shape("start, limit and step must be scalars"));
    };
    if d == 0 {
        return Err(Error::invalid("a step of 0"));
    }
    let room = if d > 0 { l.sub(s)? } else { s.sub(l)? };
    let stride = d.saturating_abs();
    let len = room.add(&(stride - 1).into())?.div_floor(stride)?;
    let len = match len.as_constant() {
        Some(n) => Dim::Fixed(n.max(0) as usize),
        None => len.dim()?,
    };
    let mut y = cx.b.iota(len)?;
    if d != 1 {
        y = cx.b.mul_scalar(y, d as f64)?;
    }
    match s.as_constant() {
        Some(0) => {}
        Some(s) => y = cx.b.add_scalar(y, s as f64)?,
        None => {
            let s = cx.b.sizes([s.clone().dim()?])?;
            y = cx.b.add(y, s)?;
        }
    }
    let y = cx.b.cast(y, dtype)?;
    Ok(cx.one(y))
}

/// Column minus row of each entry of a matrix, `[rows, columns]` of i64.
fn offsets(cx: &mut Cx<'_>, rows: Dim, columns: Dim) -> Result<ValueId> {
    let (row, column) = (cx.b.iota(rows)?, cx.b.iota(columns)?);
    let row = cx.b.unsqueeze(row, &[1])?;
    cx.b.sub(column, row)
}

fn eye_like(cx: &mut Cx<'_>, node: &Node<'_>) -> Result<Vec<V>> {
    let v = node.input(0)?;
    let ty = cx.ty(v).clone();
    let dtype = match node.int("dtype")? {
        Some(code) => tensor::dtype_of(code)?,
        None => ty.dtype,
    };
    let [rows, columns] = ty.shape.dims() else {
        return Err(Error::shape(format!("expected a matrix, found {ty}")));
    };
    let offset = offsets(cx, rows.clone(), columns.clone())?;
    let k = cx.like(offset, node.int_or("k", 0)? as f64)?;
    let on = cx.b.equal(offset, k)?;
    let y = cx.b.cast(on, dtype)?;
    Ok(cx.one(y))
}

fn trilu(cx: &mut Cx<'_>, node: &Node<'_>) -> Result<Vec<V>> {
    let x = cx.x(node, 0)?;
    let dims = cx.b.type_of(x).shape.dims().to_vec();
    let [.., rows, columns] = &dims[..] else {
        return Err(Error::shape("expected a matrix"));
    };
    let offset = offsets(cx, rows.clone(), columns.clone())?;
    let k = match node.maybe(1) {
        Some(v) => {
            let k = cx.id(v)?;
            cx.b.reshape(k, [0usize; 0])?
        }
        None => cx.like(offset, 0.0)?,
    };
    let keep = if node.flag("upper", true)? {
        cx.b.greater_or_equal(offset, k)?
    } else {
        cx.b.less_or_equal(offset, k)?
    };
    let y = if cx.b.type_of(x).dtype == DType::Bool {
        cx.b.and(x, keep)?
    } else {
        let zero = cx.like(x, 0.0)?;
        cx.b.select(keep, x, zero)?
    };
    Ok(cx.one(y))
}
