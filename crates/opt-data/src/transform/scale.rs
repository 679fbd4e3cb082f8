//! Scaling: by fixed numbers, or fitted by element, by channel or for the data set.

use super::statistics::{Moments, columns, for_each, nonzero_scale, quantile};
use super::{Per, Transform, check_examples, run_length};
use crate::{Dataset, Error, Result, Tensor};

/// `x * factor + offset`: a transform with nothing to fit, such as pixels from 0..=16 to 0..=1.
///
/// ```
/// use opt_data::{Scale, digits};
///
/// let train = digits()?.train.map(0, &Scale::new(1.0 / 16.0, 0.0)?)?;
/// assert!(train.fields()[0].to_f64s().iter().all(|v| (0.0..=1.0).contains(v)));
/// # Ok::<(), opt_core::Error>(())
/// ```
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Scale {
    factor: f32,
    offset: f32,
}

impl Scale {
    /// From a factor and an offset.
    ///
    /// # Errors
    /// If one is NaN or infinite, or the factor is 0.
    pub fn new(factor: f32, offset: f32) -> Result<Scale> {
        if !factor.is_finite() || !offset.is_finite() || factor == 0.0 {
            return Err(Error::invalid(format!(
                "expected a finite factor other than 0 and a finite offset, found {factor} and \
                 {offset}"
            )));
        }
        Ok(Scale { factor, offset })
    }
}

impl Transform for Scale {
    fn apply(&self, field: &Tensor) -> Result<Tensor> {
        let mut out = field.contiguous();
        for v in out.as_slice_mut::<f32>()? {
            *v = *v * self.factor + self.offset;
        }
        Ok(out)
    }
}

/// Scales to mean 0 and standard deviation 1: `(x - mean) / std`, with the population standard
/// deviation (scikit-learn's `StandardScaler`).
///
/// A constant feature, that is one whose variance is within rounding of 0, has `std` 1: it
/// becomes 0 on the data it was fitted on and stays finite elsewhere.
///
/// ```
/// use opt_data::{Per, Standardize, digits};
///
/// let digits = digits()?;
/// let scaler = Standardize::fit(&digits.train, 0, Per::Dataset)?;
/// let (train, test) = (digits.train.map(0, &scaler)?, digits.test.map(0, &scaler)?);
/// let x = train.fields()[0].to_f64s();
/// assert!((x.iter().sum::<f64>() / x.len() as f64).abs() < 1e-6);
/// # Ok::<(), opt_core::Error>(())
/// ```
#[derive(Debug, Clone, PartialEq)]
pub struct Standardize {
    affine: Affine,
}

impl Standardize {
    /// Fits mean and standard deviation on a field of the training part, in one pass (Welford
    /// 1962).
    ///
    /// # Errors
    /// If the data set is empty, the field does not exist or is not `f32`, examples differ in
    /// shape, or a value is NaN or infinite.
    pub fn fit(train: &dyn Dataset, field: usize, per: Per) -> Result<Standardize> {
        let mut moments: Vec<Moments> = Vec::new();
        let shape = for_each(train, field, per, |at, value| {
            if at >= moments.len() {
                moments.resize(at + 1, Moments::default());
            }
            moments[at].push(value);
        })?;
        Ok(Standardize {
            affine: Affine {
                center: moments.iter().map(|m| m.mean).collect(),
                scale: moments.iter().map(Moments::scale).collect(),
                low: 0.0,
                shape,
                per,
            },
        })
    }

    /// The means, one a parameter, in row-major order.
    pub fn mean(&self) -> &[f64] {
        &self.affine.center
    }

    /// The standard deviations, 1 for constant features.
    pub fn std(&self) -> &[f64] {
        &self.affine.scale
    }

    /// What [`Transform::apply`] takes back to where it came from: `x * std + mean`.
    ///
    /// # Errors
    /// As [`Transform::apply`].
    pub fn inverse(&self, field: &Tensor) -> Result<Tensor> {
        self.affine.inverse(field)
    }
}

impl Transform for Standardize {
    fn apply(&self, field: &Tensor) -> Result<Tensor> {
        self.affine.apply(field)
    }
}

/// Scales to a range: `low + (x - min) / (max - min) * (high - low)` (scikit-learn's
/// `MinMaxScaler`). Values outside the fitted range leave the target range unless they are
/// [clipped](MinMax::clipped).
///
/// A constant feature has `max - min` 1: it becomes `low` on the data it was fitted on and stays
/// finite elsewhere.
#[derive(Debug, Clone, PartialEq)]
pub struct MinMax {
    affine: Affine,
    clip: Option<(f32, f32)>,
    range: (f64, f64),
}

