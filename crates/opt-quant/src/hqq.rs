//! HQQ: scales and zero points by half-quadratic splitting.

use opt_core::{Error, Result};

use crate::grid::{Codes, Grid, Levels, Step, Weight};

/// HQQ (Badri & Shaji 2023): scales and zero points that make the error of the weights sparse,
/// without data.
///
/// Of a group the sum of `|w - s (q - z)|^p` over its entries is made small over scale `s` and zero
/// point `z`, by turns: the error is shrunk (a proximal step of the norm, with a weight that grows by
/// `growth`), and `s` and `z` become those that fit what is left by least squares. `p` below 1 gives
/// outliers up for the rest. Errors are in units of the range's scale.
///
/// The authors keep the scale and let zero points be any numbers. In quantized graphs these are
/// integers, which a step of the turns seldom moves, so that here the scale moves, too; symmetric
/// schemes keep their zero point. Of all turns the one with the least sum counts, the first of them
/// being the range's.
///
/// ```
/// use opt_quant::Hqq;
///
/// let hqq = Hqq::new().norm(0.5).iterations(40);
/// # let _ = hqq;
/// ```
#[derive(Debug, Clone, PartialEq)]
pub struct Hqq {
    norm: f64,
    weight: f64,
    growth: f64,
    iterations: usize,
}

impl Default for Hqq {
    fn default() -> Hqq {
        Hqq::new()
    }
}

impl Hqq {
    /// The authors' settings: a norm of 0.7, a weight of 10 that grows by 1 %, 20 turns.
    pub fn new() -> Hqq {
        Hqq {
            norm: 0.7,
            weight: 10.0,
            growth: 1.01,
            iterations: 20,
        }
    }

    /// The exponent `p`, above 0 and at most 1.
    #[must_use]
    pub fn norm(mut self, p: f64) -> Hqq {
        self.norm = p;
        self
    }

    /// The first weight of the proximal step and the factor by which it grows.
    #[must_use]
    pub fn weight(mut self, first: f64, growth: f64) -> Hqq {
        (self.weight, self.growth) = (first, growth);
        self
    }

    /// How many turns.
    #[must_use]
    pub fn iterations(mut self, count: usize) -> Hqq {
        self.iterations = count;
        self
    }

    pub(crate) fn config(&self) -> String {
        let Hqq {
            norm,
            weight,
            growth,
            iterations,
        } = self;
        format!(
            "{{ name = \"hqq\", norm = {norm}, weight = {weight}, growth = {growth}, iterations = \
             {iterations} }}"
        )
    }

    /// # Errors
    /// If the settings make no sense or the grid is not one of integers.
    pub(crate) fn solve(&self, weight: &Weight) -> Result<Codes> {
        let positive = |v: f64| v.is_finite() && v > 0.0;
        let all = [self.norm, self.weight, self.growth];
        if !all.into_iter().all(positive) || self.norm > 1.0 {
            return Err(Error::invalid(format!("settings of HQQ: {self:?}")));
        }
        let Levels::Integers {
            low,
            high,
            symmetric,
        } = weight.grid.levels
        else {
            return Err(Error::invalid(
                "HQQ finds scales and zero points of integers; the scheme has other levels",
            ));
        };
        let bounds = (f64::from(low), f64::from(high));
        Ok(weight.nearest(|_, values| self.step(&weight.grid, bounds, !symmetric, values)))
    }

    fn step(&self, grid: &Grid, (low, high): (f64, f64), moves: bool, values: &[f64]) -> Step {
        let mut best = grid.fit(values);
        let unit = f64::from(best.scale);
        let cost = |step: &Step| -> f64 {
            let errors = values.iter().map(|&v| (v - grid.round(step, v)).abs());
            errors.map(|e| (e / unit).powf(self.norm)).sum()
        };
        let mut least = cost(&best);
        let (mut step, mut weight) = (best, self.weight);
        for _ in 0..self.iterations {
            let (scale, zero) = (f64::from(step.scale), f64::from(step.zero));
            let (mut shift, mut product, mut square) = (0.0, 0.0, 0.0);
            for &v in values {
                let q = (v / scale + zero).round_ties_even().clamp(low, high);
                let level = q - zero;
                let error = self.shrink((v - scale * level) / unit, weight) * unit;
                shift += q - (v - error) / scale;
                product += (v - error) * level;
                square += level * level;
            }
            if moves {
                let zero = (shift / values.len().max(1) as f64).round_ties_even();
                step.zero = zero.clamp(low, high) as f32;
            }
            // A scale that goes astray would end with all codes at 0.
            if product > 0.0 && (0.1..10.0).contains(&(product / square / unit)) {
                step.scale = grid.scale(product / square);
            }
            weight *= self.growth;
            let found = cost(&step);
            if found < least {
                (best, least) = (step, found);
            }
        }
        best
    }

