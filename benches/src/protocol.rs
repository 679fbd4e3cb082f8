//! What `cargo xtask bench` and the programs that it compares say to each other.
//!
//! Each message is a line of JSON: a [`Request`] on a worker's standard input, a [`Reply`] on its
//! standard output. A worker waits for the next request without using the processor.
//!
//! 1. `load` makes a workload ready. This library's worker writes the initial weights and the one
//!    batch to the safetensors file `weights`; the others read them: `input`, `target`, and
//!    `model.NAME` for the entry `NAME` of the state dict of a PyTorch module.
//!    For a model that is a file, `onnx` names it, and `weights` has its inputs, by their names.
//! 2. `run` runs steps on that batch, all with the same learning rate. The worker measures the
//!    time around them, from an idle device to an idle device.
//! 3. `outputs` runs a forward pass and writes its outputs.
//!
//! `about` is answered at any time, and first: a worker that answers has its libraries loaded.
//!
//! A training step is forward, loss, backward and the optimizer's update. This library's session
//! hands out the loss and the logits of every step; a peer reads the loss once a `run`.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

/// A line to a worker.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(tag = "do", rename_all = "lowercase")]
pub enum Request {
    /// Asks what the worker runs.
    About,
    /// Makes a workload ready, in place of the one before.
    Load(Load),
    /// Runs steps of it.
    Run(Run),
    /// Runs a forward pass of it, and writes what it gives.
    Outputs(Outputs),
}

/// What to make ready, and on what.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Load {
    /// The workload.
    pub row: Row,
    /// The backend's name.
    pub backend: String,
    /// `cpu`, `cuda:0`.
    pub device: String,
    /// Number of threads on the CPU.
    pub threads: usize,
    /// The file of the initial weights and the batch, or of the inputs of `onnx`.
    pub weights: PathBuf,
    /// The model, where the workload reads one.
    pub onnx: Option<PathBuf>,
}

/// How many steps to run.
#[derive(Debug, Clone, Copy, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Run {
    /// Number of steps, at least 1.
    pub steps: usize,
    /// Learning rate of each.
    pub lr: f64,
}

/// Where outputs go.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Outputs {
    /// A new file: entries of all outputs, in their order, as little-endian `f32`.
    pub file: PathBuf,
}

/// A line from a worker.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(untagged)]
pub enum Reply {
    /// What the worker runs.
    About {
        /// The library's version.
        version: String,
        /// What is set for speed beside the defaults.
        settings: String,
    },
    /// The workload is ready.
    Loaded {
        /// Number of trained entries, which has to be the same everywhere; 0 for a file's model.
        parameters: usize,
    },
    /// The steps have run.
    Ran {
        /// Microseconds that all of them took.
        us: f64,
        /// The last step's loss, before its update, where the workload has one.
        loss: Option<f64>,
    },
    /// The outputs are in the file.
    Written {
        /// Number of entries.
        written: usize,
    },
    /// The request failed; the worker waits for the next one.
    Failed {
        /// Why.
        error: String,
    },
}

/// A workload, as `rows.json` has it.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Row {
    /// Its name.
    pub name: String,
    /// What a step does.
    pub mode: Mode,
    /// The model.
    pub model: Model,
    /// Examples in the batch.
    pub batch: usize,
    /// The optimizer, where the mode has one.
    pub optimizer: Option<Optimizer>,
    /// What products and convolutions are computed in.
    pub precision: Precision,
    /// Whether it is too large for a CPU: it then runs on other devices, or where it is named.
    #[serde(default)]
    pub gpu: bool,
    /// How far outputs may be from those expected, relative to the largest of these; for a model
    /// that is a file.
    pub tolerance: Option<f64>,
}

/// What a step does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Mode {
    /// Forward, cross-entropy, backward, update.
    Train,
    /// Forward in eval mode. The loss is computed outside of the time.
    Forward,
    /// Forward of a model that is a file.
    Onnx,
}

/// A model; those that are built here classify.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(tag = "kind", rename_all = "lowercase")]
pub enum Model {
    /// Linear layers with ReLUs between them.
    Mlp {
        /// Number of inputs.
        features: usize,
        /// Widths of the hidden layers.
        hidden: Vec<usize>,
        /// Number of outputs.
        classes: usize,
    },
    /// LeNet-5 with 20 and 50 channels and 500 hidden units.
    Lenet5 {
        /// Channels, height, width.
        image: [usize; 3],
        /// Number of outputs.
        classes: usize,
    },
    /// ResNet-20 for small images, with shortcuts that have no parameters.
    Resnet20 {
        /// Channels, height, width.
        image: [usize; 3],
        /// Number of outputs.
        classes: usize,
    },
    /// ResNet-50.
    Resnet50 {
        /// Channels, height, width.
        image: [usize; 3],
        /// Number of outputs.
        classes: usize,
    },
    /// A pre-norm transformer encoder with GELU over tokens.
    Encoder {
        /// Number of tokens.
        vocabulary: usize,
        /// Tokens in a sequence.
        steps: usize,
        /// Width of the model.
        width: usize,
        /// Attention heads.
        heads: usize,
        /// Width of the feed-forward parts.
        feedforward: usize,
        /// Number of encoder layers.
        layers: usize,
        /// Number of outputs.
        classes: usize,
    },
    /// An ONNX file that `peers/onnx_models.py` writes.
    Onnx {
        /// Its name there.
        file: String,
    },
}

