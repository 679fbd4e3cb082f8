//! The workload of `cargo xtask bench-calibration`: a deep network, and examples that are made when
//! they are asked for, so that the data takes no memory on either side.
//!
//! Messages are lines of JSON, as of the [`protocol`](crate::protocol): `about`, `write` for the
//! model's file, and `calibrate`, which answers with the seconds it took and the ranges.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Instant;

use opt_core::data::Dataset;
use opt_core::nn::{Fan, Init, Linear, ModelBuilder, gain};
use opt_core::ops::UnaryOp;
use opt_core::{Context, Result, Tensor};
use opt_onnx::{Exporter, Importer};
use opt_quant::{Config, ObserverKind};
use serde::{Deserialize, Serialize};

use crate::{Failure, backend};

/// A line to the worker.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(tag = "do", rename_all = "lowercase")]
pub enum Request {
    /// Asks what the worker runs.
    About,
    /// Writes the model.
    Write(Network),
    /// Calibrates it.
    Calibrate(Calibrate),
}

/// Fully connected layers of one width, with a ReLU between.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Network {
    /// Where to write it.
    pub model: PathBuf,
    /// The number of layers.
    pub layers: usize,
    /// Their inputs and outputs.
    pub width: usize,
}

/// What to calibrate, and how.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Calibrate {
    /// The file of the model.
    pub model: PathBuf,
    /// `minmax`, `percentile` or `entropy`.
    pub method: String,
    /// The number of examples.
    pub samples: usize,
    /// How many run at a time.
    pub batch: usize,
    /// Number of threads.
    pub threads: usize,
    /// Entries of an example.
    pub width: usize,
}

/// A line from the worker.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(untagged)]
pub enum Reply {
    /// To [`Request::About`].
    About {
        /// The version of the library.
        version: String,
        /// Its settings.
        settings: String,
    },
    /// To [`Request::Write`].
    Written {
        /// The layers.
        written: usize,
    },
    /// To [`Request::Calibrate`].
    Calibrated {
        /// From the file to the ranges.
        seconds: f64,
        /// The ranges of values.
        ranges: BTreeMap<String, (f64, f64)>,
    },
    /// What went wrong.
    Failed {
        /// The message.
        error: String,
    },
}

/// Examples of uniform numbers from -1 to 1, by a hash of their place that is the same in Python.
#[derive(Debug, Clone, Copy)]
pub struct Hashed {
    samples: usize,
    width: usize,
}

impl Hashed {
    /// So many examples.
    pub fn new(samples: usize, width: usize) -> Hashed {
        Hashed { samples, width }
    }
}

fn hashed(place: u32) -> f32 {
    let h = place.wrapping_mul(2_654_435_761);
    let h = (h ^ (h >> 16)).wrapping_mul(0x85eb_ca6b);
    let h = h ^ (h >> 13);
    (h >> 8) as f32 / 8_388_608.0 - 1.0
}

impl Dataset for Hashed {
    fn len(&self) -> usize {
        self.samples
    }

    fn get(&self, index: usize) -> Result<Vec<Tensor>> {
        let places = (index * self.width..).take(self.width);
        let values: Vec<f32> = places.map(|place| hashed(place as u32)).collect();
        Ok(vec![Tensor::new([self.width], values)?])
    }
}

/// Writes the model.
///
/// # Errors
/// If it has no layers, or the file cannot be written.
pub fn write(network: &Network) -> Result<()> {
    let mut m = ModelBuilder::new("deep", 7);
    let mut x = m.batch("x", [network.width])?;
    // Magnitudes stay the same from layer to layer.
    let init = Init::KaimingNormal {
        fan: Fan::In,
        gain: gain(UnaryOp::Relu),
    };
    for i in 0..network.layers {
        let layer = Linear::new(network.width).init(init);
        x = m.layer(&format!("fc{i}"), layer, x)?;
        x = m.relu(x)?;
    }
    m.output("y", x)?;
    Exporter::new().save(&m.finish()?, &network.model)
}

/// Reads the model and observes what its layers read.
///
/// # Errors
/// If there is no such method or model.
pub fn calibrate(request: &Calibrate) -> std::result::Result<Reply, Failure> {
    let start = Instant::now();
    let kind = match request.method.as_str() {
        "minmax" => ObserverKind::MinMax,
        "percentile" => ObserverKind::Percentile(0.999_99),
        "entropy" => ObserverKind::Kl,
        other => return Err(format!("no method {other}").into()),
    };
    let mut config = Config::default().observer(kind);
    config.calibration.batch_size = request.batch;
    config.calibration.max_examples = request.samples;
    let graph = Importer::new().load(Path::new(&request.model))?;
    let backend = backend::open("ndarray", "cpu", request.threads)?;
    let data = Hashed::new(request.samples, request.width);
    let cx = Context::new()
        .with_backend(&*backend)
        .with_calibration(&data);
    let observed = config.observe(&graph, &cx)?;
    let mut ranges = BTreeMap::new();
    for (name, _) in observed.values() {
        ranges.insert(name.to_string(), observed.range(name, &config.activations)?);
    }
    Ok(Reply::Calibrated {
        seconds: start.elapsed().as_secs_f64(),
        ranges,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What `examples` in `peers/calibration_onnxruntime.py` gives.
    #[test]
    fn numbers_are_those_of_python() {
        let found: Vec<f32> = [0, 1, 2, 12_345, u32::MAX].map(hashed).to_vec();
        assert_eq!(found, PYTHON);
    }

    const PYTHON: [f32; 5] = [
        -1.0,
        -0.218_364_6,
        0.982_053_64,
        -0.148_499_85,
        -0.862_586_14,
    ];

    #[test]
    fn a_small_network_is_calibrated() {
        let folder = std::env::temp_dir();
        let model = folder.join(format!("opt-bench-calibration-{}.onnx", std::process::id()));
        let network = Network {
            model: model.clone(),
            layers: 3,
            width: 8,
        };
        write(&network).unwrap();
        for method in ["minmax", "percentile", "entropy"] {
            let request = Calibrate {
                model: model.clone(),
                method: method.into(),
                samples: 20,
                batch: 8,
                threads: 1,
                width: 8,
            };
            let Reply::Calibrated { ranges, .. } = calibrate(&request).unwrap() else {
                panic!("no ranges");
            };
            assert_eq!(ranges.len(), 3);
            let (low, high) = ranges["x"];
            assert!((-1.0..-0.5).contains(&low) && high > 0.5 && high < 1.0);
        }
        std::fs::remove_file(&model).unwrap();
    }
}
