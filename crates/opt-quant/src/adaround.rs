//! AdaRound: whether each weight is rounded up or down is learned.

mod rows;
mod step;

use opt_core::pass::{FoldBatchNorm, Needs};
use opt_core::{
    Context, Error, Fact, FactKind, Graph, GraphPatch, Pass, Report, Result, ResultExt, Tensor,
};

use crate::batches::Batches;
use crate::layers::{Layer, Layers};
use crate::layout::Axes;
use crate::params::QParams;
use crate::scheme::Scheme;
use crate::simulate::fake_activations;
use crate::static_pass::Config;
use rows::Rows;
use step::{Rounding, Settings};

/// Rounds weights up or down so that what layers make changes least, which is not always to the
/// nearest (Nagel et al., "Up or down? Adaptive rounding for post-training quantization", ICML
/// 2020).
///
/// Layer after layer, in the graph's order, minimises
/// `|f(W x) - f(W' x')|^2 + r * mean(1 - |2 h - 1|^b)`: `x` is the layer's input in float, `x'` that
/// with everything before it rounded (weights by this method, activations to their grids), `f` the
/// ReLU behind the layer if there is one, `W' = s * clamp(floor(W / s) + h)` with `h` between 0 and
/// 1 as a rectified sigmoid of what Adam trains, and `b` falls from 20 to 2, after a fifth of the
/// steps without the second term. Errors are taken as shares of that of rounding to the nearest,
/// so that `r` means the same in every layer. Inputs are rows (patches of images) that are drawn
/// from the calibration examples by the context's seed.
///
/// A scale is the one whose nearest rounding has the smallest squared error. A channel that training
/// did not improve, over all rows, is rounded to the nearest: no channel of a layer gets worse by
/// that measure. Batch normalization is folded first.
///
/// The result is in float; its weights lie on grids that their [`Fact::Grid`] says, which
/// quantizing with the same configuration keeps. The report has, for each weight, the error as a
/// share of that of the nearest.
///
/// ```
/// use opt_core::nn::{Linear, ModelBuilder};
/// use opt_core::{Context, Pipeline};
/// use opt_data::digits;
/// use opt_ndarray::NdarrayBackend;
/// use opt_quant::{AdaRound, Config, QuantizeStatic, Scheme};
///
/// # fn main() -> opt_core::Result<()> {
/// let mut m = ModelBuilder::new("perceptron", 0);
/// let x = m.batch("image", [1, 8, 8])?;
/// let h = m.flatten(x, 1)?;
/// let h = m.layer("fc1", Linear::new(16), h)?;
/// let h = m.relu(h)?;
/// let y = m.layer("fc2", Linear::new(10), h)?;
/// m.output("logits", y)?;
///
/// let four_bits = Config::default().weights(Scheme::int4().per_channel());
/// let pipeline = Pipeline::new()
///     .then(AdaRound::new(four_bits.clone()).iterations(200))
///     .then(QuantizeStatic::with(four_bits));
/// let (backend, samples) = (NdarrayBackend::new(), digits()?.train);
/// let mut cx = Context::new().with_backend(&backend).with_calibration(&samples);
/// let (small, reports) = pipeline.run(m.finish()?, &mut cx)?;
/// assert!(reports[0].1.figures["error of fc1.weight"] < 1.0);
/// # let _ = small;
/// # Ok(())
/// # }
/// ```
#[derive(Debug, Clone)]
pub struct AdaRound {
    config: Config,
    settings: Settings,
    samples: usize,
}

impl AdaRound {
    /// For a quantization with a configuration: 1,000 steps a layer on 128 of 2,048 rows.
    pub fn new(config: Config) -> AdaRound {
        AdaRound {
            config,
            settings: Settings::default(),
            samples: 2048,
        }
    }

    /// The steps of training for each layer; with 0 all weights are rounded to the nearest.
    #[must_use]
    pub fn iterations(mut self, steps: usize) -> AdaRound {
        self.settings.iterations = steps;
        self
    }

    /// The rows in a step.
    #[must_use]
    pub fn batch_size(mut self, rows: usize) -> AdaRound {
        self.settings.batch = rows;
        self
    }

