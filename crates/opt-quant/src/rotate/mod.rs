//! Rotation of residual streams.

mod orthogonal;
mod stream;

use std::collections::{BTreeMap, BTreeSet};

use opt_core::ops::{Binary, BinaryOp, Op, RmsNorm};
use opt_core::{
    Context, DType, Error, ErrorKind, FactKind, Graph, GraphPatch, NodeId, Pass, Preserves, Report,
    Result, ResultExt, Tensor, ValueId, ValueKind,
};

use orthogonal::Orthogonal;
use stream::{Readers, Stream, Use};

/// Rotates the residual stream of transformers, so that no channel of it is an outlier (QuaRot,
/// Ashkboos et al. 2024), before weights or activations are quantized.
///
/// The stream is what normalizations read: sums of embeddings and of the outputs of layers. With an
/// orthogonal matrix Q, `x Q` has the same root mean square as x, and its entries are alike in size. So
/// Q is multiplied into the parameters that make the stream, and its transpose into those that read
/// what is normalized: the function stays, but for rounding, and nothing more is computed. The scale
/// and bias of a normalization go into the layers that read it. The mean that a layer normalization
/// takes off is taken off by what makes the stream; it becomes a root-mean-square one.
///
/// Q is a Hadamard matrix with random signs for widths that have one by Sylvester's and Paley's
/// constructions (powers of two, and these times 12, 20, 28, ..), else a random orthogonal matrix.
///
/// Where something else makes or reads the stream (an input, pooling), a product by Q is computed in
/// each run; more than [two](Rotate::online) of these are an error that names them. Networks that
/// normalize after the sum, as BERT does, have one at every normalization: there the normalization's
/// scale stands between the sums, and no rotation passes through it. [`SmoothQuant`](crate::SmoothQuant)
/// is for those.
///
/// Pruned weights do not stay sparse.
///
/// ```
/// use opt_core::nn::{LayerNorm, Linear, ModelBuilder, TransformerEncoderLayer};
/// use opt_core::{Context, Pass};
/// use opt_quant::{QuantizeWeights, Rotate, Scheme};
///
/// # fn main() -> opt_core::Result<()> {
/// let mut m = ModelBuilder::new("encoder", 0);
/// let x = m.batch("x", [5, 64])?;
/// let h = m.layer("layer", TransformerEncoderLayer::new(4, 128).norm_first(true), x)?;
/// let h = m.layer("norm", LayerNorm::new(), h)?;
/// let y = m.layer("head", Linear::new(10), h)?;
/// m.output("y", y)?;
///
/// let mut cx = Context::new();
/// let (rotated, report) = Rotate::new().apply(m.finish()?, &mut cx)?;
/// assert_eq!(report.changed, 3);
/// let (int4, _) = QuantizeWeights::new(Scheme::int4()).apply(rotated, &mut cx)?;
/// # let _ = int4;
/// # Ok(())
/// # }
/// ```
#[derive(Debug, Clone, PartialEq)]
pub struct Rotate {
    seed: u64,
    online: usize,
}

impl Default for Rotate {
    fn default() -> Rotate {
        Rotate { seed: 0, online: 2 }
    }
}

impl Rotate {
    /// With signs by seed 0.
    pub fn new() -> Rotate {
        Rotate::default()
    }

    /// With other random signs.
    #[must_use]
    pub fn seed(mut self, seed: u64) -> Rotate {
        self.seed = seed;
        self
    }

    /// Allows so many products by a rotation in each run; 2 at first, as for a stream that begins at
    /// an input and ends in pooling.
    #[must_use]
    pub fn online(mut self, most: usize) -> Rotate {
        self.online = most;
        self
    }
}

impl Pass for Rotate {
    fn name(&self) -> &str {
        "rotate"
    }

    fn config(&self) -> String {
        format!("seed = {}\nonline = {}\n", self.seed, self.online)
    }

    fn preserves(&self) -> Preserves {
        Preserves::AllBut(vec![
            FactKind::Mask,
            FactKind::NmPattern,
            FactKind::Grid,
            FactKind::Codebook,
        ])
    }

