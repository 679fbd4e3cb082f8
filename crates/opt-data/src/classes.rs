//! Class labels of a data set: reading, counting, weighing.

use opt_core::DType;

use crate::{Dataset, Error, ErrorKind, Result, ResultExt, Tensor};

/// The labels of a field, one `i64` an example, whatever the kind of data set.
///
/// # Errors
/// If an example cannot be read; [`ErrorKind::InvalidArgument`] if there is no such field;
/// [`ErrorKind::DType`] or [`ErrorKind::Shape`] if it does not hold one `i64` an example. The path
/// names the example.
pub fn class_labels(data: &dyn Dataset, field: usize) -> Result<Vec<i64>> {
    (0..data.len()).map(|i| label_of(data, i, field)).collect()
}

fn label_of(data: &dyn Dataset, index: usize, field: usize) -> Result<i64> {
    let place = || format!("example {index}");
    let example = data.get(index).at(place)?;
    let label = example
        .get(field)
        .ok_or_else(|| Error::invalid(format!("no field {field}")).at(place()))?;
    match label.to_vec::<i64>().at(place)?[..] {
        [label] => Ok(label),
        _ => Err(Error::shape(format!(
            "expected one label in field {field}, found shape {:?}",
            label.shape()
        ))
        .at(place())),
    }
}

/// The number of examples of each of the classes `0..classes`.
///
/// ```
/// use opt_data::{class_counts, digits};
///
/// let counts = class_counts(&digits()?.test, 1, 10)?;
/// assert_eq!(counts.iter().sum::<usize>(), 360);
/// # Ok::<(), opt_core::Error>(())
/// ```
///
/// # Errors
/// As [`class_labels`]; [`ErrorKind::Data`] if a label is not in `0..classes` (the path names the
/// example).
pub fn class_counts(data: &dyn Dataset, field: usize, classes: usize) -> Result<Vec<usize>> {
    let labels = class_labels(data, field)?;
    // Labels bound the work: memory is not taken for classes that nothing names.
    let most = labels.iter().copied().max().unwrap_or(0).max(0) as usize;
    if classes > labels.len().saturating_add(most).saturating_add(1 << 20) {
        return Err(Error::invalid(format!(
            "{classes} classes for {} examples, the largest label is {most}",
            labels.len()
        )));
    }
    let mut counts = vec![0; classes];
    for (i, label) in labels.into_iter().enumerate() {
        let count = usize::try_from(label).ok().and_then(|l| counts.get_mut(l));
        match count {
            Some(count) => *count += 1,
            None => {
                let message = format!("label {label} is not in 0..{classes}");
                return Err(Error::new(ErrorKind::Data, message).at(format!("example {i}")));
            }
        }
    }
    Ok(counts)
}

/// Weights of classes that balance them: `examples / (classes * count)` (King & Zeng 2001;
/// scikit-learn's `compute_class_weight("balanced")`). The mean weight of an example is 1.
///
/// ```
/// use opt_core::Tensor;
/// use opt_data::{TensorDataset, balanced_class_weights};
///
/// let labels = Tensor::new([4], [0i64, 0, 0, 1])?;
/// let weights = balanced_class_weights(&TensorDataset::new(vec![labels])?, 0, 2)?;
/// assert_eq!(weights, [4.0 / 6.0, 2.0]);
/// # Ok::<(), opt_core::Error>(())
/// ```
///
/// # Errors
/// As [`class_counts`]; [`ErrorKind::Data`] if a class has no examples, since no weight balances
/// it; [`ErrorKind::InvalidArgument`] if `classes` is 0.
pub fn balanced_class_weights(
    data: &dyn Dataset,
    field: usize,
    classes: usize,
) -> Result<Vec<f64>> {
    if classes == 0 {
        return Err(Error::invalid("expected at least one class, found 0"));
    }
    let counts = class_counts(data, field, classes)?;
    if let Some(class) = counts.iter().position(|&count| count == 0) {
        return Err(Error::new(
            ErrorKind::Data,
            format!("class {class} of {classes} has no examples, so no weight balances it"),
        ));
    }
    let all = data.len() as f64;
    let weight = |&count: &usize| all / (classes as f64 * count as f64);
    Ok(counts.iter().map(weight).collect())
}

