//! Selection of features.

use super::statistics::map_rows;
use super::{Score, Transform, check_examples};
use crate::{Dataset, Error, Result, Tensor};

/// Keeps the `k` features with the highest scores, in their order (scikit-learn's `SelectKBest`).
/// A field `[N, ..shape]` becomes `[N, k]`.
///
/// Of features with equal scores the later ones are kept; those whose score is NaN come last.
///
/// ```
/// use opt_data::{Score, SelectKBest, digits};
///
/// let digits = digits()?;
/// let best = SelectKBest::fit(&digits.train, 0, 1, Score::AnovaF, 20)?;
/// let test = digits.test.map(0, &best)?;
/// assert_eq!(test.fields()[0].shape(), [360, 20]);
/// # Ok::<(), opt_core::Error>(())
/// ```
#[derive(Debug, Clone, PartialEq)]
pub struct SelectKBest {
    indices: Vec<usize>,
    scores: Vec<f64>,
    shape: Vec<usize>,
}

impl SelectKBest {
    /// Scores the elements of a field by the class labels of another, on the training part.
    ///
    /// # Errors
    /// As [`Score::of`]; if `k` is 0 or more than there are features.
    pub fn fit(
        train: &dyn Dataset,
        field: usize,
        label_field: usize,
        score: Score,
        k: usize,
    ) -> Result<SelectKBest> {
        let (scores, shape) = score.of(train, field, label_field)?;
        if k == 0 || k > scores.len() {
            return Err(Error::invalid(format!(
                "expected to keep 1 to {} features, found {k}",
                scores.len()
            )));
        }
        let rank = |i: &usize| match scores[*i] {
            nan if nan.is_nan() => f64::NEG_INFINITY,
            score => score,
        };
        let mut indices: Vec<usize> = (0..scores.len()).collect();
        indices.sort_by(|a, b| rank(a).total_cmp(&rank(b)));
        let mut indices = indices.split_off(scores.len() - k);
        indices.sort_unstable();
        Ok(SelectKBest {
            indices,
            scores,
            shape,
        })
    }

    /// The positions of the features that are kept, among the elements of an example in row-major
    /// order, ascending.
    pub fn indices(&self) -> &[usize] {
        &self.indices
    }

    /// The scores of all features.
    pub fn scores(&self) -> &[f64] {
        &self.scores
    }
}

impl Transform for SelectKBest {
    fn apply(&self, field: &Tensor) -> Result<Tensor> {
        check_examples(field, &self.shape)?;
        map_rows(
            field,
            self.scores.len(),
            &[self.indices.len()],
            |from, to| {
                for (to, &i) in to.iter_mut().zip(&self.indices) {
                    *to = from[i];
                }
                Ok(())
            },
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::TensorDataset;

    #[test]
    fn the_best_are_kept_in_order() {
        // Scores of the class, a constant, noise, and twice the class.
        let x = [
            0f32, 1., 0., 0., 0., 1., 1., 0., 1., 1., 0., 2., 1., 1., 1., 2.,
        ];
        let data = TensorDataset::new(vec![
            Tensor::new([4, 2, 2], x).unwrap(),
            Tensor::new([4], [0i64, 0, 1, 1]).unwrap(),
        ])
        .unwrap();
        let fit = |k| SelectKBest::fit(&data, 0, 1, Score::MutualInformation, k);
        assert_eq!(fit(2).unwrap().indices(), [0, 3]);
        // Ties go to the later one.
        assert_eq!(fit(1).unwrap().indices(), [3]);
        assert_eq!(fit(3).unwrap().indices(), [0, 2, 3]);
        let kept = data.map(0, &fit(2).unwrap()).unwrap();
        assert_eq!(kept.fields()[0].shape(), [4, 2]);
        assert_eq!(kept.fields()[0].to_f64s(), [0., 0., 0., 0., 1., 2., 1., 2.]);
        // A constant has no F: it comes last, even after noise.
        let f = SelectKBest::fit(&data, 0, 1, Score::AnovaF, 3).unwrap();
        assert_eq!(f.indices(), [0, 2, 3]);
        assert!(fit(0).is_err() && fit(5).is_err());
        let flat = Tensor::new([1, 4], [0f32; 4]).unwrap();
        assert!(f.apply(&flat).is_err());
    }
}
