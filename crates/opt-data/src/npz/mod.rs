//! Tensors in numpy's files: `.npz` archives of named arrays, and `.npy` files of one.
//!
//! ```
//! use opt_core::{DType, Tensor};
//! use opt_data::npz::{self, Npz};
//!
//! # let folder = std::env::temp_dir().join(format!("opt-npz-doc-{}", std::process::id()));
//! # std::fs::create_dir_all(&folder)?;
//! let path = folder.join("digits.npz");
//! let images = Tensor::zeros(DType::F32, [2, 8, 8])?;
//! let labels = Tensor::new([2], [3i64, 7])?;
//! npz::write(&path, &[("x", &images), ("y", &labels)])?; // numpy.savez(path, x=.., y=..)
//!
//! let mut file = Npz::open(&path)?; // numpy.load(path)
//! assert_eq!(file.names(), ["x", "y"]);
//! assert_eq!(file.tensor("y")?.to_vec::<i64>()?, [3, 7]);
//! # drop(file);
//! # std::fs::remove_dir_all(&folder)?;
//! # Ok::<(), opt_core::Error>(())
//! ```
//!
//! Floats of 2, 4 and 8 bytes, the integers `i1`, `i4`, `i8` and `u1`, and booleans are read, in
//! both byte orders and both memory orders, from versions 1 to 3 of the format (NEP 1 and numpy's
//! `numpy.lib.format`). Objects, text and structured arrays are refused by name.
//!
//! Files may come from anywhere. Before memory is taken for an array, its size is compared with
//! what the file can hold at all (an entry cannot unpack to more than deflate's 1032 times its
//! packed size) and with [`NpzOptions::max_bytes`].

mod npy;

use std::collections::HashMap;
use std::fmt;
use std::fs::File;
use std::io::{BufReader, BufWriter, Cursor, Read, Seek, SeekFrom, Write};
use std::path::Path;

use opt_core::file::write_atomically;
use zip::result::ZipError;
use zip::write::SimpleFileOptions;
use zip::{CompressionMethod, DateTime, ZipArchive, ZipWriter};

use crate::{Error, Result, ResultExt, Tensor};
use npy::{Header, damaged, read_error};

/// Deflate's greatest ratio is 1032; the rest is room for the headers of small entries.
const MAX_RATIO: u64 = 1100;
const RATIO_ROOM: u64 = 64 << 10;

/// How files are read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct NpzOptions {
    /// The most bytes that the elements of one array may take. Default: 1 GiB.
    pub max_bytes: u64,
}

impl Default for NpzOptions {
    fn default() -> NpzOptions {
        NpzOptions { max_bytes: 1 << 30 }
    }
}

impl NpzOptions {
    /// Another limit on the bytes of one array.
    #[must_use]
    pub fn max_bytes(mut self, bytes: u64) -> NpzOptions {
        self.max_bytes = bytes;
        self
    }

    /// Refuses arrays above the limit, and those with more elements than `there` bytes hold.
    fn check(&self, header: &Header, there: u64) -> Result<()> {
        let need = header.data as u64;
        if need > there {
            return Err(damaged(format!(
                "the elements take {need} bytes by the header, {there} are there"
            )));
        }
        if need > self.max_bytes {
            return Err(Error::invalid(format!(
                "the elements take {need} bytes, the limit is {}; raise `NpzOptions::max_bytes` \
                 if the file can be trusted",
                self.max_bytes
            )));
        }
        Ok(())
    }
}

/// Where an archive is read from.
trait Source: Read + Seek + Send {}

impl<T: Read + Seek + Send> Source for T {}

/// An `.npz` archive, open for reading; arrays are unpacked when they are asked for.
pub struct Npz {
    archive: ZipArchive<Box<dyn Source>>,
    /// Bytes of the archive.
    len: u64,
    names: Vec<String>,
    /// Where in the archive the array of a name is.
    index: HashMap<String, usize>,
    options: NpzOptions,
}

impl fmt::Debug for Npz {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Npz").field("names", &self.names).finish()
    }
}

fn zip_error(e: ZipError) -> Error {
    match e {
        ZipError::Io(e) => read_error(e),
        ZipError::UnsupportedArchive(what) => Error::unsupported(format!("zip archive: {what}")),
        e => damaged(format!("not a .npz archive: {e}")).with_source(e),
    }
}

impl Npz {
    /// Opens a file.
    ///
    /// # Errors
    /// [`ErrorKind::Io`](crate::ErrorKind::Io) if it cannot be read; [`ErrorKind::Format`](crate::ErrorKind::Format) if it is no zip archive, or
    /// two arrays have the same name.
    pub fn open(path: impl AsRef<Path>) -> Result<Npz> {
        Npz::open_with(path, NpzOptions::default())
    }

    /// Opens a file, with options.
    ///
    /// # Errors
    /// As [`Npz::open`].
    pub fn open_with(path: impl AsRef<Path>, options: NpzOptions) -> Result<Npz> {
        let path = path.as_ref();
        File::open(path)
            .map_err(Error::from)
            .and_then(|file| Npz::from_reader(BufReader::new(file), options))
            .at(|| path.display().to_string())
    }