/// An optimizer with PyTorch's defaults.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Optimizer {
    /// Adam.
    Adam,
    /// AdamW.
    AdamW,
}

/// What products and convolutions are computed in; parameters are `f32`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Precision {
    /// 32-bit floats.
    F32,
    /// bfloat16, as `torch.autocast` does.
    Bf16,
    /// 8-bit integers, as the file has them.
    Int8,
}

/// The committed workloads.
///
/// # Errors
/// If `rows.json` is not as [`Row`] says.
pub fn rows() -> Result<Vec<Row>, serde_json::Error> {
    serde_json::from_str(include_str!("../rows.json"))
}

/// The committed workload of this name, or that trains a model of this name.
///
/// # Errors
/// If there is none; the message lists those that there are.
pub fn row(name: &str) -> Result<Row, crate::Failure> {
    let rows = rows()?;
    let found = |of: &str| rows.iter().find(|r| r.name == of);
    if let Some(row) = found(name).or_else(|| found(&format!("train-{name}"))) {
        return Ok(row.clone());
    }
    let names: Vec<&str> = rows.iter().map(|r| r.name.as_str()).collect();
    Err(format!("no workload {name}; there are {}", names.join(", ")).into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_are_read() {
        let run: Request =
            serde_json::from_str(r#"{"do": "run", "steps": 3, "lr": 1e-3}"#).unwrap();
        assert_eq!(run, Request::Run(Run { steps: 3, lr: 1e-3 }));
        let load = r#"{"do": "load", "backend": "ndarray", "device": "cpu", "threads": 2,
            "weights": "w.safetensors", "row": {"name": "r", "mode": "forward", "batch": 4,
            "precision": "bf16", "model": {"kind": "mlp", "features": 2, "hidden": [], "classes": 3}}}"#;
        let Request::Load(load) = serde_json::from_str(load).unwrap() else {
            panic!("it is no load");
        };
        assert_eq!(load.row.mode, Mode::Forward);
        assert_eq!(load.row.precision, Precision::Bf16);
        assert!(load.row.optimizer.is_none() && !load.row.gpu);
    }

    #[test]
    fn what_is_unknown_is_an_error() {
        for line in [
            "",
            "{}",
            r#"{"do": "stop"}"#,
            r#"{"do": "run", "steps": -1, "lr": 0.1}"#,
            r#"{"do": "run", "steps": 1}"#,
            r#"{"do": "run", "steps": 1, "lr": 0.1, "step": 2}"#,
            r#"{"do": "outputs"}"#,
        ] {
            assert!(serde_json::from_str::<Request>(line).is_err(), "{line}");
        }
    }

    #[test]
    fn replies_are_flat() {
        let line = |reply| serde_json::to_string(&reply).unwrap();
        assert_eq!(line(Reply::Loaded { parameters: 7 }), r#"{"parameters":7}"#);
        let loss = Some(2.0);
        let ran = Reply::Ran { us: 1.5, loss };
        assert_eq!(line(ran), r#"{"us":1.5,"loss":2.0}"#);
        let error = "why".to_string();
        assert_eq!(line(Reply::Failed { error }), r#"{"error":"why"}"#);
    }

    #[test]
    fn rows_are_found_by_name() {
        assert_eq!(row("resnet20").unwrap().name, "train-resnet20");
        assert_eq!(row("forward-mlp").unwrap().name, "forward-mlp");
        let error = row("vgg").unwrap_err().to_string();
        assert!(
            error.contains("no workload vgg") && error.contains("train-lenet5"),
            "{error}"
        );
    }

    #[test]
    fn the_rows_are_valid_and_have_names_of_their_own() {
        let rows = rows().unwrap();
        let names: std::collections::BTreeSet<_> = rows.iter().map(|r| &r.name).collect();
        assert_eq!(names.len(), rows.len());
        for row in rows {
            let trains = row.mode == Mode::Train;
            assert_eq!(row.optimizer.is_some(), trains, "{}", row.name);
            let file = matches!(row.model, Model::Onnx { .. });
            assert_eq!(file, row.mode == Mode::Onnx, "{}", row.name);
            assert_eq!(file, row.tolerance.is_some(), "{}", row.name);
        }
    }
}