    /// The proximal step of `|x|^p`, to first order: towards 0 by `p |x|^(p - 1) / weight`.
    fn shrink(&self, x: f64, weight: f64) -> f64 {
        let size = x.abs();
        match size > 0.0 {
            true => x.signum() * (size - size.powf(self.norm - 1.0) / weight).max(0.0),
            false => 0.0,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        #[test]
        fn the_norm_is_never_above_that_of_the_range(
            data in proptest::collection::vec(-3.0f64..3.0, 1..70),
            bits in 2u32..6,
            norm in 0.4f64..1.0,
        ) {
            let columns = data.len();
            let grid = Grid::integers(0, (1 << bits) - 1, false);
            let weight = Weight::new(columns, data, grid.clone(), 16).unwrap();
            let found = Hqq::new().norm(norm).solve(&weight).unwrap();
            let plain = weight.nearest(|_, values| grid.fit(values));
            // Both in units of the range's scales.
            let norms = |codes: &Codes| -> Vec<f64> {
                let deltas = weight.delta(codes);
                let groups = deltas.chunks(16).zip(&plain.steps);
                let sum = |(d, s): (&[f64], &Step)| {
                    d.iter().map(|d| (d.abs() / f64::from(s.scale)).powf(norm)).sum::<f64>()
                };
                groups.map(sum).collect()
            };
            for (a, b) in norms(&found).into_iter().zip(norms(&plain)) {
                prop_assert!(a <= b + 1e-9, "{a} {b}");
            }
        }
    }

    /// One far value, the rest on a lattice that the range's zero point is half a step off.
    #[test]
    fn an_outlier_is_given_up_for_the_rest() {
        let mut data: Vec<f64> = (0..31).map(|i| f64::from(i % 6) - 1.0).collect();
        data.push(13.6);
        let grid = Grid::integers(0, 15, false);
        let weight = Weight::new(32, data, grid.clone(), 32).unwrap();
        let plain = weight.nearest(|_, values| grid.fit(values));
        let found = Hqq::new().solve(&weight).unwrap();
        let sum =
            |codes: &Codes| -> f64 { weight.delta(codes).iter().map(|d| d.abs().powf(0.7)).sum() };
        assert!(sum(&found) <= sum(&plain));
    }

    /// Of values as weights have them the sum falls, with zero points and without.
    #[test]
    fn scales_move_where_zero_points_are_integers() {
        let stream = opt_core::random::Philox::new(3);
        // A sum of uniform numbers, some of them far out.
        let value = |i: u64| {
            let sum: f64 = (0..4).map(|k| stream.uniform(k, i) - 0.5).sum();
            if i.is_multiple_of(37) { 4.0 * sum } else { sum }
        };
        let data: Vec<f64> = (0..64 * 32).map(value).collect();
        for grid in [Grid::integers(0, 15, false), Grid::integers(-8, 7, true)] {
            let weight = Weight::new(32, data.clone(), grid.clone(), 32).unwrap();
            let sum = |codes: &Codes| -> f64 {
                weight.delta(codes).iter().map(|d| d.abs().powf(0.7)).sum()
            };
            let plain = sum(&weight.nearest(|_, values| grid.fit(values)));
            let found = sum(&Hqq::new().solve(&weight).unwrap());
            assert!(found < 0.97 * plain, "{found} {plain}");
        }
    }

    #[test]
    fn settings_without_sense_and_other_levels_are_refused() {
        let weight = |grid| Weight::new(2, vec![1.0, 2.0], grid, 2).unwrap();
        let mut table = Grid::integers(0, 15, false);
        table.levels = Levels::Table(vec![-1.0, 0.0, 1.0]);
        let error = Hqq::new().solve(&weight(table)).unwrap_err();
        assert!(error.to_string().contains("integers"), "{error}");
        let asymmetric = weight(Grid::integers(0, 15, false));
        for wrong in [
            Hqq::new().norm(0.0),
            Hqq::new().norm(1.5),
            Hqq::new().weight(0.0, 1.0),
        ] {
            assert!(wrong.solve(&asymmetric).is_err());
        }
        assert!(Hqq::new().solve(&asymmetric).is_ok());
    }
}
