//! GPTQ: weights rounded one column after the other, each making up for the errors so far.

use opt_core::{Error, ErrorKind, Result};

use crate::cholesky::{View, add_product, inverse_factor};
use crate::gram::{Gram, Samples};
use crate::grid::{Codes, Step, Weight};

/// Columns between two updates of all that follow.
const BLOCK: usize = 128;

/// GPTQ (Frantar et al. 2022): the columns of a weight are rounded in turn, and those that follow
/// take up the error that this makes in the layer's output on calibration data. Of each output
/// channel the rounding is kept that has the smaller error, GPTQ's or the nearest.
///
/// With `H` the sum of `x x^T` over all rows `x` that the layer reads and `H^-1 = U^T U`, column `i`
/// is rounded, and its error divided by `U[i, i]` and times `U[i, i + 1..]` is taken from the
/// columns that follow. The scale and zero point of a group are found when its first column is
/// reached.
///
/// ```
/// use opt_quant::{Gptq, Samples};
///
/// let gptq = Gptq::new()
///     .act_order()
///     .samples(Samples::new().max_examples(128).mask("attention_mask"));
/// # let _ = gptq;
/// ```
#[derive(Debug, Clone, PartialEq)]
pub struct Gptq {
    damping: f64,
    act_order: bool,
    static_groups: bool,
    search: bool,
    pub(crate) sequential: bool,
    pub(crate) samples: Samples,
}

impl Default for Gptq {
    fn default() -> Gptq {
        Gptq::new()
    }
}

impl Gptq {
    /// As the paper has it: a damping of 0.01, columns in their order, all layers on the float
    /// model's activations.
    pub fn new() -> Gptq {
        Gptq {
            damping: 0.01,
            act_order: false,
            static_groups: false,
            search: false,
            sequential: false,
            samples: Samples::new(),
        }
    }

    /// What is added to the diagonal of `H`, as a share of its mean. With fewer rows than features
    /// `H` has no inverse without it.
    #[must_use]
    pub fn damping(mut self, share: f64) -> Gptq {
        self.damping = share;
        self
    }

    /// Rounds the columns with the largest activations first. The scales of groups are found
    /// beforehand, so that groups stay side by side.
    #[must_use]
    pub fn act_order(mut self) -> Gptq {
        self.act_order = true;
        self
    }

    /// Finds the scales of all groups beforehand, from the weight as it is.
    #[must_use]
    pub fn static_groups(mut self) -> Gptq {
        self.static_groups = true;
        self
    }

    /// Searches the range of each group for the least squared error, weighted by the mean square of
    /// each input, instead of covering all entries.
    #[must_use]
    pub fn search(mut self) -> Gptq {
        self.search = true;
        self
    }

    /// Quantizes layer after layer in the graph's order, each on the activations of those before it
    /// as they are quantized. The calibration examples run once for each input of layers.
    #[must_use]
    pub fn sequential(mut self) -> Gptq {
        self.sequential = true;
        self
    }

    /// Which calibration examples are looked at.
    #[must_use]
    pub fn samples(mut self, samples: Samples) -> Gptq {
        self.samples = samples;
        self
    }

    pub(crate) fn config(&self) -> String {
        let Gptq {
            damping,
            act_order,
            static_groups,
            search,
            sequential,
            samples,
        } = self;
        format!(
            "{{ name = \"gptq\", damping = {damping}, act_order = {act_order}, static_groups = \
             {static_groups}, search = {search}, sequential = {sequential}, {} }}",
            samples.config()
        )
    }

    /// What all layers with an input share, of one group of its channels.
    ///
    /// # Errors
    /// [`ErrorKind::Data`] if the damped matrix is not positive definite.
    pub(crate) fn prepare(&self, gram: &Gram, group: usize) -> Result<Prepared> {
        if !(self.damping.is_finite() && self.damping >= 0.0) {
            return Err(Error::invalid(format!("a damping of {}", self.damping)));
        }
        let (n, h) = (gram.size(), gram.matrix(group));
        let diagonal: Vec<f64> = (0..n).map(|i| h[i * n + i]).collect();
        let mut order: Vec<usize> = (0..n).collect();
        if self.act_order {
            order.sort_by(|&a, &b| diagonal[b].total_cmp(&diagonal[a]));
        }
        let live = diagonal.iter().filter(|&&d| d > 0.0).count();
        let damping = self.damping * diagonal.iter().sum::<f64>() / live.max(1) as f64;
        let mut damped: Vec<f64> = Vec::with_capacity(n * n);
        for &i in &order {
            let row = &h[i * n..(i + 1) * n];
            damped.extend(order.iter().map(|&j| row[j]));
        }
        for (i, &from) in order.iter().enumerate() {
            // An input that was always 0 says nothing of the others and is rounded to nearest.
            damped[i * n + i] += if diagonal[from] > 0.0 { damping } else { 1.0 };
        }
        let factor = inverse_factor(&damped, n).map_err(|row| {
            Error::new(
                ErrorKind::Data,
                format!(
                    "the inputs' products are not positive definite at feature {}, from {} rows of \
                     {n} features; more damping or more examples make them so",
                    order[row],
                    gram.rows()
                ),
            )
        })?;
        Ok(Prepared {
            factor,
            order,
            diagonal,
        })
    }