impl MinMax {
    /// Fits minimum and maximum on a field of the training part, for the target range
    /// `low..=high`.
    ///
    /// # Errors
    /// As [`Standardize::fit`]; if `low` is not below `high`, or one is not finite.
    pub fn fit(
        train: &dyn Dataset,
        field: usize,
        per: Per,
        (low, high): (f64, f64),
    ) -> Result<MinMax> {
        if !(low.is_finite() && high.is_finite() && low < high) {
            return Err(Error::invalid(format!("{low}..{high} is no finite range")));
        }
        let mut ranges: Vec<(f64, f64)> = Vec::new();
        let shape = for_each(train, field, per, |at, value| {
            if at >= ranges.len() {
                ranges.resize(at + 1, (f64::INFINITY, f64::NEG_INFINITY));
            }
            let (min, max) = &mut ranges[at];
            (*min, *max) = (min.min(value), max.max(value));
        })?;
        let scale = |&(min, max): &(f64, f64)| nonzero_scale(max - min) / (high - low);
        Ok(MinMax {
            affine: Affine {
                center: ranges.iter().map(|r| r.0).collect(),
                scale: ranges.iter().map(scale).collect(),
                low,
                shape,
                per,
            },
            clip: None,
            range: (low, high),
        })
    }

    /// Whether values outside the fitted range go to the ends of the target range. Default: false.
    #[must_use]
    pub fn clipped(mut self, clip: bool) -> MinMax {
        let (low, high) = self.range;
        self.clip = clip.then_some((low as f32, high as f32));
        self
    }

    /// The minima, one a parameter, in row-major order.
    pub fn min(&self) -> &[f64] {
        &self.affine.center
    }

    /// What differences from the minimum are divided by: `(max - min) / (high - low)`, with
    /// `max - min` 1 for constant features.
    pub fn scale(&self) -> &[f64] {
        &self.affine.scale
    }

    /// What [`Transform::apply`] takes back to where it came from, unless it was clipped.
    ///
    /// # Errors
    /// As [`Transform::apply`].
    pub fn inverse(&self, field: &Tensor) -> Result<Tensor> {
        self.affine.inverse(field)
    }
}

impl Transform for MinMax {
    fn apply(&self, field: &Tensor) -> Result<Tensor> {
        let mut out = self.affine.apply(field)?;
        if let Some((low, high)) = self.clip {
            for v in out.as_slice_mut::<f32>()? {
                *v = v.clamp(low, high);
            }
        }
        Ok(out)
    }
}

/// Scales by quantiles, which outliers do not move: `(x - median) / (q_high - q_low)`
/// (scikit-learn's `RobustScaler`).
///
/// A feature whose two quantiles are equal is divided by 1.
///
/// ```
/// use opt_core::Tensor;
/// use opt_data::{Per, Robust, TensorDataset};
///
/// let x = Tensor::new([5, 1], [1f32, 2., 3., 4., 1000.])?;
/// let data = TensorDataset::new(vec![x])?;
/// let scaler = Robust::fit(&data, 0, Per::Feature, (0.25, 0.75))?;
/// assert_eq!((scaler.median(), scaler.scale()), (&[3.0][..], &[2.0][..]));
/// # Ok::<(), opt_core::Error>(())
/// ```
#[derive(Debug, Clone, PartialEq)]
pub struct Robust {
    affine: Affine,
}

impl Robust {
    /// Fits median and quantiles on a field of the training part, linear between neighbours;
    /// `(0.25, 0.75)` is the usual range. Takes memory for a copy of the field.
    ///
    /// # Errors
    /// As [`Standardize::fit`]; if the quantiles are not `0 <= low < high <= 1`.
    pub fn fit(
        train: &dyn Dataset,
        field: usize,
        per: Per,
        (low, high): (f64, f64),
    ) -> Result<Robust> {
        if !(0.0 <= low && low < high && high <= 1.0) {
            return Err(Error::invalid(format!(
                "expected quantiles 0 <= low < high <= 1, found {low} and {high}"
            )));
        }
        let (mut columns, shape) = columns(train, field, per)?;
        let (mut center, mut scale) = (Vec::new(), Vec::new());
        for column in &mut columns {
            column.sort_unstable_by(f32::total_cmp);
            center.push(quantile(column, 0.5));
            scale.push(nonzero_scale(
                quantile(column, high) - quantile(column, low),
            ));
        }
        Ok(Robust {
            affine: Affine {
                center,
                scale,
                low: 0.0,
                shape,
                per,
            },
        })
    }

    /// The medians, one a parameter, in row-major order.
    pub fn median(&self) -> &[f64] {
        &self.affine.center
    }

    /// The differences of the quantiles, 1 where they are equal.
    pub fn scale(&self) -> &[f64] {
        &self.affine.scale
    }

