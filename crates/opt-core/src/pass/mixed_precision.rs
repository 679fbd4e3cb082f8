//! Mixed precision: products and convolutions in 16-bit floats, parameters in `f32`.

use std::collections::{HashMap, HashSet};

use crate::ops::{Binary, BinaryOp, Cast, Op, ReduceOp, UnaryOp};
use crate::{
    Context, DType, Error, ErrorKind, Graph, GraphPatch, Node, NodeId, Pass, Report, Result,
    ResultExt, TensorType, ValueId, ValueKind,
};

/// Lets matrix products and convolutions of an `f32` model run in `bf16` or `f16`: what PyTorch's
/// `torch.autocast` does while a model runs, written into the graph.
///
/// | ops | run in |
/// | --- | --- |
/// | `MatMul`, `Conv`, `ConvTranspose`, `Attention`; the bias of a linear layer | the low dtype |
/// | `Softmax`, `LogSoftmax`, `SoftmaxCrossEntropy`, exponentials, logarithms, powers, reciprocals, sums, means and products, layer, group, instance and root-mean-square normalization, LSTM and GRU | `f32` |
/// | all others (activations, arithmetic, comparison, pooling, reshaping, dropout, ..) | the dtype of their inputs; `f32` where one of these is `f32` |
/// | `BatchNorm` | the dtype of x; its parameters and statistics are `f32` |
/// | quantized parts, assignments, custom ops, what holds `f64` | as they were |
///
/// The table is that of PyTorch's autocast on accelerators; on the CPU PyTorch leaves softmax and
/// the normalizations in the low dtype. Tensors of rank 0 promote nothing, as in PyTorch, unless
/// they are constants too large or too near to 0 for the low dtype. A slope of `PRelu` takes the dtype of x.
///
/// Variables stay `f32`: they are the master weights, and their gradients are `f32` too, since the
/// gradient of a cast is the cast back. A value that several nodes need in another dtype is cast
/// once. The outputs of the graph keep their dtypes.
///
/// Apply it to a model, before its training graph is made (`Trainer::mixed_precision` of
/// `opt-train` does) or for inference. `f16` needs loss scaling in training, since gradients
/// below 6e-8 are zeros in it; `bf16` has the range of `f32`.
///
/// ```
/// use opt_core::nn::{Linear, ModelBuilder};
/// use opt_core::pass::MixedPrecision;
/// use opt_core::{Context, DType, Pass};
///
/// let mut m = ModelBuilder::new("model", 0);
/// let x = m.batch("x", [8])?;
/// let h = m.layer("hidden", Linear::new(16), x)?;
/// let h = m.relu(h)?;
/// let y = m.layer("head", Linear::new(3), h)?;
/// m.output("y", y)?;
/// let pass = MixedPrecision::bf16().keep("head.");
/// let (graph, report) = pass.apply(m.finish()?, &mut Context::new())?;
///
/// assert_eq!(report.changed, 1);
/// let products = graph.nodes().filter(|(_, n)| n.op().name() == "MatMul");
/// let dtypes: Vec<DType> = products.map(|(_, n)| graph.type_of(n.outputs()[0]).dtype).collect();
/// assert_eq!(dtypes, [DType::BF16, DType::F32]);
/// assert!(graph.variables().all(|(_, _, t)| t.dtype() == DType::F32));
/// # Ok::<(), opt_core::Error>(())
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MixedPrecision {
    dtype: DType,
    keep: Vec<String>,
}

/// What an op runs in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Policy {
    /// The low dtype.
    Low,
    /// What its inputs have.
    Follow,
    /// What it had.
    Keep,
}

