//! Runs an ONNX model on arrays from an npz file:
//! `cargo run --release --example onnx_run -- MODEL --inputs IN.npz --outputs OUT.npz`.

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Instant;

use clap::Parser;
use opt_core::backend::{CompileSpec, bindings_of};
use opt_core::{Error, Result};
use opt_data::npz;
use opt_examples::{BackendArgs, arrays, expected, load, matching, run};

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
    let mut session = backend.compile(&graph, &spec)?.session()?;
    let found = session.run(&inputs)?;
    let names = graph.named_outputs().iter().map(|(n, _)| n.as_str());
    let pairs: Vec<_> = names.zip(&found).collect();
    npz::write(&args.outputs, &pairs)?;
    for (name, tensor) in &pairs {
        println!("{name}: {}{:?}", tensor.dtype(), tensor.shape());
    }
    let Some(repeat) = args.repeat.map(|n| n as usize) else {
        return Ok(());
    };
    let mut outputs = found.clone();
    for _ in 0..repeat.clamp(3, 20) {
        session.run_into(&inputs, &mut outputs)?;
    }
    let mut times: Vec<f64> = Vec::with_capacity(repeat);
    for _ in 0..repeat {
        let start = Instant::now();
        session.run_into(&inputs, &mut outputs)?;
        times.push(start.elapsed().as_secs_f64() * 1e6);
    }
    times.sort_by(f64::total_cmp);
    let middle = times.len() / 2;
    let median = if times.len() % 2 == 1 {
        times[middle]
    } else {
        (times[middle - 1] + times[middle]) / 2.0
    };
    println!("median_us: {median:.1}");
    Ok(())
}
