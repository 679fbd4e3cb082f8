//! Categories as numbers: indicators, and consecutive codes.

use opt_core::DType;

use super::statistics::{Missing, each_batch, map_rows};
use super::{Transform, check_examples};
use crate::{Dataset, Error, ErrorKind, Result, ResultExt, Tensor, class_labels};

/// The distinct values of some columns of a field `[N, D]`.
#[derive(Debug, Clone, PartialEq)]
struct Categories {
    /// By column of the field: the values, sorted, where it is encoded.
    values: Vec<Option<Vec<f32>>>,
}

impl Categories {
    fn fit(train: &dyn Dataset, field: usize, columns: &[usize]) -> Result<Categories> {
        if columns.is_empty() {
            return Err(Error::invalid("no columns to encode"));
        }
        let mut values: Vec<Option<Vec<f32>>> = Vec::new();
        each_batch(train, field, Missing::Allowed, |start, x, example| {
            let &[width] = example else {
                return Err(Error::shape(format!(
                    "expected examples of shape [D], found {example:?}"
                )));
            };
            if values.is_empty() {
                values = vec![None; width];
                for &c in columns {
                    let column = values.get_mut(c).ok_or_else(|| {
                        Error::invalid(format!("no column {c}: examples have {width}"))
                    })?;
                    if column.replace(Vec::new()).is_some() {
                        return Err(Error::invalid(format!("column {c} is named twice")));
                    }
                }
            }
            for (i, row) in x.chunks_exact(width).enumerate() {
                for (c, &value) in row.iter().enumerate() {
                    let Some(known) = &mut values[c] else {
                        continue;
                    };
                    if value.is_nan() {
                        return Err(Error::new(
                            ErrorKind::Data,
                            format!(
                                "column {c} is NaN; fill missing values with an `Imputer` first"
                            ),
                        )
                        .at(format!("row {}", start + i)));
                    }
                    if let Err(at) = position(known, value) {
                        // -0 is 0.
                        known.insert(at, value + 0.0);
                    }
                }
            }
            Ok(())
        })?;
        Ok(Categories { values })
    }

    fn of(&self, column: usize) -> Option<&[f32]> {
        self.values.get(column)?.as_deref()
    }

    fn width(&self) -> usize {
        self.values.len()
    }
}

/// Where a value is among sorted ones, or where it would be.
fn position(sorted: &[f32], value: f32) -> Result<usize, usize> {
    sorted.binary_search_by(|v| v.total_cmp(&(value + 0.0)))
}

fn unknown(column: usize, value: f32) -> Error {
    Error::new(
        ErrorKind::Data,
        format!("{value} is none of the categories of the training part"),
    )
    .at(format!("column {column}"))
}

/// Encodes columns of a field `[N, D]` as indicators: a column of `K` categories becomes `K`
/// columns in its place, 1 for the category of the example and 0 for all others (scikit-learn's
/// `OneHotEncoder`). The other columns stay.
///
/// ```
/// use opt_core::Tensor;
/// use opt_data::{OneHot, TensorDataset};
///
/// let x = Tensor::new([3, 2], [5f32, 0.5, 7., 1.5, 5., 2.5])?;
/// let train = TensorDataset::new(vec![x])?;
/// let encoder = OneHot::fit(&train, 0, [0])?;
/// assert_eq!(encoder.categories(0), Some(&[5.0, 7.0][..]));
/// let x = train.map(0, &encoder)?.fields()[0].to_f64s();
/// assert_eq!(x, [1.0, 0.0, 0.5, 0.0, 1.0, 1.5, 1.0, 0.0, 2.5]);
/// # Ok::<(), opt_core::Error>(())
/// ```
#[derive(Debug, Clone, PartialEq)]
pub struct OneHot {
    categories: Categories,
    ignore_unknown: bool,
}

impl OneHot {
    /// Finds the categories, the distinct values of each column, on a field of the training part.
    /// Columns are counted from 0.
    ///
    /// # Errors
    /// If the data set is empty, the field does not exist or is not `f32` `[N, D]`, a column is not
    /// there or comes twice, there are none, or an encoded column has a NaN.
    pub fn fit(train: &dyn Dataset, field: usize, columns: impl AsRef<[usize]>) -> Result<OneHot> {
        Ok(OneHot {
            categories: Categories::fit(train, field, columns.as_ref())?,
            ignore_unknown: false,
        })
    }

    /// Whether a value that the training part did not have is all zeros, rather than an error.
    /// Default: false.
    #[must_use]
    pub fn ignore_unknown(mut self, ignore: bool) -> OneHot {
        self.ignore_unknown = ignore;
        self
    }

    /// The categories of a column of the input, in the order of their indicators; none if it is
    /// not encoded.
    pub fn categories(&self, column: usize) -> Option<&[f32]> {
        self.categories.of(column)
    }

