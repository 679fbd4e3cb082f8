//! Arg-max, top-k and running sums.

use opt_core::Result;
use opt_core::ops::{ArgReduce, CumSum, TopK};
use smallvec::smallvec;

use super::{CompileCx, Kernel, int};
use crate::convert::{kind, kind_number};
use crate::native::{Arg, aten, atens};

pub(super) fn compile_arg(op: &ArgReduce, cx: &CompileCx<'_>) -> Result<Kernel> {
    let (axis, keep, last) = (int(op.axis)?, op.keepdims, op.last);
    let size = cx.shape(0)?[op.axis];
    let largest = op.largest;
    let name = if largest { "argmax" } else { "argmin" };
    Ok(Kernel::one(name, move |x| {
        let x = match last {
            true => aten!("flip", x[0], &[axis])?,
            false => x[0].shallow_clone(),
        };
        let index = match largest {
            true => aten!("argmax", &x, axis, keep)?,
            false => aten!("argmin", &x, axis, keep)?,
        };
        match last {
            true => aten!("rsub.Scalar", &index, size - 1),
            false => Ok(index),
        }
    }))
}

pub(super) fn compile_top_k(op: &TopK, _: &CompileCx<'_>) -> Result<Kernel> {
    let (k, axis, largest) = (int(op.k)?, int(op.axis)?, op.largest);
    // A stable sort keeps equal entries in index order, which `topk` does not.
    Ok(Kernel::new("topk", move |x, _| {
        let sorted = atens!("sort.stable", x[0], true, axis, largest)?;
        Ok(smallvec![
            aten!("narrow", &sorted[0], axis, 0i64, k)?,
            aten!("narrow", &sorted[1], axis, 0i64, k)?,
        ])
    }))
}

pub(super) fn compile_cumsum(op: &CumSum, cx: &CompileCx<'_>) -> Result<Kernel> {
    let (axis, exclusive, reverse) = (int(op.axis)?, op.exclusive, op.reverse);
    let dtype = kind_number(kind(cx.inputs[0].dtype)?);
    let rank = cx.inputs[0].rank();
    let size = cx.shape(0)?[op.axis];
    // Pads are listed from the last axis on, two an axis.
    let mut pads = vec![0i64; 2 * (rank - op.axis)];
    pads[2 * (rank - op.axis) - 2] = 1;
    Ok(Kernel::one("cumsum", move |x| {
        let mut y = x[0].shallow_clone();
        if reverse {
            y = aten!("flip", &y, &[axis])?;
        }
        if exclusive && size > 0 {
            y = aten!("narrow", &y, axis, 0i64, size - 1)?;
            y = aten!("constant_pad_nd", &y, &pads, 0i64)?;
        }
        y = aten!("cumsum", &y, axis, Arg::Int(dtype))?;
        match reverse {
            true => aten!("flip", &y, &[axis]),
            false => Ok(y),
        }
    }))
}
