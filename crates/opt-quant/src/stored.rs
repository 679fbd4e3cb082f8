//! Finding stored weights, for the passes that need no calibration.

use opt_core::ops::Op;
use opt_core::{DType, Error, ErrorKind, Graph, Node, NodeId, Result, ValueId};

/// A node with a stored weight, and the axis of the weight's output channels.
#[derive(Debug, Clone)]
pub(crate) struct Stored {
    pub(crate) node: NodeId,
    pub(crate) weight: ValueId,
    pub(crate) axis: usize,
}

/// The weight of a layer and its axis of output channels.
fn weight_of(graph: &Graph, node: &Node) -> Option<(ValueId, usize)> {
    let weight = *node.inputs().get(1)?;
    let value = graph.value(weight);
    value.tensor()?;
    let axis = match node.op() {
        Op::Conv(_) => 0,
        Op::MatMul(op) if value.ty().rank() == 2 && !op.trans_a => usize::from(!op.trans_b),
        _ => return None,
    };
    (value.ty().dtype == DType::F32).then_some((weight, axis))
}

/// The layers with stored weights, and why others that have a weight are left out.
pub(crate) fn find(
    graph: &Graph,
    exclude: &[String],
    convolutions: bool,
) -> Result<(Vec<Stored>, Vec<String>)> {
    let (mut found, mut names, mut left) = (Vec::new(), Vec::new(), Vec::new());
    for (id, node) in graph.nodes() {
        let Some((weight, axis)) = weight_of(graph, node) else {
            if matches!(node.op(), Op::MatMul(_)) {
                left.push(format!("{}: its operands are computed", node.name()));
            } else if matches!(node.op(), Op::Lstm(_) | Op::Gru(_)) {
                left.push(format!("{}: recurrent weights stay in float", node.name()));
            }
            continue;
        };
        let name = graph.value(weight).name().to_string();
        names.push(name.clone());
        if exclude.iter().any(|p| name.contains(p.as_str())) {
            left.push(format!("{}: excluded", node.name()));
        } else if !convolutions && matches!(node.op(), Op::Conv(_)) {
            left.push(format!("{}: convolutions stay in float here", node.name()));
        } else {
            found.push(Stored {
                node: id,
                weight,
                axis,
            });
        }
    }
    if let Some(pattern) = exclude
        .iter()
        .find(|p| !names.iter().any(|n| n.contains(p.as_str())))
    {
        return Err(Error::new(
            ErrorKind::NoEffect,
            format!("the pattern `{pattern}` matches none of {names:?}"),
        ));
    }
    if found.is_empty() {
        return Err(Error::new(
            ErrorKind::NoEffect,
            format!("there is no stored weight to quantize; left out: {left:?}"),
        ));
    }
    Ok((found, left))
}
