//! The confusion matrix and the metrics that follow from it, equal to scikit-learn's.

use std::fmt;

use comfy_table::{CellAlignment, Table, presets};
use opt_core::{Error, ErrorKind, Result};

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
/// // The matrix as a table for the terminal.
/// println!("{matrix}");
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

    fn hits(&self) -> u64 {
        (0..self.classes).map(|c| self.count(c, c)).sum()
    }

    /// The share of examples predicted as their class.
    pub fn accuracy(&self) -> f64 {
        self.hits() as f64 / self.total() as f64
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

    /// The mean recall over the classes that occur among the truth: scikit-learn's
    /// `balanced_accuracy_score`. Guessing one class all the time scores `1 / classes`.
    pub fn balanced_accuracy(&self) -> f64 {
        let occurring = (0..self.classes).filter(|&c| self.support(c) > 0);
        let recalls: Vec<f64> = occurring.map(|c| self.class(c).recall).collect();
        recalls.iter().sum::<f64>() / recalls.len() as f64
    }

    /// Matthews' correlation coefficient for several classes (Gorodkin 2004), in [-1, 1]: 1 is
    /// perfect, 0 no better than chance. 0 where it is undefined: all labels, or all predictions,
    /// are of one class; scikit-learn's `matthews_corrcoef`.
    pub fn matthews(&self) -> f64 {
        let n = self.total() as f64;
        let (truth, predicted) = self.margins();
        let dot = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f64>();
        let covariance = self.hits() as f64 * n - dot(&truth, &predicted);
        let of_truth = n * n - dot(&truth, &truth);
        let of_predicted = n * n - dot(&predicted, &predicted);
        let product = of_truth * of_predicted;
        if product == 0.0 {
            return 0.0;
        }
        covariance / product.sqrt()
    }

    /// Cohen's kappa (1960): agreement beyond chance, `(observed - expected) / (1 - expected)`, at
    /// most 1; scikit-learn's `cohen_kappa_score`. NaN, as there, where it is undefined: labels
    /// and predictions are all of the same one class.
    pub fn cohen_kappa(&self) -> f64 {
        let n = self.total() as f64;
        let (truth, predicted) = self.margins();
        let by_chance: f64 = truth.iter().zip(&predicted).map(|(t, p)| t * p / n).sum();
        let missed = n - self.hits() as f64;
        1.0 - missed / (n - by_chance)
    }

    /// How many examples are of each class, and how many were predicted as it.
    fn margins(&self) -> (Vec<f64>, Vec<f64>) {
        let mut truth = vec![0.0; self.classes];
        let mut predicted = vec![0.0; self.classes];
        for (class, row) in self.rows().enumerate() {
            for (to, &count) in row.iter().enumerate() {
                truth[class] += count as f64;
                predicted[to] += count as f64;
            }
        }
        (truth, predicted)
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

impl fmt::Display for ConfusionMatrix {
    /// The counts as a table for a terminal, without colours: one row a true class, one column a
    /// predicted one.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut table = Table::new();
        table.load_style(presets::UTF8_FULL_CONDENSED);
        let mut header = vec!["true \\ predicted".to_string()];
        header.extend((0..self.classes).map(|c| c.to_string()));
        table.set_header(header);
        for (class, row) in self.rows().enumerate() {
            let mut cells = vec![class.to_string()];
            cells.extend(row.iter().map(u64::to_string));
            table.add_row(cells);
        }
        for column in table.column_iter_mut() {
            column.set_cell_alignment(CellAlignment::Right);
        }
        fmt::Display::fmt(&table, f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

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
    }

    #[test]
    fn one_class_alone_has_no_kappa_and_no_correlation() {
        let matrix = ConfusionMatrix::new(&[1, 1], &[1, 1], 3).unwrap();
        assert!(matrix.cohen_kappa().is_nan());
        assert_eq!(matrix.matthews(), 0.0);
        assert_eq!(matrix.balanced_accuracy(), 1.0);
    }

    #[test]
    fn the_table_has_a_row_for_each_true_class() {
        let matrix = ConfusionMatrix::new(&[0, 1, 1, 1], &[0, 0, 1, 1], 2).unwrap();
        let text = matrix.to_string();
        let rows: Vec<Vec<&str>> = text
            .lines()
            .filter(|line| line.contains('┆'))
            .map(|line| {
                line.split(|c: char| c.is_whitespace() || "│┆".contains(c))
                    .filter(|cell| !cell.is_empty())
                    .collect()
            })
            .collect();
        assert_eq!(rows[0], ["true", "\\", "predicted", "0", "1"]);
        assert_eq!(rows[1..], [["0", "1", "0"], ["1", "1", "2"]]);
    }
}
