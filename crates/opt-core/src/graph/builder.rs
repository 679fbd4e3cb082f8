//! Building graphs node by node.

use std::collections::{HashMap, HashSet};

use super::{Graph, Node, NodeId, TensorType, Value, ValueId, ValueKind};
use crate::ops::Op;
use crate::{DType, Error, ErrorKind, Result, ResultExt, Tensor};

/// Adds inputs, variables and nodes to a graph.
///
/// The methods for ops ([`matmul`](GraphBuilder::matmul), [`conv`](GraphBuilder::conv), ..) stand
/// beside the ops they add, in [`ops`](crate::ops). All infer the type of the result at once, so
/// a mismatch is an error at the call that makes it.
#[derive(Debug)]
pub struct GraphBuilder {
    pub(crate) graph: Graph,
    /// The names of values.
    names: HashSet<String>,
    node_names: HashSet<String>,
    counters: HashMap<String, usize>,
    scope: Vec<String>,
}

impl GraphBuilder {
    /// Starts an empty graph.
    pub fn new(name: impl Into<String>) -> GraphBuilder {
        GraphBuilder::extend(Graph {
            name: name.into(),
            ..Graph::default()
        })
    }

    /// Goes on with an existing graph; ids stay valid.
    pub fn extend(graph: Graph) -> GraphBuilder {
        GraphBuilder {
            names: graph.values().map(|(_, v)| v.name.clone()).collect(),
            node_names: graph.nodes().map(|(_, n)| n.name.clone()).collect(),
            graph,
            counters: HashMap::new(),
            scope: Vec::new(),
        }
    }

    /// The graph so far.
    pub fn graph(&self) -> &Graph {
        &self.graph
    }

    /// The graph so far, for metadata, facts and variable contents.
    pub fn graph_mut(&mut self) -> &mut Graph {
        &mut self.graph
    }

    /// Verifies the graph and hands it out.
    ///
    /// # Errors
    /// If the graph is not valid; see [`Graph::verify`].
    pub fn finish(self) -> Result<Graph> {
        self.graph.verify()?;
        Ok(self.graph)
    }

    /// Hands the graph out without a check, for callers that go on rewriting.
    pub fn into_graph(self) -> Graph {
        self.graph
    }

    /// Runs `build` with a name put before the names of all that it adds: `scope.name`.
    ///
    /// # Errors
    /// Those of `build`, at the scope's name.
    pub fn scope<T>(
        &mut self,
        name: impl Into<String>,
        build: impl FnOnce(&mut GraphBuilder) -> Result<T>,
    ) -> Result<T> {
        let name = name.into();
        self.scope.push(name.clone());
        let result = build(self);
        self.scope.pop();
        result.at(|| name)
    }

    /// Opens a scope that [`GraphBuilder::leave`] closes, for builders that wrap this one.
    pub(crate) fn enter(&mut self, name: &str) {
        self.scope.push(name.to_string());
    }

    pub(crate) fn leave(&mut self) {
        self.scope.pop();
    }

    /// A name with the names of the open scopes before it.
    pub(crate) fn scoped(&self, name: &str) -> String {
        if self.scope.is_empty() {
            name.to_string()
        } else {
            format!("{}.{name}", self.scope.join("."))
        }
    }

    /// A name that no value (or node) has yet, made from `base`.
    fn fresh(&mut self, base: String, of_node: bool) -> String {
        let names = if of_node {
            &mut self.node_names
        } else {
            &mut self.names
        };
        if names.insert(base.clone()) {
            return base;
        }
        let counter = self.counters.entry(base.clone()).or_insert(0);
        loop {
            *counter += 1;
            let name = format!("{base}_{counter}");
            if names.insert(name.clone()) {
                return name;
            }
        }
    }

    /// The number of nodes so far.
    pub fn node_count(&self) -> usize {
        self.graph.order.len()
    }

    /// The nodes added since there were `count` of them.
    pub fn nodes_since(&self, count: usize) -> Vec<NodeId> {
        self.graph.order.get(count..).unwrap_or_default().to_vec()
    }

    /// Gives a node the name `base`, or one that starts with it if that is taken, and its outputs
    /// the names that [`GraphBuilder::named_node`] would have given them.
    ///
    /// # Panics
    /// If the id is not of this graph.
    pub fn rename_node(&mut self, node: NodeId, base: &str) {
        let old = self.graph.node(node).clone();
        if old.name == base {
            return;
        }
        self.node_names.remove(&old.name);
        let name = self.fresh(base.to_string(), true);
        let many = old.outputs.len() > 1;
        for (index, &value) in old.outputs.iter().enumerate() {
            let label = if many {
                format!("{name}:{index}")
            } else {
                format!("{name}:out")
            };
            let before = self.graph.value(value).name.clone();
            self.names.remove(&before);
            let label = self.fresh(label, false);
            let value = self.graph.values[value.index()].as_mut();
            value.expect("an output exists").name = label;
        }
        let node = self.graph.nodes[node.index()].as_mut();
        node.expect("it was read above").name = name;
    }

    /// Gives a value another name, as it is: open scopes are not put before it.
    ///
    /// # Errors
    /// If another value has the name.
    ///
    /// # Panics
    /// If the id is not of this graph.
    pub fn rename(&mut self, value: ValueId, name: &str) -> Result<()> {
        let old = self.graph.value(value).name.clone();
        if old == name {
            return Ok(());
        }
        if !self.names.insert(name.to_string()) {
            return Err(Error::new(
                ErrorKind::InvalidGraph,
                format!("the name `{name}` is taken"),
            ));
        }
        self.names.remove(&old);
        let value = self.graph.values[value.index()].as_mut();
        value.expect("it was read above").name = name.to_string();
        Ok(())
    }

