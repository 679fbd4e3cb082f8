//! A data set in memory.

use crate::transform::Transform;
use crate::{Dataset, Error, ErrorKind, Result, ResultExt, Tensor};
use opt_core::DType;

/// Examples in memory: each field is one tensor whose first axis runs over the examples.
///
/// Fields are the inputs of a model in their order, then the targets; a class label is an `i64`
/// tensor `[N]`. Floating-point fields hold finite values only: that is checked once, here, so
/// that no training run meets a NaN of the data. Tables with gaps are the exception:
/// [`TensorDataset::with_missing`].
///
/// ```
/// use opt_core::Tensor;
/// use opt_data::{Dataset, TensorDataset};
///
/// let images = Tensor::new([3, 2], [0f32, 1., 2., 3., 4., 5.])?;
/// let labels = Tensor::new([3], [0i64, 1, 0])?;
/// let data = TensorDataset::new(vec![images, labels])?;
/// assert_eq!(data.len(), 3);
/// assert_eq!(data.classes(1)?, 2);
/// let batch = data.batch(&[2, 0])?;
/// assert_eq!(batch[0].to_vec::<f32>()?, [4., 5., 0., 1.]);
/// # Ok::<(), opt_core::Error>(())
/// ```
#[derive(Debug, Clone)]
pub struct TensorDataset {
    fields: Vec<Tensor>,
    len: usize,
    /// Whether there are NaNs, which stand for missing values.
    missing: bool,
}

impl TensorDataset {
    /// A data set from its fields.
    ///
    /// # Errors
    /// [`ErrorKind::Shape`] if a field has rank 0 or another number of examples than the first;
    /// [`ErrorKind::Data`] if there are no fields or examples, or a value is NaN or infinite (the
    /// path names the field and the row).
    pub fn new(fields: Vec<Tensor>) -> Result<TensorDataset> {
        TensorDataset::checked(fields, false)
    }

    /// A data set from its fields, in which NaN stands for a missing value. Fill them
    /// ([`Imputer`](crate::Imputer)) before training: a network has no use for them.
    ///
    /// ```
    /// use opt_core::Tensor;
    /// use opt_data::{Fill, Imputer, TensorDataset};
    ///
    /// let x = Tensor::new([3, 1], [1f32, f32::NAN, 3.0])?;
    /// let data = TensorDataset::with_missing(vec![x])?;
    /// assert!(data.has_missing());
    /// let filled = data.map(0, &Imputer::fit(&data, 0, Fill::Mean)?)?;
    /// assert_eq!(filled.fields()[0].to_f64s(), [1.0, 2.0, 3.0]);
    /// assert!(!filled.has_missing());
    /// # Ok::<(), opt_core::Error>(())
    /// ```
    ///
    /// # Errors
    /// As [`TensorDataset::new`], but for NaN.
    pub fn with_missing(fields: Vec<Tensor>) -> Result<TensorDataset> {
        TensorDataset::checked(fields, true)
    }

    fn checked(fields: Vec<Tensor>, allow_missing: bool) -> Result<TensorDataset> {
        let mut missing = false;
        let first = fields
            .first()
            .ok_or_else(|| Error::new(ErrorKind::Data, "a data set without fields"))?;
        let len = first.shape().first().copied().unwrap_or(0);
        for (f, field) in fields.iter().enumerate() {
            let place = || format!("field {f}");
            match field.shape().first() {
                None => {
                    let message = "expected examples along a first axis, found a scalar";
                    return Err(Error::shape(message).at(place()));
                }
                Some(&n) if n != len => {
                    let message = format!("expected {len} examples as in field 0, found {n}");
                    return Err(Error::shape(message).at(place()));
                }
                Some(_) => missing |= has_nan(field, allow_missing).at(place)?,
            }
        }
        if len == 0 {
            return Err(Error::new(ErrorKind::Data, "a data set without examples"));
        }
        let fields = fields.iter().map(Tensor::contiguous).collect();
        Ok(TensorDataset {
            fields,
            len,
            missing,
        })
    }

    /// Whether values are missing (NaN), which [`TensorDataset::with_missing`] allows.
    pub fn has_missing(&self) -> bool {
        self.missing
    }

    /// The fields, examples along their first axes.
    pub fn fields(&self) -> &[Tensor] {
        &self.fields
    }

