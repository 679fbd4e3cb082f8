//! What is in an ONNX model: `cargo run --release --example onnx_info -- MODEL`.

use std::collections::HashMap;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::Parser;
use comfy_table::{CellAlignment, Table, presets};
use opt_core::graph::Bindings;
use opt_core::{Error, Graph, Result, Symbol, ValueId};
use opt_eval::ModelCost;
use opt_examples::run;
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
    /// The size of a symbolic dimension, as NAME=N; the others are 1.
    #[arg(long = "dim", value_name = "NAME=N")]
    dims: Vec<String>,
}

fn main() -> ExitCode {
    let args = Args::parse();
    run(|| command(&args))
}

fn command(args: &Args) -> Result<()> {
    let graph = Importer::new().load(&args.model)?;
    if args.dot {
        println!("{}", graph.to_dot());
        return Ok(());
    }
    if args.mermaid {
        println!("{}", graph.to_mermaid());
        return Ok(());
    }
    let mut bindings = Bindings::new();
    for &id in graph.inputs() {
        for dim in graph.type_of(id).shape.dims() {
            for symbol in dim.expr().symbols() {
                bindings.insert(symbol, 1);
            }
        }
    }
    for text in &args.dims {
        let pair = text.split_once('=');
        let parsed = pair.and_then(|(name, n)| Some((Symbol::new(name), n.parse().ok()?)));
        let (name, n) = parsed.ok_or_else(|| Error::invalid(format!("`{text}` is not NAME=N")))?;
        if bindings.insert(name, n).is_none() {
            return Err(Error::invalid(format!(
                "`{text}`: the model has the symbolic dimensions {:?}",
                bindings.keys().collect::<Vec<_>>()
            )));
        }
    }
    table(&graph, &bindings)
}

fn table(graph: &Graph, bindings: &Bindings) -> Result<()> {
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
    let mut seen = std::collections::HashSet::new();
    let (mut weights_total, mut activations_total) = (0u64, 0u64);
    for (_, node) in graph.nodes() {
        let (mut parameters, mut weight_bytes) = (0u64, 0u64);
        for &input in node.inputs() {
            if let Some(content) = graph.value(input).tensor()
                && content.rank() > 0
                && seen.insert(input)
            {
                if content.dtype() != opt_core::DType::I64 {
                    parameters += content.len() as u64;
                }
                weight_bytes += content.size_in_bytes() as u64;
            }
        }
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
        cost.parameters.to_string(),
        cost.macs.to_string(),
        weights_total.to_string(),
        activations_total.to_string(),
    ]);
    println!("{table}");
    for &id in graph.inputs() {
        println!("input {}: {}", graph.value(id).name(), graph.type_of(id));
    }
    for (name, id) in graph.named_outputs() {
        println!("output {name}: {}", graph.type_of(*id));
    }
    println!("peak activation memory: {} bytes", peak(&bound)?);
    if !bindings.is_empty() {
        let sizes: Vec<String> = bindings
            .iter()
            .map(|(s, n)| format!("{} = {n}", s.as_str()))
            .collect();
        println!("sizes: {}", sizes.join(", "));
    }
    for (key, value) in graph
        .metadata()
        .iter()
        .filter(|(k, _)| !k.starts_with("onnx.doc."))
    {
        println!("{key}: {value}");
    }
    Ok(())
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
