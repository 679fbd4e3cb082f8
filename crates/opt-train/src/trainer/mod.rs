//! The training loop.

mod cross_validate;
mod fine_tune;
mod run;

use std::path::PathBuf;
use std::sync::Arc;

pub use cross_validate::{CrossValidation, FoldResult, Score};
pub use fine_tune::FineTune;
use opt_core::data::Dataset;
use opt_core::observer::Silent;
use opt_core::pass::MixedPrecision;
use opt_core::{Backend, DType, Graph, Observer, Result};
use opt_data::Augment;
pub(crate) use run::Best;

use crate::{Clip, LossScale, Objective, Optimizer, Schedule, StepOptions};

/// The figures of an epoch.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct Epoch {
    /// Its number, 0 for the first.
    pub epoch: u64,
    /// Mean training loss.
    pub loss: f64,
    /// Mean validation loss, if there is a validation set.
    pub val_loss: Option<f64>,
    /// Share of validation labels that the largest output names, where targets are class indices.
    pub val_accuracy: Option<f64>,
}

impl Epoch {
    /// An epoch with its training loss and nothing from validation.
    pub fn new(epoch: u64, loss: f64) -> Epoch {
        Epoch {
            epoch,
            loss,
            val_loss: None,
            val_accuracy: None,
        }
    }
}

/// What happened during training.
#[derive(Debug, Clone, Default, PartialEq)]
#[non_exhaustive]
pub struct History {
    /// One entry an epoch, in order.
    pub epochs: Vec<Epoch>,
    /// The epoch whose weights were kept, if the best were kept.
    pub best: Option<u64>,
}

/// Trains graphs: shuffled batches, augmentation, a schedule, validation, early stopping,
/// checkpoints.
///
/// A run is a function of the model, the data and the seed: two runs on one backend give the
/// same weights bit for bit, and so does a run that was [resumed](Trainer::resume).
///
/// See the [crate's page](crate) for an example.
#[derive(Debug, Clone)]
pub struct Trainer {
    objective: Arc<dyn Objective>,
    optimizer: Arc<dyn Optimizer>,
    schedule: Arc<dyn Schedule>,
    augment: Option<Arc<dyn Augment>>,
    options: StepOptions,
    mixed_precision: Option<MixedPrecision>,
    epochs: u64,
    batch_size: usize,
    drop_last: bool,
    accumulate: usize,
    prefetch: usize,
    seed: u64,
    patience: Option<u64>,
    keep_best: bool,
    carry: bool,
    checkpoint: Option<PathBuf>,
    resume: Option<PathBuf>,
    task: String,
}

impl Trainer {
    /// A trainer of 10 epochs with batches of 32 and seed 0.
    pub fn new(
        objective: impl Objective + 'static,
        optimizer: impl Optimizer + 'static,
        schedule: impl Schedule + 'static,
    ) -> Trainer {
        Trainer {
            objective: Arc::new(objective),
            optimizer: Arc::new(optimizer),
            schedule: Arc::new(schedule),
            augment: None,
            options: StepOptions::default(),
            mixed_precision: None,
            epochs: 10,
            batch_size: 32,
            drop_last: false,
            accumulate: 1,
            prefetch: 0,
            seed: 0,
            patience: None,
            keep_best: false,
            carry: false,
            checkpoint: None,
            resume: None,
            task: "train".to_string(),
        }
    }

    /// Replaces the objective.
    #[must_use]
    pub fn objective(mut self, objective: impl Objective + 'static) -> Trainer {
        self.objective = Arc::new(objective);
        self
    }

    /// The number of times that every example is seen.
    #[must_use]
    pub fn epochs(mut self, epochs: u64) -> Trainer {
        self.epochs = epochs;
        self
    }

    /// The number of examples a step; the last batch of an epoch may be smaller.
    #[must_use]
    pub fn batch_size(mut self, size: usize) -> Trainer {
        self.batch_size = size;
        self
    }

