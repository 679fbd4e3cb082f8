//! Distillation as a pass.

use std::sync::Arc;

use opt_core::pass::Needs;
use opt_core::{Context, Graph, Pass, Report, Result};
use opt_train::{FineTune, Trainer};

use crate::Distillation;

/// Trains the graph as the student of the context's teacher on its training examples. All facts
/// hold: masks stay masked.
///
/// ```
/// use opt_distill::{Distil, Distillation, Dkd};
/// use opt_train::{Adam, Constant, CrossEntropy, Trainer};
///
/// let distillation = Distillation::new()
///     .logits(1.0, Dkd::default())
///     .labels(1.0, CrossEntropy);
/// let trainer = Trainer::new(CrossEntropy, Adam::default(), Constant(1e-3));
/// let pass = Distil::new(distillation, trainer);
/// # let _ = pass;
/// ```
#[derive(Debug, Clone)]
pub struct Distil {
    distillation: Distillation,
    teachers: Vec<(f64, Arc<Graph>)>,
    trainer: Trainer,
}

impl Distil {
    /// Distils with these losses; the trainer's own objective is replaced.
    pub fn new(distillation: impl Into<Distillation>, trainer: Trainer) -> Distil {
        Distil {
            distillation: distillation.into(),
            teachers: Vec::new(),
            trainer,
        }
    }

    /// Learns from these teachers, with their weights in the average, instead of the context's.
    #[must_use]
    pub fn teachers(mut self, teachers: impl IntoIterator<Item = (f64, Graph)>) -> Distil {
        let shared = |(weight, graph)| (weight, Arc::new(graph));
        self.teachers = teachers.into_iter().map(shared).collect();
        self
    }
}

impl Pass for Distil {
    fn name(&self) -> &str {
        "distil"
    }

    fn config(&self) -> String {
        let mut text = self.distillation.config();
        for (weight, teacher) in &self.teachers {
            text += "[[teachers]]\n";
            text += &format!("weight = {weight:?}\ngraph = {:?}\n", teacher.name());
        }
        text += "[trainer]\n";
        text + &FineTune(self.trainer.clone()).config()
    }

    fn needs(&self) -> Needs {
        match self.teachers.is_empty() {
            true => Needs::TEACHER,
            false => Needs::TRAINING,
        }
    }

    fn apply(&self, graph: Graph, cx: &mut Context<'_>) -> Result<(Graph, Report)> {
        let teachers = match self.teachers.is_empty() {
            true => vec![(1.0, Arc::new(cx.teacher()?.clone()))],
            false => self.teachers.clone(),
        };
        let objective = self.distillation.clone().taught_by(teachers);
        self.trainer.clone().objective(objective).fit_in(graph, cx)
    }
}
