//! Training as a pass.

use opt_core::{Context, Event, Graph, Observer, Pass, Report, Result};

use super::{Trainer, run};
use opt_core::pass::Needs;

/// Trains the graph on the context's training examples: fine-tuning after pruning, or the inner
/// training of quantization-aware training. All facts hold.
#[derive(Debug, Clone)]
pub struct FineTune(
    /// The trainer.
    pub Trainer,
);

/// Hands events on to a context.
struct Through<'a, 'b>(&'a mut Context<'b>);

impl Observer for Through<'_, '_> {
    fn event(&mut self, event: &Event) {
        self.0.emit(event);
    }
}

impl Trainer {
    /// Trains on a context's data and backend, telling its observer: what passes that train
    /// call.
    ///
    /// # Errors
    /// Those of [`Trainer::fit_with`], and if the context has no training data or backend.
    pub fn fit_in(&self, graph: Graph, cx: &mut Context<'_>) -> Result<(Graph, Report)> {
        let (backend, data, validation) = (cx.backend()?, cx.training()?, cx.validation());
        let mut state = self.carry.then(|| std::mem::take(cx.state_mut()));
        let fitted = run::fit(
            self,
            graph,
            data,
            validation,
            backend,
            &mut Through(cx),
            state.as_mut(),
        );
        if let Some(state) = state {
            *cx.state_mut() = state;
        }
        let (graph, history) = fitted?;
        let mut report = Report::new(graph.parameters().len());
        if let Some(last) = history.epochs.last() {
            report = report.figure("loss", last.loss);
            if let Some(accuracy) = last.val_accuracy {
                report = report.figure("val_accuracy", accuracy);
            }
        }
        Ok((graph, report.figure("epochs", history.epochs.len() as f64)))
    }
}

impl Pass for FineTune {
    fn name(&self) -> &str {
        "fine_tune"
    }

    fn config(&self) -> String {
        let mut text = format!(
            "epochs = {}\nbatch_size = {}\nseed = {}\n",
            self.0.epochs, self.0.batch_size, self.0.seed
        );
        if let Some(pass) = &self.0.mixed_precision {
            let table = pass.config().trim().replace('\n', ", ");
            text += &format!("mixed_precision = {{ {table} }}\n");
        }
        text
    }

    fn needs(&self) -> Needs {
        Needs::TRAINING
    }

    fn apply(&self, graph: Graph, cx: &mut Context<'_>) -> Result<(Graph, Report)> {
        self.0.fit_in(graph, cx)
    }
}
