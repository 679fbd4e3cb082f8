//! Han et al. 2015.

use opt_core::Result;
use opt_prune::{PolynomialDecay, PruneRetrain, Scope, UnstructuredPrune};

use super::{Claim, Figures, Judgement, LR, Lab, Verdict};

/// Most weights can be removed without loss.
#[derive(Debug)]
pub(super) struct Pruning;

/// The share of weights that is removed when a certain number remains.
const TIMES: [(&str, f64); 4] = [
    ("10.5 times fewer weights", 10.5),
    ("12 times fewer weights", 12.0),
    ("20 times fewer weights", 20.0),
    ("50 times fewer weights", 50.0),
];

impl Claim for Pruning {
    fn name(&self) -> &'static str {
        "pruning"
    }

    fn title(&self) -> &'static str {
        "A network keeps its accuracy with a twelfth of its weights"
    }

    fn paper(&self) -> &'static str {
        "Han, Pool, Tran & Dally, \"Learning both weights and connections for efficient neural \
         networks\", NeurIPS 2015, table 1: LeNet-300-100 on MNIST loses 12 of 13 weights, error \
         1.64 % before, 1.59 % after pruning and retraining."
    }

    fn method(&self) -> &'static str {
        "LeNet-300-100 (50,610 parameters here) is trained for 60 epochs; then the smallest weights \
         of all layers together are removed in ten rounds, fast at first (Zhu & Gupta's cubic \
         schedule), each followed by ten epochs of training. Reproduced if the error at 12 times \
         rises by at most half a point."
    }

    fn measure(&self, lab: &Lab) -> Result<Vec<(&'static str, f64)>> {
        let dense = lab.trained()?;
        let mut figures = vec![("all weights", lab.error(&dense)?)];
        for (name, times) in TIMES {
            let pruned = lab.apply(dense.clone(), &gradual(lab, 1.0 - 1.0 / times)?)?;
            figures.push((name, lab.error(&pruned)?));
        }
        Ok(figures)
    }

    fn judge(&self, figures: &Figures) -> Judgement {
        let change = figures.difference(TIMES[1].0, "all weights");
        let far = figures.difference(TIMES[3].0, "all weights");
        let verdict = match change.mean <= 0.5 {
            true => Verdict::Reproduced,
            false => Verdict::NotReproduced,
        };
        let dense = figures.of("all weights").mean();
        let sparse = figures.of(TIMES[1].0).mean();
        Judgement {
            verdict,
            headline: format!("{dense:.2} → {sparse:.2} % at 12 times ({change} points)"),
            reason: format!(
                "With a twelfth of the weights the error changes by {change} points. Even a \
                 fiftieth costs {far} points."
            ),
        }
    }
}

/// Removes the smallest weights of all layers in ten rounds of ten epochs.
pub(super) fn gradual(lab: &Lab, sparsity: f64) -> Result<PruneRetrain> {
    Ok(PruneRetrain::new(
        UnstructuredPrune::new(sparsity).scope(Scope::Global),
        PolynomialDecay::new(0.0, sparsity)?,
        10,
        lab.tune(10, LR),
    ))
}