    fn claim(&mut self, name: &str) -> Result<String> {
        let name = self.scoped(name);
        if !self.names.insert(name.clone()) {
            return Err(Error::new(
                ErrorKind::InvalidGraph,
                format!("the name `{name}` is taken"),
            ));
        }
        Ok(name)
    }

    pub(crate) fn push_value(&mut self, name: String, ty: TensorType, kind: ValueKind) -> ValueId {
        let id = ValueId(u32::try_from(self.graph.values.len()).expect("fewer than 2^32 values"));
        self.graph.values.push(Some(Value { name, ty, kind }));
        id
    }

    /// Adds an input.
    ///
    /// # Errors
    /// If the name is taken.
    pub fn input(&mut self, name: &str, ty: TensorType) -> Result<ValueId> {
        let name = self.claim(name)?;
        let id = self.push_value(name, ty, ValueKind::Input);
        self.graph.inputs.push(id);
        Ok(id)
    }

    /// Adds a variable: a parameter or other state, with its initial content.
    ///
    /// # Errors
    /// If the name is taken.
    pub fn variable(&mut self, name: &str, content: Tensor) -> Result<ValueId> {
        let name = self.claim(name)?;
        let ty = TensorType::new(content.dtype(), content.shape());
        Ok(self.push_value(name, ty, ValueKind::Variable(content)))
    }

    /// Adds a constant.
    pub fn constant(&mut self, content: impl Into<Tensor>) -> ValueId {
        self.named_constant("const", content)
    }

    /// Adds a constant whose name starts with `base`.
    pub fn named_constant(&mut self, base: &str, content: impl Into<Tensor>) -> ValueId {
        let content = content.into();
        let name = self.scoped(base);
        let name = self.fresh(name, false);
        let ty = TensorType::new(content.dtype(), content.shape());
        self.push_value(name, ty, ValueKind::Constant(content))
    }

    /// Adds a rank-0 constant of a dtype.
    ///
    /// # Errors
    /// None for the dtypes that exist today.
    pub fn scalar(&mut self, dtype: DType, value: f64) -> Result<ValueId> {
        Ok(self.constant(Tensor::full(dtype, [], value)?))
    }

    /// Adds a rank-0 constant of the dtype of a value.
    ///
    /// # Errors
    /// None for the dtypes that exist today.
    pub fn scalar_like(&mut self, value: ValueId, content: f64) -> Result<ValueId> {
        let dtype = self.type_of(value).dtype;
        self.scalar(dtype, content)
    }

    /// Makes a value an output under a name.
    ///
    /// # Errors
    /// If there is an output of that name.
    pub fn output(&mut self, name: &str, value: ValueId) -> Result<()> {
        if self.graph.outputs.iter().any(|(n, _)| n == name) {
            return Err(Error::new(
                ErrorKind::InvalidGraph,
                format!("there is an output `{name}` already"),
            ));
        }
        self.graph.outputs.push((name.to_string(), value));
        Ok(())
    }

    /// Removes all outputs, to give the graph other ones.
    pub fn clear_outputs(&mut self) {
        self.graph.outputs.clear();
    }

    /// The type of a value.
    ///
    /// # Panics
    /// If the id is not of this graph.
    pub fn type_of(&self, value: ValueId) -> &TensorType {
        self.graph.type_of(value)
    }

    /// Adds a node and returns its outputs.
    ///
    /// # Errors
    /// If the op does not take these inputs; the path names the node.
    pub fn node(&mut self, op: impl Into<Op>, inputs: &[ValueId]) -> Result<Vec<ValueId>> {
        let op = op.into();
        let base = op.name().to_lowercase();
        self.named_node(&base, op, inputs)
    }

    /// Adds a node under a name that starts with `base` and returns its outputs.
    ///
    /// # Errors
    /// As [`GraphBuilder::node`].
    pub fn named_node(
        &mut self,
        base: &str,
        op: impl Into<Op>,
        inputs: &[ValueId],
    ) -> Result<Vec<ValueId>> {
        let op = op.into();
        let mut types = Vec::with_capacity(inputs.len());
        for &v in inputs {
            let value = self.graph.get(v).ok_or_else(|| {
                Error::new(ErrorKind::InvalidGraph, format!("no value {v:?}"))
                    .at(format!("{base} ({})", op.name()))
            })?;
            types.push(value.ty.clone());
        }
        let outputs = op
            .rules()
            .infer(&types)
            .at(|| format!("{} ({})", self.scoped(base), op.name()))?;
        let name = self.scoped(base);
        let name = self.fresh(name, true);
        let node = NodeId(u32::try_from(self.graph.nodes.len()).expect("fewer than 2^32 nodes"));
        let many = outputs.len() > 1;
        let mut ids = Vec::with_capacity(outputs.len());
        for (index, ty) in outputs.into_iter().enumerate() {
            let label = if many {
                format!("{name}:{index}")
            } else {
                format!("{name}:out")
            };
            let label = self.fresh(label, false);
            ids.push(self.push_value(label, ty, ValueKind::Result { node, index }));
        }
        self.graph.nodes.push(Some(Node {
            name,
            op,
            inputs: inputs.to_vec(),
            outputs: ids.clone(),
        }));
        self.graph.order.push(node);
        Ok(ids)
    }

    /// Adds a node and returns its first output.
    ///
    /// # Errors
    /// As [`GraphBuilder::node`].
    pub fn op(&mut self, op: impl Into<Op>, inputs: &[ValueId]) -> Result<ValueId> {
        Ok(self.node(op, inputs)?[0])
    }
}
