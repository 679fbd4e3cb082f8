//! Writes models for `cargo xtask onnx-check`: the golden models as they are, trained and
//! quantized in every way, with this library's answers beside them.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use opt_core::{Backend, Context, DType, Error, Graph, Pass, Result, Tensor};
use opt_data::{TensorDataset, npz};
use opt_ndarray::NdarrayBackend;
use opt_onnx::{Exporter, Importer};
use opt_quant::{Config, QuantizeDynamic, QuantizeStatic, QuantizeWeights, Scheme};

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

/// What ONNX Runtime has no kernels for on the CPU; the `onnx` package's own evaluator runs it.
const REFERENCE: [&str; 3] = ["mxfp6_weights", "mxfp4_weights", "nvfp4_weights"];

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
            // Quantized graphs in the oldest operator set that has their dtypes.
            let opsets: &[Option<i64>] = match kind {
                "float" => &[Some(13), Some(17), Some(21), Some(23)],
                _ => &[None],
            };
            for opset in opsets {
                let stem = match opset {
                    Some(opset) => format!("{model}_{kind}_{opset}"),
                    None => format!("{model}_{kind}"),
                };
                let path = out.join(format!("{stem}.onnx"));
                let exporter = opset.map_or(Exporter::new(), |o| Exporter::new().opset(o));
                exporter
                    .matmul_nbits(kind.starts_with("nbits"))
                    .save(&graph, &path)?;
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
                if REFERENCE.contains(&kind) {
                    entry["runtime"] = serde_json::json!("reference");
                }
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

fn weights(scheme: Scheme) -> QuantizeWeights {
    QuantizeWeights::new(scheme)
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
            Box::new(QuantizeWeights::new(Scheme::uint4().group(16))),
        ),
        (
            "dynamic_uint8_weights",
            Box::new(QuantizeDynamic::new().weights(Scheme::uint8())),
        ),
        ("per_token", Box::new(QuantizeDynamic::new().per_token())),
        ("fp8_weights", Box::new(weights(Scheme::fp8_e4m3()))),
        ("fp8_e5m2_weights", Box::new(weights(Scheme::fp8_e5m2()))),
        ("nf4_weights", Box::new(weights(Scheme::nf4().group(16)))),
        ("mxfp8_weights", Box::new(weights(Scheme::mxfp8()))),
        ("mxfp6_weights", Box::new(weights(Scheme::mxfp6()))),
        ("mxfp4_weights", Box::new(weights(Scheme::mxfp4()))),
        ("nvfp4_weights", Box::new(weights(Scheme::nvfp4()))),
        ("int2_weights", Box::new(weights(Scheme::int2().group(16)))),
        ("f16_weights", Box::new(weights(Scheme::f16()))),
        ("nbits_4", Box::new(weights(Scheme::int4().group(16)))),
        ("nbits_4_zero", Box::new(weights(Scheme::uint4().group(32)))),
        ("nbits_8", Box::new(weights(Scheme::int8().group(32)))),
    ];
    let mut out = vec![("float", graph.clone())];
    for (kind, pass) in passes {
        let mut cx = Context::new().with_backend(backend).with_calibration(data);
        let (quantized, _) = pass.apply(graph.clone(), &mut cx)?;
        let stored = quantized.values().any(|(_, v)| {
            v.tensor().is_some()
                && (v.ty().dtype.bits() <= 8 && v.ty().dtype != DType::Bool
                    || v.ty().dtype == DType::F16)
        });
        if !stored {
            return Err(Error::invalid(format!("{kind} left nothing in fewer bits")));
        }
        out.push((kind, quantized));
    }
    Ok(out)
}
