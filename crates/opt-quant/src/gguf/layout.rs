//! GGUF files to be written: all at once, or tensor by tensor.

use std::collections::HashSet;
use std::io::Write;
use std::path::Path;

use opt_core::file::write_atomically;
use opt_core::{Error, Result, ResultExt, Tensor};

use super::blocks::floats;
use super::value::{Value, write_text};
use super::{ALIGNMENT, ALIGNMENT_KEY, GgufType, MAGIC, MAX_DIMS, VERSION};

/// Where everything lies in a file to be written, before any tensor's content is there: for
/// writers that hold no more than a part of a tensor.
#[derive(Debug, Clone, Default)]
pub struct Layout {
    metadata: Vec<(String, Value)>,
    entries: Vec<Entry>,
    names: HashSet<String>,
    /// Bytes of the tensors so far, padded.
    data: u64,
}

#[derive(Debug, Clone)]
struct Entry {
    name: String,
    ty: GgufType,
    shape: Vec<usize>,
    offset: u64,
    bytes: u64,
}

impl Layout {
    /// A file without tensors.
    pub fn new() -> Layout {
        Layout::default()
    }

    /// Notes something about the model. Strings, numbers, booleans and vectors of them are values.
    ///
    /// # Errors
    /// [`InvalidArgument`](opt_core::ErrorKind::InvalidArgument) if the key is there already, an
    /// array has several types, or the key is `general.alignment`, which is 32 here.
    pub fn metadata(&mut self, key: impl Into<String>, value: impl Into<Value>) -> Result<()> {
        let (key, value) = (key.into(), value.into());
        if key == ALIGNMENT_KEY {
            return Err(Error::invalid("tensors are aligned to 32 bytes").at(key));
        }
        if self.metadata.iter().any(|(other, _)| *other == key) {
            return Err(Error::invalid("a GGUF file takes this key only once").at(key));
        }
        value.write(&mut Vec::new()).at(|| key.clone())?;
        self.metadata.push((key, value));
        Ok(())
    }

    /// Adds a tensor; contents follow in the same order.
    ///
    /// # Errors
    /// [`InvalidArgument`](opt_core::ErrorKind::InvalidArgument) if the name is there already;
    /// [`Shape`](opt_core::ErrorKind::Shape) if it has more than 4 dimensions, or rows that are no
    /// whole blocks.
    pub fn tensor(
        &mut self,
        name: impl Into<String>,
        ty: GgufType,
        shape: impl AsRef<[usize]>,
    ) -> Result<()> {
        let (name, shape) = (name.into(), shape.as_ref().to_vec());
        let entry = |shape: Vec<usize>| -> Result<Entry> {
            if shape.len() > MAX_DIMS {
                return Err(Error::shape(format!(
                    "{shape:?} has more than {MAX_DIMS} dimensions"
                )));
            }
            ty.bytes(shape.last().copied().unwrap_or(1))?;
            let entries = shape.iter().try_fold(1usize, |n, &d| n.checked_mul(d));
            let entries = entries.ok_or_else(|| Error::shape(format!("the size of {shape:?}")))?;
            Ok(Entry {
                name: name.clone(),
                ty,
                offset: self.data,
                bytes: ty.bytes(entries)? as u64,
                shape,
            })
        };
        let entry = entry(shape).at(|| name.clone())?;
        if !self.names.insert(name) {
            return Err(Error::invalid("a GGUF file takes this name only once").at(entry.name));
        }
        self.data += entry.bytes.next_multiple_of(ALIGNMENT as u64);
        self.entries.push(entry);
        Ok(())
    }

