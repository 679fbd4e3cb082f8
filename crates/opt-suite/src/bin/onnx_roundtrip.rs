//! Reads the models of a manifest, runs them, writes them back and reads them again;
//! `cargo xtask onnx-check` then checks what was written with ONNX Runtime.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use opt_core::{Backend, Error, Graph, Result, Tensor};
use opt_data::npz::Npz;
use opt_ndarray::NdarrayBackend;
use opt_onnx::{Exporter, Importer};

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let [manifest, out] = &args[..] else {
        eprintln!("usage: onnx-roundtrip MANIFEST.json OUT_DIR");
        return ExitCode::FAILURE;
    };
    match all(Path::new(manifest), Path::new(out)) {
        Ok(0) => ExitCode::SUCCESS,
        Ok(_) => ExitCode::FAILURE,
        Err(e) => {
            eprintln!("{e}");
            ExitCode::FAILURE
        }
    }
}

fn all(manifest: &Path, out: &Path) -> Result<usize> {
    let text = std::fs::read_to_string(manifest)?;
    let parsed: serde_json::Value = serde_json::from_str(&text)
        .map_err(|e| Error::invalid(format!("{}: {e}", manifest.display())))?;
    let entries = parsed
        .as_array()
        .or_else(|| parsed["models"].as_array())
        .cloned()
        .unwrap_or_default();
    std::fs::create_dir_all(out)?;
    let folder = manifest.parent().unwrap_or(Path::new("."));
    let mut written = Vec::new();
    let (mut passed, mut failed) = (0, 0);
    for mut entry in entries {
        let path = |key: &str| folder.join(entry[key].as_str().unwrap_or_default());
        let (model, inputs, outputs) = (path("model"), path("inputs"), path("outputs"));
        let name = model
            .file_name()
            .unwrap_or_default()
            .to_string_lossy()
            .into_owned();
        let target = out.join(&name);
        let tolerance = |key: &str| entry[key].as_f64();
        let (rtol, atol) = (
            tolerance("rtol").unwrap_or(1e-3),
            tolerance("atol").unwrap_or(1e-4),
        );
        match one(&model, &inputs, &outputs, &target, rtol, atol) {
            Ok(()) => passed += 1,
            Err(e) => {
                failed += 1;
                println!("FAILED {name}: {e}");
            }
        }
        if target.is_file() {
            let absolute = |p: PathBuf| p.canonicalize().unwrap_or(p).display().to_string();
            entry["model"] = absolute(target).into();
            entry["inputs"] = absolute(inputs).into();
            entry["outputs"] = absolute(outputs).into();
            written.push(entry);
        }
    }
    println!("{passed} passed, {failed} failed");
    let text = serde_json::to_string_pretty(&written).map_err(|e| Error::invalid(e.to_string()))?;
    std::fs::write(out.join("manifest.json"), text)?;
    Ok(failed)
}

fn one(
    model: &Path,
    inputs: &Path,
    outputs: &Path,
    target: &Path,
    rtol: f64,
    atol: f64,
) -> Result<()> {
    let (mut data, mut expected) = (Npz::open(inputs)?, Npz::open(outputs)?);
    // Traced models may hold for the traced sizes only, whatever their inputs say.
    let graph = Importer::new().load(model).or_else(|first| {
        let mut importer = Importer::new();
        for name in opt_onnx::input_names(model)? {
            importer = importer.known_input(name.clone(), data.tensor(&name)?);
        }
        importer.load(model).map_err(|_| first.at("import"))
    })?;
    let arguments: Vec<Tensor> = graph
        .inputs()
        .iter()
        .map(|&id| data.tensor(graph.value(id).name()))
        .collect::<Result<_>>()?;
    Exporter::new()
        .save(&graph, target)
        .map_err(|e| e.at("export"))?;
    let again = Importer::new()
        .load(target)
        .map_err(|e| e.at("import again"))?;
    if let Some(difference) = structural_difference(&graph, &again) {
        println!("CHANGED {}: {difference}", target.display());
    }
    for (graph, when) in [(&graph, "run"), (&again, "run again")] {
        let found = NdarrayBackend::new()
            .run_once(graph, &arguments)
            .map_err(|e| e.at(when))?;
        for ((name, _), found) in graph.named_outputs().iter().zip(found) {
            let expected = expected.tensor(name)?;
            if found.shape() != expected.shape() {
                return Err(Error::shape(format!(
                    "{when}: `{name}` is {:?}, expected {:?}",
                    found.shape(),
                    expected.shape()
                )));
            }
            let worst = found
                .to_f64s()
                .into_iter()
                .zip(expected.to_f64s())
                .map(|(a, b)| (a - b).abs() - (atol + rtol * b.abs()))
                .fold(f64::NEG_INFINITY, f64::max);
            if worst > 0.0 || worst.is_nan() {
                return Err(Error::invalid(format!(
                    "{when}: `{name}` is off by {worst} more than allowed"
                )));
            }
        }
    }
    Ok(())
}

/// The first line in which the texts of two graphs differ.
fn structural_difference(a: &Graph, b: &Graph) -> Option<String> {
    let (a, b) = (a.to_string(), b.to_string());
    let mut lines = a.lines().zip(b.lines());
    let differs = lines
        .find(|(x, y)| x != y)
        .map(|(x, y)| format!("`{x}` became `{y}`"));
    differs
        .or_else(|| (a.lines().count() != b.lines().count()).then(|| "the number of lines".into()))
}
