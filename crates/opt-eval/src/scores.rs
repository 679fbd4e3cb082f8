//! Metrics of scores, logits and probabilities, equal to scikit-learn's.

use opt_core::{DType, Error, ErrorKind, Result, Tensor};

use crate::Average;

/// The classes with the largest scores: `[N]` from `[N, classes]` of any float dtype. Where
/// several are equally large, the first.
///
/// # Errors
/// [`ErrorKind::Shape`] if the rank is not 2 or there are no classes; [`ErrorKind::DType`] if the
/// scores are no floats; [`ErrorKind::Data`] if a score is NaN.
pub fn argmax(scores: &Tensor) -> Result<Vec<i64>> {
    let width = class_width(scores)?;
    let values = scores.to_f64s();
    let mut out = Vec::with_capacity(scores.shape()[0]);
    for (row, scores) in values.chunks_exact(width).enumerate() {
        let mut best = 0;
        for (class, &score) in scores.iter().enumerate() {
            if score.is_nan() {
                return Err(nan(row, class));
            }
            if score > scores[best] {
                best = class;
            }
        }
        out.push(best as i64);
    }
    Ok(out)
}

/// The share of examples whose class is among the `k` largest scores of `[N, classes]`. Of equal
/// scores the later class counts as larger, as in scikit-learn's `top_k_accuracy_score`.
///
/// # Errors
/// As [`argmax`]; [`ErrorKind::Data`] if there are no examples or a label is out of range;
/// [`ErrorKind::InvalidArgument`] if `k` is 0.
pub fn top_k_accuracy(scores: &Tensor, labels: &[i64], k: usize) -> Result<f64> {
    let width = class_width(scores)?;
    if k == 0 {
        return Err(Error::invalid("top 0 classes"));
    }
    let labels = checked_labels(labels, scores.shape()[0], width)?;
    let mut hits = 0usize;
    for (row, (scores, &label)) in scores
        .to_f64s()
        .chunks_exact(width)
        .zip(&labels)
        .enumerate()
    {
        no_nan(scores, row)?;
        let above = |&(class, score): &(usize, &f64)| {
            *score > scores[label] || (*score == scores[label] && class > label)
        };
        hits += usize::from(scores.iter().enumerate().filter(above).count() < k);
    }
    Ok(hits as f64 / labels.len() as f64)
}

/// The softmax of each row of logits `[N, classes]`, computed in f64: probabilities for
/// [`log_loss`] and [`roc_auc_ovr`].
///
/// # Errors
/// As [`argmax`]; [`ErrorKind::Data`] if a logit is `+inf`, or all of a row are `-inf`.
pub fn softmax(logits: &Tensor) -> Result<Tensor> {
    let width = class_width(logits)?;
    let mut values = logits.to_f64s();
    for (row, logits) in values.chunks_exact_mut(width).enumerate() {
        no_nan(logits, row)?;
        let max = logits.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        if max.is_infinite() {
            let message = format!("the largest logit is {max}");
            return Err(Error::new(ErrorKind::Data, message).at(format!("row {row}")));
        }
        for v in logits.iter_mut() {
            *v = (*v - max).exp();
        }
        let sum: f64 = logits.iter().sum();
        logits.iter_mut().for_each(|v| *v /= sum);
    }
    Tensor::new(logits.shape(), values)
}

