//! How each op passes factors on.

use std::collections::{BTreeMap, HashMap};

use opt_core::ops::{BinaryOp, Op, PadMode, ReduceOp, UnaryOp};
use opt_core::{DType, Graph, Node, Shape, ValueId};

use super::{FIXED, Field, Labels, Scales, Stored};

struct Walk<'a> {
    graph: &'a Graph,
    readers: HashMap<ValueId, usize>,
    labels: Labels,
    fields: BTreeMap<ValueId, Field>,
    stored: BTreeMap<ValueId, Stored>,
    weights: Vec<(ValueId, ValueId)>,
}

pub(super) fn walk(graph: &Graph) -> Scales {
    let mut readers: HashMap<ValueId, usize> = HashMap::new();
    for (_, node) in graph.nodes() {
        for &v in node.inputs() {
            *readers.entry(v).or_default() += 1;
        }
    }
    for v in graph.outputs() {
        *readers.entry(v).or_default() += 1;
    }
    let mut walk = Walk {
        graph,
        readers,
        labels: Labels::new(),
        fields: BTreeMap::new(),
        stored: BTreeMap::new(),
        weights: Vec::new(),
    };
    for (_, node) in graph.nodes() {
        if walk.pass_on(node).is_none() {
            walk.hold(node);
        }
    }
    for v in graph.outputs() {
        walk.field(v).fix(&mut walk.labels);
    }
    walk.labels.flatten();
    Scales {
        labels: walk.labels,
        stored: walk.stored,
        fields: walk.fields,
        readers: walk.weights,
    }
}

