//! What training needs of an imported graph: variables, cuts, frozen parts.

use std::collections::{HashMap, HashSet};

use crate::import::INTERNAL;
use opt_core::ops::{BinaryOp, Op};
use opt_core::{Error, ErrorKind, Graph, GraphPatch, Result, ValueId, ValueKind};

/// Makes variables of the floating-point constants whose names a selector takes, so that they are
/// trained and passes see them as parameters.
///
/// Single numbers that the model's nodes are given (epsilons, factors) and what the importer
/// computed are constants of the computation, not of the model, and stay: their names end in
/// `:const`; so do other single numbers that are no bias, slope or parameter of a layer, and
/// scales of quantized values. The running statistics of a batch
/// normalization become variables with its scale or bias: [`TrainMode`] then has it normalize by
/// the batch and update them.
///
/// ```
/// # use opt_core::nn::{Linear, ModelBuilder};
/// # use opt_onnx::{Exporter, Importer};
/// # let mut m = ModelBuilder::new("model", 0);
/// # let x = m.batch("x", [8])?;
/// # let h = m.layer("body", Linear::new(4), x)?;
/// # let y = m.layer("head", Linear::new(3), h)?;
/// # m.output("y", y)?;
/// # let bytes = Exporter::new().to_bytes(&m.finish()?)?;
/// let graph = Importer::new().read(bytes)?;
/// // Only the head is trained.
/// let graph = opt_onnx::trainable(graph, |name| name.starts_with("head"))?;
/// assert_eq!(graph.parameters().len(), 2);
/// # Ok::<(), opt_onnx::Error>(())
/// ```
///
/// [`TrainMode`]: opt_core::pass::TrainMode
///
/// # Errors
/// [`ErrorKind::NoEffect`] if the selector takes none; the message lists some that there are.
pub fn trainable(graph: Graph, mut select: impl FnMut(&str) -> bool) -> Result<Graph> {
    let mut chosen = Vec::new();
    let mut seen = Vec::new();
    let parameters = candidates(&graph);
    for &id in &parameters {
        let name = graph.value(id).name();
        if select(name) {
            chosen.push(id);
        } else if seen.len() < 20 {
            seen.push(name.to_string());
        }
    }
    if chosen.is_empty() {
        return Err(Error::new(
            ErrorKind::NoEffect,
            format!(
                "the selector takes none of the {} parameters, such as {seen:?}",
                parameters.len()
            ),
        ));
    }
    let mut with: HashSet<ValueId> = chosen.into_iter().collect();
    for (_, node) in graph.nodes() {
        if let Op::BatchNorm(_) = node.op()
            && node.inputs()[1..3].iter().any(|i| with.contains(i))
        {
            with.extend(&node.inputs()[3..5]);
        }
    }
    replace(graph, &with, true)
}

/// Makes constants of the variables whose names a selector takes: they are trained no more.
///
/// # Errors
/// [`ErrorKind::NoEffect`] if the selector takes none; an error if the graph assigns to one of
/// them.
pub fn freeze(graph: Graph, mut select: impl FnMut(&str) -> bool) -> Result<Graph> {
    let chosen: HashSet<ValueId> = graph
        .variables()
        .filter(|(_, value, _)| select(value.name()))
        .map(|(id, _, _)| id)
        .collect();
    if chosen.is_empty() {
        return Err(Error::new(
            ErrorKind::NoEffect,
            "the selector takes none of the variables",
        ));
    }
    replace(graph, &chosen, false)
}

/// The part of a graph that computes one value, which becomes its only output: what a new head
/// is put on for transfer learning.
///
/// ```
/// # use opt_core::nn::{Linear, ModelBuilder};
/// # let mut m = ModelBuilder::new("model", 0);
/// # let x = m.batch("x", [8])?;
/// # let h = m.layer("body", Linear::new(4), x)?;
/// # let name = m.graph().value(h).name().to_string();
/// # let y = m.layer("head", Linear::new(3), h)?;
/// # m.output("y", y)?;
/// # let model = m.finish()?;
/// use opt_core::{GraphBuilder, Tensor};
///
/// // Another head on the features.
/// let features = opt_onnx::cut(&model, &name)?;
/// let h = features.output(&name)?;
/// let mut b = GraphBuilder::extend(features);
/// let weight = b.variable("new_head", Tensor::zeros(opt_core::DType::F32, [4, 10])?)?;
/// let y = b.matmul(h, weight)?;
/// b.clear_outputs();
/// b.output("classes", y)?;
/// let graph = b.finish()?;
/// assert_eq!(graph.type_of(y).to_string(), "f32[batch,10]");
/// # Ok::<(), opt_onnx::Error>(())
/// ```
///
/// # Errors
/// If there is no value of that name.
pub fn cut(graph: &Graph, value: &str) -> Result<Graph> {
    let id = match graph.find(value) {
        Ok(id) => id,
        Err(e) => graph.output(value).map_err(|_| e)?,
    };
    graph.extract(&[(value.to_string(), id)], false)
}

/// Constants that are parameters of a model.
fn candidates(graph: &Graph) -> Vec<ValueId> {
    let mut uses: HashMap<ValueId, Vec<(&Op, usize)>> = HashMap::new();
    for (_, node) in graph.nodes() {
        for (i, &input) in node.inputs().iter().enumerate() {
            uses.entry(input).or_default().push((node.op(), i));
        }
    }
    let of_grid = |op: &Op, i: usize| {
        i > 0
            && matches!(
                op,
                Op::Quantize(_) | Op::Dequantize(_) | Op::FakeQuantize(_)
            )
    };
    // A single number is a factor of the computation more often than a parameter.
    let takes_single = |op: &Op| match op {
        Op::Binary(op) => matches!(op.op, BinaryOp::Add | BinaryOp::PRelu),
        Op::Unary(_) | Op::Where(_) | Op::Cast(_) | Op::Expand(_) => false,
        _ => true,
    };
    let statistic = |op: &Op, i: usize| i > 2 && matches!(op, Op::BatchNorm(_));
    graph
        .values()
        .filter(|(id, value)| {
            let ValueKind::Constant(content) = value.kind() else {
                return false;
            };
            let Some(uses) = uses.get(id) else {
                return false;
            };
            content.dtype().is_float()
                && content.rank() > 0
                && (content.len() > 1 || uses.iter().any(|&(op, _)| takes_single(op)))
                && !value.name().ends_with(INTERNAL)
                && !uses
                    .iter()
                    .any(|&(op, i)| of_grid(op, i) || statistic(op, i))
        })
        .map(|(id, _)| id)
        .collect()
}

/// Replaces constants by variables of the same names, or the other way round.
fn replace(graph: Graph, chosen: &HashSet<ValueId>, to_variable: bool) -> Result<Graph> {
    let mut patch = GraphPatch::new(graph);
    let mut ordered: Vec<ValueId> = chosen.iter().copied().collect();
    ordered.sort();
    let mut names = Vec::new();
    for id in ordered {
        let value = patch.graph().value(id).clone();
        let Some(content) = value.tensor().cloned() else {
            continue;
        };
        if matches!(value.kind(), ValueKind::Variable(_)) == to_variable {
            continue;
        }
        // The name is free as soon as the old value has another.
        let name = value.name().to_string();
        patch.rename(id, &format!("{name}:replaced"))?;
        let new = if to_variable {
            patch.variable(&name, content)?
        } else {
            patch.named_constant(&name, content)
        };
        patch.replace(id, new)?;
        names.push(name);
    }
    patch.finish()
}
