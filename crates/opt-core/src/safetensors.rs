//! Named tensors in safetensors files: a header as JSON, then the bytes of each tensor.
//!
//! ```
//! use std::sync::Arc;
//! use opt_core::{DType, Tensor, safetensors};
//!
//! let weight = Tensor::new([2, 2], [1f32, 2.0, 3.0, 4.0])?;
//! let scale = Tensor::full(DType::F16, [2], 0.5)?;
//! let bytes = safetensors::encode([("weight", &weight), ("scale", &scale)], &[])?;
//!
//! let file = safetensors::File::parse(Arc::new(bytes))?;
//! assert_eq!(file.names(), ["weight", "scale"]);
//! assert_eq!(file.get("weight")?.to_vec::<f32>()?, [1.0, 2.0, 3.0, 4.0]);
//! # Ok::<(), opt_core::Error>(())
//! ```
//!
//! The format is that of <https://github.com/huggingface/safetensors>, byte for byte what its own
//! writer makes. It has no 4-bit integers: packed tensors are stored as their bytes, and
//! [`unpacked`] makes them tensors again where the type is known.

use std::collections::{BTreeMap, HashSet};
use std::io::Write;
use std::ops::Range;
use std::sync::Arc;

use ::safetensors::Dtype;
use ::safetensors::tensor::{Metadata, TensorInfo};
use serde::ser::{Serialize, SerializeMap, Serializer};

use crate::tensor::Buffer;
use crate::{DType, Error, ErrorKind, Result, ResultExt, Tensor, TensorType};

/// The longest header, as the format has it.
const MAX_HEADER: usize = 100_000_000;

/// The name that the format keeps for itself.
const METADATA: &str = "__metadata__";

fn damaged(message: impl Into<String>) -> Error {
    let message = message.into();
    Error::new(
        ErrorKind::Format,
        format!("not a safetensors file: {message}"),
    )
}

/// The dtype and shape that a tensor has in a file.
fn stored(tensor: &Tensor) -> Result<(Dtype, Vec<usize>)> {
    let dtype = match tensor.dtype() {
        DType::F32 => Dtype::F32,
        DType::F64 => Dtype::F64,
        DType::F16 => Dtype::F16,
        DType::BF16 => Dtype::BF16,
        DType::I64 => Dtype::I64,
        DType::I32 => Dtype::I32,
        DType::I8 => Dtype::I8,
        DType::U8 => Dtype::U8,
        DType::Bool => Dtype::BOOL,
        DType::F8E4M3 => Dtype::F8_E4M3,
        DType::F8E5M2 => Dtype::F8_E5M2,
        DType::F8E8M0 => Dtype::F8_E8M0,
        DType::I4
        | DType::U4
        | DType::I2
        | DType::U2
        | DType::F6E2M3
        | DType::F6E3M2
        | DType::F4E2M1 => return Ok((Dtype::U8, vec![tensor.size_in_bytes()])),
    };
    Ok((dtype, tensor.shape().to_vec()))
}

fn read(dtype: Dtype) -> Result<DType> {
    Ok(match dtype {
        Dtype::F32 => DType::F32,
        Dtype::F64 => DType::F64,
        Dtype::F16 => DType::F16,
        Dtype::BF16 => DType::BF16,
        Dtype::I64 => DType::I64,
        Dtype::I32 => DType::I32,
        Dtype::I8 => DType::I8,
        Dtype::U8 => DType::U8,
        Dtype::BOOL => DType::Bool,
        Dtype::F8_E4M3 => DType::F8E4M3,
        Dtype::F8_E5M2 => DType::F8E5M2,
        Dtype::F8_E8M0 => DType::F8E8M0,
        other => return Err(Error::unsupported(format!("tensors of {other:?}"))),
    })
}

/// A safetensors file in memory, or mapped into it; its tensors share the file's bytes.
pub struct File {
    owner: Arc<dyn AsRef<[u8]> + Send + Sync>,
    names: Vec<String>,
    tensors: BTreeMap<String, TensorInfo>,
    metadata: BTreeMap<String, String>,
    /// Where the tensors' bytes begin.
    data: usize,
}

impl std::fmt::Debug for File {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("File")
            .field("names", &self.names)
            .field("metadata", &self.metadata)
            .finish_non_exhaustive()
    }
}

