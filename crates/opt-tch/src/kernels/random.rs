//! Random sources: the same numbers as on every backend, from a counter (Philox 4x32-10).

use opt_core::ops::{Distribution, Dropout, Random};
use opt_core::random::Philox;
use opt_core::{Error, Result, Tensor as Host};
use smallvec::smallvec;
use tch::{Kind, Tensor};

use super::elementwise::to;
use super::{CompileCx, Kernel};
use crate::Device;
use crate::convert::{from_host, kind, kind_number};
use crate::native::{Arg, aten};

pub(super) fn compile_random(op: &Random, cx: &CompileCx<'_>) -> Result<Kernel> {
    let shape = cx.out_shape(0)?;
    let (distribution, seed, dtype) = (op.distribution, op.seed, op.dtype);
    let len = op.shape.len()?;
    let target = kind(dtype)?;
    if !matches!(
        distribution,
        Distribution::Uniform { .. } | Distribution::Normal { .. }
    ) {
        return Err(Error::unsupported(format!("{distribution:?}")));
    }
    Ok(Kernel::new("random", move |x, cx| {
        let y = match distribution {
            Distribution::Normal { mean, std } => {
                let z = normal(seed, x[0], len, cx.device)?;
                let z = aten!("mul.Scalar", &z, std)?;
                aten!("add.Scalar", &z, mean)?
            }
            Distribution::Uniform { low, high } => {
                let u = uniform(seed, x[0], len, cx.device)?;
                let u = aten!("mul.Scalar", &u, high - low)?;
                aten!("add.Scalar", &u, low)?
            }
            _ => return Err(Error::unsupported("this distribution")),
        };
        Ok(smallvec![to(&aten!("reshape", &y, &shape)?, target)?])
    }))
}

pub(super) fn compile_dropout(op: &Dropout, cx: &CompileCx<'_>) -> Result<Kernel> {
    if !op.training {
        return Ok(Kernel::one("identity", |x| Ok(x[0].shallow_clone())));
    }
    let (p, seed) = (op.p, op.seed);
    let shape = cx.shape(0)?;
    let len = cx.inputs[0].shape.len()?;
    let target = kind(cx.inputs[0].dtype)?;
    Ok(Kernel::new("dropout", move |x, cx| {
        let u = uniform(seed, x[1], len, cx.device)?;
        let kept = aten!("reshape", &aten!("ge.Scalar", &u, p)?, &shape)?;
        let mask = aten!("mul.Scalar", &to(&kept, target)?, 1.0 / (1.0 - p))?;
        Ok(smallvec![aten!("mul.Tensor", x[0], &mask)?, mask])
    }))
}

/// `len` uniform numbers of a step, in f64: exact in f32.
fn uniform(seed: u64, step: &Tensor, len: usize, device: Device) -> Result<Tensor> {
    if device == Device::Cpu {
        let step = step.f_int64_value(&[]).map_err(crate::convert::failed)? as u64;
        let stream = Philox::new(seed);
        let mut words: Vec<f32> = Vec::with_capacity(len + 3);
        for block in 0..len.div_ceil(4) as u64 {
            let four = stream.block(step, block);
            words.extend(four.map(|w| (w >> 8) as f32 / (1u32 << 24) as f32));
        }
        words.truncate(len);
        let host = from_host(&Host::new([len], words)?, device)?;
        return to(&host, Kind::Double);
    }
    let words = words(seed, step, len, device)?;
    let bits = aten!("bitwise_right_shift.Tensor_Scalar", &words, 8i64)?;
    let u = to(
        &bits,
        if device == Device::Mps {
            Kind::Float
        } else {
            Kind::Double
        },
    )?;
    aten!("mul.Scalar", &u, 1.0 / f64::from(1u32 << 24))
}

/// `len` standard normal numbers of a step (Box & Muller).
fn normal(seed: u64, step: &Tensor, len: usize, device: Device) -> Result<Tensor> {
    let pairs = len.div_ceil(2);
    let u = uniform(seed, step, 2 * pairs, device)?;
    let u = aten!("reshape", &u, &[pairs as i64, 2])?;
    let first = aten!("select.int", &u, 1i64, 0i64)?;
    let second = aten!("select.int", &u, 1i64, 1i64)?;
    let radius = aten!("log", &aten!("rsub.Scalar", &first, 1.0)?)?;
    let radius = aten!("sqrt", &aten!("mul.Scalar", &radius, -2.0)?)?;
    let angle = aten!("mul.Scalar", &second, std::f64::consts::TAU)?;
    let (cos, sin) = (aten!("cos", &angle)?, aten!("sin", &angle)?);
    let cos = aten!("mul.Tensor", &radius, &cos)?;
    let sin = aten!("mul.Tensor", &radius, &sin)?;
    let both: &[&Tensor] = &[&cos, &sin];
    let both = aten!("reshape", &aten!("stack", both, 1i64)?, &[-1])?;
    aten!("narrow", &both, 0i64, 0i64, len as i64)
}

/// The generator's words on a device, where 32-bit words are held in `i64` and products wrap to
/// the same 64 bits.
fn words(seed: u64, step: &Tensor, len: usize, device: Device) -> Result<Tensor> {
    const LOW: i64 = 0xFFFF_FFFF;
    let blocks = len.div_ceil(4) as i64;
    let low = |x: &Tensor| aten!("bitwise_and.Scalar", x, LOW);
    let high = |x: &Tensor| low(&aten!("bitwise_right_shift.Tensor_Scalar", x, 32i64)?);
    let block = aten!(
        "arange",
        blocks,
        kind_number(Kind::Int64),
        Arg::None,
        device
    )?;
    let step = aten!("expand", step, &[blocks])?;
    let mut c = [low(&block)?, high(&block)?, low(&step)?, high(&step)?];
    let mut key = [seed as u32, (seed >> 32) as u32];
    for _ in 0..10 {
        let a = aten!("mul.Scalar", &c[0], 0xD251_1F53i64)?;
        let b = aten!("mul.Scalar", &c[2], 0xCD9E_8D57i64)?;
        let mix = |x: &Tensor, y: &Tensor, k: u32| -> Result<Tensor> {
            let both = aten!("bitwise_xor.Tensor", &high(x)?, y)?;
            aten!("bitwise_xor.Scalar", &both, i64::from(k))
        };
        c = [
            mix(&b, &c[1], key[0])?,
            low(&b)?,
            mix(&a, &c[3], key[1])?,
            low(&a)?,
        ];
        key = [
            key[0].wrapping_add(0x9E37_79B9),
            key[1].wrapping_add(0xBB67_AE85),
        ];
    }
    let list: Vec<&Tensor> = c.iter().collect();
    let words = aten!("reshape", &aten!("stack", &list, 1i64)?, &[-1])?;
    aten!("narrow", &words, 0i64, 0i64, len as i64)
}

/// The generator written in operators, for a test against [`Philox`].
#[cfg(test)]
pub(crate) fn words_on(seed: u64, step: i64, len: usize) -> Result<Vec<f64>> {
    let step = from_host(&Host::scalar(step), Device::Cpu)?;
    let words = words(seed, &step, len, Device::Cpu)?;
    Ok(crate::convert::to_host(&words, opt_core::DType::I64)?.to_f64s())
}
