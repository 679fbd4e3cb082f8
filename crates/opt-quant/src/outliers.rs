//! Input channels with outliers, in layers of their own.

use std::collections::BTreeMap;

use opt_core::ops::{MatMul, Op, ReduceOp, UnaryOp};
use opt_core::pass::Needs;
use opt_core::{
    Context, DType, Error, ErrorKind, FactKind, Graph, GraphBuilder, GraphPatch, NodeId, Pass,
    Preserves, Report, Result, ResultExt, Tensor, ValueId, ValueKind,
};

use crate::batches::Batches;
use crate::calibrate::Calibration;
use crate::rules::{Rules, Select};
use crate::scheme::Scheme;
use crate::stored::{Kinds, find};

/// Splits matrix products by input channels, so that those with outliers can stay in float while the
/// others are quantized: `x W = x_o W_o + x_r W_r`, as LLM.int8() has it (Dettmers et al. 2022).
///
/// The result is a float graph that computes the same: two `Gather`s pick the channels, for all
/// products that read one input together, and an `Add` joins the two products. The weights of a
/// product `w` are `w.outliers` and `w.rest`. [`SplitOutliers::keep`] has the rule for the pass that
/// quantizes what is left:
///
/// ```
/// use opt_core::nn::{Linear, ModelBuilder};
/// use opt_core::{Context, Pass};
/// use opt_data::digits;
/// use opt_ndarray::NdarrayBackend;
/// use opt_quant::{QuantizeDynamic, SplitOutliers};
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
/// let mut cx = Context::new().with_backend(&backend).with_calibration(&samples);
/// let (split, _) = SplitOutliers::largest(2).apply(m.finish()?, &mut cx)?;
/// let pass = QuantizeDynamic::new().per_channel().rules(SplitOutliers::keep());
/// let (int8, report) = pass.apply(split, &mut cx)?;
/// assert_eq!(report.changed, 2);
/// assert!(int8.find("fc1.weight.outliers").is_ok());
/// # Ok(())
/// # }
/// ```
///
/// Channels are chosen once, by calibration examples; the paper looks at each batch anew. Channels
/// chosen by [weights](SplitOutliers::largest_weights) need no examples and help formats of few bits,
/// whose groups a single large weight spoils.
#[derive(Debug, Clone, PartialEq)]
pub struct SplitOutliers {
    choice: Choice,
    calibration: Calibration,
    rules: Rules,
}

/// Which channels are outliers.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Choice {
    /// Those that reach a magnitude on the examples.
    Above(f64),
    /// So many with the largest magnitudes on the examples.
    Largest(usize),
    /// So many with the largest weights.
    LargestWeights(usize),
}

impl SplitOutliers {
    fn new(choice: Choice) -> SplitOutliers {
        SplitOutliers {
            choice,
            calibration: Calibration::default(),
            rules: Rules::new(),
        }
    }

    /// The channels in which an activation of the calibration examples has at least this magnitude; 6
    /// in the paper.
    pub fn above(magnitude: f64) -> SplitOutliers {
        SplitOutliers::new(Choice::Above(magnitude))
    }

    /// So many channels of each input, those with the largest activations on the calibration examples.
    pub fn largest(count: usize) -> SplitOutliers {
        SplitOutliers::new(Choice::Largest(count))
    }

    /// So many channels of each input, those with the largest weights in what reads them. No examples
    /// are needed.
    pub fn largest_weights(count: usize) -> SplitOutliers {
        SplitOutliers::new(Choice::LargestWeights(count))
    }

    /// How many examples are looked at; the observer is not used.
    #[must_use]
    pub fn calibration(mut self, calibration: Calibration) -> SplitOutliers {
        self.calibration = calibration;
        self
    }

    /// Leaves out layers whose name, or whose weight's, contains the pattern; one that matches
    /// nothing is an error.
    #[must_use]
    pub fn exclude(mut self, pattern: impl Into<String>) -> SplitOutliers {
        self.rules = self.rules.keep(Select::contains(pattern));
        self
    }

    /// The rule that leaves the outliers in float, for the pass that quantizes.
    pub fn keep() -> Rules {
        let rule = Select::regex(r"\.outliers\d*$").expect("it is a regular expression");
        Rules::new().keep(rule)
    }