impl Walk<'_> {
    fn rank(&self, v: ValueId) -> usize {
        self.graph.type_of(v).rank()
    }

    /// The factors of a value; 1 for inputs, constants and variables.
    fn field(&self, v: ValueId) -> Field {
        let found = self.fields.get(&v).cloned();
        found.unwrap_or_else(|| Field::uniform(self.rank(v), FIXED))
    }

    /// The sizes of a stored `f32` tensor that only one node reads.
    fn own(&self, v: ValueId) -> Option<Vec<usize>> {
        let value = self.graph.value(v);
        let content = value.tensor()?;
        let fits = value.ty().dtype == DType::F32;
        (fits && self.readers.get(&v) == Some(&1)).then(|| content.shape().to_vec())
    }

    fn is_stored(&self, v: ValueId) -> bool {
        self.graph.value(v).tensor().is_some()
    }

    fn is_zero(&self, v: ValueId) -> bool {
        let content = self.graph.value(v).tensor();
        content.is_some_and(|t| t.len() == 1 && t.to_f64s() == [0.0])
    }

    /// Fixes the factors of whatever a node reads and makes.
    fn hold(&mut self, node: &Node) {
        for &v in node.inputs() {
            self.field(v).fix(&mut self.labels);
        }
        for &v in node.outputs() {
            let fixed = Field::uniform(self.rank(v), FIXED);
            self.fields.insert(v, fixed);
        }
    }

    /// A stored tensor that carries the factors of what it is added to or makes.
    fn follow(&mut self, v: ValueId, times: Field) {
        let stored = Stored {
            times: Some(times),
            over: None,
            weight: false,
        };
        self.stored.insert(v, stored);
    }

    /// The factors of an operand of a sum: those of its own entries if it is stored.
    fn summand(&mut self, v: ValueId) -> Field {
        match self.own(v) {
            Some(shape) if shape.iter().any(|&n| n > 1) && Field::fits(&shape) => {
                let count = shape.iter().product::<usize>();
                let labels = (0..count).map(|_| self.labels.fresh()).collect();
                let field = Field { shape, labels };
                self.follow(v, field.clone());
                field
            }
            _ => self.field(v),
        }
    }

    /// Passes factors on through a node; `None` if it holds them.
    fn pass_on(&mut self, node: &Node) -> Option<()> {
        let (ins, out) = (node.inputs(), *node.outputs().first()?);
        let field = match node.op() {
            Op::Unary(op) => match op.op {
                UnaryOp::Relu | UnaryOp::LeakyRelu { .. } | UnaryOp::Neg | UnaryOp::Abs => {
                    self.field(ins[0])
                }
                _ => return None,
            },
            Op::Identity(_) | Op::StopGradient(_) => self.field(ins[0]),
            Op::Dropout(op) if !op.training => self.field(ins[0]),
            Op::Binary(op) => self.binary(op.op, ins)?,
            Op::MaxPool(_) | Op::AvgPool(_) => {
                self.field(ins[0]).only(&mut self.labels, |axis| axis < 2)
            }
            Op::Reduce(op) if op.op != ReduceOp::Prod => {
                let kept = |axis: usize| !op.axes.contains(&axis);
                let field = self.field(ins[0]).only(&mut self.labels, kept);
                let sizes = field.shape.iter().enumerate();
                let sizes = sizes.filter(|&(axis, _)| op.keepdims || kept(axis));
                let shape = sizes.map(|(_, &n)| n).collect();
                let labels = field.labels;
                Field { shape, labels }
            }
            Op::Transpose(op) => {
                let field = self.field(ins[0]);
                let shape = op.perm.iter().map(|&p| field.shape[p]).collect();
                let rank = field.rank();
                field.map(shape, |index, source| {
                    source.resize(rank, 0);
                    for (&i, &p) in index.iter().zip(&op.perm) {
                        source[p] = i;
                    }
                })
            }
            Op::Reshape(_) | Op::Squeeze(_) | Op::Unsqueeze(_) => self.reshape(ins[0], out),
            Op::Expand(_) => self.field(ins[0]).lead(self.rank(out)),
            Op::Slice(op) => {
                let field = self.field(ins[0]);
                let mut shape = field.shape.clone();
                for &axis in op.axes.iter().filter(|&&a| field.shape[a] > 1) {
                    shape[axis] = self.graph.type_of(out).shape[axis].as_fixed()?;
                }
                field.map(shape, |index, source| {
                    source.extend(index);
                    for (k, &axis) in op.axes.iter().enumerate() {
                        if field.shape[axis] > 1 {
                            let i = op.starts[k] + index[axis] as isize * op.steps[k];
                            source[axis] = i.max(0) as usize;
                        }
                    }
                })
            }
            Op::Pad(op) if keeps_factors(op.mode) => {
                let still = |axis: usize| op.begin[axis] == 0 && op.end[axis] == 0;
                self.field(ins[0]).only(&mut self.labels, still)
            }
            Op::Concat(op) => self.concat(ins, op.axis)?,
            Op::Split(op) => {
                let field = self.field(ins[0]);
                let mut start = 0;
                for (&v, &size) in node.outputs().iter().zip(&op.sizes) {
                    let mut shape = field.shape.clone();
                    if shape[op.axis] > 1 {
                        shape[op.axis] = size;
                    }
                    let part = field.map(shape, |index, source| {
                        source.extend(index);
                        source[op.axis] += start;
                    });
                    start += size;
                    self.fields.insert(v, part);
                }
                return Some(());
            }
            Op::Conv(op) => self.conv(ins, op.groups, false)?,
            Op::ConvTranspose(op) => self.conv(ins, op.groups, true)?,
            Op::MatMul(op) => self.matmul(ins, op.trans_a, op.trans_b, out)?,
            Op::Attention(_) => {
                for (i, &v) in ins.iter().enumerate() {
                    if i != 2 {
                        self.field(v).fix(&mut self.labels);
                    }
                }
                let rank = self.rank(ins[2]);
                self.field(ins[2])
                    .only(&mut self.labels, |axis| axis != rank - 2)
            }
            Op::LayerNorm(op) => self.normalized(ins, op.axis, out)?,
            Op::RmsNorm(op) => self.normalized(ins, op.axis, out)?,
            Op::GroupNorm(_) | Op::InstanceNorm(_) => self.channels(ins, 1, out)?,
            Op::BatchNorm(op) if !op.training => self.channels(ins, 1, out)?,
            Op::Gather(_) => self.embedding(node)?,
            _ => return None,
        };
        self.fields.insert(out, field);
        Some(())
    }

    fn binary(&mut self, op: BinaryOp, ins: &[ValueId]) -> Option<Field> {
        let rank = self.rank(ins[0]).max(self.rank(ins[1]));
        match op {
            BinaryOp::Max | BinaryOp::Min if self.is_zero(ins[1]) => {
                Some(self.field(ins[0]).lead(rank))
            }
            BinaryOp::Max | BinaryOp::Min if self.is_zero(ins[0]) => {
                Some(self.field(ins[1]).lead(rank))
            }
            BinaryOp::Add | BinaryOp::Sub | BinaryOp::Max | BinaryOp::Min => {
                let (a, b) = (self.summand(ins[0]), self.summand(ins[1]));
                Some(a.joined(&mut self.labels, &b))
            }
            BinaryOp::Mul | BinaryOp::Div | BinaryOp::PRelu => {
                let (a, b) = (self.field(ins[0]), self.field(ins[1]));
                if b.is_fixed(&self.labels) {
                    return Some(a.lead(rank));
                }
                if op == BinaryOp::Mul && a.is_fixed(&self.labels) {
                    return Some(b.lead(rank));
                }
                None
            }
            _ => None,
        }
    }

    /// Row-major order keeps what leading, or else trailing, axes of equal sizes hold; the factors
    /// of others are written out and read in the new shape.
    fn reshape(&mut self, x: ValueId, y: ValueId) -> Field {
        let field = self.field(x);
        let (a, b) = (&self.graph.type_of(x).shape, &self.graph.type_of(y).shape);
        let (n, m) = (a.rank(), b.rank());
        let (from, to) = (a.dims(), b.dims());
        let lead = (0..n.min(m)).take_while(|&i| from[i] == to[i]).count();
        let tail = (1..=n.min(m) - lead).take_while(|&i| from[n - i] == to[m - i]);
        let tail = tail.count();
        let (middle_in, middle_out) = (lead..n - tail, lead..m - tail);
        let sizes = |shape: &Shape, range: std::ops::Range<usize>| -> Option<Vec<usize>> {
            range.map(|i| shape[i].as_fixed()).collect()
        };
        let wide = sizes(a, middle_in.clone()).map(|sizes| {
            let mut wide = field.shape.clone();
            wide[middle_in.clone()].copy_from_slice(&sizes);
            wide
        });
        let plain = middle_in.clone().all(|i| field.shape[i] == 1);
        match (wide, sizes(b, middle_out.clone())) {
            (Some(wide), Some(sizes)) if !plain && Field::fits(&wide) => {
                let labels = field.spread(&wide).labels;
                let mut shape = wide[..lead].to_vec();
                shape.extend(sizes);
                shape.extend(&wide[n - tail..]);
                Field { shape, labels }
            }
            // Symbols hide what becomes of these axes, or there is nothing to write out.
            _ => {
                let field = field.only(&mut self.labels, |axis| !middle_in.contains(&axis));
                let mut shape = field.shape[..lead].to_vec();
                shape.extend(middle_out.map(|_| 1));
                shape.extend(&field.shape[n - tail..]);
                let labels = field.labels;
                Field { shape, labels }
            }
        }
    }

    fn concat(&mut self, ins: &[ValueId], axis: usize) -> Option<Field> {
        let mut fields = Vec::with_capacity(ins.len());
        for &v in ins {
            let mut field = self.field(v);
            let size = self.graph.type_of(v).shape[axis].as_fixed()?;
            let mut shape = field.shape.clone();
            shape[axis] = size;
            if !Field::fits(&shape) {
                return None;
            }
            field = field.spread(&shape);
            fields.push(field);
        }
        let rank = fields.first()?.rank();
        let mut shape: Vec<usize> = (0..rank)
            .map(|a| fields.iter().map(|f| f.shape[a]).max().unwrap_or(1))
            .collect();
        shape[axis] = fields.iter().map(|f| f.shape[axis]).sum();
        if !Field::fits(&shape) {
            return None;
        }
        let mut out = Field::uniform(rank, FIXED).spread(&shape);
        let mut start = 0;
        for field in fields {
            let mut part = shape.clone();
            part[axis] = field.shape[axis];
            let spread = field.spread(&part);
            let mut from = 0;
            super::for_each_index(&part, |index| {
                let mut place = 0;
                for (a, (&i, &n)) in index.iter().zip(&shape).enumerate() {
                    place = place * n + i + if a == axis { start } else { 0 };
                }
                out.labels[place] = spread.labels[from];
                from += 1;
            });
            start += part[axis];
        }
        Some(out)
    }

    /// The weight of a layer, with the factors of its input and new ones for its output.
    fn layer(&mut self, x: ValueId, weight: ValueId, times: Field, over: Field) {
        let stored = Stored {
            times: Some(times),
            over: Some(over),
            weight: true,
        };
        self.stored.insert(weight, stored);
        self.weights.push((weight, x));
    }

    fn conv(&mut self, ins: &[ValueId], groups: usize, transposed: bool) -> Option<Field> {
        let (x, weight) = (ins[0], ins[1]);
        let shape = self.own(weight)?;
        let bias = match ins.get(2) {
            None => None,
            Some(&b) => Some((b, self.own(b)?)),
        };
        let input = self.field(x).only(&mut self.labels, |axis| axis == 1);
        let (outputs, each) = match transposed {
            false => (shape[0], shape[0] / groups),
            true => (shape[1] * groups, shape[0] / groups),
        };
        let rank = self.rank(x);
        let made = Field::along(&mut self.labels, rank, 1, outputs);
        let two = |n: usize, m: usize| -> Vec<usize> {
            let mut sizes = vec![1; shape.len()];
            (sizes[0], sizes[1]) = (n, m);
            sizes
        };
        let (n, m) = (shape[0], shape[1]);
        let (times, over) = match transposed {
            false => (
                made.map(two(n, 1), |i, at| at.extend([0, i[0]])),
                input.map(two(n, m), |i, at| at.extend([0, i[0] / each * m + i[1]])),
            ),
            true => (
                made.map(two(n, m), |i, at| at.extend([0, i[0] / each * m + i[1]])),
                input.map(two(n, 1), |i, at| at.extend([0, i[0]])),
            ),
        };
        self.layer(x, weight, times, over);
        if let Some((bias, _)) = bias {
            let shape = vec![outputs];
            let labels = made.labels.clone();
            self.follow(bias, Field { shape, labels });
        }
        Some(made)
    }

    fn matmul(
        &mut self,
        ins: &[ValueId],
        trans_a: bool,
        trans_b: bool,
        out: ValueId,
    ) -> Option<Field> {
        let (x, y, rank) = (ins[0], ins[1], self.rank(out));
        let both = [x, y].map(|v| self.is_stored(v));
        if let (Some(shape), false, false) = (self.own(y), both[0], trans_a)
            && shape.len() == 2
        {
            let last = self.rank(x) - 1;
            let input = self.field(x).only(&mut self.labels, |axis| axis == last);
            let (columns, rows) = (usize::from(!trans_b), usize::from(trans_b));
            let made = Field::along(&mut self.labels, rank, rank - 1, shape[columns]);
            let along = |axis: usize, labels: &Field| {
                let mut shape = vec![1; 2];
                shape[axis] = labels.labels.len();
                let labels = labels.labels.clone();
                Field { shape, labels }
            };
            self.layer(x, y, along(columns, &made), along(rows, &input));
            return Some(made);
        }
        let fields = [x, y].map(|v| self.field(v));
        let swapped = |v: ValueId, swap: bool, field: Field| -> Field {
            let rank = self.graph.type_of(v).rank();
            let mut shape = field.shape.clone();
            if swap {
                shape.swap(rank - 2, rank - 1);
            }
            field.map(shape, |index, source| {
                source.extend(index);
                if swap {
                    source.swap(rank - 2, rank - 1);
                }
            })
        };
        // A factor of one operand's rows or columns is one of the product's.
        let [a, b] = fields;
        if a.is_fixed(&self.labels) {
            let inner = self.rank(y) - 2;
            let b = swapped(y, trans_b, b);
            return Some(b.only(&mut self.labels, |axis| axis != inner).lead(rank));
        }
        if b.is_fixed(&self.labels) {
            let inner = self.rank(x) - 1;
            let a = swapped(x, trans_a, a);
            return Some(a.only(&mut self.labels, |axis| axis != inner).lead(rank));
        }
        None
    }

    /// A normalization over the last axis: its scale and offset make its factors.
    fn normalized(&mut self, ins: &[ValueId], axis: usize, out: ValueId) -> Option<Field> {
        let rank = self.rank(out);
        if axis + 1 != rank {
            return None;
        }
        self.channels(ins, axis, out)
    }

    /// A normalization with a scale and an offset along an axis.
    fn channels(&mut self, ins: &[ValueId], axis: usize, out: ValueId) -> Option<Field> {
        let rank = self.rank(out);
        let affine = &ins[1..ins.len().min(3)];
        let sizes: Option<Vec<Vec<usize>>> = affine.iter().map(|&v| self.own(v)).collect();
        let sizes = sizes?;
        let [size] = sizes.first()?[..] else {
            return None;
        };
        self.field(ins[0]).fix(&mut self.labels);
        let made = Field::along(&mut self.labels, rank, axis, size);
        for &v in affine {
            let (shape, labels) = (vec![size], made.labels.clone());
            self.follow(v, Field { shape, labels });
        }
        Some(made)
    }

    /// Rows of a stored table: its columns make the factors.
    fn embedding(&mut self, node: &Node) -> Option<Field> {
        let Op::Gather(op) = node.op() else {
            return None;
        };
        let (table, out) = (node.inputs()[0], node.outputs()[0]);
        let shape = self.own(table)?;
        let [_, width] = shape[..] else { return None };
        if op.axis != 0 {
            return None;
        }
        let rank = self.rank(out);
        let made = Field::along(&mut self.labels, rank, rank - 1, width);
        let (shape, labels) = (vec![1, width], made.labels.clone());
        self.follow(table, Field { shape, labels });
        Some(made)
    }
}

/// Whether what is padded with may have the factors of what it stands beside.
fn keeps_factors(mode: PadMode) -> bool {
    match mode {
        PadMode::Constant(value) => value == 0.0,
        PadMode::Reflect | PadMode::Edge => true,
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use opt_core::{GraphBuilder, Tensor, TensorType};

    #[test]
    fn large_shapes_take_no_memory() {
        let mut b = GraphBuilder::new("large");
        let x = b.input("x", TensorType::new(DType::F32, [1, 2])).unwrap();
        let w = b
            .variable("w", Tensor::new([2, 2], [1f32; 4]).unwrap())
            .unwrap();
        let y = b.matmul(x, w).unwrap();
        let y = b.reshape(y, [1, 2, 1]).unwrap();
        let y = b.expand(y, [1, 2, 1 << 40]).unwrap();
        let z = b.reshape(y, [1, 1 << 41]).unwrap();
        let both = b.concat(&[y, y], 2).unwrap();
        b.output("z", z).unwrap();
        b.output("both", both).unwrap();
        let scales = walk(&b.finish().unwrap());
        assert_eq!(scales.readers.len(), 1);
        assert!(scales.bound() < 10);
    }
}
