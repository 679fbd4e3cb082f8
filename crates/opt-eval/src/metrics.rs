//! Classification metrics, equal to scikit-learn's.

use opt_core::{Error, ErrorKind, Result, Tensor};

/// How many examples of each true class were predicted as each class, and the metrics that
/// follow from it.
///
/// A ratio whose denominator is 0 (the precision of a class that is never predicted, the recall
/// of a class that never occurs) is 0, or what [`ConfusionMatrix::zero_division`] says, as with
/// scikit-learn's parameter of that name. Averages are taken over the classes that occur among
/// the truth or the predictions, as scikit-learn does where no list of labels is given.
///
/// ```
/// use opt_eval::{Average, ConfusionMatrix};
///
/// let matrix = ConfusionMatrix::new(&[0, 1, 2, 2], &[0, 2, 2, 2], 3)?;
/// assert_eq!(matrix.count(1, 2), 1);
/// assert_eq!(matrix.accuracy(), 0.75);
/// assert_eq!(matrix.class(2).recall, 1.0);
/// assert!((matrix.f1(Average::Macro) - 0.6).abs() < 1e-12);
/// # Ok::<(), opt_core::Error>(())
/// ```
#[derive(Debug, Clone, PartialEq)]
pub struct ConfusionMatrix {
    classes: usize,
    /// Row: true class; column: predicted class.
    counts: Vec<u64>,
    zero_division: f64,
}

/// How the figures of the classes become one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Average {
    /// The mean over the classes, each with the same weight.
    Macro,
    /// Over all examples: with one label an example, precision, recall and F1 are the accuracy.
    Micro,
    /// The mean over the classes weighted by their support.
    Weighted,
}

/// The figures of one class.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct ClassMetrics {
    /// Of the examples predicted as the class, the share that is of it.
    pub precision: f64,
    /// Of the examples of the class, the share predicted as it.
    pub recall: f64,
    /// The harmonic mean of precision and recall: `2 tp / (2 tp + fp + fn)`.
    pub f1: f64,
    /// The number of examples of the class.
    pub support: u64,
}

impl ConfusionMatrix {
    /// Counts predictions against the truth, for classes `0..classes`.
    ///
    /// # Errors
    /// [`ErrorKind::Shape`] if the two differ in length; [`ErrorKind::Data`] if there are no
    /// examples, or a label or prediction is not in `0..classes`.
    pub fn new(truth: &[i64], predicted: &[i64], classes: usize) -> Result<ConfusionMatrix> {
        if truth.len() != predicted.len() {
            return Err(Error::shape(format!(
                "{} labels against {} predictions",
                truth.len(),
                predicted.len()
            )));
        }
        if truth.is_empty() {
            return Err(Error::new(ErrorKind::Data, "metrics of no examples"));
        }
        let cells = classes
            .checked_mul(classes)
            .filter(|&cells| cells <= 1 << 28)
            .ok_or_else(|| Error::invalid(format!("{classes} classes are too many")))?;
        let mut counts = vec![0; cells];
        for (row, pair) in truth.iter().zip(predicted).enumerate() {
            let class = |what: &str, label: i64| {
                let class = usize::try_from(label).ok().filter(|&c| c < classes);
                class.ok_or_else(|| {
                    Error::new(
                        ErrorKind::Data,
                        format!("{what} {label} is not in 0..{classes}"),
                    )
                    .at(format!("row {row}"))
                })
            };
            counts[class("label", *pair.0)? * classes + class("prediction", *pair.1)?] += 1;
        }
        Ok(ConfusionMatrix {
            classes,
            counts,
            zero_division: 0.0,
        })
    }

    /// The value of a ratio whose denominator is 0. Default: 0.
    #[must_use]
    pub fn zero_division(mut self, value: f64) -> ConfusionMatrix {
        self.zero_division = value;
        self
    }

    /// The number of classes.
    pub fn classes(&self) -> usize {
        self.classes
    }

    /// How many examples of a true class were predicted as a class.
    ///
    /// # Panics
    /// If a class is not below [`ConfusionMatrix::classes`].
    pub fn count(&self, truth: usize, predicted: usize) -> u64 {
        assert!(truth < self.classes && predicted < self.classes);
        self.counts[truth * self.classes + predicted]
    }

    /// The counts, one row a true class.
    pub fn rows(&self) -> impl Iterator<Item = &[u64]> {
        self.counts.chunks_exact(self.classes)
    }