    /// Leaves out an epoch's last batch where it is smaller than the others; `false` at first.
    #[must_use]
    pub fn drop_last(mut self, drop_last: bool) -> Trainer {
        self.drop_last = drop_last;
        self
    }

    /// Updates the parameters after every `batches` batches, by the mean gradient of their
    /// examples: what one batch of that many times the size gives, in the memory of one. An
    /// epoch's last update takes the batches that are left; schedules count updates. Batch
    /// normalization sees each batch alone.
    #[must_use]
    pub fn accumulate(mut self, batches: usize) -> Trainer {
        self.accumulate = batches;
        self.options.accumulate = batches > 1;
        self
    }

    /// Keeps an exponential moving average of every parameter,
    /// `decay * average + (1 - decay) * parameter` after each update, from the parameters after
    /// the first one on (PyTorch's `AveragedModel` with `get_ema_multi_avg_fn`). Validation sees
    /// the averages, and they come back; batch-norm statistics are those of the run.
    ///
    /// ```
    /// use opt_train::{AdamW, Cosine, CrossEntropy, Trainer};
    ///
    /// // Batches of 4 * 32 examples, averaged over about a hundred updates.
    /// let trainer = Trainer::new(CrossEntropy, AdamW::default(), Cosine::new(1e-3))
    ///     .batch_size(32)
    ///     .accumulate(4)
    ///     .ema(0.99);
    /// # let _ = trainer;
    /// ```
    #[must_use]
    pub fn ema(mut self, decay: f64) -> Trainer {
        self.options.ema = Some(decay);
        self
    }

    /// The seed of shuffling and augmentation.
    #[must_use]
    pub fn seed(mut self, seed: u64) -> Trainer {
        self.seed = seed;
        self
    }

    /// Reads up to `ahead` batches ahead in a thread of its own; for data sets that read files or
    /// transform as they go. 0, as at first, reads each batch when it is needed.
    #[must_use]
    pub fn prefetch(mut self, ahead: usize) -> Trainer {
        self.prefetch = ahead;
        self
    }

    /// Changes every training batch: its first input, or, as [`MixUp`](opt_data::MixUp), its
    /// targets too. Those become probabilities of classes, which
    /// [`SoftCrossEntropy`](crate::SoftCrossEntropy) takes.
    #[must_use]
    pub fn augment(mut self, augment: impl Augment + 'static) -> Trainer {
        self.augment = Some(Arc::new(augment));
        self
    }

    /// Adds `factor * sum(|w|)` over the weights to the loss.
    #[must_use]
    pub fn l1(mut self, factor: f64) -> Trainer {
        self.options.l1 = factor;
        self
    }

    /// Adds `factor * sum(w^2)` over the weights to the loss.
    #[must_use]
    pub fn l2(mut self, factor: f64) -> Trainer {
        self.options.l2 = factor;
        self
    }

    /// Adds `alpha * (l1_ratio * sum(|w|) + (1 - l1_ratio) / 2 * sum(w^2))` over the weights to
    /// the loss, as scikit-learn's `ElasticNet` has it; takes the place of [`Trainer::l1`] and
    /// [`Trainer::l2`].
    #[must_use]
    pub fn elastic_net(self, alpha: f64, l1_ratio: f64) -> Trainer {
        self.l1(alpha * l1_ratio).l2(alpha * (1.0 - l1_ratio) / 2.0)
    }

    /// Bounds the gradients.
    #[must_use]
    pub fn clip(mut self, clip: Clip) -> Trainer {
        self.options.clip = Some(clip);
        self
    }

    /// Trains, and validates, in mixed precision: products and convolutions in `bf16` or `f16`,
    /// parameters and optimizer in `f32`. The graph that comes back is the one that was given,
    /// with the trained parameters.
    ///
    /// With `f16` the loss is scaled by PyTorch's defaults, with `bf16` it is not;
    /// [`Trainer::loss_scale`] after this says otherwise.
    ///
    /// ```
    /// use opt_core::pass::MixedPrecision;
    /// use opt_train::{Adam, Constant, CrossEntropy, Trainer};
    ///
    /// let trainer = Trainer::new(CrossEntropy, Adam::default(), Constant(1e-3))
    ///     .mixed_precision(MixedPrecision::bf16().keep("head."));
    /// # let _ = trainer;
    /// ```
    #[must_use]
    pub fn mixed_precision(mut self, pass: MixedPrecision) -> Trainer {
        self.options.loss_scale = (pass.dtype() == DType::F16).then(LossScale::default);
        self.mixed_precision = Some(pass);
        self
    }

