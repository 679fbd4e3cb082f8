//! Writes models for `cargo xtask onnx-check`: the golden models as they are, trained and
//! quantized in every way, with this library's answers beside them.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use opt_core::{Backend, Context, DType, Error, Graph, Pass, Result, Tensor};
use opt_data::{TensorDataset, npz};
use opt_ndarray::NdarrayBackend;
use opt_onnx::{Exporter, Importer};
use opt_quant::{Config, QuantizeDynamic, QuantizeStatic, QuantizeWeights};

fn main() -> ExitCode {
    let Some(out) = std::env::args().nth(1) else {
        eprintln!("usage: onnx-exports OUT_DIR");
        return ExitCode::FAILURE;
    };
    match all(Path::new(&out)) {
        Ok(count) => {
            println!("{count} models in {out}");
            ExitCode::SUCCESS
        }
        Err(e) => {
            eprintln!("{e}");
            ExitCode::FAILURE
        }
    }
}

/// Samples that are run, and that calibrate.
const BATCH: usize = 16;

fn all(out: &Path) -> Result<usize> {
    std::fs::create_dir_all(out)?;
    let golden =
        PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../opt-onnx/tests/golden/training");
    let backend = NdarrayBackend::new();
    let mut manifest = Vec::new();
    for model in ["mlp", "cnn", "lstm", "bert"] {
        let graph = Importer::new().load(golden.join(format!("{model}_torchscript.onnx")))?;
        let input = graph.inputs()[0];
        let name = graph.value(input).name().to_string();
        let arrays = npz::read(golden.join(format!("{model}.npz")))?;
        let found = arrays.into_iter().find(|(n, _)| *n == name);
        let data = found
            .ok_or_else(|| Error::invalid(format!("no array `{name}`")))?
            .1;
        let rows: Vec<usize> = (0..BATCH).collect();
        let x = data.select(0, &rows)?.contiguous();
        let inputs = out.join(format!("{model}_in.npz"));
        npz::write(&inputs, &[(name.as_str(), &x)])?;
        let calibration = TensorDataset::new(vec![data])?;
        let float = backend.run_once(&graph, std::slice::from_ref(&x))?;
        let values = float[0].to_f64s();
        let spread = values.iter().copied().fold(f64::MIN, f64::max)
            - values.iter().copied().fold(f64::MAX, f64::min);
        for (kind, graph) in variants(&graph, &calibration, &backend)? {
            let opsets: &[i64] = if kind == "float" {
                &[13, 17, 21, 23]
            } else {
                &[21]
            };
            for opset in opsets {
                let stem = format!("{model}_{kind}_{opset}");
                let path = out.join(format!("{stem}.onnx"));
                Exporter::new().opset(*opset).save(&graph, &path)?;
                // What was written is what is run here too.
                let back = Importer::new().load(&path)?;
                let answers = backend.run_once(&back, std::slice::from_ref(&x))?;
                let outputs = out.join(format!("{stem}_out.npz"));
                let names = back.named_outputs().iter().map(|(n, _)| n.as_str());
                let pairs: Vec<(&str, &Tensor)> = names.zip(&answers).collect();
                npz::write(&outputs, &pairs)?;
                let mut entry = serde_json::json!({
                    "model": format!("{stem}.onnx"),
                    "inputs": format!("{model}_in.npz"),
                    "outputs": format!("{stem}_out.npz"),
                    "rtol": 1e-4,
                    "atol": 1e-5,
                });
                if kind != "float" {
                    // A step of the output's own 8-bit grid.
                    entry["steps"] = serde_json::json!({ pairs[0].0: spread / 255.0 });
                }
                manifest.push(entry);
            }
        }
    }
    let text =
        serde_json::to_string_pretty(&manifest).map_err(|e| Error::invalid(e.to_string()))?;
    std::fs::write(out.join("manifest.json"), text)?;
    Ok(manifest.len())
}

fn variants(
    graph: &Graph,
    data: &TensorDataset,
    backend: &NdarrayBackend,
) -> Result<Vec<(&'static str, Graph)>> {
    let mut per_tensor = Config::default();
    per_tensor.weights = per_tensor.weights.per_tensor();
    let passes: Vec<(&str, Box<dyn Pass>)> = vec![
        ("static", Box::new(QuantizeStatic::new())),
        (
            "static_per_tensor",
            Box::new(QuantizeStatic::with(per_tensor)),
        ),
        ("dynamic", Box::new(QuantizeDynamic::new())),
        (
            "dynamic_per_channel",
            Box::new(QuantizeDynamic::new().per_channel()),
        ),
        ("int8_weights", Box::new(QuantizeWeights::int8())),
        ("int4_weights", Box::new(QuantizeWeights::int4(32))),
        (
            "uint4_weights",
            Box::new(QuantizeWeights::int4(16).asymmetric()),
        ),
    ];
    let mut out = vec![("float", graph.clone())];
    for (kind, pass) in passes {
        let mut cx = Context::new().with_backend(backend).with_calibration(data);
        let (quantized, _) = pass.apply(graph.clone(), &mut cx)?;
        let stored = quantized.values().any(|(_, v)| {
            v.tensor().is_some()
                && matches!(v.ty().dtype, DType::I8 | DType::U8 | DType::I4 | DType::U4)
        });
        if !stored {
            return Err(Error::invalid(format!("{kind} left nothing in integers")));
        }
        out.push((kind, quantized));
    }
    Ok(out)
}
