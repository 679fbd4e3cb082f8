//! Matrix products.

use opt_core::ops::MatMul;
use opt_core::{DType, Result};
use tch::{Kind, Tensor};

use super::elementwise::to;
use super::{CompileCx, Kernel};
use crate::Device;
use crate::native::aten;

/// The operand as the product takes it.
pub(super) fn side(x: &Tensor, transposed: bool) -> Result<Tensor> {
    match transposed {
        true => aten!("transpose.int", x, -2i64, -1i64),
        false => Ok(x.shallow_clone()),
    }
}

pub(super) fn compile(op: &MatMul, cx: &CompileCx<'_>) -> Result<Kernel> {
    let (ta, tb) = (op.trans_a, op.trans_b);
    if !cx.inputs[0].dtype.is_float() {
        return Ok(integers(ta, tb, cx));
    }
    let flat = cx.inputs.iter().all(|t| t.rank() == 2);
    Ok(match flat {
        true => Kernel::one("mm", move |x| {
            aten!("mm", &side(x[0], ta)?, &side(x[1], tb)?)
        }),
        false => Kernel::one("matmul", move |x| {
            aten!("matmul", &side(x[0], ta)?, &side(x[1], tb)?)
        }),
    })
}

/// Products of bytes: `_int_mm` takes signed ones and two matrices, so unsigned ones are moved
/// by 128, which a sum over the other side takes back.
fn integers(ta: bool, tb: bool, cx: &CompileCx<'_>) -> Kernel {
    let flat = cx.inputs.iter().all(|t| t.rank() == 2);
    let unsigned = [0, 1].map(|i| cx.inputs[i].dtype == DType::U8);
    if !flat || !takes_int_mm(ta, tb, cx) {
        return Kernel::one("matmul", move |x| {
            // Exact: sums of products of bytes are far below 2^53.
            let a = to(&side(x[0], ta)?, Kind::Double)?;
            let b = to(&side(x[1], tb)?, Kind::Double)?;
            to(&aten!("matmul", &a, &b)?, Kind::Int)
        });
    }
    Kernel::one("_int_mm", move |x| {
        product(&side(x[0], ta)?, &side(x[1], tb)?, unsigned)
    })
}

/// Whether `_int_mm` takes the sizes: on CUDA, cuBLAS wants multiples of 8 and over 16 rows.
fn takes_int_mm(ta: bool, tb: bool, cx: &CompileCx<'_>) -> bool {
    let (Ok(a), Ok(b)) = (cx.shape(0), cx.shape(1)) else {
        return false;
    };
    let (m, k) = if ta { (a[1], a[0]) } else { (a[0], a[1]) };
    let n = if tb { b[0] } else { b[1] };
    int_mm_fits(cx.device, m, k, n)
}

/// As [`takes_int_mm`], for sizes.
pub(super) fn int_mm_fits(device: Device, m: i64, k: i64, n: i64) -> bool {
    match device {
        Device::Cpu => m > 0 && k > 0 && n > 0,
        Device::Cuda(_) => m > 16 && k > 0 && k % 8 == 0 && n > 0 && n % 8 == 0,
        Device::Mps => false,
    }
}

/// The exact product `[M, K] x [K, N]` of bytes in i32.
fn product(a: &Tensor, b: &Tensor, unsigned: [bool; 2]) -> Result<Tensor> {
    let (sa, sb) = (signed(a, unsigned[0])?, signed(b, unsigned[1])?);
    let mut y = aten!("_int_mm", &sa, &sb)?;
    // (a - 128)(b - 128) sums to ab less 128 times both sums plus 128^2 K.
    let wide = i64::from(crate::convert::KIND_I32);
    if unsigned[0] {
        let columns = aten!("sum.dim_IntList", b, &[0], true, wide)?;
        y = aten!("add.Tensor", &y, &columns, 128i64)?;
    }
    if unsigned[1] {
        let rows = aten!("sum.dim_IntList", &sa, &[1], true, wide)?;
        y = aten!("add.Tensor", &y, &rows, 128i64)?;
    }
    Ok(y)
}

/// Bytes as signed ones, those without a sign moved by -128.
pub(super) fn signed(x: &Tensor, unsigned: bool) -> Result<Tensor> {
    let x = match unsigned {
        true => aten!(
            "view.dtype",
            &aten!("bitwise_xor.Scalar", x, 128i64)?,
            crate::convert::KIND_I8
        )?,
        false => x.shallow_clone(),
    };
    Ok(x)
}

/// A product with one matrix, and a bias of its columns.
pub(crate) fn compile_linear(trans_b: bool, cx: &CompileCx<'_>) -> Result<Kernel> {
    let out = cx.out_shape(0)?;
    let x = cx.shape(0)?;
    let flat = out.len() == 2;
    let inner = x[x.len() - 1];
    Ok(Kernel::one("addmm", move |x| {
        let w = side(x[1], trans_b)?;
        if flat {
            return aten!("addmm", x[2], x[0], &w);
        }
        let rows = aten!("reshape", x[0], &[-1, inner])?;
        aten!("reshape", &aten!("addmm", x[2], &rows, &w)?, &out)
    }))
}