    /// A field.
    ///
    /// # Errors
    /// If there is none of that index.
    pub fn field(&self, index: usize) -> Result<&Tensor> {
        self.fields.get(index).ok_or_else(|| {
            Error::invalid(format!(
                "no field {index}: the data set has {}",
                self.fields.len()
            ))
        })
    }

    /// The labels of a field.
    ///
    /// # Errors
    /// If there is no such field, or it is not `i64` of shape `[N]`.
    pub fn labels(&self, field: usize) -> Result<&[i64]> {
        let labels = self.field(field)?;
        if labels.rank() != 1 {
            return Err(Error::shape(format!(
                "expected labels of shape [{}], found {:?}",
                self.len,
                labels.shape()
            ))
            .at(format!("field {field}")));
        }
        labels.as_slice::<i64>().at(|| format!("field {field}"))
    }

    /// One more than the largest label of a field.
    ///
    /// # Errors
    /// As [`TensorDataset::labels`]; [`ErrorKind::Data`] if a label is negative.
    pub fn classes(&self, field: usize) -> Result<usize> {
        let labels = self.labels(field)?;
        let most = labels.iter().copied().max().unwrap_or(0);
        let classes = most.max(0) as usize + 1;
        self.check_labels(field, classes)?;
        Ok(classes)
    }

    /// Fails unless every label of a field is in `0..classes`.
    ///
    /// # Errors
    /// As [`TensorDataset::labels`]; [`ErrorKind::Data`] for a label out of range, with the field
    /// and the row in the path.
    pub fn check_labels(&self, field: usize, classes: usize) -> Result<()> {
        let bad = |&(_, &label): &(usize, &i64)| {
            usize::try_from(label).map_or(true, |label| label >= classes)
        };
        match self.labels(field)?.iter().enumerate().find(bad) {
            None => Ok(()),
            Some((row, label)) => Err(Error::new(
                ErrorKind::Data,
                format!("label {label} is not in 0..{classes}"),
            )
            .at(format!("row {row}"))
            .at(format!("field {field}"))),
        }
    }

    /// The examples of some indices, as a data set of their own.
    ///
    /// # Errors
    /// If there are no indices, or one is out of range.
    pub fn select(&self, indices: &[usize]) -> Result<TensorDataset> {
        if indices.is_empty() {
            return Err(Error::new(ErrorKind::Data, "a data set without examples"));
        }
        TensorDataset::checked(self.batch(indices)?, self.missing)
    }

    /// The data set with a transform applied to a field.
    ///
    /// # Errors
    /// If there is no such field, the transform does not take it, or what it gives is no valid
    /// field ([`TensorDataset::new`]; values that are missing may stay so).
    pub fn map(&self, field: usize, transform: &dyn Transform) -> Result<TensorDataset> {
        let new = transform
            .apply(self.field(field)?)
            .at(|| format!("field {field}"))?;
        let mut fields = self.fields.clone();
        fields[field] = new;
        TensorDataset::checked(fields, self.missing)
    }
}

/// Whether a field holds a NaN; fails at the first row with an infinity or, unless they are
/// allowed, a NaN.
fn has_nan(field: &Tensor, allowed: bool) -> Result<bool> {
    if !field.dtype().is_float() || field.is_empty() {
        return Ok(false);
    }
    let width = field.len() / field.shape()[0];
    let mut nan = false;
    let mut bad = |v: f64| {
        nan |= v.is_nan();
        !(v.is_finite() || allowed && v.is_nan())
    };
    let bad = if field.dtype() == DType::F32 {
        let field = field.contiguous();
        let values = field.as_slice::<f32>()?;
        values.iter().position(|&v| bad(f64::from(v)))
    } else {
        field.to_f64s().into_iter().position(bad)
    };
    match bad {
        None => Ok(nan),
        Some(at) => Err(Error::new(
            ErrorKind::Data,
            match allowed {
                true => format!("element {} is infinite", at % width),
                false => format!("element {} is NaN or infinite", at % width),
            },
        )
        .at(format!("row {}", at / width))),
    }
}

impl Dataset for TensorDataset {
    fn len(&self) -> usize {
        self.len
    }

    fn get(&self, index: usize) -> Result<Vec<Tensor>> {
        if index >= self.len {
            return Err(Error::invalid(format!(
                "example {index} of a data set of {}",
                self.len
            )));
        }
        let one = |field: &Tensor| {
            field
                .slice(0, index, index + 1)?
                .reshape(&field.shape()[1..])
        };
        self.fields.iter().map(one).collect()
    }

