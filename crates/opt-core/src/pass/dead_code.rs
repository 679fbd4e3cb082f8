//! Removing what nothing depends on.

use super::{Context, Pass, Report};
use crate::{Graph, Result};

/// Removes nodes, constants and variables that no output and no assignment depends on. Inputs
/// stay.
#[derive(Debug, Clone, Copy, Default)]
pub struct DeadCode;

impl Pass for DeadCode {
    fn name(&self) -> &str {
        "dead_code"
    }

    fn apply(&self, graph: Graph, _: &mut Context<'_>) -> Result<(Graph, Report)> {
        let mut graph = graph;
        let before = graph.values().count();
        let nodes = graph.remove_dead(true);
        let values = before - graph.values().count();
        Ok((
            graph,
            Report::new(values).figure("nodes removed", nodes as f64),
        ))
    }
}
