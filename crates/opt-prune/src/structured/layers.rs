//! The channels, neurons and heads of a graph.

use std::collections::{BTreeMap, BTreeSet};

use opt_core::ops::Op;
use opt_core::pass::{AxisGroup, AxisGroups};
use opt_core::{Graph, Result, ValueId};

use crate::criterion::Structures;
use crate::select::Weight;

/// The layers of a graph whose outputs may go, at least some of them.
pub(crate) fn layers(graph: &Graph, weights: &[Weight]) -> Result<Vec<Structures>> {
    let outputs: BTreeMap<ValueId, usize> = weights.iter().map(|w| (w.value, w.outputs)).collect();
    // Groups with the same set of (value, axis) are the channels of one layer.
    let mut layers: BTreeMap<Vec<(ValueId, usize)>, Vec<&AxisGroup>> = BTreeMap::new();
    let groups = AxisGroups::of(graph)?;
    for group in groups.iter() {
        if group.entries.keys().any(|(v, _)| outputs.contains_key(v)) {
            let places: Vec<_> = group.entries.keys().copied().collect();
            layers.entry(places).or_default().push(group);
        }
    }
    let head_axes = head_axes(graph);
    let mut out = Vec::new();
    for (places, groups) in layers {
        let made_by: Vec<(ValueId, usize)> = places
            .iter()
            .copied()
            .filter(|(v, axis)| outputs.get(v) == Some(axis))
            .collect();
        let free: Vec<AxisGroup> = groups
            .iter()
            .filter(|g| !g.blocked)
            .copied()
            .cloned()
            .collect();
        if made_by.is_empty() || free.is_empty() {
            continue;
        }
        let names: Vec<&str> = made_by
            .iter()
            .map(|(v, _)| graph.value(*v).name())
            .collect();
        out.push(Structures {
            layer: names.join(", "),
            weights: made_by,
            total: groups.len(),
            heads: places.iter().any(|place| head_axes.contains(place)),
            groups: free,
        });
    }
    Ok(out)
}

/// The axes that attention runs over head by head: those of queries and keys before the last two,
/// in `Attention` ops and in products whose softmax weighs another product.
fn head_axes(graph: &Graph) -> BTreeSet<(ValueId, usize)> {
    let consumers = graph.consumers();
    let mut out = BTreeSet::new();
    for (_, node) in graph.nodes() {
        let value = match node.op() {
            Op::Attention(_) => node.inputs()[0],
            Op::Softmax(op) if op.axis + 1 == graph.type_of(node.inputs()[0]).rank() => {
                let mut reads: Vec<&Op> = Vec::new();
                let mut value = node.outputs()[0];
                // Dropout may stand between the softmax and the product.
                while let [(reader, _)] = consumers.get(&value).map_or(&[][..], Vec::as_slice) {
                    let reader = graph.node(*reader);
                    reads.push(reader.op());
                    if !matches!(reader.op(), Op::Dropout(_) | Op::Cast(_)) {
                        break;
                    }
                    value = reader.outputs()[0];
                }
                if !matches!(reads.last(), Some(Op::MatMul(_))) {
                    continue;
                }
                node.inputs()[0]
            }
            _ => continue,
        };
        for axis in 0..graph.type_of(value).rank().saturating_sub(2) {
            out.insert((value, axis));
        }
    }
    out
}
