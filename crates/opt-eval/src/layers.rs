//! A graph's nodes grouped to layers.

use std::collections::HashMap;

use opt_core::ops::Op;
use opt_core::{DType, Graph, Node, NodeId, Result, ResultExt, TensorType, ValueId, ValueKind};

use crate::weights::parameters;

/// What a layer costs to store and to run once.
///
/// A layer is the nodes with weights or multiply-adds that were built under one name (`c1` of
/// `c1.conv` and `c1.add`), with what computes their weights, a `Dequantize` before them, and
/// element-wise nodes without weights after them (an activation, a `Quantize`). Every other node
/// is a layer by itself, under its own name. The sums over the layers are the model's
/// [`parameters`](crate::ModelCost::parameters), [`nonzeros`](crate::ModelCost::nonzeros) and
/// [`macs`](crate::ModelCost::macs).
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct LayerCost {
    /// The layer's name.
    pub name: String,
    /// The op of the node that gives the layer its work: the first with weights or multiply-adds,
    /// or the first at all.
    pub op: String,
    /// The names of its nodes, in the graph's order.
    pub nodes: Vec<String>,
    /// As [`ModelCost::parameters`](crate::ModelCost::parameters); what two layers share counts
    /// for the first.
    pub parameters: u64,
    /// Of the parameters, those that are not 0.
    pub nonzeros: u64,
    /// The bytes of all tensors that are stored for the layer: parameters, running statistics,
    /// scales and zero points, without a file's header.
    pub bytes: u64,
    /// Multiply-adds.
    pub macs: u64,
    /// Other arithmetic, in elements processed.
    pub elements: u64,
    /// The type of the first output of its last node that depends on the graph's inputs.
    pub output: TensorType,
}

impl LayerCost {
    /// The share of parameters that are 0, in [0, 1]; `None` without parameters.
    pub fn sparsity(&self) -> Option<f64> {
        let zeros = self.parameters.checked_sub(self.nonzeros)?;
        (self.parameters > 0).then(|| zeros as f64 / self.parameters as f64)
    }
}

/// Which layer each node belongs to, and each stored tensor.
#[derive(Debug)]
pub(crate) struct Layers {
    pub(crate) layers: Vec<Layer>,
    of_node: HashMap<NodeId, usize>,
    of_value: HashMap<ValueId, usize>,
    /// Values that do not depend on the graph's inputs, by index.
    pub(crate) fixed: Vec<bool>,
}

#[derive(Debug)]
pub(crate) struct Layer {
    pub(crate) name: String,
    pub(crate) op: String,
    /// In the graph's order.
    pub(crate) nodes: Vec<NodeId>,
}

impl Layers {
    /// The layers of the nodes that the outputs depend on.
    pub(crate) fn of(graph: &Graph, live: &[bool]) -> Result<Layers> {
        let nodes: Vec<(NodeId, &Node)> = graph
            .nodes()
            .filter(|(_, node)| node.outputs().iter().any(|o| live[o.index()]))
            .collect();
        let fixed = fixed_values(graph, &nodes);
        let is_fixed = |v: &ValueId| fixed[v.index()];
        let weights = weights_behind(graph, live, &nodes, &fixed);
        let mut out = Layers {
            layers: Vec::new(),
            of_node: HashMap::new(),
            of_value: HashMap::new(),
            fixed: Vec::new(),
        };
        let mut names: HashMap<String, usize> = HashMap::new();
        let later = |node: &Node| is_dequantize(node.op()) || node.outputs().iter().all(&is_fixed);
        for &(id, node) in nodes.iter().filter(|(_, node)| !later(node)) {
            let weight = node.inputs().iter().find_map(|v| weights[v.index()]);
            let works = weight.is_some() || macs(graph, node)? > 0;
            let layer = if works {
                out.layer(&mut names, work_name(graph, node, weight), node)
            } else if let Some(before) = out.followed(graph, node, &fixed) {
                before
            } else {
                out.layer(&mut names, node.name().to_string(), node)
            };
            out.of_node.insert(id, layer);
        }
        // What computes weights, and dequantizations, belong to their first reader.
        let consumers = graph.consumers();
        for &(id, node) in nodes.iter().rev().filter(|(_, node)| later(node)) {
            let readers = node
                .outputs()
                .iter()
                .filter_map(|o| consumers.get(o))
                .flatten();
            let first = readers
                .filter_map(|(reader, _)| out.of_node.get(reader))
                .min();
            let layer = match first {
                Some(&layer) => layer,
                None => match out.followed(graph, node, &fixed) {
                    Some(before) => before,
                    None => out.layer(&mut names, node.name().to_string(), node),
                },
            };
            out.of_node.insert(id, layer);
        }
        for &(id, node) in &nodes {
            let layer = out.of_node[&id];
            out.layers[layer].nodes.push(id);
            for &v in node.inputs() {
                if graph.value(v).tensor().is_some() {
                    let first = out.of_value.entry(v).or_insert(layer);
                    *first = layer.min(*first);
                }
            }
        }
        out.fixed = fixed;
        Ok(out)
    }

