//! Constant folding.

use std::collections::HashSet;

use super::{Context, Needs, Pass, Report};
use crate::ops::Op;
use crate::{Graph, GraphPatch, Result, ResultExt, ValueId, ValueKind};

/// Replaces what depends on constants only by its value, computed by the context's backend.
///
/// Never through a variable, a random source or an assignment; and not where the result is over
/// a mebibyte larger than what it is made from, such as an expansion.
#[derive(Debug, Clone, Copy, Default)]
pub struct FoldConstants;

/// Growth in bytes up to which a value is folded.
const GROWTH: usize = 1 << 20;

impl Pass for FoldConstants {
    fn name(&self) -> &str {
        "fold_constants"
    }

    fn needs(&self) -> Needs {
        Needs::BACKEND
    }

    fn apply(&self, graph: Graph, cx: &mut Context<'_>) -> Result<(Graph, Report)> {
        let backend = cx.backend()?;
        let bytes = |v: ValueId| -> Option<usize> {
            let ty = graph.type_of(v);
            Some(ty.dtype.bytes(ty.shape.len().ok()?))
        };
        let mut known: HashSet<ValueId> = graph
            .values()
            .filter(|(_, v)| matches!(v.kind(), ValueKind::Constant(_)))
            .map(|(id, _)| id)
            .collect();
        let constants = known.clone();
        for (_, node) in graph.nodes() {
            let pure = node.op().rules().is_deterministic() && !matches!(node.op(), Op::Assign(_));
            let sizes = |ids: &[ValueId]| ids.iter().map(|&v| bytes(v)).sum::<Option<usize>>();
            let small = match (sizes(node.inputs()), sizes(node.outputs())) {
                (Some(from), Some(to)) => to <= from + GROWTH,
                _ => false,
            };
            if pure && small && node.inputs().iter().all(|v| known.contains(v)) {
                known.extend(node.outputs());
            }
        }
        // Only what something that stays reads is worth computing.
        let mut wanted: Vec<ValueId> = graph.outputs().collect();
        for (_, node) in graph.nodes() {
            if !node.outputs().iter().all(|v| known.contains(v)) {
                wanted.extend(node.inputs());
            }
        }
        wanted.retain(|v| known.contains(v) && !constants.contains(v));
        wanted.sort_unstable();
        wanted.dedup();
        if wanted.is_empty() {
            return Ok((graph, Report::new(0)));
        }
        let outputs: Vec<(String, ValueId)> = wanted
            .iter()
            .map(|&v| (graph.value(v).name().to_string(), v))
            .collect();
        let mut part = graph.extract(&outputs, false)?;
        // The part reads constants only; inputs that it does not read need not be given.
        part.clear_inputs();
        let values = backend.run_once(&part, &[]).at(|| "folding constants")?;
        let mut patch = GraphPatch::new(graph);
        for (&old, tensor) in wanted.iter().zip(values) {
            let new = patch.named_constant("folded", tensor);
            patch.replace(old, new)?;
        }
        Ok((patch.finish()?, Report::new(wanted.len())))
    }
}