    /// The largest magnitudes of the channels of some values over the examples.
    fn magnitudes(
        &self,
        graph: &Graph,
        values: &[ValueId],
        cx: &Context<'_>,
    ) -> Result<Vec<Vec<f64>>> {
        let data = cx.calibration().or_else(|e| cx.training().map_err(|_| e))?;
        let batches = Batches::new(data, cx.backend()?, &self.calibration)?;
        let mut b = GraphBuilder::extend(graph.clone());
        let mut wanted = Vec::new();
        for (i, &v) in values.iter().enumerate() {
            let size = b.unary(UnaryOp::Abs, v)?;
            let axes: Vec<usize> = (0..b.type_of(v).rank() - 1).collect();
            let most = match axes.is_empty() {
                true => size,
                false => b.reduce(ReduceOp::Max, size, &axes, false)?,
            };
            wanted.push((format!("most {i}"), most));
        }
        let watched = b.into_graph().extract(&wanted, false)?;
        let mut out: Vec<Vec<f64>> = vec![Vec::new(); values.len()];
        batches.run(&watched, |_, tensors| {
            for (all, tensor) in out.iter_mut().zip(&tensors) {
                all.resize(tensor.len(), 0.0);
                for (a, v) in all.iter_mut().zip(tensor.to_f64s()) {
                    // NaN stays, and is told below.
                    *a = if v > *a || v.is_nan() { v } else { *a };
                }
            }
            Ok(())
        })?;
        for (all, &v) in out.iter().zip(values) {
            if all.iter().any(|m| !m.is_finite()) {
                let what = "an activation over the calibration examples is NaN or infinite";
                let name = graph.value(v).name().to_string();
                return Err(Error::new(ErrorKind::Data, what).at(name));
            }
        }
        Ok(out)
    }
}

/// A product to split.
#[derive(Debug, Clone, Copy)]
struct Layer {
    node: NodeId,
    weight: ValueId,
    /// The weight's axis of inputs.
    sum: usize,
}

/// The largest magnitude of each input channel of some weights.
fn weight_magnitudes(graph: &Graph, layers: &[Layer]) -> Result<Vec<f64>> {
    let mut out = Vec::new();
    for layer in layers {
        let content = graph.value(layer.weight).tensor().expect("stored");
        let (shape, data) = (content.shape(), content.to_f64s());
        out.resize(shape[layer.sum], 0.0f64);
        for (i, v) in data.into_iter().enumerate() {
            if !v.is_finite() {
                let name = graph.value(layer.weight).name().to_string();
                return Err(Error::new(ErrorKind::Data, "a weight is NaN or infinite").at(name));
            }
            let channel = if layer.sum == 0 {
                i / shape[1]
            } else {
                i % shape[1]
            };
            out[channel] = out[channel].max(v.abs());
        }
    }
    Ok(out)
}

impl Choice {
    /// The channels that are outliers, ascending.
    fn of(self, magnitudes: &[f64]) -> Vec<usize> {
        match self {
            Choice::Above(least) => (0..magnitudes.len())
                .filter(|&i| magnitudes[i] >= least)
                .collect(),
            Choice::Largest(count) | Choice::LargestWeights(count) => {
                let mut order: Vec<usize> = (0..magnitudes.len()).collect();
                // Of equal ones the first.
                order.sort_by(|&a, &b| magnitudes[b].total_cmp(&magnitudes[a]));
                order.truncate(count);
                order.sort_unstable();
                order
            }
        }
    }
}

impl Pass for SplitOutliers {
    fn name(&self) -> &str {
        "split_outliers"
    }

    fn config(&self) -> String {
        let choice = match self.choice {
            Choice::Above(magnitude) => format!("above = {magnitude:?}"),
            Choice::Largest(count) => format!("largest = {count}"),
            Choice::LargestWeights(count) => format!("largest_weights = {count}"),
        };
        format!(
            "{choice}\nbatch_size = {}\nmax_examples = {}\nrules = {}\n",
            self.calibration.batch_size, self.calibration.max_examples, self.rules
        )
    }

    fn needs(&self) -> Needs {
        match self.choice {
            Choice::LargestWeights(_) => Needs::NOTHING,
            _ => Needs::CALIBRATION,
        }
    }

    fn preserves(&self) -> Preserves {
        Preserves::AllBut(vec![
            FactKind::Mask,
            FactKind::NmPattern,
            FactKind::Grid,
            FactKind::Codebook,
        ])
    }