    /// The number of columns of the output.
    pub fn width(&self) -> usize {
        let columns = self.categories.values.iter();
        columns.map(|c| c.as_ref().map_or(1, Vec::len)).sum()
    }
}

impl Transform for OneHot {
    fn apply(&self, field: &Tensor) -> Result<Tensor> {
        let width = self.categories.width();
        check_examples(field, &[width])?;
        map_rows(field, width, &[self.width()], |from, mut to| {
            for (c, &value) in from.iter().enumerate() {
                let known = self.categories.of(c);
                let (head, tail) = to.split_at_mut(known.map_or(1, <[f32]>::len));
                match known.map(|known| position(known, value)) {
                    None => head[0] = value,
                    Some(Ok(at)) => head[at] = 1.0,
                    Some(Err(_)) if self.ignore_unknown => {}
                    Some(Err(_)) => return Err(unknown(c, value)),
                }
                to = tail;
            }
            Ok(())
        })
    }
}

/// Encodes columns of a field `[N, D]` by the positions 0, 1, .. of their values among the sorted
/// distinct ones (scikit-learn's `OrdinalEncoder`). The other columns stay.
#[derive(Debug, Clone, PartialEq)]
pub struct Ordinal {
    categories: Categories,
    unknown: Option<f32>,
}

impl Ordinal {
    /// Finds the categories on a field of the training part.
    ///
    /// # Errors
    /// As [`OneHot::fit`].
    pub fn fit(train: &dyn Dataset, field: usize, columns: impl AsRef<[usize]>) -> Result<Ordinal> {
        Ok(Ordinal {
            categories: Categories::fit(train, field, columns.as_ref())?,
            unknown: None,
        })
    }

    /// The code of values that the training part did not have, such as -1. Default: they are
    /// errors.
    #[must_use]
    pub fn unknown_value(mut self, code: f32) -> Ordinal {
        self.unknown = Some(code);
        self
    }

    /// The categories of a column in the order of their codes; none if it is not encoded.
    pub fn categories(&self, column: usize) -> Option<&[f32]> {
        self.categories.of(column)
    }
}

impl Transform for Ordinal {
    fn apply(&self, field: &Tensor) -> Result<Tensor> {
        let width = self.categories.width();
        check_examples(field, &[width])?;
        map_rows(field, width, &[width], |from, to| {
            for (c, (to, &value)) in to.iter_mut().zip(from).enumerate() {
                *to = match self.categories.of(c).map(|known| position(known, value)) {
                    None => value,
                    Some(Ok(at)) => at as f32,
                    Some(Err(_)) => self.unknown.ok_or_else(|| unknown(c, value))?,
                };
            }
            Ok(())
        })
    }
}

/// Encodes `i64` labels `[N]` by their positions 0, 1, .. among the sorted distinct ones
/// (scikit-learn's `LabelEncoder`): the class indices that losses take.
///
/// ```
/// use opt_core::Tensor;
/// use opt_data::{LabelEncoder, TensorDataset};
///
/// let train = TensorDataset::new(vec![Tensor::new([3], [30i64, 7, 30])?])?;
/// let encoder = LabelEncoder::fit(&train, 0)?;
/// let encoded = train.map(0, &encoder)?;
/// assert_eq!(encoded.labels(0)?, [1, 0, 1]);
/// assert_eq!(encoder.inverse(&encoded.fields()[0])?.to_vec::<i64>()?, [30, 7, 30]);
/// # Ok::<(), opt_core::Error>(())
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LabelEncoder {
    classes: Vec<i64>,
}

impl LabelEncoder {
    /// Finds the classes in a field of the training part.
    ///
    /// # Errors
    /// As [`class_labels`]; [`ErrorKind::Data`] if there are no examples.
    pub fn fit(train: &dyn Dataset, field: usize) -> Result<LabelEncoder> {
        let mut classes = class_labels(train, field)?;
        if classes.is_empty() {
            return Err(Error::new(ErrorKind::Data, "labels of an empty data set"));
        }
        classes.sort_unstable();
        classes.dedup();
        Ok(LabelEncoder { classes })
    }

    /// The labels, in the order of their codes.
    pub fn classes(&self) -> &[i64] {
        &self.classes
    }

    /// The labels of codes.
    ///
    /// # Errors
    /// If the tensor is not `i64`, or has a code that is out of range.
    pub fn inverse(&self, codes: &Tensor) -> Result<Tensor> {
        let label = |code: i64| {
            let at = usize::try_from(code).ok();
            at.and_then(|at| self.classes.get(at))
                .copied()
                .ok_or_else(|| {
                    let message = format!("code {code} is not in 0..{}", self.classes.len());
                    Error::new(ErrorKind::Data, message)
                })
        };
        map_labels(codes, label)
    }
}

