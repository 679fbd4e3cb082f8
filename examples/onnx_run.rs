//! Runs an ONNX model on arrays from an npz file:
//! `cargo run --release --example onnx_run -- MODEL --inputs IN.npz --outputs OUT.npz`.
//!
//! With `--profile TRACE.json` it says what the run spends its time on.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Instant;

use clap::Parser;
use opt_core::backend::{CompileSpec, bindings_of};
use opt_core::file::write_atomically;
use opt_core::{Error, Executable, ProfileOptions, Result, Session, Tensor};
use opt_data::npz;
use opt_examples::{BackendArgs, arrays, expected, load, matching, print, run};

/// Runs an ONNX model.
#[derive(Debug, Parser)]
struct Args {
    /// The model.
    model: PathBuf,
    /// Arrays named by the model's inputs.
    #[arg(long)]
    inputs: PathBuf,
    /// Where to write the arrays of the model's outputs.
    #[arg(long)]
    outputs: PathBuf,
    #[command(flatten)]
    backend: BackendArgs,
    /// Runs so often, after a warm-up, and prints the median time of a run.
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..))]
    repeat: Option<u32>,
    /// Profiles the model: prints a table of its steps, and writes a trace here that Perfetto and
    /// chrome://tracing open.
    #[arg(long, value_name = "TRACE.json")]
    profile: Option<PathBuf>,
}

fn main() -> ExitCode {
    let args = Args::parse();
    run(|| command(&args))
}

fn command(args: &Args) -> Result<()> {
    let given = arrays(&args.inputs)?;
    let graph = load(&args.model, &given)?;
    let inputs = matching(&graph, &given, &[], false)?;
    let backend = args.backend.build()?;
    let mut spec = CompileSpec::new();
    // Each array fits by itself; a symbol may still have two sizes.
    spec.bindings = bindings_of(&graph, &inputs).map_err(|e| {
        let message = format!("{e}; the model expects{}", expected(&graph));
        Error::new(e.kind(), message)
    })?;
    let executable = backend.compile(&graph, &spec)?;
    let mut session = executable.session()?;
    let found = session.run(&inputs)?;
    let names = graph.named_outputs().iter().map(|(n, _)| n.as_str());
    let pairs: Vec<_> = names.zip(&found).collect();
    npz::write(&args.outputs, &pairs)?;
    for (name, tensor) in &pairs {
        println!("{name}: {}{:?}", tensor.dtype(), tensor.shape());
    }
    if let Some(repeat) = args.repeat {
        let median = median_us(&mut *session, &inputs, repeat as usize)?;
        println!("median_us: {median:.1}");
    }
    match &args.profile {
        Some(path) => profile(&*executable, &inputs, path),
        None => Ok(()),
    }
}

/// The median time of a run.
fn median_us(session: &mut dyn Session, inputs: &[Tensor], repeat: usize) -> Result<f64> {
    let mut outputs = Vec::new();
    for _ in 0..repeat.clamp(3, 20) {
        session.run_into(inputs, &mut outputs)?;
    }
    let mut times: Vec<f64> = Vec::with_capacity(repeat);
    for _ in 0..repeat {
        let start = Instant::now();
        session.run_into(inputs, &mut outputs)?;
        times.push(start.elapsed().as_secs_f64() * 1e6);
    }
    times.sort_by(f64::total_cmp);
    let middle = times.len() / 2;
    Ok(if times.len() % 2 == 1 {
        times[middle]
    } else {
        (times[middle - 1] + times[middle]) / 2.0
    })
}

fn profile(executable: &dyn Executable, inputs: &[Tensor], path: &Path) -> Result<()> {
    let profile = executable.profile(inputs, &ProfileOptions::new())?;
    write_atomically(path, |file| {
        Ok(file.write_all(profile.to_chrome_trace().as_bytes())?)
    })?;
    print(&profile.to_string())
}
