//! Tensors of the graph as libtorch's, and back.

use opt_core::backend::write_result;
use opt_core::tensor::{Buffer, MiniFloat};
use opt_core::{DType, Error, ErrorKind, Result, Tensor as Host};
use smallvec::SmallVec;
use tch::{Kind, Tensor};

use crate::Device;
use crate::native::{Arg, aten};

/// `at::kChar` and `at::kInt`, as operators take them.
pub(crate) const KIND_I8: i64 = 1;
pub(crate) const KIND_I32: i32 = 3;

/// An error of tch.
pub(crate) fn failed(error: tch::TchError) -> Error {
    Error::new(ErrorKind::Backend, "libtorch").with_source(error)
}

/// The element type that holds a dtype: bytes hold packed integers, and `f32` floats of 8 bits and
/// fewer.
pub(crate) fn kind(dtype: DType) -> Result<Kind> {
    Ok(match dtype {
        DType::F32 => Kind::Float,
        DType::F64 => Kind::Double,
        DType::F16 => Kind::Half,
        DType::BF16 => Kind::BFloat16,
        DType::I64 => Kind::Int64,
        DType::I32 => Kind::Int,
        DType::I8 | DType::I4 | DType::I2 => Kind::Int8,
        DType::U8 | DType::U4 | DType::U2 => Kind::Uint8,
        DType::Bool => Kind::Bool,
        other if MiniFloat::of(other).is_some() => Kind::Float,
        other => {
            return Err(Error::unsupported(format!(
                "tensors of {other} on the libtorch backend"
            )));
        }
    })
}

/// The number of an element type, as `at::ScalarType` has it.
pub(crate) fn kind_number(kind: Kind) -> i64 {
    match kind {
        Kind::Uint8 => 0,
        Kind::Int8 => KIND_I8,
        Kind::Int => KIND_I32.into(),
        Kind::Int64 => 4,
        Kind::Half => 5,
        Kind::Double => 7,
        Kind::Bool => 11,
        Kind::BFloat16 => 15,
        _ => 6,
    }
}

/// A copy on a device.
pub(crate) fn from_host(x: &Host, device: Device) -> Result<Tensor> {
    to_device(&on_cpu(x)?, device)
}

/// A copy in libtorch's own memory.
fn on_cpu(x: &Host) -> Result<Tensor> {
    let unpacked;
    let x = match x.dtype() {
        dtype if MiniFloat::of(dtype).is_some() => {
            unpacked = x.cast(DType::F32);
            &unpacked
        }
        dtype if dtype.is_packed() => {
            unpacked = x.unpack()?;
            &unpacked
        }
        _ => x,
    };
    let contiguous = x.contiguous();
    let shape: Vec<i64> = contiguous.shape().iter().map(|&n| n as i64).collect();
    Tensor::f_from_data_size(contiguous.bytes()?, &shape, kind(x.dtype())?).map_err(failed)
}

/// A copy of an input that is made while the program goes on: through pinned memory, in the
/// order of the device's work.
pub(crate) fn send(x: &Host, device: Device) -> Result<Tensor> {
    let host = on_cpu(x)?;
    if !matches!(device, Device::Cuda(_)) {
        return to_device(&host, device);
    }
    // The allocator of pinned memory keeps a block until the copies from it are done.
    let pinned = aten!("_pin_memory", &host)?;
    aten!(
        "_to_copy",
        &pinned,
        Arg::None,
        Arg::None,
        device,
        Arg::None,
        true
    )
}

/// The tensor on a device.
pub(crate) fn to_device(x: &Tensor, device: Device) -> Result<Tensor> {
    match device {
        Device::Cpu => Ok(x.shallow_clone()),
        device => aten!("_to_copy", x, Arg::None, Arg::None, device),
    }
}

/// The sizes, as the program has them.
fn shape(x: &Tensor) -> SmallVec<[usize; 6]> {
    let sizes = x.size();
    sizes.iter().map(|&n| n.unsigned_abs() as usize).collect()
}

/// A copy in a tensor of the program, in its own memory where that has the right size.
pub(crate) fn write(x: &Tensor, dtype: DType, target: &mut Host) -> Result<()> {
    if dtype.is_storage() {
        *target = to_host(x, dtype)?;
        return Ok(());
    }
    let shape = shape(x);
    let len = shape.iter().product();
    write_result(target, dtype, &shape, |bytes| read(x, len, bytes))
}

/// A copy in the program's memory.
pub(crate) fn to_host(x: &Tensor, dtype: DType) -> Result<Host> {
    let shape = shape(x);
    let len: usize = shape.iter().product();
    let mut buffer = Buffer::zeroed(len * kind(dtype)?.elt_size_in_bytes());
    read(x, len, buffer.bytes_mut())?;
    match dtype {
        _ if MiniFloat::of(dtype).is_some() => {
            Ok(Host::from_buffer(DType::F32, shape, buffer)?.cast(dtype))
        }
        _ if dtype.is_packed() => {
            let values: Vec<i8> = buffer.bytes().iter().map(|&b| b as i8).collect();
            Host::pack(dtype, shape, &values)
        }
        _ => Host::from_buffer(dtype, shape, buffer),
    }
}

/// Copies the elements, row-major.
fn read(x: &Tensor, len: usize, to: &mut [u8]) -> Result<()> {
    if len == 0 {
        return Ok(());
    }
    let x = aten!("contiguous", x)?;
    let host = match x.device() {
        tch::Device::Cpu => x,
        _ => aten!("_to_copy", &x, Arg::None, Arg::None, Device::Cpu)?,
    };
    host.f_copy_data_u8(to, len).map_err(failed)
}