fn policy(op: &Op) -> Result<Policy> {
    Ok(match op {
        Op::MatMul(_) | Op::Conv(_) | Op::ConvTranspose(_) | Op::Attention(_) => Policy::Low,
        Op::Unary(unary) => match unary.op {
            UnaryOp::Exp
            | UnaryOp::Expm1
            | UnaryOp::Log
            | UnaryOp::Log1p
            | UnaryOp::Reciprocal
            | UnaryOp::Tan
            | UnaryOp::Asin
            | UnaryOp::Acos
            | UnaryOp::Sinh
            | UnaryOp::Cosh
            | UnaryOp::Softplus => Policy::Keep,
            _ => Policy::Follow,
        },
        Op::Binary(Binary { op: BinaryOp::Pow }) => Policy::Keep,
        // The largest of rounded entries is the rounded largest.
        Op::Reduce(reduce) if matches!(reduce.op, ReduceOp::Max | ReduceOp::Min) => Policy::Follow,
        Op::Binary(_)
        | Op::Where(_)
        | Op::Cast(_)
        | Op::ArgReduce(_)
        | Op::TopK(_)
        | Op::MaxPool(_)
        | Op::AvgPool(_)
        | Op::BatchNorm(_)
        | Op::Reshape(_)
        | Op::Transpose(_)
        | Op::Slice(_)
        | Op::Concat(_)
        | Op::Split(_)
        | Op::Pad(_)
        | Op::Expand(_)
        | Op::Tile(_)
        | Op::Squeeze(_)
        | Op::Unsqueeze(_)
        | Op::Gather(_)
        | Op::GatherElements(_)
        | Op::ScatterElements(_)
        | Op::Dropout(_)
        | Op::Sizes(_)
        | Op::Identity(_)
        | Op::StopGradient(_) => Policy::Follow,
        Op::Reduce(_)
        | Op::CumSum(_)
        | Op::Softmax(_)
        | Op::LogSoftmax(_)
        | Op::SoftmaxCrossEntropy(_)
        | Op::LayerNorm(_)
        | Op::GroupNorm(_)
        | Op::InstanceNorm(_)
        | Op::RmsNorm(_)
        | Op::Lstm(_)
        | Op::Gru(_)
        | Op::OneHot(_)
        | Op::Random(_)
        | Op::Iota(_)
        | Op::Quantize(_)
        | Op::Dequantize(_)
        | Op::DynamicQuantize(_)
        | Op::FakeQuantize(_)
        | Op::Assign(_)
        | Op::Custom(_) => Policy::Keep,
        Op::ConvGradWeight(_)
        | Op::MaxPoolGrad(_)
        | Op::AvgPoolGrad(_)
        | Op::BatchNormGrad(_)
        | Op::SliceGrad(_)
        | Op::PadGrad(_)
        | Op::GatherGrad(_)
        | Op::LstmGrad(_)
        | Op::GruGrad(_) => {
            return Err(Error::invalid(
                "the graph has gradients; apply mixed precision to the model, before its training \
                 graph is made",
            ));
        }
    })
}

/// Whether the op only says where the entries of its first input are.
fn moves_only(op: &Op) -> bool {
    matches!(
        op,
        Op::Reshape(_)
            | Op::Transpose(_)
            | Op::Squeeze(_)
            | Op::Unsqueeze(_)
            | Op::Expand(_)
            | Op::Identity(_)
            | Op::StopGradient(_)
    )
}

fn is_quantization(op: &Op) -> bool {
    matches!(
        op,
        Op::Quantize(_) | Op::Dequantize(_) | Op::DynamicQuantize(_) | Op::FakeQuantize(_)
    )
}

impl MixedPrecision {
    /// Products and convolutions in `bf16`.
    pub fn bf16() -> MixedPrecision {
        MixedPrecision {
            dtype: DType::BF16,
            keep: Vec::new(),
        }
    }

    /// Products and convolutions in `f16`.
    pub fn f16() -> MixedPrecision {
        MixedPrecision {
            dtype: DType::F16,
            keep: Vec::new(),
        }
    }

    /// Keeps in `f32` the nodes whose name, or the name of a variable or constant that they read,
    /// contains the pattern; one that matches nothing is an error.
    #[must_use]
    pub fn keep(mut self, pattern: impl Into<String>) -> MixedPrecision {
        self.keep.push(pattern.into());
        self
    }

    /// The dtype of products and convolutions: `bf16` or `f16`.
    pub fn dtype(&self) -> DType {
        self.dtype
    }

