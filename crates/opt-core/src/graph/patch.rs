//! Rewriting graphs.

use std::collections::{HashMap, HashSet};
use std::ops::{Deref, DerefMut};

use super::{Graph, GraphBuilder, NodeId, ValueId};
use crate::{Error, ErrorKind, Result};

/// A rewrite: new nodes are added beside the old ones, values are replaced by others, and
/// [`GraphPatch::finish`] applies it all at once, drops what became dead, sorts and verifies.
///
/// While it is built the patch shows the graph as it was, so that a rule cannot trip over the
/// half-done work of another.
///
/// ```
/// use opt_core::{DType, Graph, GraphBuilder, GraphPatch, TensorType, ops::Op};
///
/// # fn main() -> opt_core::Result<()> {
/// let mut b = GraphBuilder::new("twice");
/// let x = b.input("x", TensorType::new(DType::F32, [2]))?;
/// let y = b.add(x, x)?;
/// b.output("y", y)?;
///
/// let mut patch = GraphPatch::new(b.finish()?);
/// let two = patch.scalar_like(x, 2.0)?;
/// let doubled = patch.mul(x, two)?;
/// patch.replace(y, doubled)?;
/// let graph = patch.finish()?;
/// assert_eq!(graph.nodes().count(), 1);
/// # Ok(())
/// # }
/// ```
#[derive(Debug)]
pub struct GraphPatch {
    builder: GraphBuilder,
    replaced: HashMap<ValueId, ValueId>,
    removed: Vec<NodeId>,
    rewired: Vec<(NodeId, usize, ValueId)>,
    new_from: usize,
}

impl GraphPatch {
    /// Starts a rewrite of a graph.
    pub fn new(graph: Graph) -> GraphPatch {
        GraphPatch {
            new_from: graph.nodes.len(),
            builder: GraphBuilder::extend(graph),
            replaced: HashMap::new(),
            removed: Vec::new(),
            rewired: Vec::new(),
        }
    }

    /// Lets everything that used `old` use `new`, but for the nodes of this patch that `new` is
    /// made from: they may read the value that they stand for. Facts on `old` do not move.
    ///
    /// # Errors
    /// If the types differ or `old` is replaced already.
    pub fn replace(&mut self, old: ValueId, new: ValueId) -> Result<()> {
        let (a, b) = (self.type_of(old).clone(), self.type_of(new).clone());
        if a != b {
            return Err(Error::shape(format!(
                "cannot replace `{}` ({a}) by a value of type {b}",
                self.graph().value(old).name
            )));
        }
        self.replace_any(old, new)
    }

    /// [`GraphPatch::replace`] where the type may change; the types of what follows are inferred
    /// again.
    ///
    /// # Errors
    /// If `old` is replaced already.
    pub fn replace_any(&mut self, old: ValueId, new: ValueId) -> Result<()> {
        if self.replaced.insert(old, new).is_some() {
            return Err(Error::new(
                ErrorKind::InvalidGraph,
                format!("`{}` is replaced twice", self.graph().value(old).name),
            ));
        }
        Ok(())
    }

    /// Removes a node that nothing needs any more although it is a root, such as an assignment.
    pub fn remove_node(&mut self, node: NodeId) {
        self.removed.push(node);
    }

    /// Lets one input of a node be another value: the node keeps its id, its name and its outputs,
    /// whose types are inferred again. Where the new value is replaced, the node gets what
    /// replaces it.
    ///
    /// # Errors
    /// If there is no such node or input.
    pub fn rewire(&mut self, node: NodeId, input: usize, value: ValueId) -> Result<()> {
        let bad = |m: String| Err(Error::new(ErrorKind::InvalidGraph, m));
        match self.graph().nodes.get(node.index()) {
            Some(Some(n)) if input < n.inputs.len() => {}
            Some(Some(n)) => return bad(format!("{} has no input {input}", n.describe())),
            _ => return bad(format!("no node {node:?}")),
        }
        self.rewired.push((node, input, value));
        Ok(())
    }

    /// Whether the patch changes nothing yet.
    pub fn is_empty(&self) -> bool {
        self.replaced.is_empty()
            && self.removed.is_empty()
            && self.rewired.is_empty()
            && self.builder.graph.nodes.len() == self.new_from
    }

    /// Applies the rewrite.
    ///
    /// # Errors
    /// If the result is not a valid graph.
    pub fn finish(self) -> Result<Graph> {
        let GraphPatch {
            builder,
            replaced,
            removed,
            rewired,
            new_from,
        } = self;
        let mut graph = builder.into_graph();
        for (node, input, value) in rewired {
            let node = graph.nodes[node.index()].as_mut();
            node.expect("`rewire` has found it").inputs[input] = value;
        }
        let resolve = |mut v: ValueId| -> Result<ValueId> {
            let mut steps = 0;
            while let Some(&n) = replaced.get(&v) {
                v = n;
                steps += 1;
                if steps > replaced.len() {
                    return Err(Error::new(
                        ErrorKind::InvalidGraph,
                        "values replace each other in a circle",
                    ));
                }
            }
            Ok(v)
        };
        // A new node that the replacement is made from goes on reading the value it replaces.
        let mut makes: HashMap<ValueId, HashSet<NodeId>> = HashMap::new();
        for (&old, &new) in &replaced {
            let mut found = HashSet::new();
            let mut stack = vec![new];
            while let Some(v) = stack.pop() {
                if let Some((id, node)) = graph.producer(v)
                    && id.index() >= new_from
                    && found.insert(id)
                {
                    stack.extend(node.inputs());
                }
            }
            makes.insert(old, found);
        }
        for (i, node) in graph.nodes.iter_mut().enumerate() {
            let Some(node) = node else { continue };
            for input in &mut node.inputs {
                let keeps = |old: &ValueId| makes[old].contains(&NodeId(i as u32));
                if replaced.contains_key(input) && !keeps(input) {
                    *input = resolve(*input)?;
                }
            }
        }
        for (_, v) in &mut graph.outputs {
            *v = resolve(*v)?;
        }
        graph.order.retain(|n| !removed.contains(n));
        for n in removed {
            graph.nodes[n.index()] = None;
        }
        // Sorted first: what is dead is found by one walk against the order.
        graph.sort()?;
        graph.remove_dead(true);
        graph.infer_types()?;
        graph.verify()?;
        Ok(graph)
    }
}

impl Deref for GraphPatch {
    type Target = GraphBuilder;
    fn deref(&self) -> &GraphBuilder {
        &self.builder
    }
}

impl DerefMut for GraphPatch {
    fn deref_mut(&mut self) -> &mut GraphBuilder {
        &mut self.builder
    }
}