/// The mean negative logarithm of the probability of the true class, from probabilities
/// `[N, classes]`; scikit-learn's `log_loss`, PyTorch's `cross_entropy` after a softmax.
///
/// Probabilities are clipped to `[eps, 1 - eps]` with the machine epsilon of their dtype, so that
/// a confident mistake costs much, but not infinitely much. The result is in nats.
///
/// ```
/// use opt_core::Tensor;
/// use opt_eval::{log_loss, softmax};
///
/// let logits = Tensor::new([2, 2], [0f32, 0., 3., 1.])?;
/// let loss = log_loss(&softmax(&logits)?, &[0, 0])?;
/// let expected = (2f64.ln() + (1.0 + (-2f64).exp()).ln()) / 2.0;
/// assert!((loss - expected).abs() < 1e-12);
/// # Ok::<(), opt_core::Error>(())
/// ```
///
/// # Errors
/// As [`top_k_accuracy`]; [`ErrorKind::Data`] if a probability is not in [0, 1] or a row does not
/// sum to 1 within `sqrt(eps)`, as logits do not: take [`softmax`] first.
pub fn log_loss(probabilities: &Tensor, labels: &[i64]) -> Result<f64> {
    let width = class_width(probabilities)?;
    let labels = checked_labels(labels, probabilities.shape()[0], width)?;
    let eps = match probabilities.dtype() {
        DType::F64 => f64::EPSILON,
        DType::F32 => f64::from(f32::EPSILON),
        DType::BF16 => 2f64.powi(-7),
        _ => 2f64.powi(-10),
    };
    let values = probabilities.to_f64s();
    let mut sum = 0.0;
    for (row, (values, &label)) in values.chunks_exact(width).zip(&labels).enumerate() {
        no_nan(values, row)?;
        let total: f64 = values.iter().sum();
        let outside = values.iter().any(|v| !(0.0..=1.0).contains(v));
        if outside || (total - 1.0).abs() > eps.sqrt() {
            let message = format!(
                "expected probabilities that sum to 1, found {values:?} with the sum {total}; \
                 logits need a softmax"
            );
            return Err(Error::new(ErrorKind::Data, message).at(format!("row {row}")));
        }
        sum -= values[label].clamp(eps, 1.0 - eps).ln();
    }
    Ok(sum / labels.len() as f64)
}

/// The area under the receiver operating characteristic of a binary classifier: the chance that
/// an example of class 1 has a larger score than one of class 0, equal scores counting one half;
/// scikit-learn's `roc_auc_score`. Scores `[N]` of any float dtype and scale (probabilities or
/// logits of class 1), infinities included.
///
/// ```
/// use opt_core::Tensor;
///
/// let scores = Tensor::new([4], [0.1f32, 0.4, 0.35, 0.8])?;
/// assert_eq!(opt_eval::roc_auc(&scores, &[0, 0, 1, 1])?, 0.75);
/// # Ok::<(), opt_core::Error>(())
/// ```
///
/// # Errors
/// [`ErrorKind::Shape`] if the rank is not 1 or the lengths differ; [`ErrorKind::DType`] if the
/// scores are no floats; [`ErrorKind::Data`] if there are no examples, a score is NaN, a label is
/// neither 0 nor 1, or a class does not occur: the area is undefined then.
pub fn roc_auc(scores: &Tensor, labels: &[i64]) -> Result<f64> {
    let &[n] = scores.shape() else {
        return Err(Error::shape(format!(
            "expected scores [N] of class 1, found shape {:?}",
            scores.shape()
        )));
    };
    float_scores(scores)?;
    let labels = checked_labels(labels, n, 2)?;
    let values = scores.to_f64s();
    if let Some(row) = values.iter().position(|v| v.is_nan()) {
        return Err(Error::new(ErrorKind::Data, "the score is NaN").at(format!("row {row}")));
    }
    let positive: Vec<bool> = labels.iter().map(|&l| l == 1).collect();
    area(&values, &positive).ok_or_else(|| absent(usize::from(!positive[0])))
}

/// The area under the receiver operating characteristic of each class against the rest, as one
/// figure: the mean over the classes, the mean weighted by their support, or over all pairs of
/// example and class ([`Average::Micro`]); scikit-learn's `roc_auc_score` with
/// `multi_class="ovr"`. Scores are `[N, classes]`; scikit-learn takes probabilities alone, and
/// logits may rank examples differently from their [`softmax`].
///
/// # Errors
/// As [`top_k_accuracy`]; [`ErrorKind::Data`] also if a class does not occur, or is the only one:
/// its area is undefined then.
pub fn roc_auc_ovr(scores: &Tensor, labels: &[i64], average: Average) -> Result<f64> {
    let width = class_width(scores)?;
    let labels = checked_labels(labels, scores.shape()[0], width)?;
    let values = scores.to_f64s();
    for (row, values) in values.chunks_exact(width).enumerate() {
        no_nan(values, row)?;
    }
    let of_class = |class: usize| -> Result<(f64, f64)> {
        let scores: Vec<f64> = values.iter().copied().skip(class).step_by(width).collect();
        let positive: Vec<bool> = labels.iter().map(|&l| l == class).collect();
        let support = positive.iter().filter(|p| **p).count() as f64;
        let area = area(&scores, &positive).ok_or_else(|| absent(class))?;
        Ok((area, support))
    };
    // Also for micro, which would be defined without: a figure over fewer classes misleads.
    let (mut sum, mut weights) = (0.0, 0.0);
    for class in 0..width {
        let (area, support) = of_class(class)?;
        let weight = if average == Average::Weighted {
            support
        } else {
            1.0
        };
        sum += weight * area;
        weights += weight;
    }
    if average == Average::Micro {
        let one_hot = labels.iter().flat_map(|&l| (0..width).map(move |c| c == l));
        let positive: Vec<bool> = one_hot.collect();
        return area(&values, &positive).ok_or_else(|| absent(0));
    }
    Ok(sum / weights)
}

