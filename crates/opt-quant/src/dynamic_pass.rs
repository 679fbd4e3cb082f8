//! Dynamic quantization: activations are quantized when the model runs.

use std::collections::BTreeMap;

use opt_core::ops::{Dequantize, Op, Quantize, ReduceOp};
use opt_core::pass::Needs;
use opt_core::{
    Context, DType, Error, Graph, GraphPatch, Pass, Report, Result, ResultExt, ValueId,
};

use crate::params::QParams;
use crate::rules::{Rules, Select};
use crate::scheme::Scheme;
use crate::stored::{Kinds, find};

/// Quantizes matrix products with stored weights: weights to 8-bit integers now, activations with
/// scales found in each run. No calibration is needed.
///
/// Activations are quantized to uint8 with one scale and zero point, by
/// [`DynamicQuantize`](opt_core::ops::DynamicQuantize); exported to ONNX the products become
/// `MatMulInteger`, as ONNX Runtime's `quantize_dynamic` writes it. Or, [per
/// token](QuantizeDynamic::per_token), each row to symmetric int8 with a scale of its own.
///
/// ```
/// use opt_core::nn::{Linear, ModelBuilder};
/// use opt_core::{Context, Pass};
/// use opt_quant::QuantizeDynamic;
///
/// let mut m = ModelBuilder::new("model", 0);
/// let x = m.batch("x", [8])?;
/// let y = m.layer("fc", Linear::new(3), x)?;
/// m.output("y", y)?;
/// let (graph, report) = QuantizeDynamic::new().per_channel().apply(m.finish()?, &mut Context::new())?;
/// assert_eq!(report.changed, 1);
/// assert!(graph.nodes().any(|(_, n)| n.op().name() == "DynamicQuantize"));
/// # Ok::<(), opt_quant::Error>(())
/// ```
#[derive(Debug, Clone, PartialEq)]
pub struct QuantizeDynamic {
    weights: Scheme,
    per_token: bool,
    rules: Rules,
}

impl Default for QuantizeDynamic {
    fn default() -> QuantizeDynamic {
        QuantizeDynamic::new()
    }
}

impl QuantizeDynamic {
    /// Symmetric int8 weights with one scale each.
    pub fn new() -> QuantizeDynamic {
        QuantizeDynamic {
            weights: Scheme::int8().per_tensor(),
            per_token: false,
            rules: Rules::new(),
        }
    }

    /// Weights in another scheme: integers of 8 bits with a scale a tensor or a channel, such as
    /// `Scheme::uint8()` with zero points.
    #[must_use]
    pub fn weights(mut self, scheme: Scheme) -> QuantizeDynamic {
        self.weights = scheme;
        self
    }

    /// One scale for each output channel of a weight.
    #[must_use]
    pub fn per_channel(mut self) -> QuantizeDynamic {
        self.weights = self.weights.per_channel();
        self
    }

    /// A scale for each row of activations, that is for each token of a sequence: symmetric int8,
    /// by the row's largest magnitude. One outlying token then costs the others no precision.
    ///
    /// ```
    /// use opt_core::nn::{Linear, ModelBuilder};
    /// use opt_core::{Backend, Context, Pass, Tensor};
    /// use opt_ndarray::NdarrayBackend;
    /// use opt_quant::QuantizeDynamic;
    ///
    /// let mut m = ModelBuilder::new("model", 0);
    /// let x = m.batch("x", [4])?;
    /// let y = m.layer("fc", Linear::new(3), x)?;
    /// m.output("y", y)?;
    /// let graph = m.finish()?;
    /// let pass = QuantizeDynamic::new().per_token();
    /// let (int8, _) = pass.apply(graph.clone(), &mut Context::new())?;
    ///
    /// let backend = NdarrayBackend::new();
    /// let rows = [0.1f32, 0.2, -0.1, 0.0, 100.0, -50.0, 0.0, 25.0];
    /// let x = [Tensor::new([2, 4], rows)?];
    /// let (exact, got) = (backend.run_once(&graph, &x)?, backend.run_once(&int8, &x)?);
    /// let error = (exact[0].to_f64s()[0] - got[0].to_f64s()[0]).abs();
    /// assert!(error < 0.005, "the second row's size does not matter to the first");
    /// # Ok::<(), opt_quant::Error>(())
    /// ```
    #[must_use]
    pub fn per_token(mut self) -> QuantizeDynamic {
        self.per_token = true;
        self
    }

    /// Adds rules after those that there are, for layers with other weights.
    #[must_use]
    pub fn rules(mut self, rules: Rules) -> QuantizeDynamic {
        self.rules = self.rules.then(rules);
        self
    }

