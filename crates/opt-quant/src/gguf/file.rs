//! GGUF files to be read.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;

use opt_core::{DType, Error, Result, ResultExt, Tensor};

use super::value::{Reader, Value};
use super::{ALIGNMENT, ALIGNMENT_KEY, GgufType, MAGIC, MAX_DIMS, VERSION, damaged};

/// A GGUF file in memory, or mapped into it.
pub struct File {
    owner: Arc<dyn AsRef<[u8]> + Send + Sync>,
    names: Vec<String>,
    tensors: BTreeMap<String, Entry>,
    metadata: BTreeMap<String, Value>,
}

struct Entry {
    /// As it is in the file: a type may have no reader here, and the others be read all the same.
    code: u32,
    shape: Vec<usize>,
    offset: usize,
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
    /// Reads the metadata and the list of tensors of a file's bytes.
    ///
    /// # Errors
    /// [`Format`](opt_core::ErrorKind::Format) if the bytes are no GGUF file of version 2 or 3, or
    /// a tensor lies beyond their end.
    pub fn parse<T: AsRef<[u8]> + Send + Sync + 'static>(owner: Arc<T>) -> Result<File> {
        let bytes = (*owner).as_ref();
        let mut from = Reader::new(bytes);
        if from.array::<4>()? != *MAGIC {
            return Err(damaged("it does not begin with GGUF"));
        }
        let version = from.u32()?;
        // Version 2 differs in nothing that is read here; 1 has other widths.
        if !(2..=VERSION).contains(&version) {
            return Err(Error::unsupported(format!(
                "version {version} of GGUF; 2 and 3 are read"
            )));
        }
        let (tensors, notes) = (from.u64()?, from.u64()?);
        let mut metadata = BTreeMap::new();
        for _ in 0..notes {
            let key = from.text()?;
            let value = Value::read(&mut from).at(|| key.clone())?;
            if metadata.insert(key.clone(), value).is_some() {
                return Err(damaged("it has this key twice").at(key));
            }
        }
        let alignment = match metadata.get(ALIGNMENT_KEY) {
            None => ALIGNMENT,
            Some(value) => value
                .as_usize()
                .filter(|a| a.is_power_of_two() && *a <= 1 << 20)
                .ok_or_else(|| damaged(format!("an alignment of {value:?}")))?,
        };
        let mut entries = Vec::new();
        for _ in 0..tensors {
            entries.push(read_entry(&mut from)?);
        }
        let data = from.position().next_multiple_of(alignment);
        let mut file = File {
            names: Vec::new(),
            tensors: BTreeMap::new(),
            metadata,
            owner: owner.clone(),
        };
        for (name, mut entry) in entries {
            let check = |entry: &mut Entry| -> Result<()> {
                entry.offset = data
                    .checked_add(entry.offset)
                    .filter(|o| o % alignment == 0 && *o <= bytes.len())
                    .ok_or_else(|| {
                        damaged("the tensor's place is not aligned or beyond the end")
                    })?;
                // Other types have lengths that are not known here.
                if GgufType::of_code(entry.code).is_ok() && entry.range()?.end > bytes.len() {
                    return Err(damaged(format!(
                        "the tensor ends at byte {}, the file at {}",
                        entry.range()?.end,
                        bytes.len()
                    )));
                }
                Ok(())
            };
            check(&mut entry).at(|| name.clone())?;
            file.names.push(name.clone());
            if file.tensors.insert(name.clone(), entry).is_some() {
                return Err(damaged("it has this tensor twice").at(name));
            }
        }
        Ok(file)
    }

    /// The names of the tensors, in the file's order.
    pub fn names(&self) -> &[String] {
        &self.names
    }

    /// What is noted about the model, by key.
    pub fn metadata(&self) -> &BTreeMap<String, Value> {
        &self.metadata
    }

    fn entry(&self, name: &str) -> Result<&Entry> {
        let found = self.tensors.get(name);
        found.ok_or_else(|| Error::invalid("the file has no tensor of this name").at(name))
    }

    /// How a tensor is stored.
    ///
    /// # Errors
    /// [`InvalidArgument`](opt_core::ErrorKind::InvalidArgument) if there is no such tensor;
    /// [`Unsupported`](opt_core::ErrorKind::Unsupported) if its type is none of [`GgufType`].
    pub fn dtype(&self, name: &str) -> Result<GgufType> {
        GgufType::of_code(self.entry(name)?.code).at(|| name.to_string())
    }

    /// The shape of a tensor.
    ///
    /// # Errors
    /// [`InvalidArgument`](opt_core::ErrorKind::InvalidArgument) if there is no such tensor.
    pub fn shape(&self, name: &str) -> Result<&[usize]> {
        Ok(&self.entry(name)?.shape)
    }

    /// The bytes of a tensor, as they are stored.
    ///
    /// # Errors
    /// As [`File::dtype`].
    pub fn bytes(&self, name: &str) -> Result<&[u8]> {
        let range = self.entry(name)?.range().at(|| name.to_string())?;
        Ok(&(*self.owner).as_ref()[range])
    }

    /// A tensor as `f32`: what is stored as integers is dequantized.
    ///
    /// # Errors
    /// As [`File::dtype`].
    pub fn get(&self, name: &str) -> Result<Tensor> {
        let entries = self.dtype(name)?.decode(self.bytes(name)?);
        let tensor = entries.and_then(|entries| Tensor::new(self.shape(name)?, entries));
        let tensor = tensor.at(|| name.to_string())?;
        debug_assert_eq!(tensor.dtype(), DType::F32);
        Ok(tensor)
    }
}

impl Entry {
    fn range(&self) -> Result<Range<usize>> {
        let ty = GgufType::of_code(self.code)?;
        ty.bytes(self.shape.last().copied().unwrap_or(1))?;
        let entries = self.shape.iter().try_fold(1usize, |n, &d| n.checked_mul(d));
        let entries = entries.ok_or_else(|| damaged(format!("the size of {:?}", self.shape)))?;
        let end = self.offset.checked_add(ty.bytes(entries)?);
        let end = end.ok_or_else(|| damaged(format!("the size of {:?}", self.shape)))?;
        Ok(self.offset..end)
    }
}

fn read_entry(from: &mut Reader<'_>) -> Result<(String, Entry)> {
    let name = from.text()?;
    let read = |from: &mut Reader<'_>| -> Result<Entry> {
        let rank = from.u32()? as usize;
        if rank > MAX_DIMS {
            return Err(from.damaged(format!("a tensor of {rank} dimensions")));
        }
        let size = |n: u64| usize::try_from(n).map_err(|_| damaged(format!("a size of {n}")));
        let mut shape = vec![0; rank];
        for dim in shape.iter_mut().rev() {
            *dim = size(from.u64()?)?;
        }
        Ok(Entry {
            shape,
            code: from.u32()?,
            offset: size(from.u64()?)?,
        })
    };
    let entry = read(from).at(|| name.clone())?;
    Ok((name, entry))
}