    /// Scales the loss, or does not.
    #[must_use]
    pub fn loss_scale(mut self, scale: impl Into<Option<LossScale>>) -> Trainer {
        self.options.loss_scale = scale.into();
        self
    }

    /// Does not train parameters whose names contain `pattern`.
    #[must_use]
    pub fn freeze(mut self, pattern: impl Into<String>) -> Trainer {
        self.options.frozen.push(pattern.into());
        self
    }

    /// Hands back the weights of the epoch that was best on the validation set.
    #[must_use]
    pub fn keep_best(mut self) -> Trainer {
        self.keep_best = true;
        self
    }

    /// Stops when the validation set has seen no improvement for this many epochs, and hands
    /// back the best weights.
    #[must_use]
    pub fn early_stopping(mut self, patience: u64) -> Trainer {
        self.patience = Some(patience);
        self.keep_best = true;
        self
    }

    /// Writes a checkpoint after every epoch, atomically.
    #[must_use]
    pub fn checkpoint(mut self, path: impl Into<PathBuf>) -> Trainer {
        self.checkpoint = Some(path.into());
        self
    }

    /// Goes on from a checkpoint that the same trainer wrote for the same model.
    #[must_use]
    pub fn resume(mut self, path: impl Into<PathBuf>) -> Trainer {
        self.resume = Some(path.into());
        self
    }

    /// As a pass, starts with the optimizer's state that training before it left in the
    /// [`Context`](opt_core::Context), and leaves its own there: moments and the count of steps go
    /// on, through structured pruning too. The schedule starts anew.
    ///
    /// ```
    /// use opt_train::{Adam, Constant, CrossEntropy, FineTune, Trainer};
    ///
    /// let trainer = Trainer::new(CrossEntropy, Adam::default(), Constant(1e-3)).carry_state();
    /// let pass = FineTune(trainer.epochs(2));
    /// # let _ = pass;
    /// ```
    #[must_use]
    pub fn carry_state(mut self) -> Trainer {
        self.carry = true;
        self
    }

    /// What observers are told that is being done; `train` at first.
    #[must_use]
    pub fn task(mut self, task: impl Into<String>) -> Trainer {
        self.task = task.into();
        self
    }

    /// Trains a model on a data set.
    ///
    /// # Errors
    /// Those of [`Trainer::fit_with`].
    pub fn fit(
        &self,
        model: Graph,
        data: &dyn Dataset,
        backend: &dyn Backend,
    ) -> Result<(Graph, History)> {
        self.fit_with(model, data, None, backend, &mut Silent)
    }

    /// Trains a model on a data set, with a validation set and an observer.
    ///
    /// The graph comes back in the mode it had, with the trained variables.
    ///
    /// Where the objective takes probabilities `[N, C]` of classes and the data have class indices,
    /// these become probabilities of 0 and 1.
    ///
    /// # Errors
    /// [`ErrorKind::Data`](opt_core::ErrorKind::Data) if a data set is empty, a label is out of
    /// range, the loss becomes NaN or infinite (naming the step), or the factor of a scaled loss
    /// falls to nothing; those of [`MixedPrecision::convert`]; an error if the examples do
    /// not have the model's inputs and the objective's targets, or the batch size is 0.
    pub fn fit_with(
        &self,
        model: Graph,
        data: &dyn Dataset,
        validation: Option<&dyn Dataset>,
        backend: &dyn Backend,
        observer: &mut dyn Observer,
    ) -> Result<(Graph, History)> {
        run::fit(self, model, data, validation, backend, observer, None)
    }
}