    /// The bytes before the first tensor.
    pub fn header(&self) -> Result<Vec<u8>> {
        let mut out = MAGIC.to_vec();
        out.extend(VERSION.to_le_bytes());
        out.extend((self.entries.len() as u64).to_le_bytes());
        out.extend((self.metadata.len() as u64).to_le_bytes());
        for (key, value) in &self.metadata {
            write_text(key, &mut out);
            value.write(&mut out)?;
        }
        for entry in &self.entries {
            write_text(&entry.name, &mut out);
            // A scalar is a tensor of one entry there, and the axis whose entries are neighbours
            // is named first.
            let dims = if entry.shape.is_empty() {
                &[1]
            } else {
                &entry.shape[..]
            };
            out.extend((dims.len() as u32).to_le_bytes());
            for &dim in dims.iter().rev() {
                out.extend((dim as u64).to_le_bytes());
            }
            out.extend(entry.ty.code().to_le_bytes());
            out.extend(entry.offset.to_le_bytes());
        }
        out.resize(out.len().next_multiple_of(ALIGNMENT), 0);
        Ok(out)
    }

    /// How many bytes the tensor at an index takes, and how many zeros follow it.
    ///
    /// # Panics
    /// If there is no such tensor.
    pub fn extent(&self, index: usize) -> (u64, usize) {
        let bytes = self.entries[index].bytes;
        let padded = bytes.next_multiple_of(ALIGNMENT as u64);
        (bytes, (padded - bytes) as usize)
    }

    /// How many bytes all tensors take.
    pub fn data_len(&self) -> u64 {
        self.data
    }
}

/// A small file, built in memory.
#[derive(Debug, Clone, Default)]
pub struct Builder {
    layout: Layout,
    tensors: Vec<(GgufType, Tensor)>,
}

impl Builder {
    /// A file without tensors.
    pub fn new() -> Builder {
        Builder::default()
    }

    /// See [`Layout::metadata`].
    ///
    /// # Errors
    /// As there.
    pub fn metadata(&mut self, key: impl Into<String>, value: impl Into<Value>) -> Result<()> {
        self.layout.metadata(key, value)
    }

    /// Adds a tensor of floats, to be stored as a type.
    ///
    /// # Errors
    /// As [`Layout::tensor`], and [`DType`](opt_core::ErrorKind::DType) if the tensor has no
    /// floats.
    pub fn tensor(&mut self, name: impl Into<String>, ty: GgufType, tensor: &Tensor) -> Result<()> {
        let name = name.into();
        let content = floats(tensor).at(|| name.clone())?;
        self.layout.tensor(name, ty, tensor.shape())?;
        self.tensors.push((ty, content));
        Ok(())
    }

    /// Writes the file.
    ///
    /// # Errors
    /// [`Io`](opt_core::ErrorKind::Io) if writing fails; [`Data`](opt_core::ErrorKind::Data), with
    /// the tensor's name, for what [`GgufType::encode`] refuses.
    pub fn write(&self, to: &mut impl Write) -> Result<()> {
        to.write_all(&self.layout.header()?)?;
        let mut bytes = Vec::new();
        for (i, (ty, tensor)) in self.tensors.iter().enumerate() {
            let name = || self.layout.entries[i].name.clone();
            bytes.clear();
            ty.encode(tensor.as_slice::<f32>()?, &mut bytes).at(name)?;
            let (_, padding) = self.layout.extent(i);
            bytes.resize(bytes.len() + padding, 0);
            to.write_all(&bytes)?;
        }
        Ok(())
    }

    /// The file's bytes.
    ///
    /// # Errors
    /// As [`Builder::write`].
    pub fn encode(&self) -> Result<Vec<u8>> {
        let mut out = Vec::new();
        self.write(&mut out)?;
        Ok(out)
    }

    /// Writes the file to a path, by way of a temporary one beside it.
    ///
    /// # Errors
    /// As [`Builder::write`].
    pub fn save(&self, path: impl AsRef<Path>) -> Result<()> {
        write_atomically(path, |file| {
            let mut file = std::io::BufWriter::new(file);
            self.write(&mut file)?;
            Ok(file.flush()?)
        })
    }
}
