//! Common sub-expressions.

use std::collections::HashMap;

use super::{Context, Pass, Report};
use crate::ops::Op;
use crate::{Graph, GraphPatch, Result, ValueId, ValueKind};

/// Merges nodes that apply the same op to the same values, and constants of the same content.
/// Random sources and assignments are never merged.
#[derive(Debug, Clone, Copy, Default)]
pub struct CommonSubexpressions;

impl Pass for CommonSubexpressions {
    fn name(&self) -> &str {
        "common_subexpressions"
    }

    fn apply(&self, graph: Graph, _: &mut Context<'_>) -> Result<(Graph, Report)> {
        let original = graph.clone();
        let mut patch = GraphPatch::new(graph);
        let mut same: HashMap<ValueId, ValueId> = HashMap::new();
        let mut changed = 0;
        let mut constants: HashMap<Vec<u8>, Vec<ValueId>> = HashMap::new();
        for (id, value) in original.values() {
            let ValueKind::Constant(tensor) = value.kind() else {
                continue;
            };
            let Ok(bytes) = tensor.contiguous().bytes().map(<[u8]>::to_vec) else {
                continue;
            };
            let alike = constants.entry(bytes).or_default();
            match alike.iter().find(|&&v| original.type_of(v) == value.ty()) {
                Some(&first) => {
                    same.insert(id, first);
                    patch.replace(id, first)?;
                    changed += 1;
                }
                None => alike.push(id),
            }
        }
        let mut seen: HashMap<(String, Vec<ValueId>), Vec<(Op, Vec<ValueId>)>> = HashMap::new();
        for (_, node) in original.nodes() {
            if !node.op().rules().is_deterministic() || matches!(node.op(), Op::Assign(_)) {
                continue;
            }
            let root = |v: &ValueId| same.get(v).copied().unwrap_or(*v);
            let inputs: Vec<ValueId> = node.inputs().iter().map(root).collect();
            let key = (node.op().name().to_string(), inputs);
            let alike = seen.entry(key).or_default();
            match alike.iter().find(|(op, _)| op == node.op()) {
                Some((_, outputs)) => {
                    for (&old, &first) in node.outputs().iter().zip(outputs) {
                        same.insert(old, first);
                        patch.replace(old, first)?;
                    }
                    changed += 1;
                }
                None => alike.push((node.op().clone(), node.outputs().to_vec())),
            }
        }
        Ok((patch.finish()?, Report::new(changed)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::{Distribution, Random};
    use crate::{DType, GraphBuilder, Tensor, TensorType};

    #[test]
    fn equal_nodes_merge_and_random_ones_do_not() {
        let mut b = GraphBuilder::new("g");
        let x = b.input("x", TensorType::new(DType::F32, [2])).unwrap();
        let one = b.add_scalar(x, 1.0).unwrap();
        let two = b.add_scalar(x, 1.0).unwrap();
        let (one, two) = (b.relu(one).unwrap(), b.relu(two).unwrap());
        let step = b.constant(Tensor::scalar(0i64));
        let random = Random {
            distribution: Distribution::Uniform {
                low: 0.0,
                high: 1.0,
            },
            dtype: DType::F32,
            shape: [2].into(),
            seed: 1,
        };
        let noise = [(); 2].map(|()| b.op(random.clone(), &[step]).unwrap());
        let y = b.mul(one, two).unwrap();
        let noise = b.mul(noise[0], noise[1]).unwrap();
        let y = b.add(y, noise).unwrap();
        b.output("y", y).unwrap();
        let graph = b.finish().unwrap();
        let mut cx = Context::new();
        let (merged, report) = CommonSubexpressions.apply(graph, &mut cx).unwrap();
        assert_eq!(report.changed, 3, "a constant, an addition and a ReLU");
        let names: Vec<_> = merged
            .nodes()
            .map(|(_, n)| n.op().name().to_string())
            .collect();
        assert_eq!(names.iter().filter(|n| *n == "Random").count(), 2);
        assert_eq!(names.iter().filter(|n| *n == "Relu").count(), 1);
    }
}
