//! Dynamic quantization: activations are quantized when the model runs.

use std::collections::BTreeMap;

use opt_core::ops::{Dequantize, Op, Quantize, ReduceOp};
use opt_core::pass::Needs;
use opt_core::{
    Context, DType, Error, ErrorKind, Graph, GraphPatch, Pass, Report, Result, ResultExt, ValueId,
};

use crate::params::QParams;
use crate::rules::{Rules, Select};
use crate::scheme::Scheme;
use crate::stored::{IN_FLOAT, Kinds, find};
use crate::weights_pass::QuantizeWeights;

/// Quantizes matrix products with stored weights: weights to 8-bit integers now, activations with
/// scales found in each run. No calibration is needed.
///
/// Activations are quantized to uint8 with one scale and zero point, by
/// [`DynamicQuantize`](opt_core::ops::DynamicQuantize); exported to ONNX the products become
/// `MatMulInteger`, as ONNX Runtime's `quantize_dynamic` writes it. Or, [per
/// token](QuantizeDynamic::per_token), each row has a scale and zero point of its own.
///
/// [`QuantizeDynamic::recommended`] is what to start with for transformers.
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
    others: Option<Scheme>,
    half_scales: bool,
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
            others: None,
            half_scales: false,
            rules: Rules::new(),
        }
    }

    /// What loses least at 8 bits without calibration: weights [per
    /// channel](QuantizeDynamic::per_channel), activations [per token](QuantizeDynamic::per_token),
    /// and [embeddings](QuantizeDynamic::others) by rows, so that the file is a quarter of the
    /// float one.
    ///
    /// ```
    /// use opt_core::nn::{Embedding, Linear, ModelBuilder};
    /// use opt_core::{Context, DType, Pass};
    /// use opt_quant::QuantizeDynamic;
    ///
    /// let mut m = ModelBuilder::new("model", 0);
    /// let ids = m.batch_of(DType::I64, "ids", [7])?;
    /// let x = m.layer("embed", Embedding::new(100, 16), ids)?;
    /// let y = m.layer("fc", Linear::new(8), x)?;
    /// m.output("y", y)?;
    /// let pass = QuantizeDynamic::recommended();
    /// let (graph, report) = pass.apply(m.finish()?, &mut Context::new())?;
    /// assert_eq!(report.changed, 2);
    /// assert_eq!(graph.type_of(graph.find("embed.weight.q")?).to_string(), "i8[100,16]");
    /// # Ok::<(), opt_quant::Error>(())
    /// ```
    pub fn recommended() -> QuantizeDynamic {
        let int8 = Scheme::int8();
        QuantizeDynamic::new()
            .per_channel()
            .per_token()
            .others(int8)
            .half_scales()
    }

    /// Also stores the weights that are in no product (embeddings and convolutions) in a scheme, as
    /// [`QuantizeWeights`] does; computing with them stays in float. Rules that name a scheme hold
    /// for them, too.
    #[must_use]
    pub fn others(mut self, scheme: Scheme) -> QuantizeDynamic {
        self.others = Some(scheme);
        self
    }

    /// Stores the scales of [others](QuantizeDynamic::others) in 16 bits, as
    /// [`QuantizeWeights::half_scales`] does.
    #[must_use]
    pub fn half_scales(mut self) -> QuantizeDynamic {
        self.half_scales = true;
        self
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

    /// A scale and zero point for each row of activations, that is for each token of a sequence:
    /// uint8 over the row's range, with 0 in it. One outlying token then costs the others no
    /// precision, and what a token becomes depends neither on the others of its batch nor on
    /// padding.
    ///
    /// In ONNX the products are `MatMulInteger`, with the rows' zero points and scales applied to
    /// the sums, from operator set 21 on.
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

/// Integers, scales and zero points of a value, a scale and zero point a row.
fn by_token(patch: &mut GraphPatch, x: ValueId) -> Result<[ValueId; 3]> {
    let last = patch.type_of(x).rank() - 1;
    let width = patch.type_of(x).shape[last].fixed()?;
    let low = patch.reduce(ReduceOp::Min, x, &[last], true)?;
    let high = patch.reduce(ReduceOp::Max, x, &[last], true)?;
    let zero = patch.scalar_like(low, 0.0)?;
    let low = patch.minimum(low, zero)?;
    let high = patch.maximum(high, zero)?;
    // Divided one by one: the difference of the ends may overflow.
    let levels = patch.scalar_like(low, 255.0)?;
    let (above, below) = (patch.div(high, levels)?, patch.div(low, levels)?);
    let scale = patch.sub(above, below)?;
    // A row of zeros divides by this.
    let least = patch.scalar_like(scale, f64::from(f32::MIN_POSITIVE))?;
    let scale = patch.maximum(scale, least)?;
    // 0 and 255 bound it: `low` is between minus 255 scales and 0.
    let zero_point = patch.sub(zero, low)?;
    let zero_point = patch.div(zero_point, scale)?;
    let zero_point = patch.round(zero_point)?;
    let zero_point = patch.minimum(zero_point, levels)?;
    let zero_point = patch.cast(zero_point, DType::U8)?;
    let op = Quantize {
        dtype: DType::U8,
        axis: Some(last),
        block: Some(width),
    };
    let q = patch.op(op, &[x, scale, zero_point])?;
    Ok([q, scale, zero_point])
}

impl Pass for QuantizeDynamic {
    fn name(&self) -> &str {
        "quantize_dynamic"
    }

    fn config(&self) -> String {
        format!(
            "weights = \"{}\"\nper_token = {}\nothers = \"{}\"\nhalf_scales = {}\nrules = {}\n",
            self.weights,
            self.per_token,
            self.others.map_or("float".into(), |s| s.to_string()),
            self.half_scales,
            self.rules
        )
    }

    fn needs(&self) -> Needs {
        Needs::NOTHING
    }

    fn apply(&self, graph: Graph, cx: &mut Context<'_>) -> Result<(Graph, Report)> {
        let (layers, left) = find(&graph, &self.rules, &self.weights, Kinds::Products)?;
        let original = graph.clone();
        let mut patch = GraphPatch::new(graph);
        let mut report = Report::new(layers.len());
        let mut inputs: BTreeMap<ValueId, [ValueId; 3]> = BTreeMap::new();
        let mut weights: BTreeMap<(ValueId, usize), (QParams, [ValueId; 3])> = BTreeMap::new();
        for layer in layers {
            let node = original.node(layer.node);
            let Op::MatMul(op) = node.op() else { continue };
            let x = node.inputs()[0];
            let value = original.value(layer.weight);
            let name = value.name().to_string();
            check(&layer.scheme).at(|| name.clone())?;
            let place = || node.name().to_string();
            let [q, scale, zero] = match inputs.get(&x).copied() {
                Some(found) => found,
                None => {
                    let new = match self.per_token {
                        true => by_token(&mut patch, x),
                        false => patch.dynamic_quantize(x),
                    };
                    let new = new.at(place)?;
                    inputs.insert(x, new);
                    new
                }
            };
            // Dequantized for each product, by which exporters see that it is one of integers.
            let last = patch.type_of(q).rank() - 1;
            let width = patch.type_of(q).shape[last].as_fixed();
            let (axis, block) = match self.per_token {
                true => (Some(last), width),
                false => (None, None),
            };
            let a = patch.op(Dequantize { axis, block }, &[q, scale, zero])?;
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
        // What stays in float here is stored in the other scheme afterwards.
        let here = |note: &String| self.others.is_none() || !note.ends_with(IN_FLOAT);
        for note in left.into_iter().filter(here) {
            report = report.note(note);
        }
        let graph = patch.finish()?;
        let Some(scheme) = self.others else {
            return Ok((graph, report));
        };
        // Which rules are of use has been decided, on all layers.
        let mut others = QuantizeWeights::new(scheme).rules(self.rules.clone().allow_unused());
        if self.half_scales {
            others = others.half_scales();
        }
        match others.apply(graph.clone(), cx) {
            Ok((graph, more)) => {
                report.changed += more.changed;
                for (name, value) in more.figures {
                    report = report.figure(name, value);
                }
                Ok((graph, report))
            }
            Err(e) if e.kind() == ErrorKind::NoEffect => Ok((graph, report)),
            Err(e) => Err(e),
        }
    }
}
