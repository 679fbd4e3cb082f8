//! Values far from the others: found, removed or clipped.

use super::statistics::{Moments, columns, for_each, quantile};
use super::{Per, Transform, check_examples};
use crate::{Dataset, Error, ErrorKind, Result, ResultExt, Tensor, TensorDataset};

/// Bounds by element of an example, fitted on the training part: a value outside is an outlier.
///
/// [`Outliers::mask`] tells where outliers are, [`Outliers::remove`] leaves out examples that have
/// one, and as a [`Transform`] it clips values to the bounds. A missing value (NaN) is no outlier.
///
/// ```
/// use opt_core::Tensor;
/// use opt_data::{Dataset, Outliers, TensorDataset};
///
/// let x = Tensor::new([6, 1], [1f32, 2., 3., 4., 5., 100.])?;
/// let train = TensorDataset::new(vec![x])?;
/// let outliers = Outliers::iqr(&train, 0, 1.5)?;
/// assert_eq!(outliers.remove(&train)?.len(), 5);
/// let clipped = train.map(0, &outliers)?;
/// assert_eq!(clipped.fields()[0].to_f64s(), [1.0, 2.0, 3.0, 4.0, 5.0, 8.5]);
/// # Ok::<(), opt_core::Error>(())
/// ```
#[derive(Debug, Clone, PartialEq)]
pub struct Outliers {
    low: Vec<f64>,
    high: Vec<f64>,
    shape: Vec<usize>,
    field: usize,
}

impl Outliers {
    /// Bounds `mean - threshold * std` and `mean + threshold * std`, with the population standard
    /// deviation: outside, the z-score's magnitude is above the threshold, often 3.
    ///
    /// In a constant feature every other value is an outlier.
    ///
    /// # Errors
    /// As [`Standardize::fit`](crate::Standardize::fit); if the threshold is not above 0 and
    /// finite.
    pub fn z_score(train: &dyn Dataset, field: usize, threshold: f64) -> Result<Outliers> {
        check_positive("threshold", threshold)?;
        let mut moments: Vec<Moments> = Vec::new();
        let shape = for_each(train, field, Per::Feature, |at, value| {
            if at >= moments.len() {
                moments.resize(at + 1, Moments::default());
            }
            moments[at].push(value);
        })?;
        let bounds = moments.iter().map(|m| {
            let far = threshold * (m.squares / m.count).sqrt();
            (m.mean - far, m.mean + far)
        });
        let (low, high) = bounds.unzip();
        Ok(Outliers {
            low,
            high,
            shape,
            field,
        })
    }

    /// Bounds `q1 - factor * (q3 - q1)` and `q3 + factor * (q3 - q1)` around the quartiles: Tukey's
    /// fences (1977), with a factor of 1.5 or, for what is far out, 3. Takes memory for a copy of
    /// the field.
    ///
    /// # Errors
    /// As [`Standardize::fit`](crate::Standardize::fit); if the factor is not above 0 and finite.
    pub fn iqr(train: &dyn Dataset, field: usize, factor: f64) -> Result<Outliers> {
        check_positive("factor", factor)?;
        let (mut columns, shape) = columns(train, field, Per::Feature)?;
        let bounds = columns.iter_mut().map(|column| {
            column.sort_unstable_by(f32::total_cmp);
            let (q1, q3) = (quantile(column, 0.25), quantile(column, 0.75));
            let far = factor * (q3 - q1);
            (q1 - far, q3 + far)
        });
        let (low, high) = bounds.unzip();
        Ok(Outliers {
            low,
            high,
            shape,
            field,
        })
    }

    /// The lower bounds, one an element of an example, in row-major order.
    pub fn low(&self) -> &[f64] {
        &self.low
    }

    /// The upper bounds.
    pub fn high(&self) -> &[f64] {
        &self.high
    }

    /// Where a field `[N, ..]` has outliers: `Bool`, of the same shape.
    ///
    /// # Errors
    /// If examples have another shape than those it was fitted on, or another dtype than `f32`.
    pub fn mask(&self, field: &Tensor) -> Result<Tensor> {
        check_examples(field, &self.shape)?;
        let values = field.to_vec::<f32>()?;
        let width = self.low.len();
        let outside = values.iter().enumerate().map(|(i, &v)| {
            let (low, high) = (self.low[i % width], self.high[i % width]);
            f64::from(v) < low || f64::from(v) > high
        });
        Tensor::from_bools(field.shape(), outside.collect::<Vec<_>>())
    }

