//! Switching batch normalization and dropout between training and evaluation.

use std::collections::HashSet;

use crate::ops::{BatchNorm, Dropout, Op};
use crate::{
    Context, Graph, GraphBuilder, GraphPatch, Node, Pass, Report, Result, Tensor, ValueId,
    ValueKind,
};

/// The variable that counts runs for random ops; see [`TrainMode`].
pub const RNG_STEP: &str = "rng.step";

/// Switches batch normalization and dropout to training.
///
/// Batch normalization then uses the statistics of the batch and assigns the running ones;
/// dropout drops, by a counter variable [`RNG_STEP`] that each run increments. A graph without
/// either is left as it is.
///
/// ```
/// use opt_core::nn::zoo;
/// use opt_core::pass::{EvalMode, TrainMode};
/// use opt_core::{Context, Pass};
///
/// let mut cx = Context::new();
/// let model = zoo::resnet20([3, 32, 32], 10, 0)?;
/// let (training, report) = TrainMode.apply(model, &mut cx)?;
/// // One for each of the 19 batch normalizations.
/// assert_eq!(report.changed, 19);
/// let (_, report) = EvalMode.apply(training, &mut cx)?;
/// assert_eq!(report.changed, 19);
/// # Ok::<(), opt_core::Error>(())
/// ```
#[derive(Debug, Clone, Copy, Default)]
pub struct TrainMode;

/// Switches batch normalization and dropout to evaluation: the reverse of [`TrainMode`].
#[derive(Debug, Clone, Copy, Default)]
pub struct EvalMode;

/// The nodes that were put in the place of others, by their first outputs, with the names that
/// those had.
#[derive(Debug, Default)]
struct Renamed(Vec<(ValueId, String, String)>);

impl Renamed {
    fn push(&mut self, patch: &GraphPatch, old: &Node, new: ValueId) {
        let value = patch.graph().value(old.outputs()[0]).name().to_string();
        self.0.push((new, old.name().to_string(), value));
    }

    /// Gives the nodes and values the names, which the patch has freed: a layer is called the
    /// same in both modes.
    fn apply(self, graph: Graph) -> Result<Graph> {
        let mut b = GraphBuilder::extend(graph);
        for (new, node, value) in self.0 {
            let Some((id, _)) = b.graph().get(new).and_then(|_| b.graph().producer(new)) else {
                continue;
            };
            b.rename_node(id, &node);
            b.rename(new, &value)?;
        }
        Ok(b.into_graph())
    }
}

impl TrainMode {
    /// Applies the switch without a context.
    ///
    /// # Errors
    /// If the graph is not valid afterwards.
    pub fn switch(graph: Graph) -> Result<(Graph, usize)> {
        let nodes: Vec<_> = graph.nodes().map(|(_, n)| n.clone()).collect();
        let mut patch = GraphPatch::new(graph);
        let mut changed = 0;
        let mut renamed = Renamed::default();
        let mut step: Option<ValueId> = None;
        for node in nodes {
            match node.op() {
                Op::BatchNorm(op) if !op.training => {
                    let op = BatchNorm {
                        training: true,
                        ..op.clone()
                    };
                    let out = patch.named_node(node.name(), op, node.inputs())?;
                    patch.replace(node.outputs()[0], out[0])?;
                    renamed.push(&patch, &node, out[0]);
                    for (i, value) in [(3, out[1]), (4, out[2])] {
                        let running = node.inputs()[i];
                        let kind = patch.graph().value(running).kind();
                        if matches!(kind, ValueKind::Variable(_)) {
                            patch.assign(running, value)?;
                        }
                    }
                    changed += 1;
                }
                Op::Dropout(op) if !op.training => {
                    let counter = match step {
                        Some(v) => v,
                        None => match patch.graph().find(RNG_STEP) {
                            Ok(v) => v,
                            Err(_) => patch.variable(RNG_STEP, Tensor::scalar(0i64))?,
                        },
                    };
                    step = Some(counter);
                    let op = Dropout {
                        training: true,
                        ..op.clone()
                    };
                    let inputs = [node.inputs()[0], counter];
                    let out = patch.named_node(node.name(), op, &inputs)?;
                    patch.replace(node.outputs()[0], out[0])?;
                    renamed.push(&patch, &node, out[0]);
                    changed += 1;
                }
                _ => {}
            }
        }
        if let Some(counter) = step {
            let next = patch.add_scalar(counter, 1.0)?;
            patch.assign(counter, next)?;
        }
        Ok((renamed.apply(patch.finish()?)?, changed))
    }
}

