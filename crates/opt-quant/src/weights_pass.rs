//! Weight-only quantization.

use std::collections::{BTreeMap, BTreeSet};

use opt_core::ops::{Dequantize, Op};
use opt_core::pass::Needs;
use opt_core::{
    Context, DType, Error, ErrorKind, Graph, GraphPatch, Pass, Report, Result, ResultExt, Tensor,
    ValueId,
};

use crate::emit::sqnr;
use crate::layout::Axes;
use crate::methods::{Method, Solved};
use crate::nodes::Constants;
use crate::quantized::{QuantizedTensor, quantize_along};
use crate::rules::{Rules, Select};
use crate::scheme::{Format, Granularity, Scheme};
use crate::stored::{Kinds, Stored, find};
use crate::task::Task;

/// Stores the weights of matrix products, convolutions and embeddings in the number format of a
/// [`Scheme`]; they are dequantized where they are read, and computing stays in float.
///
/// Channels are output channels and rows of embeddings. Groups lie along the axis that the layer
/// sums over: the input features of a matrix product; the input channels and taps of a convolution,
/// one after another; the entries of a row of an embedding. Rows of 8-bit and 16-bit embeddings are
/// looked up before they are dequantized.
///
/// ```
/// use opt_core::nn::{Linear, ModelBuilder};
/// use opt_core::{Context, Pass};
/// use opt_quant::{QuantizeWeights, Rules, Scheme, Select};
///
/// let mut m = ModelBuilder::new("model", 0);
/// let x = m.batch("x", [64])?;
/// let h = m.layer("fc1", Linear::new(64), x)?;
/// let h = m.relu(h)?;
/// let y = m.layer("fc2", Linear::new(3), h)?;
/// m.output("y", y)?;
///
/// let rules = Rules::new().apply(Select::name("fc2.weight"), Scheme::int8());
/// let pass = QuantizeWeights::new(Scheme::mxfp4()).rules(rules);
/// let (graph, _) = pass.apply(m.finish()?, &mut Context::new())?;
/// assert_eq!(graph.type_of(graph.find("fc1.weight.q")?).to_string(), "f4e2m1[64,64]");
/// assert_eq!(graph.type_of(graph.find("fc1.weight.s")?).to_string(), "f8e8m0[64,2]");
/// assert_eq!(graph.type_of(graph.find("fc2.weight.q")?).to_string(), "i8[3,64]");
/// # Ok::<(), opt_quant::Error>(())
/// ```
///
/// Weights are rounded to nearest unless a [method](Method) is chosen:
///
/// ```
/// use opt_core::nn::{Linear, ModelBuilder};
/// use opt_core::{Context, Pass, Tensor};
/// use opt_data::TensorDataset;
/// use opt_ndarray::NdarrayBackend;
/// use opt_quant::{Gptq, QuantizeWeights};
///
/// let mut m = ModelBuilder::new("model", 0);
/// let x = m.batch("x", [64])?;
/// let y = m.layer("fc", Linear::new(10), x)?;
/// m.output("y", y)?;
///
/// let samples: Vec<f32> = (0..256 * 64).map(|i| (i as f32 * 0.7).sin()).collect();
/// let samples = TensorDataset::new(vec![Tensor::new([256, 64], samples)?])?;
/// let backend = NdarrayBackend::new();
/// let mut cx = Context::new().with_backend(&backend).with_calibration(&samples);
/// let pass = QuantizeWeights::int4(32).asymmetric().method(Gptq::new().act_order());
/// let (graph, report) = pass.apply(m.finish()?, &mut cx)?;
/// let error = |what: &str| report.figures[&format!("output error{what} of fc.weight")];
/// assert!(error("") < 0.5 * error(" to nearest"));
/// # Ok::<(), opt_quant::Error>(())
/// ```
#[derive(Debug, Clone, PartialEq)]
pub struct QuantizeWeights {
    scheme: Scheme,
    rules: Rules,
    method: Method,
    half_scales: bool,
}

