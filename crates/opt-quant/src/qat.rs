//! Quantization-aware training: fake quantization in, integers out.

use std::collections::BTreeMap;
use std::sync::Arc;

use opt_core::ops::{FakeQuantize, Op};
use opt_core::pass::Needs;
use opt_core::{
    Context, DType, Error, ErrorKind, Graph, GraphPatch, Pass, Report, Result, Tensor, ValueId,
    ValueKind,
};

use crate::emit::emit;
use crate::params::QParams;
use crate::plan::{Layer, Plan};
use crate::scheme::Granularity;
use crate::static_pass::Config;

/// Inserts fake quantization where [`QuantizeStatic`](crate::QuantizeStatic) would quantize, so
/// that training feels the rounding (Jacob et al. 2018; gradients go straight through).
///
/// Activations are rounded to grids that calibration fixes; weights to grids whose scales are
/// computed from the weights in every step, or [learned](Config::learn_scales). [`ConvertQat`]
/// makes the integers.
#[derive(Debug, Clone, Default)]
pub struct PrepareQat {
    /// What to quantize and how.
    pub config: Config,
}

/// Turns a graph of [`PrepareQat`], after training, into the QDQ graph with integer constants.
#[derive(Debug, Clone, Default)]
pub struct ConvertQat {
    /// The configuration that the graph was prepared with.
    pub config: Config,
}

/// Prepares, trains with an inner pass (fine-tuning, distillation) and converts.
///
/// ```
/// use opt_core::nn::{Linear, ModelBuilder};
/// use opt_core::{Context, Pass};
/// use opt_data::digits;
/// use opt_ndarray::NdarrayBackend;
/// use opt_quant::{Config, QuantizeAware};
/// use opt_train::{Adam, Constant, CrossEntropy, FineTune, Trainer};
///
/// # fn main() -> opt_core::Result<()> {
/// let mut m = ModelBuilder::new("perceptron", 0);
/// let x = m.batch("image", [1, 8, 8])?;
/// let h = m.flatten(x, 1)?;
/// let h = m.layer("fc1", Linear::new(32), h)?;
/// let h = m.relu(h)?;
/// let y = m.layer("fc2", Linear::new(10), h)?;
/// m.output("logits", y)?;
///
/// let (backend, samples) = (NdarrayBackend::new(), digits()?.train);
/// let mut cx = Context::new().with_backend(&backend).with_training(&samples);
/// let trainer = Trainer::new(CrossEntropy, Adam::default(), Constant(1e-3)).epochs(1);
/// let pass = QuantizeAware::new(Config::default(), FineTune(trainer));
/// let (int8, report) = pass.apply(m.finish()?, &mut cx)?;
/// assert_eq!(report.changed, 2);
/// assert!(int8.nodes().all(|(_, n)| n.op().name() != "FakeQuantize"));
/// # Ok(())
/// # }
/// ```
#[derive(Debug, Clone)]
pub struct QuantizeAware {
    config: Config,
    train: Arc<dyn Pass>,
}

impl QuantizeAware {
    /// Trains quantization-aware with a pass that trains.
    pub fn new(config: Config, train: impl Pass + 'static) -> QuantizeAware {
        QuantizeAware {
            config,
            train: Arc::new(train),
        }
    }
}

/// The variable with the learned scales of a weight.
fn scale_name(weight: &str) -> String {
    format!("{weight}.scale")
}

/// No learned scale is smaller: a step could make it 0 or negative.
const LEAST_SCALE: f64 = 1e-8;

/// Adds the nodes that round a weight to its symmetric grid.
fn fake_weight(patch: &mut GraphPatch, layer: &Layer, config: &Config) -> Result<ValueId> {
    let (weight, scheme) = (layer.weight, &layer.scheme);
    let (low, high) = scheme.grid()?;
    if !scheme.is_symmetric() || low >= 0 {
        return Err(Error::unsupported(format!(
            "quantization-aware training of weights as `{scheme}`: it takes symmetric signed integers"
        )));
    }
    let axis = scale_axis(layer);
    let scale = match config.learn_scales {
        true => learned_scale(patch, weight, axis, high)?,
        false => scale_of_range(patch, weight, axis, high)?,
    };
    let shape = patch.type_of(scale).shape.fixed()?;
    let zeros = patch.constant(Tensor::zeros(DType::F32, &shape)?);
    patch.op(FakeQuantize { low, high, axis }, &[weight, scale, zeros])
}

