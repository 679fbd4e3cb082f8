//! Division of layers' inputs, channel by channel.

use std::collections::BTreeMap;

use opt_core::ops::{Binary, BinaryOp, Op, Unary, UnaryOp};
use opt_core::{Dim, Graph, GraphPatch, NodeId, Report, Result, Tensor, ValueId};

/// Divides what layers read by a number for each entry of its last axis: in the parameters that make
/// it where nothing else reads it, else by a multiplication in the graph.
///
/// Of each entry, the layers are all those that read one input and are to read it divided. Weights in
/// `taken` are quantized already: of those with `true` the caller gets the factors of their output
/// channels, those with `false` take none.
pub(crate) fn divide_inputs(
    graph: Graph,
    divided: &[(Vec<NodeId>, Vec<f64>)],
    taken: &BTreeMap<ValueId, bool>,
    report: &mut Report,
) -> Result<(Graph, Vec<(ValueId, Vec<f64>)>)> {
    let mut graph = graph;
    let mut left = Vec::new();
    let mut rows = Vec::new();
    let mut folded = 0;
    for (nodes, scales) in divided {
        // As the graph has them.
        let factors: Vec<f64> = scales.iter().map(|s| f64::from((1.0 / s) as f32)).collect();
        let able =
            |found: &Vec<(ValueId, usize)>| found.iter().all(|(v, _)| taken.get(v) != Some(&false));
        match parameters(&graph, nodes).filter(able) {
            Some(values) => {
                for (value, axis) in values {
                    if taken.contains_key(&value) {
                        rows.push((value, factors.clone()));
                        continue;
                    }
                    let content = graph.value(value).tensor().expect("found as stored");
                    let content = times(content, &factors, axis)?;
                    graph.set_content(value, content)?;
                }
                folded += 1;
            }
            None => left.push((nodes, factors)),
        }
    }
    if !divided.is_empty() {
        report.notes.push(format!(
            "{} inputs are divided by scales: {folded} in the parameters that make them, {} by a \
             multiplication",
            divided.len(),
            left.len()
        ));
    }
    if left.is_empty() {
        return Ok((graph, rows));
    }
    let places: Vec<(ValueId, String)> = left
        .iter()
        .map(|(nodes, _): &(&Vec<NodeId>, Vec<f64>)| graph.node(nodes[0]).inputs()[0])
        .map(|v| (v, format!("{}.factor", graph.value(v).name())))
        .collect();
    let mut patch = GraphPatch::new(graph);
    for ((nodes, factors), (input, name)) in left.into_iter().zip(places) {
        let factors: Vec<f32> = factors.iter().map(|&f| f as f32).collect();
        let factors = patch.named_constant(&name, Tensor::new([factors.len()], factors)?);
        let product = patch.mul(input, factors)?;
        for &node in nodes {
            patch.rewire(node, 0, product)?;
        }
    }
    Ok((patch.finish()?, rows))
}

/// The parameters to divide instead of an input that only `nodes` read: the scale and the bias of a
/// layer normalization, or the weight and bias of a linear layer, if need be before a ReLU; each with
/// the axis that the input's last one is.
fn parameters(graph: &Graph, nodes: &[NodeId]) -> Option<Vec<(ValueId, usize)>> {
    let consumers = graph.consumers();
    let only = |v: ValueId, count: usize| {
        let readers = consumers.get(&v).map_or(0, Vec::len);
        readers == count && graph.outputs().all(|o| o != v)
    };
    // A vector along the last axis, or a weight whose columns lie there.
    let stored = |v: ValueId| {
        let value = graph.value(v);
        value.tensor().is_some() && only(v, 1)
    };
    let mut at = graph.node(nodes[0]).inputs()[0];
    if !only(at, nodes.len()) {
        return None;
    }
    let width = graph.type_of(at).shape.dims().last()?.as_fixed()?;
    let vector = |v: ValueId| stored(v) && graph.type_of(v).shape.dims() == [Dim::from(width)];
    let mut found = Vec::new();
    loop {
        let (_, node) = graph.producer(at)?;
        let inputs = node.inputs();
        match node.op() {
            Op::Unary(Unary { op: UnaryOp::Relu }) => at = inputs[0],
            Op::Binary(Binary { op: BinaryOp::Add }) if found.is_empty() => {
                let bias = inputs.iter().copied().find(|&v| vector(v))?;
                found.push((bias, 0));
                at = inputs.iter().copied().find(|&v| v != bias)?;
            }
            Op::Binary(Binary { op: BinaryOp::Mul }) => {
                found.push((inputs.iter().copied().find(|&v| vector(v))?, 0));
                return Some(found);
            }
            Op::LayerNorm(op) => {
                let last = graph.type_of(at).rank() - 1;
                let all = op.axis == last && inputs[1..].iter().all(|&v| vector(v));
                found.extend(inputs[1..].iter().map(|&v| (v, 0)));
                return all.then_some(found);
            }
            Op::RmsNorm(op) => {
                let last = graph.type_of(at).rank() - 1;
                found.push((inputs[1], 0));
                return (op.axis == last && vector(inputs[1])).then_some(found);
            }
            Op::MatMul(op) if !op.trans_a => {
                let weight = inputs[1];
                let matrix = stored(weight) && graph.type_of(weight).rank() == 2;
                found.push((weight, usize::from(!op.trans_b)));
                return matrix.then_some(found);
            }
            _ => return None,
        }
        if !only(at, 1) {
            return None;
        }
    }
}

/// A tensor times a number for each entry of an axis.
fn times(content: &Tensor, factors: &[f64], axis: usize) -> Result<Tensor> {
    let inner: usize = content.shape()[axis + 1..].iter().product();
    let values = content.to_f64s().into_iter().enumerate();
    let values: Vec<f64> = values
        .map(|(i, v)| v * factors[i / inner % factors.len()])
        .collect();
    Tensor::from_f64s(content.dtype(), content.shape(), &values)
}
