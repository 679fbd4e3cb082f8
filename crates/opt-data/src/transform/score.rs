//! How much a feature tells about the class.

use std::collections::BTreeMap;

use super::statistics::{Missing, Moments, each_batch};
use crate::{Dataset, Error, ErrorKind, Result, ResultExt, class_labels};

/// A score of each feature of a classification task; higher is more telling.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Score {
    /// The chi-squared statistic of sums by class, for counts and other features that are not
    /// negative (scikit-learn's `chi2`): `sum over classes of (observed - expected)^2 / expected`.
    /// NaN where a feature is 0 everywhere.
    ChiSquared,
    /// Mutual information in nats of feature and class, for features of few distinct values
    /// (scikit-learn's `mutual_info_classif` with `discrete_features=True`). Equal values are
    /// equal categories; continuous features have to be binned first.
    MutualInformation,
    /// The F statistic of a one-way analysis of variance (Fisher 1925; scikit-learn's `f_classif`):
    /// variance between classes over variance within them, each by its degrees of freedom.
    /// Infinite where only the class makes a difference, NaN for a constant.
    AnovaF,
}

impl Score {
    /// The score of each element of an example of an `f32` field, by the `i64` class labels of
    /// another, and the shape of an example.
    ///
    /// # Errors
    /// As [`Standardize::fit`](crate::Standardize::fit) and [`class_labels`]; [`ErrorKind::Data`]
    /// if there is a single class, for [`Score::ChiSquared`] if a value is negative, for
    /// [`Score::AnovaF`] if there are not more examples than classes.
    pub fn of(
        self,
        data: &dyn Dataset,
        field: usize,
        label_field: usize,
    ) -> Result<(Vec<f64>, Vec<usize>)> {
        let labels = class_labels(data, label_field)?;
        let mut sizes: BTreeMap<i64, usize> = BTreeMap::new();
        for &label in &labels {
            *sizes.entry(label).or_default() += 1;
        }
        if sizes.len() < 2 {
            let message = format!("expected at least two classes, found {}", sizes.len());
            return Err(Error::new(ErrorKind::Data, message).at(format!("field {label_field}")));
        }
        let names: BTreeMap<i64, usize> = sizes.keys().copied().zip(0..).collect();
        let task = Task {
            data,
            field,
            labels: labels.iter().map(|label| names[label]).collect(),
            sizes: sizes.into_values().collect(),
        };
        match self {
            Score::ChiSquared => task.chi_squared(),
            Score::MutualInformation => task.mutual_information(),
            Score::AnovaF => task.anova(),
        }
    }
}

/// A field, and the class of each example as an index.
struct Task<'a> {
    data: &'a dyn Dataset,
    field: usize,
    labels: Vec<usize>,
    /// Examples of each class.
    sizes: Vec<usize>,
}