    /// The codes of a weight whose rows read what `prepared` and the group of `gram` were made of.
    pub(crate) fn solve(
        &self,
        weight: &Weight,
        prepared: &Prepared,
        gram: &Gram,
        group: usize,
    ) -> Codes {
        let n = weight.columns;
        let fit = |from: usize, values: &[f64]| match self.search {
            true => {
                let weights = &prepared.diagonal[from..from + values.len()];
                weight.grid.search(values, weights)
            }
            false => weight.grid.fit(values),
        };
        let nearest = weight.nearest(fit);
        let groups = weight.groups();
        let mut found = nearest.clone();
        weight.by_rows(&mut found, n, |data, codes, steps| {
            self.walk(weight, prepared, data, codes, steps, fit);
        });
        let errors = gram.errors(group, &weight.delta(&found));
        let others = gram.errors(group, &weight.delta(&nearest));
        for (row, (error, other)) in errors.into_iter().zip(others).enumerate() {
            if other < error {
                let (codes, steps) = (row * n..(row + 1) * n, row * groups..(row + 1) * groups);
                found.codes[codes.clone()].copy_from_slice(&nearest.codes[codes]);
                found.steps[steps.clone()].copy_from_slice(&nearest.steps[steps]);
            }
        }
        found
    }

    /// Rounds all columns of some rows; `steps` are those of the weight as it is.
    fn walk(
        &self,
        weight: &Weight,
        prepared: &Prepared,
        data: &[f64],
        codes: &mut [i16],
        steps: &mut [Step],
        fit: impl Fn(usize, &[f64]) -> Step,
    ) {
        let Prepared { factor, order, .. } = prepared;
        let (n, grid, groups) = (weight.columns, &weight.grid, weight.groups());
        let fixed = self.act_order || self.static_groups;
        let mut values: Vec<f64> = Vec::with_capacity(data.len());
        for row in data.chunks(n) {
            values.extend(order.iter().map(|&i| row[i]));
        }
        // A group starts where all that was rounded before has reached its entries.
        let block = match weight.group {
            group if group <= BLOCK => BLOCK / group * group,
            group if group >= n || group % BLOCK == 0 => BLOCK,
            group => group,
        };
        let mut errors = vec![0.0; data.len() / n * block];
        for start in (0..n).step_by(block) {
            let end = n.min(start + block);
            for (r, row) in values.chunks_mut(n).enumerate() {
                for i in start..end {
                    let column = order[i];
                    let group = column / weight.group;
                    if !fixed && column % weight.group == 0 {
                        let last = n.min(column + weight.group);
                        steps[r * groups + group] = fit(column, &row[column..last]);
                    }
                    let step = &steps[r * groups + group];
                    let code = grid.code(step, row[i]);
                    codes[r * n + column] = code;
                    let ahead = &factor[i * n + i..i * n + end];
                    let error = (row[i] - grid.value(step, code)) / ahead[0];
                    errors[r * block + i - start] = error;
                    for (w, &u) in row[i + 1..end].iter_mut().zip(&ahead[1..]) {
                        *w -= error * u;
                    }
                }
            }
            let (e, u) = (View::new(&errors, block), View::new(factor, n));
            let ahead = u.from(start, end);
            add_product(&mut values, n, end..n, -1.0, e, ahead, end - start);
        }
    }
}

/// What the layers that read an input share.
#[derive(Debug)]
pub(crate) struct Prepared {
    /// The upper triangle `U` with `H^-1 = U^T U`, columns in the order in which they are rounded.
    factor: Vec<f64>,
    order: Vec<usize>,
    /// Of `H`, in the weight's order.
    diagonal: Vec<f64>,
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::grid::Grid;
    use opt_core::random::Philox;
    use proptest::prelude::*;
    use serde_json::Value;

    fn numbers(value: &Value) -> Vec<f64> {
        let values = value.as_array().unwrap().iter();
        values.map(|v| v.as_f64().unwrap()).collect()
    }