    /// Opens an archive in memory.
    ///
    /// # Errors
    /// As [`Npz::open`].
    pub fn from_bytes(bytes: impl Into<Vec<u8>>) -> Result<Npz> {
        Npz::from_reader(Cursor::new(bytes.into()), NpzOptions::default())
    }

    /// Opens an archive that lies in anything that can be read and searched.
    ///
    /// # Errors
    /// As [`Npz::open`].
    pub fn from_reader(
        mut reader: impl Read + Seek + Send + 'static,
        options: NpzOptions,
    ) -> Result<Npz> {
        let len = reader.seek(SeekFrom::End(0))?;
        let source: Box<dyn Source> = Box::new(reader);
        let archive = ZipArchive::new(source).map_err(zip_error)?;
        let twice = |what: &str| damaged(format!("the archive has {what} twice"));
        if archive.has_duplicate_names() {
            return Err(twice("a name"));
        }
        let (mut names, mut index) = (Vec::new(), HashMap::new());
        for (i, name) in archive.file_names().enumerate() {
            let name = name.map_err(zip_error)?;
            if let Some(name) = name.strip_suffix(".npy") {
                if index.insert(name.to_string(), i).is_some() {
                    return Err(twice(&format!("the array {name:?}")));
                }
                names.push(name.to_string());
            }
        }
        Ok(Npz {
            archive,
            len,
            names,
            index,
            options,
        })
    }

    /// The names of the arrays, in the order of the archive, without `.npy`. Entries that do not
    /// end so are no arrays and are left out.
    pub fn names(&self) -> &[String] {
        &self.names
    }

    /// The number of arrays.
    pub fn len(&self) -> usize {
        self.names.len()
    }

    /// Whether there are no arrays.
    pub fn is_empty(&self) -> bool {
        self.names.is_empty()
    }

    /// Unpacks an array; what is stored in column-major order comes back in row-major order.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidArgument`](crate::ErrorKind::InvalidArgument) if there is no such array, or it is larger than
    /// [`NpzOptions::max_bytes`]; [`ErrorKind::Unsupported`](crate::ErrorKind::Unsupported) if `opt-core` has no such dtype;
    /// [`ErrorKind::Format`](crate::ErrorKind::Format) if the entry is damaged.
    pub fn tensor(&mut self, name: &str) -> Result<Tensor> {
        match self.index.get(name) {
            Some(&entry) => self.unpack(entry).at(|| name.to_string()),
            None => Err(Error::invalid(format!(
                "no array {name:?} in the archive; it has {:?}",
                self.names
            ))),
        }
    }

    /// All arrays with their names, in the order of the archive, each unpacked when the iterator
    /// comes to it.
    pub fn tensors(&mut self) -> impl Iterator<Item = Result<(String, Tensor)>> + '_ {
        let names = self.names.clone();
        names.into_iter().map(|name| {
            let tensor = self.tensor(&name)?;
            Ok((name, tensor))
        })
    }

    fn unpack(&mut self, entry: usize) -> Result<Tensor> {
        let mut entry = self.archive.by_index(entry).map_err(zip_error)?;
        let (packed, size) = (entry.compressed_size(), entry.size());
        let most = match entry.compression() {
            CompressionMethod::Stored => packed,
            _ => packed.saturating_mul(MAX_RATIO).saturating_add(RATIO_ROOM),
        };
        if packed > self.len || size > most {
            return Err(damaged(format!(
                "an entry of {size} bytes, packed into {packed}, in an archive of {}",
                self.len
            )));
        }
        let header = Header::read(&mut entry)?;
        self.options
            .check(&header, size.saturating_sub(header.start as u64))?;
        header.tensor(&mut entry)
    }
}

/// Reads all arrays of an `.npz` file, in the order of the archive.
///
/// # Errors
/// As [`Npz::open`] and [`Npz::tensor`].
pub fn read(path: impl AsRef<Path>) -> Result<Vec<(String, Tensor)>> {
    let path = path.as_ref();
    let mut npz = Npz::open(path)?;
    let all: Result<_> = npz.tensors().collect();
    all.at(|| path.display().to_string())
}

/// Writes an `.npz` file, atomically and without compression, as `numpy.savez`.
///
/// # Errors
/// [`ErrorKind::Unsupported`](crate::ErrorKind::Unsupported) if numpy has no such dtype (bf16, 4-bit);
/// [`ErrorKind::InvalidArgument`](crate::ErrorKind::InvalidArgument) if two names are the same; [`ErrorKind::Io`](crate::ErrorKind::Io) if the file cannot
/// be written. The file has its old content then.
pub fn write(path: impl AsRef<Path>, tensors: &[(&str, &Tensor)]) -> Result<()> {
    write_all(path.as_ref(), tensors, false)
}

/// Writes an `.npz` file, atomically and with compression, as `numpy.savez_compressed`.
///
/// # Errors
/// As [`write`](fn@write).
pub fn write_compressed(path: impl AsRef<Path>, tensors: &[(&str, &Tensor)]) -> Result<()> {
    write_all(path.as_ref(), tensors, true)
}

