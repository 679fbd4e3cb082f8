//! Liu et al. 2019.

use opt_core::{Pipeline, Result};
use opt_prune::ChannelPrune;

use super::{Claim, Figures, Judgement, LR, Lab, Verdict};

/// Whether a pruned network is better than one that was small from the start.
#[derive(Debug)]
pub(super) struct Structured;

const LARGE: &str = "300 and 100 neurons";
const PRUNED: &str = "150 and 50, pruned and tuned";
const SCRATCH: &str = "150 and 50, from scratch, as many epochs as the tuning";
const LONG: &str = "150 and 50, from scratch, as many epochs as all training";

impl Claim for Structured {
    fn name(&self) -> &'static str {
        "structured"
    }

    fn title(&self) -> &'static str {
        "A small network trained from scratch is as good as one that was pruned to its size"
    }

    fn paper(&self) -> &'static str {
        "Liu, Sun, Zhou, Huang & Darrell, \"Rethinking the value of network pruning\", ICLR 2019: \
         for structured pruning to widths that are set beforehand, training the small network from \
         scratch reaches the accuracy of the pruned and tuned one, or more."
    }

    fn method(&self) -> &'static str {
        "Half of the neurons of both hidden layers of a trained LeNet-300-100 are removed (those with \
         the lowest L1 norms), the rest is trained for 40 epochs; against the small network from \
         random values for 40 epochs, and for 100. Reproduced if the pruned network is not better \
         than the longer training by more than two standard errors."
    }

    fn measure(&self, lab: &Lab) -> Result<Vec<(&'static str, f64)>> {
        let large = lab.trained()?;
        let halve = Pipeline::new()
            .then(ChannelPrune::to_widths([("fc1", 150), ("fc2", 50)]))
            .then(lab.tune(40, LR));
        let pruned = lab.run(large.clone(), &halve)?;
        let scratch = |epochs| {
            let small = lab.perceptron([150, 50])?;
            lab.error(&lab.apply(small, &lab.tune(epochs, LR))?)
        };
        Ok(vec![
            (LARGE, lab.error(&large)?),
            (PRUNED, lab.error(&pruned)?),
            (SCRATCH, scratch(40)?),
            (LONG, scratch(100)?),
        ])
    }

    fn judge(&self, figures: &Figures) -> Judgement {
        let mean = |name| figures.of(name).mean();
        let long = figures.difference(PRUNED, LONG);
        let short = figures.difference(PRUNED, SCRATCH);
        let verdict = match (long.is_below(), short.is_below()) {
            (false, _) => Verdict::Reproduced,
            (true, _) => Verdict::NotReproduced,
        };
        let words = match long.is_below() {
            true => "the pruned network is better",
            false => "pruning gives no better network than training the small one",
        };
        Judgement {
            verdict,
            headline: format!(
                "pruned {:.2} %, from scratch {:.2} %",
                mean(PRUNED),
                mean(LONG)
            ),
            reason: format!(
                "Pruned minus from scratch, in points of error: {short} for as many epochs as the \
                 tuning had, {long} for as many as all training had: {words}. What pruning saves is \
                 the search for the widths, and training where a large network is there already."
            ),
        }
    }
}
