//! Cross-layer equalization and the absorption of high biases.

use std::collections::{BTreeMap, BTreeSet};

use opt_core::ops::{BinaryOp, Op, Unary, UnaryOp};
use opt_core::pass::{FoldBatchNorm, Needs, Preserves};
use opt_core::{
    Context, Error, ErrorKind, FactKind, Graph, GraphPatch, Pass, Report, Result, Tensor, ValueId,
};

use crate::layers::{Layers, bias_content};
use crate::moments::channel_moments;
use crate::scales::{FIXED, Scales};

/// Gives the channels of neighbouring layers equal ranges, so that one scale a tensor suits all of
/// them (cross-layer equalization; Nagel et al., "Data-free quantization through weight
/// equalization and bias correction", ICCV 2019). The function in float stays the same up to
/// rounding.
///
/// A channel with the range `r1` in the weights that make it and `r2` in those that read it is
/// multiplied by `sqrt(r2 / r1)` where it is made, bias included, and divided by that where it is
/// read; both ranges are `sqrt(r1 r2)` then. This is repeated over all layers until no factor moves
/// by more than a thousandth. Batch normalization is folded first.
///
/// Factors pass through ReLU, leaky ReLU, parametric ReLU, absolute values, pooling, reshaping,
/// transposing, concatenation, slices and zero padding, and reach every layer that reads a channel
/// and every one that is added to it: a residual connection gives its layers one factor a channel.
/// They stop at graph inputs and outputs, other functions (sigmoid, softmax, GELU, ReLU6), products
/// of two computed values, and weights that are read more than once.
///
/// ```
/// use opt_core::nn::{Linear, ModelBuilder};
/// use opt_core::{Context, Pass, Pipeline};
/// use opt_data::digits;
/// use opt_ndarray::NdarrayBackend;
/// use opt_quant::{Config, CorrectBias, Equalize, QuantizeStatic, Scheme};
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
/// // One scale a weight, as some accelerators want it.
/// let config = Config::default().weights(Scheme::weights().per_tensor());
/// let repair = Pipeline::new()
///     .then(Equalize::new())
///     .then(CorrectBias::new(config.clone()))
///     .then(QuantizeStatic::with(config));
/// let (backend, samples) = (NdarrayBackend::new(), digits()?.train);
/// let mut cx = Context::new().with_backend(&backend).with_calibration(&samples);
/// let (int8, reports) = repair.run(m.finish()?, &mut cx)?;
/// assert_eq!(reports[0].1.changed, 32);
/// # let _ = int8;
/// # Ok(())
/// # }
/// ```
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Equalize {
    relu6_as_relu: bool,
    absorb: bool,
}

/// Sweeps over all layers at the most. The factors of a chain of layers settle in a few.
const MOST_SWEEPS: usize = 200;

/// No channel is scaled by more than this or less than its inverse.
const MOST_FACTOR: f64 = 1e6;

impl Equalize {
    /// Equalization alone.
    pub fn new() -> Equalize {
        Equalize::default()
    }

    /// Replaces each clipping from 0 to a positive bound (ReLU6) by ReLU first, so that factors
    /// pass: the paper's way with MobileNets. This changes the function where the bound was
    /// reached.
    #[must_use]
    pub fn relu6_as_relu(mut self) -> Equalize {
        self.relu6_as_relu = true;
        self
    }

    /// Moves what a channel has in any case from its bias into the biases of the next layers, which
    /// narrows its range (the paper's section 4.1.3): `max(0, mean - 3 deviations)` of what comes
    /// before the ReLU, measured on the calibration examples. The function changes for the rare
    /// values below that.
    ///
    /// This is done where a ReLU stands between layers, and those that read it are matrix products
    /// or convolutions without padding, since padding has nothing to absorb.
    #[must_use]
    pub fn absorb_high_biases(mut self) -> Equalize {
        self.absorb = true;
        self
    }
}

/// The weights that make and read the channels of a boundary between layers.
struct Boundary {
    /// Numbers of factors that one reading weight divides by.
    roots: BTreeSet<u32>,
    /// Every weight that one of those factors touches.
    weights: BTreeSet<ValueId>,
}

/// A weight's entries: content, and the factors of each.
struct Weight {
    content: Vec<f64>,
    entries: Vec<(u32, u32)>,
}

