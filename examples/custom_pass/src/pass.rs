//! A pass of our own: every ReLU becomes a snake.

use opt_core::ops::{Op, Unary, UnaryOp};
use opt_core::{Context, Graph, GraphPatch, Pass, Report, Result};

use crate::Snake;

/// Replaces every ReLU by [`Snake`]; the network wants fine-tuning afterwards.
#[derive(Debug, Clone, PartialEq)]
pub struct ReluToSnake {
    /// The frequency of the new activations.
    pub frequency: f64,
}

impl Pass for ReluToSnake {
    fn name(&self) -> &str {
        "relu_to_snake"
    }

    fn config(&self) -> String {
        format!("frequency = {:?}\n", self.frequency)
    }

    fn apply(&self, graph: Graph, _: &mut Context<'_>) -> Result<(Graph, Report)> {
        let mut patch = GraphPatch::new(graph.clone());
        let mut changed = 0;
        for (_, node) in graph.nodes() {
            let relu = Op::Unary(Unary { op: UnaryOp::Relu });
            if *node.op() == relu {
                let snake = Snake {
                    frequency: self.frequency,
                };
                let y = snake.build(&mut patch, node.inputs()[0])?;
                patch.replace(node.outputs()[0], y)?;
                changed += 1;
            }
        }
        Ok((patch.finish()?, Report::new(changed)))
    }
}