/// The axis along which a layer's weight has scales.
fn scale_axis(layer: &Layer) -> Option<usize> {
    (layer.scheme.granularity() == Granularity::Channel).then_some(layer.axis)
}

/// The scale under which the largest weight is the highest integer.
fn scale_of_range(
    patch: &mut GraphPatch,
    weight: ValueId,
    axis: Option<usize>,
    high: i32,
) -> Result<ValueId> {
    let rank = patch.type_of(weight).rank();
    let axes: Vec<usize> = (0..rank).filter(|&a| Some(a) != axis).collect();
    let fixed = patch.stop_gradient(weight)?;
    let size = patch.abs(fixed)?;
    let size = patch.reduce(opt_core::ops::ReduceOp::Max, size, &axes, false)?;
    let scale = patch.mul_scalar(size, 1.0 / f64::from(high))?;
    // An all-zero channel has scale 1, as `Scheme::scale` has it.
    let zero = patch.scalar_like(scale, 0.0)?;
    let one = patch.scalar_like(scale, 1.0)?;
    let positive = patch.greater(scale, zero)?;
    patch.select(positive, scale, one)
}

/// A scale that training learns (LSQ, Esser et al. 2020): at first `2 * mean(|w|) / sqrt(high)`,
/// with its gradient divided by `sqrt(n * high)` for n weights, so that it moves about as fast as
/// they do.
fn learned_scale(
    patch: &mut GraphPatch,
    weight: ValueId,
    axis: Option<usize>,
    high: i32,
) -> Result<ValueId> {
    let value = patch.graph().value(weight);
    let name = value.name().to_string();
    let content = value
        .tensor()
        .cloned()
        .ok_or_else(|| Error::unsupported("learned scales of computed weights").at(&*name))?;
    let shape = content.shape();
    let channels = axis.map_or(1, |a| shape[a]);
    let inner: usize = axis.map_or(content.len(), |a| shape[a + 1..].iter().product());
    let mut sums = vec![0.0; channels];
    for (i, w) in content.to_f64s().into_iter().enumerate() {
        sums[i / inner.max(1) % channels] += w.abs();
    }
    let count = (content.len() / channels.max(1)).max(1) as f64;
    let root = f64::from(high).sqrt();
    // A channel of zeros has scale 1, as `Scheme::scale` has it.
    let start = |sum: &f64| {
        if *sum > 0.0 {
            2.0 * sum / count / root
        } else {
            1.0
        }
    };
    let start: Vec<f64> = sums.iter().map(start).collect();
    let shape: &[usize] = if axis.is_some() { &[channels] } else { &[] };
    let start = Tensor::from_f64s(DType::F32, shape, &start)?;
    let scale = patch.variable(&scale_name(&name), start)?;
    // The value of the scale with a part of its gradient.
    let part = 1.0 / (count * f64::from(high)).sqrt();
    let moving = patch.mul_scalar(scale, part)?;
    let fixed = patch.stop_gradient(scale)?;
    let fixed = patch.mul_scalar(fixed, 1.0 - part)?;
    let scale = patch.add(moving, fixed)?;
    let least = patch.scalar_like(scale, LEAST_SCALE)?;
    patch.maximum(scale, least)
}

fn prepare(
    graph: Graph,
    plan: &Plan,
    ranges: &BTreeMap<ValueId, QParams>,
    config: &Config,
) -> Result<Graph> {
    let mut patch = GraphPatch::new(graph);
    for (&origin, params) in ranges {
        let (low, high) = params.grid;
        let scale = patch.named_constant("s", params.scale.clone());
        let zero = patch.named_constant("z", params.zero_point.cast(DType::F32));
        let op = FakeQuantize {
            low,
            high,
            axis: None,
        };
        let fake = patch.named_node("qat", op, &[origin, scale, zero])?[0];
        patch.replace(origin, fake)?;
    }
    for layer in &plan.layers {
        let fake = fake_weight(&mut patch, layer, config)?;
        patch.replace(layer.weight, fake)?;
    }
    patch.finish()
}

