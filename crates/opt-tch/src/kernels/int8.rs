//! Products of quantized operands with exact integer sums.
//!
//! `_int_mm` multiplies bytes where it can; else the grid's whole numbers are multiplied in f32,
//! in blocks short enough that every sum is exact, so that the numbers are the same.

use opt_core::ops::{Conv, MatMul};
use opt_core::{DType, Result};
use tch::{Kind, Tensor};

use super::conv::Geometry;
use super::elementwise::to;
use super::matmul::{int_mm_fits, side, signed};
use super::{CompileCx, Kernel};
use crate::convert::kind;
use crate::native::aten;

/// Whole numbers up to this are exact in f32.
const EXACT: i64 = 1 << 24;

/// The largest size of a byte less its zero point.
fn reach(dtype: DType, zero: Option<f64>) -> i64 {
    match (dtype, zero) {
        (DType::I8, Some(0.0)) => 128,
        (DType::I4, Some(0.0)) => 8,
        (DType::I4 | DType::U4, _) => 15,
        (DType::I2 | DType::U2, _) => 3,
        _ => 255,
    }
}

/// How many products may be summed exactly in f32.
fn longest(cx: &CompileCx<'_>) -> i64 {
    let a = reach(cx.inputs[0].dtype, cx.scalar(2));
    let b = match &cx.constants[5] {
        Some(zero) if zero.to_f64s().iter().all(|&z| z == 0.0) => {
            reach(cx.inputs[3].dtype, Some(0.0))
        }
        _ => reach(cx.inputs[3].dtype, None),
    };
    (EXACT / (a * b)).max(1)
}

/// Whether a constant holds nothing but zeros.
fn zeros(cx: &CompileCx<'_>, input: usize) -> bool {
    let constant = cx.constants[input].as_ref();
    constant.is_some_and(|c| c.to_f64s().iter().all(|&v| v == 0.0))
}

/// A matrix product of quantized operands. Inputs: the first operand's integers, scale and zero
/// point (of the whole tensor), those of the second (of the tensor or of its columns), and the
/// sums of its columns.
pub(crate) fn compile_matmul(op: MatMul, cx: &CompileCx<'_>) -> Result<Kernel> {
    let (a, b) = (cx.shape(0)?, cx.shape(3)?);
    let out = cx.out_shape(0)?;
    let (k, n) = match op.trans_b {
        true => (b[b.len() - 1], b[b.len() - 2]),
        false => (b[b.len() - 2], b[b.len() - 1]),
    };
    let target = kind(cx.outputs[0].dtype)?;
    let m: i64 = a[..a.len() - 1].iter().product();
    let unsigned = [cx.inputs[0].dtype, cx.inputs[3].dtype].map(|d| d == DType::U8);
    let symmetric = zeros(cx, 5) && !unsigned[1];
    let flat = b.len() == 2 && !op.trans_a;
    if flat && int_mm_fits(cx.device, m, k, n) {
        return Ok(Kernel::one("_int_mm", move |x| {
            let rows = aten!("reshape", x[0], &[m, k])?;
            let rows = signed(&rows, unsigned[0])?;
            let weight = side(&signed(x[3], unsigned[1])?, op.trans_b)?;
            let raw = aten!("_int_mm", &rows, &weight)?;
            // With s = q - c the sum of (s + c - z)(w - v) is that of s w, plus (c - z) times
            // the column's sum of w, less v times the row's sum of (s + c - z).
            let c = if unsigned[0] { 128i64 } else { 0 };
            let shift = aten!("rsub.Scalar", &to(x[2], Kind::Int)?, c)?;
            let mut columns = x[6].shallow_clone();
            let mut zero = to(x[5], Kind::Int)?;
            if unsigned[1] {
                columns = aten!("sub.Scalar", &columns, 128 * k)?;
                zero = aten!("sub.Scalar", &zero, 128i64)?;
            }
            let mut sum = aten!("add.Tensor", &raw, &aten!("mul.Tensor", &columns, &shift)?)?;
            if !symmetric {
                let wide = i64::from(crate::convert::KIND_I32);
                let own = aten!("sum.dim_IntList", &rows, &[1], true, wide)?;
                let moved = aten!("mul.Scalar", &shift, k)?;
                let own = aten!("add.Tensor", &own, &moved)?;
                sum = aten!("sub.Tensor", &sum, &aten!("mul.Tensor", &own, &zero)?)?;
            }
            let scale = aten!("mul.Tensor", x[1], x[4])?;
            let y = aten!("mul.Tensor", &to(&sum, target)?, &scale)?;
            aten!("reshape", &y, &out)
        }));
    }
    let block = longest(cx);
    let along = cx.inputs[4].rank() == 1 && op.trans_b;
    Ok(Kernel::one("matmul (dequantized)", move |x| {
        let a = side(&whole(x[0], x[2], false)?, op.trans_a)?;
        let b = side(&whole(x[3], x[5], along)?, op.trans_b)?;
        let mut sum: Option<Tensor> = None;
        let mut start = 0;
        while start < k {
            let len = block.min(k - start);
            let part = aten!(
                "matmul",
                &aten!("narrow", &a, -1i64, start, len)?,
                &aten!("narrow", &b, -2i64, start, len)?
            )?;
            sum = Some(add(sum, part, k <= block)?);
            start += len;
        }
        let sum = match sum {
            Some(sum) => sum,
            None => aten!("new_zeros", x[1], &out)?,
        };
        let scale = aten!("mul.Tensor", x[1], x[4])?;
        aten!("mul.Tensor", &to(&sum, target)?, &scale)
    }))
}