    /// The rows to draw for each layer.
    #[must_use]
    pub fn samples(mut self, rows: usize) -> AdaRound {
        self.samples = rows;
        self
    }

    /// The weight of the term that draws each `h` to 0 or 1, whose mean over the weights is from 0 to
    /// 1; 30 at first. From 10 to 300 results differ little; below, many weights are not decided when
    /// training ends.
    #[must_use]
    pub fn regularization(mut self, factor: f64) -> AdaRound {
        self.settings.regularization = factor;
        self
    }
}

/// Shares of the full range that are tried for a scale.
const SHARES: usize = 80;

/// The grid of each channel whose nearest rounding has the smallest squared error.
fn least_squares_grid(weight: &Tensor, axes: Axes, scheme: &Scheme) -> Result<QParams> {
    let full = scheme.of_tensor(weight, axes)?;
    let shape = weight.shape();
    let (channels, inner) = match full.axis {
        Some(axis) => (shape[axis], shape[axis + 1..].iter().product::<usize>()),
        None => (1, weight.len()),
    };
    let mut values: Vec<Vec<f64>> = vec![Vec::new(); channels];
    for (i, v) in weight.to_f64s().into_iter().enumerate() {
        values[i / inner.max(1) % channels].push(v);
    }
    let (low, high) = scheme.grid()?;
    let mut ranges = Vec::with_capacity(channels);
    for values in &values {
        let least = values.iter().copied().fold(0.0, f64::min);
        let most = values.iter().copied().fold(0.0, f64::max);
        let mut best = (f64::INFINITY, (least, most));
        for k in 0..SHARES {
            let share = 1.0 - k as f64 / 100.0;
            let (scale, zero) = scheme.scale(least * share, most * share)?;
            let (scale, zero) = (f64::from(scale), f64::from(zero));
            let error: f64 = values
                .iter()
                .map(|v| {
                    let level = (v / scale).round_ties_even() + zero;
                    let back = level.clamp(f64::from(low), f64::from(high)) - zero;
                    (v - back * scale).powi(2)
                })
                .sum();
            if error < best.0 {
                best = (error, (least * share, most * share));
            }
        }
        ranges.push(best.1);
    }
    scheme.parameters(&ranges, full.axis)
}

/// A weight as `[groups, outputs, inputs]`, and back.
struct Matrices {
    groups: usize,
    outputs: usize,
    inputs: usize,
    /// Whether the stored weight is `[inputs, outputs]`.
    transposed: bool,
}

impl Matrices {
    fn of(graph: &Graph, layer: &Layer) -> Result<Matrices> {
        let shape = graph.type_of(layer.weight).shape.fixed()?;
        Ok(match graph.node(layer.node).op() {
            opt_core::Op::Conv(op) => Matrices {
                groups: op.groups,
                outputs: shape[0] / op.groups,
                inputs: shape[1..].iter().product(),
                transposed: false,
            },
            _ => Matrices {
                groups: 1,
                outputs: shape[layer.axis],
                inputs: shape[1 - layer.axis],
                transposed: layer.axis == 1,
            },
        })
    }

    fn rows(&self, weight: &Tensor) -> Result<Vec<f64>> {
        match self.transposed {
            true => Ok(weight.transpose(&[1, 0])?.to_f64s()),
            false => Ok(weight.to_f64s()),
        }
    }

    fn back(&self, rows: &[f64], like: &Tensor) -> Result<Tensor> {
        match self.transposed {
            true => {
                let shape = [self.outputs, self.inputs];
                let tensor = Tensor::from_f64s(like.dtype(), shape, rows)?;
                Ok(tensor.transpose(&[1, 0])?.contiguous())
            }
            false => Tensor::from_f64s(like.dtype(), like.shape(), rows),
        }
    }
}

impl Pass for AdaRound {
    fn name(&self) -> &str {
        "adaround"
    }

    fn config(&self) -> String {
        let Settings {
            iterations,
            batch,
            regularization,
        } = self.settings;
        format!(
            "{}iterations = {iterations}\nrows = {batch}\nsamples = {}\n\
             regularization = {regularization}\n",
            self.config.to_toml(),
            self.samples
        )
    }

    fn needs(&self) -> Needs {
        Needs::CALIBRATION
    }

