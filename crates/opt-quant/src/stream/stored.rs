//! Quantized weights as tensors of a safetensors file.

use opt_core::safetensors::{File, unpacked};
use opt_core::{DType, Error, ErrorKind, Result, ResultExt, Tensor, TensorType};

use super::rows::Whole;
use crate::quantized::{QuantizedTensor, quantize_rows_of};
use crate::scheme::{Format, Granularity, Scheme};

/// What a quantized weight's tensors are called beyond its name: codes, scales, zero points, and
/// the scale of the whole tensor.
const SUFFIXES: [&str; 4] = [".q", ".s", ".z", ".t"];

/// Keys of the metadata, before a weight's name.
const SCHEME: &str = "scheme:";
const SHAPE: &str = "shape:";

/// One of the tensors of a quantized weight.
#[derive(Debug)]
pub(super) struct Part {
    pub(super) suffix: &'static str,
    /// The index of the suffix.
    pub(super) place: usize,
    pub(super) dtype: DType,
    pub(super) shape: Vec<usize>,
}

/// The tensors of a weight `[out, in]` under a scheme.
pub(super) fn parts(scheme: &Scheme, shape: &[usize]) -> Result<Vec<Part>> {
    scheme.check()?;
    let part = |place: usize, dtype: DType, shape: Vec<usize>| Part {
        suffix: SUFFIXES[place],
        place,
        dtype,
        shape,
    };
    let mut parts = vec![part(0, scheme.dtype(), shape.to_vec())];
    let scales = match scheme.format() {
        Format::Half(_) => return Ok(parts),
        Format::Mx(_) => DType::F8E8M0,
        Format::NvFp4 => DType::F8E4M3,
        _ => DType::F32,
    };
    let groups: Vec<usize> = match (scheme.granularity(), shape) {
        (Granularity::Tensor, _) => Vec::new(),
        (Granularity::Channel, [out, ..]) => vec![*out],
        (Granularity::Group(group), [out @ .., cols]) => {
            let mut groups = out.to_vec();
            groups.push(cols.div_ceil(group));
            groups
        }
        _ => return Err(Error::shape(format!("{scheme} of a weight {shape:?}"))),
    };
    parts.push(part(1, scales, groups.clone()));
    if scheme.has_zero_points() {
        parts.push(part(2, scheme.dtype(), groups));
    }
    if let Format::NvFp4 = scheme.format() {
        parts.push(part(3, DType::F32, Vec::new()));
    }
    Ok(parts)
}

/// What the file's metadata says about a weight.
pub(super) fn notes(name: &str, scheme: &Scheme, shape: &[usize]) -> [(String, String); 2] {
    let shape: Vec<String> = shape.iter().map(ToString::to_string).collect();
    [
        (format!("{SCHEME}{name}"), scheme.to_string()),
        (format!("{SHAPE}{name}"), shape.join(",")),
    ]
}

/// What a whole tensor shares: the place of each and its bytes.
pub(super) fn of_whole(scheme: &Scheme, whole: Whole) -> Result<Vec<(usize, Vec<u8>)>> {
    let range = (f64::from(whole.low), f64::from(whole.high));
    let any = quantize_rows_of(&Tensor::zeros(DType::F32, [1, 1])?, scheme, Some(range))?;
    let mut found = vec![(3, any.tensor_scale())];
    if scheme.granularity() == Granularity::Tensor {
        found.extend([(1, any.scales()), (2, any.zero_points())]);
    }
    let bytes = |(place, tensor): (usize, Option<&Tensor>)| {
        tensor.map(|t| Ok((place, t.contiguous().bytes()?.to_vec())))
    };
    found.into_iter().filter_map(bytes).collect()
}

/// A weight of a file that [`QuantizeFile::to_safetensors`](super::QuantizeFile::to_safetensors)
/// wrote; the tensors share the file's bytes.
///
/// # Errors
/// [`InvalidArgument`](ErrorKind::InvalidArgument) if the file has no quantized weight of this name;
/// [`Format`](ErrorKind::Format) if its parts do not go together.
pub fn read(file: &File, name: &str) -> Result<QuantizedTensor> {
    let read = || -> Result<QuantizedTensor> {
        let note = |key: &str| file.metadata().get(&format!("{key}{name}"));
        let (Some(scheme), Some(shape)) = (note(SCHEME), note(SHAPE)) else {
            return Err(Error::invalid(
                "the file has no quantized weight of this name",
            ));
        };
        let scheme: Scheme = scheme.parse()?;
        let size = |n: &str| n.parse::<usize>();
        let shape = shape.split(',').map(size).collect::<Result<Vec<_>, _>>();
        let shape = shape.map_err(|e| {
            Error::new(ErrorKind::Format, "its shape in the file's metadata").with_source(e)
        })?;
        let mut found: [Option<Tensor>; 4] = Default::default();
        for part in parts(&scheme, &shape)? {
            let tensor = file.get(&format!("{name}{}", part.suffix))?;
            let ty = TensorType::new(part.dtype, &part.shape[..]);
            let tensor = unpacked(&ty, &tensor)?;
            if tensor.dtype() != part.dtype || tensor.shape() != part.shape {
                return Err(Error::new(
                    ErrorKind::Format,
                    format!("{ty} is expected under `{}`, found {tensor:?}", part.suffix),
                ));
            }
            found[part.place] = Some(tensor);
        }
        let [Some(codes), scales, zeros, whole] = found else {
            return Err(Error::invalid("a weight without codes"));
        };
        QuantizedTensor::from_rows(scheme, codes, scales, zeros, whole)
    };
    read().at(|| name.to_string())
}
