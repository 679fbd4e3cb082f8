//! How the codes of weights are found: the methods, layer by layer.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use opt_core::data::Dataset;
use opt_core::ops::Op;
use opt_core::pass::Needs;
use opt_core::{Backend, Context, Graph, NodeId, Report, Result, ResultExt, ValueId};

use crate::awq::Awq;
use crate::fold::divide_inputs;
use crate::gptq::{Gptq, Prepared};
use crate::gram::{Gram, Samples, gather};
use crate::grid::{Codes, Scales, Weight};
use crate::hqq::Hqq;
use crate::task::Task;

/// Bytes of Gram matrices that are held at once, unless those of a single input take more.
const MEMORY: usize = 1 << 30;

/// How [`QuantizeWeights`](crate::QuantizeWeights) finds the codes and scales of weights.
///
/// | method | data | what it makes small |
/// | --- | --- | --- |
/// | [`Nearest`] | none | the error of each weight; or, searched, of each group |
/// | [`Hqq`] | none | a norm below 1 of the errors of a group, by its scale and zero point |
/// | [`Awq`] | calibration | the error of outputs, by scales of input channels and clipped ranges |
/// | [`Gptq`] | calibration | the error of outputs, by how each weight is rounded |
///
/// Methods treat matrix products and convolutions with scales for channels or groups; embeddings
/// are rounded to nearest.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub enum Method {
    /// Rounding to nearest.
    Nearest(Nearest),
    /// GPTQ.
    Gptq(Gptq),
    /// AWQ.
    Awq(Awq),
    /// HQQ.
    Hqq(Hqq),
}

impl Default for Method {
    fn default() -> Method {
        Method::Nearest(Nearest::new())
    }
}

macro_rules! from {
    ($($name:ident),*) => {$(
        impl From<$name> for Method {
            fn from(method: $name) -> Method {
                Method::$name(method)
            }
        }
    )*};
}
from!(Nearest, Gptq, Awq, Hqq);

/// Rounding to nearest.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Nearest {
    search: bool,
}

impl Nearest {
    /// With ranges that cover all entries of a group.
    pub fn new() -> Nearest {
        Nearest::default()
    }

    /// With the range of each group that makes the squared error of its entries least, among shares
    /// of the whole one from 1 to 0.2.
    #[must_use]
    pub fn search(mut self) -> Nearest {
        self.search = true;
        self
    }
}

/// What a method made of a graph: the codes of each task, whose weights may have been scaled.
#[derive(Debug)]
pub(crate) struct Solved {
    pub(crate) graph: Graph,
    pub(crate) codes: Vec<Codes>,
}

/// Where examples come from and what they run on.
#[derive(Clone, Copy)]
struct Source<'a> {
    data: &'a dyn Dataset,
    backend: &'a dyn Backend,
}

impl<'a> Source<'a> {
    fn of(cx: &Context<'a>) -> Result<Source<'a>> {
        Ok(Source {
            data: cx.calibration().or_else(|e| cx.training().map_err(|_| e))?,
            backend: cx.backend()?,
        })
    }
}

impl Method {
    /// Whether this is the rounding to nearest that needs no method.
    pub(crate) fn is_plain(&self) -> bool {
        *self == Method::default()
    }

    pub(crate) fn needs(&self) -> Needs {
        match self {
            Method::Nearest(_) | Method::Hqq(_) => Needs::NOTHING,
            Method::Gptq(_) | Method::Awq(_) => Needs::CALIBRATION,
        }
    }

    pub(crate) fn config(&self) -> String {
        match self {
            Method::Nearest(Nearest { search }) => {
                format!("{{ name = \"nearest\", search = {search} }}")
            }
            Method::Gptq(method) => method.config(),
            Method::Awq(method) => method.config(),
            Method::Hqq(method) => method.config(),
        }
    }