    fn apply(&self, graph: Graph, cx: &mut Context<'_>) -> Result<(Graph, Report)> {
        if let Choice::Above(magnitude) = self.choice
            && !(magnitude > 0.0 && magnitude.is_finite())
        {
            return Err(Error::invalid(format!(
                "outliers above {magnitude}, which is no positive number"
            )));
        }
        let (stored, _) = find(&graph, &self.rules, &Scheme::int8(), Kinds::Products)?;
        let consumers = graph.consumers();
        let mut inputs: BTreeMap<ValueId, Vec<Layer>> = BTreeMap::new();
        let mut report = Report::default();
        for layer in stored {
            let readers = consumers.get(&layer.weight).map_or(&[][..], Vec::as_slice);
            let products =
                |(node, _): &(NodeId, usize)| matches!(graph.node(*node).op(), Op::MatMul(_));
            if !readers.iter().all(products) {
                let name = graph.value(layer.weight).name();
                let note = format!("{name}: something else than products reads it, too");
                report.notes.push(note);
                continue;
            }
            let input = graph.node(layer.node).inputs()[0];
            inputs.entry(input).or_default().push(Layer {
                node: layer.node,
                weight: layer.weight,
                sum: layer.axes.sum,
            });
        }
        let values: Vec<ValueId> = inputs.keys().copied().collect();
        let magnitudes = match self.choice {
            Choice::LargestWeights(_) => inputs
                .values()
                .map(|layers| weight_magnitudes(&graph, layers))
                .collect::<Result<_>>()?,
            _ => self.magnitudes(&graph, &values, cx)?,
        };
        let mut patch = GraphPatch::new(graph.clone());
        let (mut kept, mut all) = (0, 0);
        for ((&input, layers), magnitudes) in inputs.iter().zip(magnitudes) {
            let outliers = self.choice.of(&magnitudes);
            all += magnitudes.len();
            if outliers.is_empty() || outliers.len() >= magnitudes.len() {
                let name = graph.value(input).name();
                let (found, width) = (outliers.len(), magnitudes.len());
                let note = format!("{name}: {found} of {width} channels are outliers, not split");
                report.notes.push(note);
                continue;
            }
            kept += outliers.len();
            split(&graph, &mut patch, input, layers, &outliers)
                .at(|| graph.value(input).name().to_string())?;
            report.changed += layers.len();
        }
        if report.changed == 0 {
            return Err(Error::new(
                ErrorKind::NoEffect,
                format!(
                    "no product has some channels with outliers and some without: {:?}",
                    report.notes
                ),
            ));
        }
        let share = kept as f64 / all as f64;
        Ok((
            patch.finish()?,
            report.figure("share of outlier channels", share),
        ))
    }
}

/// Splits the products that read an input.
fn split(
    graph: &Graph,
    patch: &mut GraphPatch,
    input: ValueId,
    layers: &[Layer],
    outliers: &[usize],
) -> Result<()> {
    let last = graph.type_of(input).rank() - 1;
    let width = graph.type_of(layers[0].weight).shape.dims()[layers[0].sum].fixed()?;
    let rest: Vec<usize> = (0..width)
        .filter(|i| outliers.binary_search(i).is_err())
        .collect();
    let name = graph.value(input).name();
    let mut parts = Vec::new();
    for (ending, channels) in [("rest", rest.as_slice()), ("outliers", outliers)] {
        let indices: Vec<i64> = channels.iter().map(|&i| i as i64).collect();
        let indices = Tensor::new([indices.len()], indices)?;
        let indices = patch.named_constant(&format!("{name}.{ending}"), indices);
        let picked = patch.gather(input, indices, last)?;
        parts.push((ending, picked, channels));
    }
    // A weight that several products read is split once.
    let mut weights: BTreeMap<(ValueId, &str), ValueId> = BTreeMap::new();
    for layer in layers {
        let mut products = Vec::new();
        for &(ending, picked, channels) in &parts {
            let weight = match weights.get(&(layer.weight, ending)) {
                Some(&weight) => weight,
                None => {
                    let value = graph.value(layer.weight);
                    let content = pick(value.tensor().expect("stored"), layer.sum, channels)?;
                    let base = format!("{}.{ending}", value.name());
                    let variable = matches!(value.kind(), ValueKind::Variable(_));
                    let taken = |name: &str| patch.graph().find(name).is_ok();
                    // One weight may meet other outliers behind another input.
                    let name = (1..)
                        .map(|i| {
                            if i == 1 {
                                base.clone()
                            } else {
                                format!("{base}{i}")
                            }
                        })
                        .find(|name| !taken(name))
                        .expect("numbers do not end");
                    let weight = match variable {
                        true => patch.variable(&name, content)?,
                        false => patch.named_constant(&name, content),
                    };
                    weights.insert((layer.weight, ending), weight);
                    weight
                }
            };
            let op = MatMul {
                trans_a: false,
                trans_b: layer.sum == 1,
            };
            products.push(patch.op(op, &[picked, weight])?);
        }
        let sum = patch.add(products[0], products[1])?;
        patch.replace(graph.node(layer.node).outputs()[0], sum)?;
    }
    Ok(())
}

/// Some entries of an axis of a matrix.
fn pick(content: &Tensor, axis: usize, entries: &[usize]) -> Result<Tensor> {
    let (rows, columns) = (content.shape()[0], content.shape()[1]);
    let data = content.to_f64s();
    let (shape, picked): ([usize; 2], Vec<f64>) = match axis {
        0 => (
            [entries.len(), columns],
            entries
                .iter()
                .flat_map(|&i| data[i * columns..(i + 1) * columns].iter().copied())
                .collect(),
        ),
        _ => (
            [rows, entries.len()],
            (0..rows)
                .flat_map(|r| entries.iter().map(move |&i| r * columns + i))
                .map(|at| data[at])
                .collect(),
        ),
    };
    Tensor::from_f64s(DType::F32, shape, &picked)
}
