//! Which layers and values are quantized.

use std::collections::{BTreeMap, HashMap};

use opt_core::ops::{Binary, BinaryOp, Op};
use opt_core::{Error, ErrorKind, Graph, NodeId, Result, ResultExt, ValueId};

use crate::layout::Axes;
use crate::rules::{Candidate, Rules};
use crate::scheme::Scheme;

/// A convolution or matrix product to quantize.
#[derive(Debug, Clone)]
pub(crate) struct Layer {
    pub(crate) input: ValueId,
    pub(crate) weight: ValueId,
    /// The weight's axis of output channels.
    pub(crate) axis: usize,
    pub(crate) bias: Option<ValueId>,
    /// How the weight is quantized: integers with a scale a tensor or a channel.
    pub(crate) scheme: Scheme,
}

impl Layer {
    /// The weight's axes.
    pub(crate) fn axes(&self) -> Axes {
        Axes {
            channel: self.axis,
            sum: usize::from(self.axis == 0),
        }
    }
}

/// What is quantized of a graph.
#[derive(Debug, Clone)]
pub(crate) struct Plan {
    pub(crate) layers: Vec<Layer>,
    /// Quantized activations, each with the value whose range it shares: itself, or what it was
    /// pooled or reshaped from.
    pub(crate) activations: BTreeMap<ValueId, ValueId>,
}

/// Whether an op only moves or picks values, so that its output lies on its input's grid.
fn passes_through(op: &Op) -> bool {
    matches!(
        op,
        Op::MaxPool(_)
            | Op::Reshape(_)
            | Op::Transpose(_)
            | Op::Squeeze(_)
            | Op::Unsqueeze(_)
            | Op::Slice(_)
            | Op::Identity(_)
    )
}

impl Plan {
    /// The layers that rules do not leave alone, with the scheme that they say, or the usual one.
    pub(crate) fn of(graph: &Graph, rules: &Rules, usual: &Scheme) -> Result<Plan> {
        let consumers = graph.consumers();
        let readers = |v: ValueId| consumers.get(&v).map_or(0, Vec::len);
        let mut layers = Vec::new();
        let mut candidates = Vec::new();
        for (id, node) in graph.nodes() {
            let Some(layer) = layer(graph, id, &consumers, &readers, usual) else {
                continue;
            };
            let name = graph.value(layer.weight).name().to_string();
            if let Some(next) = consumers.get(&node.outputs()[0]).and_then(|c| c.first())
                && matches!(graph.node(next.0).op(), Op::BatchNorm(_))
            {
                return Err(Error::invalid(
                    "a batch normalization follows this layer; apply `FoldBatchNorm` first",
                )
                .at(node.name().to_string()));
            }
            candidates.push(Candidate {
                op: node.op().name().to_string(),
                node: node.name().to_string(),
                weight: name,
            });
            layers.push(layer);
        }
        let schemes = rules.decide(&candidates, usual)?;
        let mut kept = Vec::new();
        for ((mut layer, scheme), candidate) in layers.into_iter().zip(schemes).zip(candidates) {
            let Some(scheme) = scheme else { continue };
            check(&scheme).at(|| candidate.weight)?;
            layer.scheme = scheme;
            kept.push(layer);
        }
        let layers = kept;
        if layers.is_empty() {
            return Err(Error::new(
                ErrorKind::NoEffect,
                "the graph has no convolution or matrix product with a stored weight to quantize",
            ));
        }
        let mut activations = BTreeMap::new();
        for layer in &layers {
            let mut chain = vec![layer.input];
            let mut at = layer.input;
            while let Some((_, node)) = graph.producer(at) {
                if !passes_through(node.op()) {
                    break;
                }
                at = node.inputs()[0];
                chain.push(at);
            }
            for v in chain {
                activations.insert(v, at);
            }
        }
        Ok(Plan {
            layers,
            activations,
        })
    }

    /// The values whose ranges are observed.
    pub(crate) fn origins(&self) -> Vec<ValueId> {
        let mut out: Vec<ValueId> = self.activations.values().copied().collect();
        out.sort_unstable();
        out.dedup();
        out
    }
}

/// Fails unless a scheme is one of weights whose products integers compute.
fn check(scheme: &Scheme) -> Result<()> {
    scheme.grid()?;
    if scheme.group_size().is_some() {
        return Err(Error::invalid(format!(
            "the scheme `{scheme}`: integer layers have a scale a tensor or a channel; \
             groups are for `QuantizeWeights`"
        )));
    }
    Ok(())
}

fn layer(
    graph: &Graph,
    id: NodeId,
    consumers: &HashMap<ValueId, Vec<(NodeId, usize)>>,
    readers: &dyn Fn(ValueId) -> usize,
    scheme: &Scheme,
) -> Option<Layer> {
    let node = graph.node(id);
    let stored = |v: ValueId| {
        let value = graph.value(v);
        value.tensor().is_some() && value.ty().dtype == opt_core::DType::F32 && readers(v) == 1
    };
    let input = *node.inputs().first()?;
    let weight = *node.inputs().get(1)?;
    if !stored(weight) || graph.value(input).tensor().is_some() {
        return None;
    }
    let (axis, bias) = match node.op() {
        Op::Conv(_) => (0, node.inputs().get(2).copied().filter(|&b| stored(b))),
        Op::MatMul(op) if graph.type_of(weight).rank() == 2 && !op.trans_a => {
            let axis = usize::from(!op.trans_b);
            let width = graph.type_of(weight).shape[axis].clone();
            let next = match consumers.get(&node.outputs()[0]).map(Vec::as_slice) {
                Some([(next, _)]) => Some(graph.node(*next)),
                _ => None,
            };
            let add = next.filter(|n| *n.op() == Op::Binary(Binary { op: BinaryOp::Add }));
            let bias = add.and_then(|n| {
                let found = n.inputs().iter().copied().find(|&v| stored(v))?;
                (graph.type_of(found).shape.dims() == [width]).then_some(found)
            });
            (axis, bias)
        }
        _ => return None,
    };
    Some(Layer {
        input,
        weight,
        axis,
        bias,
        scheme: *scheme,
    })
}
