//! Zhu & Gupta 2017.

use opt_core::Result;

use super::pruning::gradual;
use super::{Claim, Figures, Judgement, LR, Lab, Verdict};

/// A large network with few weights left beats a small one with all of its weights.
#[derive(Debug)]
pub(super) struct LargeSparse;

const LEVELS: [(f64, &str, &str); 4] = [
    (0.75, "large-sparse, 75 %", "small-dense, 75 %"),
    (0.90, "large-sparse, 90 %", "small-dense, 90 %"),
    (0.95, "large-sparse, 95 %", "small-dense, 95 %"),
    (0.98, "large-sparse, 98 %", "small-dense, 98 %"),
];

/// The widths, in the proportion of LeNet-300-100, of the smallest network with as many weights.
fn widths(weights: f64) -> [usize; 2] {
    let count = |[a, b]: [usize; 2]| (64 * a + a * b + b * 10) as f64;
    let mut second = 1;
    loop {
        let widths = [3 * second, second];
        if count(widths) >= weights {
            return widths;
        }
        second += 1;
    }
}

impl Claim for LargeSparse {
    fn name(&self) -> &'static str {
        "large-sparse"
    }

    fn title(&self) -> &'static str {
        "A large sparse network beats a small dense one of as many weights"
    }

    fn paper(&self) -> &'static str {
        "Zhu & Gupta, \"To prune, or not to prune\", 2017: at equal numbers of non-zero weights, \
         pruned large models beat dense small ones across architectures (MobileNet, top-1: 67.7 % \
         with 75 % of the weights removed against 63.7 % for the dense half-width model of as \
         many; 61.8 against 50.6 % at 90 and 87 %)."
    }

    fn method(&self) -> &'static str {
        "LeNet-300-100, trained for 60 epochs and pruned over 100 as above, against a dense network \
         with hidden layers in the same proportion, 3 to 1, and at least as many weights, trained \
         for all 160 epochs. Reproduced if large-sparse is better by more than two standard errors \
         at every level of 90 % and more."
    }

    fn measure(&self, lab: &Lab) -> Result<Vec<(&'static str, f64)>> {
        let large = lab.trained()?;
        let weights = (64 * 300 + 300 * 100 + 100 * 10) as f64;
        let mut figures = Vec::new();
        for (sparsity, sparse_name, dense_name) in LEVELS {
            let sparse = lab.apply(large.clone(), &gradual(lab, sparsity)?)?;
            let small = lab.perceptron(widths(weights * (1.0 - sparsity)))?;
            let small = lab.apply(small, &lab.tune(160, LR))?;
            figures.push((sparse_name, lab.error(&sparse)?));
            figures.push((dense_name, lab.error(&small)?));
        }
        Ok(figures)
    }

    fn judge(&self, figures: &Figures) -> Judgement {
        let differences = LEVELS.map(|(s, sparse, dense)| (s, figures.difference(sparse, dense)));
        let better = |at_least: f64| {
            let levels = differences.iter().filter(|(s, _)| *s >= at_least);
            levels.clone().all(|(_, d)| d.is_below())
        };
        let verdict = match (better(0.9), differences.iter().any(|(_, d)| d.is_below())) {
            (true, _) => Verdict::Reproduced,
            (false, true) => Verdict::Partly,
            (false, false) => Verdict::NotReproduced,
        };
        let list = differences.map(|(s, d)| format!("{d} at {:.0} %", s * 100.0));
        let mean = |name| figures.of(name).mean();
        let level = LEVELS[2];
        let equal: Vec<String> = differences
            .iter()
            .filter(|(_, d)| !d.is_below() && !d.is_above())
            .map(|(s, _)| format!("{:.0} %", s * 100.0))
            .collect();
        let equal = match equal.is_empty() {
            true => String::new(),
            false => format!(
                " At {} the two cannot be told apart: the small network is still large enough for \
                 this task.",
                equal.join(" and ")
            ),
        };
        Judgement {
            verdict,
            headline: format!(
                "{:.2} against {:.2} % at 95 %",
                mean(level.1),
                mean(level.2)
            ),
            reason: format!(
                "Large-sparse minus small-dense, in points of error: {}.{equal}",
                list.join(", ")
            ),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_small_network_has_at_least_as_many_weights() {
        assert_eq!(widths(50_200.0), [300, 100]);
        // 64 * 66 + 66 * 22 + 22 * 10 = 5896
        assert_eq!(widths(5_020.0), [60, 20]);
        assert_eq!(widths(1.0), [3, 1]);
    }
}
