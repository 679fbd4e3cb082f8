//! Born-again networks: generations that teach the next.

use opt_core::data::Dataset;
use opt_core::observer::Silent;
use opt_core::{Backend, Error, Graph, Observer, Result, ResultExt};
use opt_train::{History, Trainer};

use crate::Distillation;

/// Born-again networks (Furlanello, Lipton, Tschannen, Itti & Anandkumar, "Born again neural
/// networks", 2018): a student of the same architecture as its teacher, started anew, often becomes
/// better than it; then it teaches the next generation.
///
/// All generations come back, so that they can be compared, or averaged
/// ([`Distillation::from_teachers`]).
///
/// ```no_run
/// # fn network(seed: u64) -> opt_core::Result<opt_core::Graph> { unimplemented!() }
/// # fn run(
/// #     data: &dyn opt_data::Dataset,
/// #     backend: &dyn opt_core::Backend,
/// # ) -> opt_core::Result<()> {
/// use opt_distill::{BornAgain, SoftTargets};
/// use opt_train::{Adam, Constant, CrossEntropy, Trainer};
///
/// let trainer = Trainer::new(CrossEntropy, Adam::default(), Constant(1e-3)).epochs(20);
/// let (first, _) = trainer.fit(network(0)?, data, backend)?;
/// let generations = BornAgain::new(SoftTargets::default(), trainer)
///     .generations(3)
///     .fit(first, |generation| network(generation), data, backend)?;
/// let (best, _) = generations.last().unwrap();
/// # let _ = best;
/// # Ok(())
/// # }
/// ```
#[derive(Debug, Clone)]
pub struct BornAgain {
    distillation: Distillation,
    trainer: Trainer,
    generations: u64,
}

impl BornAgain {
    /// One generation, distilled with these losses; the trainer's own objective is replaced.
    pub fn new(distillation: impl Into<Distillation>, trainer: Trainer) -> BornAgain {
        BornAgain {
            distillation: distillation.into(),
            trainer,
            generations: 1,
        }
    }

    /// The number of generations after the first teacher, above 0.
    #[must_use]
    pub fn generations(mut self, generations: u64) -> BornAgain {
        self.generations = generations;
        self
    }

    /// Trains the generations. `student` makes the untrained student of a generation, counted
    /// from 1.
    ///
    /// # Errors
    /// Those of [`BornAgain::fit_with`].
    pub fn fit(
        &self,
        teacher: Graph,
        student: impl FnMut(u64) -> Result<Graph>,
        data: &dyn Dataset,
        backend: &dyn Backend,
    ) -> Result<Vec<(Graph, History)>> {
        self.fit_with(teacher, student, data, None, backend, &mut Silent)
    }

    /// Trains the generations, with a validation set and an observer. A checkpoint that the
    /// trainer writes is that of the latest generation.
    ///
    /// # Errors
    /// If there are no generations; those of `student` and of [`Trainer::fit_with`], at the
    /// generation.
    pub fn fit_with(
        &self,
        teacher: Graph,
        mut student: impl FnMut(u64) -> Result<Graph>,
        data: &dyn Dataset,
        validation: Option<&dyn Dataset>,
        backend: &dyn Backend,
        observer: &mut dyn Observer,
    ) -> Result<Vec<(Graph, History)>> {
        if self.generations == 0 {
            return Err(Error::invalid("there are no generations"));
        }
        let mut teacher = teacher;
        let mut all = Vec::new();
        for generation in 1..=self.generations {
            let mut train = || {
                let objective = self.distillation.clone().from_teacher(teacher.clone());
                let trainer = self.trainer.clone().objective(objective);
                trainer.fit_with(student(generation)?, data, validation, backend, observer)
            };
            let (graph, history) = train().at(|| format!("generation {generation}"))?;
            teacher = graph.clone();
            all.push((graph, history));
        }
        Ok(all)
    }
}
