//! How long each layer takes, timed as a graph of its own.

use std::collections::{HashMap, HashSet};

use opt_core::backend::bindings_of;
use opt_core::{
    Backend, Error, Graph, GraphBuilder, NodeId, Result, ResultExt, Tensor, TensorType, ValueId,
    ValueKind,
};

use crate::layers::{Layer, Layers, is_dequantize};
use crate::size::live_values;
use crate::{Candidate, LatencyBench};

/// How long a layer takes by itself.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct LayerTime {
    /// The layer's name, as in [`LayerCost`](crate::LayerCost).
    pub name: String,
    /// Its op, likewise.
    pub op: String,
    /// The median of its runs, in microseconds.
    pub median_us: f64,
    /// The time within which 90 % of its runs stayed, in microseconds.
    pub p90_us: f64,
    /// The number of runs.
    pub runs: u64,
}

/// Times each layer of models by itself; one list a model, in the order of
/// [`ModelCost::layers`](crate::ModelCost::layers).
///
/// Each layer is cut out as a graph with what the whole model computes for it as inputs, compiled
/// and timed. Layers of one name are timed together and take turns between the models, as
/// [`LatencyBench`] has it, with its numbers of runs (and its time limit) for each name: in all,
/// every layer runs `warmup + runs` times. Layers that do nothing in a run, because they read
/// constants alone, are left out.
///
/// What this does not see: kernels that cover several layers, and the cost of moving results
/// between layers through memory, since a layer timed by itself finds its weights in the
/// processor's cache. So the times do not add up to the model's; they say where it goes. The model
/// as a whole is timed by [`LatencyBench::measure`].
///
/// ```
/// use opt_core::nn::{Linear, ModelBuilder};
/// use opt_core::Tensor;
/// use opt_eval::{Candidate, LatencyBench, layer_times};
/// use opt_ndarray::NdarrayBackend;
///
/// let mut b = ModelBuilder::new("mlp", 0);
/// let x = b.batch("x", [64])?;
/// let x = b.layer("wide", Linear::new(512), x)?;
/// let y = b.layer("narrow", Linear::new(10), x)?;
/// b.output("y", y)?;
/// let graph = b.finish()?;
/// let inputs = [Tensor::new([1, 64], [0.5f32; 64])?];
/// let candidate = Candidate { name: "mlp", graph: &graph, inputs: &inputs };
/// let bench = LatencyBench::new().warmup(2).runs(20);
/// let times = layer_times(&[candidate], &NdarrayBackend::new().threads(1), &bench)?;
/// let names: Vec<&str> = times[0].iter().map(|t| t.name.as_str()).collect();
/// assert_eq!(names, ["wide", "narrow"]);
/// # Ok::<(), opt_core::Error>(())
/// ```
///
/// # Errors
/// Those of compiling and running, with the model's name and the layer's in the path.
pub fn layer_times(
    models: &[Candidate<'_>],
    backend: &dyn Backend,
    bench: &LatencyBench,
) -> Result<Vec<Vec<LayerTime>>> {
    let mut cuts = Vec::with_capacity(models.len());
    for model in models {
        cuts.push(cut(model, backend).at(|| model.name.to_string())?);
    }
    let mut out: Vec<Vec<Option<LayerTime>>> = cuts.iter().map(|c| vec![None; c.len()]).collect();
    let mut by_name: HashMap<&str, Vec<(usize, usize)>> = HashMap::new();
    for (m, cuts) in cuts.iter().enumerate() {
        for (l, cut) in cuts.iter().enumerate() {
            by_name.entry(&cut.name).or_default().push((m, l));
        }
    }
    for cut in cuts.iter().flatten() {
        let Some(places) = by_name.remove(cut.name.as_str()) else {
            continue;
        };
        let names: Vec<String> = places
            .iter()
            .map(|&(m, _)| format!("{}: {}", models[m].name, cut.name))
            .collect();
        let candidates: Vec<Candidate<'_>> = places
            .iter()
            .zip(&names)
            .map(|(&(m, l), name)| Candidate {
                name,
                graph: &cuts[m][l].graph,
                inputs: &cuts[m][l].inputs,
            })
            .collect();
        let measured = bench.measure(backend, &candidates)?;
        for (&(m, l), latency) in places.iter().zip(measured) {
            out[m][l] = Some(LayerTime {
                name: cut.name.clone(),
                op: cuts[m][l].op.clone(),
                median_us: latency.median_us(),
                p90_us: latency.p90_us(),
                runs: latency.runs(),
            });
        }
    }
    Ok(out
        .into_iter()
        .map(|times| times.into_iter().flatten().collect())
        .collect())
}

/// A layer as a graph of its own, and what to run it on.
#[derive(Debug)]
struct Cut {
    name: String,
    op: String,
    graph: Graph,
    inputs: Vec<Tensor>,
}

fn cut(model: &Candidate<'_>, backend: &dyn Backend) -> Result<Vec<Cut>> {
    let graph = model.graph.bind(&bindings_of(model.graph, model.inputs)?)?;
    let layers = Layers::of(&graph, &live_values(&graph))?;
    let parts: Vec<Part<'_>> = layers
        .layers
        .iter()
        .filter_map(|layer| Part::of(&graph, &layers, layer))
        .collect();
    let known = record(&graph, &parts, model.inputs, backend)?;
    let mut cuts = Vec::with_capacity(parts.len());
    for part in parts {
        let (name, op) = (part.layer.name.clone(), part.layer.op.clone());
        let (graph, inputs) = part.build(&graph, &known).at(|| name.clone())?;
        cuts.push(Cut {
            name,
            op,
            graph,
            inputs,
        });
    }
    Ok(cuts)
}

/// What the model computes at the borders between the layers.
fn record(
    graph: &Graph,
    parts: &[Part<'_>],
    inputs: &[Tensor],
    backend: &dyn Backend,
) -> Result<HashMap<ValueId, Tensor>> {
    let given = graph.inputs().iter().copied().zip(inputs.iter().cloned());
    let mut known: HashMap<ValueId, Tensor> = given.collect();
    let mut borders: Vec<ValueId> = parts.iter().flat_map(|p| p.inputs.clone()).collect();
    borders.retain(|v| !known.contains_key(v));
    borders.sort_unstable();
    borders.dedup();
    if borders.is_empty() {
        return Ok(known);
    }
    let outputs: Vec<(String, ValueId)> = borders
        .iter()
        .map(|&v| (graph.value(v).name().to_string(), v))
        .collect();
    let found = backend.run_once(&graph.extract(&outputs, false)?, inputs)?;
    known.extend(borders.into_iter().zip(found));
    Ok(known)
}

/// The nodes of a layer's graph and its border.
#[derive(Debug)]
struct Part<'a> {
    layer: &'a Layer,
    /// In the graph's order: the layer's own, dequantizations of what it reads, and what computes
    /// its weights.
    nodes: Vec<NodeId>,
    inputs: Vec<ValueId>,
    outputs: Vec<ValueId>,
}

impl<'a> Part<'a> {
    /// `None` if the layer does nothing in a run.
    fn of(graph: &Graph, layers: &Layers, layer: &'a Layer) -> Option<Part<'a>> {
        let fixed = |v: ValueId| layers.fixed[v.index()];
        if layer
            .nodes
            .iter()
            .all(|&n| graph.node(n).outputs().iter().all(|&o| fixed(o)))
        {
            return None;
        }
        let mut wanted = layer.nodes.clone();
        let mut seen: HashSet<NodeId> = wanted.iter().copied().collect();
        let mut inputs = Vec::new();
        // Grows while it is walked.
        let mut i = 0;
        while i < wanted.len() {
            for &v in graph.node(wanted[i]).inputs() {
                match graph.producer(v) {
                    Some((id, _)) if seen.contains(&id) => {}
                    // Integer kernels are found by the dequantization before them.
                    Some((id, node)) if fixed(v) || is_dequantize(node.op()) => {
                        seen.insert(id);
                        wanted.push(id);
                    }
                    _ if graph.value(v).tensor().is_some() || inputs.contains(&v) => {}
                    _ => inputs.push(v),
                }
            }
            i += 1;
        }
        let nodes: Vec<NodeId> = graph
            .nodes()
            .map(|(id, _)| id)
            .filter(|id| seen.contains(id))
            .collect();
        let consumers = graph.consumers();
        let leaves = |v: &ValueId| {
            let read = consumers.get(v).into_iter().flatten();
            graph.outputs().any(|o| o == *v) || read.clone().any(|(n, _)| !seen.contains(n))
        };
        let outputs = layer
            .nodes
            .iter()
            .flat_map(|&n| graph.node(n).outputs().iter().copied())
            .filter(|v| !fixed(*v) && leaves(v))
            .collect();
        Some(Part {
            layer,
            nodes,
            inputs,
            outputs,
        })
    }

    fn build(
        &self,
        graph: &Graph,
        known: &HashMap<ValueId, Tensor>,
    ) -> Result<(Graph, Vec<Tensor>)> {
        let mut b = GraphBuilder::new(self.layer.name.clone());
        let mut map: HashMap<ValueId, ValueId> = HashMap::new();
        let mut inputs = Vec::with_capacity(self.inputs.len());
        for &v in &self.inputs {
            let name = graph.value(v).name();
            let tensor = known
                .get(&v)
                .ok_or_else(|| Error::invalid(format!("`{name}` was not computed")))?;
            let ty = TensorType::new(tensor.dtype(), tensor.shape());
            map.insert(v, b.input(name, ty)?);
            inputs.push(tensor.clone());
        }
        for &id in &self.nodes {
            let node = graph.node(id);
            for &v in node.inputs() {
                if let (Some(tensor), false) = (graph.value(v).tensor(), map.contains_key(&v)) {
                    let name = graph.value(v).name();
                    let new = match graph.value(v).kind() {
                        ValueKind::Variable(_) => b.variable(name, tensor.clone())?,
                        _ => b.named_constant(name, tensor.clone()),
                    };
                    map.insert(v, new);
                }
            }
            let from: Vec<ValueId> = node.inputs().iter().map(|v| map[v]).collect();
            let outputs = b.named_node(node.name(), node.op().clone(), &from)?;
            map.extend(node.outputs().iter().copied().zip(outputs));
        }
        for &v in &self.outputs {
            b.output(graph.value(v).name(), map[&v])?;
        }
        Ok((b.finish()?, inputs))
    }
}
