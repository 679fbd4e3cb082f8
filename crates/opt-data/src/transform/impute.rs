//! Filling of missing values.

use super::statistics::{Missing, each_batch, map_rows, quantile};
use super::{Transform, check_examples};
use crate::{Dataset, Error, ErrorKind, Result, Tensor};

/// What missing values of a feature become.
#[derive(Debug, Clone, Copy, PartialEq)]
#[non_exhaustive]
pub enum Fill {
    /// The mean of those that are there.
    Mean,
    /// The median of those that are there; the mean of the two in the middle if they are even in
    /// number.
    Median,
    /// The one that is there most often; the smallest of several.
    MostFrequent,
    /// The largest one that is there.
    Max,
    /// A number.
    Constant(f32),
}

/// Fills missing values, which are NaN, by element of an example: a column of a table
/// (scikit-learn's `SimpleImputer`).
///
/// ```
/// use opt_data::{Csv, Fill, Imputer};
///
/// let csv = Csv::new().missing(["?"]);
/// let train = csv.read_from("1,?,0\n3,5,1\n8,7,1\n".as_bytes(), "train.csv")?;
/// let test = csv.read_from("?,?,0\n".as_bytes(), "test.csv")?;
/// let imputer = Imputer::fit(&train, 0, Fill::Median)?;
/// assert_eq!(test.map(0, &imputer)?.fields()[0].to_f64s(), [3.0, 6.0]);
/// # Ok::<(), opt_core::Error>(())
/// ```
#[derive(Debug, Clone, PartialEq)]
pub struct Imputer {
    values: Vec<f32>,
    shape: Vec<usize>,
}

impl Imputer {
    /// Fits the values to fill in on a field of the training part. Takes memory for a copy of the
    /// field.
    ///
    /// # Errors
    /// If the data set is empty, the field does not exist or is not `f32`, examples differ in
    /// shape, a value or the constant is infinite, or the constant is NaN; [`ErrorKind::Data`] if
    /// all values of a feature are missing, unless a constant is filled in.
    pub fn fit(train: &dyn Dataset, field: usize, fill: Fill) -> Result<Imputer> {
        if let Fill::Constant(value) = fill
            && !value.is_finite()
        {
            return Err(Error::invalid(format!(
                "expected a finite constant, found {value}"
            )));
        }
        let mut columns: Vec<Vec<f32>> = Vec::new();
        let shape = each_batch(train, field, Missing::Allowed, |_, values, example| {
            let width = example.iter().product();
            columns.resize(width, Vec::new());
            for (i, &value) in values.iter().enumerate() {
                if !value.is_nan() {
                    columns[i % width].push(value);
                }
            }
            Ok(())
        })?;
        let value = |(at, mut column): (usize, Vec<f32>)| -> Result<f32> {
            if let Fill::Constant(value) = fill {
                return Ok(value);
            }
            if column.is_empty() {
                return Err(Error::new(
                    ErrorKind::Data,
                    format!(
                        "all values of element {at} are missing: skip it, or fill in a constant"
                    ),
                )
                .at(format!("field {field}")));
            }
            column.sort_unstable_by(f32::total_cmp);
            Ok(match fill {
                Fill::Mean => {
                    let sum: f64 = column.iter().map(|&v| f64::from(v)).sum();
                    (sum / column.len() as f64) as f32
                }
                Fill::Median => quantile(&column, 0.5) as f32,
                Fill::MostFrequent => most_frequent(&column),
                Fill::Max => column[column.len() - 1],
                Fill::Constant(value) => value,
            })
        };
        let values = columns.into_iter().enumerate().map(value);
        Ok(Imputer {
            values: values.collect::<Result<_>>()?,
            shape,
        })
    }

    /// What is filled in, one number an element of an example, in row-major order (scikit-learn's
    /// `statistics_`).
    pub fn values(&self) -> &[f32] {
        &self.values
    }
}

/// Of sorted values, which are not none.
fn most_frequent(sorted: &[f32]) -> f32 {
    let runs = sorted.chunk_by(|a, b| a == b);
    // The first of the longest.
    let longest = runs.reduce(|best, run| if run.len() > best.len() { run } else { best });
    longest.map_or(f32::NAN, |run| run[0])
}

impl Transform for Imputer {
    fn apply(&self, field: &Tensor) -> Result<Tensor> {
        check_examples(field, &self.shape)?;
        map_rows(field, self.values.len(), &self.shape, |from, to| {
            for ((to, &v), &fill) in to.iter_mut().zip(from).zip(&self.values) {
                *to = if v.is_nan() { fill } else { v };
            }
            Ok(())
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::TensorDataset;

    fn data(x: &[f32]) -> TensorDataset {
        let x = Tensor::new([x.len() / 2, 2], x).unwrap();
        TensorDataset::with_missing(vec![x]).unwrap()
    }

    const GAP: f32 = f32::NAN;

    #[test]
    fn each_fill_by_column() {
        let train = data(&[5., GAP, 1., 3., GAP, 4., 1., 3., 5., 9.]);
        let values = |fill| Imputer::fit(&train, 0, fill).unwrap().values().to_vec();
        assert_eq!(values(Fill::Mean), [3.0, 4.75]);
        assert_eq!(values(Fill::Median), [3.0, 3.5]);
        assert_eq!(values(Fill::MostFrequent), [1.0, 3.0]);
        assert_eq!(values(Fill::Max), [5.0, 9.0]);
        assert_eq!(values(Fill::Constant(-1.0)), [-1.0, -1.0]);
        let filled = train
            .map(0, &Imputer::fit(&train, 0, Fill::Max).unwrap())
            .unwrap();
        assert!(!filled.has_missing());
        let x = filled.fields()[0].to_f64s();
        assert_eq!(x, [5., 9., 1., 3., 5., 4., 1., 3., 5., 9.]);
    }

    #[test]
    fn bad_input_is_an_error() {
        let hole = data(&[1., GAP, 2., GAP]);
        let error = Imputer::fit(&hole, 0, Fill::Mean).unwrap_err();
        assert_eq!(
            error.to_string(),
            "field 0: all values of element 1 are missing: skip it, or fill in a constant"
        );
        assert!(Imputer::fit(&hole, 0, Fill::Constant(0.0)).is_ok());
        for bad in [f32::NAN, f32::INFINITY] {
            assert!(Imputer::fit(&hole, 0, Fill::Constant(bad)).is_err());
        }
        assert!(Imputer::fit(&hole, 1, Fill::Mean).is_err());
        let imputer = Imputer::fit(&hole, 0, Fill::Constant(0.0)).unwrap();
        let other = Tensor::new([1, 3], [0f32; 3]).unwrap();
        assert_eq!(imputer.apply(&other).unwrap_err().kind(), ErrorKind::Shape);
        let ints = TensorDataset::new(vec![Tensor::new([1], [1i64]).unwrap()]).unwrap();
        let error = Imputer::fit(&ints, 0, Fill::Mean).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::DType);
    }
}