impl File {
    /// Reads the header of a file's bytes. Tensors must lie one after another without gaps, up to
    /// the file's end, as long as their dtypes and shapes say.
    ///
    /// # Errors
    /// [`ErrorKind::Format`] if the bytes are no such file.
    pub fn parse<T: AsRef<[u8]> + Send + Sync + 'static>(owner: Arc<T>) -> Result<File> {
        let bytes = (*owner).as_ref();
        let (len, rest) = bytes
            .split_first_chunk::<8>()
            .ok_or_else(|| damaged("it is shorter than 8 bytes"))?;
        let len = u64::from_le_bytes(*len);
        let header = usize::try_from(len)
            .ok()
            .filter(|&len| len <= MAX_HEADER)
            .and_then(|len| rest.get(..len))
            .ok_or_else(|| damaged(format!("a header of {len} bytes does not fit in it")))?;
        // `SafeTensors::deserialize` adds the last offset to the header's length unchecked.
        let parsed: Metadata = serde_json::from_slice(header)
            .map_err(|e| damaged(format!("its header: {e}")).with_source(e))?;
        let there = rest.len() - header.len();
        if parsed.data_len() != there {
            return Err(damaged(format!(
                "the tensors take {} bytes, {there} are there",
                parsed.data_len()
            )));
        }
        let tensors = parsed.tensors().into_iter();
        Ok(File {
            names: parsed.offset_keys(),
            tensors: tensors.map(|(name, info)| (name, info.clone())).collect(),
            metadata: parsed.metadata().clone().into_iter().flatten().collect(),
            data: bytes.len() - there,
            owner,
        })
    }

    /// The names of the tensors, in the order of their bytes.
    pub fn names(&self) -> &[String] {
        &self.names
    }

    /// Whether there is a tensor of a name.
    pub fn contains(&self, name: &str) -> bool {
        self.tensors.contains_key(name)
    }

    /// What the writer noted about the file, by key.
    pub fn metadata(&self) -> &BTreeMap<String, String> {
        &self.metadata
    }

    /// A tensor over the file's bytes; it is copied only where these are not aligned for its
    /// dtype.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidArgument`] if there is no such tensor; [`ErrorKind::Unsupported`] if
    /// [`DType`] has not its dtype; [`ErrorKind::DType`] for booleans other than 0 and 1.
    pub fn get(&self, name: &str) -> Result<Tensor> {
        let place = || name.to_string();
        let info = self
            .tensors
            .get(name)
            .ok_or_else(|| Error::invalid("the file has no tensor of this name"))
            .at(place)?;
        let (start, end) = info.data_offsets;
        let range = Range {
            start: self.data + start,
            end: self.data + end,
        };
        let buffer = Buffer::from_owner(self.owner.clone(), range).at(place)?;
        let dtype = read(info.dtype).at(place)?;
        Tensor::from_buffer(dtype, &info.shape, buffer).at(place)
    }
}

/// A file's tensor as a value of a type takes it: packed tensors lie there as
/// bytes, and the type says what they are.
///
/// # Errors
/// [`ErrorKind::Shape`] if a packed type takes another number of bytes, or its shape is symbolic.
pub fn unpacked(ty: &TensorType, tensor: &Tensor) -> Result<Tensor> {
    if !ty.dtype.is_packed() || tensor.dtype() != DType::U8 {
        return Ok(tensor.clone());
    }
    let shape = ty.shape.fixed()?;
    let bytes = ty.dtype.bytes(shape.iter().product());
    if tensor.shape() != [bytes] {
        return Err(Error::shape(format!(
            "{ty} takes {bytes} bytes, the file has u8{:?}",
            tensor.shape()
        )));
    }
    let buffer = Buffer::from_slice(tensor.contiguous().bytes()?);
    Tensor::from_buffer(ty.dtype, shape, buffer)
}

/// A file about to be written.
struct Layout<'a> {
    entries: Vec<(&'a str, TensorInfo, &'a Tensor)>,
    metadata: BTreeMap<&'a str, &'a str>,
}

impl Serialize for Layout<'_> {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        let mut map = to.serialize_map(None)?;
        if !self.metadata.is_empty() {
            map.serialize_entry(METADATA, &self.metadata)?;
        }
        for (name, info, _) in &self.entries {
            map.serialize_entry(name, info)?;
        }
        map.end()
    }
}

