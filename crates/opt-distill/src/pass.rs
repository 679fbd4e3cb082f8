//! Distillation as a pass.

use opt_core::pass::Needs;
use opt_core::{Context, Graph, Pass, Report, Result};
use opt_train::Trainer;

use crate::SoftTargets;

/// Trains the graph as the student of the context's teacher on its training examples. All facts
/// hold: masks stay masked.
#[derive(Debug, Clone)]
pub struct Distil {
    targets: SoftTargets,
    trainer: Trainer,
}

impl Distil {
    /// Distils with soft targets; the trainer's own objective is replaced.
    pub fn new(targets: SoftTargets, trainer: Trainer) -> Distil {
        Distil { targets, trainer }
    }
}

impl Pass for Distil {
    fn name(&self) -> &str {
        "distil"
    }

    fn config(&self) -> String {
        let SoftTargets { temperature, alpha } = self.targets;
        format!("temperature = {temperature:?}\nalpha = {alpha:?}\n")
    }

    fn needs(&self) -> Needs {
        Needs::TEACHER
    }

    fn apply(&self, graph: Graph, cx: &mut Context<'_>) -> Result<(Graph, Report)> {
        let objective = self.targets.from_teacher(cx.teacher()?.clone());
        self.trainer.clone().objective(objective).fit_in(graph, cx)
    }
}
