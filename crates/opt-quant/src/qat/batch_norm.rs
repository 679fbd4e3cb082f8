//! Batch normalization that goes on training while folded weights are rounded.

use std::collections::{BTreeMap, HashMap};

use opt_core::ops::{Binary, BinaryOp, Op};
use opt_core::{
    Context, Dim, Error, ErrorKind, Graph, GraphPatch, Node, Pass, Report, Result, Shape, ValueId,
};

use super::{Weight, by_value, fake_weight, prepare as prepare_folded, strip};
use crate::params::QParams;
use crate::plan::{Layer, Plan};
use crate::simulate::fake_activations;
use crate::static_pass::Config;

impl Config {
    /// Goes on training batch normalization in quantization-aware training (Jacob et al. 2018;
    /// PyTorch's fused modules): each weight is rounded as it will be folded, times
    /// `scale / sqrt(var + epsilon)` with the running variance, and the product is divided by that
    /// again, so that batch normalization works on what it would without rounding and gathers its
    /// statistics. [`FreezeBatchNorm`] folds it for the last epochs, [`ConvertQat`](super::ConvertQat)
    /// in any case.
    ///
    /// Without this it is folded before training.
    #[must_use]
    pub fn train_batch_norm(mut self) -> Config {
        self.train_batch_norm = true;
        self
    }
}

/// Folds the batch normalization of a graph of [`PrepareQat`](super::PrepareQat) that [trains
/// it](Config::train_batch_norm): its statistics are fixed from here on, and what training changes
/// are the folded weights and biases. Learned scales stay as they are.
///
/// ```
/// use opt_core::nn::{BatchNorm, Conv, ModelBuilder};
/// use opt_core::{Context, Pass};
/// use opt_data::digits;
/// use opt_ndarray::NdarrayBackend;
/// use opt_quant::{Config, QuantizeAware};
/// use opt_train::{Adam, Constant, CrossEntropy, FineTune, Trainer};
///
/// # fn main() -> opt_core::Result<()> {
/// let mut m = ModelBuilder::new("cnn", 0);
/// let x = m.batch("image", [1, 8, 8])?;
/// let h = m.layer("conv", Conv::new(10, [8, 8]).bias(false), x)?;
/// let h = m.layer("norm", BatchNorm::new(), h)?;
/// let y = m.flatten(h, 1)?;
/// m.output("logits", y)?;
///
/// let trainer = || Trainer::new(CrossEntropy, Adam::default(), Constant(1e-3)).epochs(1);
/// // An epoch with statistics of batches, and one with everything but weights and biases fixed.
/// let pass = QuantizeAware::new(Config::default().train_batch_norm(), FineTune(trainer()))
///     .then_frozen(FineTune(trainer()));
/// let (backend, samples) = (NdarrayBackend::new(), digits()?.train);
/// let mut cx = Context::new().with_backend(&backend).with_training(&samples);
/// let (int8, _) = pass.apply(m.finish()?, &mut cx)?;
/// assert!(int8.nodes().all(|(_, n)| n.op().name() != "BatchNorm"));
/// # Ok(())
/// # }
/// ```
#[derive(Debug, Clone, Default)]
pub struct FreezeBatchNorm {
    /// The configuration that the graph was prepared with.
    pub config: Config,
}

/// The name that nodes start with which fold, and which undo it.
const FOLD: &str = "qat.fold";
const UNFOLD: &str = "qat.unfold";

/// The graph with the plan's weights rounded as they will be folded. The plan and the ranges are
/// those of the folded graph, whose values have the names of the original's.
pub(super) fn prepare(
    graph: Graph,
    folded: &Graph,
    plan: &Plan,
    ranges: &BTreeMap<ValueId, QParams>,
    config: &Config,
) -> Result<Graph> {
    let original = graph.clone();
    let consumers = original.consumers();
    let find = |v: ValueId| original.find(folded.value(v).name());
    let mut patch = GraphPatch::new(graph);
    let ranges: BTreeMap<ValueId, QParams> = ranges
        .iter()
        .map(|(&v, params)| Ok((find(v)?, params.clone())))
        .collect::<Result<_>>()?;
    match config.learn_ranges {
        true => super::activations::learned(&mut patch, &ranges)?,
        false => fake_activations(&mut patch, &ranges)?,
    }
    for layer in &plan.layers {
        let weight = find(layer.weight)?;
        let source = super::weight_of(folded, layer.weight)?;
        let readers = consumers.get(&weight).map_or(&[][..], Vec::as_slice);
        let node = match readers {
            [(node, 1)] => original.node(*node),
            _ => return Err(Error::invalid("a weight with several readers").at(source.name)),
        };
        match normalization(&original, folded, &consumers, node) {
            Some(norm) => {
                rounded_as_folded(&mut patch, &original, (node, norm), &source, layer, config)?
            }
            None => {
                let fake = fake_weight(&mut patch, weight, &source, layer, config)?;
                patch.replace(weight, fake)?;
            }
        }
    }
    patch.finish()
}