/// The parameters of the weights whose scales were learned.
fn learned(graph: &Graph, config: &Config, plan: &Plan) -> Result<BTreeMap<ValueId, QParams>> {
    let mut out = BTreeMap::new();
    if !config.learn_scales {
        return Ok(out);
    }
    for layer in &plan.layers {
        let name = graph.value(layer.weight).name();
        let scale = graph.find(&scale_name(name)).ok();
        let Some(scale) = scale.and_then(|v| graph.value(v).tensor()) else {
            return Err(Error::invalid(
                "this weight has no learned scale; apply `PrepareQat` with the same configuration",
            )
            .at(name.to_string()));
        };
        let scales: Vec<f64> = scale.to_f64s();
        let scales: Vec<f64> = scales.into_iter().map(|s| s.max(LEAST_SCALE)).collect();
        let params = QParams {
            scale: Tensor::from_f64s(DType::F32, scale.shape(), &scales)?,
            zero_point: Tensor::zeros(layer.scheme.dtype(), scale.shape())?,
            axis: scale_axis(layer),
            block: None,
            grid: layer.scheme.grid()?,
        };
        out.insert(layer.weight, params);
    }
    Ok(out)
}

/// The graph without fake quantization, and the parameters that its activations had.
fn strip(graph: Graph, config: &Config) -> Result<(Graph, BTreeMap<ValueId, QParams>)> {
    let nodes: Vec<_> = graph.nodes().map(|(_, n)| n.clone()).collect();
    let mut ranges = BTreeMap::new();
    let mut patch = GraphPatch::new(graph);
    let mut found = false;
    for node in &nodes {
        if !matches!(node.op(), Op::FakeQuantize(_)) {
            continue;
        }
        found = true;
        let source = node.inputs()[0];
        patch.replace(node.outputs()[0], source)?;
        let graph = patch.graph();
        let content = |v: ValueId| match graph.value(v).kind() {
            ValueKind::Constant(t) | ValueKind::Variable(t) => Some(t.clone()),
            _ => None,
        };
        if let (None, Some(scale), Some(zero)) = (
            graph.value(source).tensor(),
            content(node.inputs()[1]),
            content(node.inputs()[2]),
        ) {
            let params = QParams {
                scale,
                zero_point: zero.cast(config.activations.dtype()),
                axis: None,
                block: None,
                grid: config.activations.grid()?,
            };
            ranges.insert(source, params);
        }
    }
    if !found {
        return Err(Error::new(
            ErrorKind::NoEffect,
            "the graph has no fake quantization; apply `PrepareQat` first",
        ));
    }
    Ok((patch.finish()?, ranges))
}

impl Pass for PrepareQat {
    fn name(&self) -> &str {
        "prepare_qat"
    }

    fn config(&self) -> String {
        self.config.to_toml()
    }

    fn needs(&self) -> Needs {
        Needs::CALIBRATION
    }

    fn apply(&self, graph: Graph, cx: &mut Context<'_>) -> Result<(Graph, Report)> {
        let (graph, plan, ranges) = self.config.plan(graph, cx)?;
        let prepared = prepare(graph, &plan, &ranges, &self.config)?;
        Ok((prepared, Report::new(plan.layers.len())))
    }
}

impl Pass for ConvertQat {
    fn name(&self) -> &str {
        "convert_qat"
    }

    fn config(&self) -> String {
        self.config.to_toml()
    }

    fn apply(&self, graph: Graph, _: &mut Context<'_>) -> Result<(Graph, Report)> {
        let prepared = graph.clone();
        let (graph, ranges) = strip(graph, &self.config)?;
        let plan = Plan::of(&graph, &self.config.rules, &self.config.weights)?;
        let learned = learned(&prepared, &self.config, &plan)?;
        emit(graph, &plan, &ranges, &learned)
    }
}

impl Pass for QuantizeAware {
    fn name(&self) -> &str {
        "quantize_aware"
    }

    fn config(&self) -> String {
        self.config.to_toml()
    }

    fn needs(&self) -> Needs {
        let mut needs = self.train.needs();
        needs.backend = true;
        needs
    }

    fn apply(&self, graph: Graph, cx: &mut Context<'_>) -> Result<(Graph, Report)> {
        let config = self.config.clone();
        let prepare = PrepareQat {
            config: config.clone(),
        };
        let (graph, _) = prepare.apply(graph, cx)?;
        let (graph, trained) = self.train.apply(graph, cx)?;
        let (graph, mut report) = ConvertQat { config }.apply(graph, cx)?;
        report.figures.extend(trained.figures);
        Ok((graph, report))
    }
}
