//! AWQ: input channels that matter are scaled up before rounding, and ranges are clipped.

use opt_core::{Error, Result};

use crate::cholesky::dot;
use crate::gram::{Gram, Samples};
use crate::grid::{Codes, Step, Weight};

/// AWQ (Lin et al. 2023): the columns of a weight are multiplied by scales and its input is divided
/// by them, so that columns with large activations are rounded more finely; then the range of each
/// group is clipped.
///
/// The scales are `mean|x|^alpha` of the layer's input over calibration data, divided by the root of
/// their largest times their smallest; `alpha` is that of a grid from 0 to 1 which makes the squared
/// error of the outputs least, over all layers that read the input and up to 128 outputs of each.
/// Where the input is made by a layer normalization or a linear layer that nothing else reads, their
/// parameters are divided; elsewhere the graph gets a multiplication. Convolutions are clipped only.
///
/// Unlike the paper's code, clipping looks at the error of whole outputs, not at each group's part
/// of them alone: the errors of groups make up for each other.
///
/// ```
/// use opt_quant::{Awq, Samples};
///
/// let awq = Awq::new().steps(10).samples(Samples::new().max_examples(128));
/// # let _ = awq;
/// ```
#[derive(Debug, Clone, PartialEq)]
pub struct Awq {
    steps: usize,
    scale: bool,
    clip: bool,
    pub(crate) samples: Samples,
}

impl Default for Awq {
    fn default() -> Awq {
        Awq::new()
    }
}

impl Awq {
    /// As the paper has it: 20 steps of `alpha`, ranges clipped to two fifths at most.
    pub fn new() -> Awq {
        Awq {
            steps: 20,
            scale: true,
            clip: true,
            samples: Samples::new(),
        }
    }

    /// Steps of `alpha` from 0 to 1.
    #[must_use]
    pub fn steps(mut self, count: usize) -> Awq {
        self.steps = count;
        self
    }

    /// Leaves ranges as they are.
    #[must_use]
    pub fn without_clipping(mut self) -> Awq {
        self.clip = false;
        self
    }

    /// Leaves columns as they are: the graph gets no multiplications.
    #[must_use]
    pub fn without_scaling(mut self) -> Awq {
        self.scale = false;
        self
    }

    /// Which calibration examples are looked at.
    #[must_use]
    pub fn samples(mut self, samples: Samples) -> Awq {
        self.samples = samples;
        self
    }

    pub(crate) fn config(&self) -> String {
        let Awq {
            steps,
            scale,
            clip,
            samples,
        } = self;
        format!(
            "{{ name = \"awq\", steps = {steps}, scale = {scale}, clip = {clip}, {} }}",
            samples.config()
        )
    }

    /// # Errors
    /// If there is nothing to search.
    pub(crate) fn check(&self) -> Result<()> {
        if (self.scale && self.steps == 0) || !(self.scale || self.clip) {
            return Err(Error::invalid(format!("nothing to search for: {self:?}")));
        }
        Ok(())
    }

    /// The exponent and the scales of the columns of weights that read the same input; `None` where
    /// the weights are best as they are.
    pub(crate) fn scales(&self, weights: &[&Weight], gram: &Gram) -> Option<(f64, Vec<f64>)> {
        let steps = if self.scale { self.steps } else { 0 };
        let magnitudes = gram.mean_magnitudes(0);
        let error = |weights: &[Weight], scales: &[f64]| -> f64 {
            let each = weights.iter().map(|w| {
                let scaled = w.scaled(scales);
                let codes = scaled.nearest(|_, values| scaled.grid.fit(values));
                let mut delta = scaled.delta(&codes);
                for row in delta.chunks_mut(w.columns) {
                    row.iter_mut().zip(scales).for_each(|(d, s)| *d /= s);
                }
                gram.errors(0, &delta).iter().sum::<f64>()
            });
            each.sum()
        };
        let plain = vec![1.0; magnitudes.len()];
        let some: Vec<Weight> = weights.iter().map(|w| w.sample(ROWS)).collect();
        let mut least = error(&some, &plain);
        let mut best = None;
        for step in 1..=steps {
            let alpha = step as f64 / steps as f64;
            let mut scales: Vec<f64> = magnitudes.iter().map(|m| m.powf(alpha).max(1e-4)).collect();
            let largest = scales.iter().copied().fold(0.0, f64::max);
            let smallest = scales.iter().copied().fold(f64::INFINITY, f64::min);
            let middle = (largest * smallest).sqrt();
            // As the graph has them.
            scales
                .iter_mut()
                .for_each(|s| *s = f64::from((*s / middle) as f32));
            let found = error(&some, &scales);
            if found < least {
                least = found;
                best = Some((alpha, scales));
            }
        }
        // What is best for some rows has to be better for all.
        let all: Vec<Weight> = weights.iter().map(|&w| w.clone()).collect();
        best.filter(|(_, scales)| error(&all, scales) < error(&all, &plain))
    }