    fn support(&self, class: usize) -> u64 {
        self.counts[class * self.classes..][..self.classes]
            .iter()
            .sum()
    }

    fn predicted(&self, class: usize) -> u64 {
        self.rows().map(|row| row[class]).sum()
    }

    fn total(&self) -> u64 {
        self.counts.iter().sum()
    }

    fn ratio(&self, numerator: u64, denominator: u64) -> f64 {
        if denominator == 0 {
            return self.zero_division;
        }
        numerator as f64 / denominator as f64
    }

    /// The share of examples predicted as their class.
    pub fn accuracy(&self) -> f64 {
        let hits: u64 = (0..self.classes).map(|c| self.count(c, c)).sum();
        hits as f64 / self.total() as f64
    }

    /// The figures of a class.
    ///
    /// # Panics
    /// If the class is not below [`ConfusionMatrix::classes`].
    pub fn class(&self, class: usize) -> ClassMetrics {
        let hits = self.count(class, class);
        let (support, predicted) = (self.support(class), self.predicted(class));
        ClassMetrics {
            precision: self.ratio(hits, predicted),
            recall: self.ratio(hits, support),
            f1: self.ratio(2 * hits, support + predicted),
            support,
        }
    }

    fn average(&self, average: Average, of: impl Fn(ClassMetrics) -> f64) -> f64 {
        let (mut sum, mut weights) = (0.0, 0.0);
        for class in 0..self.classes {
            let metrics = self.class(class);
            if metrics.support == 0 && self.predicted(class) == 0 {
                continue;
            }
            let weight = match average {
                Average::Micro => return self.accuracy(),
                Average::Macro => 1.0,
                Average::Weighted => metrics.support as f64,
            };
            sum += weight * of(metrics);
            weights += weight;
        }
        sum / weights
    }

    /// Precision over all classes.
    pub fn precision(&self, average: Average) -> f64 {
        self.average(average, |class| class.precision)
    }

    /// Recall over all classes.
    pub fn recall(&self, average: Average) -> f64 {
        self.average(average, |class| class.recall)
    }

    /// F1 over all classes.
    pub fn f1(&self, average: Average) -> f64 {
        self.average(average, |class| class.f1)
    }
}

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
    if labels.len() != scores.shape()[0] {
        return Err(Error::shape(format!(
            "{} labels against scores of shape {:?}",
            labels.len(),
            scores.shape()
        )));
    }
    if labels.is_empty() {
        return Err(Error::new(ErrorKind::Data, "metrics of no examples"));
    }
    let mut hits = 0usize;
    for (row, (scores, &label)) in scores.to_f64s().chunks_exact(width).zip(labels).enumerate() {
        if let Some(class) = scores.iter().position(|s| s.is_nan()) {
            return Err(nan(row, class));
        }
        let label = usize::try_from(label)
            .ok()
            .filter(|&l| l < width)
            .ok_or_else(|| {
                let message = format!("label {label} is not in 0..{width}");
                Error::new(ErrorKind::Data, message).at(format!("row {row}"))
            })?;
        let above = |&(class, score): &(usize, &f64)| {
            *score > scores[label] || (*score == scores[label] && class > label)
        };
        hits += usize::from(scores.iter().enumerate().filter(above).count() < k);
    }
    Ok(hits as f64 / labels.len() as f64)
}

fn class_width(scores: &Tensor) -> Result<usize> {
    if !scores.dtype().is_float() {
        return Err(Error::dtype(format!(
            "expected float scores, found {}",
            scores.dtype()
        )));
    }
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
        let kind = |r: Result<ConfusionMatrix>| r.unwrap_err().kind();
        assert_eq!(kind(ConfusionMatrix::new(&[], &[], 2)), ErrorKind::Data);
        assert_eq!(
            kind(ConfusionMatrix::new(&[0], &[0, 1], 2)),
            ErrorKind::Shape
        );
        assert!(ConfusionMatrix::new(&[0], &[0], usize::MAX).is_err());
        let error = ConfusionMatrix::new(&[0, 1], &[0, -1], 2).unwrap_err();
        assert_eq!(error.to_string(), "row 1: prediction -1 is not in 0..2");
        let error = ConfusionMatrix::new(&[2, 1], &[0, 1], 2).unwrap_err();
        assert_eq!(error.to_string(), "row 0: label 2 is not in 0..2");

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
}