    /// Leaves out layers whose name, or whose weight's, contains the pattern; one that matches
    /// nothing is an error.
    #[must_use]
    pub fn exclude(mut self, pattern: impl Into<String>) -> QuantizeDynamic {
        self.rules = self.rules.keep(Select::contains(pattern));
        self
    }
}

/// Fails unless a scheme is one of integer products.
fn check(scheme: &Scheme) -> Result<()> {
    scheme.grid()?;
    if scheme.dtype().bits() != 8 || scheme.group_size().is_some() {
        return Err(Error::invalid(format!(
            "the scheme `{scheme}`: products of integers take weights of 8 bits with a scale a \
             tensor or a channel"
        )));
    }
    Ok(())
}

/// The rows of a value rounded to 255 levels by each one's largest magnitude.
fn by_token(patch: &mut GraphPatch, x: ValueId) -> Result<ValueId> {
    let last = patch.type_of(x).rank() - 1;
    let width = patch.type_of(x).shape[last].fixed()?;
    let size = patch.abs(x)?;
    let size = patch.reduce(ReduceOp::Max, size, &[last], true)?;
    let levels = patch.scalar_like(size, 127.0)?;
    let scale = patch.div(size, levels)?;
    // A row of zeros divides by this.
    let least = patch.scalar_like(scale, f64::from(f32::MIN_POSITIVE))?;
    let scale = patch.maximum(scale, least)?;
    let (axis, block) = (Some(last), Some(width));
    let dtype = DType::I8;
    let q = patch.op(Quantize { dtype, axis, block }, &[x, scale])?;
    patch.op(Dequantize { axis, block }, &[q, scale])
}

impl Pass for QuantizeDynamic {
    fn name(&self) -> &str {
        "quantize_dynamic"
    }

    fn config(&self) -> String {
        format!(
            "weights = \"{}\"\nper_token = {}\nrules = {}\n",
            self.weights, self.per_token, self.rules
        )
    }

    fn needs(&self) -> Needs {
        Needs::NOTHING
    }

    fn apply(&self, graph: Graph, _: &mut Context<'_>) -> Result<(Graph, Report)> {
        let (layers, left) = find(&graph, &self.rules, &self.weights, Kinds::Products)?;
        let original = graph.clone();
        let mut patch = GraphPatch::new(graph);
        let mut report = Report::new(layers.len());
        let mut inputs: BTreeMap<ValueId, ValueId> = BTreeMap::new();
        let mut weights: BTreeMap<(ValueId, usize), (QParams, [ValueId; 3])> = BTreeMap::new();
        for layer in layers {
            let node = original.node(layer.node);
            let Op::MatMul(op) = node.op() else { continue };
            let x = node.inputs()[0];
            let value = original.value(layer.weight);
            let name = value.name().to_string();
            check(&layer.scheme).at(|| name.clone())?;
            let place = || node.name().to_string();
            let a = match inputs.get(&x).copied() {
                // A tensor that is quantized whole is dequantized for each product, by which
                // exporters see that it is one of integers.
                Some(found) if self.per_token => found,
                _ if self.per_token => {
                    let new = by_token(&mut patch, x).at(place)?;
                    inputs.insert(x, new);
                    new
                }
                found => {
                    let q = match found {
                        Some(q) => q,
                        None => patch.dynamic_quantize(x).at(place)?[0],
                    };
                    inputs.insert(x, q);
                    let (_, maker) = patch.graph().producer(q).expect("a node's");
                    let [q, scale, zero] = [0, 1, 2].map(|i| maker.outputs()[i]);
                    patch.dequantize(q, scale, zero, None)?
                }
            };
            // A weight that several layers read is stored once.
            let (params, stored) = match weights.get(&(layer.weight, layer.axes.channel)) {
                Some(found) => found.clone(),
                None => {
                    let content = value.tensor().expect("found as stored");
                    let params = layer
                        .scheme
                        .of_tensor(content, layer.axes)
                        .at(|| name.clone())?;
                    let q = params.quantize(content)?;
                    let new = [
                        patch.named_constant(&format!("{name}.q"), q),
                        patch.named_constant(&format!("{name}.s"), params.scale.clone()),
                        patch.named_constant(&format!("{name}.z"), params.zero_point.clone()),
                    ];
                    let new = (params, new);
                    weights.insert((layer.weight, layer.axes.channel), new.clone());
                    new
                }
            };
            let b = patch.dequantize(stored[0], stored[1], stored[2], params.axis)?;
            let y = patch.named_node(node.name(), *op, &[a, b])?[0];
            patch.replace(node.outputs()[0], y)?;
        }
        for note in left {
            report = report.note(note);
        }
        Ok((patch.finish()?, report))
    }
}