    /// The pass from the text of [`Pass::config`]: `dtype = "bf16"` or `"f16"`, and `keep`, a list
    /// of patterns, which may be left out.
    ///
    /// # Errors
    /// [`ErrorKind::Pipeline`] if the text is no TOML of that form.
    pub fn from_toml(text: &str) -> Result<MixedPrecision> {
        let bad = |m: String| Error::new(ErrorKind::Pipeline, m);
        let table: toml::Table = text.parse().map_err(|e| bad(format!("{e}")))?;
        let mut pass = match table.get("dtype").and_then(toml::Value::as_str) {
            Some("bf16") => MixedPrecision::bf16(),
            Some("f16") => MixedPrecision::f16(),
            _ => return Err(bad("`dtype` must be \"bf16\" or \"f16\"".into())),
        };
        for (key, value) in &table {
            match (key.as_str(), value) {
                ("dtype", _) => {}
                ("keep", toml::Value::Array(list)) => {
                    for pattern in list {
                        let Some(pattern) = pattern.as_str() else {
                            return Err(bad(format!("`keep` holds {pattern}, which is no text")));
                        };
                        pass = pass.keep(pattern);
                    }
                }
                ("keep", _) => return Err(bad("`keep` must be a list of patterns".into())),
                _ => return Err(bad(format!("unknown key `{key}`"))),
            }
        }
        Ok(pass)
    }

    /// Applies the pass without a context.
    ///
    /// The report counts the products and convolutions that run in the low dtype, all nodes that
    /// do (`nodes`) and the casts (`casts`), and names what was left out.
    ///
    /// # Errors
    /// [`ErrorKind::NoEffect`] if no product or convolution is left to change (so if the pass is
    /// applied twice), or a pattern to keep matches nothing; [`ErrorKind::InvalidArgument`] at the
    /// first gradient if the graph has any.
    pub fn convert(&self, graph: Graph) -> Result<(Graph, Report)> {
        let kept = self.kept(&graph)?;
        // Without what is dead, which the patch drops: the report counts what is left.
        let original = graph.extract(graph.named_outputs(), true)?;
        let mut rewrite = Rewrite {
            original: &original,
            low: self.dtype,
            patch: GraphPatch::new(original.clone()),
            types: HashMap::new(),
            casts: HashMap::new(),
            quantized: HashSet::new(),
            already: 0,
            left: Vec::new(),
            products: 0,
            nodes: 0,
        };
        for (id, node) in original.nodes() {
            let at = || node.describe();
            rewrite.node(id, node, kept.contains(&id)).at(at)?;
        }
        rewrite.finish()
    }

    /// The nodes that a pattern keeps.
    fn kept(&self, graph: &Graph) -> Result<HashSet<NodeId>> {
        let mut kept = HashSet::new();
        for pattern in &self.keep {
            let mut hits = 0;
            for (id, node) in graph.nodes() {
                let stored = node.inputs().iter().map(|&v| graph.value(v));
                let mut names = stored.filter(|v| v.tensor().is_some()).map(|v| v.name());
                let matches = |name: &str| name.contains(pattern.as_str());
                if matches(node.name()) || names.any(matches) {
                    hits += 1;
                    kept.insert(id);
                }
            }
            if hits == 0 {
                return Err(Error::new(
                    ErrorKind::NoEffect,
                    format!("the pattern `{pattern}` to keep matches no node and no variable"),
                ));
            }
        }
        Ok(kept)
    }
}

/// The state of one conversion. Ids are those of the original graph, whose nodes stay: only what
/// they read changes, and with it the dtypes of what they compute.
struct Rewrite<'a> {
    original: &'a Graph,
    low: DType,
    patch: GraphPatch,
    /// Types that are not what they were.
    types: HashMap<ValueId, TensorType>,
    /// Values in another dtype.
    casts: HashMap<(ValueId, DType), ValueId>,
    /// Values on a grid.
    quantized: HashSet<ValueId>,
    /// Products that were in the low dtype before.
    already: usize,
    left: Vec<String>,
    products: usize,
    nodes: usize,
}

