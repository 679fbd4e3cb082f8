//! Tensors of ONNX files.

use opt_core::tensor::{Buffer, Dims};
use opt_core::{DType, Error, ErrorKind, Result, ResultExt, Tensor};

use prost::Message;

use crate::proto::{TensorProto, tensor_proto};
use crate::source::Source;

use tensor_proto::DataType;

/// The name of an ONNX element type, for messages.
pub(crate) fn type_name(code: i32) -> String {
    DataType::try_from(code).map_or_else(
        |_| format!("unknown element type {code}"),
        |t| t.as_str_name().to_string(),
    )
}

/// The dtype of an ONNX element type.
///
/// # Errors
/// If there is none: strings, complex numbers, 8-bit floats without a negative zero.
pub(crate) fn dtype(code: i32) -> Result<DType> {
    Ok(match DataType::try_from(code) {
        Ok(DataType::Float) => DType::F32,
        Ok(DataType::Double) => DType::F64,
        Ok(DataType::Float16) => DType::F16,
        Ok(DataType::Bfloat16) => DType::BF16,
        Ok(DataType::Int64) => DType::I64,
        Ok(DataType::Int32) => DType::I32,
        Ok(DataType::Int8) => DType::I8,
        Ok(DataType::Uint8) => DType::U8,
        Ok(DataType::Bool) => DType::Bool,
        Ok(DataType::Int4) => DType::I4,
        Ok(DataType::Uint4) => DType::U4,
        Ok(DataType::Int2) => DType::I2,
        Ok(DataType::Uint2) => DType::U2,
        Ok(DataType::Float8e4m3fn) => DType::F8E4M3,
        Ok(DataType::Float8e5m2) => DType::F8E5M2,
        Ok(DataType::Float8e8m0) => DType::F8E8M0,
        Ok(DataType::Float6e2m3) => DType::F6E2M3,
        Ok(DataType::Float6e3m2) => DType::F6E3M2,
        Ok(DataType::Float4e2m1) => DType::F4E2M1,
        _ => {
            return Err(Error::unsupported(format!(
                "the element type {} is not supported",
                type_name(code)
            )));
        }
    })
}

/// The dtype of an ONNX element type that an attribute gives.
pub(crate) fn dtype_of(code: i64) -> Result<DType> {
    match i32::try_from(code) {
        Ok(code) => dtype(code),
        Err(_) => Err(bad(format!("{code} is no element type"))),
    }
}

/// The ONNX element type of a dtype.
///
/// # Errors
/// If ONNX has none.
pub(crate) fn code(dtype: DType) -> Result<i32> {
    let code = match dtype {
        DType::F32 => DataType::Float,
        DType::F64 => DataType::Double,
        DType::F16 => DataType::Float16,
        DType::BF16 => DataType::Bfloat16,
        DType::I64 => DataType::Int64,
        DType::I32 => DataType::Int32,
        DType::I8 => DataType::Int8,
        DType::U8 => DataType::Uint8,
        DType::Bool => DataType::Bool,
        DType::I4 => DataType::Int4,
        DType::U4 => DataType::Uint4,
        DType::I2 => DataType::Int2,
        DType::U2 => DataType::Uint2,
        DType::F8E4M3 => DataType::Float8e4m3fn,
        DType::F8E5M2 => DataType::Float8e5m2,
        DType::F8E8M0 => DataType::Float8e8m0,
        DType::F6E2M3 => DataType::Float6e2m3,
        DType::F6E3M2 => DataType::Float6e3m2,
        DType::F4E2M1 => DataType::Float4e2m1,
        other => {
            return Err(Error::unsupported(format!(
                "ONNX has no element type for {other}"
            )));
        }
    };
    Ok(code as i32)
}

/// The first operator set whose operators take a dtype.
pub(crate) fn since(dtype: DType) -> i64 {
    match dtype {
        DType::F8E4M3 | DType::F8E5M2 => 19,
        DType::I4 | DType::U4 => 21,
        DType::F4E2M1 => 23,
        DType::F8E8M0 => 24,
        DType::I2 | DType::U2 => 25,
        DType::F6E2M3 | DType::F6E3M2 => 28,
        _ => 1,
    }
}

fn bad(message: String) -> Error {
    Error::new(ErrorKind::Format, message)
}

/// The sizes of a tensor.
pub(crate) fn shape(proto: &TensorProto) -> Result<Dims> {
    let dims: Result<Dims> = proto
        .dims
        .iter()
        .map(|&d| {
            usize::try_from(d).map_err(|_| {
                bad(format!(
                    "the tensor has a negative dimension, {:?}",
                    proto.dims
                ))
            })
        })
        .collect();
    let dims = dims?;
    let len = dims
        .iter()
        .try_fold(1usize, |n, &d| n.checked_mul(d))
        .filter(|&n| n <= isize::MAX as usize / 8);
    match len {
        Some(_) => Ok(dims),
        None => Err(bad(format!("dimensions {:?} overflow", proto.dims))),
    }
}