/// The factors that equalize, by number, how many channels they are and how often all layers were
/// gone over.
fn equalizing(graph: &Graph, scales: &Scales) -> (Vec<f64>, usize, usize) {
    let mut weights: BTreeMap<ValueId, Weight> = BTreeMap::new();
    let mut made: BTreeSet<u32> = BTreeSet::new();
    let mut touching: BTreeMap<u32, BTreeSet<ValueId>> = BTreeMap::new();
    for (&id, stored) in scales.stored.iter().filter(|(_, s)| s.weight) {
        let Some(tensor) = graph.value(id).tensor() else {
            continue;
        };
        let entries = scales.entries(stored, tensor.shape());
        for &(times, over) in &entries {
            made.insert(times);
            for n in [times, over] {
                touching.entry(n).or_default().insert(id);
            }
        }
        let content = tensor.to_f64s();
        weights.insert(id, Weight { content, entries });
    }
    made.remove(&FIXED);
    let mut boundaries = Vec::new();
    let mut seen = BTreeSet::new();
    for (reader, _) in &scales.readers {
        let Some(weight) = weights.get(reader) else {
            continue;
        };
        let roots: BTreeSet<u32> = weight.entries.iter().map(|e| e.1).collect();
        let roots: BTreeSet<u32> = roots.intersection(&made).copied().collect();
        if roots.is_empty() || !seen.insert(roots.clone()) {
            continue;
        }
        let weights = roots.iter().flat_map(|n| &touching[n]).copied().collect();
        boundaries.push(Boundary { roots, weights });
    }
    let mut factors = vec![1.0; scales.bound()];
    let mut sweeps = 0;
    while sweeps < MOST_SWEEPS {
        sweeps += 1;
        let mut moved = 0.0f64;
        for boundary in &boundaries {
            let mut ranges: BTreeMap<u32, (f64, f64)> = BTreeMap::new();
            for id in &boundary.weights {
                let Weight { content, entries } = &weights[id];
                for (v, &(times, over)) in content.iter().zip(entries) {
                    if times == over {
                        continue;
                    }
                    if boundary.roots.contains(&times) {
                        let range = ranges.entry(times).or_default();
                        range.0 = range.0.max(v.abs());
                    }
                    if boundary.roots.contains(&over) {
                        let range = ranges.entry(over).or_default();
                        range.1 = range.1.max(v.abs());
                    }
                }
            }
            let mut step: BTreeMap<u32, f64> = BTreeMap::new();
            for (n, (first, second)) in ranges {
                let wanted = (second / first).sqrt();
                // A channel that is not made or not read by any weight has nothing to equalize.
                if first > 0.0 && second > 0.0 && wanted.is_finite() {
                    let before = factors[n as usize];
                    let after = (before * wanted).clamp(1.0 / MOST_FACTOR, MOST_FACTOR);
                    factors[n as usize] = after;
                    moved = moved.max((after / before).ln().abs());
                    step.insert(n, after / before);
                }
            }
            for id in &boundary.weights {
                let Some(Weight { content, entries }) = weights.get_mut(id) else {
                    continue;
                };
                for (v, (times, over)) in content.iter_mut().zip(entries) {
                    *v *= step.get(times).unwrap_or(&1.0) / step.get(over).unwrap_or(&1.0);
                }
            }
        }
        if moved < 1e-3 {
            break;
        }
    }
    let channels: BTreeSet<u32> = boundaries.into_iter().flat_map(|b| b.roots).collect();
    (factors, channels.len(), sweeps)
}

/// The number of a stored scalar.
fn scalar(graph: &Graph, v: ValueId) -> Option<f64> {
    let tensor = graph.value(v).tensor()?;
    (tensor.len() == 1).then(|| tensor.to_f64s()[0])
}

/// What a maximum or minimum with a stored scalar is of, and the scalar.
fn bounded(graph: &Graph, v: ValueId, op: BinaryOp) -> Option<(ValueId, f64)> {
    let (_, node) = graph.producer(v)?;
    let (a, b) = match node.op() {
        Op::Binary(found) if found.op == op => (node.inputs()[0], node.inputs()[1]),
        _ => return None,
    };
    let (x, bound) = match (scalar(graph, a), scalar(graph, b)) {
        (None, Some(bound)) => (a, bound),
        (Some(bound), None) => (b, bound),
        _ => return None,
    };
    (graph.type_of(x) == graph.type_of(v)).then_some((x, bound))
}

/// The graph with clippings from 0 to a positive bound replaced by ReLU, and how many there were.
fn without_upper_bounds(graph: Graph) -> Result<(Graph, usize)> {
    let original = graph.clone();
    let mut patch = GraphPatch::new(graph);
    let mut count = 0;
    for (_, node) in original.nodes() {
        let Some(&out) = node.outputs().first() else {
            continue;
        };
        let relu_of = |v: ValueId| match original.producer(v)?.1 {
            n if *n.op() == Op::from(Unary { op: UnaryOp::Relu }) => Some(n.inputs()[0]),
            _ => {
                let (x, low) = bounded(&original, v, BinaryOp::Max)?;
                (low == 0.0).then_some(x)
            }
        };
        let upper_last = || {
            let (x, high) = bounded(&original, out, BinaryOp::Min)?;
            relu_of(x).filter(|_| high > 0.0)
        };
        let upper_first = || {
            let (x, high) = bounded(&original, relu_of(out)?, BinaryOp::Min)?;
            (high > 0.0).then_some(x)
        };
        if let Some(x) = upper_last().or_else(upper_first) {
            let y = patch.relu(x)?;
            patch.replace(out, y)?;
            count += 1;
        }
    }
    if count == 0 {
        return Err(Error::new(
            ErrorKind::NoEffect,
            "the graph has no clipping from 0 to a positive bound to replace by ReLU",
        ));
    }
    Ok((patch.finish()?, count))
}

