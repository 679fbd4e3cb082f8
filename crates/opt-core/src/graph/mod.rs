//! The graph: single-assignment values, nodes in topological order, facts and a log.

mod builder;
mod dim;
mod display;
mod facts;
mod inline;
mod patch;
mod size;
mod verify;

use std::collections::{BTreeMap, HashMap, HashSet};
use std::fmt;

pub use builder::GraphBuilder;
pub use dim::{Bindings, Dim, Shape, Symbol, TensorType};
pub use facts::{Fact, FactKind, Facts};
pub use inline::Inlined;
pub use patch::GraphPatch;
pub use size::{SizeExpr, SizeFactor};

use crate::ops::Op;
use crate::{Error, ErrorKind, Result, ResultExt, Tensor};

/// Names a value of a graph. Ids stay valid while passes rewrite the graph; the id of a value
/// that a pass removed is not used again.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ValueId(pub(crate) u32);

/// Names a node of a graph; stable as [`ValueId`] is.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct NodeId(pub(crate) u32);

impl ValueId {
    /// A small number, unique in the graph, to index tables with.
    pub fn index(self) -> usize {
        self.0 as usize
    }
}

impl NodeId {
    /// A small number, unique in the graph, to index tables with.
    pub fn index(self) -> usize {
        self.0 as usize
    }
}

impl fmt::Debug for ValueId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "%{}", self.0)
    }
}

impl fmt::Debug for NodeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "n{}", self.0)
    }
}

/// Where a value comes from.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub enum ValueKind {
    /// Given at each run.
    Input,
    /// Fixed; passes may fold it.
    Constant(Tensor),
    /// State: a trained parameter, a running statistic, an optimizer moment. Never folded; an
    /// [`Assign`](crate::ops::Assign) node replaces its content at the end of a run.
    Variable(Tensor),
    /// Output `index` of a node.
    Result {
        /// The node.
        node: NodeId,
        /// Which of its outputs.
        index: usize,
    },
}

/// A value: its name, type and origin.
#[derive(Debug, Clone, PartialEq)]
pub struct Value {
    pub(crate) name: String,
    pub(crate) ty: TensorType,
    pub(crate) kind: ValueKind,
}

impl Value {
    /// Its name, unique in the graph.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its type.
    pub fn ty(&self) -> &TensorType {
        &self.ty
    }

    /// Where it comes from.
    pub fn kind(&self) -> &ValueKind {
        &self.kind
    }

    /// The content of a constant or variable.
    pub fn tensor(&self) -> Option<&Tensor> {
        match &self.kind {
            ValueKind::Constant(t) | ValueKind::Variable(t) => Some(t),
            _ => None,
        }
    }
}

/// An application of an op.
#[derive(Debug, Clone, PartialEq)]
pub struct Node {
    pub(crate) name: String,
    pub(crate) op: Op,
    pub(crate) inputs: Vec<ValueId>,
    pub(crate) outputs: Vec<ValueId>,
}

impl Node {
    /// Its name, unique among the nodes.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The op with its attributes.
    pub fn op(&self) -> &Op {
        &self.op
    }

    /// The values it reads.
    pub fn inputs(&self) -> &[ValueId] {
        &self.inputs
    }

    /// The values it defines.
    pub fn outputs(&self) -> &[ValueId] {
        &self.outputs
    }
}

/// An entry of a graph's log: a pass that was applied, with its parameters and report.
#[derive(Debug, Clone, PartialEq)]
pub struct Applied {
    /// The pass's name.
    pub pass: String,
    /// Its parameters as text (TOML where the pass came from a pipeline file).
    pub config: String,
    /// What it reported, in one line.
    pub summary: String,
}

/// A neural network, a training step, or any other computation on tensors.
///
/// Values are assigned once; nodes are kept in topological order. A graph is written only
/// through a [`GraphBuilder`] or a [`GraphPatch`]; it clones cheaply, since tensors are shared.
///
/// ```
/// use opt_core::{DType, GraphBuilder, Shape, Tensor, TensorType};
///
/// let mut b = GraphBuilder::new("linear");
/// let x = b.input("x", TensorType::new(DType::F32, Shape::new(["batch".into(), 3.into()] as [opt_core::Dim; 2])))?;
/// let w = b.variable("w", Tensor::zeros(DType::F32, [3, 2])?)?;
/// let y = b.matmul(x, w)?;
/// b.output("y", y)?;
/// let graph = b.finish()?;
/// assert_eq!(graph.type_of(y).to_string(), "f32[batch,2]");
/// # Ok::<(), opt_core::Error>(())
/// ```
#[derive(Clone, PartialEq, Default)]
pub struct Graph {
    pub(crate) name: String,
    pub(crate) values: Vec<Option<Value>>,
    pub(crate) nodes: Vec<Option<Node>>,
    /// Node ids in topological order.
    pub(crate) order: Vec<NodeId>,
    pub(crate) inputs: Vec<ValueId>,
    pub(crate) outputs: Vec<(String, ValueId)>,
    pub(crate) metadata: BTreeMap<String, String>,
    pub(crate) facts: Facts,
    pub(crate) log: Vec<Applied>,
}