impl QuantizeWeights {
    /// All weights in one scheme.
    pub fn new(scheme: Scheme) -> QuantizeWeights {
        QuantizeWeights {
            scheme,
            rules: Rules::new(),
            method: Method::default(),
            half_scales: false,
        }
    }

    /// [`Scheme::int8`]: symmetric, a scale for each output channel.
    pub fn int8() -> QuantizeWeights {
        QuantizeWeights::new(Scheme::int8())
    }

    /// [`Scheme::int4`]: symmetric, a scale for each `group` entries.
    pub fn int4(group: usize) -> QuantizeWeights {
        QuantizeWeights::new(Scheme::int4().group(group))
    }

    /// With a zero point for each scale.
    #[must_use]
    pub fn asymmetric(mut self) -> QuantizeWeights {
        self.scheme = self.scheme.asymmetric();
        self
    }

    /// How codes and scales are found.
    #[must_use]
    pub fn method(mut self, method: impl Into<Method>) -> QuantizeWeights {
        self.method = method.into();
        self
    }

    /// Stores `f32` scales of channels, rows and groups as `f16`, two bytes less each; weights are
    /// rounded with the scales as they are stored, and computing stays in `f32`.
    #[must_use]
    pub fn half_scales(mut self) -> QuantizeWeights {
        self.half_scales = true;
        self
    }

    /// Adds rules after those that there are, for layers with another scheme.
    #[must_use]
    pub fn rules(mut self, rules: Rules) -> QuantizeWeights {
        self.rules = self.rules.then(rules);
        self
    }

    /// Leaves out layers whose name, or whose weight's, contains the pattern; one that matches
    /// nothing is an error.
    #[must_use]
    pub fn exclude(mut self, pattern: impl Into<String>) -> QuantizeWeights {
        self.rules = self.rules.keep(Select::contains(pattern));
        self
    }
}

/// A weight in its scheme. Groups of a convolution lie along its input channels and taps, so that
/// its codes have two axes.
pub(crate) fn quantized(layer: &Stored, content: &Tensor) -> Result<QuantizedTensor> {
    let grouped = matches!(layer.scheme.granularity(), Granularity::Group(_));
    if !grouped || content.rank() <= 2 {
        return quantize_along(content, &layer.scheme, layer.axes);
    }
    let rows = content.shape()[0];
    let rest = content.shape()[1..].iter().product::<usize>();
    let axes = Axes { channel: 0, sum: 1 };
    quantize_along(&content.reshape([rows, rest])?, &layer.scheme, axes)
}

/// Whether rows of a table can be looked up before they are dequantized.
fn rows_first(q: &QuantizedTensor) -> bool {
    matches!(q.scheme().format(), Format::Int(_) | Format::Half(_))
        && !q.codes().dtype().is_packed()
}

/// Looks up rows of a quantized table, and dequantizes them.
fn looked_up(
    patch: &mut GraphPatch,
    constants: &Constants,
    q: &QuantizedTensor,
    indices: ValueId,
) -> Result<ValueId> {
    let codes = patch.gather(constants.codes, indices, 0)?;
    let Some(scales) = constants.scales else {
        return patch.cast(codes, DType::F32);
    };
    let last = patch.type_of(codes).rank() - 1;
    // A scale a row is one block as long as the row.
    let (axis, block, lone) = match (q.axis(), q.block()) {
        (None, _) => (None, None, false),
        (Some(_), None) => (Some(last), Some(q.codes().shape()[1]), true),
        (Some(_), block) => (Some(last), block, false),
    };
    let mut inputs = vec![codes];
    for parameter in [Some(scales), constants.zero_points].into_iter().flatten() {
        let mut rows = parameter;
        if axis.is_some() {
            rows = patch.gather(parameter, indices, 0)?;
        }
        if patch.type_of(rows).dtype == DType::F16 {
            rows = patch.cast(rows, DType::F32)?;
        }
        if lone {
            rows = patch.unsqueeze(rows, &[last])?;
        }
        inputs.push(rows);
    }
    patch.op(Dequantize { axis, block }, &inputs)
}

