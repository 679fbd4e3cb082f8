//! Metrics of predicted numbers, equal to scikit-learn's.

use opt_core::{Error, ErrorKind, Result, Tensor};

/// How far predicted numbers are from the true ones.
///
/// ```
/// use opt_core::Tensor;
/// use opt_eval::RegressionMetrics;
///
/// let truth = Tensor::new([4], [3f32, -0.5, 2., 7.])?;
/// let predicted = Tensor::new([4], [2.5f32, 0., 2., 8.])?;
/// let metrics = RegressionMetrics::new(&truth, &predicted)?;
/// assert_eq!((metrics.mse, metrics.mae), (0.375, 0.5));
/// assert!((metrics.r2 - 0.9486081370449679).abs() < 1e-12);
/// # Ok::<(), opt_core::Error>(())
/// ```
#[derive(Debug, Clone, Copy, PartialEq)]
#[non_exhaustive]
pub struct RegressionMetrics {
    /// Mean squared error.
    pub mse: f64,
    /// Root of the mean squared error.
    pub rmse: f64,
    /// Mean absolute error.
    pub mae: f64,
    /// Coefficient of determination: 1 is perfect, 0 as good as the mean of the truth. Where the
    /// truth is constant it is 1 if the predictions are perfect and 0 otherwise; NaN for one
    /// example.
    pub r2: f64,
}

impl RegressionMetrics {
    /// Compares predictions with the truth: two tensors of one shape, `[N]` or `[N, outputs]`, of
    /// float dtypes. Of several outputs each figure is the mean over the outputs, scikit-learn's
    /// `multioutput="uniform_average"`. Sums run in f64.
    ///
    /// # Errors
    /// [`ErrorKind::Shape`] if the shapes differ, or are of another rank; [`ErrorKind::DType`] if
    /// one holds no floats; [`ErrorKind::Data`] if there are no examples, or a number is NaN or
    /// infinite.
    pub fn new(truth: &Tensor, predicted: &Tensor) -> Result<RegressionMetrics> {
        if truth.shape() != predicted.shape() {
            return Err(Error::shape(format!(
                "expected predictions of the truth's shape {:?}, found {:?}",
                truth.shape(),
                predicted.shape()
            )));
        }
        let outputs = match *truth.shape() {
            [_] => 1,
            [_, outputs] => outputs,
            ref other => {
                return Err(Error::shape(format!(
                    "expected numbers [N] or [N, outputs], found shape {other:?}"
                )));
            }
        };
        let read = |tensor: &Tensor, what: &str| {
            if !tensor.dtype().is_float() {
                let message = format!("expected floats, found {}", tensor.dtype());
                return Err(Error::dtype(message).at(what));
            }
            let values = tensor.to_f64s();
            match values.iter().position(|v| !v.is_finite()) {
                Some(i) => {
                    let message = format!("the number is {}", values[i]);
                    let row = format!("row {}", i / outputs);
                    Err(Error::new(ErrorKind::Data, message).at(row).at(what))
                }
                None => Ok(values),
            }
        };
        let truth = read(truth, "truth")?;
        let predicted = read(predicted, "predictions")?;
        if truth.is_empty() {
            return Err(Error::new(ErrorKind::Data, "metrics of no examples"));
        }
        let mut all = RegressionMetrics {
            mse: 0.0,
            rmse: 0.0,
            mae: 0.0,
            r2: 0.0,
        };
        for output in 0..outputs {
            let column = |values: &[f64]| -> Vec<f64> {
                values
                    .iter()
                    .copied()
                    .skip(output)
                    .step_by(outputs)
                    .collect()
            };
            let one = of_output(&column(&truth), &column(&predicted));
            all.mse += one.mse / outputs as f64;
            all.rmse += one.rmse / outputs as f64;
            all.mae += one.mae / outputs as f64;
            all.r2 += one.r2 / outputs as f64;
        }
        Ok(all)
    }
}

fn of_output(truth: &[f64], predicted: &[f64]) -> RegressionMetrics {
    let n = truth.len() as f64;
    let (mut squares, mut absolutes) = (0.0, 0.0);
    for (t, p) in truth.iter().zip(predicted) {
        squares += (t - p) * (t - p);
        absolutes += (t - p).abs();
    }
    let mean = truth.iter().sum::<f64>() / n;
    let spread: f64 = truth.iter().map(|t| (t - mean) * (t - mean)).sum();
    let r2 = match () {
        () if truth.len() < 2 => f64::NAN,
        () if squares == 0.0 => 1.0,
        () if spread == 0.0 => 0.0,
        () => 1.0 - squares / spread,
    };
    RegressionMetrics {
        mse: squares / n,
        rmse: (squares / n).sqrt(),
        mae: absolutes / n,
        r2,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bad_input_is_an_error() {
        let of = |t: &Tensor, p: &Tensor| RegressionMetrics::new(t, p).unwrap_err();
        let two = Tensor::new([2], [1f32, 2.]).unwrap();
        let three = Tensor::new([3], [1f32, 2., 3.]).unwrap();
        assert_eq!(of(&two, &three).kind(), ErrorKind::Shape);
        let cube = Tensor::new([1, 1, 2], [1f32, 2.]).unwrap();
        assert_eq!(of(&cube, &cube).kind(), ErrorKind::Shape);
        let none = Tensor::new([0], [0f32; 0]).unwrap();
        assert_eq!(of(&none, &none).kind(), ErrorKind::Data);
        let no_outputs = Tensor::new([3, 0], [0f32; 0]).unwrap();
        assert_eq!(of(&no_outputs, &no_outputs).kind(), ErrorKind::Data);
        let ints = Tensor::new([2], [1i64, 2]).unwrap();
        assert_eq!(
            of(&two, &ints).to_string(),
            "predictions: expected floats, found i64"
        );
        let nan = Tensor::new([2, 2], [1f32, 2., 3., f32::NAN]).unwrap();
        let fine = Tensor::new([2, 2], [1f32, 2., 3., 4.]).unwrap();
        assert_eq!(
            of(&nan, &fine).to_string(),
            "truth: row 1: the number is NaN"
        );
    }

    #[test]
    fn a_constant_truth_and_a_single_example() {
        let constant = Tensor::new([2], [3f32, 3.]).unwrap();
        let off = Tensor::new([2], [3f32, 4.]).unwrap();
        let r2 = |t: &Tensor, p: &Tensor| RegressionMetrics::new(t, p).unwrap().r2;
        assert_eq!((r2(&constant, &constant), r2(&constant, &off)), (1.0, 0.0));
        let one = Tensor::new([1], [3f32]).unwrap();
        assert!(r2(&one, &one).is_nan());
    }
}
