//! Pruning and training in turn.

use std::sync::Arc;

use opt_core::pass::{Needs, Preserves};
use opt_core::{Context, Error, Event, Graph, Pass, Report, Result};

use crate::schedule::SparsitySchedule;
use crate::structured::ChannelPrune;
use crate::unstructured::UnstructuredPrune;

/// A pruning that can be done step by step.
pub trait GradualPrune: Pass {
    /// The pass that takes a graph pruned to the sparsity `from` on to the sparsity `to`; both
    /// are shares of the graph before any pruning.
    ///
    /// # Errors
    /// If a sparsity is not in `[0, 1]`, or this pruning is not made by a sparsity.
    fn step(&self, from: f64, to: f64) -> Result<Box<dyn Pass>>;
}

impl GradualPrune for UnstructuredPrune {
    fn step(&self, _: f64, to: f64) -> Result<Box<dyn Pass>> {
        Ok(Box::new(self.with_sparsity(to)))
    }
}

impl GradualPrune for ChannelPrune {
    /// The channels that are gone are not there to be counted: of those left a share goes that
    /// makes up the difference, rounded a layer.
    fn step(&self, from: f64, to: f64) -> Result<Box<dyn Pass>> {
        Ok(Box::new(self.between(from, to)?))
    }
}

/// Prunes a little and trains, round by round, until the schedule's last sparsity is reached
/// (Han et al. 2015; with [`PolynomialDecay`](crate::PolynomialDecay), Zhu & Gupta 2017).
///
/// A criterion that looks at data looks again in each round. A round in which the schedule asks
/// for nothing more only trains.
///
/// ```
/// use opt_core::nn::zoo;
/// use opt_core::{Context, DType, Pass, Tensor};
/// use opt_data::TensorDataset;
/// use opt_ndarray::NdarrayBackend;
/// use opt_prune::{ChannelPrune, PolynomialDecay, PruneRetrain, Taylor};
/// use opt_train::{Adam, Constant, CrossEntropy, FineTune, Trainer};
///
/// # fn main() -> opt_core::Result<()> {
/// # let data = TensorDataset::new(vec![
/// #     Tensor::full(DType::F32, [6, 8], 0.5)?,
/// #     Tensor::new([6], [0i64, 1, 2, 0, 1, 2])?,
/// # ])?;
/// let trainer = Trainer::new(CrossEntropy, Adam::default(), Constant(1e-3)).epochs(1);
/// let prune = ChannelPrune::new(0.5).criterion(Taylor::new(CrossEntropy));
/// let rounds = PruneRetrain::new(prune, PolynomialDecay::linear(0.0, 0.5)?, 3, FineTune(trainer));
///
/// let backend = NdarrayBackend::new();
/// let mut cx = Context::new().with_backend(&backend).with_training(&data);
/// let (small, _) = rounds.apply(zoo::lenet_300_100(8, 3, 0)?, &mut cx)?;
/// assert_eq!(small.type_of(small.find("fc1.weight")?).to_string(), "f32[150,8]");
/// # Ok(())
/// # }
/// ```
#[derive(Debug, Clone)]
pub struct PruneRetrain {
    prune: Arc<dyn GradualPrune>,
    schedule: Arc<dyn SparsitySchedule>,
    rounds: usize,
    retrain: Arc<dyn Pass>,
}

impl PruneRetrain {
    /// A number of rounds of pruning to the schedule's sparsity and a training pass each; the
    /// sparsity of `prune` itself is not used, but as the one that sparsities of
    /// [single layers](UnstructuredPrune::layer) are in proportion to.
    pub fn new(
        prune: impl GradualPrune + 'static,
        schedule: impl SparsitySchedule + 'static,
        rounds: usize,
        retrain: impl Pass + 'static,
    ) -> PruneRetrain {
        PruneRetrain {
            prune: Arc::new(prune),
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
        format!("{}rounds = {}\n", self.prune.config(), self.rounds)
    }

    fn needs(&self) -> Needs {
        self.retrain.needs().union(self.prune.needs())
    }

    fn preserves(&self) -> Preserves {
        self.prune.preserves()
    }

    fn establishes(&self) -> Vec<opt_core::FactKind> {
        self.prune.establishes()
    }

    /// # Errors
    /// If there are 0 rounds, a sparsity is out of range, or a pass fails; the path names the
    /// round.
    fn apply(&self, graph: Graph, cx: &mut Context<'_>) -> Result<(Graph, Report)> {
        if self.rounds == 0 {
            return Err(Error::invalid("pruning in 0 rounds"));
        }
        let mut graph = graph;
        let mut report = Report::default();
        let mut from = 0.0;
        for round in 1..=self.rounds {
            let place = |e: Error| e.at(format!("round {round}"));
            let to = self.schedule.sparsity(round as f64 / self.rounds as f64);
            let step = self.prune.step(from, to).map_err(place)?;
            let (pruned, step) = step.apply(graph, cx).map_err(place)?;
            report.changed += step.changed;
            report.figures = step.figures;
            cx.emit(&Event::Metrics {
                label: format!("round {round}"),
                metrics: vec![("sparsity", to)],
            });
            graph = self.retrain.apply(pruned, cx).map_err(place)?.0;
            from = to;
        }
        Ok((graph, report))
    }
}