    fn batch(&self, indices: &[usize]) -> Result<Vec<Tensor>> {
        if indices.is_empty() {
            return Err(Error::new(ErrorKind::Data, "a batch of no examples"));
        }
        self.fields.iter().map(|f| f.select(0, indices)).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn small() -> TensorDataset {
        let x = Tensor::new([4, 2], (0..8).map(|v| v as f32).collect::<Vec<_>>()).unwrap();
        let y = Tensor::new([4], [0i64, 2, 1, 2]).unwrap();
        TensorDataset::new(vec![x, y]).unwrap()
    }

    #[test]
    fn single_examples_and_batches_agree() {
        let data = small();
        let one = data.get(2).unwrap();
        assert_eq!(one[0].shape(), [2]);
        assert!(one[1].shape().is_empty());
        assert_eq!(one[1].item().unwrap(), 1.0);
        let batch = data.batch(&[3, 2]).unwrap();
        assert_eq!(batch[0].to_vec::<f32>().unwrap(), [6., 7., 4., 5.]);
        assert_eq!(batch[1].to_vec::<i64>().unwrap(), [2, 1]);
        assert!(data.get(4).is_err());
        assert!(data.batch(&[4]).is_err());
        assert_eq!(data.batch(&[]).unwrap_err().kind(), ErrorKind::Data);
    }

    #[test]
    fn bad_fields_are_errors_that_name_the_place() {
        let y = || Tensor::new([2], [0i64, 1]).unwrap();
        let cases: [(Vec<Tensor>, ErrorKind, &str); 6] = [
            (vec![], ErrorKind::Data, "a data set without fields"),
            (
                vec![Tensor::zeros(DType::F32, [0, 3]).unwrap()],
                ErrorKind::Data,
                "a data set without examples",
            ),
            (
                vec![y(), Tensor::scalar(1f32)],
                ErrorKind::Shape,
                "field 1: expected examples along a first axis, found a scalar",
            ),
            (
                vec![y(), Tensor::zeros(DType::F32, [3, 2]).unwrap()],
                ErrorKind::Shape,
                "field 1: expected 2 examples as in field 0, found 3",
            ),
            (
                vec![Tensor::new([2, 2], [0f32, 1., 2., f32::NAN]).unwrap(), y()],
                ErrorKind::Data,
                "field 0: row 1: element 1 is NaN or infinite",
            ),
            (
                vec![y(), Tensor::new([2, 1], [f64::NEG_INFINITY, 0.]).unwrap()],
                ErrorKind::Data,
                "field 1: row 0: element 0 is NaN or infinite",
            ),
        ];
        for (fields, kind, message) in cases {
            let error = TensorDataset::new(fields).unwrap_err();
            assert_eq!((error.kind(), error.to_string()), (kind, message.into()));
        }
    }

    #[test]
    fn missing_values_are_allowed_where_asked_for() {
        let x = Tensor::new([3, 2], [0f32, 1., f32::NAN, 3., 4., 5.]).unwrap();
        let data = TensorDataset::with_missing(vec![x]).unwrap();
        assert!(data.has_missing());
        assert!(data.select(&[1, 0]).unwrap().has_missing());
        assert!(!data.select(&[2, 0]).unwrap().has_missing());
        let infinite = Tensor::new([1, 2], [0f32, f32::INFINITY]).unwrap();
        let error = TensorDataset::with_missing(vec![infinite]).unwrap_err();
        assert_eq!(error.to_string(), "field 0: row 0: element 1 is infinite");
    }

    #[test]
    fn labels_are_checked() {
        let data = small();
        assert_eq!(data.classes(1).unwrap(), 3);
        assert!(data.check_labels(1, 3).is_ok());
        let error = data.check_labels(1, 2).unwrap_err();
        assert_eq!(error.to_string(), "field 1: row 1: label 2 is not in 0..2");
        assert_eq!(data.labels(0).unwrap_err().kind(), ErrorKind::Shape);
        assert!(data.labels(2).is_err());
        let negative = TensorDataset::new(vec![Tensor::new([2], [0i64, -1]).unwrap()]).unwrap();
        assert_eq!(negative.classes(0).unwrap_err().kind(), ErrorKind::Data);
        let float = TensorDataset::new(vec![Tensor::new([1], [0f32]).unwrap()]).unwrap();
        assert_eq!(float.labels(0).unwrap_err().kind(), ErrorKind::DType);
    }
}
