//! Weights to be read some rows at a time: safetensors files, one or several.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};

use half::f16;
use opt_core::safetensors::Header;
use opt_core::{DType, Error, ErrorKind, Result, ResultExt};

/// The longest list of shards.
const MAX_INDEX: u64 = 100_000_000;

/// A tensor of a [`Source`].
#[derive(Debug, Clone)]
pub(super) struct Entry {
    pub(super) name: String,
    pub(super) dtype: DType,
    pub(super) shape: Vec<usize>,
    file: usize,
    start: u64,
    pub(super) bytes: u64,
}

/// Open safetensors files.
#[derive(Debug)]
pub(super) struct Source {
    files: Vec<(PathBuf, File)>,
    /// By name.
    pub(super) entries: Vec<Entry>,
    pub(super) metadata: BTreeMap<String, String>,
    /// What tells these files from others, and from later versions of them.
    pub(super) identity: String,
}

impl Source {
    /// Opens a safetensors file, or all that an index (`model.safetensors.index.json`) names.
    pub(super) fn open(path: &Path) -> Result<Source> {
        let place = || path.display().to_string();
        let paths = match path.extension().is_some_and(|e| e == "json") {
            true => shards(path).at(place)?,
            false => vec![path.to_path_buf()],
        };
        let mut source = Source {
            files: Vec::new(),
            entries: Vec::new(),
            metadata: BTreeMap::new(),
            identity: String::new(),
        };
        for path in paths {
            source.add(&path).at(|| path.display().to_string())?;
        }
        source.entries.sort_by(|a, b| a.name.cmp(&b.name));
        for pair in source.entries.windows(2) {
            if pair[0].name == pair[1].name {
                let message = "two of the files have this tensor";
                return Err(Error::new(ErrorKind::Format, message)
                    .at(&pair[0].name)
                    .at(place()));
            }
        }
        Ok(source)
    }

    fn add(&mut self, path: &Path) -> Result<()> {
        let mut file = File::open(path)?;
        let about = file.metadata()?;
        let header = Header::read(&mut file, about.len())?;
        let modified = about.modified()?.duration_since(std::time::UNIX_EPOCH);
        let modified = modified.unwrap_or_default().as_nanos();
        self.identity += &format!("{:?} {} {modified} ", path.file_name(), about.len());
        for entry in header.entries() {
            self.entries.push(Entry {
                name: entry.name.clone(),
                dtype: entry.dtype,
                shape: entry.shape.clone(),
                file: self.files.len(),
                start: entry.range.start,
                bytes: entry.range.end - entry.range.start,
            });
        }
        self.metadata.extend(header.metadata().clone());
        self.files.push((path.to_path_buf(), file));
        Ok(())
    }

    /// Reads part of a tensor's bytes.
    pub(super) fn bytes(&mut self, entry: &Entry, from: u64, into: &mut [u8]) -> Result<()> {
        let (path, file) = &mut self.files[entry.file];
        let mut read = || -> Result<()> {
            file.seek(SeekFrom::Start(entry.start + from))?;
            Ok(file.read_exact(into)?)
        };
        read().at(|| path.display().to_string())
    }

    /// Reads the bytes of entries of a tensor, over what the buffer held.
    pub(super) fn entries(
        &mut self,
        entry: &Entry,
        from: usize,
        len: usize,
        into: &mut Vec<u8>,
    ) -> Result<()> {
        let size = entry.dtype.bytes(1);
        into.resize(len * size, 0);
        self.bytes(entry, (from * size) as u64, into)
    }
}

/// Entries of a floating-point type from their bytes, as `f32`.
pub(super) fn floats(dtype: DType, bytes: &[u8], into: &mut [f32]) -> Result<()> {
    /// One entry after the other.
    fn each<const N: usize>(bytes: &[u8], into: &mut [f32], of: impl Fn([u8; N]) -> f32) {
        for (x, &entry) in into.iter_mut().zip(bytes.as_chunks::<N>().0) {
            *x = of(entry);
        }
    }
    match dtype {
        DType::F32 => each(bytes, into, f32::from_le_bytes),
        DType::F64 => each(bytes, into, |b| f64::from_le_bytes(b) as f32),
        DType::F16 => each(bytes, into, |b| f16::from_le_bytes(b).to_f32()),
        DType::BF16 => each(bytes, into, |b| {
            f32::from_bits(u32::from(u16::from_le_bytes(b)) << 16)
        }),
        other => return Err(Error::unsupported(format!("weights of type {other}"))),
    }
    Ok(())
}

/// The files that an index names.
fn shards(index: &Path) -> Result<Vec<PathBuf>> {
    #[derive(serde::Deserialize)]
    struct Index {
        weight_map: BTreeMap<String, String>,
    }
    let file = File::open(index)?;
    let mut text = Vec::new();
    file.take(MAX_INDEX).read_to_end(&mut text)?;
    let index_of: Index = serde_json::from_slice(&text).map_err(|e| {
        Error::new(ErrorKind::Format, format!("not an index of shards: {e}")).with_source(e)
    })?;
    let mut names: Vec<String> = index_of.weight_map.into_values().collect();
    names.sort();
    names.dedup();
    let folder = index.parent().unwrap_or(Path::new(""));
    let shard = |name: String| match Path::new(&name).file_name() {
        // An index that points elsewhere would make this program read any file.
        Some(own) if own == Path::new(&name) => Ok(folder.join(name)),
        _ => Err(Error::new(
            ErrorKind::Format,
            format!("the index names `{name}`, which is not a file beside it"),
        )),
    };
    names.into_iter().map(shard).collect()
}