    /// Against the algorithm of the paper in numpy, column by column.
    #[test]
    fn rounds_as_the_paper_does() {
        let golden = include_str!("../tests/golden/gptq.json");
        let golden: Value = serde_json::from_str(golden).unwrap();
        let columns = golden["columns"].as_u64().unwrap() as usize;
        let gram = Gram::of_rows(&numbers(&golden["inputs"]), columns);
        let data = numbers(&golden["weight"]);
        let cases = golden["cases"].as_array().unwrap();
        assert!(cases.len() > 5);
        for case in cases {
            let flag = |name: &str| case[name].as_bool().unwrap();
            let number = |name: &str| case[name].as_u64().unwrap();
            let half = 1 << (number("bits") - 1);
            let grid = match flag("symmetric") {
                true => Grid::integers(-half, half - 1, true),
                false => Grid::integers(0, 2 * half - 1, false),
            };
            let group = number("group") as usize;
            let weight = Weight::new(columns, data.clone(), grid, group).unwrap();
            let mut method = Gptq::new().damping(case["damping"].as_f64().unwrap());
            (method.act_order, method.static_groups) = (flag("act_order"), flag("static_groups"));
            let prepared = method.prepare(&gram, 0).unwrap();
            let codes = method.solve(&weight, &prepared, &gram, 0);
            let found = weight.values(&codes);
            let expected = numbers(&case["weight"]);
            let off = found
                .iter()
                .zip(&expected)
                .filter(|(a, b)| (*a - *b).abs() > 1e-5);
            assert_eq!(off.count(), 0, "{case:?}");
            let errors = gram.errors(0, &weight.delta(&codes));
            for (a, b) in errors.iter().zip(numbers(&case["errors"])) {
                assert!((a - b).abs() <= 1e-6 * b, "{a} {b}");
            }
        }
    }

    fn random(count: usize, seed: u64) -> Vec<f64> {
        let random = Philox::new(seed);
        (0..count as u64).map(|i| random.normal(0, i)).collect()
    }

    fn grids() -> impl Strategy<Value = Grid> {
        let table = |values: &[f32]| Grid {
            levels: crate::grid::Levels::Table(values.to_vec()),
            ..Grid::integers(0, 1, false)
        };
        let mut powers = table(&[-3.0, -1.0, 0.0, 1.0, 3.0]);
        powers.scales = crate::grid::Scales::PowerOfTwo(1);
        prop_oneof![
            (2u32..9).prop_map(|bits| Grid::integers(0, (1 << bits) - 1, false)),
            (2u32..9).prop_map(|bits| Grid::integers(
                -(1 << (bits - 1)),
                (1 << (bits - 1)) - 1,
                true
            )),
            Just(table(&crate::NF4)),
            Just(powers),
        ]
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(48))]

        #[test]
        fn outputs_are_never_worse_than_by_rounding_to_nearest(
            columns in 1usize..70,
            rows in 1usize..90,
            group in 1usize..80,
            grid in grids(),
            act_order: bool,
            search: bool,
            seed: u64,
        ) {
            let mut inputs = random(rows * columns, seed);
            // Some inputs are always 0, others much larger.
            for row in inputs.chunks_mut(columns) {
                row.iter_mut().step_by(7).for_each(|v| *v = 0.0);
                row.iter_mut().skip(3).step_by(5).for_each(|v| *v *= 30.0);
            }
            let gram = Gram::of_rows(&inputs, columns);
            let weight = Weight::new(columns, random(5 * columns, seed ^ 1), grid, group).unwrap();
            let method = Gptq { act_order, search, ..Gptq::new() };
            let prepared = method.prepare(&gram, 0).unwrap();
            let codes = method.solve(&weight, &prepared, &gram, 0);
            prop_assert_eq!(codes.codes.len(), weight.data.len());
            prop_assert_eq!(codes.steps.len(), 5 * weight.groups());
            prop_assert!(codes.steps.iter().all(|s| s.scale.is_normal()));
            let fit = |from: usize, values: &[f64]| match search {
                true => weight.grid.search(values, &prepared.diagonal[from..from + values.len()]),
                false => weight.grid.fit(values),
            };
            let nearest = weight.nearest(fit);
            let sums = [&codes, &nearest].map(|c| gram.errors(0, &weight.delta(c)));
            for (found, other) in sums[0].iter().zip(&sums[1]) {
                prop_assert!(found <= other, "{found} {other}");
            }
        }
    }

    #[test]
    fn too_few_rows_need_damping() {
        let gram = Gram::of_rows(&random(3 * 8, 1), 8);
        let error = Gptq::new().damping(0.0).prepare(&gram, 0).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Data);
        let text = error.to_string();
        assert!(
            text.contains("3 rows of 8 features") && text.contains("damping"),
            "{text}"
        );
        assert!(Gptq::new().prepare(&gram, 0).is_ok());
        for damping in [-1.0, f64::NAN, f64::INFINITY] {
            assert!(Gptq::new().damping(damping).prepare(&gram, 0).is_err());
        }
    }
}
