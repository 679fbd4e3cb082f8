//! Hinton, Vinyals & Dean 2015, the digit that the student never saw.

use opt_core::{Graph, Result, Tensor};
use opt_data::{GaussianNoise, TensorDataset};
use opt_eval::predict;
use opt_train::FineTune;

use super::{Claim, Figures, Judgement, LR, Lab, Verdict};

/// Soft targets tell a student about a class of which it sees no example.
#[derive(Debug)]
pub(super) struct MissingDigit;

const MISSING: i64 = 3;

const TEACHER: &str = "teacher, all classes: threes recognised";
const SOFT: &str = "soft targets, no threes: recognised";
const SOFT_BIAS: &str = "soft targets, no threes, bias corrected: recognised";
const SOFT_ERROR: &str = "soft targets, no threes, bias corrected: error on all digits";
const HARD: &str = "labels, no threes: recognised";
const HARD_BIAS: &str = "labels, no threes, bias corrected: recognised";

impl Claim for MissingDigit {
    fn name(&self) -> &'static str {
        "missing-digit"
    }

    fn title(&self) -> &'static str {
        "Soft targets teach a digit that the student never saw"
    }

    fn paper(&self) -> &'static str {
        "Hinton, Vinyals & Dean, \"Distilling the knowledge in a neural network\", 2015, section 3: \
         a student that saw no 3 in its transfer set recognises 98.6 % of the 1,010 test threes once \
         its bias for the class is raised."
    }

    fn method(&self) -> &'static str {
        "A LeNet-300-100 teacher trained on all ten digits, with noise on the pixels against \
         overfitting (the paper's had dropout and shifted images); a student with hidden layers of \
         150 and 50 sees the images that are no 3, with the teacher's probabilities at temperature 4 \
         (no labels), or with their labels. The bias that is added to the class is the one under which \
         the student says 3 as often as the teacher does on the training images; no label is used, \
         and no test image. Reproduced if at least 97 % of the test threes are recognised."
    }

    fn measure(&self, lab: &Lab) -> Result<Vec<(&'static str, f64)>> {
        let noisy = lab.trainer(60, LR).augment(GaussianNoise::new(0.1)?);
        let teacher = lab.apply(lab.lenet()?, &FineTune(noisy))?;
        let labels = lab.train.labels(1)?;
        let others: Vec<usize> = (0..labels.len())
            .filter(|&i| labels[i] != MISSING)
            .collect();
        let transfer = lab.train.select(&others)?;
        let student = lab.perceptron([150, 50])?;
        let soft = lab.distil(4.0, 150, LR);
        let soft = lab.teach(student.clone(), &soft, &transfer, &teacher)?;
        let hard = lab.teach(student, &lab.tune(150, LR), &transfer, &teacher)?;
        let soft_bias = correction(lab, &soft, &teacher)?;
        let hard_bias = correction(lab, &hard, &teacher)?;
        let (recognised, error) = recognition(lab, &soft, soft_bias)?;
        Ok(vec![
            (TEACHER, recognition(lab, &teacher, 0.0)?.0),
            (SOFT, recognition(lab, &soft, 0.0)?.0),
            (SOFT_BIAS, recognised),
            (SOFT_ERROR, error),
            (HARD, recognition(lab, &hard, 0.0)?.0),
            (HARD_BIAS, recognition(lab, &hard, hard_bias)?.0),
        ])
    }

    fn judge(&self, figures: &Figures) -> Judgement {
        let mean = |name| figures.of(name).mean();
        let found = mean(SOFT_BIAS);
        let verdict = match (found >= 97.0, found >= 90.0) {
            (true, _) => Verdict::Reproduced,
            (false, true) => Verdict::Partly,
            (false, false) => Verdict::NotReproduced,
        };
        Judgement {
            verdict,
            headline: format!(
                "{found:.1} % of the threes, {:.1} % from labels",
                mean(HARD)
            ),
            reason: format!(
                "Taught by soft targets the student recognises {:.1} % of the threes as it is, and \
                 {found:.1} % with the bias corrected (the teacher: {:.1} %), at an error of {:.2} % \
                 on all digits. Taught by labels it never says 3 ({:.1} %), and a corrected bias \
                 brings {:.1} %.",
                mean(SOFT),
                mean(TEACHER),
                mean(SOFT_ERROR),
                mean(HARD),
                mean(HARD_BIAS)
            ),
        }
    }
}

/// The logits of a network, a row an image.
fn logits(lab: &Lab, graph: &Graph, data: &TensorDataset) -> Result<Vec<f64>> {
    Ok(predict(graph, data, lab.backend(), 512)?.to_f64s())
}

/// What has to be added to the class's logit for it to be the largest.
fn margin(row: &[f64]) -> f64 {
    let others = row.iter().enumerate().filter(|(c, _)| *c as i64 != MISSING);
    let best = others.map(|(_, &v)| v).fold(f64::NEG_INFINITY, f64::max);
    best - row[MISSING as usize]
}

/// The bias under which a student says 3 as often as the teacher on the training images.
fn correction(lab: &Lab, student: &Graph, teacher: &Graph) -> Result<f64> {
    let says = |row: &&[f64]| margin(row) < 0.0;
    let threes = logits(lab, teacher, &lab.train)?
        .chunks(10)
        .filter(says)
        .count();
    let student = logits(lab, student, &lab.train)?;
    let mut margins: Vec<f64> = student.chunks(10).map(margin).collect();
    margins.sort_by(f64::total_cmp);
    Ok(match threes {
        0 => 0.0,
        n => (margins[n - 1] + margins[n.min(margins.len() - 1)]) / 2.0,
    })
}

/// The share of the test threes that are recognised, and the error on all test images, in percent.
fn recognition(lab: &Lab, graph: &Graph, bias: f64) -> Result<(f64, f64)> {
    let logits = logits(lab, graph, &lab.test)?;
    let labels: &Tensor = lab.test.field(1)?;
    let labels = labels.to_vec::<i64>()?;
    let (mut threes, mut found, mut wrong) = (0, 0, 0);
    for (row, &label) in logits.chunks(10).zip(&labels) {
        let mut row = row.to_vec();
        row[MISSING as usize] += bias;
        let best = (1..10).fold(0, |best, c| if row[c] > row[best] { c } else { best }) as i64;
        threes += usize::from(label == MISSING);
        found += usize::from(label == MISSING && best == MISSING);
        wrong += usize::from(label != best);
    }
    let percent = |n: usize, of: usize| 100.0 * n as f64 / of as f64;
    Ok((percent(found, threes), percent(wrong, labels.len())))
}
