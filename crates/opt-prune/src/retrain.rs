//! Pruning and training in turn.

use std::sync::Arc;

use opt_core::pass::Needs;
use opt_core::{Context, Error, Graph, Pass, Report, Result};

use crate::schedule::SparsitySchedule;
use crate::unstructured::UnstructuredPrune;

/// Prunes a little and trains, round by round, until the schedule's last sparsity is reached
/// (Han et al. 2015; with [`PolynomialDecay`](crate::PolynomialDecay), Zhu & Gupta 2017).
#[derive(Debug, Clone)]
pub struct PruneRetrain {
    prune: UnstructuredPrune,
    schedule: Arc<dyn SparsitySchedule>,
    rounds: usize,
    retrain: Arc<dyn Pass>,
}

impl PruneRetrain {
    /// A number of rounds of pruning to the schedule's sparsity and a training pass each; the
    /// sparsity of `prune` itself is not used.
    pub fn new(
        prune: UnstructuredPrune,
        schedule: impl SparsitySchedule + 'static,
        rounds: usize,
        retrain: impl Pass + 'static,
    ) -> PruneRetrain {
        PruneRetrain {
            prune,
            schedule: Arc::new(schedule),
            rounds,
            retrain: Arc::new(retrain),
        }
    }
}

impl Pass for PruneRetrain {
    fn name(&self) -> &str {
        "prune_retrain"
    }

    fn config(&self) -> String {
        format!("rounds = {}\n", self.rounds)
    }

    fn needs(&self) -> Needs {
        self.retrain.needs()
    }

    fn apply(&self, graph: Graph, cx: &mut Context<'_>) -> Result<(Graph, Report)> {
        if self.rounds == 0 {
            return Err(Error::invalid("pruning in 0 rounds"));
        }
        let mut graph = graph;
        let mut report = Report::default();
        for round in 1..=self.rounds {
            let sparsity = self.schedule.sparsity(round as f64 / self.rounds as f64);
            let (pruned, step) = self.prune.with_sparsity(sparsity).apply(graph, cx)?;
            report.changed += step.changed;
            report.figures = step.figures;
            let (trained, _) = self.retrain.apply(pruned, cx)?;
            graph = trained;
        }
        Ok((graph, report))
    }
}