/// The rank statistic of Mann and Whitney (1947); `None` where one of the two sides is empty.
fn area(scores: &[f64], positive: &[bool]) -> Option<f64> {
    let positives = positive.iter().filter(|p| **p).count();
    let negatives = positive.len() - positives;
    if positives == 0 || negatives == 0 {
        return None;
    }
    let mut order: Vec<usize> = (0..scores.len()).collect();
    order.sort_unstable_by(|&a, &b| scores[a].total_cmp(&scores[b]));
    // Twice the number of pairs in order, so that halves stay integers.
    let (mut twice, mut below) = (0u128, 0u128);
    for equal in order.chunk_by(|&a, &b| scores[a] == scores[b]) {
        let hits = equal.iter().filter(|&&i| positive[i]).count() as u128;
        let others = equal.len() as u128 - hits;
        twice += hits * (2 * below + others);
        below += others;
    }
    Some(twice as f64 / 2.0 / (positives as f64 * negatives as f64))
}

fn absent(class: usize) -> Error {
    let message = format!(
        "the area under the curve needs examples of class {class} and of others, which are not \
         both there"
    );
    Error::new(ErrorKind::Data, message).at(format!("class {class}"))
}

/// The labels as indices, one for each of `rows` examples.
fn checked_labels(labels: &[i64], rows: usize, classes: usize) -> Result<Vec<usize>> {
    if labels.len() != rows {
        return Err(Error::shape(format!(
            "{} labels against scores of {rows} examples",
            labels.len()
        )));
    }
    if labels.is_empty() {
        return Err(Error::new(ErrorKind::Data, "metrics of no examples"));
    }
    let one = |(row, &label): (usize, &i64)| {
        let class = usize::try_from(label).ok().filter(|&c| c < classes);
        class.ok_or_else(|| {
            let message = format!("label {label} is not in 0..{classes}");
            Error::new(ErrorKind::Data, message).at(format!("row {row}"))
        })
    };
    labels.iter().enumerate().map(one).collect()
}

fn no_nan(scores: &[f64], row: usize) -> Result<()> {
    match scores.iter().position(|s| s.is_nan()) {
        Some(class) => Err(nan(row, class)),
        None => Ok(()),
    }
}

fn float_scores(scores: &Tensor) -> Result<()> {
    if scores.dtype().is_float() {
        return Ok(());
    }
    Err(Error::dtype(format!(
        "expected float scores, found {}",
        scores.dtype()
    )))
}

fn class_width(scores: &Tensor) -> Result<usize> {
    float_scores(scores)?;
    match *scores.shape() {
        [_, classes] if classes > 0 => Ok(classes),
        _ => Err(Error::shape(format!(
            "expected scores [N, classes], found shape {:?}",
            scores.shape()
        ))),
    }
}

