//! Runs test cases in the layout of the ONNX backend tests; `cargo xtask onnx-conformance DIR`.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use opt_core::{Backend, ErrorKind, Graph, Tensor};
use opt_onnx::{Importer, read_tensor};

/// What became of a case.
enum Outcome {
    Passed,
    /// Passed with the content of these values fixed while the model was read.
    Specialized(String),
    Unsupported(String),
    Failed(String),
}

/// How far an answer may be off: `|found - expected| <= atol + rtol * |expected|`.
#[derive(Clone, Copy)]
struct Tolerance {
    rtol: f64,
    atol: f64,
}

/// The tolerance of the ONNX backend tests.
const DEFAULT: Tolerance = Tolerance {
    rtol: 1e-3,
    atol: 1e-7,
};

/// Cases whose expected data carry rounding errors of their own, larger than the tolerance. They
/// count as failed, but do not make the command fail.
const INEXACT: [(&str, &str); 3] = [
    (
        "test_dft_inverse",
        "zeros are expected to be 1.9e-7, the rounding of a transform in f32",
    ),
    (
        "test_dft_inverse_opset19",
        "zeros are expected to be 1.9e-7, the rounding of a transform in f32",
    ),
    (
        "test_attention_4d_causal_fp16_expanded",
        "each step of the reference is rounded to f16; two steps of the type off",
    ),
];

/// As [`INEXACT`], of the libtorch backend alone.
const UNEVEN: [&str; 5] = [
    "test_bvlc_alexnet",
    "test_inception_v1",
    "test_resnet50",
    "test_vgg19",
    "test_zfnet512",
];

/// Why those fail.
const TIED: &str = "the weights are all alike and the 1000 scores one number of 1e12 and more, whose \
    last bit is 1e5: libtorch's product sums the last 8 columns in another order";

fn main() -> ExitCode {
    let mut list = None;
    let mut root = None;
    let mut filter = String::new();
    let mut backend = "ndarray".to_string();
    let mut args = std::env::args().skip(1);
    while let Some(arg) = args.next() {
        match arg.as_str() {
            "--list" => list = args.next().map(PathBuf::from),
            "--only" => filter = args.next().unwrap_or_default(),
            "--backend" => backend = args.next().unwrap_or_default(),
            _ => root = Some(PathBuf::from(arg)),
        }
    }
    let Some(root) = root else {
        eprintln!("usage: onnx-conformance DIR [--list FILE.md] [--only TEXT] [--backend NAME]");
        return ExitCode::FAILURE;
    };
    let backend = match opt_suite::backend(&backend) {
        Ok(backend) => backend,
        Err(e) => {
            eprintln!("error: {e}");
            return ExitCode::FAILURE;
        }
    };
    std::panic::set_hook(Box::new(|_| {}));
    let mut cases = Vec::new();
    find_cases(&root, &mut cases);
    cases.sort();
    if cases.is_empty() {
        eprintln!(
            "no test case (a folder with model.onnx) below {}",
            root.display()
        );
        return ExitCode::FAILURE;
    }
    let tolerances = tolerances(&root);
    let mut table = String::new();
    let (mut passed, mut failed, mut unsupported) = (0, 0, 0);
    let mut unexpected = 0;
    for folder in &cases {
        let name = folder
            .strip_prefix(&root)
            .unwrap_or(folder)
            .display()
            .to_string();
        if !name.contains(&filter) {
            continue;
        }
        let key = name.replace('\\', "/");
        let tolerance = tolerances.get(&key).copied().unwrap_or(DEFAULT);
        let outcome = catch_unwind(AssertUnwindSafe(|| run(&*backend, folder, tolerance)))
            .unwrap_or_else(|panic| {
                let text = panic
                    .downcast_ref::<String>()
                    .cloned()
                    .or_else(|| panic.downcast_ref::<&str>().map(|s| s.to_string()));
                Outcome::Failed(format!("panicked: {}", text.unwrap_or_default()))
            });
        let (word, reason) = match outcome {
            Outcome::Passed => {
                passed += 1;
                ("passed", String::new())
            }
            Outcome::Specialized(values) => {
                passed += 1;
                ("passed", format!("with known content: {values}"))
            }
            Outcome::Unsupported(reason) => {
                unsupported += 1;
                println!("UNSUPPORTED {name}: {reason}");
                ("unsupported", reason)
            }
            Outcome::Failed(mut reason) => {
                failed += 1;
                let known = INEXACT.iter().find(|(case, _)| name.ends_with(case));
                let uneven = backend.name() == "tch" && UNEVEN.iter().any(|c| name.ends_with(c));
                match known.map(|(_, why)| *why).or(uneven.then_some(TIED)) {
                    Some(why) => reason = format!("{reason} (known: {why})"),
                    None => unexpected += 1,
                }
                println!("FAILED {name}: {reason}");
                ("failed", reason)
            }
        };
        let reason = reason.replace('\n', " ").replace('|', "\\|");
        let _ = writeln!(table, "| `{name}` | {word} | {reason} |");
    }
    println!("{passed} passed, {failed} failed, {unsupported} unsupported");
    if let Some(list) = list {
        let text = format!(
            "# ONNX conformance\n\nThe cases of the `onnx` package and what becomes of them, \
             written by `cargo xtask onnx-conformance DIR --list FILE`.\n\n{passed} passed, \
             {failed} failed, {unsupported} unsupported.\n\n| case | result | remark |\n| --- | \
             --- | --- |\n{table}"
        );
        if let Err(e) = fs::write(&list, text) {
            eprintln!("{}: {e}", list.display());
            return ExitCode::FAILURE;
        }
    }
    if unexpected == 0 {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    }
}

