//! Prunes an ONNX model:
//! `cargo run --release --example onnx_prune -- MODEL OUT --structured --sparsity 0.5`.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{ArgGroup, Parser};
use comfy_table::{CellAlignment, Table, presets};
use opt_core::{Context, Error, Graph, Pass, Result};
use opt_eval::ModelCost;
use opt_examples::{ones, run, sizes};
use opt_onnx::{Exporter, Importer, trainable};
use opt_prune::{ChannelPrune, Magnitude, Random, UnstructuredPrune};

/// Prunes an ONNX model: channels with their parameters, or single weights.
#[derive(Debug, Parser)]
#[command(group(ArgGroup::new("kind").required(true).args(["structured", "unstructured"])))]
struct Args {
    /// The model.
    model: PathBuf,
    /// Where to write the pruned model.
    out: PathBuf,
    /// Removes whole channels; the model becomes smaller.
    #[arg(long)]
    structured: bool,
    /// Sets single weights to zero; shapes stay.
    #[arg(long)]
    unstructured: bool,
    /// The share that goes, 0 to 1.
    #[arg(long)]
    sparsity: f64,
    /// What is kept: the largest by `l1` or `l2`, or `random` ones.
    #[arg(long, default_value = "l1")]
    criterion: String,
    /// The seed of the random criterion.
    #[arg(long, default_value_t = 0)]
    seed: u64,
}

fn main() -> ExitCode {
    let args = Args::parse();
    run(|| command(&args))
}

fn command(args: &Args) -> Result<()> {
    let before = trainable(Importer::new().load(&args.model)?, |_| true)?;
    let pass: Box<dyn Pass> = if args.structured {
        let pass = ChannelPrune::new(args.sparsity);
        Box::new(match args.criterion.as_str() {
            "l1" => pass.criterion(Magnitude::l1()),
            "l2" => pass.criterion(Magnitude::l2()),
            "random" => pass.criterion(Random),
            other => return Err(no_criterion(other)),
        })
    } else {
        let pass = UnstructuredPrune::new(args.sparsity);
        Box::new(match args.criterion.as_str() {
            "l1" => pass.criterion(Magnitude::l1()),
            "l2" => pass.criterion(Magnitude::l2()),
            "random" => pass.criterion(Random),
            other => return Err(no_criterion(other)),
        })
    };
    let mut cx = Context::new().with_seed(args.seed);
    let (after, report) = pass.apply(before.clone(), &mut cx)?;
    if report.changed == 0 {
        return Err(Error::new(
            opt_core::ErrorKind::NoEffect,
            format!("nothing can be pruned so: {report}"),
        ));
    }
    Exporter::new().save(&after, &args.out)?;
    println!("{report}");
    compare(&before, &after)
}

fn no_criterion(name: &str) -> Error {
    Error::invalid(format!(
        "there is no criterion `{name}`; use `l1`, `l2` or `random`"
    ))
}

fn compare(before: &Graph, after: &Graph) -> Result<()> {
    let mut table = Table::new();
    table.load_style(presets::UTF8_FULL_CONDENSED);
    table.set_header(["", "before", "after"]);
    for column in 1..3 {
        if let Some(c) = table.column_mut(column) {
            c.set_cell_alignment(CellAlignment::Right);
        }
    }
    let bindings = ones(before);
    let (a, b) = (
        ModelCost::of(before, &bindings)?,
        ModelCost::of(after, &bindings)?,
    );
    for (name, x, y) in [
        ("parameters", a.parameters, b.parameters),
        ("non-zero", a.nonzeros, b.nonzeros),
        ("multiply-adds", a.macs, b.macs),
        ("bytes", a.bytes, b.bytes),
    ] {
        table.add_row([name.to_string(), x.to_string(), y.to_string()]);
    }
    println!("{table}");
    if !bindings.is_empty() {
        println!("multiply-adds are for {}", sizes(&bindings));
    }
    Ok(())
}
