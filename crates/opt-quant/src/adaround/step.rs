//! The training of one layer's rounding, as a graph that the backend runs.

use opt_core::autodiff::grad;
use opt_core::random::Philox;
use opt_core::{
    Backend, CompileSpec, DType, GraphBuilder, Result, Session, Shape, Tensor, TensorType, ValueId,
};

use super::rows::Rows;

/// How long and on how many rows.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Settings {
    pub(super) iterations: usize,
    pub(super) batch: usize,
    pub(super) regularization: f64,
}

impl Default for Settings {
    fn default() -> Settings {
        Settings {
            iterations: 1000,
            batch: 128,
            regularization: 30.0,
        }
    }
}

/// The sigmoid is stretched to -0.1..1.1 and cut off, so that 0 and 1 are reached.
const STRETCH: (f64, f64) = (-0.1, 1.1);
/// The share of the steps that take no notice of the second term.
const WARM_UP: f64 = 0.2;
/// The exponent of the second term, at first and at last.
const EXPONENTS: (f64, f64) = (20.0, 2.0);
/// Adam's step.
const RATE: f64 = 0.01;
const BETAS: (f64, f64) = (0.9, 0.999);

/// A layer whose rounding is learned: its weight `[groups, outputs, inputs]`, and the grid.
pub(super) struct Rounding {
    pub(super) groups: usize,
    pub(super) outputs: usize,
    pub(super) inputs: usize,
    pub(super) weight: Vec<f64>,
    /// One scale, or one an output of each group.
    pub(super) scale: Vec<f64>,
    pub(super) zero: Vec<f64>,
    pub(super) grid: (i32, i32),
    pub(super) bias: Vec<f64>,
    pub(super) relu: bool,
}

impl Rounding {
    fn channel(&self, values: &[f64], i: usize) -> f64 {
        values[if values.len() == 1 {
            0
        } else {
            i / self.inputs
        }]
    }

    /// The integers without zero point that `pick` makes of each exact quotient, within the grid.
    fn levels(&self, pick: impl Fn(usize, f64) -> f64) -> Vec<f64> {
        let each = self.weight.iter().enumerate().map(|(i, w)| {
            let zero = self.channel(&self.zero, i);
            let (low, high) = (f64::from(self.grid.0) - zero, f64::from(self.grid.1) - zero);
            let quotient = f64::from(*w as f32 / self.channel(&self.scale, i) as f32);
            pick(i, quotient).clamp(low, high)
        });
        each.collect()
    }

    /// `[outputs, n]` where there is one group, else `[groups, outputs, n]`.
    fn shape(&self, first: usize, second: usize) -> Vec<usize> {
        match self.groups {
            1 => vec![first, second],
            g => vec![g, first, second],
        }
    }

    fn tensor(&self, first: usize, second: usize, data: &[f64]) -> Result<Tensor> {
        Tensor::from_f64s(DType::F32, self.shape(first, second), data)
    }

    /// The scale, broadcast against the weight.
    fn scales(&self) -> Result<Tensor> {
        match self.scale.len() {
            1 => Ok(Tensor::scalar(self.scale[0] as f32)),
            _ => self.tensor(self.outputs, 1, &self.scale),
        }
    }

    /// What the layer makes of rows with a weight.
    fn output(&self, b: &mut GraphBuilder, x: ValueId, weight: ValueId) -> Result<ValueId> {
        let y = b.matmul_t(x, weight, false, true)?;
        let bias = self.tensor(1, self.outputs, &self.bias)?;
        let bias = b.constant(bias);
        let y = b.add(y, bias)?;
        if self.relu { b.relu(y) } else { Ok(y) }
    }

    fn targets(&self, b: &mut GraphBuilder, rows: &Rows) -> Result<ValueId> {
        let shape = self.shape(rows.count, self.outputs);
        let t = b.constant(Tensor::new(shape, &rows.targets)?);
        if self.relu { b.relu(t) } else { Ok(t) }
    }

    /// The squared error of each output channel, summed over all rows, with integers.
    fn errors(&self, rows: &Rows, levels: &[f64], backend: &dyn Backend) -> Result<Vec<f64>> {
        let mut b = GraphBuilder::new("rounding error");
        let x = Tensor::new(self.shape(rows.count, self.inputs), &rows.inputs)?;
        let x = b.constant(x);
        let t = self.targets(&mut b, rows)?;
        let shape = self.shape(self.outputs, self.inputs);
        let q = b.input("levels", TensorType::new(DType::F32, shape.as_slice()))?;
        let scale = b.constant(self.scales()?);
        let w = b.mul(q, scale)?;
        let y = self.output(&mut b, x, w)?;
        let apart = b.sub(y, t)?;
        let square = b.mul(apart, apart)?;
        let rank = b.type_of(square).rank();
        let sums = b.sum(square, &[rank - 2], false)?;
        b.output("errors", sums)?;
        let levels = self.tensor(self.outputs, self.inputs, levels)?;
        Ok(backend.run_once(&b.finish()?, &[levels])?[0].to_f64s())
    }