/// Class labels as probabilities: `i64` `[N]` to `f32` `[N, classes]` with a 1 in the place of the
/// class and 0 elsewhere, for losses that take soft targets.
///
/// ```
/// use opt_core::Tensor;
/// use opt_data::one_hot;
///
/// let labels = Tensor::new([2], [2i64, 0])?;
/// assert_eq!(one_hot(&labels, 3)?.to_f64s(), [0.0, 0.0, 1.0, 1.0, 0.0, 0.0]);
/// # Ok::<(), opt_core::Error>(())
/// ```
///
/// # Errors
/// [`ErrorKind::Shape`] or [`ErrorKind::DType`] if the labels are not `i64` `[N]`;
/// [`ErrorKind::Data`] if one is not in `0..classes`, with its row in the path.
pub fn one_hot(labels: &Tensor, classes: usize) -> Result<Tensor> {
    let &[n] = labels.shape() else {
        return Err(Error::shape(format!(
            "expected labels of shape [N], found {:?}",
            labels.shape()
        )));
    };
    let labels = labels.to_vec::<i64>()?;
    let mut out = Tensor::zeros(DType::F32, [n, classes])?;
    let probabilities = out.as_slice_mut::<f32>()?;
    for (i, label) in labels.into_iter().enumerate() {
        match usize::try_from(label) {
            Ok(label) if label < classes => probabilities[i * classes + label] = 1.0,
            _ => {
                let message = format!("label {label} is not in 0..{classes}");
                return Err(Error::new(ErrorKind::Data, message).at(format!("row {i}")));
            }
        }
    }
    Ok(out)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::TensorDataset;

    fn data(labels: &[i64]) -> TensorDataset {
        TensorDataset::new(vec![Tensor::new([labels.len()], labels).unwrap()]).unwrap()
    }

    #[test]
    fn counts_and_weights() {
        let data = data(&[2, 0, 2, 1, 2, 2]);
        assert_eq!(class_counts(&data, 0, 4).unwrap(), [1, 1, 4, 0]);
        let weights = balanced_class_weights(&data, 0, 3).unwrap();
        assert_eq!(weights, [2.0, 2.0, 0.5]);
        let mean: f64 = class_labels(&data, 0)
            .unwrap()
            .iter()
            .map(|&l| weights[l as usize])
            .sum();
        assert_eq!(mean, 6.0);
    }

    #[test]
    fn bad_labels_are_errors_that_name_the_example() {
        let error = class_counts(&data(&[0, 3]), 0, 3).unwrap_err();
        assert_eq!(error.to_string(), "example 1: label 3 is not in 0..3");
        let error = class_counts(&data(&[-1]), 0, 3).unwrap_err();
        assert_eq!(error.to_string(), "example 0: label -1 is not in 0..3");
        let error = balanced_class_weights(&data(&[0, 2]), 0, 3).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Data);
        assert!(error.to_string().starts_with("class 1 of 3 has no"));
        assert!(balanced_class_weights(&data(&[0]), 0, 0).is_err());
        assert!(class_counts(&data(&[0]), 1, 3).is_err());
        assert!(class_counts(&data(&[0]), 0, usize::MAX).is_err());
        let float = TensorDataset::new(vec![Tensor::new([1], [0f32]).unwrap()]).unwrap();
        let error = class_labels(&float, 0).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::DType);
        for (bad, classes) in [(-1i64, 3), (3, 3), (0, 0)] {
            let error = one_hot(&Tensor::new([1], [bad]).unwrap(), classes).unwrap_err();
            assert_eq!(
                error.to_string(),
                format!("row 0: label {bad} is not in 0..{classes}")
            );
        }
        assert!(one_hot(&Tensor::new([1, 1], [0i64]).unwrap(), 2).is_err());
        assert!(one_hot(&Tensor::new([1], [0f32]).unwrap(), 2).is_err());
        let wide = TensorDataset::new(vec![Tensor::new([1, 2], [0i64, 1]).unwrap()]).unwrap();
        assert_eq!(class_labels(&wide, 0).unwrap_err().kind(), ErrorKind::Shape);
    }
}