    fn layer(&mut self, names: &mut HashMap<String, usize>, name: String, node: &Node) -> usize {
        *names.entry(name.clone()).or_insert_with(|| {
            self.layers.push(Layer {
                name,
                op: node.op().name().to_string(),
                nodes: Vec::new(),
            });
            self.layers.len() - 1
        })
    }

    /// The layer of the node before, if this one is element-wise and reads nothing else that
    /// depends on the inputs.
    fn followed(&self, graph: &Graph, node: &Node, fixed: &[bool]) -> Option<usize> {
        let follows = matches!(
            node.op(),
            Op::Unary(_)
                | Op::Binary(_)
                | Op::Cast(_)
                | Op::Quantize(_)
                | Op::Dequantize(_)
                | Op::FakeQuantize(_)
                | Op::Dropout(_)
                | Op::Identity(_)
                | Op::StopGradient(_)
        );
        let mut varying = node.inputs().iter().filter(|v| !fixed[v.index()]);
        let (Some(&from), None, true) = (varying.next(), varying.next(), follows) else {
            return None;
        };
        self.of_node.get(&graph.producer(from)?.0).copied()
    }

    pub(crate) fn of_node(&self, node: NodeId) -> Option<usize> {
        self.of_node.get(&node).copied()
    }

    pub(crate) fn of_value(&self, value: ValueId) -> Option<usize> {
        self.of_value.get(&value).copied()
    }

    /// Names, nodes, bytes and outputs; the counts are 0.
    pub(crate) fn costs(&self, graph: &Graph) -> Vec<LayerCost> {
        let mut bytes = vec![0; self.layers.len()];
        for (&v, &layer) in &self.of_value {
            let tensor = graph.value(v).tensor();
            bytes[layer] += tensor.map_or(0, |t| t.dtype().bytes(t.len()) as u64);
        }
        let cost = |(layer, bytes): (&Layer, u64)| {
            let nodes = || layer.nodes.iter().map(|&n| graph.node(n));
            let varying = |node: &&Node| !self.fixed[node.outputs()[0].index()];
            let last = nodes().rev().find(varying).or_else(|| nodes().next_back());
            LayerCost {
                name: layer.name.clone(),
                op: layer.op.clone(),
                nodes: nodes().map(|n| n.name().to_string()).collect(),
                parameters: 0,
                nonzeros: 0,
                bytes,
                macs: 0,
                elements: 0,
                output: last.map_or_else(
                    || TensorType::new(DType::F32, [0usize; 0]),
                    |n| graph.type_of(n.outputs()[0]).clone(),
                ),
            }
        };
        self.layers.iter().zip(bytes).map(cost).collect()
    }
}

pub(crate) fn is_dequantize(op: &Op) -> bool {
    matches!(op, Op::Dequantize(_))
}

/// Values that are the same in each run, by index.
fn fixed_values(graph: &Graph, nodes: &[(NodeId, &Node)]) -> Vec<bool> {
    let mut fixed = vec![false; graph.value_bound()];
    for (id, value) in graph.values() {
        let kind = value.kind();
        fixed[id.index()] = matches!(kind, ValueKind::Constant(_) | ValueKind::Variable(_));
    }
    for (_, node) in nodes {
        if node.op().rules().is_deterministic() && node.inputs().iter().all(|v| fixed[v.index()]) {
            for output in node.outputs() {
                fixed[output.index()] = true;
            }
        }
    }
    fixed
}

/// For each fixed value the first parameter that it is made from.
fn weights_behind(
    graph: &Graph,
    live: &[bool],
    nodes: &[(NodeId, &Node)],
    fixed: &[bool],
) -> Vec<Option<ValueId>> {
    let mut weights = vec![None; graph.value_bound()];
    for parameter in parameters(graph, live) {
        weights[parameter.id.index()] = Some(parameter.id);
    }
    for (_, node) in nodes {
        let weight = node.inputs().iter().find_map(|v| weights[v.index()]);
        for output in node.outputs().iter().filter(|o| fixed[o.index()]) {
            weights[output.index()] = weight;
        }
    }
    weights
}

fn macs(graph: &Graph, node: &Node) -> Result<u64> {
    let types =
        |ids: &[ValueId]| -> Vec<_> { ids.iter().map(|&v| graph.type_of(v).clone()).collect() };
    let cost = node
        .op()
        .rules()
        .cost(&types(node.inputs()), &types(node.outputs()));
    Ok(cost.at(|| node.name().to_string())?.macs)
}

/// The scope that a node was built in; without one, its weight's; without that, its own name.
fn work_name(graph: &Graph, node: &Node, weight: Option<ValueId>) -> String {
    let scope = |name: &str| {
        let end = name.rfind(['.', '/'])?;
        (end > 0).then(|| name[..end].to_string())
    };
    scope(node.name())
        .or_else(|| scope(graph.value(weight?).name()))
        .unwrap_or_else(|| node.name().to_string())
}
