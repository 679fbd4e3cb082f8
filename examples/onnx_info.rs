//! What is in an ONNX model: `cargo run --release --example onnx_info -- MODEL`.

use std::collections::{HashMap, HashSet};
use std::fmt::Write as _;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::Parser;
use comfy_table::{CellAlignment, Table, presets};
use opt_core::graph::Bindings;
use opt_core::ops::Op;
use opt_core::{DType, Error, ErrorKind, Graph, Node, Result, Symbol, ValueId, ValueKind};
use opt_eval::ModelCost;
use opt_examples::{ones, print, run, sizes};
use opt_onnx::Importer;

/// Shows the layers of an ONNX model and what they cost.
#[derive(Debug, Parser)]
struct Args {
    /// The model.
    model: PathBuf,
    /// The graph in Graphviz' language.
    #[arg(long, conflicts_with = "mermaid")]
    dot: bool,
    /// The graph as a Mermaid diagram.
    #[arg(long)]
    mermaid: bool,
    /// The size of a symbolic dimension, as NAME=N; the others are 1. Some models can only be
    /// read with sizes.
    #[arg(long = "dim", value_name = "NAME=N")]
    dims: Vec<String>,
}

fn main() -> ExitCode {
    let args = Args::parse();
    run(|| command(&args))
}

fn command(args: &Args) -> Result<()> {
    let given = dims(args)?;
    let graph = read(args, &given)?;
    let mut bindings = ones(&graph);
    // Sizes that the model was read with are no symbols any more.
    for (symbol, &n) in &given {
        if let Some(size) = bindings.get_mut(symbol) {
            *size = n;
        }
    }
    if args.dot || args.mermaid {
        let graph = graph.bind(&given)?;
        return print(&match args.dot {
            true => graph.to_dot(),
            false => graph.to_mermaid(),
        });
    }
    print(&text(&graph, &bindings, &given)?)
}

/// The sizes of `--dim`.
fn dims(args: &Args) -> Result<Bindings> {
    let mut given = Bindings::new();
    for text in &args.dims {
        let pair = text.split_once('=');
        let parsed = pair.and_then(|(name, n)| Some((Symbol::new(name), n.parse().ok()?)));
        let (name, n) = parsed.ok_or_else(|| Error::invalid(format!("`{text}` is not NAME=N")))?;
        if given.insert(name, n).is_some() {
            return Err(Error::invalid(format!("`{text}`: it has a size already")));
        }
    }
    Ok(given)
}

/// The model with its symbols, or with the sizes given where it cannot be read without.
fn read(args: &Args, given: &Bindings) -> Result<Graph> {
    let first = match Importer::new().load(&args.model) {
        Ok(graph) => {
            let symbols = ones(&graph);
            return match given.keys().find(|s| !symbols.contains_key(*s)) {
                None => Ok(graph),
                Some(unknown) => Err(Error::invalid(format!(
                    "no dimension is named `{}`; the model has the symbols {:?}",
                    unknown.as_str(),
                    symbols.keys().map(Symbol::as_str).collect::<Vec<_>>()
                ))),
            };
        }
        Err(first) => first,
    };
    if !matches!(first.kind(), ErrorKind::Unsupported | ErrorKind::Shape) {
        return Err(first);
    }
    if given.is_empty() {
        let message = format!("{first}\nIf sizes are missing, give them as `--dim NAME=N`");
        return Err(Error::new(first.kind(), message));
    }
    let importer = given
        .iter()
        .fold(Importer::new(), |importer, (symbol, &n)| {
            importer.dim(symbol.as_str(), n)
        });
    importer.load(&args.model)
}

/// The parameters and bytes of the tensors that a node is the first to read; parameters are
/// those of [`ModelCost::parameters`].
#[derive(Default)]
struct Weights {
    counted: HashSet<ValueId>,
    stored: HashSet<ValueId>,
}

impl Weights {
    fn of(&mut self, graph: &Graph, node: &Node) -> (u64, u64) {
        let (mut parameters, mut bytes) = (0, 0);
        for (i, &input) in node.inputs().iter().enumerate() {
            let value = graph.value(input);
            let Some(content) = value.tensor() else {
                continue;
            };
            if self.stored.insert(input) {
                bytes += content.size_in_bytes() as u64;
            }
            let statistic = match node.op() {
                Op::BatchNorm(_) => i > 2,
                Op::Quantize(_)
                | Op::Dequantize(_)
                | Op::DynamicQuantize(_)
                | Op::FakeQuantize(_) => i > 0,
                _ => false,
            };
            let constant = matches!(value.kind(), ValueKind::Constant(_));
            let weight = content.rank() > 0 && !matches!(content.dtype(), DType::I64 | DType::Bool);
            if !statistic && (weight || !constant) && self.counted.insert(input) {
                parameters += content.len() as u64;
            }
        }
        (parameters, bytes)
    }
}