impl Pass for QuantizeWeights {
    fn name(&self) -> &str {
        "quantize_weights"
    }

    fn config(&self) -> String {
        format!(
            "scheme = \"{}\"\nrules = {}\nmethod = {}\nhalf_scales = {}\n",
            self.scheme,
            self.rules,
            self.method.config(),
            self.half_scales
        )
    }

    fn needs(&self) -> Needs {
        self.method.needs()
    }

    fn apply(&self, graph: Graph, cx: &mut Context<'_>) -> Result<(Graph, Report)> {
        let (layers, left) = find(&graph, &self.rules, &self.scheme, Kinds::All)?;
        // All readers of a weight read the same codes: those of the first.
        let mut weights: BTreeMap<ValueId, Vec<Stored>> = BTreeMap::new();
        let (mut tasks, mut solved) = (Vec::new(), BTreeMap::new());
        for layer in &layers {
            weights.entry(layer.weight).or_default().push(layer.clone());
        }
        if !self.method.is_plain() || self.half_scales {
            let mut seen = BTreeSet::new();
            for layer in layers.iter().filter(|l| seen.insert(l.weight)) {
                tasks.extend(Task::of(&graph, &weights[&layer.weight], self.half_scales)?);
                if self.half_scales
                    && let Some(q) = Task::embedding(&graph, layer)?
                {
                    solved.insert(layer.weight, q);
                }
            }
            if tasks.is_empty() && (!self.method.is_plain() || solved.is_empty()) {
                return Err(Error::new(
                    ErrorKind::NoEffect,
                    "the method has no matrix product or convolution with scales to find",
                ));
            }
        }
        let mut report = Report::default();
        let Solved { graph, codes } = self.method.solve(graph, &mut tasks, cx, &mut report)?;
        for (task, codes) in tasks.iter().zip(&codes) {
            solved.insert(task.value, task.assemble(codes).at(|| task.name.clone())?);
        }
        let original = graph.clone();
        let consumers = original.consumers();
        let mut patch = GraphPatch::new(graph);
        for (weight, layers) in weights {
            let first = &layers[0];
            for other in &layers[1..] {
                if (other.axes, other.scheme) != (first.axes, first.scheme) {
                    report = report.note(format!(
                        "{}: shares the weight of {}, which decides about its scheme and axes",
                        original.node(other.node).name(),
                        original.node(first.node).name()
                    ));
                }
            }
            let value = original.value(weight);
            let name = value.name().to_string();
            let content = value.tensor().expect("found as stored");
            let q = match solved.remove(&weight) {
                Some(found) => found,
                None => quantized(first, content).at(|| name.clone())?,
            };
            let back = q.dequantize()?.reshape(content.shape())?;
            report = report.figure(format!("SQNR of {name}"), sqnr(content, &back));
            report.changed += 1;
            let constants = Constants::add(&mut patch, &name, &q);
            let mut readers = consumers.get(&weight).map_or(0, Vec::len);
            readers += original.outputs().filter(|&o| o == weight).count();
            for layer in layers.iter().filter(|_| rows_first(&q)) {
                let node = original.node(layer.node);
                if let Op::Gather(_) = node.op() {
                    let rows = looked_up(&mut patch, &constants, &q, node.inputs()[1])?;
                    patch.replace(node.outputs()[0], rows)?;
                    readers -= 1;
                }
            }
            if readers > 0 {
                let whole = constants.dequantize(&mut patch, &q)?;
                let whole = patch.reshape(whole, content.shape())?;
                patch.replace(weight, whole)?;
            }
        }
        for note in left {
            report = report.note(note);
        }
        Ok((patch.finish()?, report))
    }
}