impl<'a> Layout<'a> {
    fn new(
        tensors: impl IntoIterator<Item = (&'a str, &'a Tensor)>,
        metadata: &'a [(&'a str, &'a str)],
    ) -> Result<Layout<'a>> {
        let mut entries = Vec::new();
        let mut names = HashSet::from([METADATA]);
        for (name, tensor) in tensors {
            if !names.insert(name) {
                return Err(
                    Error::invalid("a safetensors file takes this name only once").at(name),
                );
            }
            let (dtype, shape) = stored(tensor).at(|| name)?;
            let data_offsets = (0, tensor.size_in_bytes());
            let info = TensorInfo {
                dtype,
                shape,
                data_offsets,
            };
            entries.push((name, info, tensor));
        }
        // The format's own order: the widest first, so that all are aligned.
        entries.sort_by(|a, b| b.1.dtype.cmp(&a.1.dtype).then(a.0.cmp(b.0)));
        let mut offset = 0;
        for (_, info, tensor) in &mut entries {
            info.data_offsets = (offset, offset + tensor.size_in_bytes());
            offset = info.data_offsets.1;
        }
        Ok(Layout {
            entries,
            metadata: metadata.iter().copied().collect(),
        })
    }

    /// The length of the header and the header, padded to whole words.
    fn header(&self) -> Result<Vec<u8>> {
        let mut out = vec![0; 8];
        serde_json::to_writer(&mut out, self)
            .map_err(|e| Error::invalid(format!("safetensors header: {e}")).with_source(e))?;
        out.resize(out.len().next_multiple_of(8), b' ');
        let len = out.len() - 8;
        if len > MAX_HEADER {
            return Err(Error::invalid(format!(
                "a safetensors header of {len} bytes; at most {MAX_HEADER} can be read"
            )));
        }
        out[..8].copy_from_slice(&(len as u64).to_le_bytes());
        Ok(out)
    }

    fn data_len(&self) -> usize {
        let last = self.entries.last();
        last.map_or(0, |(_, info, _)| info.data_offsets.1)
    }
}

/// Writes named tensors as a safetensors file, with notes about it as pairs of key and text. The
/// same tensors and notes give the same bytes.
///
/// # Errors
/// [`ErrorKind::InvalidArgument`] if a name comes twice or is `__metadata__`; [`ErrorKind::Io`] if
/// writing fails.
pub fn write<'a>(
    to: &mut impl Write,
    tensors: impl IntoIterator<Item = (&'a str, &'a Tensor)>,
    metadata: &[(&str, &str)],
) -> Result<()> {
    let tensors: Vec<_> = tensors.into_iter().collect();
    let layout = Layout::new(tensors.iter().copied(), metadata)?;
    to.write_all(&layout.header()?)?;
    for (_, _, tensor) in &layout.entries {
        to.write_all(tensor.contiguous().bytes()?)?;
    }
    Ok(())
}

/// The bytes that [`write`](fn@write) writes.
///
/// # Errors
/// As [`write`](fn@write).
pub fn encode<'a>(
    tensors: impl IntoIterator<Item = (&'a str, &'a Tensor)>,
    metadata: &[(&str, &str)],
) -> Result<Vec<u8>> {
    let mut bytes = Vec::new();
    write(&mut bytes, tensors, metadata)?;
    Ok(bytes)
}

/// The number of bytes that [`write`](fn@write) writes, without making them.
///
/// # Errors
/// As [`write`](fn@write).
pub fn encoded_len<'a>(
    tensors: impl IntoIterator<Item = (&'a str, &'a Tensor)>,
    metadata: &[(&str, &str)],
) -> Result<u64> {
    let tensors: Vec<_> = tensors.into_iter().collect();
    let layout = Layout::new(tensors.iter().copied(), metadata)?;
    Ok((layout.header()?.len() + layout.data_len()) as u64)
}

#[cfg(test)]
mod tests {
    use std::borrow::Cow;

    use proptest::prelude::*;

    use super::*;