impl Transform for LabelEncoder {
    fn apply(&self, field: &Tensor) -> Result<Tensor> {
        map_labels(field, |label| match self.classes.binary_search(&label) {
            Ok(at) => Ok(at as i64),
            Err(_) => Err(Error::new(
                ErrorKind::Data,
                format!("label {label} is none of those of the training part"),
            )),
        })
    }
}

fn map_labels(field: &Tensor, f: impl Fn(i64) -> Result<i64>) -> Result<Tensor> {
    if field.dtype() != DType::I64 {
        return Err(Error::dtype(format!(
            "expected labels of i64, found {}",
            field.dtype()
        )));
    }
    let mut out = field.contiguous();
    for (i, v) in out.as_slice_mut::<i64>()?.iter_mut().enumerate() {
        *v = f(*v).at(|| format!("row {i}"))?;
    }
    Ok(out)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::TensorDataset;

    fn data(x: &[f32]) -> TensorDataset {
        let x = Tensor::new([x.len() / 3, 3], x).unwrap();
        TensorDataset::with_missing(vec![x]).unwrap()
    }

    #[test]
    fn indicators_and_codes_stand_where_the_column_was() {
        let train = data(&[2., 0.5, -0.0, 1., f32::NAN, 0.0, 2., 1.5, 9.0]);
        let one_hot = OneHot::fit(&train, 0, [0, 2]).unwrap();
        assert_eq!(one_hot.categories(2), Some(&[0.0, 9.0][..]));
        assert_eq!((one_hot.categories(1), one_hot.width()), (None, 5));
        let test = data(&[1., 3., 9.]);
        let x = one_hot.apply(&test.fields()[0]).unwrap();
        assert_eq!(
            (x.shape(), x.to_f64s()),
            (&[1, 5][..], vec![1., 0., 3., 0., 1.])
        );
        let ordinal = Ordinal::fit(&train, 0, [2, 0]).unwrap();
        let x = ordinal.apply(&test.fields()[0]).unwrap();
        assert_eq!(x.to_f64s(), [0., 3., 1.]);
    }

    #[test]
    fn unknown_categories_are_errors_unless_allowed() {
        let train = data(&[2., 0.5, 0.0, 1., 1.5, 0.0]);
        let test = data(&[2., 1., 0., 5., 3., 0.]);
        let x = &test.fields()[0];
        let one_hot = OneHot::fit(&train, 0, [0]).unwrap();
        let message = "row 1: column 0: 5 is none of the categories of the training part";
        assert_eq!(one_hot.apply(x).unwrap_err().to_string(), message);
        let lenient = one_hot.ignore_unknown(true).apply(x).unwrap();
        assert_eq!(lenient.to_f64s(), [0., 1., 1., 0., 0., 0., 3., 0.]);
        let ordinal = Ordinal::fit(&train, 0, [0]).unwrap();
        assert_eq!(ordinal.apply(x).unwrap_err().to_string(), message);
        let lenient = ordinal.unknown_value(-1.0).apply(x).unwrap();
        assert_eq!(lenient.to_f64s(), [1., 1., 0., -1., 3., 0.]);
        let nan = Tensor::new([1, 3], [f32::NAN, 0., 0.]).unwrap();
        assert!(OneHot::fit(&train, 0, [0]).unwrap().apply(&nan).is_err());
    }

    #[test]
    fn labels_become_consecutive() {
        let labels = |x: &[i64]| Tensor::new([x.len()], x).unwrap();
        let train = TensorDataset::new(vec![labels(&[9, -4, 9, 3])]).unwrap();
        let encoder = LabelEncoder::fit(&train, 0).unwrap();
        assert_eq!(encoder.classes(), [-4, 3, 9]);
        let codes = encoder.apply(&labels(&[3, 9])).unwrap();
        assert_eq!(codes.to_vec::<i64>().unwrap(), [1, 2]);
        let error = encoder.apply(&labels(&[3, 4])).unwrap_err();
        assert_eq!(
            error.to_string(),
            "row 1: label 4 is none of those of the training part"
        );
        for bad in [-1, 3] {
            let error = encoder.inverse(&labels(&[bad])).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Data);
        }
        let float = Tensor::new([1], [3f32]).unwrap();
        assert_eq!(encoder.apply(&float).unwrap_err().kind(), ErrorKind::DType);
    }

    #[test]
    fn bad_columns_are_errors() {
        let train = data(&[2., f32::NAN, 0.0]);
        assert!(OneHot::fit(&train, 0, []).is_err());
        let missing = Ordinal::fit(&train, 0, [1]).unwrap_err();
        assert!(
            missing
                .to_string()
                .starts_with("field 0: row 0: column 1 is NaN")
        );
        for columns in [[0, 3], [0, 0]] {
            let error = OneHot::fit(&train, 0, columns).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::InvalidArgument);
        }
        let images = Tensor::new([1, 2, 2], [0f32; 4]).unwrap();
        let images = TensorDataset::new(vec![images]).unwrap();
        let error = OneHot::fit(&images, 0, [0]).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Shape);
    }
}
