//! A graph and its quantized form, side by side.

use std::collections::BTreeMap;

use opt_core::backend::bindings_of;
use opt_core::data::Dataset;
use opt_core::graph::Bindings;
use opt_core::ops::Op;
use opt_core::{
    Backend, CompileSpec, DType, Error, ErrorKind, Graph, Result, ResultExt, Session, Tensor,
    ValueId,
};

use super::moved::{LayerErrors, Moved};

/// Examples that run at once.
const BATCH: usize = 32;

/// How far the outputs of the layers (convolutions, matrix products, attention, recurrences) and of
/// the graph have moved from a graph to its quantized form.
///
/// Values are compared that have the same name in both; layers that quantization has replaced
/// entirely are left out. Examples may have more fields (targets) after the graph's inputs; they
/// stream by, 32 at a time.
///
/// # Errors
/// If the graphs differ in their inputs; [`ErrorKind::Data`] if there are no examples, or a value is
/// NaN or infinite, at its name.
pub fn compare(
    float: &Graph,
    quantized: &Graph,
    data: &dyn Dataset,
    backend: &dyn Backend,
) -> Result<LayerErrors> {
    let pairs = shared(float, quantized)?;
    let moved = run(float, quantized, &pairs, &indices(data)?, data, backend)?;
    let layers = pairs.into_iter().zip(moved);
    Ok(LayerErrors {
        layers: layers.map(|(pair, m)| m.finish(pair.0)).collect(),
    })
}

/// A name, and the values of it in two graphs.
pub(super) type Pair = (String, ValueId, ValueId);

/// The outputs of two graphs.
pub(super) fn outputs(float: &Graph, quantized: &Graph) -> Result<Vec<Pair>> {
    let pair = |(name, a): &(String, ValueId)| Ok((name.clone(), *a, quantized.output(name)?));
    let pairs = float.named_outputs().iter().map(pair);
    let mut pairs = pairs.collect::<Result<Vec<_>>>()?;
    pairs.retain(|p| float.type_of(p.1).dtype.is_float());
    Ok(pairs)
}

/// The outputs of layers that two graphs have in common, then their own outputs.
fn shared(float: &Graph, quantized: &Graph) -> Result<Vec<Pair>> {
    let mut pairs = Vec::new();
    for (_, node) in float.nodes() {
        let Some(&out) = node.outputs().first() else {
            continue;
        };
        let is_layer = matches!(
            node.op(),
            Op::Conv(_)
                | Op::ConvTranspose(_)
                | Op::MatMul(_)
                | Op::Attention(_)
                | Op::Lstm(_)
                | Op::Gru(_)
        );
        let name = float.value(out).name();
        let Ok(now) = quantized.find(name) else {
            continue;
        };
        let (a, b) = (float.type_of(out), quantized.type_of(now));
        if is_layer && a.dtype == DType::F32 && a == b {
            pairs.push((name.to_string(), out, now));
        }
    }
    let named = outputs(float, quantized)?;
    let is_new = |p: &Pair| !pairs.iter().any(|q| q.1 == p.1);
    let more: Vec<_> = named.into_iter().filter(is_new).collect();
    pairs.extend(more);
    Ok(pairs)
}

/// All examples of a data set.
pub(super) fn indices(data: &dyn Dataset) -> Result<Vec<usize>> {
    match data.len() {
        0 => Err(Error::new(ErrorKind::Data, "no examples to compare on")),
        n => Ok((0..n).collect()),
    }
}

/// A graph that gives some of its values, and the sessions in which it runs.
pub(super) struct Watched<'a> {
    graph: Graph,
    backend: &'a dyn Backend,
    sessions: BTreeMap<Bindings, Box<dyn Session>>,
}

impl<'a> Watched<'a> {
    /// A graph's values of these names.
    pub(super) fn new(
        graph: &Graph,
        values: &[(String, ValueId)],
        backend: &'a dyn Backend,
    ) -> Result<Watched<'a>> {
        Ok(Watched {
            graph: graph.extract(values, false)?,
            backend,
            sessions: BTreeMap::new(),
        })
    }

    /// The values for a batch, whose fields may be more than the inputs.
    pub(super) fn run(&mut self, fields: &[Tensor]) -> Result<Vec<Tensor>> {
        let fields = fields.get(..self.graph.inputs().len()).unwrap_or(fields);
        let bindings = bindings_of(&self.graph, fields)?;
        if !self.sessions.contains_key(&bindings) {
            let mut spec = CompileSpec::new();
            spec.bindings.clone_from(&bindings);
            let session = self.backend.compile(&self.graph, &spec)?.session()?;
            self.sessions.insert(bindings.clone(), session);
        }
        let session = self.sessions.get_mut(&bindings).expect("just there");
        session.run(fields)
    }
}

/// How far values of two graphs are apart.
pub(super) fn run(
    float: &Graph,
    quantized: &Graph,
    pairs: &[Pair],
    indices: &[usize],
    data: &dyn Dataset,
    backend: &dyn Backend,
) -> Result<Vec<Moved>> {
    let first: Vec<_> = pairs.iter().map(|p| (p.0.clone(), p.1)).collect();
    let second: Vec<_> = pairs.iter().map(|p| (p.0.clone(), p.2)).collect();
    let mut float = Watched::new(float, &first, backend)?;
    let mut quantized = Watched::new(quantized, &second, backend)?;
    let mut moved = vec![Moved::default(); pairs.len()];
    for batch in indices.chunks(BATCH) {
        let fields = data.batch(batch)?;
        let (exact, now) = (float.run(&fields)?, quantized.run(&fields)?);
        for (((name, ..), moved), (exact, now)) in
            pairs.iter().zip(&mut moved).zip(exact.iter().zip(&now))
        {
            moved.add(exact, now).at(|| name.clone())?;
        }
    }
    Ok(moved)
}
