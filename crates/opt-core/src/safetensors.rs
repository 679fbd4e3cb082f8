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
use std::io::{Read, Write};
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
fn stored(dtype: DType, shape: &[usize]) -> Result<(Dtype, Vec<usize>)> {
    let entries = shape.iter().try_fold(1usize, |n, &d| n.checked_mul(d));
    let entries = entries.ok_or_else(|| Error::shape(format!("the size of {shape:?}")))?;
    let stored = match dtype {
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
        | DType::F4E2M1 => return Ok((Dtype::U8, vec![dtype.bytes(entries)])),
    };
    Ok((stored, shape.to_vec()))
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

/// Reads and checks the header of a file of `len` bytes, and tells where the tensors begin.
fn parse_header(from: &mut impl Read, len: u64) -> Result<(Metadata, u64)> {
    let too_short = || damaged("it is shorter than 8 bytes");
    let rest = len.checked_sub(8).ok_or_else(too_short)?;
    let mut size = [0; 8];
    from.read_exact(&mut size)?;
    let size = u64::from_le_bytes(size);
    if size > MAX_HEADER as u64 || size > rest {
        return Err(damaged(format!(
            "a header of {size} bytes does not fit in it"
        )));
    }
    let mut header = vec![0; size as usize];
    from.read_exact(&mut header)?;
    // `SafeTensors::deserialize` adds the last offset to the header's length unchecked.
    let parsed: Metadata = serde_json::from_slice(&header)
        .map_err(|e| damaged(format!("its header: {e}")).with_source(e))?;
    let there = rest - size;
    if parsed.data_len() as u64 != there {
        return Err(damaged(format!(
            "the tensors take {} bytes, {there} are there",
            parsed.data_len()
        )));
    }
    Ok((parsed, 8 + size))
}

/// What a safetensors file holds and where, without the content: for files that are not to be in
/// memory as a whole.
///
/// ```
/// use opt_core::{Tensor, safetensors};
///
/// let weight = Tensor::new([2, 2], [1f32, 2.0, 3.0, 4.0])?;
/// let bytes = safetensors::encode([("weight", &weight)], &[])?;
/// let header = safetensors::Header::read(&mut &bytes[..], bytes.len() as u64)?;
/// let entry = &header.entries()[0];
/// assert_eq!((&entry.name[..], &entry.shape[..]), ("weight", &[2, 2][..]));
/// assert_eq!(entry.range.end, bytes.len() as u64);
/// # Ok::<(), opt_core::Error>(())
/// ```
#[derive(Debug, Clone, PartialEq)]
pub struct Header {
    entries: Vec<HeaderEntry>,
    metadata: BTreeMap<String, String>,
}

/// A tensor of a [`Header`].
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct HeaderEntry {
    /// Its name.
    pub name: String,
    /// Its dtype.
    pub dtype: DType,
    /// Its shape.
    pub shape: Vec<usize>,
    /// Where its bytes are in the file.
    pub range: Range<u64>,
}

impl Header {
    /// Reads the header at the beginning of a file of `len` bytes.
    ///
    /// # Errors
    /// [`ErrorKind::Format`] if it is no such file; [`ErrorKind::Unsupported`], with the tensor's
    /// name, if [`DType`] has not a tensor's dtype; [`ErrorKind::Io`] if reading fails.
    pub fn read(from: &mut impl Read, len: u64) -> Result<Header> {
        let (parsed, data) = parse_header(from, len)?;
        let tensors = parsed.tensors();
        let mut entries = Vec::new();
        for name in parsed.offset_keys() {
            let info = tensors[&name];
            let (start, end) = info.data_offsets;
            entries.push(HeaderEntry {
                dtype: read(info.dtype).at(|| name.clone())?,
                shape: info.shape.clone(),
                range: data + start as u64..data + end as u64,
                name,
            });
        }
        Ok(Header {
            entries,
            metadata: parsed.metadata().clone().into_iter().flatten().collect(),
        })
    }

    /// The tensors, in the order of their bytes.
    pub fn entries(&self) -> &[HeaderEntry] {
        &self.entries
    }

    /// What the writer noted about the file, by key.
    pub fn metadata(&self) -> &BTreeMap<String, String> {
        &self.metadata
    }
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
        let (parsed, data) = parse_header(&mut &*bytes, bytes.len() as u64)?;
        let tensors = parsed.tensors().into_iter();
        Ok(File {
            names: parsed.offset_keys(),
            tensors: tensors.map(|(name, info)| (name, info.clone())).collect(),
            metadata: parsed.metadata().clone().into_iter().flatten().collect(),
            data: data as usize,
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

/// Where everything lies in a file to be written, before any content is there: for writers that
/// hold no more than a part of a tensor.
///
/// ```
/// use opt_core::{DType, safetensors};
///
/// let parts = vec![("a".to_string(), DType::I8, vec![3]), ("b".to_string(), DType::F32, vec![2])];
/// let plan = safetensors::Plan::new(parts, [("by".to_string(), "hand".to_string())])?;
/// let mut bytes = plan.header()?;
/// bytes.resize(bytes.len() + plan.data_len() as usize, 0);
/// // The wider dtype comes first, so that all are aligned.
/// assert_eq!((plan.range(0), plan.range(1)), (8..11, 0..8));
/// assert!(safetensors::File::parse(std::sync::Arc::new(bytes))?.contains("b"));
/// # Ok::<(), opt_core::Error>(())
/// ```
#[derive(Debug, Clone)]
pub struct Plan {
    entries: Vec<(String, TensorInfo)>,
    metadata: BTreeMap<String, String>,
    /// The entry of each part.
    places: Vec<usize>,
}

impl Serialize for Plan {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        let mut map = to.serialize_map(None)?;
        if !self.metadata.is_empty() {
            map.serialize_entry(METADATA, &self.metadata)?;
        }
        for (name, info) in &self.entries {
            map.serialize_entry(name, info)?;
        }
        map.end()
    }
}

impl Plan {
    /// A file of tensors of these names, dtypes and shapes, with notes about it by key.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidArgument`] if a name comes twice or is `__metadata__`;
    /// [`ErrorKind::Shape`] if a size cannot be addressed.
    pub fn new(
        parts: impl IntoIterator<Item = (String, DType, Vec<usize>)>,
        metadata: impl IntoIterator<Item = (String, String)>,
    ) -> Result<Plan> {
        let mut entries = Vec::new();
        let mut names = HashSet::from([METADATA.to_string()]);
        for (name, dtype, shape) in parts {
            if !names.insert(name.clone()) {
                return Err(
                    Error::invalid("a safetensors file takes this name only once").at(name),
                );
            }
            let (stored, stored_shape) = stored(dtype, &shape).at(|| name.clone())?;
            let bytes = dtype.bytes(shape.iter().product());
            let info = TensorInfo {
                dtype: stored,
                shape: stored_shape,
                data_offsets: (0, bytes),
            };
            entries.push((name, info));
        }
        // The format's own order: the widest first, so that all are aligned.
        let mut order: Vec<usize> = (0..entries.len()).collect();
        order.sort_by(|&a, &b| {
            let (a, b) = (&entries[a], &entries[b]);
            b.1.dtype.cmp(&a.1.dtype).then(a.0.cmp(&b.0))
        });
        let mut places = vec![0; entries.len()];
        for (place, &part) in order.iter().enumerate() {
            places[part] = place;
        }
        let mut sorted: Vec<_> = order.into_iter().map(|i| entries[i].clone()).collect();
        let mut offset = 0usize;
        for (name, info) in &mut sorted {
            let end = offset.checked_add(info.data_offsets.1);
            let end = end.ok_or_else(|| Error::shape("the size of the file").at(name.as_str()))?;
            info.data_offsets = (offset, end);
            offset = end;
        }
        Ok(Plan {
            entries: sorted,
            metadata: metadata.into_iter().collect(),
            places,
        })
    }

    /// The bytes before the first tensor: the length of the header and the header, padded to whole
    /// words.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidArgument`] if it would be longer than the format allows.
    pub fn header(&self) -> Result<Vec<u8>> {
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

    /// Where the bytes of a part lie after the header, by its number in the order in which parts
    /// were given.
    ///
    /// # Panics
    /// If there are fewer parts.
    pub fn range(&self, part: usize) -> Range<u64> {
        let (start, end) = self.entries[self.places[part]].1.data_offsets;
        start as u64..end as u64
    }

    /// How many bytes all tensors take.
    pub fn data_len(&self) -> u64 {
        let last = self.entries.last();
        last.map_or(0, |(_, info)| info.data_offsets.1 as u64)
    }
}

/// The plan of a file of tensors, and the tensors in the order of their bytes.
fn plan<'a>(
    tensors: impl IntoIterator<Item = (&'a str, &'a Tensor)>,
    metadata: &[(&str, &str)],
) -> Result<(Plan, Vec<&'a Tensor>)> {
    let tensors: Vec<_> = tensors.into_iter().collect();
    let part = |(name, t): &(&str, &Tensor)| (name.to_string(), t.dtype(), t.shape().to_vec());
    let note = |(key, text): &(&str, &str)| (key.to_string(), text.to_string());
    let plan = Plan::new(tensors.iter().map(part), metadata.iter().map(note))?;
    let mut sorted: Vec<_> = tensors
        .into_iter()
        .map(|(_, t)| t)
        .zip(&plan.places)
        .collect();
    sorted.sort_by_key(|pair| pair.1);
    let sorted = sorted.into_iter().map(|(t, _)| t).collect();
    Ok((plan, sorted))
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
    let (plan, tensors) = plan(tensors, metadata)?;
    to.write_all(&plan.header()?)?;
    for tensor in tensors {
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
    let (plan, _) = plan(tensors, metadata)?;
    Ok(plan.header()?.len() as u64 + plan.data_len())
}

#[cfg(test)]
mod tests {
    use std::borrow::Cow;

    use proptest::prelude::*;

    use super::*;

    struct View<'a>(&'a Tensor, Vec<usize>);

    impl ::safetensors::View for View<'_> {
        fn dtype(&self) -> Dtype {
            stored(self.0.dtype(), self.0.shape()).unwrap().0
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
                list().map(|(n, t)| (n, View(t, stored(t.dtype(), t.shape()).unwrap().1))),
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