fn nan(row: usize, class: usize) -> Error {
    Error::new(
        ErrorKind::Data,
        format!("the score of class {class} is NaN"),
    )
    .at(format!("row {row}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn argmax_takes_the_first_of_equals() {
        let scores = Tensor::new([3, 3], [1f32, 3., 3., -1., -2., -1., 0., 0., 0.]).unwrap();
        assert_eq!(argmax(&scores).unwrap(), [1, 0, 0]);
        let infinite = Tensor::new([1, 2], [f64::NEG_INFINITY, f64::INFINITY]).unwrap();
        assert_eq!(argmax(&infinite).unwrap(), [1]);
    }

    #[test]
    fn bad_input_is_an_error() {
        let nan = Tensor::new([2, 2], [0f32, 1., f32::NAN, 0.]).unwrap();
        let error = argmax(&nan).unwrap_err();
        assert_eq!(error.to_string(), "row 1: the score of class 0 is NaN");
        assert!(top_k_accuracy(&nan, &[0, 0], 1).is_err());
        let flat = Tensor::new([4], [0f32; 4]).unwrap();
        assert_eq!(argmax(&flat).unwrap_err().kind(), ErrorKind::Shape);
        let ints = Tensor::new([2, 2], [0i64; 4]).unwrap();
        assert_eq!(argmax(&ints).unwrap_err().kind(), ErrorKind::DType);
        let scores = Tensor::new([1, 2], [0f32, 1.]).unwrap();
        assert!(top_k_accuracy(&scores, &[2], 1).is_err());
        assert!(top_k_accuracy(&scores, &[0, 1], 1).is_err());
        assert!(top_k_accuracy(&scores, &[0], 0).is_err());
    }
    #[test]
    fn softmax_of_extreme_logits() {
        let inf = f64::NEG_INFINITY;
        let logits = Tensor::new([2, 2], [1e4, 0.0, inf, 5.0]).unwrap();
        assert_eq!(softmax(&logits).unwrap().to_f64s(), [1.0, 0.0, 0.0, 1.0]);
        for bad in [[inf, inf], [f64::INFINITY, 0.0], [f64::NAN, 0.0]] {
            let error = softmax(&Tensor::new([1, 2], bad).unwrap()).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Data);
            assert!(error.to_string().starts_with("row 0: "), "{error}");
        }
    }

    #[test]
    fn a_confident_mistake_costs_the_logarithm_of_epsilon() {
        let sure = |dtype| Tensor::from_f64s(dtype, [1, 2], &[0.0, 1.0]).unwrap();
        for (dtype, eps) in [(DType::F64, 2f64.powi(-52)), (DType::F32, 2f64.powi(-23))] {
            let loss = log_loss(&sure(dtype), &[0]).unwrap();
            assert!((loss + eps.ln()).abs() < 1e-12, "{loss}");
        }
        let logits = Tensor::new([2, 2], [0.5f32, 0.5, 1.0, 3.0]).unwrap();
        let error = log_loss(&logits, &[0, 0]).unwrap_err().to_string();
        assert!(
            error.starts_with("row 1: expected probabilities"),
            "{error}"
        );
    }

    #[test]
    fn an_area_needs_both_classes_and_numbers() {
        let scores = Tensor::new([2], [0.5f32, 0.25]).unwrap();
        let error = |labels: &[i64]| roc_auc(&scores, labels).unwrap_err();
        assert!(error(&[0, 0]).to_string().starts_with("class 1: "));
        assert!(error(&[1, 1]).to_string().starts_with("class 0: "));
        assert_eq!(error(&[0, 2]).to_string(), "row 1: label 2 is not in 0..2");
        assert_eq!(error(&[0]).kind(), ErrorKind::Shape);
        let nan = Tensor::new([2], [0.5f32, f32::NAN]).unwrap();
        let found = roc_auc(&nan, &[0, 1]).unwrap_err().to_string();
        assert_eq!(found, "row 1: the score is NaN");
        let infinite = Tensor::new([2], [f32::NEG_INFINITY, f32::INFINITY]).unwrap();
        assert_eq!(roc_auc(&infinite, &[0, 1]).unwrap(), 1.0);
        let empty = Tensor::new([0], [0f32; 0]).unwrap();
        assert_eq!(roc_auc(&empty, &[]).unwrap_err().kind(), ErrorKind::Data);
        let wide = Tensor::new([2, 3], [0.2f32; 6]).unwrap();
        assert_eq!(
            roc_auc(&wide, &[0, 1]).unwrap_err().kind(),
            ErrorKind::Shape
        );
        for average in [Average::Macro, Average::Micro, Average::Weighted] {
            let error = roc_auc_ovr(&wide, &[0, 1], average).unwrap_err();
            assert!(error.to_string().starts_with("class 2: "), "{error}");
        }
    }
}
