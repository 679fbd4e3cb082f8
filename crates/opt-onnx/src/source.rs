//! Where a model's bytes come from.

use std::collections::HashMap;
use std::fs::File;
use std::path::{Component, Path, PathBuf};
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use opt_core::tensor::Buffer;
use opt_core::{DType, Error, ErrorKind, Result, ResultExt, Tensor};

use crate::mmap;
use crate::proto::StringStringEntryProto;

/// The file of a model, and the files beside it.
#[derive(Debug, Default)]
pub(crate) struct Source {
    /// The file, to read content from without touching its mapping: pages read through the
    /// mapping would stay in memory beside their copies.
    file: Option<(File, usize, usize)>,
    /// The folder that external data is relative to.
    folder: Option<PathBuf>,
    mapped: Mutex<HashMap<PathBuf, Arc<mmap::Mapped>>>,
}

fn bad(message: impl Into<String>) -> Error {
    Error::new(ErrorKind::Format, message)
}

impl Source {
    /// Opens a file: its bytes, mapped, and where its content comes from.
    pub(crate) fn open(path: &Path) -> Result<(Source, Bytes)> {
        let at = || path.display().to_string();
        let file = File::open(path).map_err(Error::from).at(at)?;
        if !file.metadata().map_err(Error::from).at(at)?.is_file() {
            return Err(Error::new(ErrorKind::Io, "it is not a file").at(at()));
        }
        let mapped = mmap::Mapped::new(&file).map_err(Error::from).at(at)?;
        let bytes = Bytes::from_owner(mapped);
        let source = Source {
            file: Some((file, bytes.as_ptr() as usize, bytes.len())),
            folder: Some(path.parent().unwrap_or(Path::new("")).to_path_buf()),
            mapped: Mutex::default(),
        };
        Ok((source, bytes))
    }

    /// Bytes in memory, without files beside them.
    pub(crate) fn memory() -> Source {
        Source::default()
    }

    /// Copies content out of the model's bytes.
    pub(crate) fn copy(&self, content: &Bytes, to: &mut [u8]) -> Result<()> {
        // Small content shares pages with the structure around it, which decoding has read.
        const LARGE: usize = 1 << 16;
        if let Some((file, start, len)) = &self.file
            && content.len() >= LARGE
            && let Some(offset) = (content.as_ptr() as usize).checked_sub(*start)
            && offset + content.len() <= *len
        {
            return mmap::read_at(file, offset as u64, to).map_err(Error::from);
        }
        to.copy_from_slice(content);
        Ok(())
    }

    /// A tensor whose content lies in another file: mapped where it is aligned.
    pub(crate) fn external(
        &self,
        entries: &[StringStringEntryProto],
        dtype: DType,
        shape: &[usize],
    ) -> Result<Tensor> {
        let entry = |key: &str| {
            let found = entries.iter().find(|e| e.key() == key);
            found.map(|e| e.value().to_string())
        };
        let number = |key: &str| -> Result<Option<usize>> {
            entry(key)
                .map(|text| {
                    text.trim()
                        .parse()
                        .map_err(|_| bad(format!("external data has the {key} `{text}`")))
                })
                .transpose()
        };
        let location = entry("location").ok_or_else(|| bad("external data has no location"))?;
        let path = self.beside(&location)?;
        let at = || format!("external data `{location}`");
        let need = dtype.bytes(shape.iter().product());
        let offset = number("offset").at(at)?.unwrap_or(0);
        if let Some(length) = number("length").at(at)?
            && length != need
        {
            return Err(bad(format!(
                "{dtype}{shape:?} needs {need} bytes, its length is given as {length}"
            ))
            .at(at()));
        }
        let mapped = self.map(&path).at(at)?;
        let size = mapped.as_ref().as_ref().len();
        let end = offset.checked_add(need).filter(|&end| end <= size);
        let Some(end) = end else {
            return Err(bad(format!(
                "bytes {offset} to {offset} + {need} lie beyond its end at {size}"
            ))
            .at(at()));
        };
        let buffer = match Buffer::from_owner(mapped.clone(), offset..end) {
            Ok(buffer) if aligned(&mapped.as_ref().as_ref()[offset..], dtype) => buffer,
            _ => Buffer::from_slice(&mapped.as_ref().as_ref()[offset..end]),
        };
        Tensor::from_buffer(dtype, shape, buffer).at(at)
    }

    fn map(&self, path: &Path) -> Result<Arc<mmap::Mapped>> {
        let mut mapped = self
            .mapped
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner);
        if let Some(found) = mapped.get(path) {
            return Ok(found.clone());
        }
        let file = File::open(path)?;
        let new = Arc::new(mmap::Mapped::new(&file)?);
        mapped.insert(path.to_path_buf(), new.clone());
        Ok(new)
    }

    /// The path of a file that lies in the model's folder or below it.
    fn beside(&self, location: &str) -> Result<PathBuf> {
        let Some(folder) = &self.folder else {
            return Err(Error::unsupported(format!(
                "the model keeps content in the file `{location}`, but it was read from memory; \
                 load it from its path"
            )));
        };
        let relative = Path::new(location);
        let plain = |c: Component<'_>| matches!(c, Component::Normal(_) | Component::CurDir);
        if location.is_empty() || location.contains('\0') || !relative.components().all(plain) {
            return Err(bad(format!(
                "external data lies at `{location}`; only files in the model's folder or below \
                 it are read"
            )));
        }
        let path = folder.join(relative);
        let at = || format!("external data `{location}`");
        // A link could lead out of the folder.
        let real = path.canonicalize().map_err(Error::from).at(at)?;
        let base = if folder.as_os_str().is_empty() {
            Path::new(".")
        } else {
            folder
        };
        let base = base.canonicalize().map_err(Error::from).at(at)?;
        if !real.starts_with(&base) {
            return Err(bad("it is a link out of the model's folder").at(at()));
        }
        if !real.is_file() {
            return Err(bad("it is not a file").at(at()));
        }
        Ok(real)
    }
}

fn aligned(bytes: &[u8], dtype: DType) -> bool {
    (bytes.as_ptr() as usize).is_multiple_of((dtype.bits() / 8).max(1))
}