/// Moves high biases into the layers that read; how many channels had some.
fn absorb(mut graph: Graph, cx: &Context<'_>) -> Result<(Graph, usize)> {
    let layers = Layers::of(&graph);
    let consumers = graph.consumers();
    let outputs: Vec<ValueId> = graph.outputs().collect();
    let mut found = Vec::new();
    for layer in layers.iter().filter(|l| l.bias.is_some()) {
        let Some(&[(relu, _)]) = consumers.get(&layer.output).map(Vec::as_slice) else {
            continue;
        };
        let relu = graph.node(relu);
        let y = relu.outputs()[0];
        let is_relu = *relu.op() == Op::from(Unary { op: UnaryOp::Relu });
        if !is_relu || outputs.contains(&layer.output) || outputs.contains(&y) {
            continue;
        }
        let readers = consumers.get(&y).map_or(&[][..], Vec::as_slice);
        let next: Option<Vec<_>> = readers
            .iter()
            .map(|&(node, port)| {
                let next = layers.iter().find(|l| l.node == node)?;
                (port == 0 && next.bias.is_some() && !next.pads(&graph)).then(|| next.clone())
            })
            .collect();
        if let Some(next) = next.filter(|n| !n.is_empty()) {
            found.push((layer.clone(), next));
        }
    }
    let watched: Vec<ValueId> = found.iter().map(|(layer, _)| layer.output).collect();
    if watched.is_empty() {
        return Ok((graph, 0));
    }
    let moments = channel_moments(&graph, &watched, cx)?;
    let mut count = 0;
    for ((layer, next), moments) in found.iter().zip(moments) {
        let shift: Vec<f64> = moments
            .iter()
            .map(|m| (m.mean - 3.0 * m.deviation).max(0.0))
            .collect();
        count += shift.iter().filter(|&&c| c > 0.0).count();
        if shift.iter().all(|&c| c == 0.0) {
            continue;
        }
        let (bias, content) = bias_content(&graph, layer)?;
        let less: Vec<f64> = content.iter().zip(&shift).map(|(b, c)| b - c).collect();
        set(&mut graph, bias, &less)?;
        for layer in next {
            let more = layer.of_constant_input(&graph, &shift)?;
            let (bias, content) = bias_content(&graph, layer)?;
            let sum: Vec<f64> = content.iter().zip(&more).map(|(b, c)| b + c).collect();
            set(&mut graph, bias, &sum)?;
        }
    }
    Ok((graph, count))
}

fn set(graph: &mut Graph, id: ValueId, content: &[f64]) -> Result<()> {
    let ty = graph.type_of(id).clone();
    let tensor = Tensor::from_f64s(ty.dtype, ty.shape.fixed()?, content)?;
    graph.set_content(id, tensor)
}

impl Pass for Equalize {
    fn name(&self) -> &str {
        "equalize"
    }

    fn config(&self) -> String {
        format!(
            "relu6_as_relu = {}\nabsorb_high_biases = {}\n",
            self.relu6_as_relu, self.absorb
        )
    }

    fn needs(&self) -> Needs {
        match self.absorb {
            true => Needs::CALIBRATION,
            false => Needs::NOTHING,
        }
    }

    fn preserves(&self) -> Preserves {
        Preserves::AllBut(vec![FactKind::Grid, FactKind::Codebook])
    }

    fn apply(&self, graph: Graph, cx: &mut Context<'_>) -> Result<(Graph, Report)> {
        let (mut graph, _) = FoldBatchNorm::fold(graph)?;
        let mut report = Report::default();
        if self.relu6_as_relu {
            let (without, count) = without_upper_bounds(graph)?;
            graph = without;
            report = report.figure("upper bounds removed", count as f64);
        }
        let scales = Scales::of(&graph);
        let (factors, channels, sweeps) = equalizing(&graph, &scales);
        if channels == 0 {
            return Err(Error::new(
                ErrorKind::NoEffect,
                "no channel lies between two layers whose weights could share a factor",
            ));
        }
        graph = scales.apply(graph, &factors)?;
        graph.verify()?;
        report.changed = channels;
        report = report.figure("sweeps", sweeps as f64);
        if self.absorb {
            let layers = Layers::of(&graph).with_biases(graph)?;
            let (absorbed, count) = absorb(layers, cx)?;
            graph = absorbed;
            report = report.figure("high biases absorbed", count as f64);
        }
        Ok((graph, report))
    }
}
