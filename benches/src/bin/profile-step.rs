//! What a step of a workload spends its time on:
//! `cargo run --release -p opt-benches --bin profile-step -- resnet20 --threads 2`.

use std::io::{ErrorKind, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::{Parser, value_parser};
use opt_benches::protocol::Model;
use opt_benches::work::{Start, Step};
use opt_benches::{Failure, backend, protocol};
use opt_core::file::write_atomically;
use opt_core::{Profile, ProfileOptions};

/// Profiles a step of a workload of `cargo xtask bench`.
#[derive(Debug, Parser)]
struct Args {
    /// A workload of `rows.json`; `resnet20` is short for `train-resnet20`.
    workload: String,
    /// What computes.
    #[arg(long, default_value = "ndarray")]
    backend: String,
    /// The device that it computes on.
    #[arg(long, default_value = "cpu")]
    device: String,
    /// Threads to compute with.
    #[arg(long, default_value_t = 1, value_parser = value_parser!(u16).range(1..))]
    threads: u16,
    /// Runs before the first timed one.
    #[arg(long, default_value_t = 3)]
    warmup: usize,
    /// Timed runs.
    #[arg(long, default_value_t = 20, value_parser = value_parser!(u32).range(1..))]
    runs: u32,
    /// Learning rate of the runs.
    #[arg(long, default_value_t = 1e-3)]
    lr: f64,
    /// Rows of each table.
    #[arg(long, default_value_t = 20)]
    rows: usize,
    /// Also writes a trace here that Perfetto and chrome://tracing open.
    #[arg(long)]
    trace: Option<PathBuf>,
    /// Also writes the profile here as JSON.
    #[arg(long)]
    json: Option<PathBuf>,
}

fn main() -> ExitCode {
    let args = Args::parse();
    match profile(&args).and_then(|profile| write(&args, &profile)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            eprintln!("error: {e}");
            ExitCode::FAILURE
        }
    }
}

fn profile(args: &Args) -> Result<Profile, Failure> {
    let row = protocol::row(&args.workload)?;
    let backend = backend::open(&args.backend, &args.device, usize::from(args.threads))?;
    let step = match &row.model {
        Model::Onnx { file } => {
            let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/bench/models");
            let path = |extension| folder.join(format!("{file}.{extension}"));
            if !path("onnx").exists() {
                let message = format!(
                    "there is no {}; `cargo xtask bench --only {}` makes it",
                    path("onnx").display(),
                    row.name
                );
                return Err(message.into());
            }
            Step::onnx(&path("onnx"), &path("safetensors"), &*backend)?
        }
        _ => Start::new(&row)?.step(&row, &*backend)?,
    };
    let options = ProfileOptions::new()
        .warmup(args.warmup)
        .runs(args.runs as usize);
    Ok(step.profile(args.lr, &options)?)
}

fn write(args: &Args, profile: &Profile) -> Result<(), Failure> {
    let kernels = profile.by_kernel_table(args.rows);
    let steps = profile.by_step_table(args.rows);
    if let Some(path) = &args.trace {
        let trace = profile.to_chrome_trace();
        write_atomically(path, |file| Ok(file.write_all(trace.as_bytes())?))?;
    }
    if let Some(path) = &args.json {
        let json = serde_json::to_string(profile)?;
        write_atomically(path, |file| Ok(file.write_all(json.as_bytes())?))?;
    }
    match write!(std::io::stdout().lock(), "{kernels}\n{steps}") {
        // A reader that closes the pipe early has seen enough.
        Err(e) if e.kind() != ErrorKind::BrokenPipe => Err(e.into()),
        _ => Ok(()),
    }
}
