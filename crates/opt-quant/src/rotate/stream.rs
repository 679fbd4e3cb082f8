//! The residual streams of a graph: what is added, and what makes and reads the sums.

use std::collections::{BTreeSet, HashMap};

use opt_core::ops::{Binary, BinaryOp, Op};
use opt_core::{DType, Error, Graph, NodeId, Result, ValueId};

/// An input of a node.
pub(crate) type Use = (NodeId, usize);

/// Values that are added to each other, and so have to be rotated together.
#[derive(Debug, Default)]
pub(crate) struct Stream {
    /// The length of the last axis.
    pub(crate) width: usize,
    /// Parameters whose rotation along an axis rotates the stream.
    pub(crate) makers: Vec<(Use, usize)>,
    /// Values of the stream that nothing of the kind makes, such as inputs.
    pub(crate) entries: BTreeSet<ValueId>,
    /// Normalizations of its values.
    pub(crate) norms: Vec<NodeId>,
    /// Where sums and normalizations read its values.
    pub(crate) inner: Vec<(Use, ValueId)>,
    /// Values that something else reads, too.
    pub(crate) exits: BTreeSet<ValueId>,
}

/// Who reads what, and which values are stored.
pub(crate) struct Readers<'a> {
    pub(crate) graph: &'a Graph,
    consumers: HashMap<ValueId, Vec<Use>>,
    outputs: BTreeSet<ValueId>,
}

impl<'a> Readers<'a> {
    pub(crate) fn of(graph: &'a Graph) -> Readers<'a> {
        Readers {
            graph,
            consumers: graph.consumers(),
            outputs: graph.outputs().collect(),
        }
    }

    pub(crate) fn uses(&self, v: ValueId) -> &[Use] {
        self.consumers.get(&v).map_or(&[], Vec::as_slice)
    }

    pub(crate) fn is_output(&self, v: ValueId) -> bool {
        self.outputs.contains(&v)
    }

    /// Whether a value is a parameter or a constant in `f32`.
    pub(crate) fn stored(&self, v: ValueId) -> bool {
        let value = self.graph.value(v);
        value.tensor().is_some() && value.ty().dtype == DType::F32
    }

    pub(crate) fn width(&self, v: ValueId) -> Option<usize> {
        self.graph.type_of(v).shape.dims().last()?.as_fixed()
    }

    /// The axis of a stored matrix that a product sums over, if it is one.
    pub(crate) fn product(&self, node: NodeId) -> Option<usize> {
        let node = self.graph.node(node);
        let Op::MatMul(op) = node.op() else {
            return None;
        };
        let weight = node.inputs()[1];
        let plain = !op.trans_a
            && self.stored(weight)
            && !self.stored(node.inputs()[0])
            && self.graph.type_of(weight).rank() == 2
            && self.graph.type_of(node.inputs()[0]).rank() >= 2;
        plain.then_some(usize::from(op.trans_b))
    }

    /// Whether a node adds two values of a width, of which one may be stored.
    fn adds(&self, node: NodeId, width: usize) -> bool {
        let node = self.graph.node(node);
        let add = Op::Binary(Binary { op: BinaryOp::Add });
        *node.op() == add
            && node.inputs().iter().all(|&v| self.width(v) == Some(width))
            && !node.inputs().iter().all(|&v| self.stored(v))
    }

    /// Whether a node normalizes the last axis.
    fn norm(&self, node: NodeId) -> bool {
        let node = self.graph.node(node);
        let axis = match node.op() {
            Op::LayerNorm(op) => op.axis,
            Op::RmsNorm(op) => op.axis,
            _ => return false,
        };
        let x = node.inputs()[0];
        axis + 1 == self.graph.type_of(x).rank()
            && self.graph.type_of(x).dtype == DType::F32
            && node.inputs()[1..].iter().all(|&v| self.stored(v))
    }

    /// The streams that the graph's normalizations read.
    pub(crate) fn streams(&self) -> Result<Vec<Stream>> {
        let mut seen = BTreeSet::new();
        let mut out = Vec::new();
        for (id, node) in self.graph.nodes().filter(|(id, _)| self.norm(*id)) {
            let x = node.inputs()[0];
            if seen.contains(&x) {
                continue;
            }
            let width = self.width(x).ok_or_else(|| {
                Error::unsupported("the width of what is normalized is not known").at(self
                    .graph
                    .node(id)
                    .name()
                    .to_string())
            })?;
            out.push(self.stream(x, width, &mut seen));
        }
        Ok(out)
    }

    fn stream(&self, start: ValueId, width: usize, seen: &mut BTreeSet<ValueId>) -> Stream {
        let mut stream = Stream {
            width,
            ..Stream::default()
        };
        let mut stack = vec![start];
        while let Some(v) = stack.pop() {
            if !seen.insert(v) {
                continue;
            }
            self.made(v, &mut stream, &mut stack);
            for &(node, input) in self.uses(v) {
                if self.adds(node, width) {
                    stack.push(self.graph.node(node).outputs()[0]);
                } else if input == 0 && self.norm(node) {
                    stream.norms.push(node);
                    stream.inner.push(((node, 0), v));
                } else {
                    stream.exits.insert(v);
                }
            }
            if self.is_output(v) {
                stream.exits.insert(v);
            }
        }
        stream
    }

    /// Notes what makes a value of a stream.
    fn made(&self, v: ValueId, stream: &mut Stream, stack: &mut Vec<ValueId>) {
        let Some((id, node)) = self.graph.producer(v) else {
            stream.entries.insert(v);
            return;
        };
        let last = self.graph.type_of(v).rank().saturating_sub(1);
        match node.op() {
            _ if self.adds(id, stream.width) => {
                for (i, &operand) in node.inputs().iter().enumerate() {
                    if self.stored(operand) {
                        let axis = self.graph.type_of(operand).rank() - 1;
                        stream.makers.push(((id, i), axis));
                    } else {
                        stream.inner.push(((id, i), operand));
                        stack.push(operand);
                    }
                }
            }
            Op::MatMul(_) => match self.product(id) {
                Some(sum) => stream.makers.push(((id, 1), 1 - sum)),
                None => {
                    stream.entries.insert(v);
                }
            },
            Op::Gather(op)
                if op.axis == 0
                    && last > 0
                    && self.stored(node.inputs()[0])
                    && self.graph.type_of(node.inputs()[0]).rank() == 2 =>
            {
                stream.makers.push(((id, 0), 1));
            }
            _ => {
                stream.entries.insert(v);
            }
        }
    }
}