fn find_cases(folder: &Path, out: &mut Vec<PathBuf>) {
    if folder.join("model.onnx").is_file() {
        out.push(folder.to_path_buf());
        return;
    }
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        if entry.path().is_dir() {
            find_cases(&entry.path(), out);
        }
    }
}

/// The tolerances in `cases.json`, where it stands beside the cases.
fn tolerances(root: &Path) -> BTreeMap<String, Tolerance> {
    let mut out = BTreeMap::new();
    let Ok(text) = fs::read_to_string(root.join("cases.json")) else {
        return out;
    };
    let Ok(serde_json::Value::Object(all)) = serde_json::from_str(&text) else {
        return out;
    };
    for (name, case) in all {
        let number = |key: &str, default: f64| case[key].as_f64().unwrap_or(default);
        let tolerance = Tolerance {
            rtol: number("rtol", DEFAULT.rtol),
            atol: number("atol", DEFAULT.atol),
        };
        out.insert(name, tolerance);
    }
    out
}

fn load(folder: &Path, kind: &str) -> Result<Vec<(String, Tensor)>, opt_core::Error> {
    let mut out = Vec::new();
    for i in 0.. {
        let Ok(bytes) = fs::read(folder.join(format!("{kind}_{i}.pb"))) else {
            return Ok(out);
        };
        out.push(read_tensor(&bytes).map_err(|e| e.at(format!("{kind}_{i}.pb")))?);
    }
    Ok(out)
}

/// Reads the model; where it needs the content of inputs, with that.
fn import(path: &Path, inputs: &[(String, Tensor)]) -> Result<Graph, opt_core::Error> {
    let plain = Importer::new().load(path);
    match plain {
        Err(e) if e.kind() == ErrorKind::Unsupported => {
            let mut importer = Importer::new();
            for (name, content) in inputs {
                importer = importer.known_input(name.clone(), content.clone());
            }
            // The first error says more where this fails as well.
            importer.load(path).map_err(|second| {
                if second.kind() == ErrorKind::Unsupported {
                    second
                } else {
                    e
                }
            })
        }
        other => other,
    }
}

fn run(backend: &dyn Backend, folder: &Path, tolerance: Tolerance) -> Outcome {
    let problem = |e: opt_core::Error| {
        if e.kind() == ErrorKind::Unsupported {
            Outcome::Unsupported(
                e.message()
                    .trim_start_matches("1 unsupported:")
                    .trim()
                    .to_string(),
            )
        } else {
            Outcome::Failed(e.to_string())
        }
    };
    let mut specialized = String::new();
    for set in 0.. {
        let data = folder.join(format!("test_data_set_{set}"));
        if !data.is_dir() {
            if set == 0 {
                return Outcome::Failed("there is no test_data_set_0".into());
            }
            break;
        }
        let (inputs, expected) = match (load(&data, "input"), load(&data, "output")) {
            (Ok(i), Ok(o)) => (i, o),
            (Err(e), _) | (_, Err(e)) => return problem(e),
        };
        let path = folder.join("model.onnx");
        let named = names(&path, inputs);
        let graph = match import(&path, &named) {
            Ok(graph) => graph,
            Err(e) => return problem(e),
        };
        if let Some(values) = graph.metadata().get("onnx.specialized") {
            specialized.clone_from(values);
        }
        let mut arguments = Vec::new();
        for &id in graph.inputs() {
            let name = graph.value(id).name();
            match named.iter().find(|(n, _)| n == name) {
                Some((_, t)) => arguments.push(t.clone()),
                None => return Outcome::Failed(format!("no data for the input `{name}`")),
            }
        }
        let found = match backend.run_once(&graph, &arguments) {
            Ok(found) => found,
            Err(e) => return problem(e),
        };
        if found.len() < expected.len() {
            return Outcome::Failed(format!(
                "{} outputs, expected {}",
                found.len(),
                expected.len()
            ));
        }
        for (i, ((_, expected), found)) in expected.iter().zip(&found).enumerate() {
            if let Some(difference) = difference(found, expected, tolerance) {
                return Outcome::Failed(format!("output {i}: {difference}"));
            }
        }
    }
    if specialized.is_empty() {
        Outcome::Passed
    } else {
        Outcome::Specialized(specialized)
    }
}

/// Data files without names are in the order of the model's inputs.
fn names(path: &Path, inputs: Vec<(String, Tensor)>) -> Vec<(String, Tensor)> {
    let Ok(order) = opt_onnx::input_names(path) else {
        return inputs;
    };
    inputs
        .into_iter()
        .enumerate()
        .map(|(i, (name, t))| match order.get(i) {
            Some(known) if !order.contains(&name) => (known.clone(), t),
            _ => (name, t),
        })
        .collect()
}

/// The first entry that is too far off.
fn difference(found: &Tensor, expected: &Tensor, tolerance: Tolerance) -> Option<String> {
    if found.dtype() != expected.dtype() || found.shape() != expected.shape() {
        return Some(format!(
            "{}{:?}, expected {}{:?}",
            found.dtype(),
            found.shape(),
            expected.dtype(),
            expected.shape()
        ));
    }
    let (a, b) = (found.to_f64s(), expected.to_f64s());
    // One step of bf16, as the runner of the ONNX package has it.
    let rtol = if expected.dtype() == opt_core::DType::BF16 {
        tolerance.rtol.max(1.0 / 64.0)
    } else {
        tolerance.rtol
    };
    let exact = !expected.dtype().is_float();
    for (i, (a, b)) in a.iter().zip(&b).enumerate() {
        let same = a == b || (a.is_nan() && b.is_nan());
        let close = !exact && (a - b).abs() <= tolerance.atol + rtol * b.abs();
        if !same && !close {
            return Some(format!("entry {i} is {a}, expected {b}"));
        }
    }
    None
}