    /// The examples of a data set without an outlier in the field it was fitted on. All fields
    /// lose the same examples; remove outliers from the training part only.
    ///
    /// # Errors
    /// As [`Outliers::mask`]; [`ErrorKind::Data`] if every example has an outlier.
    pub fn remove(&self, data: &TensorDataset) -> Result<TensorDataset> {
        let place = || format!("field {}", self.field);
        let mask = self.mask(data.field(self.field)?).at(place)?;
        let mask = mask.to_vec_bool()?;
        let rows = mask.chunks_exact(self.low.len()).enumerate();
        let kept: Vec<usize> = rows
            .filter(|(_, row)| !row.contains(&true))
            .map(|(i, _)| i)
            .collect();
        if kept.is_empty() {
            let message = format!("all {} examples have an outlier", data.len());
            return Err(Error::new(ErrorKind::Data, message).at(place()));
        }
        data.select(&kept)
    }
}

fn check_positive(what: &str, value: f64) -> Result<()> {
    if value.is_finite() && value > 0.0 {
        return Ok(());
    }
    Err(Error::invalid(format!(
        "expected a finite {what} above 0, found {value}"
    )))
}

impl Transform for Outliers {
    /// Clips values to the bounds.
    fn apply(&self, field: &Tensor) -> Result<Tensor> {
        check_examples(field, &self.shape)?;
        let mut out = field.contiguous();
        let width = self.low.len();
        for (i, v) in out.as_slice_mut::<f32>()?.iter_mut().enumerate() {
            let value = f64::from(*v);
            // The bound rounded to f32 may lie outside; values within stay as they are.
            if value < self.low[i % width] {
                *v = self.low[i % width] as f32;
            } else if value > self.high[i % width] {
                *v = self.high[i % width] as f32;
            }
        }
        Ok(out)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn data(x: &[f32]) -> TensorDataset {
        let n = x.len() / 2;
        let labels: Vec<i64> = (0..n as i64).collect();
        TensorDataset::new(vec![
            Tensor::new([n, 2], x).unwrap(),
            Tensor::new([n], labels).unwrap(),
        ])
        .unwrap()
    }

    #[test]
    fn bounds_by_the_formulas() {
        let train = data(&[1., 7., 3., 7., 5., 7., 7., 7.]);
        let z = Outliers::z_score(&train, 0, 2.0).unwrap();
        assert_eq!(z.low()[1], 7.0);
        assert!((z.high()[0] - (4.0 + 2.0 * 5f64.sqrt())).abs() < 1e-12);
        let fences = Outliers::iqr(&train, 0, 1.5).unwrap();
        assert_eq!(
            (fences.low(), fences.high()),
            (&[-2.0, 7.0][..], &[10.0, 7.0][..])
        );
    }

    #[test]
    fn rows_are_removed_from_all_fields() {
        let train = data(&[1., 7., 3., 7., 5., 7., 7., 7.]);
        let test = data(&[-2., 7., -2.5, 7., 4., 7.5, 10., 7.]);
        let fences = Outliers::iqr(&train, 0, 1.5).unwrap();
        let mask = fences.mask(&test.fields()[0]).unwrap();
        assert_eq!(
            mask.to_vec_bool().unwrap(),
            [false, false, true, false, false, true, false, false]
        );
        let kept = fences.remove(&test).unwrap();
        assert_eq!(kept.labels(1).unwrap(), [0, 3]);
        let clipped = test.map(0, &fences).unwrap();
        assert_eq!(
            clipped.fields()[0].to_f64s(),
            [-2., 7., -2., 7., 4., 7., 10., 7.]
        );
        let all = fences.remove(&data(&[0., 0.])).unwrap_err();
        assert_eq!(all.to_string(), "field 0: all 1 examples have an outlier");
    }

    #[test]
    fn bad_input_is_an_error() {
        let train = data(&[1., 7.]);
        for bad in [0.0, -1.0, f64::NAN, f64::INFINITY] {
            assert!(Outliers::z_score(&train, 0, bad).is_err());
            assert!(Outliers::iqr(&train, 0, bad).is_err());
        }
        assert!(Outliers::iqr(&train, 1, 1.5).is_err());
        let fences = Outliers::iqr(&train, 0, 1.5).unwrap();
        assert!(fences.mask(&Tensor::new([2], [0f32; 2]).unwrap()).is_err());
        let nan = Tensor::new([1, 2], [f32::NAN, 7.]).unwrap();
        assert!(
            fences
                .mask(&nan)
                .unwrap()
                .to_vec_bool()
                .unwrap()
                .iter()
                .all(|v| !v)
        );
    }
}
