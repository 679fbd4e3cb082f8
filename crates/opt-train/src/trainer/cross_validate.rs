//! Cross-validation.

use std::fmt;

use opt_core::data::Dataset;
use opt_core::observer::Silent;
use opt_core::{Backend, Error, Graph, Observer, Result, ResultExt};
use opt_data::Fold;

use super::{Epoch, History, Trainer};

/// What a fold's training gave.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct FoldResult {
    /// The trained model.
    pub model: Graph,
    /// Its training; validation figures are of the held-out part.
    pub history: History,
}

impl FoldResult {
    /// The figures of the weights that were kept: of the best epoch if the trainer keeps it, of
    /// the last one otherwise.
    pub fn kept(&self) -> Option<&Epoch> {
        let best = self.history.best;
        let epochs = &self.history.epochs;
        let best = best.and_then(|best| epochs.iter().find(|e| e.epoch == best));
        best.or(epochs.last())
    }
}

/// A figure over the folds.
#[derive(Debug, Clone, Copy, PartialEq)]
#[non_exhaustive]
pub struct Score {
    /// Mean over the folds.
    pub mean: f64,
    /// Sample standard deviation over the folds (divisor: folds - 1).
    pub std: f64,
}

/// The folds of [`Trainer::cross_validate`].
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct CrossValidation {
    /// The results, in the order of the folds.
    pub folds: Vec<FoldResult>,
}

impl CrossValidation {
    /// The loss on the held-out parts; `None` without epochs.
    pub fn loss(&self) -> Option<Score> {
        self.score(|epoch| epoch.val_loss)
    }

    /// The accuracy on the held-out parts; `None` where targets are no class indices.
    pub fn accuracy(&self) -> Option<Score> {
        self.score(|epoch| epoch.val_accuracy)
    }

    fn score(&self, of: impl Fn(&Epoch) -> Option<f64>) -> Option<Score> {
        let values: Option<Vec<f64>> = self.folds.iter().map(|f| of(f.kept()?)).collect();
        let values = values.filter(|v| !v.is_empty())?;
        let n = values.len() as f64;
        let mean = values.iter().sum::<f64>() / n;
        let squares: f64 = values.iter().map(|v| (v - mean).powi(2)).sum();
        let std = (squares / (n - 1.0).max(1.0)).sqrt();
        Some(Score { mean, std })
    }
}

impl fmt::Display for CrossValidation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} folds", self.folds.len())?;
        if let Some(Score { mean, std }) = self.loss() {
            write!(f, ", loss {mean:.4} +- {std:.4}")?;
        }
        if let Some(Score { mean, std }) = self.accuracy() {
            write!(f, ", accuracy {:.2} +- {:.2} %", mean * 100.0, std * 100.0)?;
        }
        Ok(())
    }
}

impl Trainer {
    /// Trains a model for each fold on its training part and validates it on the part that is held
    /// out.
    ///
    /// `model` gives the untrained model of a fold, by its number. A trainer that keeps the best
    /// epoch chooses it by the held-out part, which makes its figures better than they would be on
    /// new data. Scalers and the like have to be fitted to each training part on its own: where
    /// the data need them, fit [`Fold::train`] and train by [`Trainer::fit_with`] instead.
    ///
    /// ```
    /// use opt_core::nn::{Linear, ModelBuilder};
    /// use opt_data::{Scale, StratifiedKFold, digits};
    /// use opt_ndarray::NdarrayBackend;
    /// use opt_train::{Adam, Constant, CrossEntropy, Trainer};
    ///
    /// # fn main() -> opt_core::Result<()> {
    /// let data = digits()?.train.map(0, &Scale::new(1.0 / 16.0, 0.0)?)?;
    /// let folds = StratifiedKFold::new(3)?.shuffled(0).split(&data, 1)?;
    /// let linear = |fold: usize| {
    ///     let mut m = ModelBuilder::new("linear", fold as u64);
    ///     let x = m.batch("image", &[1, 8, 8])?;
    ///     let x = m.flatten(x, 1)?;
    ///     let y = m.layer("fc", Linear::new(10), x)?;
    ///     m.output("logits", y)?;
    ///     m.finish()
    /// };
    /// let trainer = Trainer::new(CrossEntropy, Adam::default(), Constant(1e-2)).epochs(3);
    /// let result = trainer.cross_validate(&folds, &data, linear, &NdarrayBackend::new())?;
    /// println!("{result}");
    /// assert!(result.accuracy().unwrap().mean > 0.85);
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// If there are no folds, and those of [`Trainer::fit_with`], with the fold in the path.
    pub fn cross_validate(
        &self,
        folds: &[Fold],
        data: &dyn Dataset,
        model: impl Fn(usize) -> Result<Graph>,
        backend: &dyn Backend,
    ) -> Result<CrossValidation> {
        self.cross_validate_with(folds, data, model, backend, &mut Silent)
    }

    /// [`Trainer::cross_validate`], telling an observer.
    ///
    /// # Errors
    /// Those of [`Trainer::cross_validate`].
    pub fn cross_validate_with(
        &self,
        folds: &[Fold],
        data: &dyn Dataset,
        model: impl Fn(usize) -> Result<Graph>,
        backend: &dyn Backend,
        observer: &mut dyn Observer,
    ) -> Result<CrossValidation> {
        if folds.is_empty() {
            return Err(Error::invalid("no folds to validate on"));
        }
        let result = |(i, fold): (usize, &Fold)| {
            let place = || format!("fold {i}");
            let (train, test) = fold.of(data).at(place)?;
            let trainer = self.clone().task(format!("{}, fold {i}", self.task));
            let (model, history) = trainer
                .fit_with(model(i).at(place)?, &train, Some(&test), backend, observer)
                .at(place)?;
            Ok(FoldResult { model, history })
        };
        let folds = folds.iter().enumerate().map(result);
        Ok(CrossValidation {
            folds: folds.collect::<Result<_>>()?,
        })
    }
}