impl EvalMode {
    /// Applies the switch without a context.
    ///
    /// # Errors
    /// If the graph is not valid afterwards.
    pub fn switch(graph: Graph) -> Result<(Graph, usize)> {
        let nodes: Vec<_> = graph.nodes().map(|(id, n)| (id, n.clone())).collect();
        let mut patch = GraphPatch::new(graph);
        let mut changed = 0;
        let mut renamed = Renamed::default();
        let mut statistics: HashSet<ValueId> = HashSet::new();
        let mut counters: HashSet<ValueId> = HashSet::new();
        for (_, node) in &nodes {
            match node.op() {
                Op::BatchNorm(op) if op.training => {
                    let op = BatchNorm {
                        training: false,
                        ..op.clone()
                    };
                    let out = patch.named_node(node.name(), op, node.inputs())?;
                    patch.replace(node.outputs()[0], out[0])?;
                    renamed.push(&patch, node, out[0]);
                    statistics.extend(&node.outputs()[1..3]);
                    changed += 1;
                }
                Op::Dropout(op) if op.training => {
                    let op = Dropout {
                        training: false,
                        ..op.clone()
                    };
                    let out = patch.named_node(node.name(), op, &node.inputs()[..1])?;
                    patch.replace(node.outputs()[0], out[0])?;
                    renamed.push(&patch, node, out[0]);
                    counters.insert(node.inputs()[1]);
                    changed += 1;
                }
                _ => {}
            }
        }
        for (id, node) in &nodes {
            if matches!(node.op(), Op::Assign(_))
                && (statistics.contains(&node.inputs()[1]) || counters.contains(&node.inputs()[0]))
            {
                patch.remove_node(*id);
            }
        }
        Ok((renamed.apply(patch.finish()?)?, changed))
    }
}

impl Pass for TrainMode {
    fn name(&self) -> &str {
        "train_mode"
    }

    fn apply(&self, graph: Graph, _: &mut Context<'_>) -> Result<(Graph, Report)> {
        let (graph, changed) = TrainMode::switch(graph)?;
        Ok((graph, Report::new(changed)))
    }
}

impl Pass for EvalMode {
    fn name(&self) -> &str {
        "eval_mode"
    }

    fn apply(&self, graph: Graph, _: &mut Context<'_>) -> Result<(Graph, Report)> {
        let (graph, changed) = EvalMode::switch(graph)?;
        Ok((graph, Report::new(changed)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{DType, GraphBuilder, TensorType};

    fn model() -> Graph {
        let mut b = GraphBuilder::new("m");
        let x = b.input("x", TensorType::new(DType::F32, [4, 3])).unwrap();
        let [scale, bias, mean, var] = ["scale", "bias", "mean", "var"].map(|name| {
            let one = Tensor::full(DType::F32, [3], 1.0).unwrap();
            b.variable(name, one).unwrap()
        });
        let y = b.batch_norm(x, scale, bias, mean, var, 1e-5).unwrap();
        let y = b.dropout(y, 0.5, 1).unwrap();
        let y = b.dropout(y, 0.5, 2).unwrap();
        b.output("y", y).unwrap();
        b.finish().unwrap()
    }

    #[test]
    fn training_assigns_statistics_and_counts_runs_once() {
        let (graph, changed) = TrainMode::switch(model()).unwrap();
        assert_eq!(changed, 3);
        let assigned = |g: &Graph| {
            let assigns = g.nodes().filter(|(_, n)| matches!(n.op(), Op::Assign(_)));
            let mut names: Vec<String> = assigns
                .map(|(_, n)| g.value(n.inputs()[0]).name().to_string())
                .collect();
            names.sort();
            names
        };
        assert_eq!(assigned(&graph), ["mean", RNG_STEP, "var"]);
        let (graph, changed) = EvalMode::switch(graph).unwrap();
        assert_eq!(changed, 3);
        assert!(assigned(&graph).is_empty());
        assert_eq!(graph.nodes().count(), 3);
        assert_eq!(TrainMode::switch(graph).unwrap().1, 3);
    }

    #[test]
    fn layers_keep_their_names() {
        let names = |g: &Graph| {
            let mut names: Vec<(String, String)> = Vec::new();
            for (_, n) in g.nodes() {
                if matches!(n.op(), Op::BatchNorm(_) | Op::Dropout(_)) {
                    let value = g.value(n.outputs()[0]).name();
                    names.push((n.name().to_string(), value.to_string()));
                }
            }
            names
        };
        let graph = model();
        let (training, _) = TrainMode::switch(graph.clone()).unwrap();
        assert_eq!(names(&training), names(&graph));
        let (back, _) = EvalMode::switch(training).unwrap();
        assert_eq!(names(&back), names(&graph));
    }
}
