//! Weights and checkpoints as safetensors files, written atomically, with a checksum.

use std::collections::BTreeMap;
use std::io::{BufWriter, Write};
use std::path::Path;
use std::sync::Arc;

use opt_core::file::write_atomically;
use opt_core::{Error, ErrorKind, Graph, Result, ResultExt, Tensor, ValueKind, safetensors};
use serde::{Deserialize, Serialize};

use crate::trainer::{Epoch, History};

pub(crate) use crate::trainer::Best;

/// The key of the checksum in a file's metadata.
const CHECKSUM: &str = "fnv1a64";

fn format_error(e: impl std::error::Error + Send + Sync + 'static) -> Error {
    Error::new(ErrorKind::Format, format!("not a checkpoint: {e}")).with_source(e)
}

/// The variables and constants of a graph, by name.
fn weights(graph: &Graph) -> impl Iterator<Item = (&str, &Tensor)> {
    graph
        .values()
        .filter_map(|(_, value)| Some((value.name(), value.tensor()?)))
}

/// Variables and constants of a graph as the bytes of a safetensors file: weights and
/// quantization parameters, by name. What a model takes on disk.
///
/// # Errors
/// None for graphs that verify.
pub fn weights_bytes(graph: &Graph) -> Result<Vec<u8>> {
    safetensors::encode(weights(graph), &[])
}

/// Writes a graph's variables and constants as a safetensors file, atomically.
///
/// # Errors
/// If the file cannot be written.
pub fn save_weights(graph: &Graph, path: impl AsRef<Path>) -> Result<()> {
    write_safetensors(path.as_ref(), weights(graph), &[])
}

/// Loads a graph's variables from a safetensors file; tensors that the graph does not have as
/// variables are ignored.
///
/// # Errors
/// If the file cannot be read or is damaged, or a variable is missing or has another type; the
/// graph is unchanged then.
pub fn load_weights(graph: &mut Graph, path: impl AsRef<Path>) -> Result<()> {
    let path = path.as_ref();
    let place = || path.display().to_string();
    let bytes = std::fs::read(path).map_err(|e| Error::from(e).at(place()))?;
    let file = parse(bytes).at(place)?;
    *graph = restored(graph, &file.tensors).at(place)?;
    Ok(())
}

fn write_safetensors<'a>(
    path: &Path,
    tensors: impl IntoIterator<Item = (&'a str, &'a Tensor)>,
    metadata: &[(&str, &str)],
) -> Result<()> {
    write_atomically(path, |file| {
        let mut to = BufWriter::new(file);
        safetensors::write(&mut to, tensors, metadata)?;
        Ok(to.flush()?)
    })
}

/// What a file holds.
struct File {
    tensors: BTreeMap<String, Tensor>,
    metadata: BTreeMap<String, String>,
}

fn parse(bytes: Vec<u8>) -> Result<File> {
    let file = safetensors::File::parse(Arc::new(bytes))?;
    let read = |name: &String| Ok((name.clone(), file.get(name)?));
    Ok(File {
        tensors: file.names().iter().map(read).collect::<Result<_>>()?,
        metadata: file.metadata().clone(),
    })
}

/// The graph with its variables from a file's tensors.
fn restored(graph: &Graph, tensors: &BTreeMap<String, Tensor>) -> Result<Graph> {
    let mut out = graph.clone();
    for (id, value) in graph.values() {
        if !matches!(value.kind(), ValueKind::Variable(_)) {
            continue;
        }
        let tensor = tensors.get(value.name()).ok_or_else(|| {
            Error::new(ErrorKind::Format, "the file has no tensor of this name")
                .at(value.name().to_string())
        })?;
        let tensor = safetensors::unpacked(value.ty(), tensor).at(|| value.name().to_string())?;
        out.set_variable(id, tensor)?;
    }
    Ok(out)
}