    /// What [`Transform::apply`] takes back to where it came from.
    ///
    /// # Errors
    /// As [`Transform::apply`].
    pub fn inverse(&self, field: &Tensor) -> Result<Tensor> {
        self.affine.inverse(field)
    }
}

impl Transform for Robust {
    fn apply(&self, field: &Tensor) -> Result<Tensor> {
        self.affine.apply(field)
    }
}

/// `low + (x - center) / scale` with parameters per feature, channel or data set.
#[derive(Debug, Clone, PartialEq)]
struct Affine {
    center: Vec<f64>,
    scale: Vec<f64>,
    low: f64,
    /// The shape of an example.
    shape: Vec<usize>,
    per: Per,
}

impl Affine {
    fn apply(&self, field: &Tensor) -> Result<Tensor> {
        self.each(field, |x, center, scale| self.low + (x - center) / scale)
    }

    fn inverse(&self, field: &Tensor) -> Result<Tensor> {
        self.each(field, |x, center, scale| (x - self.low) * scale + center)
    }

    fn each(&self, field: &Tensor, f: impl Fn(f64, f64, f64) -> f64) -> Result<Tensor> {
        check_examples(field, &self.shape)?;
        let mut out = field.contiguous();
        let width: usize = self.shape.iter().product();
        let run = run_length(&self.shape, self.per);
        for example in out.as_slice_mut::<f32>()?.chunks_exact_mut(width.max(1)) {
            for (at, run) in example.chunks_exact_mut(run).enumerate() {
                let (center, scale) = (self.center[at], self.scale[at]);
                for v in run {
                    *v = f(f64::from(*v), center, scale) as f32;
                }
            }
        }
        Ok(out)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::transform::Mapped;
    use crate::{ErrorKind, TensorDataset};

    fn data(shape: [usize; 3], x: &[f32]) -> TensorDataset {
        TensorDataset::new(vec![Tensor::new(shape, x).unwrap()]).unwrap()
    }

    fn values(data: &TensorDataset) -> Vec<f32> {
        data.fields()[0].to_vec().unwrap()
    }

    #[test]
    fn standardize_by_feature_channel_and_data_set() {
        let train = data([2, 2, 2], &[0., 1., 10., 20., 2., 3., 30., 40.]);
        let feature = Standardize::fit(&train, 0, Per::Feature).unwrap();
        assert_eq!(feature.mean(), [1., 2., 20., 30.]);
        assert_eq!(feature.std(), [1., 1., 10., 10.]);
        assert_eq!(
            values(&train.map(0, &feature).unwrap()),
            [-1., -1., -1., -1., 1., 1., 1., 1.]
        );
        let channel = Standardize::fit(&train, 0, Per::Channel).unwrap();
        assert_eq!(channel.mean(), [1.5, 25.]);
        assert!((channel.std()[0] - 1.25f64.sqrt()).abs() < 1e-12);
        let all = Standardize::fit(&train, 0, Per::Dataset).unwrap();
        assert_eq!(all.mean(), [13.25]);
        let x = values(&train.map(0, &all).unwrap());
        let mean = x.iter().sum::<f32>() / 8.0;
        let variance = x.iter().map(|v| v * v).sum::<f32>() / 8.0;
        assert!(mean.abs() < 1e-6 && (variance - 1.0).abs() < 1e-6);
    }

    #[test]
    fn min_max_reaches_the_range_and_does_not_clip() {
        let train = data([3, 1, 2], &[0., -5., 4., 0., 2., 5.]);
        let scaler = MinMax::fit(&train, 0, Per::Feature, (-1.0, 1.0)).unwrap();
        assert_eq!(
            values(&train.map(0, &scaler).unwrap()),
            [-1., -1., 1., 0., 0., 1.]
        );
        let test = data([1, 1, 2], &[8., -10.]);
        assert_eq!(values(&test.map(0, &scaler).unwrap()), [3., -2.]);
        let clipped = scaler.clone().clipped(true);
        assert_eq!(values(&test.map(0, &clipped).unwrap()), [1., -1.]);
    }

    #[test]
    fn a_constant_feature_has_scale_one() {
        // 0.1 is no exact sum: the variance that a naive formula finds is not 0.
        let train = data([3, 1, 2], &[0.1, 1., 0.1, 2., 0.1, 3.]);
        let standard = Standardize::fit(&train, 0, Per::Feature).unwrap();
        assert_eq!(standard.std()[0], 1.0);
        let min_max = MinMax::fit(&train, 0, Per::Feature, (0.25, 1.0)).unwrap();
        assert_eq!(min_max.scale()[0], 1.0 / 0.75);
        for (scaler, low) in [(&standard as &dyn Transform, 0.0), (&min_max, 0.25)] {
            let x = values(&train.map(0, scaler).unwrap());
            assert!(x.iter().step_by(2).all(|&v| v == low), "{x:?}");
        }
        let test = data([1, 1, 2], &[1.1, 2.]);
        assert!((values(&test.map(0, &standard).unwrap())[0] - 1.0).abs() < 1e-6);
    }

    #[test]
    fn inverses_go_back() {
        let train = data([3, 1, 2], &[0., -5., 4., 0.5, 2., 5.]);
        let x = &train.fields()[0];
        let standard = Standardize::fit(&train, 0, Per::Feature).unwrap();
        let min_max = MinMax::fit(&train, 0, Per::Feature, (-1.0, 2.0)).unwrap();
        let robust = Robust::fit(&train, 0, Per::Feature, (0.25, 0.75)).unwrap();
        for back in [
            standard.inverse(&standard.apply(x).unwrap()),
            min_max.inverse(&min_max.apply(x).unwrap()),
            robust.inverse(&robust.apply(x).unwrap()),
        ] {
            for (a, b) in back.unwrap().to_f64s().iter().zip(x.to_f64s()) {
                assert!((a - b).abs() < 1e-5, "{a} {b}");
            }
        }
    }

    #[test]
    fn parameters_come_from_the_training_part_alone() {
        let train = data([2, 1, 1], &[0., 2.]);
        let scaler = Standardize::fit(&train, 0, Per::Feature).unwrap();
        let test = data([2, 1, 1], &[1., 101.]);
        assert_eq!(values(&test.map(0, &scaler).unwrap()), [0., 100.]);
    }

    #[test]
    fn mapped_and_map_agree() {
        let train = data([3, 1, 2], &[0., -5., 4., 0., 2., 5.]);
        let scale = Scale::new(0.5, 1.0).unwrap();
        let eager = train.map(0, &scale).unwrap();
        let lazy = Mapped::new(&train, 0, scale);
        assert_eq!(lazy.len(), 3);
        for i in 0..3 {
            assert_eq!(lazy.get(i).unwrap(), eager.get(i).unwrap());
        }
        assert_eq!(lazy.batch(&[2, 1]).unwrap(), eager.batch(&[2, 1]).unwrap());
        assert!(Mapped::new(&train, 1, scale).get(0).is_err());
    }

    #[test]
    fn bad_input_is_an_error() {
        let train = data([2, 1, 2], &[0., 1., 2., 3.]);
        assert!(Standardize::fit(&train, 1, Per::Feature).is_err());
        assert!(MinMax::fit(&train, 0, Per::Feature, (1.0, 1.0)).is_err());
        assert!(MinMax::fit(&train, 0, Per::Feature, (f64::NAN, 1.0)).is_err());
        for range in [(0.5, 0.5), (-0.1, 0.5), (0.5, 1.1), (f64::NAN, 0.5)] {
            assert!(Robust::fit(&train, 0, Per::Feature, range).is_err());
        }
        assert!(Scale::new(0.0, 0.0).is_err());
        assert!(Scale::new(f32::INFINITY, 0.0).is_err());
        let labels = TensorDataset::new(vec![Tensor::new([2], [0i64, 1]).unwrap()]).unwrap();
        let error = Standardize::fit(&labels, 0, Per::Feature).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::DType);
        let scalars = TensorDataset::new(vec![Tensor::new([2], [0f32, 1.]).unwrap()]).unwrap();
        assert_eq!(
            Standardize::fit(&scalars, 0, Per::Channel)
                .unwrap_err()
                .kind(),
            ErrorKind::Shape
        );
        assert!(Standardize::fit(&scalars, 0, Per::Feature).is_ok());
        let scaler = Standardize::fit(&train, 0, Per::Feature).unwrap();
        assert_eq!(
            scalars.map(0, &scaler).unwrap_err().kind(),
            ErrorKind::Shape
        );
        let hollow = data([2, 0, 2], &[]);
        assert_eq!(
            Standardize::fit(&hollow, 0, Per::Feature)
                .unwrap_err()
                .kind(),
            ErrorKind::Data
        );

        struct Nan;
        impl Dataset for Nan {
            fn len(&self) -> usize {
                1
            }
            fn get(&self, _: usize) -> Result<Vec<Tensor>> {
                Ok(vec![Tensor::new([2], [0f32, f32::NAN])?])
            }
        }
        let error = Standardize::fit(&Nan, 0, Per::Feature).unwrap_err();
        assert_eq!(
            error.to_string(),
            "field 0: row 0: element 1 is NaN; fill missing values with an `Imputer` first"
        );
    }
}
