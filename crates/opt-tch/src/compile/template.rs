//! Finds in a graph what a gradient rule wrote there.
//!
//! The nodes of a rule are had from the rule itself, on a graph with nothing but the op, so that
//! what is looked for is always what is written. Steps are matched exactly; the one unknown is
//! the gradient that arrives.

use std::collections::HashMap;

use opt_core::autodiff::grad;
use opt_core::{GraphBuilder, Op, Result, Tensor as Host, TensorType};

use super::ir::{Ir, Kind, Step, Value};

/// The nodes that belong to the gradient of an op.
#[derive(Debug)]
pub(super) struct Template {
    graph: Ir,
    inputs: Vec<Value>,
    outputs: Vec<Value>,
    /// The gradient that arrives.
    arriving: Value,
    /// The gradient by each input.
    leaving: Vec<Option<Value>>,
}

/// Where a template was found.
#[derive(Debug)]
pub(super) struct Found {
    /// The gradient that arrives.
    pub(super) arriving: Value,
    /// The gradient by each input; `None` where the graph does not compute it.
    pub(super) leaving: Vec<Option<Value>>,
}

/// Steps and constants of a graph by content.
pub(super) struct Index<'a> {
    ir: &'a Ir,
    by_inputs: HashMap<(&'a str, &'a [Value]), Vec<usize>>,
    constants: HashMap<(Vec<u8>, String), Value>,
    consumers: HashMap<Value, Vec<(usize, usize)>>,
    producers: HashMap<Value, usize>,
}

fn content(constant: &Host, ty: &TensorType) -> Option<(Vec<u8>, String)> {
    let bytes = constant.contiguous().bytes().ok()?.to_vec();
    Some((bytes, ty.to_string()))
}

/// Constants up to this many bytes are found by content.
pub(super) const COMPARED: usize = 1 << 16;

impl<'a> Index<'a> {
    pub(super) fn new(ir: &'a Ir) -> Index<'a> {
        let mut by_inputs: HashMap<(&str, &[Value]), Vec<usize>> = HashMap::new();
        for (i, step) in ir.steps.iter().enumerate() {
            if let Kind::Op(op) = &step.kind {
                by_inputs
                    .entry((op.name(), &step.inputs))
                    .or_default()
                    .push(i);
            }
        }
        let small = ir
            .constants
            .iter()
            .filter(|(_, c)| c.size_in_bytes() <= COMPARED);
        let constants = small
            .filter_map(|(&v, c)| Some((content(c, &ir.types[v])?, v)))
            .collect();
        Index {
            ir,
            by_inputs,
            constants,
            consumers: ir.consumers(),
            producers: ir.producers(),
        }
    }

    /// The step that applies an op to values.
    fn step(&self, op: &Op, inputs: &[Value]) -> Option<&'a Step> {
        let alike = self.by_inputs.get(&(op.name(), inputs))?;
        let found = alike.iter().map(|&i| &self.ir.steps[i]);
        found.into_iter().find(|s| s.op() == Some(op))
    }

    pub(super) fn producer(&self, v: Value) -> Option<&'a Step> {
        self.producers.get(&v).map(|&i| &self.ir.steps[i])
    }

    pub(super) fn consumers(&self, v: Value) -> &[(usize, usize)] {
        self.consumers.get(&v).map_or(&[], Vec::as_slice)
    }
}

impl Template {
    /// What the gradient of an op's first output looks like; `None` where the op has none.
    pub(super) fn of(op: &Op, types: &[TensorType]) -> Result<Option<Template>> {
        let mut b = GraphBuilder::new("template");
        let mut inputs = Vec::new();
        for (i, ty) in types.iter().enumerate() {
            inputs.push(b.input(&format!("x{i}"), ty.clone())?);
        }
        let outputs = b.node(op.clone(), &inputs)?;
        let ty = b.type_of(outputs[0]).clone();
        if !ty.dtype.is_float() {
            return Ok(None);
        }
        let weights = b.input("weights", ty)?;
        let weighted = b.mul(outputs[0], weights)?;
        let loss = b.sum_all(weighted)?;
        let floats = |i: &usize| types[*i].dtype.is_float();
        let by: Vec<usize> = (0..types.len()).filter(floats).collect();
        let mut wrt: Vec<_> = by.iter().map(|&i| inputs[i]).collect();
        wrt.push(outputs[0]);
        let Ok(gradients) = grad(&mut b, loss, &wrt) else {
            return Ok(None);
        };
        let arriving = gradients.of(outputs[0])?;
        let mut leaving = vec![None; types.len()];
        for &i in &by {
            leaving[i] = Some(gradients.of(inputs[i])?.index());
        }
        leaving.push(Some(arriving.index()));
        let mut graph = Ir::new(b.graph())?;
        super::fold::merge_into(&mut graph, &mut leaving);
        let Some(arriving) = leaving.pop().flatten() else {
            return Ok(None);
        };
        Ok(Some(Template {
            graph,
            inputs: inputs.iter().map(|v| v.index()).collect(),
            outputs: outputs.iter().map(|v| v.index()).collect(),
            arriving,
            leaving,
        }))
    }

