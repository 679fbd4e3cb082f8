//! Quantize, dequantize and fake-quantize, in float.

use opt_core::ops::{Dequantize, FakeQuantize, Quantize};
use opt_core::tensor::MiniFloat;
use opt_core::{Error, Result};
use smallvec::smallvec;
use tch::{Kind, Tensor};

use super::elementwise::to;
use super::{CompileCx, Kernel, int};
use crate::convert::kind;
use crate::native::{Arg, aten};

/// How scales and zero points lie against the tensor that they belong to.
#[derive(Debug, Clone)]
pub(crate) enum Grid {
    Scalar,
    /// A shape that broadcasts.
    Axis(Vec<i64>),
    /// Repeated along an axis, then cut to its size.
    Block {
        axis: i64,
        block: i64,
        size: i64,
    },
}

impl Grid {
    pub(crate) fn new(shape: &[i64], axis: Option<usize>, block: Option<usize>) -> Result<Grid> {
        Ok(match (axis, block) {
            (None, _) => Grid::Scalar,
            (Some(axis), None) => {
                let mut along = vec![1; shape.len()];
                along[axis] = shape[axis];
                Grid::Axis(along)
            }
            (Some(axis), Some(block)) => Grid::Block {
                axis: int(axis)?,
                block: int(block)?,
                size: shape[axis],
            },
        })
    }

    pub(crate) fn spread(&self, parameter: &Tensor) -> Result<Tensor> {
        match self {
            Grid::Scalar => Ok(parameter.shallow_clone()),
            Grid::Axis(shape) => aten!("reshape", parameter, shape),
            Grid::Block { axis, block, size } => {
                let wide = aten!("repeat_interleave.self_int", parameter, *block, *axis)?;
                aten!("narrow", &wide, *axis, 0i64, *size)
            }
        }
    }
}

pub(super) fn compile_quantize(op: &Quantize, cx: &CompileCx<'_>) -> Result<Kernel> {
    let grid = Grid::new(&cx.shape(0)?, op.axis, op.block)?;
    if MiniFloat::of(op.dtype).is_some() {
        return Err(Error::unsupported(format!(
            "quantization to {} on the libtorch backend",
            op.dtype
        )));
    }
    let (low, high) = op.dtype.int_range()?;
    let target = kind(op.dtype)?;
    Ok(Kernel::one("quantize", move |x| {
        let scale = grid.spread(x[1])?;
        let zero = match x.get(2) {
            Some(zero) => to(&grid.spread(zero)?, x[0].kind())?,
            None => aten!("new_zeros", x[0], &[] as &[i64])?,
        };
        quantized(x[0], &scale, &zero, low, high, target)
    }))
}

fn quantized(
    x: &Tensor,
    scale: &Tensor,
    zero: &Tensor,
    low: i32,
    high: i32,
    target: Kind,
) -> Result<Tensor> {
    let q = aten!("round", &aten!("div.Tensor", x, scale)?)?;
    // NaN has the zero point's place on the grid.
    let q = aten!("nan_to_num", &q, 0.0, Arg::None, Arg::None)?;
    let q = aten!("add.Tensor", &q, zero)?;
    to(
        &aten!("clamp", &q, f64::from(low), f64::from(high))?,
        target,
    )
}

pub(super) fn compile_dequantize(op: &Dequantize, cx: &CompileCx<'_>) -> Result<Kernel> {
    let grid = Grid::new(&cx.shape(0)?, op.axis, op.block)?;
    Ok(Kernel::one("dequantize", move |x| {
        let steps = match x.get(2) {
            Some(zero) => {
                let wide = to(x[0], Kind::Int)?;
                let zero = to(&grid.spread(zero)?, Kind::Int)?;
                to(&aten!("sub.Tensor", &wide, &zero)?, x[1].kind())?
            }
            None => to(x[0], x[1].kind())?,
        };
        aten!("mul.Tensor", &steps, &grid.spread(x[1])?)
    }))
}

pub(super) fn compile_dynamic_quantize() -> Result<Kernel> {
    Ok(Kernel::new("dynamic_quantize", |x, _| {
        if x[0].numel() == 0 {
            let scale = aten!("new_ones", x[0], &[] as &[i64])?;
            let zero = to(&aten!("new_zeros", x[0], &[] as &[i64])?, Kind::Uint8)?;
            return Ok(smallvec![to(x[0], Kind::Uint8)?, scale, zero]);
        }
        let low = aten!("clamp_max", &aten!("min", x[0])?, 0.0)?;
        let high = aten!("clamp_min", &aten!("max", x[0])?, 0.0)?;
        let scale = aten!("div.Scalar", &aten!("sub.Tensor", &high, &low)?, 255.0)?;
        let empty = aten!("eq.Scalar", &scale, 0.0)?;
        let scale = aten!("masked_fill.Scalar", &scale, &empty, 1.0)?;
        let zero = aten!("neg", &aten!("div.Tensor", &low, &scale)?)?;
        let zero = aten!("clamp", &aten!("round", &zero)?, 0.0, 255.0)?;
        let q = quantized(x[0], &scale, &zero, 0, 255, Kind::Uint8)?;
        Ok(smallvec![q, scale, to(&zero, Kind::Uint8)?])
    }))
}

pub(super) fn compile_fake_quantize(op: &FakeQuantize, cx: &CompileCx<'_>) -> Result<Kernel> {
    let grid = Grid::new(&cx.shape(0)?, op.axis, None)?;
    let (low, high) = (f64::from(op.low), f64::from(op.high));
    Ok(Kernel::one("fake_quantize", move |x| {
        let (scale, zero) = (grid.spread(x[1])?, grid.spread(x[2])?);
        let q = aten!("add.Tensor", &aten!("div.Tensor", x[0], &scale)?, &zero)?;
        let q = aten!("clamp", &aten!("round", &q)?, low, high)?;
        aten!("mul.Tensor", &aten!("sub.Tensor", &q, &zero)?, &scale)
    }))
}
