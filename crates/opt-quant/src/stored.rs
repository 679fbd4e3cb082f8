//! Finding stored weights, for the passes that need no calibration.

use opt_core::ops::Op;
use opt_core::{DType, Error, ErrorKind, Graph, Node, NodeId, Result, ValueId};

use crate::layout::Axes;
use crate::rules::{Candidate, Rules};
use crate::scheme::Scheme;

/// A node with a stored weight.
#[derive(Debug, Clone)]
pub(crate) struct Stored {
    pub(crate) node: NodeId,
    pub(crate) weight: ValueId,
    pub(crate) axes: Axes,
    pub(crate) scheme: Scheme,
}

/// Which layers a pass takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kinds {
    /// Matrix products.
    Products,
    /// Also convolutions and embeddings.
    All,
}

/// How the note on a layer that is none of the kinds ends.
pub(crate) const IN_FLOAT: &str = "stay in float here";

/// The weight of a layer and its axes.
fn weight_of(graph: &Graph, node: &Node) -> Option<(ValueId, Axes)> {
    let at = usize::from(!matches!(node.op(), Op::Gather(_)));
    let weight = *node.inputs().get(at)?;
    let value = graph.value(weight);
    value.tensor()?;
    let rows = Axes { channel: 0, sum: 1 };
    let axes = match node.op() {
        Op::Conv(_) => rows,
        Op::MatMul(op) if value.ty().rank() == 2 && !op.trans_a => match op.trans_b {
            true => rows,
            false => Axes { channel: 1, sum: 0 },
        },
        Op::Gather(op) if value.ty().rank() == 2 && op.axis == 0 => rows,
        _ => return None,
    };
    (value.ty().dtype == DType::F32).then_some((weight, axes))
}

/// The layers with stored weights that rules do not leave alone, and why others are left out.
pub(crate) fn find(
    graph: &Graph,
    rules: &Rules,
    usual: &Scheme,
    kinds: Kinds,
) -> Result<(Vec<Stored>, Vec<String>)> {
    let (mut found, mut candidates, mut left) = (Vec::new(), Vec::new(), Vec::new());
    for (id, node) in graph.nodes() {
        let Some((weight, axes)) = weight_of(graph, node) else {
            if matches!(node.op(), Op::MatMul(_)) {
                left.push(format!("{}: its operands are computed", node.name()));
            } else if matches!(node.op(), Op::Lstm(_) | Op::Gru(_)) {
                left.push(format!("{}: recurrent weights stay in float", node.name()));
            }
            continue;
        };
        candidates.push(Candidate {
            op: node.op().name().to_string(),
            node: node.name().to_string(),
            weight: graph.value(weight).name().to_string(),
        });
        found.push(Stored {
            node: id,
            weight,
            axes,
            scheme: *usual,
        });
    }
    let schemes = rules.decide(&candidates, usual)?;
    let mut layers = Vec::new();
    for ((mut layer, scheme), candidate) in found.into_iter().zip(schemes).zip(candidates) {
        let name = candidate.node;
        let Some(scheme) = scheme else {
            left.push(format!("{name}: excluded"));
            continue;
        };
        match (kinds, graph.node(layer.node).op()) {
            (Kinds::Products, Op::Conv(_)) => {
                left.push(format!("{name}: convolutions {IN_FLOAT}"));
            }
            (Kinds::Products, Op::Gather(_)) => {
                left.push(format!("{name}: embeddings {IN_FLOAT}"));
            }
            _ => {
                layer.scheme = scheme;
                layers.push(layer);
            }
        }
    }
    if layers.is_empty() {
        return Err(Error::new(
            ErrorKind::NoEffect,
            format!("there is no stored weight to quantize; left out: {left:?}"),
        ));
    }
    Ok((layers, left))
}
