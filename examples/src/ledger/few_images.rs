//! Hinton, Vinyals & Dean 2015, soft targets as regularizers.

use opt_core::Result;

use super::{Claim, Figures, Judgement, LR, Lab, Verdict};

/// Soft targets need far fewer examples than labels.
#[derive(Debug)]
pub(super) struct FewImages;

const TEACHER: &str = "teacher, all 898 images";
const HARD: &str = "90 images, labels";
const SOFT: &str = "90 images, soft targets";

impl Claim for FewImages {
    fn name(&self) -> &'static str {
        "few-images"
    }

    fn title(&self) -> &'static str {
        "With soft targets a few images teach what labels need many for"
    }

    fn paper(&self) -> &'static str {
        "Hinton, Vinyals & Dean, \"Distilling the knowledge in a neural network\", 2015, section 6: \
         with 3 % of the speech data a model trained on labels overfits (44.5 % of frames right on \
         the test set), one trained on the soft targets of a model that saw all data does not \
         (57.0 %; all data: 58.9 %)."
    }

    fn method(&self) -> &'static str {
        "Nine training images of each digit. LeNet-300-100 learns them from their labels, or from the \
         probabilities, at temperature 8, of a LeNet-300-100 that was trained on all 898. The same \
         number of steps, 200 epochs. Reproduced if soft targets remove at least two fifths of the \
         error that labels leave."
    }

    fn measure(&self, lab: &Lab) -> Result<Vec<(&'static str, f64)>> {
        let teacher = lab.trained()?;
        let labels = lab.train.labels(1)?;
        let mut few = Vec::new();
        for digit in 0..10 {
            few.extend((0..labels.len()).filter(|&i| labels[i] == digit).take(9));
        }
        let few = lab.train.select(&few)?;
        let hard = lab.teach(lab.lenet()?, &lab.tune(200, LR), &few, &teacher)?;
        let soft = lab.distil(8.0, 200, LR);
        let soft = lab.teach(lab.lenet()?, &soft, &few, &teacher)?;
        Ok(vec![
            (TEACHER, lab.error(&teacher)?),
            (HARD, lab.error(&hard)?),
            (SOFT, lab.error(&soft)?),
        ])
    }

    fn judge(&self, figures: &Figures) -> Judgement {
        let change = figures.difference(SOFT, HARD);
        let mean = |name| figures.of(name).mean();
        let verdict = match (mean(SOFT) <= 0.6 * mean(HARD), change.is_below()) {
            (true, true) => Verdict::Reproduced,
            (false, true) => Verdict::Partly,
            _ => Verdict::NotReproduced,
        };
        Judgement {
            verdict,
            headline: format!(
                "error {:.2} % from soft targets, {:.2} % from labels ({change})",
                mean(SOFT),
                mean(HARD)
            ),
            reason: format!(
                "With nine images of each digit soft targets change the error by {change} points; \
                 the teacher, with ten times the images, is at {:.2} %.",
                mean(TEACHER)
            ),
        }
    }
}
