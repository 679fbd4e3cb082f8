//! Products with a matrix of 4-bit integers in blocks, packed once for libtorch's own kernels.

use opt_core::ops::{Dequantize, MatMul};
use opt_core::{DType, Error, Result, Tensor as Host};
use tch::{Kind, Tensor};

use super::elementwise::to;
use super::{CompileCx, Kernel, Shared};
use crate::Device;
use crate::convert::from_host;
use crate::native::aten;

/// Rows up to which the packed kernel is faster than dequantizing for a dense product.
const ROWS: i64 = 64;

/// Whether libtorch's kernel takes the sizes and the element type.
pub(crate) fn fits(device: Device, x: DType, [m, k, n]: [i64; 3], block: usize) -> bool {
    let sized = matches!(block, 32 | 64 | 128 | 256) && k % block as i64 == 0 && m > 0 && m <= ROWS;
    match device {
        Device::Cpu => sized && matches!(x, DType::F32 | DType::BF16 | DType::F16) && n % 16 == 0,
        // The GPU's kernel packs 16 inner tiles of 8 columns and computes in bf16.
        Device::Cuda(_) => sized && x == DType::BF16 && n % 8 == 0 && k % 128 == 0,
        Device::Mps => false,
    }
}

/// `x w` with the weight's integers, scales and zero points as constants.
pub(crate) fn compile(op: MatMul, dequantize: &Dequantize, cx: &CompileCx<'_>) -> Result<Kernel> {
    let constant = |i: usize| {
        cx.constants[i]
            .as_ref()
            .ok_or_else(|| Error::invalid("a packed weight is no constant"))
    };
    let (q, scale, zero) = (constant(1)?, constant(2)?, constant(3)?);
    let block = dequantize
        .block
        .ok_or_else(|| Error::invalid("a packed weight without blocks"))? as i64;
    // From here on [N, K], and scales [K / block, N].
    let unsigned = q.dtype() == DType::U4;
    let offset = if unsigned { 0.0 } else { 8.0 };
    let turned = |t: &Tensor, turn: bool| match turn {
        true => aten!("contiguous", &aten!("t", t)?),
        false => aten!("contiguous", t),
    };
    let host = |t: &Host| from_host(t, Device::Cpu);
    let q = to(&turned(&host(q)?, !op.trans_b)?, Kind::Int)?;
    let q = match unsigned {
        true => q,
        false => aten!("add.Scalar", &q, 8i64)?,
    };
    let dtype = crate::convert::kind(cx.inputs[0].dtype)?;
    let scale = to(&turned(&host(scale)?, op.trans_b)?, Kind::Float)?;
    let zero = to(&turned(&host(zero)?, op.trans_b)?, Kind::Float)?;
    // The kernel computes (q - 8) s + z.
    let shift = aten!("rsub.Scalar", &zero, 8.0 - offset)?;
    let shift = aten!("mul.Tensor", &shift, &scale)?;
    let pair: &[&Tensor] = &[&scale, &shift];
    let pair = aten!("contiguous", &to(&aten!("stack", pair, 2i64)?, dtype)?)?;
    let device = cx.device;
    let packed = match device {
        Device::Cpu => aten!("_convert_weight_to_int4pack_for_cpu", &q, 1i64)?,
        _ => {
            // Two 4-bit integers a byte, the first in the high half.
            let even = aten!("slice.Tensor", &q, 1i64, 0i64, i64::MAX, 2i64)?;
            let odd = aten!("slice.Tensor", &q, 1i64, 1i64, i64::MAX, 2i64)?;
            let bytes = aten!("add.Tensor", &odd, &even, 16i64)?;
            let bytes = crate::convert::to_device(&to(&bytes, Kind::Uint8)?, device)?;
            aten!("_convert_weight_to_int4pack", &bytes, 8i64)?
        }
    };
    let packed = Shared::new(packed);
    let pair = Shared::new(crate::convert::to_device(&pair, device)?);
    let out = cx.out_shape(0)?;
    let x = cx.shape(0)?;
    let inner = x[x.len() - 1];
    Ok(Kernel::one("_weight_int4pack_mm", move |x| {
        let rows = aten!("contiguous", &aten!("reshape", x[0], &[-1, inner])?)?;
        let y = match device {
            Device::Cpu => aten!(
                "_weight_int4pack_mm_for_cpu",
                &rows,
                packed.get(),
                block,
                pair.get()
            )?,
            _ => aten!(
                "_weight_int4pack_mm",
                &rows,
                packed.get(),
                block,
                pair.get()
            )?,
        };
        aten!("reshape", &y, &out)
    }))
}