    struct View<'a>(&'a Tensor, Vec<usize>);

    impl ::safetensors::View for View<'_> {
        fn dtype(&self) -> Dtype {
            stored(self.0).unwrap().0
        }
        fn shape(&self) -> &[usize] {
            &self.1
        }
        fn data(&self) -> Cow<'_, [u8]> {
            Cow::Borrowed(self.0.bytes().unwrap())
        }
        fn data_len(&self) -> usize {
            self.0.size_in_bytes()
        }
    }

    fn file(header: &str, data: usize) -> Vec<u8> {
        let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
        bytes.extend(header.as_bytes());
        bytes.resize(bytes.len() + data, 1);
        bytes
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        #[test]
        fn files_equal_those_of_the_formats_own_writer(
            tensors in prop::collection::btree_map(
                "[a-z.\"\\\\é]{1,12}",
                (0..DType::ALL.len(), prop::collection::vec(0usize..9, 0..3)),
                0..12,
            ),
            note in prop::option::of("[a-z\"é]{0,9}"),
        ) {
            let tensors: Vec<(String, Tensor)> = tensors
                .into_iter()
                .enumerate()
                .map(|(i, (name, (d, shape)))| {
                    let t = Tensor::full(DType::ALL[d], shape, (i % 2) as f64).unwrap();
                    (name, t)
                })
                .collect();
            let list = || tensors.iter().map(|(n, t)| (n.as_str(), t));
            let notes: Vec<(&str, &str)> = note.iter().map(|n| ("note", n.as_str())).collect();
            let bytes = encode(list(), &notes).unwrap();
            let expected = ::safetensors::serialize(
                list().map(|(n, t)| (n, View(t, stored(t).unwrap().1))),
                note.as_ref().map(|n| [("note".to_string(), n.clone())].into()),
            )
            .unwrap();
            prop_assert_eq!(&bytes, &expected);
            prop_assert_eq!(encoded_len(list(), &notes).unwrap(), bytes.len() as u64);

            let read = File::parse(Arc::new(bytes)).unwrap();
            prop_assert_eq!(read.names().len(), tensors.len());
            prop_assert_eq!(read.metadata().get("note"), note.as_ref());
            for (name, t) in &tensors {
                let ty = TensorType::new(t.dtype(), t.shape());
                let found = unpacked(&ty, &read.get(name).unwrap()).unwrap();
                prop_assert_eq!((found.dtype(), found.shape()), (t.dtype(), t.shape()));
                prop_assert_eq!(found.to_f64s(), t.to_f64s());
            }
        }

        #[test]
        fn any_header_is_no_panic(header in "[\\[\\]{}\":,a0-9\\-]{0,60}") {
            let _ = File::parse(Arc::new(file(&header, 8)));
        }
    }

    #[test]
    fn hostile_headers_are_errors() {
        let entry = |shape: &str, from: u64, to: u64| {
            format!("{{\"dtype\":\"F64\",\"shape\":{shape},\"data_offsets\":[{from},{to}]}}")
        };
        let header = |entries: &[String]| {
            let named = entries.iter().enumerate();
            let named: Vec<String> = named.map(|(i, e)| format!("\"t{i}\":{e}")).collect();
            format!("{{{}}}", named.join(","))
        };
        assert!(File::parse(Arc::new(file(&header(&[entry("[1]", 0, 8)]), 8))).is_ok());
        // Eight tensors of 2^61 - 8 bytes: the end of the last, plus the header, passes 2^64.
        let step = (1u64 << 61) - 8;
        let shape = format!("[{}]", step / 8);
        let mut wrap: Vec<String> = (0..8)
            .map(|i| entry(&shape, i * step, (i + 1) * step))
            .collect();
        wrap.push(entry("[7]", 8 * step, 8 * step + 56));
        for (entries, data) in [
            (wrap, 0),
            (vec![entry("[1]", 8, 16)], 16),
            (vec![entry("[1]", 0, 8), entry("[1]", 4, 12)], 12),
            (vec![entry("[2]", 0, 8)], 8),
            (vec![entry("[-1]", 0, 8)], 8),
            (vec![entry("[1]", 0, 8)], 7),
            (vec![entry("[1]", 0, 8)], 9),
            (vec![entry("[4294967296,4294967296]", 0, 0)], 0),
        ] {
            let error = File::parse(Arc::new(file(&header(&entries), data))).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Format, "{entries:?}");
        }
        for bytes in [
            &b""[..],
            &[255; 8],
            &[0; 8],
            &[2, 0, 0, 0, 0, 0, 0, 0, b'{', b'}', 0],
        ] {
            let error = File::parse(Arc::new(bytes.to_vec())).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Format, "{bytes:?}");
        }
        let zero = entry("[0,4294967296,4294967296]", 0, 0);
        if let Ok(file) = File::parse(Arc::new(file(&header(&[zero]), 0))) {
            assert!(file.get("t0").is_err());
        }
    }

    #[test]
    fn tensors_share_the_files_bytes() {
        let t = Tensor::new([2], [1f32, 2.0]).unwrap();
        let bytes = Arc::new(encode([("t", &t)], &[]).unwrap());
        let aligned = Arc::new(Buffer::from_slice(&bytes));
        struct Owner(Arc<Buffer>);
        impl AsRef<[u8]> for Owner {
            fn as_ref(&self) -> &[u8] {
                self.0.bytes()
            }
        }
        let read = File::parse(Arc::new(Owner(aligned.clone()))).unwrap();
        let found = read.get("t").unwrap();
        let tail = &aligned.bytes()[aligned.len() - 8..];
        assert!(std::ptr::eq(found.bytes().unwrap(), tail));
        assert_eq!(
            read.get("u").unwrap_err().kind(),
            ErrorKind::InvalidArgument
        );
    }

    #[test]
    fn a_name_comes_once() {
        let t = Tensor::scalar(1f32);
        assert!(encode([("a", &t), ("a", &t)], &[]).is_err());
        assert!(encode([("__metadata__", &t)], &[]).is_err());
    }
}
