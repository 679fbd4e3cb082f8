//! What the command-line examples share: reading models and arrays, and saying what is wrong with
//! them.

mod backend;
pub mod ledger;
mod optimizer;

pub use backend::BackendArgs;
pub use optimizer::OptimizerArgs;

use std::io::{self, Write as _};
use std::path::Path;
use std::process::ExitCode;

use opt_core::graph::Bindings;
use opt_core::{Error, ErrorKind, Graph, Result, Tensor};
use opt_data::npz::Npz;
use opt_onnx::Importer;

/// Runs a command: its error goes to standard error and makes the exit status 1.
pub fn run(command: impl FnOnce() -> Result<()>) -> ExitCode {
    match command() {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            eprintln!("error: {e}");
            ExitCode::FAILURE
        }
    }
}

/// Prints a long text; a reader that closes the pipe early has seen enough.
///
/// # Errors
/// If standard output cannot be written.
pub fn print(text: &str) -> Result<()> {
    match io::stdout().lock().write_all(text.as_bytes()) {
        Err(e) if e.kind() != io::ErrorKind::BrokenPipe => Err(e.into()),
        _ => Ok(()),
    }
}

/// Sizes of 1 for the symbols of a graph's inputs.
pub fn ones(graph: &Graph) -> Bindings {
    let dims = graph.inputs().iter().flat_map(|&id| {
        let dims = graph.type_of(id).shape.dims().iter();
        dims.flat_map(|dim| dim.expr().symbols())
    });
    dims.map(|symbol| (symbol, 1)).collect()
}

/// Sizes as text: `batch = 1, seq = 8`.
pub fn sizes(bindings: &Bindings) -> String {
    let each = bindings
        .iter()
        .map(|(s, n)| format!("{} = {n}", s.as_str()));
    each.collect::<Vec<_>>().join(", ")
}

/// The inputs that a model expects, one a line.
pub fn expected(graph: &Graph) -> String {
    let inputs = graph.inputs().iter();
    inputs
        .map(|&id| format!("\n  {}: {}", graph.value(id).name(), graph.type_of(id)))
        .collect()
}

/// All arrays of an npz file.
///
/// # Errors
/// If it cannot be read.
pub fn arrays(path: &Path) -> Result<Vec<(String, Tensor)>> {
    let mut npz = Npz::open(path)?;
    npz.tensors().collect()
}

/// Reads a model; where it depends on the content or the sizes of its inputs, with those given.
///
/// # Errors
/// If it cannot be read.
pub fn load(path: &Path, inputs: &[(String, Tensor)]) -> Result<Graph> {
    Importer::new().load(path).or_else(|first| {
        if !matches!(first.kind(), ErrorKind::Unsupported | ErrorKind::Shape) || inputs.is_empty() {
            return Err(first);
        }
        let names = opt_onnx::input_names(path)?;
        let mut importer = Importer::new();
        for (name, content) in inputs.iter().filter(|(n, _)| names.contains(n)) {
            importer = importer.known_input(name.clone(), content.clone());
        }
        importer.load(path).map_err(|second| match second.kind() {
            // An array that is not what the model expects.
            ErrorKind::InvalidArgument => second,
            _ => first,
        })
    })
}

/// The arrays that a graph's inputs name, in the graph's order, each of the right type.
///
/// Arrays beside them are an error unless `others` has their names.
///
/// # Errors
/// If one is missing, unknown, or of another dtype, rank or size; the message lists what the
/// model expects.
pub fn matching(
    graph: &Graph,
    arrays: &[(String, Tensor)],
    others: &[&str],
    samples: bool,
) -> Result<Vec<Tensor>> {
    let fail = |what: String| {
        Err(Error::invalid(format!(
            "{what}; the model expects{}",
            expected(graph)
        )))
    };
    let mut out = Vec::new();
    for &id in graph.inputs() {
        let (name, ty) = (graph.value(id).name(), graph.type_of(id));
        let Some((_, content)) = arrays.iter().find(|(n, _)| n == name) else {
            let names: Vec<&str> = arrays.iter().map(|(n, _)| n.as_str()).collect();
            return fail(format!("there is no array `{name}` among {names:?}"));
        };
        // The first axis of a data set is its samples, whatever the model's batch is.
        let skip = usize::from(samples);
        let dims = ty.shape.dims().iter().zip(content.shape()).skip(skip);
        let fits = content.dtype() == ty.dtype
            && content.rank() == ty.rank()
            && dims
                .into_iter()
                .all(|(d, &n)| d.as_fixed().is_none_or(|d| d == n));
        if !fits {
            return fail(format!(
                "the array `{name}` is {}{:?}",
                content.dtype(),
                content.shape()
            ));
        }
        out.push(content.clone());
    }
    let known = |n: &str| {
        others.contains(&n) || graph.inputs().iter().any(|&id| graph.value(id).name() == n)
    };
    if let Some((name, _)) = arrays.iter().find(|(n, _)| !known(n)) {
        return fail(format!("the model has no input `{name}`"));
    }
    Ok(out)
}

/// The batch that a model is made for: its first inputs' first size if that is fixed.
pub fn fixed_batch(graph: &Graph) -> Option<usize> {
    let first = graph.inputs().first()?;
    graph.type_of(*first).shape.dims().first()?.as_fixed()
}

/// The weights whose names, or the names of nodes that read them, match a pattern.
///
/// # Errors
/// If it is no regular expression or matches nothing.
pub fn names_matching(graph: &Graph, pattern: &str) -> Result<Vec<String>> {
    let regex = regex::Regex::new(pattern)
        .map_err(|e| Error::invalid(format!("`{pattern}` is no regular expression: {e}")))?;
    let (mut found, mut seen) = (Vec::new(), Vec::new());
    for (_, node) in graph.nodes() {
        for &input in node.inputs() {
            let value = graph.value(input);
            let weight = value.tensor().is_some() && value.ty().dtype.is_float();
            if !weight || value.ty().rank() < 2 {
                continue;
            }
            let name = value.name().to_string();
            if regex.is_match(&name) || regex.is_match(node.name()) {
                found.push(name);
            } else {
                seen.push(format!("{name} of {}", node.name()));
            }
        }
    }
    if found.is_empty() {
        return Err(Error::new(
            ErrorKind::NoEffect,
            format!("`{pattern}` matches none of the weights {seen:?}"),
        ));
    }
    Ok(found)
}