/// Integers less their zero point, in f32; with `rows` the zero points are of the rows.
fn whole(q: &Tensor, zero: &Tensor, rows: bool) -> Result<Tensor> {
    let (q, mut zero) = (to(q, Kind::Float)?, to(zero, Kind::Float)?);
    if rows {
        zero = aten!("unsqueeze", &zero, -1i64)?;
    }
    aten!("sub.Tensor", &q, &zero)
}

/// A sum of exact blocks, in i32 where there is more than one.
fn add(sum: Option<Tensor>, part: Tensor, only: bool) -> Result<Tensor> {
    if only {
        return Ok(part);
    }
    let part = to(&part, Kind::Int)?;
    match sum {
        None => Ok(part),
        Some(sum) => aten!("add.Tensor", &sum, &part),
    }
}

/// A convolution of quantized operands without a bias; inputs as for [`compile_matmul`], but for
/// the sums.
pub(crate) fn compile_conv(op: &Conv, cx: &CompileCx<'_>) -> Result<Kernel> {
    let geometry = Geometry::new(&op.window, op.groups)?;
    let weight = cx.shape(3)?;
    let target = kind(cx.outputs[0].dtype)?;
    let taps: i64 = weight[2..].iter().product();
    let channels = weight[1];
    // Channels are cut into blocks, but not across groups.
    let block = match op.groups {
        1 => (longest(cx) / taps).max(1),
        _ => channels,
    };
    let exact = block * taps <= longest(cx);
    let mut along = vec![1i64; weight.len()];
    let each = cx.inputs[4].rank() == 1;
    if each {
        along[1] = weight[0];
    }
    let mut zeros_along = vec![1i64; weight.len()];
    if cx.inputs[5].rank() == 1 {
        zeros_along[0] = weight[0];
    }
    Ok(Kernel::one("convolution (dequantized)", move |x| {
        let a = whole(x[0], x[2], false)?;
        let zero = aten!("reshape", &to(x[5], Kind::Float)?, &zeros_along)?;
        let b = aten!("sub.Tensor", &to(x[3], Kind::Float)?, &zero)?;
        let sum = if exact {
            let mut sum: Option<Tensor> = None;
            let mut start = 0;
            while start < channels {
                let len = block.min(channels - start);
                let part = match len == channels {
                    true => geometry.forward(&a, &b, None)?,
                    false => geometry.forward(
                        &aten!("narrow", &a, 1i64, start, len)?,
                        &aten!("narrow", &b, 1i64, start, len)?,
                        None,
                    )?,
                };
                sum = Some(add(sum, part, len == channels)?);
                start += len;
            }
            sum.unwrap_or(a)
        } else {
            // A window too large for blocks of channels.
            geometry.forward(&to(&a, Kind::Double)?, &to(&b, Kind::Double)?, None)?
        };
        let scale = aten!("mul.Tensor", x[1], x[4])?;
        let scale = aten!("reshape", &scale, &along)?;
        aten!("mul.Tensor", &to(&sum, target)?, &scale)
    }))
}