    /// The places where the gradient of a step with this op is computed.
    pub(super) fn find(&self, index: &Index<'_>, forward: &Step) -> Option<Found> {
        let mut bound: Vec<Option<Value>> = vec![None; self.graph.types.len()];
        let pairs = self.inputs.iter().zip(&forward.inputs);
        for (&t, &v) in pairs.chain(self.outputs.iter().zip(&forward.outputs)) {
            bound[t] = Some(v);
        }
        for (&t, constant) in &self.graph.constants {
            let key = content(constant, &self.graph.types[t])?;
            bound[t] = index.constants.get(&key).copied();
        }
        self.extend(index, &mut bound);
        // The arriving gradient meets something known in some step.
        for step in &self.graph.steps {
            let known = |&t: &Value| bound[t].is_some() && !self.graph.constants.contains_key(&t);
            if step.outputs.iter().any(|&t| bound[t].is_some()) || !self.depends(step) {
                continue;
            }
            let Some(slot) = step.inputs.iter().position(known) else {
                continue;
            };
            let Some(anchor) = bound[step.inputs[slot]] else {
                continue;
            };
            for &(reader, at) in index.consumers(anchor) {
                let candidate = &index.ir.steps[reader];
                if at != slot || candidate.kind != step.kind {
                    continue;
                }
                let mut trial = bound.clone();
                let same = step
                    .inputs
                    .iter()
                    .zip(&candidate.inputs)
                    .all(|(&t, &v)| self.unify(index, t, v, &mut trial));
                let Some(arriving) = trial[self.arriving].filter(|_| same) else {
                    continue;
                };
                self.extend(index, &mut trial);
                let leaving: Vec<Option<Value>> = self
                    .leaving
                    .iter()
                    .map(|t| t.and_then(|t| trial[t]).filter(|&v| v != arriving))
                    .collect();
                if leaving.iter().any(Option::is_some) {
                    return Some(Found { arriving, leaving });
                }
            }
        }
        None
    }

    /// Whether the arriving gradient goes into a step.
    fn depends(&self, step: &Step) -> bool {
        let mut wanted: Vec<Value> = step.inputs.clone();
        let producers = self.graph.producers();
        while let Some(t) = wanted.pop() {
            if t == self.arriving {
                return true;
            }
            if let Some(&p) = producers.get(&t) {
                wanted.extend(&self.graph.steps[p].inputs);
            }
        }
        false
    }

    /// Binds what follows from what is bound.
    fn extend(&self, index: &Index<'_>, bound: &mut [Option<Value>]) {
        for step in &self.graph.steps {
            let inputs: Option<Vec<Value>> = step.inputs.iter().map(|&t| bound[t]).collect();
            let (Some(inputs), Some(op)) = (inputs, step.op()) else {
                continue;
            };
            // The arriving gradient is whatever it is.
            if step.outputs.contains(&self.arriving) {
                continue;
            }
            if let Some(found) = index.step(op, &inputs) {
                for (&t, &v) in step.outputs.iter().zip(&found.outputs) {
                    bound[t].get_or_insert(v);
                }
            }
        }
    }

    /// Whether a value of the graph can be one of the template.
    fn unify(&self, index: &Index<'_>, t: Value, v: Value, bound: &mut [Option<Value>]) -> bool {
        let mut todo = vec![(t, v)];
        while let Some((t, v)) = todo.pop() {
            if let Some(known) = bound[t] {
                if known != v {
                    return false;
                }
                continue;
            }
            if self.graph.types[t] != index.ir.types[v] || self.graph.constants.contains_key(&t) {
                return false;
            }
            bound[t] = Some(v);
            if t == self.arriving {
                continue;
            }
            let wanted = self.graph.steps.iter().find(|s| s.outputs.contains(&t));
            let (Some(wanted), Some(found)) = (wanted, index.producer(v)) else {
                return false;
            };
            let place = |s: &Step, v: Value| s.outputs.iter().position(|&o| o == v);
            if wanted.kind != found.kind || place(wanted, t) != place(found, v) {
                return false;
            }
            todo.extend(
                wanted
                    .inputs
                    .iter()
                    .copied()
                    .zip(found.inputs.iter().copied()),
            );
        }
        true
    }
}