fn text(graph: &Graph, bindings: &Bindings, given: &Bindings) -> Result<String> {
    let cost = ModelCost::of(graph, bindings)?;
    let costs: HashMap<&str, u64> = cost
        .nodes
        .iter()
        .map(|n| (n.name.as_str(), n.macs))
        .collect();
    let bound = graph.bind(bindings)?;
    let mut table = Table::new();
    table.load_style(presets::UTF8_FULL_CONDENSED);
    table.set_header([
        "node",
        "op",
        "output",
        "parameters",
        "multiply-adds",
        "weight bytes",
        "activation bytes",
    ]);
    for column in 3..7 {
        if let Some(c) = table.column_mut(column) {
            c.set_cell_alignment(CellAlignment::Right);
        }
    }
    let mut weights = Weights::default();
    let (mut parameters_total, mut weights_total, mut activations_total) = (0u64, 0u64, 0u64);
    for (_, node) in graph.nodes() {
        let (parameters, weight_bytes) = weights.of(graph, node);
        parameters_total += parameters;
        let bytes = activation_bytes(&bound, node.outputs())?;
        weights_total += weight_bytes;
        activations_total += bytes;
        let output = graph.type_of(node.outputs()[0]).to_string();
        table.add_row([
            node.name().to_string(),
            node.op().name().to_string(),
            output,
            parameters.to_string(),
            costs.get(node.name()).copied().unwrap_or(0).to_string(),
            weight_bytes.to_string(),
            bytes.to_string(),
        ]);
    }
    table.add_row([
        "total".to_string(),
        format!("{} nodes", graph.nodes().count()),
        String::new(),
        parameters_total.to_string(),
        cost.macs.to_string(),
        weights_total.to_string(),
        activations_total.to_string(),
    ]);
    let mut out = format!("{table}\n");
    for &id in graph.inputs() {
        let _ = writeln!(
            out,
            "input {}: {}",
            graph.value(id).name(),
            graph.type_of(id)
        );
    }
    for (name, id) in graph.named_outputs() {
        let _ = writeln!(out, "output {name}: {}", graph.type_of(*id));
    }
    let _ = writeln!(out, "peak activation memory: {} bytes", peak(&bound)?);
    if !bindings.is_empty() {
        let _ = writeln!(out, "sizes: {}", sizes(bindings));
    }
    let mut assumed = bindings.clone();
    assumed.retain(|symbol, _| !given.contains_key(symbol));
    if !assumed.is_empty() {
        let _ = writeln!(out, "not given, so 1: {}", names(&assumed));
    }
    for (key, value) in graph
        .metadata()
        .iter()
        .filter(|(k, _)| !k.starts_with("onnx.doc."))
    {
        let _ = writeln!(out, "{key}: {value}");
    }
    Ok(out)
}

fn names(bindings: &Bindings) -> String {
    let names: Vec<&str> = bindings.keys().map(Symbol::as_str).collect();
    names.join(", ")
}

fn activation_bytes(graph: &Graph, values: &[ValueId]) -> Result<u64> {
    let mut sum = 0;
    for &v in values {
        let ty = graph.type_of(v);
        sum += ty.dtype.bytes(ty.shape.len()?) as u64;
    }
    Ok(sum)
}

/// The most bytes of values that are alive at one time, each from its node to its last reader.
fn peak(graph: &Graph) -> Result<u64> {
    let mut last: HashMap<ValueId, usize> = HashMap::new();
    for (step, (_, node)) in graph.nodes().enumerate() {
        for &input in node.inputs() {
            last.insert(input, step);
        }
    }
    for output in graph.outputs() {
        last.insert(output, usize::MAX);
    }
    let (mut now, mut most) = (0u64, 0u64);
    for (step, (_, node)) in graph.nodes().enumerate() {
        now += activation_bytes(graph, node.outputs())?;
        most = most.max(now);
        let mut gone: Vec<ValueId> = node.inputs().to_vec();
        gone.sort_unstable();
        gone.dedup();
        for v in gone {
            if last.get(&v) == Some(&step) && graph.producer(v).is_some() {
                now -= activation_bytes(graph, &[v])?;
            }
        }
        for &v in node.outputs() {
            if !last.contains_key(&v) {
                now -= activation_bytes(graph, &[v])?;
            }
        }
    }
    Ok(most)
}