impl Task<'_> {
    /// Calls `visit` with class, element and value; `sums` has an entry for each class and element.
    fn fold<T: Clone + Default>(
        &self,
        visit: impl Fn(&mut T, f32) -> Result<()>,
    ) -> Result<(Vec<T>, Vec<usize>)> {
        let mut state: Vec<T> = Vec::new();
        let shape = each_batch(
            self.data,
            self.field,
            Missing::Refused,
            |start, x, example| {
                let width: usize = example.iter().product();
                state.resize(width * self.sizes.len(), T::default());
                for (i, row) in x.chunks_exact(width).enumerate() {
                    let class = &mut state[self.labels[start + i] * width..][..width];
                    for (e, (state, &value)) in class.iter_mut().zip(row).enumerate() {
                        visit(state, value)
                            .at(|| format!("element {e}"))
                            .at(|| format!("row {}", start + i))?;
                    }
                }
                Ok(())
            },
        )?;
        Ok((state, shape))
    }

    fn chi_squared(&self) -> Result<(Vec<f64>, Vec<usize>)> {
        let (sums, shape) = self.fold(|sum: &mut f64, value| {
            if value < 0.0 {
                let message = format!("{value} is negative, which chi-squared does not take");
                return Err(Error::new(ErrorKind::Data, message));
            }
            *sum += f64::from(value);
            Ok(())
        })?;
        let width: usize = shape.iter().product();
        let n = self.labels.len() as f64;
        let score = |e: usize| {
            let observed = || (0..self.sizes.len()).map(|c| sums[c * width + e]);
            let total: f64 = observed().sum();
            let terms = observed().zip(&self.sizes).map(|(observed, &size)| {
                let expected = total * size as f64 / n;
                (observed - expected).powi(2) / expected
            });
            terms.sum()
        };
        Ok(((0..width).map(score).collect(), shape))
    }

    fn anova(&self) -> Result<(Vec<f64>, Vec<usize>)> {
        let (n, classes) = (self.labels.len(), self.sizes.len());
        if n <= classes {
            return Err(Error::new(
                ErrorKind::Data,
                format!("expected more examples than classes, found {n} and {classes}"),
            ));
        }
        let (moments, shape) = self.fold(|moments: &mut Moments, value| {
            moments.push(f64::from(value));
            Ok(())
        })?;
        let width: usize = shape.iter().product();
        let score = |e: usize| {
            let of = |c: usize| &moments[c * width + e];
            let sum: f64 = (0..classes).map(|c| of(c).mean * of(c).count).sum();
            let mean = sum / n as f64;
            let (mut between, mut within) = (0.0, 0.0);
            for c in 0..classes {
                between += of(c).count * (of(c).mean - mean).powi(2);
                within += of(c).squares;
            }
            // The mean of equal means is not always equal to them.
            if within == 0.0 && (1..classes).all(|c| of(c).mean == of(0).mean) {
                return f64::NAN;
            }
            (between / (classes - 1) as f64) / (within / (n - classes) as f64)
        };
        Ok(((0..width).map(score).collect(), shape))
    }

    fn mutual_information(&self) -> Result<(Vec<f64>, Vec<usize>)> {
        let classes = self.sizes.len();
        // Counts of values by class: -0 is 0, and the order makes sums reproducible.
        let (tables, shape) = self.fold(|table: &mut BTreeMap<u32, usize>, value| {
            *table.entry((value + 0.0).to_bits()).or_default() += 1;
            Ok(())
        })?;
        let width: usize = shape.iter().product();
        let n = self.labels.len() as f64;
        let score = |e: usize| {
            let mut totals: BTreeMap<u32, usize> = BTreeMap::new();
            for class in 0..classes {
                for (&value, &count) in &tables[class * width + e] {
                    *totals.entry(value).or_default() += count;
                }
            }
            let mut sum = 0.0;
            for (class, &size) in self.sizes.iter().enumerate() {
                for (value, &count) in &tables[class * width + e] {
                    let joint = count as f64 / n;
                    let independent = size as f64 / n * (totals[value] as f64 / n);
                    sum += joint * (joint / independent).ln();
                }
            }
            // It is not negative but for rounding.
            f64::max(sum, 0.0)
        };
        Ok(((0..width).map(score).collect(), shape))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Tensor, TensorDataset};

    fn data(width: usize, x: &[f32], labels: &[i64]) -> TensorDataset {
        TensorDataset::new(vec![
            Tensor::new([labels.len(), width], x).unwrap(),
            Tensor::new([labels.len()], labels).unwrap(),
        ])
        .unwrap()
    }

    #[test]
    fn scikit_learns_example_of_chi_squared() {
        let x = [
            1., 1., 3., 0., 1., 5., 5., 4., 1., 6., 6., 2., 1., 4., 0., 0., 0., 0.,
        ];
        let data = data(3, &x, &[1, 1, 0, 0, 2, 2]);
        let (scores, shape) = Score::ChiSquared.of(&data, 0, 1).unwrap();
        assert_eq!(shape, [3]);
        for (found, expected) in scores.iter().zip([15.3846, 6.5, 8.9090]) {
            assert!((found - expected).abs() < 1e-4, "{scores:?}");
        }
    }

    #[test]
    fn features_that_tell_all_or_nothing() {
        // The class itself, its negation shifted, a constant, noise independent of it.
        let x = [
            0., 5., 0.1, 0., 0., 5., 0.1, 1., 1., 3., 0.1, 0., 1., 3., 0.1, 1.,
        ];
        let data = data(4, &x, &[4, 4, 9, 9]);
        let (information, _) = Score::MutualInformation.of(&data, 0, 1).unwrap();
        let ln2 = std::f64::consts::LN_2;
        for (found, expected) in information.iter().zip([ln2, ln2, 0.0, 0.0]) {
            assert!((found - expected).abs() < 1e-12, "{information:?}");
        }
        let (f, _) = Score::AnovaF.of(&data, 0, 1).unwrap();
        assert_eq!(f[..2], [f64::INFINITY; 2]);
        assert!(f[2].is_nan());
        assert_eq!(f[3], 0.0);
        let zero = TensorDataset::new(vec![
            Tensor::new([2, 1], [0f32; 2]).unwrap(),
            Tensor::new([2], [0i64, 1]).unwrap(),
        ])
        .unwrap();
        assert!(Score::ChiSquared.of(&zero, 0, 1).unwrap().0[0].is_nan());
    }

    #[test]
    fn bad_input_is_an_error() {
        let negative = data(1, &[1., -2.], &[0, 1]);
        let error = Score::ChiSquared.of(&negative, 0, 1).unwrap_err();
        assert_eq!(
            error.to_string(),
            "field 0: row 1: element 0: -2 is negative, which chi-squared does not take"
        );
        let error = Score::AnovaF.of(&negative, 0, 1).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Data);
        let one = data(1, &[1., 2.], &[3, 3]);
        let error = Score::MutualInformation.of(&one, 0, 1).unwrap_err();
        assert_eq!(
            error.to_string(),
            "field 1: expected at least two classes, found 1"
        );
        assert!(Score::AnovaF.of(&negative, 2, 1).is_err());
        assert!(Score::AnovaF.of(&negative, 0, 2).is_err());
    }
}