    /// Codes with the range of each group clipped to the share of it that makes the squared error of
    /// the outputs least, group after group with the others as they are, in several turns. The error
    /// is never above that of rounding to nearest.
    pub(crate) fn solve(&self, weight: &Weight, gram: &Gram, group: usize) -> Codes {
        let mut out = weight.nearest(|_, values| weight.grid.fit(values));
        if self.clip {
            let turns = if weight.groups() > 1 { TURNS } else { 1 };
            let each = weight.columns * turns;
            weight.by_rows(&mut out, each, |data, codes, steps| {
                let rows = data.chunks(weight.columns);
                let codes = codes.chunks_mut(weight.columns);
                let steps = steps.chunks_mut(weight.groups());
                let matrix = gram.matrix(group);
                for ((row, codes), steps) in rows.zip(codes).zip(steps) {
                    clip(weight, matrix, row, codes, steps, turns);
                }
            });
        }
        out
    }
}

/// Rows of a weight by which the exponent is chosen.
const ROWS: usize = 128;

/// Turns over the groups of a row.
const TURNS: usize = 3;

/// Shares of a range to which it is clipped.
fn shares() -> impl Iterator<Item = f64> {
    (1..=15).map(|i| 1.0 - 0.04 * f64::from(i))
}

/// Clips the ranges of a row's groups.
fn clip(
    weight: &Weight,
    matrix: &[f64],
    row: &[f64],
    codes: &mut [i16],
    steps: &mut [Step],
    turns: usize,
) {
    let (n, grid) = (row.len(), &weight.grid);
    // The errors of all entries and their products with the matrix.
    let mut errors = vec![0.0; n];
    for (i, e) in errors.iter_mut().enumerate() {
        *e = row[i] - grid.value(&steps[i / weight.group], codes[i]);
    }
    let mut products: Vec<f64> = matrix.chunks(n).map(|line| dot(line, &errors)).collect();
    for _ in 0..turns {
        for (g, values) in row.chunks(weight.group).enumerate() {
            let from = g * weight.group;
            let to = from + values.len();
            let part = |i: usize, from: usize, to: usize| &matrix[i * n + from..i * n + to];
            let old = errors[from..to].to_vec();
            // What the other groups add to the gradient of this one's error.
            let others = (from..to).map(|i| products[i] - dot(part(i, from, to), &old));
            let others: Vec<f64> = others.collect();
            let rounded = |step: &Step| -> Vec<f64> {
                let pairs = values.iter();
                pairs.map(|&v| v - grid.round(step, v)).collect()
            };
            steps[g] = grid.least(values, shares(), |step| {
                let new = rounded(step);
                let own = new.iter().enumerate();
                let own = own.map(|(i, e)| e * dot(part(from + i, from, to), &new));
                own.sum::<f64>() + 2.0 * dot(&new, &others)
            });
            for (i, new) in rounded(&steps[g]).into_iter().enumerate() {
                codes[from + i] = grid.code(&steps[g], values[i]);
                let change = new - old[i];
                errors[from + i] = new;
                if change != 0.0 && turns > 1 {
                    let line = part(from + i, 0, n);
                    products
                        .iter_mut()
                        .zip(line)
                        .for_each(|(p, h)| *p += change * h);
                }
            }
        }
    }
}
