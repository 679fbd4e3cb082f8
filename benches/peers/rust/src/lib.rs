//! What the workers of `cargo xtask bench` for other Rust libraries share: the protocol of
//! `benches/src/protocol.rs`, and reading weights and inputs.

#![forbid(unsafe_code)]

pub mod tensors;

use std::io::{BufRead, Write};
use std::path::PathBuf;
use std::time::Instant;

use serde::Deserialize;
use serde_json::{Value, json};

/// What a worker fails with: it only ends up in a message.
pub type Failure = Box<dyn std::error::Error>;

/// A library under test.
pub trait Engine: Sized {
    /// The package whose version is told.
    const PACKAGE: &'static str;
    /// What is set for speed beside the defaults, for the reader of the table.
    const SETTINGS: &'static str;

    /// Makes a workload ready.
    fn load(load: &Load) -> Result<Self, Failure>;

    /// Number of trained entries; 0 for a model that was read from a file.
    fn parameters(&self) -> usize {
        0
    }

    /// Runs a step; what it computes is kept for the two below.
    fn step(&mut self, lr: f64) -> Result<(), Failure>;

    /// The loss of the last step, where the workload has one.
    fn loss(&mut self) -> Result<Option<f64>, Failure>;

    /// The outputs of the last step, one after the other.
    fn outputs(&mut self) -> Result<Vec<f32>, Failure>;
}

/// What to make ready. The workload is a row of `rows.json`.
#[derive(Debug, Deserialize)]
pub struct Load {
    pub row: Value,
    pub threads: usize,
    /// A safetensors file: weights and batch, or the inputs of `onnx`.
    pub weights: PathBuf,
    /// The model, where the workload reads one.
    pub onnx: Option<PathBuf>,
}

impl Load {
    /// The model file.
    pub fn onnx(&self) -> Result<&PathBuf, Failure> {
        self.onnx
            .as_ref()
            .ok_or_else(|| unwritten(&self.row["model"]["kind"]))
    }

    /// Whether steps train, which they do with one of these optimizers.
    pub fn trains(&self, optimizers: &[&str]) -> Result<bool, Failure> {
        let row = &self.row;
        if row["precision"] != "f32" {
            return Err(unwritten(&row["precision"]));
        }
        let trains = row["mode"] == "train";
        let optimizer = row["optimizer"].as_str().unwrap_or("none");
        if trains && !optimizers.contains(&optimizer) {
            return Err(unwritten(&row["optimizer"]));
        }
        Ok(trains)
    }
}

/// The error of a part of a workload that no program here has.
pub fn unwritten(part: &Value) -> Failure {
    format!("this comparison has no {part} written with this library").into()
}

#[derive(Deserialize)]
#[serde(tag = "do", rename_all = "lowercase")]
enum Request {
    About,
    Load(Load),
    Run { steps: usize, lr: f64 },
    Outputs { file: PathBuf },
}

/// Answers requests until standard input ends.
pub fn serve<E: Engine>() -> Result<(), Failure> {
    let mut engine = None;
    for line in std::io::stdin().lock().lines() {
        let line = line?;
        // A library that panics has failed at this request only.
        let answered = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            answer::<E>(&line, &mut engine)
        }));
        let reply = match answered {
            Ok(Ok(reply)) => reply,
            Ok(Err(error)) => json!({"error": error.to_string()}),
            Err(panic) => {
                let text = panic
                    .downcast_ref::<String>()
                    .map(String::as_str)
                    .or_else(|| panic.downcast_ref::<&str>().copied());
                json!({"error": format!("it panicked: {}", text.unwrap_or("no message"))})
            }
        };
        let mut stdout = std::io::stdout().lock();
        writeln!(stdout, "{reply}")?;
        stdout.flush()?;
    }
    Ok(())
}

fn answer<E: Engine>(line: &str, engine: &mut Option<E>) -> Result<Value, Failure> {
    let request = serde_json::from_str(line)?;
    if let Request::About = request {
        return Ok(json!({"version": version(E::PACKAGE), "settings": E::SETTINGS}));
    }
    if let Request::Load(load) = request {
        // The memory of the one before is needed.
        *engine = None;
        let loaded = engine.insert(E::load(&load)?);
        return Ok(json!({"parameters": loaded.parameters()}));
    }
    let engine = engine.as_mut().ok_or("nothing is loaded")?;
    match request {
        Request::Run { steps: 0, .. } => Err("a run has one step at least".into()),
        Request::Run { steps, lr } => {
            let start = Instant::now();
            for _ in 0..steps {
                engine.step(lr)?;
            }
            let us = start.elapsed().as_secs_f64() * 1e6;
            Ok(json!({"us": us, "loss": engine.loss()?}))
        }
        Request::Outputs { file } => {
            engine.step(0.0)?;
            let outputs = engine.outputs()?;
            let bytes: Vec<u8> = outputs.iter().flat_map(|x| x.to_le_bytes()).collect();
            std::fs::write(file, bytes)?;
            Ok(json!({"written": outputs.len()}))
        }
        Request::About | Request::Load(_) => Err("answered above".into()),
    }
}

/// The version of a package in the lock file.
fn version(package: &str) -> &'static str {
    let lock = include_str!("../Cargo.lock");
    let name = format!("name = \"{package}\"");
    let mut lines = lock.lines().skip_while(|line| *line != name);
    let found = lines
        .nth(1)
        .and_then(|line| line.strip_prefix("version = "));
    found.map_or("unknown", |text| text.trim_matches('"'))
}

#[cfg(test)]
mod tests {
    #[test]
    fn versions_are_the_lock_files() {
        assert!(super::version("rten").starts_with("0.27."));
        assert_eq!(super::version("no such package"), "unknown");
    }
}