    fn establishes(&self) -> Vec<FactKind> {
        vec![FactKind::Grid]
    }

    fn apply(&self, graph: Graph, cx: &mut Context<'_>) -> Result<(Graph, Report)> {
        if self.samples == 0 || self.settings.batch == 0 {
            return Err(Error::invalid("rounding is learned from at least one row"));
        }
        let (graph, _) = FoldBatchNorm::fold(graph)?;
        let (mut graph, plan, ranges) = self.config.plan(graph, cx)?;
        let exact = graph.clone();
        let data = cx.calibration().or_else(|e| cx.training().map_err(|_| e))?;
        let batches = Batches::new(data, cx.backend()?, &self.config.calibration)?;
        let mut patch = GraphPatch::new(graph.clone());
        fake_activations(&mut patch, &ranges)?;
        let mut simulated = patch.finish()?;
        let (layers, inside) = (Layers::of(&exact), Layers::of(&simulated));
        let relus = rows::before_relu(&exact);
        let mut report = Report::new(plan.layers.len());
        for planned in &plan.layers {
            let name = || exact.value(planned.weight).name().to_string();
            let missing = || Error::invalid("rounding is learned for layers with own weights");
            let layer = layers
                .of_weight(planned.weight)
                .ok_or_else(missing)
                .at(name)?;
            let same = inside
                .of_weight(planned.weight)
                .ok_or_else(missing)
                .at(name)?;
            let weight = exact.value(layer.weight).tensor().ok_or_else(missing)?;
            let scheme = &planned.scheme;
            let params = least_squares_grid(weight, planned.axes(), scheme).at(name)?;
            let matrices = Matrices::of(&exact, layer)?;
            let rows = Rows::draw(
                (&exact, layer),
                (&simulated, same),
                &batches,
                self.samples,
                cx.seed(),
            )
            .at(name)?;
            let rounding = Rounding {
                groups: matrices.groups,
                outputs: matrices.outputs,
                inputs: matrices.inputs,
                weight: matrices.rows(weight)?,
                scale: params.scale.to_f64s(),
                zero: params.zero_point.to_f64s(),
                grid: params.grid,
                bias: match layer.bias.and_then(|b| exact.value(b).tensor()) {
                    Some(bias) => bias.to_f64s(),
                    None => vec![0.0; matrices.groups * matrices.outputs],
                },
                relu: relus.contains(&layer.output),
            };
            let (levels, share) = rounding
                .learn(&rows, &self.settings, cx.backend()?, cx.seed())
                .at(name)?;
            let content = params.dequantize(&matrices.back(&levels, weight)?)?;
            simulated.set_content(layer.weight, content.clone())?;
            graph.set_content(layer.weight, content)?;
            let fact = Fact::Grid {
                dtype: scheme.dtype(),
                scale: params.scale.clone(),
                zero_point: params.zero_point.clone(),
                axis: params.axis,
            };
            graph.facts_mut().insert(layer.weight, fact);
            report = report.figure(format!("error of {}", name()), share);
        }
        graph.verify()?;
        Ok((graph, report))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scales_have_the_smallest_squared_error_of_those_tried() {
        let mut data = vec![0.1f32, -0.12, 0.09, 0.11, -0.1, 0.08, 0.05, 1.0];
        data.extend([0.5f32, -0.5, 0.25, 0.4, 0.3, -0.2, 0.1, 0.0]);
        let weight = Tensor::new([2, 8], data).unwrap();
        let scheme = Scheme::int4().per_channel();
        let axes = Axes { channel: 0, sum: 1 };
        let best = least_squares_grid(&weight, axes, &scheme).unwrap();
        let full = scheme.of_tensor(&weight, axes).unwrap();
        let error = |params: &QParams| {
            let back = crate::simulate::rounded(&weight, params).unwrap().to_f64s();
            let apart = weight.to_f64s().into_iter().zip(back);
            apart.map(|(a, b)| (a - b).powi(2)).sum::<f64>()
        };
        assert!(error(&best) <= error(&full));
        let nan = Tensor::new([1, 2], [1f32, f32::NAN]).unwrap();
        assert!(least_squares_grid(&nan, axes, &scheme).is_err());
    }
}