    /// Learns the rounding: the integers with zero point, and the error as a share of that of
    /// rounding to the nearest.
    pub(super) fn learn(
        &self,
        rows: &Rows,
        settings: &Settings,
        backend: &dyn Backend,
        seed: u64,
    ) -> Result<(Vec<f64>, f64)> {
        let nearest = self.levels(|_, q| q.round_ties_even());
        let base = self.errors(rows, &nearest, backend)?;
        let total: f64 = base.iter().sum();
        let mut levels = nearest;
        let mut left = total;
        if settings.iterations > 0 && total > 0.0 && rows.count > 0 {
            let unit = total / rows.count as f64;
            let up = self.train(rows, settings, backend, seed, unit)?;
            let learned = self.levels(|i, q| q.floor() + if up[i] { 1.0 } else { 0.0 });
            let errors = self.errors(rows, &learned, backend)?;
            for (c, (&new, &old)) in errors.iter().zip(&base).enumerate() {
                if new < old {
                    let row = c * self.inputs..(c + 1) * self.inputs;
                    levels[row.clone()].copy_from_slice(&learned[row]);
                    left += new - old;
                }
            }
        }
        for (i, level) in levels.iter_mut().enumerate() {
            *level += self.channel(&self.zero, i);
        }
        Ok((levels, if total > 0.0 { left / total } else { 1.0 }))
    }

    /// Which weights training rounds up.
    fn train(
        &self,
        rows: &Rows,
        settings: &Settings,
        backend: &dyn Backend,
        seed: u64,
        unit: f64,
    ) -> Result<Vec<bool>> {
        let batch = settings.batch.min(rows.count);
        let (graph, v) = self.step(rows, batch, settings.regularization, unit)?;
        let mut session = backend.compile(&graph, &CompileSpec::new())?.session()?;
        let stream = Philox::new(seed);
        let (mut order, mut at, mut rounds) = (Vec::new(), 0, 0);
        for step in 0..settings.iterations {
            if at + batch > order.len() {
                order = stream.permutation((1 << 32) + rounds, rows.count);
                (at, rounds) = (0, rounds + 1);
            }
            let chosen: Vec<i64> = order[at..at + batch].iter().map(|&i| i as i64).collect();
            at += batch;
            let inputs = Step::of(step, settings.iterations).inputs(&chosen)?;
            session.run(&inputs)?;
        }
        let learned = Session::variable(session.as_ref(), v)?;
        Ok(learned.to_f64s().into_iter().map(|v| v >= 0.0).collect())
    }