fn fnv1a64(parts: impl IntoIterator<Item = impl AsRef<[u8]>>) -> u64 {
    let mut hash = 0xcbf2_9ce4_8422_2325u64;
    for part in parts {
        for &byte in part.as_ref() {
            hash = (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
        }
    }
    hash
}

/// The checksum of names, shapes, content and state.
fn checksum(tensors: &BTreeMap<String, Tensor>, state: &str) -> Result<u64> {
    let mut parts: Vec<Vec<u8>> = vec![state.as_bytes().to_vec()];
    for (name, tensor) in tensors {
        parts.push(format!("{name}{:?}{}", tensor.shape(), tensor.dtype()).into_bytes());
        parts.push(tensor.contiguous().bytes()?.to_vec());
    }
    Ok(fnv1a64(parts))
}

#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct EpochRecord {
    epoch: u64,
    loss: f64,
    val_loss: Option<f64>,
    val_accuracy: Option<f64>,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct StateRecord {
    epoch: u64,
    seed: u64,
    history: Vec<EpochRecord>,
    best: Option<(u64, f64, f64)>,
}

/// The state of a training run between two epochs: every variable of its step graph (parameters,
/// running statistics, optimizer slots, counters), the epoch, the seed, the history and the best
/// weights so far.
#[derive(Debug, Clone)]
pub struct Checkpoint {
    variables: BTreeMap<String, Tensor>,
    best: BTreeMap<String, Tensor>,
    state: StateRecord,
}

/// Before the names of the best weights in a file.
const BEST: &str = "best:";

fn variables(graph: &Graph) -> BTreeMap<String, Tensor> {
    graph
        .variables()
        .map(|(_, v, t)| (v.name().to_string(), t.clone()))
        .collect()
}

impl Checkpoint {
    pub(crate) fn new(
        graph: &Graph,
        epoch: u64,
        seed: u64,
        history: &History,
        best: Option<&Best>,
    ) -> Checkpoint {
        let record = |e: &Epoch| EpochRecord {
            epoch: e.epoch,
            loss: e.loss,
            val_loss: e.val_loss,
            val_accuracy: e.val_accuracy,
        };
        Checkpoint {
            variables: variables(graph),
            best: best.map(|b| variables(&b.graph)).unwrap_or_default(),
            state: StateRecord {
                epoch,
                seed,
                history: history.epochs.iter().map(record).collect(),
                best: best.map(|b| (b.epoch, b.accuracy, b.loss)),
            },
        }
    }

    /// Writes it to a file, atomically.
    ///
    /// # Errors
    /// If the file cannot be written.
    pub fn write(&self, path: impl AsRef<Path>) -> Result<()> {
        let mut all = self.variables.clone();
        let best = self
            .best
            .iter()
            .map(|(k, v)| (format!("{BEST}{k}"), v.clone()));
        all.extend(best);
        let state = serde_json::to_string(&self.state).map_err(format_error)?;
        // Of the tensors as they are stored: that is what reading sees.
        for tensor in all.values_mut().filter(|t| t.dtype().is_packed()) {
            *tensor = Tensor::new([tensor.size_in_bytes()], tensor.contiguous().bytes()?)?;
        }
        let sum = format!("{:016x}", checksum(&all, &state)?);
        let metadata = [("state", state.as_str()), (CHECKSUM, &sum)];
        let tensors = all.iter().map(|(name, tensor)| (name.as_str(), tensor));
        write_safetensors(path.as_ref(), tensors, &metadata)
    }

    /// Reads one.
    ///
    /// # Errors
    /// If the file cannot be read, is cut off or damaged (its checksum tells), or is no
    /// checkpoint.
    pub fn read(path: impl AsRef<Path>) -> Result<Checkpoint> {
        let path = path.as_ref();
        let place = || path.display().to_string();
        let bytes = std::fs::read(path).map_err(|e| Error::from(e).at(place()))?;
        Checkpoint::from_bytes(bytes).at(place)
    }

    fn from_bytes(bytes: Vec<u8>) -> Result<Checkpoint> {
        let File { tensors, metadata } = parse(bytes)?;
        let missing = || Error::new(ErrorKind::Format, "not a checkpoint: its state is missing");
        let state = metadata.get("state").ok_or_else(missing)?;
        let sum = metadata.get(CHECKSUM).ok_or_else(missing)?;
        if *sum != format!("{:016x}", checksum(&tensors, state)?) {
            return Err(Error::new(
                ErrorKind::Format,
                "the checkpoint is damaged: its checksum does not match",
            ));
        }
        let state = serde_json::from_str(state).map_err(format_error)?;
        let (mut variables, mut best) = (BTreeMap::new(), BTreeMap::new());
        for (name, tensor) in tensors {
            match name.strip_prefix(BEST) {
                Some(name) => best.insert(name.to_string(), tensor),
                None => variables.insert(name, tensor),
            };
        }
        Ok(Checkpoint {
            variables,
            best,
            state,
        })
    }

    /// The number of epochs that are done.
    pub fn epochs_done(&self) -> u64 {
        self.state.epoch
    }

    /// A graph with its variables from the checkpoint, by name.
    ///
    /// # Errors
    /// If a variable is missing or has another type.
    pub fn restore(&self, graph: &Graph) -> Result<Graph> {
        restored(graph, &self.variables)
    }

    pub(crate) fn expect_seed(&self, seed: u64) -> Result<()> {
        if self.state.seed == seed {
            return Ok(());
        }
        Err(Error::invalid(format!(
            "the checkpoint was made with seed {}, the trainer has {seed}",
            self.state.seed
        )))
    }

    pub(crate) fn into_state(self, graph: &Graph) -> Result<(u64, History, Option<Best>)> {
        let epochs = self.state.history.iter().map(|e| Epoch {
            epoch: e.epoch,
            loss: e.loss,
            val_loss: e.val_loss,
            val_accuracy: e.val_accuracy,
        });
        let history = History {
            epochs: epochs.collect(),
            best: self.state.best.map(|b| b.0),
        };
        let best = match self.state.best {
            Some((epoch, accuracy, loss)) => Some(Best {
                epoch,
                accuracy,
                loss,
                graph: restored(graph, &self.best)?,
            }),
            None => None,
        };
        Ok((self.state.epoch, history, best))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use opt_core::{DType, GraphBuilder};

    fn checkpoint() -> (Graph, Vec<u8>) {
        let mut b = GraphBuilder::new("g");
        b.variable("w", Tensor::new([3], [1f32, 2.0, 3.0]).unwrap())
            .unwrap();
        b.variable("n", Tensor::scalar(7i64)).unwrap();
        let graph = b.finish().unwrap();
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("c.safetensors");
        Checkpoint::new(&graph, 2, 5, &History::default(), None)
            .write(&path)
            .unwrap();
        let left: Vec<_> = std::fs::read_dir(dir.path()).unwrap().collect();
        assert_eq!(left.len(), 1, "no temporary file stays");
        (graph, std::fs::read(path).unwrap())
    }

    #[test]
    fn checkpoints_come_back() {
        let (graph, bytes) = checkpoint();
        let read = Checkpoint::from_bytes(bytes).unwrap();
        assert_eq!(read.epochs_done(), 2);
        assert_eq!(read.restore(&graph).unwrap(), graph);
        assert!(read.expect_seed(4).is_err());
    }

    #[test]
    fn every_cut_and_every_flipped_bit_is_an_error() {
        let (_, bytes) = checkpoint();
        for len in 0..bytes.len() {
            assert!(
                Checkpoint::from_bytes(bytes[..len].to_vec()).is_err(),
                "cut at {len}"
            );
        }
        for i in 0..bytes.len() * 8 {
            let mut damaged = bytes.clone();
            damaged[i / 8] ^= 1 << (i % 8);
            if let Ok(read) = Checkpoint::from_bytes(damaged) {
                // Padding of the header is the only place where a bit means nothing.
                assert_eq!(read.state.epoch, 2, "bit {i}");
                assert_eq!(
                    read.variables["w"].to_vec::<f32>().unwrap(),
                    [1.0, 2.0, 3.0]
                );
            }
        }
    }

    #[test]
    fn every_dtype_comes_back() {
        let mut b = GraphBuilder::new("g");
        for dtype in DType::ALL {
            let content = Tensor::from_f64s(dtype, [3], &[1.0, 0.0, 1.0]).unwrap();
            b.variable(&dtype.to_string(), content).unwrap();
        }
        let graph = b.finish().unwrap();
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("w.safetensors");
        let mut zeros = graph.clone();
        for (id, _, t) in graph.variables() {
            let zero = Tensor::zeros(t.dtype(), t.shape()).unwrap();
            zeros.set_variable(id, zero).unwrap();
        }
        save_weights(&graph, &path).unwrap();
        let mut loaded = zeros.clone();
        load_weights(&mut loaded, &path).unwrap();
        assert_eq!(loaded, graph);
        Checkpoint::new(&graph, 0, 0, &History::default(), None)
            .write(&path)
            .unwrap();
        let read = Checkpoint::read(&path).unwrap();
        assert_eq!(read.restore(&zeros).unwrap(), graph);
        // Another length than the packed tensor's is refused.
        let mut b = GraphBuilder::new("g");
        let longer = Tensor::zeros(DType::I4, [9]).unwrap();
        b.variable(&DType::I4.to_string(), longer).unwrap();
        assert!(read.restore(&b.finish().unwrap()).is_err());
    }

    #[test]
    fn losses_come_back_bit_for_bit() {
        let (graph, _) = checkpoint();
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("c.safetensors");
        let stream = opt_core::random::Philox::new(4);
        let epochs = (0..2000).map(|i| Epoch {
            epoch: i,
            loss: stream.uniform(0, i) * 10f64.powi((i % 12) as i32 - 8),
            val_loss: Some(stream.normal(1, i).exp()),
            val_accuracy: None,
        });
        let history = History {
            epochs: epochs.collect(),
            best: None,
        };
        Checkpoint::new(&graph, 2000, 5, &history, None)
            .write(&path)
            .unwrap();
        let (_, read, _) = Checkpoint::read(&path).unwrap().into_state(&graph).unwrap();
        assert_eq!(read, history);
    }

    #[test]
    fn weights_of_another_model_are_refused() {
        let (mut graph, bytes) = checkpoint();
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("w.safetensors");
        save_weights(&graph, &path).unwrap();
        load_weights(&mut graph, &path).unwrap();
        let mut b = GraphBuilder::extend(graph.clone());
        b.variable("new", Tensor::scalar(1f32)).unwrap();
        let mut other = b.finish().unwrap();
        let error = load_weights(&mut other, &path).unwrap_err();
        assert!(error.to_string().contains("new"), "{error}");
        std::fs::write(&path, &bytes[..40]).unwrap();
        assert_eq!(
            load_weights(&mut graph, &path).unwrap_err().kind(),
            ErrorKind::Format
        );
    }
}
