//! Fitted transforms one after the other.

use std::sync::Arc;

use super::{Mapped, Transform};
use crate::{Dataset, Error, Result, ResultExt, Tensor};

type FitStep = dyn Fn(&dyn Dataset, usize) -> Result<Box<dyn Transform>> + Send + Sync;

/// Transforms of one field that are fitted one after the other, each on what those before it make
/// of the training part (scikit-learn's `Pipeline`).
///
/// The pipeline itself holds no fitted numbers, so it can be fitted anew, to every fold of a
/// cross-validation say; what [`TransformPipeline::fit`] gives is a [`Transform`].
///
/// ```
/// use opt_data::{Keep, Pca, Per, Standardize, TransformPipeline, digits};
///
/// let pipeline = TransformPipeline::new()
///     .then(|train, field| Standardize::fit(train, field, Per::Feature))
///     .then(|train, field| Pca::fit(train, field, Keep::Components(16)));
/// let digits = digits()?;
/// let fitted = pipeline.fit(&digits.train, 0)?;
/// let (train, test) = (digits.train.map(0, &fitted)?, digits.test.map(0, &fitted)?);
/// assert_eq!(test.fields()[0].shape(), [360, 16]);
/// # Ok::<(), opt_core::Error>(())
/// ```
#[derive(Clone, Default)]
pub struct TransformPipeline {
    steps: Vec<Arc<FitStep>>,
}

impl std::fmt::Debug for TransformPipeline {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("TransformPipeline")
            .field("steps", &self.steps.len())
            .finish()
    }
}

impl TransformPipeline {
    /// A pipeline without steps, which changes nothing.
    pub fn new() -> TransformPipeline {
        TransformPipeline::default()
    }

    /// Adds a step at the end: a function of the training part and the index of the field that
    /// gives a fitted transform, such as `|train, field| Imputer::fit(train, field, Fill::Mean)`.
    #[must_use]
    pub fn then<T: Transform + 'static>(
        mut self,
        fit: impl Fn(&dyn Dataset, usize) -> Result<T> + Send + Sync + 'static,
    ) -> TransformPipeline {
        let step = move |train: &dyn Dataset, field: usize| -> Result<Box<dyn Transform>> {
            Ok(Box::new(fit(train, field)?))
        };
        self.steps.push(Arc::new(step));
        self
    }

    /// Fits all steps on a field of the training part. Earlier steps are applied as a later one
    /// reads, so no copy of the data set is held.
    ///
    /// # Errors
    /// Those of the step that fails, with its number from 0 in the path; if there are no steps.
    pub fn fit(&self, train: &dyn Dataset, field: usize) -> Result<FittedPipeline> {
        if self.steps.is_empty() {
            return Err(Error::invalid("a pipeline without steps"));
        }
        let mut fitted = FittedPipeline { steps: Vec::new() };
        for (i, fit) in self.steps.iter().enumerate() {
            let seen = Mapped::new(train, field, &fitted);
            let step = fit(&seen, field).at(|| format!("step {i}"))?;
            fitted.steps.push(step);
        }
        Ok(fitted)
    }
}

/// The transforms that a [`TransformPipeline`] has fitted.
#[derive(Debug)]
pub struct FittedPipeline {
    steps: Vec<Box<dyn Transform>>,
}

impl FittedPipeline {
    /// The transforms, in their order.
    pub fn steps(&self) -> impl ExactSizeIterator<Item = &dyn Transform> {
        self.steps.iter().map(|step| &**step)
    }
}

impl Transform for FittedPipeline {
    fn apply(&self, field: &Tensor) -> Result<Tensor> {
        let mut out = field.clone();
        for (i, step) in self.steps.iter().enumerate() {
            out = step.apply(&out).at(|| format!("step {i}"))?;
        }
        Ok(out)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Fill, Imputer, MinMax, Per, Robust, Score, SelectKBest, TensorDataset};

    fn data(x: &[f32], labels: &[i64]) -> TensorDataset {
        TensorDataset::with_missing(vec![
            Tensor::new([labels.len(), 2], x).unwrap(),
            Tensor::new([labels.len()], labels).unwrap(),
        ])
        .unwrap()
    }

    #[test]
    fn each_step_is_fitted_on_what_the_ones_before_make() {
        const GAP: f32 = f32::NAN;
        let train = data(&[1., GAP, GAP, 4., 5., 8.], &[0, 0, 1]);
        let test = data(&[GAP, 16.], &[0]);
        let pipeline = TransformPipeline::new()
            .then(|train, field| Imputer::fit(train, field, Fill::Mean))
            .then(|train, field| MinMax::fit(train, field, Per::Feature, (0.0, 1.0)))
            .then(|train, field| SelectKBest::fit(train, field, 1, Score::AnovaF, 1));
        let fitted = pipeline.fit(&train, 0).unwrap();
        let by_hand = {
            let imputer = Imputer::fit(&train, 0, Fill::Mean).unwrap();
            let filled = train.map(0, &imputer).unwrap();
            let scaler = MinMax::fit(&filled, 0, Per::Feature, (0.0, 1.0)).unwrap();
            let scaled = filled.map(0, &scaler).unwrap();
            let best = SelectKBest::fit(&scaled, 0, 1, Score::AnovaF, 1).unwrap();
            let test = test.map(0, &imputer).unwrap().map(0, &scaler).unwrap();
            test.map(0, &best).unwrap()
        };
        let mapped = test.map(0, &fitted).unwrap();
        assert_eq!(mapped.fields(), by_hand.fields());
        assert_eq!(fitted.steps().len(), 3);
        assert!(!mapped.has_missing());
    }

    #[test]
    fn a_failing_step_is_named() {
        let train = data(&[1., f32::NAN], &[0]);
        let pipeline = TransformPipeline::new()
            .then(|train, field| Imputer::fit(train, field, Fill::Constant(0.0)))
            .then(|train, field| Robust::fit(train, field, Per::Feature, (0.5, 0.1)));
        let error = pipeline.fit(&train, 0).unwrap_err();
        assert!(error.to_string().starts_with("step 1: expected quantiles"));
        assert!(TransformPipeline::new().fit(&train, 0).is_err());
        assert!(pipeline.fit(&train, 3).is_err());
    }
}
