//! Prunes an ONNX model:
//! `cargo run --release --example onnx_prune -- MODEL OUT --structured --sparsity 0.5`.

use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{ArgGroup, Parser, ValueEnum};
use comfy_table::{CellAlignment, Table, presets};
use opt_core::file::write_atomically;
use opt_core::{Context, Error, ErrorKind, Graph, Pass, Result};
use opt_eval::ModelCost;
use opt_examples::{ones, run, sizes};
use opt_onnx::{Exporter, Importer, trainable};
use opt_prune::{
    BatchNormScale, Budget, ChannelPrune, Criterion, Fpgm, Lamp, Magnitude, NmPrune, PruneReport,
    Random, Scope, UnstructuredPrune,
};

/// Prunes an ONNX model: channels or attention heads with their parameters, single weights, or
/// weights in a pattern.
#[derive(Debug, Parser)]
#[command(
    group(ArgGroup::new("kind").required(true).args(["structured", "heads", "unstructured", "pattern"])),
    group(ArgGroup::new("amount").required(true).args(["sparsity", "budget", "pattern"])),
)]
struct Args {
    /// The model.
    model: PathBuf,
    /// Where to write the pruned model.
    out: PathBuf,
    /// Removes whole channels, neurons and heads; the model becomes smaller.
    #[arg(long)]
    structured: bool,
    /// Removes attention heads only; the model becomes smaller.
    #[arg(long)]
    heads: bool,
    /// Sets single weights to zero; shapes stay.
    #[arg(long)]
    unstructured: bool,
    /// Keeps N of each M consecutive inputs, such as 2:4; shapes stay.
    #[arg(long, value_name = "N:M", value_parser = pair(':'))]
    pattern: Option<[usize; 2]>,
    /// The share that goes, 0 to 1.
    #[arg(long)]
    sparsity: Option<f64>,
    /// What may be left of channels: a share of `parameters`, `macs` or `bytes`, as in `macs=0.5`.
    #[arg(long, value_name = "COST=SHARE", conflicts_with = "unstructured")]
    budget: Option<String>,
    /// What is kept: that of the highest score.
    #[arg(long, value_enum, default_value = "l1")]
    criterion: Score,
    /// Ranks all layers together.
    #[arg(long, conflicts_with = "pattern")]
    global: bool,
    /// Zeros in tiles of outputs by inputs, such as 4x4.
    #[arg(long, value_name = "ROWSxCOLUMNS", value_parser = pair('x'), requires = "unstructured")]
    block: Option<[usize; 2]>,
    /// Leaves out weights whose names contain this; may be repeated.
    #[arg(long, value_name = "PART")]
    exclude: Vec<String>,
    /// The seed of the random criterion.
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// Writes what became of each weight to a file as JSON.
    #[arg(long)]
    json: Option<PathBuf>,
}

/// Scores that need no data.
#[derive(Debug, Clone, Copy, ValueEnum)]
enum Score {
    /// The sum of absolute values.
    L1,
    /// The sum of squares.
    L2,
    /// Layer-adaptive magnitude.
    Lamp,
    /// The distance from the other filters of a layer; for channels.
    Fpgm,
    /// The scale of the batch normalization behind a channel.
    BatchNorm,
    /// By chance.
    Random,
}

impl Score {
    fn criterion(self) -> Box<dyn Criterion> {
        match self {
            Score::L1 => Box::new(Magnitude::l1()),
            Score::L2 => Box::new(Magnitude::l2()),
            Score::Lamp => Box::new(Lamp),
            Score::Fpgm => Box::new(Fpgm),
            Score::BatchNorm => Box::new(BatchNormScale),
            Score::Random => Box::new(Random),
        }
    }
}

/// Reads two numbers with a character between them.
fn pair(between: char) -> impl Fn(&str) -> std::result::Result<[usize; 2], String> + Clone {
    move |text| {
        let numbers = text.split_once(between).and_then(|(a, b)| {
            let (a, b) = (a.trim().parse().ok()?, b.trim().parse().ok()?);
            Some([a, b])
        });
        numbers.ok_or_else(|| format!("expected two whole numbers as in `2{between}4`"))
    }
}

fn main() -> ExitCode {
    let args = Args::parse();
    run(|| command(&args))
}

fn command(args: &Args) -> Result<()> {
    let before = trainable(Importer::new().load(&args.model)?, |_| true)?;
    let mut cx = Context::new().with_seed(args.seed);
    let (after, report) = pass(args)?.apply(before.clone(), &mut cx)?;
    if report.changed == 0 {
        return Err(Error::new(
            ErrorKind::NoEffect,
            format!("nothing can be pruned so: {report}"),
        ));
    }
    Exporter::new().save(&after, &args.out)?;
    let layers = PruneReport::between(&before, &after)?;
    if let Some(path) = &args.json {
        let json = layers.to_json()?;
        write_atomically(path, |file| Ok(file.write_all(json.as_bytes())?))?;
    }
    for note in &report.notes {
        println!("{note}");
    }
    println!("{layers}");
    compare(&before, &after)
}

fn pass(args: &Args) -> Result<Box<dyn Pass>> {
    let criterion = args.criterion.criterion();
    let exclude = args.exclude.iter();
    if let Some([n, m]) = args.pattern {
        let pass = NmPrune::new(n, m).criterion(criterion);
        return Ok(Box::new(
            exclude.fold(pass, |pass, part| pass.exclude(part)),
        ));
    }
    let sparsity = args.sparsity.unwrap_or(0.0);
    if args.unstructured {
        let mut pass = UnstructuredPrune::new(sparsity).criterion(criterion);
        if args.global {
            pass = pass.scope(Scope::Global);
        }
        if let Some([rows, columns]) = args.block {
            pass = pass.block(rows, columns);
        }
        return Ok(Box::new(
            exclude.fold(pass, |pass, part| pass.exclude(part)),
        ));
    }
    let mut pass = match &args.budget {
        Some(text) => ChannelPrune::to_budget(budget(text)?),
        None => ChannelPrune::new(sparsity),
    };
    if args.heads {
        pass = pass.heads_only();
    }
    if args.global {
        pass = pass.global();
    }
    let pass = pass.criterion(criterion);
    Ok(Box::new(
        exclude.fold(pass, |pass, part| pass.exclude(part)),
    ))
}

fn budget(text: &str) -> Result<Budget> {
    let (cost, share) = text.split_once('=').unwrap_or((text, ""));
    let fail = || {
        Error::invalid(format!(
            "expected a budget such as `macs=0.5`, of `parameters`, `macs` or `bytes`, found \
             `{text}`"
        ))
    };
    let share = share.trim().parse().map_err(|_| fail())?;
    match cost.trim() {
        "parameters" => Ok(Budget::parameters(share)),
        "macs" => Ok(Budget::macs(share)),
        "bytes" => Ok(Budget::bytes(share)),
        _ => Err(fail()),
    }
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