    /// Finds the codes of all tasks, in the graph's order.
    pub(crate) fn solve(
        &self,
        graph: Graph,
        tasks: &mut [Task],
        cx: &Context<'_>,
        report: &mut Report,
    ) -> Result<Solved> {
        let alone = |solve: &dyn Fn(&Weight) -> Result<Codes>| {
            let each = tasks.iter().map(|t| solve(&t.weight).at(|| t.name.clone()));
            each.collect::<Result<Vec<_>>>()
        };
        let codes = match self {
            Method::Nearest(Nearest { search }) => alone(&|w| {
                Ok(w.nearest(|_, values| match search {
                    true => w.grid.search(values, &vec![1.0; values.len()]),
                    false => w.grid.fit(values),
                }))
            })?,
            Method::Hqq(method) => alone(&|w| method.solve(w))?,
            Method::Gptq(method) => gptq(method, &graph, tasks, Source::of(cx)?, report)?,
            Method::Awq(method) => return awq(method, graph, tasks, Source::of(cx)?, report),
        };
        Ok(Solved { graph, codes })
    }
}

/// Ranges of tasks whose Gram matrices are gathered together; with `apart`, one for each input.
fn chunks(graph: &Graph, tasks: &[Task], apart: bool) -> Vec<std::ops::Range<usize>> {
    let mut out = Vec::new();
    let (mut start, mut bytes) = (0, 0);
    let mut inputs = BTreeSet::new();
    for (i, task) in tasks.iter().enumerate() {
        let input = task.input(graph);
        if inputs.contains(&input) {
            continue;
        }
        let groups = groups_of(graph, task.nodes[0]);
        let more = groups * task.weight.columns.pow(2) * size_of::<f64>();
        if !inputs.is_empty() && (apart || bytes + more > MEMORY) {
            out.push(start..i);
            (start, bytes) = (i, 0);
            inputs.clear();
        }
        bytes += more;
        inputs.insert(input);
    }
    out.push(start..tasks.len());
    out
}

/// Groups of a convolution.
fn groups_of(graph: &Graph, node: NodeId) -> usize {
    match graph.node(node).op() {
        Op::Conv(op) => op.groups,
        _ => 1,
    }
}

/// The Gram matrix of each task: the sum over the layers that read its weight.
fn grams(
    graph: &Graph,
    tasks: &[Task],
    source: Source<'_>,
    samples: &Samples,
) -> Result<Vec<Arc<Gram>>> {
    let nodes: Vec<NodeId> = tasks.iter().flat_map(|t| t.nodes.iter().copied()).collect();
    let found = gather(graph, &nodes, source.data, source.backend, samples)?;
    let mut found = found.into_iter();
    let mut out = Vec::new();
    for task in tasks {
        let mut parts: Vec<Arc<Gram>> = found.by_ref().take(task.nodes.len()).collect();
        let mut whole = parts.remove(0);
        for part in parts {
            Arc::make_mut(&mut whole)
                .add(&part)
                .at(|| task.name.clone())?;
        }
        out.push(whole);
    }
    Ok(out)
}

/// The rows of each group of a weight.
fn parts(weight: &Weight, groups: usize) -> Vec<Weight> {
    let rows = weight.rows().count() / groups.max(1);
    let part = |g: usize| weight.part(g * rows..(g + 1) * rows);
    match groups {
        1 => vec![weight.clone()],
        _ => (0..groups).map(part).collect(),
    }
}

/// Codes of all groups, one after the other.
fn joined(parts: Vec<Codes>) -> Codes {
    let mut parts = parts.into_iter();
    let mut out = parts.next().unwrap_or(Codes {
        codes: Vec::new(),
        steps: Vec::new(),
    });
    for part in parts {
        out.codes.extend(part.codes);
        out.steps.extend(part.steps);
    }
    out
}

/// Notes the squared error of a layer's output relative to its size, and that of rounding to
/// nearest. `float` is the weight group by group, `delta` how far codes are from it.
fn note_errors(
    report: &mut Report,
    task: &Task,
    gram: &Gram,
    float: &[Weight],
    delta: impl Fn(usize, &Weight) -> Vec<f64>,
) {
    let (mut error, mut nearest, mut size) = (0.0, 0.0, 0.0);
    for (g, part) in float.iter().enumerate() {
        let plain = part.nearest(|_, values| part.grid.fit(values));
        let sum = |delta: &[f64]| gram.errors(g, delta).iter().sum::<f64>();
        error += sum(&delta(g, part));
        nearest += sum(&part.delta(&plain));
        size += sum(&part.data);
    }
    if size > 0.0 {
        for (what, value) in [("", error), (" to nearest", nearest)] {
            let name = format!("output error{what} of {}", task.name);
            report.figures.insert(name, value / size);
        }
    }
}

fn gptq(
    method: &Gptq,
    graph: &Graph,
    tasks: &[Task],
    source: Source<'_>,
    report: &mut Report,
) -> Result<Vec<Codes>> {
    let mut working = graph.clone();
    let mut masked = false;
    let mut out = Vec::new();
    for chunk in chunks(graph, tasks, method.sequential) {
        let tasks = &tasks[chunk];
        let grams = grams(&working, tasks, source, &method.samples)?;
        let mut last: Option<(Arc<Gram>, Vec<Prepared>)> = None;
        for (task, gram) in tasks.iter().zip(grams) {
            masked |= gram.masked();
            if !last.as_ref().is_some_and(|(g, _)| Arc::ptr_eq(g, &gram)) {
                let prepared = (0..gram.groups()).map(|g| method.prepare(&gram, g));
                let prepared = prepared
                    .collect::<Result<Vec<_>>>()
                    .at(|| task.name.clone())?;
                last = Some((gram.clone(), prepared));
            }
            let (_, prepared) = last.as_ref().expect("made above");
            let float = parts(&task.weight, gram.groups());
            let found = float.iter().zip(prepared).enumerate();
            let found: Vec<Codes> = found
                .map(|(g, (part, p))| method.solve(part, p, &gram, g))
                .collect();
            note_errors(report, task, &gram, &float, |g, part| part.delta(&found[g]));
            if gram.rows() < gram.size() as u64 {
                report.notes.push(format!(
                    "{}: {} rows of calibration for {} features; damping decides about the rest",
                    task.name,
                    gram.rows(),
                    gram.size()
                ));
            }
            let codes = joined(found);
            if method.sequential {
                let shape = graph.value(task.value).tensor().expect("stored").shape();
                let content = task.content(&codes, shape)?;
                working.set_content(task.value, content)?;
            }
            out.push(codes);
        }
    }
    method.samples.check(masked)?;
    Ok(out)
}

fn awq(
    method: &Awq,
    graph: Graph,
    tasks: &mut [Task],
    source: Source<'_>,
    report: &mut Report,
) -> Result<Solved> {
    method.check()?;
    let mut masked = false;
    let mut out = Vec::new();
    let mut divided: Vec<(Vec<NodeId>, Vec<f64>)> = Vec::new();
    let mut factors: Vec<Option<Vec<f64>>> = vec![None; tasks.len()];
    for chunk in chunks(&graph, tasks, false) {
        let start = chunk.start;
        let tasks = &tasks[chunk];
        let grams = grams(&graph, tasks, source, &method.samples)?;
        // Layers of one input are scaled together.
        let mut seen: Vec<usize> = Vec::new();
        for i in 0..tasks.len() {
            if seen.contains(&i) || !scalable(&graph, &tasks[i]) {
                continue;
            }
            let input = tasks[i].input(&graph);
            let same: Vec<usize> = (i..tasks.len())
                .filter(|&j| scalable(&graph, &tasks[j]) && tasks[j].input(&graph) == input)
                .collect();
            seen.extend(&same);
            let weights: Vec<&Weight> = same.iter().map(|&j| &tasks[j].weight).collect();
            let Some((alpha, scales)) = method.scales(&weights, &grams[i]) else {
                continue;
            };
            let name = graph.value(input).name();
            report.figures.insert(format!("alpha of {name}"), alpha);
            for &j in &same {
                factors[start + j] = Some(scales.clone());
            }
            let nodes = same.iter().map(|&j| tasks[j].nodes[0]).collect();
            divided.push((nodes, scales));
        }
        for (i, (task, gram)) in tasks.iter().zip(grams).enumerate() {
            masked |= gram.masked();
            let float = parts(&task.weight, gram.groups());
            let Some(scales) = &factors[start + i] else {
                let found: Vec<Codes> = float
                    .iter()
                    .enumerate()
                    .map(|(g, part)| method.solve(part, &gram, g))
                    .collect();
                note_errors(report, task, &gram, &float, |g, part| part.delta(&found[g]));
                out.push(joined(found));
                continue;
            };
            let scaled = task.weight.scaled(scales);
            let found = method.solve(&scaled, &gram.divided(scales), 0);
            note_errors(report, task, &gram, &float, |_, _| {
                let mut delta = scaled.delta(&found);
                for row in delta.chunks_mut(scales.len()) {
                    row.iter_mut().zip(scales).for_each(|(d, s)| *d /= s);
                }
                delta
            });
            out.push(found);
        }
    }
    method.samples.check(masked)?;
    for (task, scales) in tasks.iter_mut().zip(factors) {
        if let Some(scales) = scales {
            task.weight = task.weight.scaled(&scales);
        }
    }
    let exact = |t: &Task| (t.value, t.weight.grid.scales == Scales::F32);
    let taken: BTreeMap<ValueId, bool> = tasks.iter().map(exact).collect();
    let (mut graph, rows) = divide_inputs(graph, &divided, &taken, report)?;
    // A row times a number has the same codes, with steps times the number.
    for (value, factors) in rows {
        let found = tasks
            .iter_mut()
            .zip(&mut out)
            .find(|(t, _)| t.value == value);
        if let Some((task, codes)) = found {
            task.weight.scale_rows(codes, &factors);
        }
    }
    // The graph computes what it did, before it is quantized.
    for task in tasks.iter() {
        let shape = graph.value(task.value).tensor().expect("stored").shape();
        let content = task.float(shape)?;
        graph.set_content(task.value, content)?;
    }
    Ok(Solved { graph, codes: out })
}

/// Whether the columns of a weight may be scaled: those of a matrix product that alone reads it.
fn scalable(graph: &Graph, task: &Task) -> bool {
    let product = matches!(graph.node(task.nodes[0]).op(), Op::MatMul(_));
    let readers = graph.nodes().flat_map(|(_, n)| n.inputs());
    product
        && readers.filter(|&&v| v == task.value).count() == 1
        && graph.outputs().all(|v| v != task.value)
}