    fn apply(&self, graph: Graph, _: &mut Context<'_>) -> Result<(Graph, Report)> {
        let readers = Readers::of(&graph);
        let mut streams = readers.streams()?;
        // What no layer makes, such as the queries of one head, has nothing to rotate.
        streams.retain(|stream| !stream.makers.is_empty());
        if streams.is_empty() {
            return Err(Error::new(
                ErrorKind::NoEffect,
                "no layer or root-mean-square normalization of the last axis reads a stream to rotate",
            ));
        }
        let mut work = Work {
            readers: &readers,
            contents: BTreeMap::new(),
            added: BTreeMap::new(),
            online: Vec::new(),
        };
        let mut turns = Vec::with_capacity(streams.len());
        for (i, stream) in streams.iter().enumerate() {
            let q = Orthogonal::random(stream.width, self.seed.wrapping_add(i as u64));
            let q = q.at(|| graph.node(stream.norms[0]).name().to_string())?;
            turns.push(work.turn(stream, q)?);
        }
        if work.online.len() > self.online {
            return Err(Error::unsupported(format!(
                "{} products by rotations would be computed in each run, at {:?}; {} are allowed. A \
                 network that normalizes after its sums cannot be rotated without them",
                work.online.len(),
                work.online,
                self.online
            )));
        }
        // In the order of the stream: what is read first, then what makes it.
        for turn in &turns {
            for &((node, input), axis) in &turn.stream.makers {
                let centered = turn.centered;
                work.change(node, input, |content| {
                    along(content, axis, |x| turn.rotate(x, centered))
                })?;
            }
        }
        let mut report = Report::new(turns.iter().map(|t| t.stream.norms.len()).sum());
        let hadamard = turns.iter().filter(|t| t.q.is_hadamard()).count();
        report = report
            .figure("rotated streams", turns.len() as f64)
            .figure("by Hadamard matrices", hadamard as f64)
            .figure("parameters changed", work.contents.len() as f64)
            .figure("products in each run", work.online.len() as f64);
        if !work.online.is_empty() {
            let places = format!("products by rotations in each run: {:?}", work.online);
            report.notes.push(places);
        }
        let Work {
            contents, added, ..
        } = work;
        let rewired = rewrite(graph.clone(), &readers, &turns, contents, &added)?;
        Ok((rewired, report))
    }
}

/// A stream with its rotation.
struct Turn<'a> {
    stream: &'a Stream,
    q: Orthogonal,
    /// Whether the mean is taken off where the stream is made.
    centered: bool,
    /// Products that read each normalization, and whether something else does.
    read: BTreeMap<NodeId, (Vec<NodeId>, bool)>,
}

impl Turn<'_> {
    /// A vector of the stream, rotated.
    fn rotate(&self, x: &mut [f64], centered: bool) {
        if centered {
            let mean = x.iter().sum::<f64>() / x.len() as f64;
            x.iter_mut().for_each(|v| *v -= mean);
        }
        self.q.apply(x);
    }

    /// The matrix that rotates into the stream.
    fn matrix_in(&self) -> Result<Tensor> {
        let mut rows = vec![0.0; self.q.size() * self.q.size()];
        for (i, row) in rows.chunks_exact_mut(self.q.size()).enumerate() {
            row[i] = 1.0;
            self.rotate(row, self.centered);
        }
        Tensor::from_f64s(DType::F32, [self.q.size(); 2], &rows)
    }

    /// The matrix that rotates back.
    fn matrix_out(&self) -> Result<Tensor> {
        let rows = Tensor::from_f64s(DType::F32, [self.q.size(); 2], &self.q.rows())?;
        Ok(rows.transpose(&[1, 0])?.contiguous())
    }
}

struct Work<'a> {
    readers: &'a Readers<'a>,
    /// What inputs of nodes are to be instead of the parameters there.
    contents: BTreeMap<Use, Tensor>,
    /// Biases for products that have none.
    added: BTreeMap<NodeId, Vec<f64>>,
    /// Values that are rotated in each run.
    online: Vec<String>,
}

impl<'a> Work<'a> {
    fn name(&self, v: ValueId) -> String {
        self.readers.graph.value(v).name().to_string()
    }

    fn change(
        &mut self,
        node: NodeId,
        input: usize,
        f: impl FnOnce(&Tensor) -> Result<Tensor>,
    ) -> Result<()> {
        let value = self.readers.graph.node(node).inputs()[input];
        let now = match self.contents.get(&(node, input)) {
            Some(content) => f(content),
            None => f(self.readers.graph.value(value).tensor().expect("stored")),
        };
        let content = now.at(|| self.name(value))?;
        self.contents.insert((node, input), content);
        Ok(())
    }

