//! Weights in safetensors files: mapped, sharded, under other names and in other layouts.
//!
//! ```
//! use opt_core::nn::{Linear, ModelBuilder};
//! use opt_onnx::safetensors::{Content, LoadOptions, NameMap, SafeTensors, load_into, save};
//!
//! let model = |seed| {
//!     let mut m = ModelBuilder::new("head", seed);
//!     let x = m.batch("x", [8])?;
//!     let y = m.layer("classifier", Linear::new(3), x)?;
//!     m.output("y", y)?;
//!     m.finish()
//! };
//! # let path = std::env::temp_dir().join(format!("opt-st-doc-{}", std::process::id()));
//! # let path = path.with_extension("safetensors");
//! // A file that calls the layer `model.fc` and has its weight as [in, out].
//! let names = NameMap::new()
//!     .replace("^classifier", "model.fc")?
//!     .transpose("weight$")?;
//! let trained = model(1)?;
//! save(&path, &trained, &names, Content::Variables)?;
//!
//! let file = SafeTensors::open(&path)?;
//! assert_eq!(file.names(), ["model.fc.bias", "model.fc.weight"]);
//! assert_eq!(file.get("model.fc.weight")?.shape(), [8, 3]);
//!
//! let mut graph = model(2)?;
//! let report = load_into(&mut graph, &file, &names, LoadOptions::new())?;
//! assert_eq!(report.loaded, ["classifier.weight", "classifier.bias"]);
//! assert_eq!(graph, trained);
//! # drop((file, graph));
//! # std::fs::remove_file(&path)?;
//! # Ok::<(), opt_core::Error>(())
//! ```
//!
//! A [`NameMap`] goes from the graph's names to the file's, so that the same map loads and saves.

mod load;
mod names;

use std::collections::{BTreeMap, HashMap};
use std::ffi::OsStr;
use std::fs::File;
use std::path::{Component, Path, PathBuf};
use std::sync::Arc;

use opt_core::{Error, ErrorKind, Result, ResultExt, Tensor, safetensors};
use serde::Deserialize;

use crate::mmap::Mapped;

pub use load::{Content, LoadOptions, LoadReport, load_into, save};
pub use names::{NameMap, Recurrent};

/// A checkpoint of named tensors in one safetensors file or several, mapped into memory.
///
/// Tensors share the mapping where its addresses are aligned for their dtype, and are copied
/// elsewhere and as soon as they are written. The files must not be changed as long as any tensor
/// of them lives: a file that another program shortens ends this process when its bytes are read,
/// and one that it rewrites changes the tensors. Replacing a file by renaming another (as all of
/// this workspace does) is safe; Windows refuses it as long as the file is mapped.
#[derive(Debug)]
pub struct SafeTensors {
    shards: Vec<safetensors::File>,
    names: Vec<String>,
    /// Which shard has the tensor of a name.
    index: HashMap<String, usize>,
    metadata: BTreeMap<String, String>,
}

/// `model.safetensors.index.json`.
#[derive(Deserialize)]
struct Index {
    #[serde(default)]
    metadata: BTreeMap<String, serde_json::Value>,
    weight_map: BTreeMap<String, String>,
}

/// The file of a checkpoint that is not sharded, and the index of one that is.
const SINGLE: &str = "model.safetensors";
const INDEX: &str = "model.safetensors.index.json";

impl SafeTensors {
    /// Opens a `.safetensors` file, the index of a sharded checkpoint
    /// (`model.safetensors.index.json`), or a folder that has one of the two under these names.
    ///
    /// # Errors
    /// [`ErrorKind::Io`] if a file cannot be read; [`ErrorKind::Format`] if one is damaged, or the
    /// index and its files contradict each other.
    pub fn open(path: impl AsRef<Path>) -> Result<SafeTensors> {
        let path = path.as_ref();
        if path.is_dir() {
            let found = [SINGLE, INDEX].map(|name| path.join(name));
            return match found.iter().find(|file| file.is_file()) {
                Some(file) => SafeTensors::open(file),
                None => Err(Error::new(
                    ErrorKind::Io,
                    format!("the folder has neither {SINGLE} nor {INDEX}"),
                )
                .at(path.display().to_string())),
            };
        }
        match path.extension() == Some(OsStr::new("json")) {
            true => SafeTensors::sharded(path),
            false => Ok(SafeTensors::single(map(path)?)),
        }
    }