/// The batch normalization behind a layer that was folded into it.
fn normalization<'a>(
    original: &'a Graph,
    folded: &Graph,
    consumers: &HashMap<ValueId, Vec<(opt_core::NodeId, usize)>>,
    layer: &Node,
) -> Option<&'a Node> {
    let only = |v: ValueId| match consumers.get(&v).map(Vec::as_slice) {
        Some([(node, _)]) => Some(original.node(*node)),
        _ => None,
    };
    let mut next = only(layer.outputs()[0])?;
    let add = Op::from(Binary { op: BinaryOp::Add });
    if matches!(layer.op(), Op::MatMul(_)) && *next.op() == add {
        next = only(next.outputs()[0])?;
    }
    if !matches!(next.op(), Op::BatchNorm(_)) {
        return None;
    }
    let name = original.value(next.outputs()[0]).name();
    let (_, made_by) = folded.producer(folded.find(name).ok()?)?;
    (!matches!(made_by.op(), Op::BatchNorm(_))).then_some(next)
}

/// Rounds a layer's weight times the factor of the normalization behind it, and divides the product
/// by that.
fn rounded_as_folded(
    patch: &mut GraphPatch,
    original: &Graph,
    (node, norm): (&Node, &Node),
    source: &Weight,
    layer: &Layer,
    config: &Config,
) -> Result<()> {
    let Op::BatchNorm(op) = norm.op() else {
        return Err(Error::invalid("no batch normalization"));
    };
    let (gamma, variance) = (norm.inputs()[1], norm.inputs()[4]);
    let spread = patch.add_scalar(variance, op.epsilon)?;
    let spread = patch.sqrt(spread)?;
    let factor = patch.div(gamma, spread)?;
    // A channel that the normalization multiplies by 0 is not divided by it.
    let zero = patch.scalar_like(factor, 0.0)?;
    let one = patch.scalar_like(factor, 1.0)?;
    let is_zero = patch.equal(factor, zero)?;
    let divisor = patch.select(is_zero, one, factor)?;
    let channels = original.type_of(gamma).shape[0].clone();
    let along = |patch: &mut GraphPatch, v: ValueId, axis: usize, rank: usize| {
        let mut shape: Shape = (0..rank).map(|_| Dim::from(1)).collect();
        shape.dims_mut()[axis] = channels.clone();
        patch.reshape(v, shape)
    };
    let weight = node.inputs()[1];
    let rank = original.type_of(weight).rank();
    let mul = || Binary { op: BinaryOp::Mul };
    let by = along(patch, factor, layer.axis, rank)?;
    let scaled = patch.named_node(FOLD, mul(), &[weight, by])?[0];
    let fake = fake_weight(patch, scaled, source, layer, config)?;
    let mut inputs = vec![node.inputs()[0], fake];
    if let Some(&bias) = node.inputs().get(2) {
        inputs.push(patch.named_node(FOLD, mul(), &[bias, factor])?[0]);
    }
    let y = patch.named_node(node.name(), node.op().clone(), &inputs)?[0];
    let rank = original.type_of(node.outputs()[0]).rank();
    let channel = if matches!(node.op(), Op::Conv(_)) {
        1
    } else {
        rank - 1
    };
    let by = along(patch, divisor, channel, rank)?;
    let div = Binary { op: BinaryOp::Div };
    let y = patch.named_node(UNFOLD, div, &[y, by])?[0];
    patch.replace(node.outputs()[0], y)
}

/// The graph with what folds and what undoes it taken out.
pub(super) fn without_folding(graph: Graph) -> Result<Graph> {
    let nodes: Vec<_> = graph.nodes().map(|(_, n)| n.clone()).collect();
    let mut patch = GraphPatch::new(graph);
    for node in nodes {
        if node.name().starts_with(FOLD) || node.name().starts_with(UNFOLD) {
            patch.replace(node.outputs()[0], node.inputs()[0])?;
        }
    }
    patch.finish()
}

impl Pass for FreezeBatchNorm {
    fn name(&self) -> &str {
        "freeze_batch_norm"
    }

    fn config(&self) -> String {
        self.config.to_toml()
    }

    fn apply(&self, graph: Graph, _: &mut Context<'_>) -> Result<(Graph, Report)> {
        let count = graph
            .nodes()
            .filter(|(_, n)| n.name().starts_with(UNFOLD))
            .count();
        if count == 0 {
            return Err(Error::new(
                ErrorKind::NoEffect,
                "no batch normalization is trained in this graph; apply `PrepareQat` with \
                 `Config::train_batch_norm` first",
            ));
        }
        let trained = graph.clone();
        let (folded, ranges) = strip(graph, &self.config)?;
        let ranges = by_value(&folded, &ranges)?;
        let plan = Plan::of(&folded, &self.config.rules, &self.config.weights)?;
        let mut graph = prepare_folded(folded, &plan, &ranges, &self.config)?;
        // What was learned goes on from where it is.
        let contents: Vec<_> = graph
            .variables()
            .filter_map(|(id, value, old)| {
                let scale = value.name().ends_with(".scale") || value.name().ends_with(".zero");
                let found = trained.find(value.name()).ok().filter(|_| scale)?;
                let new = trained.value(found).tensor()?;
                (new.shape() == old.shape()).then(|| (id, new.clone()))
            })
            .collect();
        for (id, content) in contents {
            graph.set_variable(id, content)?;
        }
        Ok((graph, Report::new(count)))
    }
}