impl Graph {
    /// Its name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The inputs, in the order in which a session takes them.
    pub fn inputs(&self) -> &[ValueId] {
        &self.inputs
    }

    /// The values of the outputs, in the order in which a session returns them.
    pub fn outputs(&self) -> impl ExactSizeIterator<Item = ValueId> + '_ {
        self.outputs.iter().map(|(_, v)| *v)
    }

    /// The outputs with their names.
    pub fn named_outputs(&self) -> &[(String, ValueId)] {
        &self.outputs
    }

    /// The value of the output of a name.
    ///
    /// # Errors
    /// If there is none; the message lists those that exist.
    pub fn output(&self, name: &str) -> Result<ValueId> {
        let found = self.outputs.iter().find(|(n, _)| n == name);
        found.map(|(_, v)| *v).ok_or_else(|| {
            let names: Vec<_> = self.outputs.iter().map(|(n, _)| n.as_str()).collect();
            Error::invalid(format!("no output `{name}`; the graph has {names:?}"))
        })
    }

    /// The value of an id.
    ///
    /// # Panics
    /// If the id is not of this graph, or the value was removed; [`Graph::get`] does not.
    pub fn value(&self, id: ValueId) -> &Value {
        self.get(id).unwrap_or_else(|| panic!("no value {id:?}"))
    }

    /// The value of an id, if it exists.
    pub fn get(&self, id: ValueId) -> Option<&Value> {
        self.values.get(id.index()).and_then(Option::as_ref)
    }

    /// The type of a value.
    ///
    /// # Panics
    /// As [`Graph::value`].
    pub fn type_of(&self, id: ValueId) -> &TensorType {
        &self.value(id).ty
    }

    /// The id of the value of a name.
    ///
    /// # Errors
    /// If there is none.
    pub fn find(&self, name: &str) -> Result<ValueId> {
        self.values()
            .find(|(_, v)| v.name == name)
            .map(|(id, _)| id)
            .ok_or_else(|| Error::invalid(format!("no value is named `{name}`")))
    }

    /// The node of an id.
    ///
    /// # Panics
    /// If the id is not of this graph, or the node was removed.
    pub fn node(&self, id: NodeId) -> &Node {
        self.nodes
            .get(id.index())
            .and_then(Option::as_ref)
            .unwrap_or_else(|| panic!("no node {id:?}"))
    }

    /// The nodes in topological order.
    pub fn nodes(&self) -> impl DoubleEndedIterator<Item = (NodeId, &Node)> + '_ {
        self.order.iter().map(|&id| (id, self.node(id)))
    }

    /// All values.
    pub fn values(&self) -> impl DoubleEndedIterator<Item = (ValueId, &Value)> + '_ {
        self.values
            .iter()
            .enumerate()
            .filter_map(|(i, v)| v.as_ref().map(|v| (ValueId(i as u32), v)))
    }

    /// The variables with their content.
    pub fn variables(&self) -> impl Iterator<Item = (ValueId, &Value, &Tensor)> + '_ {
        self.values().filter_map(|(id, v)| match &v.kind {
            ValueKind::Variable(t) => Some((id, v, t)),
            _ => None,
        })
    }

    /// One more than the largest value index in use: the size of a table over values.
    pub fn value_bound(&self) -> usize {
        self.values.len()
    }

    /// The node that defines a value, unless it is an input, constant or variable.
    pub fn producer(&self, id: ValueId) -> Option<(NodeId, &Node)> {
        match self.get(id)?.kind {
            ValueKind::Result { node, .. } => Some((node, self.nodes.get(node.index())?.as_ref()?)),
            _ => None,
        }
    }

    /// For each value, the nodes that read it (with the input's index), in topological order.
    pub fn consumers(&self) -> HashMap<ValueId, Vec<(NodeId, usize)>> {
        let mut map: HashMap<ValueId, Vec<(NodeId, usize)>> = HashMap::new();
        for (id, node) in self.nodes() {
            for (i, &input) in node.inputs.iter().enumerate() {
                map.entry(input).or_default().push((id, i));
            }
        }
        map
    }

    /// Replaces the content of a variable.
    ///
    /// # Errors
    /// If it is no variable, or the tensor has another type.
    pub fn set_variable(&mut self, id: ValueId, tensor: Tensor) -> Result<()> {
        match self.get(id).map(|v| (&v.kind, &v.name)) {
            Some((ValueKind::Variable(_), _)) | None => self.set_content(id, tensor),
            Some((_, name)) => Err(Error::invalid(format!("`{name}` is no variable"))),
        }
    }

    /// Replaces the content of a variable or constant.
    ///
    /// Constants can say what shapes others have: [`Graph::verify`] tells whether the types still
    /// hold.
    ///
    /// # Errors
    /// If it is neither, or the tensor has another type.
    pub fn set_content(&mut self, id: ValueId, tensor: Tensor) -> Result<()> {
        let value = self
            .values
            .get_mut(id.index())
            .and_then(Option::as_mut)
            .ok_or_else(|| Error::invalid(format!("no value {id:?}")))?;
        let (ValueKind::Variable(content) | ValueKind::Constant(content)) = &mut value.kind else {
            let name = &value.name;
            return Err(Error::invalid(format!(
                "`{name}` is neither a variable nor a constant"
            )));
        };
        let ty = TensorType::new(tensor.dtype(), tensor.shape());
        if ty != value.ty {
            return Err(Error::shape(format!(
                "`{}` is {}, the new content is {ty}",
                value.name, value.ty
            )));
        }
        *content = tensor;
        Ok(())
    }

    /// Free-form metadata, such as an ONNX model's properties.
    pub fn metadata(&self) -> &BTreeMap<String, String> {
        &self.metadata
    }

    /// Free-form metadata, to change.
    pub fn metadata_mut(&mut self) -> &mut BTreeMap<String, String> {
        &mut self.metadata
    }

    /// What passes have established about values: masks, patterns, grids.
    pub fn facts(&self) -> &Facts {
        &self.facts
    }

    /// Facts, to add to.
    pub fn facts_mut(&mut self) -> &mut Facts {
        &mut self.facts
    }

    /// The passes applied so far, oldest first.
    pub fn log(&self) -> &[Applied] {
        &self.log
    }

    /// Adds an entry to the log.
    pub fn push_log(&mut self, applied: Applied) {
        self.log.push(applied);
    }

    /// The graph with symbolic dimensions bound, in types and attributes; symbols that are not
    /// in `bindings` stay.
    ///
    /// # Errors
    /// If a size would be negative or types no longer agree.
    pub fn bind(&self, bindings: &Bindings) -> Result<Graph> {
        let mut graph = self.clone();
        for value in graph.values.iter_mut().flatten() {
            value.ty.shape = value.ty.shape.bind(bindings).at(|| value.name.clone())?;
        }
        for node in graph.nodes.iter_mut().flatten() {
            if let Some(op) = node.op.rules().bind(bindings).at(|| node.name.clone())? {
                node.op = op;
            }
        }
        graph.infer_types()?;
        Ok(graph)
    }

    /// Removes the inputs, which nothing may read.
    pub(crate) fn clear_inputs(&mut self) {
        for id in std::mem::take(&mut self.inputs) {
            self.values[id.index()] = None;
        }
    }

    /// Replaces the op of a node; types are inferred by the caller.
    pub(crate) fn set_op(&mut self, node: &Node, op: Op) {
        let found = self
            .nodes
            .iter_mut()
            .flatten()
            .find(|n| n.name == node.name);
        found.expect("the node is of this graph").op = op;
    }

    /// Replaces the content of a constant or variable and its type with it.
    pub(crate) fn replace_content(&mut self, id: ValueId, content: Tensor) {
        let value = self.values[id.index()].as_mut().expect("a value");
        value.ty = TensorType::new(content.dtype(), content.shape());
        match &mut value.kind {
            ValueKind::Constant(t) | ValueKind::Variable(t) => *t = content,
            _ => unreachable!("only constants and variables have content"),
        }
    }

    /// Gives values names that are free, or those of values that are gone.
    pub(crate) fn rename(&mut self, names: &[(ValueId, String)]) {
        for (id, name) in names {
            let taken = self.values().any(|(_, v)| v.name == *name);
            if let (false, Some(value)) = (taken, self.values[id.index()].as_mut()) {
                value.name.clone_from(name);
            }
        }
    }

    /// Infers the types of all results again, in order.
    pub(crate) fn infer_types(&mut self) -> Result<()> {
        for i in 0..self.order.len() {
            let node = self.node(self.order[i]);
            let inputs: Vec<_> = node
                .inputs
                .iter()
                .map(|&v| self.type_of(v).clone())
                .collect();
            let types = node.op.rules().infer(&inputs).at(|| node.describe())?;
            let outputs = node.outputs.clone();
            for (out, ty) in outputs.into_iter().zip(types) {
                self.values[out.index()]
                    .as_mut()
                    .expect("an output exists")
                    .ty = ty;
            }
        }
        Ok(())
    }

    /// The part that computes `outputs`: same ids, without the nodes and values that they do not
    /// depend on. Inputs stay in order, assignments go unless `keep_assignments`.
    ///
    /// # Errors
    /// If an id is unknown.
    pub fn extract(&self, outputs: &[(String, ValueId)], keep_assignments: bool) -> Result<Graph> {
        let mut graph = self.clone();
        for (name, v) in outputs {
            if graph.get(*v).is_none() {
                return Err(Error::invalid(format!("output `{name}`: no value {v:?}")));
            }
        }
        graph.outputs = outputs.to_vec();
        graph.remove_dead(keep_assignments);
        Ok(graph)
    }

    /// Removes nodes and values that no output (or assignment) depends on; returns the number of
    /// nodes removed. Inputs stay.
    pub(crate) fn remove_dead(&mut self, keep_assignments: bool) -> usize {
        let mut live: HashSet<ValueId> = self.outputs().collect();
        let mut keep = Vec::with_capacity(self.order.len());
        for &id in self.order.iter().rev() {
            let node = self.node(id);
            let is_root = keep_assignments && matches!(node.op, Op::Assign(_));
            if is_root || node.outputs.iter().any(|o| live.contains(o)) {
                live.extend(&node.inputs);
                live.extend(&node.outputs);
                keep.push(id);
            }
        }
        keep.reverse();
        let removed = self.order.len() - keep.len();
        let kept: HashSet<NodeId> = keep.iter().copied().collect();
        self.order = keep;
        for i in 0..self.nodes.len() {
            if !kept.contains(&NodeId(i as u32)) {
                self.nodes[i] = None;
            }
        }
        live.extend(&self.inputs);
        for i in 0..self.values.len() {
            if !live.contains(&ValueId(i as u32)) {
                self.values[i] = None;
                self.facts.remove_value(ValueId(i as u32));
            }
        }
        removed
    }

    /// Sorts the nodes so that each comes after those it reads from; stable, iterative.
    pub(crate) fn sort(&mut self) -> Result<()> {
        let mut waiting: HashMap<NodeId, usize> = HashMap::new();
        let mut next: HashMap<NodeId, Vec<NodeId>> = HashMap::new();
        let position: HashMap<NodeId, usize> = self
            .order
            .iter()
            .enumerate()
            .map(|(i, &n)| (n, i))
            .collect();
        for &id in &self.order {
            let mut sources: Vec<NodeId> = self
                .node(id)
                .inputs
                .iter()
                .filter_map(|&v| self.producer(v).map(|(n, _)| n))
                .collect();
            sources.sort_unstable();
            sources.dedup();
            waiting.insert(id, sources.len());
            for s in sources {
                next.entry(s).or_default().push(id);
            }
        }
        let mut ready: std::collections::BTreeSet<usize> = self
            .order
            .iter()
            .enumerate()
            .filter(|(_, id)| waiting[id] == 0)
            .map(|(i, _)| i)
            .collect();
        let old = std::mem::take(&mut self.order);
        let mut order = Vec::with_capacity(old.len());
        while let Some(i) = ready.pop_first() {
            let id = old[i];
            order.push(id);
            for n in next.get(&id).into_iter().flatten() {
                let w = waiting.get_mut(n).expect("a node of the order");
                *w -= 1;
                if *w == 0 {
                    ready.insert(position[n]);
                }
            }
        }
        if order.len() != old.len() {
            let stuck = old
                .iter()
                .find(|id| waiting[id] > 0)
                .map(|&id| self.node(id).name.clone());
            self.order = old;
            return Err(Error::new(
                ErrorKind::InvalidGraph,
                format!(
                    "the graph has a cycle through `{}`",
                    stuck.unwrap_or_default()
                ),
            ));
        }
        self.order = order;
        Ok(())
    }
}

impl Node {
    /// `name (Op)`, for error paths.
    pub(crate) fn describe(&self) -> String {
        format!("{} ({})", self.name, self.op.name())
    }
}