    /// Multiplies what normalizations scale, and the rotation back, into the layers that read them.
    fn turn(&mut self, stream: &'a Stream, q: Orthogonal) -> Result<Turn<'a>> {
        let graph = self.readers.graph;
        let layer_norms = stream
            .norms
            .iter()
            .filter(|&&n| matches!(graph.node(n).op(), Op::LayerNorm(_)))
            .count();
        if layer_norms > 0 && layer_norms < stream.norms.len() {
            return Err(Error::unsupported(
                "layer and root-mean-square normalizations read one stream",
            )
            .at(graph.node(stream.norms[0]).name().to_string()));
        }
        let centered = layer_norms > 0;
        let folded: Vec<ValueId> = stream.exits.difference(&stream.entries).copied().collect();
        if let (true, Some(&v)) = (centered, folded.first()) {
            return Err(Error::unsupported(
                "this sum is read by other nodes than layer normalizations, and would lose its mean",
            )
            .at(self.name(v)));
        }
        let online: Vec<String> = stream
            .entries
            .iter()
            .chain(&folded)
            .map(|&v| self.name(v))
            .collect();
        self.online.extend(online);
        let mut read = BTreeMap::new();
        for &norm in &stream.norms {
            let inputs = graph.node(norm).inputs();
            let vector = |v: ValueId| graph.value(v).tensor().expect("stored").to_f64s();
            let gain = vector(inputs[1]);
            let bias = inputs.get(2).map(|&b| vector(b));
            let out = graph.node(norm).outputs()[0];
            let mut others = self.readers.is_output(out);
            let mut products = Vec::new();
            for &(node, input) in self.readers.uses(out) {
                match self.readers.product(node).filter(|_| input == 0) {
                    Some(axis) => {
                        self.fold(node, axis, &gain, bias.as_deref(), &q)?;
                        products.push(node);
                    }
                    None => others = true,
                }
            }
            if others {
                self.online.push(self.name(out));
            }
            read.insert(norm, (products, others));
        }
        Ok(Turn {
            stream,
            q,
            centered,
            read,
        })
    }

    /// Scale, bias and rotation before a product, into its weight and bias.
    fn fold(
        &mut self,
        node: NodeId,
        axis: usize,
        gain: &[f64],
        bias: Option<&[f64]>,
        q: &Orthogonal,
    ) -> Result<()> {
        let mut moved = Vec::new();
        self.change(node, 1, |content| {
            if let Some(bias) = bias.filter(|b| b.iter().any(|&v| v != 0.0)) {
                moved = product(bias, content, axis);
            }
            along(content, axis, |x| {
                x.iter_mut().zip(gain).for_each(|(v, g)| *v *= g);
                q.apply(x);
            })
        })?;
        if moved.is_empty() {
            return Ok(());
        }
        match self.bias_of(node, moved.len()) {
            Some((add, input)) => self.change(add, input, |content| {
                let sums = content.to_f64s().into_iter().zip(&moved);
                let sums: Vec<f64> = sums.map(|(a, b)| a + b).collect();
                Tensor::from_f64s(DType::F32, content.shape(), &sums)
            }),
            None => {
                self.added.insert(node, moved);
                Ok(())
            }
        }
    }

    /// Where the only reader of a product adds a stored vector to it.
    fn bias_of(&self, node: NodeId, width: usize) -> Option<Use> {
        let graph = self.readers.graph;
        let out = graph.node(node).outputs()[0];
        let &[(add, input)] = self.readers.uses(out) else {
            return None;
        };
        let other = 1 - input.min(1);
        let next = graph.node(add);
        let is_add = *next.op() == Op::Binary(Binary { op: BinaryOp::Add });
        let bias = *next.inputs().get(other)?;
        let vector = self.readers.stored(bias)
            && graph.type_of(bias).rank() == 1
            && self.readers.width(bias) == Some(width);
        (is_add && vector && !self.readers.is_output(out)).then_some((add, other))
    }
}

/// A vector times a matrix, along an axis of it.
fn product(x: &[f64], matrix: &Tensor, axis: usize) -> Vec<f64> {
    let columns = matrix.shape()[1 - axis];
    let data = matrix.to_f64s();
    let at = |i: usize, j: usize| match axis {
        0 => data[i * columns + j],
        _ => data[j * x.len() + i],
    };
    (0..columns)
        .map(|j| x.iter().enumerate().map(|(i, v)| v * at(i, j)).sum())
        .collect()
}

/// A tensor whose vectors along an axis are changed.
fn along(content: &Tensor, axis: usize, mut f: impl FnMut(&mut [f64])) -> Result<Tensor> {
    let shape = content.shape();
    let (size, inner): (usize, usize) = (shape[axis], shape[axis + 1..].iter().product());
    let mut data = content.to_f64s();
    let mut x = vec![0.0; size];
    for outer in data.chunks_exact_mut((size * inner).max(1)) {
        for i in 0..inner {
            for (k, v) in x.iter_mut().enumerate() {
                *v = outer[k * inner + i];
            }
            f(&mut x);
            for (k, v) in x.iter().enumerate() {
                outer[k * inner + i] = *v;
            }
        }
    }
    Tensor::from_f64s(DType::F32, shape, &data)
}

/// The graph with new parameters and normalizations, and products where they are needed.
fn rewrite(
    mut graph: Graph,
    readers: &Readers<'_>,
    turns: &[Turn<'_>],
    contents: BTreeMap<Use, Tensor>,
    added: &BTreeMap<NodeId, Vec<f64>>,
) -> Result<Graph> {
    let mut shared = Vec::new();
    for (at, content) in contents {
        let value = graph.node(at.0).inputs()[at.1];
        match readers.uses(value).len() == 1 && !readers.is_output(value) {
            true => graph.set_content(value, content)?,
            false => shared.push((at, value, content)),
        }
    }
    let mut patch = GraphPatch::new(graph.clone());
    for (i, ((node, input), value, content)) in shared.into_iter().enumerate() {
        let name = format!("{}.rotated{i}", graph.value(value).name());
        let copy = match graph.value(value).kind() {
            ValueKind::Variable(_) => patch.variable(&name, content)?,
            _ => patch.named_constant(&name, content),
        };
        patch.rewire(node, input, copy)?;
    }
    let mut kept = Vec::new();
    for turn in turns {
        turn.rewrite(&graph, &mut patch, &mut kept)?;
    }
    for (&node, bias) in added {
        let out = graph.node(node).outputs()[0];
        let mut makers = turns.iter().flat_map(|turn| &turn.stream.makers);
        if makers.any(|((maker, _), _)| *maker == node) {
            return Err(Error::unsupported(
                "a product from a normalization to the stream, without a bias",
            )
            .at(graph.node(node).name().to_string()));
        }
        let bias = Tensor::from_f64s(DType::F32, [bias.len()], bias)?;
        let bias = patch.named_constant(&format!("{}.bias", graph.node(node).name()), bias);
        let sum = patch.add(out, bias)?;
        patch.replace(out, sum)?;
    }
    let mut patch = GraphPatch::new(patch.finish()?);
    for ((node, input), value) in kept {
        patch.rewire(node, input, value)?;
    }
    patch.finish()
}

impl Turn<'_> {
    /// Replaces the normalizations, and adds the products that are computed in each run. `kept` gets
    /// the inputs that go on reading a value which is replaced for all others.
    fn rewrite(
        &self,
        graph: &Graph,
        patch: &mut GraphPatch,
        kept: &mut Vec<(Use, ValueId)>,
    ) -> Result<()> {
        let stream = self.stream;
        let mut rotated: BTreeMap<ValueId, ValueId> = BTreeMap::new();
        if !stream.entries.is_empty() {
            let matrix = patch.named_constant("rotation", self.matrix_in()?);
            for &v in &stream.entries {
                rotated.insert(v, patch.matmul(v, matrix)?);
            }
        }
        let folded: BTreeSet<ValueId> = stream.exits.difference(&stream.entries).copied().collect();
        let others = self.read.values().any(|(_, others)| *others);
        let back = match others || !folded.is_empty() {
            true => Some(patch.named_constant("rotation.back", self.matrix_out()?)),
            false => None,
        };
        for &v in &folded {
            let plain = patch.matmul(v, back.expect("made above"))?;
            patch.replace(v, plain)?;
        }
        for &((node, input), v) in &stream.inner {
            match rotated.get(&v) {
                Some(&new) => patch.rewire(node, input, new)?,
                None if folded.contains(&v) && !stream.norms.contains(&node) => {
                    kept.push(((node, input), v));
                }
                None => {}
            }
        }
        let ones = Tensor::full(DType::F32, [stream.width], 1.0)?;
        for (&norm, (products, others)) in &self.read {
            let node = graph.node(norm);
            let (x, out) = (node.inputs()[0], node.outputs()[0]);
            let (axis, epsilon) = match node.op() {
                Op::LayerNorm(op) => (op.axis, op.epsilon),
                Op::RmsNorm(op) => (op.axis, op.epsilon),
                other => unreachable!("{} is no normalization of a stream", other.name()),
            };
            let gain = patch.named_constant(&format!("{}.one", node.name()), ones.clone());
            let from = rotated.get(&x).copied().unwrap_or(x);
            let new = patch.op(RmsNorm { axis, epsilon }, &[from, gain])?;
            if folded.contains(&x) {
                let (id, _) = patch.graph().producer(new).expect("made above");
                kept.push(((id, 0), x));
            }
            if !others {
                patch.replace(out, new)?;
                continue;
            }
            kept.extend(products.iter().map(|&p| ((p, 0), new)));
            let mut plain = patch.matmul(new, back.expect("made above"))?;
            plain = patch.mul(plain, node.inputs()[1])?;
            if let Some(&bias) = node.inputs().get(2) {
                plain = patch.add(plain, bias)?;
            }
            patch.replace(out, plain)?;
        }
        Ok(())
    }
}