    /// Reads a file in memory.
    ///
    /// # Errors
    /// [`ErrorKind::Format`] if it is damaged.
    pub fn from_bytes(bytes: impl Into<Vec<u8>>) -> Result<SafeTensors> {
        let file = safetensors::File::parse(Arc::new(bytes.into()))?;
        Ok(SafeTensors::single(file))
    }

    fn single(file: safetensors::File) -> SafeTensors {
        let names = file.names().to_vec();
        SafeTensors {
            index: names.iter().map(|name| (name.clone(), 0)).collect(),
            names,
            metadata: file.metadata().clone(),
            shards: vec![file],
        }
    }

    fn sharded(path: &Path) -> Result<SafeTensors> {
        let place = || path.display().to_string();
        let damaged = |m: String| Error::new(ErrorKind::Format, m).at(place());
        let text = std::fs::read(path).map_err(|e| Error::from(e).at(place()))?;
        let index: Index = serde_json::from_slice(&text)
            .map_err(|e| damaged(format!("not an index of shards: {e}")).with_source(e))?;
        let folder = path.parent().unwrap_or(Path::new(""));
        let mut shards: BTreeMap<&str, (usize, safetensors::File)> = BTreeMap::new();
        let mut where_is = HashMap::new();
        for (name, file) in &index.weight_map {
            let count = shards.len();
            if !shards.contains_key(file.as_str()) {
                let shard = map(&beside(folder, file).at(place)?)?;
                shards.insert(file, (count, shard));
            }
            let (shard, content) = &shards[file.as_str()];
            if !content.contains(name) {
                return Err(damaged(format!(
                    "the index says that `{file}` has `{name}`, which it has not"
                )));
            }
            where_is.insert(name.clone(), *shard);
        }
        let text_of = |value: &serde_json::Value| match value {
            serde_json::Value::String(text) => text.clone(),
            other => other.to_string(),
        };
        let metadata = index.metadata.iter().map(|(k, v)| (k.clone(), text_of(v)));
        let mut shards: Vec<_> = shards.into_values().collect();
        shards.sort_by_key(|(at, _)| *at);
        Ok(SafeTensors {
            shards: shards.into_iter().map(|(_, file)| file).collect(),
            names: index.weight_map.keys().cloned().collect(),
            index: where_is,
            metadata: metadata.collect(),
        })
    }

    /// The names of all tensors: of one file in the order of their bytes, of a sharded checkpoint
    /// in alphabetical order.
    pub fn names(&self) -> &[String] {
        &self.names
    }

    /// Whether there is a tensor of a name.
    pub fn contains(&self, name: &str) -> bool {
        self.index.contains_key(name)
    }

    /// Notes about the file (or the index), by key.
    pub fn metadata(&self) -> &BTreeMap<String, String> {
        &self.metadata
    }

    /// A tensor, without a copy where the mapping is aligned for its dtype.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidArgument`] if there is none of this name;
    /// [`ErrorKind::Unsupported`] if [`DType`](opt_core::DType) has not its dtype.
    pub fn get(&self, name: &str) -> Result<Tensor> {
        match self.index.get(name) {
            Some(&shard) => self.shards[shard].get(name),
            None => {
                let names = self.names.iter().map(String::as_str);
                let hint = names::closest(name, names).map(|n| format!("; did you mean `{n}`?"));
                Err(Error::invalid(format!(
                    "the checkpoint has no tensor `{name}`{}",
                    hint.unwrap_or_default()
                )))
            }
        }
    }
}

/// A shard's path. An index may come from anywhere, and reads no files of other folders.
fn beside(folder: &Path, file: &str) -> Result<PathBuf> {
    let mut parts = Path::new(file).components();
    match (parts.next(), parts.next()) {
        (Some(Component::Normal(_)), None) => Ok(folder.join(file)),
        _ => Err(Error::new(
            ErrorKind::Format,
            format!("the index names the shard `{file}`, which is no file beside it"),
        )),
    }
}

fn map(path: &Path) -> Result<safetensors::File> {
    let open = || {
        let mapped = Mapped::new(&File::open(path)?)?;
        safetensors::File::parse(Arc::new(mapped))
    };
    open().at(|| path.display().to_string())
}

#[cfg(test)]
mod tests;