fn write_all(path: &Path, tensors: &[(&str, &Tensor)], compressed: bool) -> Result<()> {
    write_atomically(path, |file| {
        let mut npz = NpzWriter::new(BufWriter::new(file)).compressed(compressed);
        for (name, tensor) in tensors {
            npz.add(name, tensor)?;
        }
        Ok(npz.finish()?.flush()?)
    })
}

/// Writes an `.npz` archive array by array. The same arrays give the same bytes.
///
/// ```
/// use std::io::Cursor;
/// use opt_core::Tensor;
/// use opt_data::npz::{Npz, NpzWriter};
///
/// let mut writer = NpzWriter::new(Cursor::new(Vec::new())).compressed(true);
/// writer.add("x", &Tensor::scalar(1.5f64))?;
/// let bytes = writer.finish()?.into_inner();
/// assert_eq!(Npz::from_bytes(bytes)?.tensor("x")?.item()?, 1.5);
/// # Ok::<(), opt_core::Error>(())
/// ```
pub struct NpzWriter<W: Write + Seek> {
    zip: ZipWriter<W>,
    method: CompressionMethod,
}

impl<W: Write + Seek> fmt::Debug for NpzWriter<W> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("NpzWriter")
            .field("method", &self.method)
            .finish_non_exhaustive()
    }
}

fn write_error(e: ZipError) -> Error {
    match e {
        ZipError::Io(e) => Error::from(e),
        e => Error::invalid(format!("zip archive: {e}")).with_source(e),
    }
}

impl<W: Write + Seek> NpzWriter<W> {
    /// Starts an archive, without compression.
    pub fn new(to: W) -> NpzWriter<W> {
        NpzWriter {
            zip: ZipWriter::new(to),
            method: CompressionMethod::Stored,
        }
    }

    /// Whether arrays from here on are compressed.
    #[must_use]
    pub fn compressed(mut self, compressed: bool) -> NpzWriter<W> {
        self.method = match compressed {
            true => CompressionMethod::Deflated,
            false => CompressionMethod::Stored,
        };
        self
    }

    /// Adds an array.
    ///
    /// # Errors
    /// As [`write`](fn@write).
    pub fn add(&mut self, name: &str, tensor: &Tensor) -> Result<()> {
        let options = SimpleFileOptions::default()
            .compression_method(self.method)
            // Fields that say when, on what system and by what they were written would differ.
            .last_modified_time(DateTime::DEFAULT)
            .large_file(tensor.size_in_bytes() >= u32::MAX as usize - (64 << 10));
        self.zip
            .start_file(format!("{name}.npy"), options)
            .map_err(write_error)
            .and_then(|()| npy::write(&mut self.zip, tensor))
            .at(|| name.to_string())
    }

    /// Ends the archive and gives back what it was written to.
    ///
    /// # Errors
    /// [`ErrorKind::Io`](crate::ErrorKind::Io) if writing fails.
    pub fn finish(self) -> Result<W> {
        self.zip.finish().map_err(write_error)
    }
}

/// Reads a `.npy` file.
///
/// # Errors
/// As [`Npz::tensor`]; [`ErrorKind::Io`](crate::ErrorKind::Io) if the file cannot be read.
pub fn read_npy(path: impl AsRef<Path>, options: NpzOptions) -> Result<Tensor> {
    let path = path.as_ref();
    let read = || {
        let file = File::open(path)?;
        let len = file.metadata()?.len();
        npy_from(&mut BufReader::new(file), len, options)
    };
    read().at(|| path.display().to_string())
}

/// Reads the bytes of a `.npy` file.
///
/// # Errors
/// As [`read_npy`].
pub fn npy_from_bytes(mut bytes: &[u8]) -> Result<Tensor> {
    let len = bytes.len() as u64;
    npy_from(&mut bytes, len, NpzOptions::default())
}

fn npy_from(from: &mut impl Read, len: u64, options: NpzOptions) -> Result<Tensor> {
    let header = Header::read(from)?;
    options.check(&header, len.saturating_sub(header.start as u64))?;
    header.tensor(from)
}

/// Writes a `.npy` file, atomically, byte for byte as `numpy.save`.
///
/// ```
/// use opt_core::Tensor;
/// use opt_data::npz::{NpzOptions, read_npy, write_npy};
///
/// # let path = std::env::temp_dir().join(format!("opt-npy-doc-{}.npy", std::process::id()));
/// write_npy(&path, &Tensor::new([2, 2], [1i64, 2, 3, 4])?)?;
/// assert_eq!(read_npy(&path, NpzOptions::default())?.shape(), [2, 2]);
/// # std::fs::remove_file(&path)?;
/// # Ok::<(), opt_core::Error>(())
/// ```
///
/// # Errors
/// As [`write`](fn@write).
pub fn write_npy(path: impl AsRef<Path>, tensor: &Tensor) -> Result<()> {
    write_atomically(path, |file| {
        let mut to = BufWriter::new(file);
        npy::write(&mut to, tensor)?;
        Ok(to.flush()?)
    })
}

#[cfg(test)]
mod tests;
