//! Quantizes an ONNX model:
//! `cargo run --release --example onnx_quantize -- MODEL OUT --mode static --calibration IN.npz`.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::{Parser, ValueEnum};
use opt_core::{Context, Error, Graph, Pass, Report, Result};
use opt_data::TensorDataset;
use opt_examples::{BackendArgs, arrays, fixed_batch, load, matching, names_matching, run};
use opt_onnx::Exporter;
use opt_quant::{Config, QuantizeDynamic, QuantizeStatic, QuantizeWeights};

#[derive(Debug, Clone, Copy, PartialEq, ValueEnum)]
enum Mode {
    /// Weights and activations, by ranges from examples.
    Static,
    /// Weights now, activations when the model runs.
    Dynamic,
    /// Weights only.
    Weights,
}

/// Quantizes an ONNX model.
#[derive(Debug, Parser)]
struct Args {
    /// The model.
    model: PathBuf,
    /// Where to write the quantized model.
    out: PathBuf,
    /// What is quantized.
    #[arg(long)]
    mode: Mode,
    /// Bits of the weights: 8, or 4 with `--mode weights`.
    #[arg(long, default_value_t = 8)]
    bits: u32,
    /// Entries that share a scale, with 4 bits.
    #[arg(long, default_value_t = 32)]
    block: usize,
    /// Examples for `--mode static`: arrays named by the model's inputs, samples first.
    #[arg(long)]
    calibration: Option<PathBuf>,
    /// A scale for each output channel of a weight.
    #[arg(long)]
    per_channel: bool,
    /// Layers whose names, or the names of whose weights, match stay in float.
    #[arg(long, value_name = "REGEX")]
    exclude: Option<String>,
    #[command(flatten)]
    backend: BackendArgs,
}

fn main() -> ExitCode {
    let args = Args::parse();
    run(|| command(&args))
}

fn command(args: &Args) -> Result<()> {
    let given = match &args.calibration {
        Some(path) => arrays(path)?,
        None => Vec::new(),
    };
    let graph = load(&args.model, &[])?;
    let excluded = match &args.exclude {
        Some(pattern) => names_matching(&graph, pattern)?,
        None => Vec::new(),
    };
    if args.bits != 8 && !(args.bits == 4 && args.mode == Mode::Weights) {
        return Err(Error::invalid(format!(
            "{} bits with this mode; use 8, or 4 with `--mode weights`",
            args.bits
        )));
    }
    let (graph, report) = match args.mode {
        Mode::Static => quantize_static(args, graph, &given, excluded)?,
        Mode::Dynamic => {
            let mut pass = QuantizeDynamic::new();
            if args.per_channel {
                pass = pass.per_channel();
            }
            let pass = excluded.into_iter().fold(pass, QuantizeDynamic::exclude);
            pass.apply(graph, &mut Context::new())?
        }
        Mode::Weights => {
            let pass = if args.bits == 4 {
                QuantizeWeights::int4(args.block)
            } else {
                QuantizeWeights::int8()
            };
            let pass = excluded.into_iter().fold(pass, QuantizeWeights::exclude);
            pass.apply(graph, &mut Context::new())?
        }
    };
    Exporter::new().save(&graph, &args.out)?;
    println!("{} layers quantized", report.changed);
    for (name, value) in &report.figures {
        println!("  {name}: {value:.1} dB");
    }
    for note in &report.notes {
        println!("  in float: {note}");
    }
    println!("bytes: {} -> {}", size(&args.model)?, size(&args.out)?);
    Ok(())
}

fn size(path: &Path) -> Result<u64> {
    Ok(std::fs::metadata(path)?.len())
}

fn quantize_static(
    args: &Args,
    graph: Graph,
    given: &[(String, opt_core::Tensor)],
    excluded: Vec<String>,
) -> Result<(Graph, Report)> {
    if args.calibration.is_none() {
        return Err(Error::invalid(format!(
            "`--mode static` needs `--calibration IN.npz` with examples of{}",
            opt_examples::expected(&graph)
        )));
    }
    // A data set may hold its labels too.
    let names: Vec<&str> = given.iter().map(|(n, _)| n.as_str()).collect();
    let fields = matching(&graph, given, &names, true)?;
    let data = TensorDataset::new(fields)?;
    let mut config = Config::default();
    if !args.per_channel {
        config.weights = config.weights.per_tensor();
    }
    let config = excluded.into_iter().fold(config, Config::exclude);
    let mut config = config;
    config.calibration.batch_size = fixed_batch(&graph).unwrap_or(32);
    let backend = args.backend.build()?;
    let mut cx = Context::new()
        .with_backend(&*backend)
        .with_calibration(&data);
    QuantizeStatic::with(config).apply(graph, &mut cx)
}
