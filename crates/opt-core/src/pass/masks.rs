//! Keeping pruned entries at zero through training.

use crate::ops::Op;
use crate::{Graph, GraphPatch, Result};

/// Rewrites every assignment to a variable that carries a mask so that the new content is zero
/// where the mask is: whatever an optimizer computes, a pruned entry stays pruned.
///
/// Returns the graph and the number of assignments rewritten.
///
/// # Errors
/// If the graph is not valid afterwards.
pub fn enforce_masks(graph: Graph) -> Result<(Graph, usize)> {
    let masked: Vec<_> = graph
        .nodes()
        .filter(|(_, n)| matches!(n.op(), Op::Assign(_)))
        .filter_map(|(id, n)| {
            let mask = graph.facts().mask(n.inputs()[0])?.clone();
            Some((id, n.clone(), mask))
        })
        .collect();
    if masked.is_empty() {
        return Ok((graph, 0));
    }
    let count = masked.len();
    let mut patch = GraphPatch::new(graph);
    for (id, node, mask) in masked {
        let dtype = patch.type_of(node.inputs()[0]).dtype;
        let keep = patch.named_constant("mask", mask.cast(dtype));
        let value = patch.mul(node.inputs()[1], keep)?;
        let assigned = patch.assign(node.inputs()[0], value)?;
        patch.replace(node.outputs()[0], assigned)?;
        patch.remove_node(id);
    }
    Ok((patch.finish()?, count))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{DType, Fact, GraphBuilder, Tensor};

    #[test]
    fn only_masked_variables_are_rewritten() {
        let mut b = GraphBuilder::new("g");
        for name in ["a", "b"] {
            let v = b
                .variable(name, Tensor::zeros(DType::F32, [2]).unwrap())
                .unwrap();
            let next = b.add_scalar(v, 1.0).unwrap();
            b.assign(v, next).unwrap();
        }
        let mut graph = b.finish().unwrap();
        let a = graph.find("a").unwrap();
        let mask = Tensor::from_bools([2], [true, false]).unwrap();
        graph.facts_mut().insert(a, Fact::Mask(mask));
        let (graph, count) = enforce_masks(graph).unwrap();
        assert_eq!(count, 1);
        let muls = graph
            .nodes()
            .filter(|(_, n)| n.op().name() == "Mul")
            .count();
        let assigns = graph
            .nodes()
            .filter(|(_, n)| matches!(n.op(), Op::Assign(_)))
            .count();
        assert_eq!((muls, assigns), (1, 2));
    }
}
