//! Quantization-aware training: fake quantization in, integers out.

use std::collections::BTreeMap;
use std::sync::Arc;

use opt_core::ops::{FakeQuantize, Op};
use opt_core::pass::{FoldBatchNorm, Needs};
use opt_core::{
    Context, DType, Error, ErrorKind, Graph, GraphPatch, Pass, Report, Result, Tensor, ValueId,
    ValueKind,
};

use crate::emit::emit;
use crate::plan::Plan;
use crate::scheme::{QParams, Scheme};
use crate::static_pass::Config;

/// Inserts fake quantization where [`QuantizeStatic`](crate::QuantizeStatic) would quantize, so
/// that training feels the rounding (Jacob et al. 2018; gradients go straight through).
///
/// Activations are rounded to grids that calibration fixes; weights to grids whose scales are
/// computed from the weights in every step. [`ConvertQat`] makes the integers.
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

/// Adds the nodes that round a weight to the symmetric grid of its own range.
fn fake_weight(
    patch: &mut GraphPatch,
    weight: ValueId,
    axis: usize,
    scheme: &Scheme,
) -> Result<ValueId> {
    if !scheme.symmetric || !matches!(scheme.dtype, DType::I8 | DType::I4) {
        return Err(Error::unsupported(
            "quantization-aware training of weights on other than symmetric signed grids",
        ));
    }
    let (low, high) = scheme.dtype.int_range()?;
    let rank = patch.type_of(weight).rank();
    let axis = scheme.per_channel.then_some(axis);
    let axes: Vec<usize> = (0..rank).filter(|&a| Some(a) != axis).collect();
    let fixed = patch.stop_gradient(weight)?;
    let size = patch.abs(fixed)?;
    let size = patch.reduce(opt_core::ops::ReduceOp::Max, size, &axes, false)?;
    let scale = patch.mul_scalar(size, 1.0 / f64::from(high))?;
    // An all-zero channel has scale 1, as `Scheme::scale` has it.
    let zero = patch.scalar_like(scale, 0.0)?;
    let one = patch.scalar_like(scale, 1.0)?;
    let positive = patch.greater(scale, zero)?;
    let scale = patch.select(positive, scale, one)?;
    let shape = patch.type_of(scale).shape.fixed()?;
    let zeros = patch.constant(Tensor::zeros(DType::F32, &shape)?);
    patch.op(FakeQuantize { low, high, axis }, &[weight, scale, zeros])
}

fn prepare(
    graph: Graph,
    plan: &Plan,
    ranges: &BTreeMap<ValueId, QParams>,
    config: &Config,
) -> Result<Graph> {
    let mut patch = GraphPatch::new(graph);
    for (&origin, params) in ranges {
        let (low, high) = params.zero_point.dtype().int_range()?;
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
        let fake = fake_weight(&mut patch, layer.weight, layer.axis, &config.weights)?;
        patch.replace(layer.weight, fake)?;
    }
    patch.finish()
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
                zero_point: zero.cast(config.activations.dtype),
                axis: None,
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
        self.config.check()?;
        let (graph, _) = FoldBatchNorm::fold(graph)?;
        let plan = Plan::of(&graph, &self.config.exclude)?;
        let ranges = self.config.ranges(&graph, &plan, cx)?;
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
        let (graph, ranges) = strip(graph, &self.config)?;
        let plan = Plan::of(&graph, &self.config.exclude)?;
        emit(graph, &plan, &ranges, &self.config.weights)
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
