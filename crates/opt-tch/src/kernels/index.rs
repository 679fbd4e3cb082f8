//! Entries by index, and writing by index.

use opt_core::ops::{GatherGrad, OneHot, ScatterElements, ScatterReduction};
use opt_core::{Error, ErrorKind, Result, Tensor as Host};
use smallvec::smallvec;
use tch::{Kind, Tensor};

use super::elementwise::to;
use super::{CompileCx, Kernel, RunCx, int};
use crate::convert::{kind, kind_number};
use crate::native::{Arg, aten};

/// Whether indices are known to be none that counts from the end, and within a size.
fn plain(index: Option<&Host>, size: i64) -> bool {
    let within = |v: f64| v >= 0.0 && v < size as f64;
    index.is_some_and(|index| index.to_f64s().into_iter().all(within))
}

/// Indices as `i64` from 0 up; those below 0 count from the end.
fn positive(index: &Tensor, size: i64, cx: &RunCx, plain: bool) -> Result<Tensor> {
    let index = match index.kind() {
        Kind::Int64 => index.shallow_clone(),
        _ => to(index, Kind::Int64)?,
    };
    if plain {
        return Ok(index);
    }
    let below = aten!("lt.Scalar", &index, 0i64)?;
    let wrapped = aten!("add.Scalar", &index, size)?;
    let index = aten!("where.self", &below, &wrapped, &index)?;
    cx.guard(index, size, "a gather or scatter")
}

/// An error of an operator that had an index out of range is one of the data.
fn of_data<T>(result: Result<T>) -> Result<T> {
    result.map_err(|e| {
        let text = e.message().to_lowercase();
        match text.contains("index") && (text.contains("out of range") || text.contains("bounds")) {
            true => Error::new(ErrorKind::Data, e.message().to_string()),
            false => e,
        }
    })
}

pub(super) fn compile_gather(axis: usize, cx: &CompileCx<'_>) -> Result<Kernel> {
    let shape = cx.shape(0)?;
    let size = shape[axis];
    let out = cx.out_shape(0)?;
    let at = int(axis)?;
    let plain = plain(cx.constants[1].as_ref(), size);
    let table = axis == 0 && shape.len() == 2;
    Ok(Kernel::new("gather", move |x, cx| {
        let index = positive(x[1], size, cx, plain)?;
        if table {
            return Ok(smallvec![of_data(aten!("embedding", x[0], &index))?]);
        }
        let flat = aten!("reshape", &index, &[-1])?;
        let y = of_data(aten!("index_select", x[0], at, &flat))?;
        Ok(smallvec![aten!("reshape", &y, &out)?])
    }))
}

pub(super) fn compile_gather_grad(op: &GatherGrad, cx: &CompileCx<'_>) -> Result<Kernel> {
    let out = cx.out_shape(0)?;
    let axis = int(op.axis)?;
    let size = out[op.axis];
    let plain = plain(cx.constants[0].as_ref(), size);
    let table = op.axis == 0 && out.len() == 2;
    let mut merged = out.clone();
    merged[op.axis] = cx.shape(0)?.iter().product();
    Ok(Kernel::new("gather_backward", move |x, cx| {
        let index = positive(x[0], size, cx, plain)?;
        if table {
            let g = of_data(aten!(
                "embedding_dense_backward",
                x[1],
                &index,
                size,
                -1i64,
                false
            ))?;
            return Ok(smallvec![g]);
        }
        let flat = aten!("reshape", &index, &[-1])?;
        let g = aten!("reshape", x[1], &merged)?;
        let zeros = aten!("new_zeros", x[1], &out)?;
        Ok(smallvec![of_data(aten!(
            "index_add",
            &zeros,
            axis,
            &flat,
            &g
        ))?])
    }))
}

pub(super) fn compile_gather_elements(axis: usize, cx: &CompileCx<'_>) -> Result<Kernel> {
    let size = cx.shape(0)?[axis];
    let plain = plain(cx.constants[1].as_ref(), size);
    let axis = int(axis)?;
    Ok(Kernel::new("gather_elements", move |x, cx| {
        let index = positive(x[1], size, cx, plain)?;
        Ok(smallvec![of_data(aten!("gather", x[0], axis, &index))?])
    }))
}

pub(super) fn compile_scatter_elements(op: &ScatterElements, cx: &CompileCx<'_>) -> Result<Kernel> {
    let size = cx.shape(0)?[op.axis];
    let plain = plain(cx.constants[1].as_ref(), size);
    let axis = int(op.axis)?;
    let reduction = op.reduction;
    Ok(Kernel::new("scatter_elements", move |x, cx| {
        let index = positive(x[1], size, cx, plain)?;
        let y = match reduction {
            ScatterReduction::Add => aten!("scatter_add", x[0], axis, &index, x[2]),
            ScatterReduction::None => aten!("scatter.src", x[0], axis, &index, x[2]),
            other => Err(Error::unsupported(format!(
                "scatter with {other:?} on the libtorch backend"
            ))),
        };
        Ok(smallvec![of_data(y)?])
    }))
}

pub(super) fn compile_one_hot(op: &OneHot, cx: &CompileCx<'_>) -> Result<Kernel> {
    let (axis, depth) = (int(op.axis)?, int(op.depth)?);
    let target = kind(op.dtype)?;
    let mut along = vec![1i64; cx.outputs[0].rank()];
    along[op.axis] = depth;
    Ok(Kernel::new("one_hot", move |x, cx| {
        let index = aten!("unsqueeze", x[0], axis)?;
        let classes = aten!(
            "arange",
            depth,
            kind_number(index.kind()),
            Arg::None,
            cx.device
        )?;
        let classes = aten!("reshape", &classes, &along)?;
        Ok(smallvec![to(
            &aten!("eq.Tensor", &index, &classes)?,
            target
        )?])
    }))
}