impl Rewrite<'_> {
    fn ty(&self, v: ValueId) -> &TensorType {
        self.types
            .get(&v)
            .unwrap_or_else(|| self.original.type_of(v))
    }

    fn dtype(&self, v: ValueId) -> DType {
        self.ty(v).dtype
    }

    /// Whether the value is one that the pass may see in either dtype.
    fn either(&self, v: ValueId) -> bool {
        self.dtype(v) == DType::F32 || self.dtype(v) == self.low
    }

    /// The value in a dtype, cast once.
    fn cast(&mut self, v: ValueId, dtype: DType) -> Result<ValueId> {
        if self.dtype(v) == dtype {
            return Ok(v);
        }
        if let Some(&found) = self.casts.get(&(v, dtype)) {
            return Ok(found);
        }
        // Widened before from what is wanted: rounding it again gives the same.
        if let Some((_, node)) = self.original.producer(v)
            && matches!(node.op(), Op::Cast(_))
            && dtype == self.low
            && self.dtype(v) == DType::F32
            && self.dtype(node.inputs()[0]) == dtype
        {
            return Ok(node.inputs()[0]);
        }
        let value = self.original.value(v);
        let name = format!("{}.{dtype}", value.name());
        let new = match value.kind() {
            ValueKind::Constant(content) if value.ty().rank() == 0 => {
                self.patch.named_constant(&name, content.cast(dtype))
            }
            _ => self.patch.named_node(&name, Cast { dtype }, &[v])?[0],
        };
        self.casts.insert((v, dtype), new);
        Ok(new)
    }

    /// Whether a scalar constant is out of the range in which the low dtype has all its digits.
    fn out_of_range(&self, v: ValueId) -> bool {
        let value = self.original.value(v);
        match value.kind() {
            ValueKind::Constant(content) if value.ty().rank() == 0 => {
                let (exact, low) = (content.to_f64s(), content.cast(self.low).to_f64s());
                let near = |(a, b): (&f64, &f64)| (a - b).abs() <= a.abs() / 256.0;
                content.is_finite() && !exact.iter().zip(&low).all(near)
            }
            _ => false,
        }
    }

    /// Whether the node adds the bias of a linear layer to its product in the low dtype.
    fn adds_bias(&self, node: &Node) -> bool {
        if node.op() != &Op::from(Binary { op: BinaryOp::Add }) {
            return false;
        }
        let is = |product: ValueId, bias: ValueId| {
            let from = self.original.producer(product);
            let (ty, bias) = (self.ty(product), self.original.value(bias));
            from.is_some_and(|(_, n)| matches!(n.op(), Op::MatMul(_)))
                && ty.dtype == self.low
                && bias.tensor().is_some()
                && bias.ty().rank() == 1
                && bias.ty().shape.dims().last() == ty.shape.dims().last()
        };
        let (a, b) = (node.inputs()[0], node.inputs()[1]);
        is(a, b) || is(b, a)
    }

    /// The dtype that an op runs in which follows its inputs.
    fn common(&self, node: &Node) -> DType {
        if self.adds_bias(node) {
            return self.low;
        }
        let float = |v: &&ValueId| self.either(**v);
        let inputs: Vec<ValueId> = node.inputs().iter().filter(float).copied().collect();
        let ranked = |v: &&ValueId| self.ty(**v).rank() > 0;
        let mut counted: Vec<ValueId> = inputs.iter().filter(ranked).copied().collect();
        if counted.is_empty() {
            counted.clone_from(&inputs);
        }
        let is_low = |&v: &ValueId| self.dtype(v) == self.low;
        let fits = |&v: &ValueId| is_low(&v) || !self.out_of_range(v);
        if !counted.is_empty() && counted.iter().all(is_low) && inputs.iter().all(fits) {
            self.low
        } else {
            DType::F32
        }
    }

    /// The dtype in which the node reads each of its inputs.
    fn wanted(&self, node: &Node, policy: Policy) -> Vec<DType> {
        let had = |v: ValueId| self.original.type_of(v).dtype;
        let float = |v: ValueId, dtype: DType| {
            if self.either(v) { dtype } else { self.dtype(v) }
        };
        let inputs = node.inputs().iter().copied();
        match (policy, node.op()) {
            (Policy::Keep, _) => inputs.map(had).collect(),
            (Policy::Low, _) => inputs.map(|v| float(v, self.low)).collect(),
            (Policy::Follow, Op::Cast(_)) => inputs.map(|v| self.dtype(v)).collect(),
            (Policy::Follow, Op::BatchNorm(_)) => inputs
                .enumerate()
                .map(|(i, v)| if i == 0 { self.dtype(v) } else { had(v) })
                .collect(),
            (
                Policy::Follow,
                Op::Binary(Binary {
                    op: BinaryOp::PRelu,
                }),
            ) => {
                let dtype = self.dtype(node.inputs()[0]);
                inputs.map(|v| float(v, dtype)).collect()
            }
            (Policy::Follow, _) => {
                let dtype = self.common(node);
                inputs.map(|v| float(v, dtype)).collect()
            }
        }
    }

    fn node(&mut self, id: NodeId, node: &Node, kept: bool) -> Result<()> {
        let mut policy = policy(node.op())?;
        let on_grid = node.inputs().iter().any(|v| self.quantized.contains(v));
        if is_quantization(node.op()) || (on_grid && moves_only(node.op())) {
            self.quantized.extend(node.outputs());
        }
        let foreign = |&v: &ValueId| self.dtype(v).is_float() && !self.either(v);
        if policy == Policy::Low {
            let dtype = self.original.type_of(node.inputs()[0]).dtype;
            let why = if kept {
                Some("kept".to_string())
            } else if on_grid {
                Some("quantized".to_string())
            } else if node.inputs().iter().any(foreign) || !dtype.is_float() {
                Some(format!("it is of {dtype}"))
            } else {
                None
            };
            if let Some(why) = why {
                self.left.push(format!("{}: {why}", node.name()));
                policy = Policy::Keep;
            }
        } else if kept || node.inputs().iter().any(foreign) {
            policy = Policy::Keep;
        } else if matches!(node.op(), Op::Lstm(_) | Op::Gru(_)) {
            self.left
                .push(format!("{}: recurrences stay in f32", node.name()));
        }
        let wanted = self.wanted(node, policy);
        let mut types = Vec::with_capacity(wanted.len());
        let mut changed = false;
        for (index, (&v, dtype)) in node.inputs().iter().zip(wanted).enumerate() {
            types.push(self.ty(v).with_dtype(dtype));
            changed |= self.original.type_of(v).dtype != dtype;
            let new = self.cast(v, dtype)?;
            if new != v {
                self.patch.rewire(id, index, new)?;
            }
        }
        if !changed {
            self.already += usize::from(policy == Policy::Low);
            return Ok(());
        }
        self.nodes += 1;
        self.products += usize::from(policy == Policy::Low);
        let outputs = node.op().rules().infer(&types)?;
        for (&v, ty) in node.outputs().iter().zip(outputs) {
            if ty != *self.original.type_of(v) {
                self.types.insert(v, ty);
            }
        }
        Ok(())
    }

    fn finish(mut self) -> Result<(Graph, Report)> {
        if self.products == 0 {
            let already = match self.already {
                0 => String::new(),
                n => format!("; {n} are in {} already", self.low),
            };
            return Err(Error::new(
                ErrorKind::NoEffect,
                format!(
                    "there is no product or convolution to run in {}{already}; left out: {:?}",
                    self.low, self.left
                ),
            ));
        }
        let outputs = self.original.named_outputs().to_vec();
        self.patch.clear_outputs();
        for (name, v) in outputs {
            let had = self.original.type_of(v).dtype;
            let v = self.cast(v, had)?;
            self.patch.output(&name, v)?;
        }
        let graph = self.patch.finish()?;
        let casts = |g: &Graph| {
            g.nodes()
                .filter(|(_, n)| matches!(n.op(), Op::Cast(_)))
                .count()
        };
        let added = casts(&graph).saturating_sub(casts(self.original));
        let mut report = Report::new(self.products)
            .figure("nodes", self.nodes as f64)
            .figure("casts", added as f64);
        let quantized = self.original.nodes();
        let quantized = quantized.filter(|(_, n)| is_quantization(n.op())).count();
        if quantized > 0 {
            report = report.note(format!(
                "{quantized} quantization nodes are left as they are"
            ));
        }
        for note in self.left {
            report = report.note(note);
        }
        Ok((graph, report))
    }
}

impl Pass for MixedPrecision {
    fn name(&self) -> &str {
        "mixed_precision"
    }

    fn config(&self) -> String {
        let patterns = self.keep.iter().cloned().map(toml::Value::String);
        let keep = toml::Value::Array(patterns.collect());
        format!("dtype = \"{}\"\nkeep = {keep}\n", self.dtype)
    }

    fn apply(&self, graph: Graph, _: &mut Context<'_>) -> Result<(Graph, Report)> {
        self.convert(graph)
    }
}

#[cfg(test)]
mod tests;
