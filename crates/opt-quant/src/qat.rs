//! Quantization-aware training: fake quantization in, integers out.

mod activations;
mod batch_norm;
mod weights;

use std::collections::BTreeMap;
use std::sync::Arc;

use opt_core::ops::Op;
use opt_core::pass::{FoldBatchNorm, Needs};
use opt_core::{Context, Error, ErrorKind, Graph, GraphPatch, Pass, Report, Result, ValueId};

use crate::emit::emit;
use crate::params::QParams;
use crate::plan::Plan;
use crate::simulate::fake_activations;
use crate::static_pass::Config;
pub use batch_norm::FreezeBatchNorm;
use weights::{Weight, fake_weight, learned};

/// Inserts fake quantization where [`QuantizeStatic`](crate::QuantizeStatic) would quantize, so
/// that training feels the rounding (Jacob et al. 2018; gradients go straight through).
///
/// Activations are rounded to grids that calibration fixes, or [learned](Config::learn_ranges) ones
/// that start there; weights to grids whose scales are computed from the weights in every step, or
/// [learned](Config::learn_scales). Batch normalization is folded before, or [trained
/// on](Config::train_batch_norm). [`ConvertQat`] makes the integers.
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
/// The inner pass may learn from the float model: with `opt-distill`, whose passes take a teacher
/// from the context, `QuantizeAware::new(config, Distil::new(SoftTargets::default(), trainer))` in a
/// context [with the model as teacher](Context::with_teacher) is distillation and
/// quantization-aware training in one.
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
    frozen: Option<Arc<dyn Pass>>,
}

impl QuantizeAware {
    /// Trains quantization-aware with a pass that trains.
    pub fn new(config: Config, train: impl Pass + 'static) -> QuantizeAware {
        QuantizeAware {
            config,
            train: Arc::new(train),
            frozen: None,
        }
    }

    /// Trains on, after the first pass, with batch normalization folded for good
    /// ([`FreezeBatchNorm`]) and a pass of its own; a trainer that
    /// [freezes](https://docs.rs/opt-train) `.scale` and `.zero` holds the ranges too.
    #[must_use]
    pub fn then_frozen(mut self, train: impl Pass + 'static) -> QuantizeAware {
        self.frozen = Some(Arc::new(train));
        self
    }
}

fn prepare(
    graph: Graph,
    plan: &Plan,
    ranges: &BTreeMap<ValueId, QParams>,
    config: &Config,
) -> Result<Graph> {
    let mut patch = GraphPatch::new(graph.clone());
    match config.learn_ranges {
        true => activations::learned(&mut patch, ranges)?,
        false => fake_activations(&mut patch, ranges)?,
    }
    for layer in &plan.layers {
        let source = weight_of(&graph, layer.weight)?;
        let fake = fake_weight(&mut patch, layer.weight, &source, layer, config)?;
        patch.replace(layer.weight, fake)?;
    }
    patch.finish()
}

/// A stored weight's name and content.
fn weight_of(graph: &Graph, weight: ValueId) -> Result<Weight> {
    let value = graph.value(weight);
    let name = value.name().to_string();
    match value.tensor().cloned() {
        Some(content) => Ok(Weight { name, content }),
        None => Err(Error::invalid("a weight to quantize is not stored").at(name)),
    }
}

/// The graph without fake quantization, and the parameters that its activations had, by name.
fn strip(graph: Graph, config: &Config) -> Result<(Graph, BTreeMap<String, QParams>)> {
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
        let value = patch.graph().value(source);
        if value.tensor().is_none()
            && let Some(params) = activations::parameters(patch.graph(), node, config)?
        {
            ranges.insert(value.name().to_string(), params);
        }
    }
    if !found {
        return Err(Error::new(
            ErrorKind::NoEffect,
            "the graph has no fake quantization; apply `PrepareQat` first",
        ));
    }
    let graph = batch_norm::without_folding(patch.finish()?)?;
    Ok((FoldBatchNorm::fold(graph)?.0, ranges))
}

/// Parameters by the values that have the names.
fn by_value(
    graph: &Graph,
    ranges: &BTreeMap<String, QParams>,
) -> Result<BTreeMap<ValueId, QParams>> {
    let each = ranges.iter();
    each.map(|(name, params)| Ok((graph.find(name)?, params.clone())))
        .collect()
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
        let (folded, plan, ranges) = self.config.plan(graph.clone(), cx)?;
        let prepared = match self.config.train_batch_norm {
            true => batch_norm::prepare(graph, &folded, &plan, &ranges, &self.config)?,
            false => prepare(folded, &plan, &ranges, &self.config)?,
        };
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
        let ranges = by_value(&graph, &ranges)?;
        let plan = Plan::of(&graph, &self.config.rules, &self.config.weights)?;
        let learned = learned(&prepared, &graph, &self.config, &plan)?;
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
        let mut needs = self.train.needs().union(Needs::BACKEND);
        if let Some(frozen) = &self.frozen {
            needs = needs.union(frozen.needs());
        }
        needs
    }

    fn apply(&self, graph: Graph, cx: &mut Context<'_>) -> Result<(Graph, Report)> {
        let config = self.config.clone();
        let prepare = PrepareQat {
            config: config.clone(),
        };
        let (graph, _) = prepare.apply(graph, cx)?;
        let (mut graph, mut trained) = self.train.apply(graph, cx)?;
        if let Some(frozen) = &self.frozen {
            let freeze = FreezeBatchNorm {
                config: config.clone(),
            };
            let (folded, _) = freeze.apply(graph, cx)?;
            let (tuned, report) = frozen.apply(folded, cx)?;
            graph = tuned;
            trained.figures.extend(report.figures);
        }
        let (graph, mut report) = ConvertQat { config }.apply(graph, cx)?;
        report.figures.extend(trained.figures);
        Ok((graph, report))
    }
}