    /// The graph of one step of Adam, and the variable that it trains.
    fn step(
        &self,
        rows: &Rows,
        batch: usize,
        regularization: f64,
        unit: f64,
    ) -> Result<(opt_core::Graph, ValueId)> {
        let mut b = GraphBuilder::new("rounding");
        let scalar = || TensorType::new(DType::F32, Shape::default());
        let chosen = b.input("rows", TensorType::new(DType::I64, [batch]))?;
        let exponent = b.input("exponent", scalar())?;
        let factor = b.input("factor", scalar())?;
        let first = b.input("first", scalar())?;
        let second = b.input("second", scalar())?;

        let shape = self.shape(self.outputs, self.inputs);
        let all = b.constant(Tensor::new(
            self.shape(rows.count, self.inputs),
            &rows.inputs,
        )?);
        let row_axis = shape.len() - 2;
        let x = b.gather(all, chosen, row_axis)?;
        let all = self.targets(&mut b, rows)?;
        let t = b.gather(all, chosen, row_axis)?;

        let floor = self.levels_unclamped();
        let floors = b.constant(self.tensor(self.outputs, self.inputs, &floor)?);
        let start: Vec<f64> = self
            .weight
            .iter()
            .enumerate()
            .map(|(i, w)| {
                let part = w / self.channel(&self.scale, i) - floor[i];
                let inside = (part - STRETCH.0) / (STRETCH.1 - STRETCH.0);
                (inside / (1.0 - inside)).ln()
            })
            .collect();
        let v = b.variable("v", self.tensor(self.outputs, self.inputs, &start)?)?;
        let zeros = Tensor::zeros(DType::F32, &shape)?;
        let mean = b.variable("mean", zeros.clone())?;
        let square = b.variable("square", zeros)?;

        let h = b.sigmoid(v)?;
        let h = b.mul_scalar(h, STRETCH.1 - STRETCH.0)?;
        let h = b.add_scalar(h, STRETCH.0)?;
        let h = b.clip(h, 0.0, 1.0)?;
        let q = b.add(floors, h)?;
        let q = self.clamp(&mut b, q)?;
        let scale = b.constant(self.scales()?);
        let w = b.mul(q, scale)?;
        let y = self.output(&mut b, x, w)?;
        let apart = b.sub(y, t)?;
        let error = b.mul(apart, apart)?;
        let error = b.sum_all(error)?;
        let error = b.mul_scalar(error, 1.0 / (unit * batch as f64))?;

        let away = b.mul_scalar(h, 2.0)?;
        let away = b.add_scalar(away, -1.0)?;
        let away = b.abs(away)?;
        let settled = b.pow(away, exponent)?;
        let settled = b.mean_all(settled)?;
        let open = b.neg(settled)?;
        let open = b.add_scalar(open, 1.0)?;
        let open = b.mul_scalar(open, regularization)?;
        let open = b.mul(open, factor)?;
        let loss = b.add(error, open)?;

        let g = grad(&mut b, loss, &[v])?.of(v)?;
        let old = b.mul_scalar(mean, BETAS.0)?;
        let new = b.mul_scalar(g, 1.0 - BETAS.0)?;
        let m = b.add(old, new)?;
        let old = b.mul_scalar(square, BETAS.1)?;
        let new = b.mul(g, g)?;
        let new = b.mul_scalar(new, 1.0 - BETAS.1)?;
        let s = b.add(old, new)?;
        let up = b.mul(m, first)?;
        let down = b.mul(s, second)?;
        let down = b.sqrt(down)?;
        let down = b.add_scalar(down, 1e-12)?;
        let move_by = b.div(up, down)?;
        let move_by = b.mul_scalar(move_by, RATE)?;
        let next = b.sub(v, move_by)?;
        b.assign(mean, m)?;
        b.assign(square, s)?;
        b.assign(v, next)?;
        b.output("loss", loss)?;
        Ok((b.finish()?, v))
    }

    /// The integers below, whether the grid has them or not.
    fn levels_unclamped(&self) -> Vec<f64> {
        let each = self.weight.iter().enumerate().map(|(i, w)| {
            let quotient = f64::from(*w as f32 / self.channel(&self.scale, i) as f32);
            quotient.floor()
        });
        each.collect()
    }

    /// Integers without zero point, within the grid.
    fn clamp(&self, b: &mut GraphBuilder, q: ValueId) -> Result<ValueId> {
        let bound = |limit: i32| -> Result<Tensor> {
            let each: Vec<f64> = self.zero.iter().map(|z| f64::from(limit) - z).collect();
            match each[..] {
                [one] => Ok(Tensor::scalar(one as f32)),
                _ => self.tensor(self.outputs, 1, &each),
            }
        };
        let (low, high) = (bound(self.grid.0)?, bound(self.grid.1)?);
        let (low, high) = (b.constant(low), b.constant(high));
        let q = b.maximum(q, low)?;
        b.minimum(q, high)
    }
}

/// What changes from step to step.
struct Step {
    exponent: f64,
    factor: f64,
    corrections: (f64, f64),
}

impl Step {
    fn of(step: usize, steps: usize) -> Step {
        let done = step as f64 / steps as f64;
        let annealed = ((done - WARM_UP) / (1.0 - WARM_UP)).max(0.0);
        let (from, to) = EXPONENTS;
        let correction = |beta: f64| 1.0 / (1.0 - beta.powf(step as f64 + 1.0));
        Step {
            // A cosine, as the authors' code has it.
            exponent: to + 0.5 * (from - to) * (1.0 + (annealed * std::f64::consts::PI).cos()),
            factor: if done < WARM_UP { 0.0 } else { 1.0 },
            corrections: (correction(BETAS.0), correction(BETAS.1)),
        }
    }

    fn inputs(&self, rows: &[i64]) -> Result<Vec<Tensor>> {
        let scalar = |v: f64| Tensor::scalar(v as f32);
        Ok(vec![
            Tensor::new([rows.len()], rows)?,
            scalar(self.exponent),
            scalar(self.factor),
            scalar(self.corrections.0),
            scalar(self.corrections.1),
        ])
    }
}