/// Reads the bytes of an ONNX tensor (a `TensorProto`, as the `.pb` files beside test models
/// are): its name and content.
///
/// # Errors
/// If the bytes are no tensor, the element type is not supported, or the content lies in another
/// file.
pub fn read_tensor(bytes: &[u8]) -> Result<(String, Tensor)> {
    let proto = TensorProto::decode(bytes)
        .map_err(|e| bad(format!("not an ONNX tensor: {e}")).with_source(e))?;
    let tensor = read(&proto, &Source::memory())?;
    Ok((proto.name().to_string(), tensor))
}

/// Reads a tensor; its content may lie in the message or in a file beside the model's.
///
/// # Errors
/// If the element type is not supported, or the content has not the length that type and
/// dimensions say.
pub(crate) fn read(proto: &TensorProto, source: &Source) -> Result<Tensor> {
    read_inner(proto, source).at(|| format!("tensor `{}`", proto.name()))
}

fn read_inner(proto: &TensorProto, source: &Source) -> Result<Tensor> {
    let dtype = dtype(proto.data_type())?;
    let shape = shape(proto)?;
    let len: usize = shape.iter().product();
    let need = dtype.bytes(len);
    if proto.segment.is_some() {
        return Err(Error::unsupported("tensors in segments are not supported"));
    }
    if proto.data_location() == tensor_proto::DataLocation::External {
        return source.external(&proto.external_data, dtype, &shape);
    }
    if let Some(raw) = &proto.raw_data {
        if raw.len() != need {
            return Err(bad(format!(
                "{dtype}{:?} needs {need} bytes, the file has {}",
                &shape[..],
                raw.len()
            )));
        }
        let mut buffer = Buffer::zeroed(need);
        source.copy(raw, buffer.bytes_mut())?;
        return Tensor::from_buffer(dtype, &shape, buffer);
    }
    let count = |found: usize| {
        if found == len {
            return Ok(());
        }
        Err(bad(format!(
            "{dtype}{:?} needs {len} numbers, the file has {found}",
            &shape[..]
        )))
    };
    // Narrow types lie one number a 32-bit field, as the specification of `int32_data` has it.
    let ints = &proto.int32_data;
    match dtype {
        DType::F32 => {
            count(proto.float_data.len())?;
            Tensor::new(&shape, &proto.float_data)
        }
        DType::F64 => {
            count(proto.double_data.len())?;
            Tensor::new(&shape, &proto.double_data)
        }
        DType::I64 => {
            count(proto.int64_data.len())?;
            Tensor::new(&shape, &proto.int64_data)
        }
        DType::I32 => {
            count(ints.len())?;
            Tensor::new(&shape, ints)
        }
        DType::I8 => {
            count(ints.len())?;
            Tensor::new(&shape, ints.iter().map(|&v| v as i8).collect::<Vec<_>>())
        }
        DType::U8 => {
            count(ints.len())?;
            Tensor::new(&shape, ints.iter().map(|&v| v as u8).collect::<Vec<_>>())
        }
        DType::Bool => {
            count(ints.len())?;
            Tensor::from_bools(&shape, ints.iter().map(|&v| v != 0).collect::<Vec<_>>())
        }
        DType::F16 | DType::BF16 => {
            count(ints.len())?;
            let bits: Vec<u16> = ints.iter().map(|&v| v as u16).collect();
            Tensor::from_buffer(dtype, &shape, Buffer::from_slice(&bits))
        }
        DType::F8E4M3 | DType::F8E5M2 | DType::F8E8M0 | DType::F6E2M3 | DType::F6E3M2 => {
            count(ints.len())?;
            let codes: Vec<u8> = ints.iter().map(|&v| v as u8).collect();
            Tensor::from_codes(dtype, &shape, &codes)
        }
        DType::I4 | DType::U4 | DType::F4E2M1 | DType::I2 | DType::U2 => {
            // A byte a field, as in `raw_data`.
            if ints.len() != need {
                count(ints.len())?;
            }
            let bytes: Vec<u8> = ints.iter().map(|&v| v as u8).collect();
            Tensor::from_buffer(dtype, &shape, Buffer::from_slice(&bytes))
        }
        other => Err(Error::unsupported(format!("tensors of {other}"))),
    }
}

/// A tensor's name, type and sizes, without its content.
pub(crate) fn header(name: &str, tensor: &Tensor) -> Result<TensorProto> {
    Ok(TensorProto {
        name: Some(name.to_string()),
        dims: tensor.shape().iter().map(|&d| d as i64).collect(),
        data_type: Some(code(tensor.dtype())?),
        ..TensorProto::default()
    })
}
