//! The lottery-ticket procedure.

use std::sync::Arc;

use opt_core::pass::{Needs, Preserves};
use opt_core::{Context, Error, Event, Graph, Pass, Report, Result};

use crate::rewind::Rewind;
use crate::schedule::{Geometric, SparsitySchedule};
use crate::unstructured::UnstructuredPrune;

/// Finds a lottery ticket by iterative magnitude pruning and trains it (Frankle & Carbin 2019,
/// "The Lottery Ticket Hypothesis", strategy 1): train, prune the smallest of the trained weights,
/// put what is left back to its initial values, and again.
///
/// Each round prunes the same share of what is left, so that the last reaches the sparsity of the
/// [`UnstructuredPrune`]; another schedule can be [set](LotteryTicket::schedule). The observer is
/// told each round's sparsity as [`Event::Metrics`].
///
/// ```
/// use opt_core::{Context, Pass};
/// use opt_data::digits;
/// use opt_ndarray::NdarrayBackend;
/// use opt_prune::{LotteryTicket, Scope, UnstructuredPrune};
/// use opt_train::{Adam, Constant, CrossEntropy, FineTune, Trainer};
///
/// # fn main() -> opt_core::Result<()> {
/// let (digits, backend) = (digits()?, NdarrayBackend::new());
/// let data = &digits.train;
/// let trainer =
///     |epochs| Trainer::new(CrossEntropy, Adam::default(), Constant(1e-3)).epochs(epochs);
/// let prune = UnstructuredPrune::new(0.9).scope(Scope::Global);
/// let ticket = LotteryTicket::new(prune, FineTune(trainer(1)))
///     .rounds(2)
///     // Rewinds to the weights after a first epoch rather than to the initial ones.
///     .warmup(FineTune(trainer(1)));
///
/// let mut m = opt_core::nn::ModelBuilder::new("mlp", 0);
/// let x = m.batch("image", [1, 8, 8])?;
/// let x = m.flatten(x, 1)?;
/// let x = m.layer("fc1", opt_core::nn::Linear::new(32), x)?;
/// let x = m.relu(x)?;
/// let y = m.layer("fc2", opt_core::nn::Linear::new(10), x)?;
/// m.output("logits", y)?;
///
/// let mut cx = Context::new().with_backend(&backend).with_training(data);
/// let (trained, report) = ticket.apply(m.finish()?, &mut cx)?;
/// assert!((report.figures["sparsity"] - 0.9).abs() < 1e-3);
/// # Ok(())
/// # }
/// ```
#[derive(Debug, Clone)]
pub struct LotteryTicket {
    prune: UnstructuredPrune,
    train: Arc<dyn Pass>,
    warmup: Option<Arc<dyn Pass>>,
    schedule: Option<Arc<dyn SparsitySchedule>>,
    rounds: usize,
    untrained: bool,
}

impl LotteryTicket {
    /// One round: training, pruning to the sparsity of `prune`, rewinding to the graph that the
    /// pass is given, and training again.
    pub fn new(prune: UnstructuredPrune, train: impl Pass + 'static) -> LotteryTicket {
        LotteryTicket {
            prune,
            train: Arc::new(train),
            warmup: None,
            schedule: None,
            rounds: 1,
            untrained: false,
        }
    }

    /// The number of rounds of training, pruning and rewinding.
    #[must_use]
    pub fn rounds(mut self, rounds: usize) -> LotteryTicket {
        self.rounds = rounds;
        self
    }

    /// The sparsity after each round, instead of [`Geometric`] up to the sparsity of the pruning
    /// pass.
    #[must_use]
    pub fn schedule(mut self, schedule: impl SparsitySchedule + 'static) -> LotteryTicket {
        self.schedule = Some(Arc::new(schedule));
        self
    }

    /// Trains by another pass first, such as for a few steps, and rewinds to what that gives
    /// (Frankle et al. 2020, "Linear Mode Connectivity and the Lottery Ticket Hypothesis").
    #[must_use]
    pub fn warmup(mut self, warmup: impl Pass + 'static) -> LotteryTicket {
        self.warmup = Some(Arc::new(warmup));
        self
    }

    /// Gives the ticket with its initial or early values, without the last training.
    #[must_use]
    pub fn untrained(mut self) -> LotteryTicket {
        self.untrained = true;
        self
    }
}

impl Pass for LotteryTicket {
    fn name(&self) -> &str {
        "lottery_ticket"
    }

    fn config(&self) -> String {
        format!("{}rounds = {}\n", self.prune.config(), self.rounds)
    }

    fn needs(&self) -> Needs {
        let needs = self.train.needs().union(self.prune.needs());
        match &self.warmup {
            Some(warmup) => needs.union(warmup.needs()),
            None => needs,
        }
    }

    fn preserves(&self) -> Preserves {
        Rewind::to(&Graph::default()).preserves()
    }

    fn establishes(&self) -> Vec<opt_core::FactKind> {
        self.prune.establishes()
    }

    /// # Errors
    /// If there are 0 rounds, a sparsity is out of range, or a pass fails; the path names the
    /// round.
    fn apply(&self, graph: Graph, cx: &mut Context<'_>) -> Result<(Graph, Report)> {
        if self.rounds == 0 {
            return Err(Error::invalid("a lottery ticket of 0 rounds"));
        }
        let geometric = Geometric::new(0.0, self.prune.sparsity());
        let schedule: &dyn SparsitySchedule = match &self.schedule {
            Some(schedule) => schedule.as_ref(),
            None => &geometric?,
        };
        let start = match &self.warmup {
            Some(warmup) => warmup.apply(graph, cx).map_err(|e| e.at("warm-up"))?.0,
            None => graph,
        };
        let rewind = Rewind::to(&start);
        let mut graph = start;
        let mut report = Report::default();
        for round in 1..=self.rounds {
            let place = |e: Error| e.at(format!("round {round}"));
            let sparsity = schedule.sparsity(round as f64 / self.rounds as f64);
            let (trained, _) = self.train.apply(graph, cx).map_err(place)?;
            let prune = self.prune.with_sparsity(sparsity);
            let (pruned, step) = prune.apply(trained, cx).map_err(place)?;
            report.changed += step.changed;
            report.figures = step.figures;
            cx.emit(&Event::Metrics {
                label: format!("round {round}"),
                metrics: vec![("sparsity", report.figures["sparsity"])],
            });
            graph = rewind.apply(pruned, cx).map_err(place)?.0;
        }
        if !self.untrained {
            let (trained, step) = self.train.apply(graph, cx).map_err(|e| e.at("ticket"))?;
            graph = trained;
            report.figures.extend(step.figures);
        }
        Ok((graph, report))
    }
}
