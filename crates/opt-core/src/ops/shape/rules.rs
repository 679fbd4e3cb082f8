//! The rules of the ops that move elements.

use std::collections::BTreeSet;

use super::{
    Concat, Expand, Pad, PadGrad, PadMode, Reshape, Slice, SliceGrad, Split, Squeeze, Tile,
    Transpose, Unsqueeze,
};
use crate::graph::Bindings;
use crate::ops::rules::{arity, axis_in, same_dtype};
use crate::ops::{AxisRules, Cost, IndexMap, InputGrads, Op, OpRules, Port, ShrinkCx, Vjp};
use crate::{Dim, Error, Result, Shape, TensorType};

const IN: Port = Port::Input(0);
const OUT: Port = Port::Output(0);

/// Runs of axes of two shapes with equal products, in order: `[N, C, H, W]` against `[N, C*H*W]`
/// gives `(0..1, 0..1)` and `(1..4, 1..2)`. `None` where symbols hide the runs.
type Runs = Vec<(std::ops::Range<usize>, std::ops::Range<usize>)>;

fn runs(a: &Shape, b: &Shape) -> Option<Runs> {
    let (a, b) = (a.dims(), b.dims());
    let (mut i, mut j) = (0, 0);
    let mut out = Vec::new();
    while i < a.len() || j < b.len() {
        let (start_i, start_j) = (i, j);
        if i < a.len() && j < b.len() && a[i] == b[j] {
            i += 1;
            j += 1;
        } else {
            let (mut p, mut q) = (1usize, 1usize);
            // A run grows on the side with the smaller product until both agree.
            loop {
                if p == q && (i > start_i || j > start_j) && p != 1 {
                    break;
                }
                let grow_a = i < a.len() && (p <= q || j == b.len());
                if grow_a {
                    p = p.checked_mul(a[i].as_fixed()?)?;
                    i += 1;
                } else if j < b.len() {
                    q = q.checked_mul(b[j].as_fixed()?)?;
                    j += 1;
                } else {
                    break;
                }
            }
            if p != q {
                return None;
            }
        }
        out.push((start_i..i, start_j..j));
    }
    Some(out)
}

/// The axes of a range whose size is not 1.
fn large(shape: &Shape, range: &std::ops::Range<usize>) -> Vec<usize> {
    let all = range.clone();
    all.filter(|&i| shape[i].as_fixed() != Some(1)).collect()
}

/// The links of a reshape: in each run the axes of equal size, or an axis and the first of those
/// that it is merged from, or the one of those that it is split into that is chosen by number. All
/// others are blocked.
fn reshape_links(x: &Shape, y: &Shape, choice: usize) -> AxisRules {
    let mut rules = AxisRules::new();
    let Some(runs) = runs(x, y) else {
        // Symbols hide the runs between the axes that agree at both ends.
        let (a, b) = (x.dims(), y.dims());
        let least = a.len().min(b.len());
        let lead = (0..least).take_while(|&i| a[i] == b[i]).count();
        let tail = (1..=least - lead).take_while(|&i| a[a.len() - i] == b[b.len() - i]);
        let tail = tail.count();
        for i in 0..lead {
            rules.same((IN, i), (OUT, i));
        }
        for i in 1..=tail {
            rules.same((IN, a.len() - i), (OUT, b.len() - i));
        }
        (lead..a.len() - tail).for_each(|i| rules.block((IN, i)));
        (lead..b.len() - tail).for_each(|i| rules.block((OUT, i)));
        return rules;
    };
    for (a, b) in runs {
        let (from, into) = (large(x, &a), large(y, &b));
        let chosen = match from.len() {
            1 => into.get(choice).or(into.first()),
            _ => into.first(),
        };
        let linked = match (from.first(), chosen) {
            (Some(&i), Some(&j)) => {
                let (p, q) = (x[i].as_fixed(), y[j].as_fixed());
                match (p, q) {
                    _ if x[i] == y[j] => rules.same((IN, i), (OUT, j)),
                    (Some(p), Some(q)) if q % p == 0 && p < q => {
                        rules.link((IN, i), (OUT, j), IndexMap::Merge { inner: q / p })
                    }
                    (Some(p), Some(q)) if p % q == 0 => {
                        let faster = into.iter().filter(|&&k| k > j);
                        let inner = match from.len() {
                            1 => faster.filter_map(|&k| y[k].as_fixed()).product(),
                            _ => p / q,
                        };
                        rules.link((OUT, j), (IN, i), IndexMap::Merge { inner })
                    }
                    _ => {
                        rules.block((IN, i));
                        rules.block((OUT, j));
                    }
                }
                (Some(i), Some(j))
            }
            _ => (None, None),
        };
        for i in a.filter(|&i| Some(i) != linked.0) {
            rules.block((IN, i));
        }
        for j in b.filter(|&j| Some(j) != linked.1) {
            rules.block((OUT, j));
        }
    }
    rules
}

impl OpRules for Reshape {
    fn infer(&self, inputs: &[TensorType]) -> Result<Vec<TensorType>> {
        arity(inputs, 1..=1)?;
        let x = &inputs[0];
        let fail = || Error::shape(format!("cannot reshape {x} to {}", self.shape));
        let same = x.shape.size()? == self.shape.size()?;
        if !same {
            return Err(fail());
        }
        Ok(vec![x.with_shape(self.shape.clone())])
    }

    fn vjp(&self, cx: &mut Vjp<'_>) -> Result<InputGrads> {
        let (g, shape) = (cx.grad()?, cx.input_type(0).shape);
        Ok(vec![Some(cx.b.reshape(g, shape)?)])
    }

    fn axes(&self, inputs: &[TensorType], outputs: &[TensorType]) -> AxisRules {
        reshape_links(&inputs[0].shape, &outputs[0].shape, 0)
    }

    /// Where one axis is split into several, such as queries, keys and values, heads and their
    /// width, entries of any of those may go.
    fn axes_alternatives(&self, inputs: &[TensorType], outputs: &[TensorType]) -> Vec<AxisRules> {
        let (x, y) = (&inputs[0].shape, &outputs[0].shape);
        let parts = runs(x, y).into_iter().flatten().filter_map(|(a, b)| {
            let parts = large(y, &b).len();
            (large(x, &a).len() == 1).then_some(parts)
        });
        let most = parts.max().unwrap_or(1);
        (1..most).map(|c| reshape_links(x, y, c)).collect()
    }

    fn cost(&self, _: &[TensorType], _: &[TensorType]) -> Result<Cost> {
        Ok(Cost::default())
    }

    fn shrink(&self, cx: &ShrinkCx<'_>) -> Result<Option<Op>> {
        let shape = cx.new_outputs[0].shape.clone();
        Ok(Some(Reshape { shape }.into()))
    }

    fn bind(&self, bindings: &Bindings) -> Result<Option<Op>> {
        let shape = self.shape.bind(bindings)?;
        Ok(Some(Reshape { shape }.into()))
    }
}

/// The inverse of a permutation.
fn inverse(perm: &[usize]) -> Vec<usize> {
    let mut out = vec![0; perm.len()];
    for (i, &p) in perm.iter().enumerate() {
        out[p] = i;
    }
    out
}

impl OpRules for Transpose {
    fn infer(&self, inputs: &[TensorType]) -> Result<Vec<TensorType>> {
        arity(inputs, 1..=1)?;
        let x = &inputs[0];
        let distinct: BTreeSet<usize> = self.perm.iter().copied().collect();
        if self.perm.len() != x.rank() || !distinct.into_iter().eq(0..x.rank()) {
            return Err(Error::invalid(format!(
                "{:?} is no permutation of the axes of {x}",
                self.perm
            )));
        }
        let shape: Shape = self.perm.iter().map(|&p| x.shape[p].clone()).collect();
        Ok(vec![x.with_shape(shape)])
    }

    fn vjp(&self, cx: &mut Vjp<'_>) -> Result<InputGrads> {
        let g = cx.grad()?;
        Ok(vec![Some(cx.b.transpose(g, &inverse(&self.perm))?)])
    }

    fn axes(&self, _: &[TensorType], _: &[TensorType]) -> AxisRules {
        let mut rules = AxisRules::new();
        for (i, &p) in self.perm.iter().enumerate() {
            rules.same((IN, p), (OUT, i));
        }
        rules
    }

    fn cost(&self, _: &[TensorType], outputs: &[TensorType]) -> Result<Cost> {
        Cost::elementwise(outputs)
    }
}

impl Slice {
    /// Checks the slice against a shape and gives the shape of the part.
    fn part(&self, shape: &Shape) -> Result<Shape> {
        let n = self.axes.len();
        if self.starts.len() != n || self.ends.len() != n || self.steps.len() != n {
            return Err(Error::invalid(
                "a slice needs one start, end and step an axis",
            ));
        }
        let distinct: BTreeSet<_> = self.axes.iter().collect();
        if distinct.len() != n {
            return Err(Error::invalid(format!(
                "the axes {:?} of a slice repeat",
                self.axes
            )));
        }
        let mut out = shape.clone();
        for i in 0..n {
            axis_in(self.axes[i], shape.rank())?;
            let size = shape[self.axes[i]].fixed()? as isize;
            let (start, end, step) = (self.starts[i], self.ends[i], self.steps[i]);
            let fits = match step {
                0 => false,
                s if s > 0 => 0 <= start && start <= end && end <= size,
                _ => -1 <= end && end <= start && start < size,
            };
            if !fits {
                return Err(Error::invalid(format!(
                    "cannot take {start}..{end} by {step} of axis {} of {shape}",
                    self.axes[i]
                )));
            }
            let count = (end - start).unsigned_abs().div_ceil(step.unsigned_abs());
            out.dims_mut()[self.axes[i]] = Dim::from(count);
        }
        Ok(out)
    }

    /// Links the whole (at `whole`) with the part (at `part`).
    fn link(&self, whole: Port, part: Port, rank: usize) -> AxisRules {
        let mut rules = AxisRules::new();
        for axis in 0..rank {
            match self.axes.iter().position(|&a| a == axis) {
                None => rules.same((whole, axis), (part, axis)),
                Some(i) if self.steps[i] == 1 => rules.link(
                    (part, axis),
                    (whole, axis),
                    IndexMap::Offset(self.starts[i] as usize),
                ),
                Some(_) => {
                    rules.block((whole, axis));
                    rules.block((part, axis));
                }
            }
        }
        rules
    }

    /// The slice after entries of the whole were removed; `kept` are the indices kept of an axis.
    fn shrunk(&self, kept: &dyn Fn(usize) -> Option<Vec<usize>>) -> Slice {
        let mut out = self.clone();
        for (i, &axis) in self.axes.iter().enumerate() {
            if let Some(kept) = kept(axis) {
                let before = |end: isize| kept.iter().filter(|&&k| (k as isize) < end).count();
                out.starts[i] = before(self.starts[i]) as isize;
                out.ends[i] = before(self.ends[i]) as isize;
            }
        }
        out
    }
}

impl OpRules for Slice {
    fn infer(&self, inputs: &[TensorType]) -> Result<Vec<TensorType>> {
        arity(inputs, 1..=1)?;
        Ok(vec![inputs[0].with_shape(self.part(&inputs[0].shape)?)])
    }

    fn vjp(&self, cx: &mut Vjp<'_>) -> Result<InputGrads> {
        let (g, shape) = (cx.grad()?, cx.input_type(0).shape);
        let slice = self.clone();
        Ok(vec![Some(cx.b.op(SliceGrad { slice, shape }, &[g])?)])
    }

    fn axes(&self, inputs: &[TensorType], _: &[TensorType]) -> AxisRules {
        self.link(IN, OUT, inputs[0].rank())
    }

    fn cost(&self, _: &[TensorType], outputs: &[TensorType]) -> Result<Cost> {
        Cost::elementwise(outputs)
    }

    fn shrink(&self, cx: &ShrinkCx<'_>) -> Result<Option<Op>> {
        Ok(Some(
            self.shrunk(&|axis| cx.kept.get(&(IN, axis)).cloned())
                .into(),
        ))
    }
}

impl OpRules for SliceGrad {
    fn infer(&self, inputs: &[TensorType]) -> Result<Vec<TensorType>> {
        arity(inputs, 1..=1)?;
        let part = self.slice.part(&self.shape)?;
        if part != inputs[0].shape {
            return Err(Error::shape(format!(
                "the slice of {} has shape {part}, the gradient is {}",
                self.shape, inputs[0]
            )));
        }
        Ok(vec![inputs[0].with_shape(self.shape.clone())])
    }

    fn vjp(&self, cx: &mut Vjp<'_>) -> Result<InputGrads> {
        let g = cx.grad()?;
        Ok(vec![Some(cx.b.op(self.slice.clone(), &[g])?)])
    }

    fn axes(&self, inputs: &[TensorType], _: &[TensorType]) -> AxisRules {
        self.slice.link(OUT, IN, inputs[0].rank())
    }

    fn cost(&self, _: &[TensorType], outputs: &[TensorType]) -> Result<Cost> {
        Cost::elementwise(outputs)
    }

    fn shrink(&self, cx: &ShrinkCx<'_>) -> Result<Option<Op>> {
        let slice = self
            .slice
            .shrunk(&|axis| cx.kept.get(&(OUT, axis)).cloned());
        let shape = cx.new_outputs[0].shape.clone();
        Ok(Some(SliceGrad { slice, shape }.into()))
    }

    fn bind(&self, bindings: &Bindings) -> Result<Option<Op>> {
        let (slice, shape) = (self.slice.clone(), self.shape.bind(bindings)?);
        Ok(Some(SliceGrad { slice, shape }.into()))
    }
}

impl OpRules for Concat {
    fn infer(&self, inputs: &[TensorType]) -> Result<Vec<TensorType>> {
        arity(inputs, 1..=usize::MAX)?;
        let first = &inputs[0];
        axis_in(self.axis, first.rank())?;
        let mut total = Dim::from(0);
        for ty in inputs {
            same_dtype(first, ty)?;
            let agrees = ty.rank() == first.rank()
                && (0..first.rank()).all(|a| a == self.axis || ty.shape[a] == first.shape[a]);
            if !agrees {
                return Err(Error::shape(format!(
                    "cannot concatenate {first} and {ty} along axis {}",
                    self.axis
                )));
            }
            total = total.plus(&ty.shape[self.axis])?;
        }
        let mut shape = first.shape.clone();
        shape.dims_mut()[self.axis] = total;
        Ok(vec![first.with_shape(shape)])
    }

    fn vjp(&self, cx: &mut Vjp<'_>) -> Result<InputGrads> {
        let g = cx.grad()?;
        let sizes = (0..cx.inputs.len())
            .map(|i| cx.input_type(i).shape[self.axis].fixed())
            .collect::<Result<Vec<_>>>()?;
        let parts = cx.b.split(g, self.axis, &sizes)?;
        Ok(parts.into_iter().map(Some).collect())
    }

    fn axes(&self, inputs: &[TensorType], outputs: &[TensorType]) -> AxisRules {
        let mut rules = AxisRules::new();
        let mut at = Some(0);
        for (i, ty) in inputs.iter().enumerate() {
            for axis in 0..ty.rank() {
                let (a, b) = ((Port::Input(i), axis), (OUT, axis));
                match at {
                    _ if axis != self.axis => rules.same(a, b),
                    Some(offset) => rules.link(a, b, IndexMap::Offset(offset)),
                    None => {
                        rules.block(a);
                        rules.block(b);
                    }
                }
            }
            at = at.zip(ty.shape[self.axis].as_fixed()).map(|(a, n)| a + n);
        }
        if outputs[0].shape[self.axis].as_fixed().is_none() {
            rules.block((OUT, self.axis));
        }
        rules
    }

    fn cost(&self, _: &[TensorType], outputs: &[TensorType]) -> Result<Cost> {
        Cost::elementwise(outputs)
    }
}

impl OpRules for Split {
    fn infer(&self, inputs: &[TensorType]) -> Result<Vec<TensorType>> {
        arity(inputs, 1..=1)?;
        let x = &inputs[0];
        axis_in(self.axis, x.rank())?;
        let total = self
            .sizes
            .iter()
            .try_fold(0usize, |sum, &n| sum.checked_add(n));
        if self.sizes.is_empty() || total != Some(x.shape[self.axis].fixed()?) {
            return Err(Error::shape(format!(
                "the parts {:?} do not add up to axis {} of {x}",
                self.sizes, self.axis
            )));
        }
        let part = |&size: &usize| {
            let mut shape = x.shape.clone();
            shape.dims_mut()[self.axis] = Dim::from(size);
            x.with_shape(shape)
        };
        Ok(self.sizes.iter().map(part).collect())
    }

    fn vjp(&self, cx: &mut Vjp<'_>) -> Result<InputGrads> {
        let mut parts = Vec::with_capacity(cx.outputs.len());
        for (i, &out) in cx.outputs.iter().enumerate() {
            parts.push(match cx.grads[i] {
                Some(g) => g,
                None => {
                    let ty = cx.b.type_of(out).clone();
                    let zero = cx.b.scalar(ty.dtype, 0.0)?;
                    cx.b.expand(zero, ty.shape)?
                }
            });
        }
        Ok(vec![Some(cx.b.concat(&parts, self.axis)?)])
    }

    fn axes(&self, inputs: &[TensorType], _: &[TensorType]) -> AxisRules {
        let mut rules = AxisRules::new();
        let mut at = 0;
        for (o, &size) in self.sizes.iter().enumerate() {
            for axis in 0..inputs[0].rank() {
                let part = (Port::Output(o), axis);
                if axis == self.axis {
                    rules.link(part, (IN, axis), IndexMap::Offset(at));
                } else {
                    rules.same(part, (IN, axis));
                }
            }
            at += size;
        }
        rules
    }

    fn cost(&self, _: &[TensorType], outputs: &[TensorType]) -> Result<Cost> {
        Cost::elementwise(outputs)
    }

    fn shrink(&self, cx: &ShrinkCx<'_>) -> Result<Option<Op>> {
        let sizes = cx
            .new_outputs
            .iter()
            .map(|t| t.shape[self.axis].fixed())
            .collect::<Result<_>>()?;
        Ok(Some(
            Split {
                axis: self.axis,
                sizes,
            }
            .into(),
        ))
    }
}

impl Pad {
    fn padded(&self, shape: &Shape) -> Result<Shape> {
        if self.begin.len() != shape.rank() || self.end.len() != shape.rank() {
            return Err(Error::invalid(format!(
                "padding {:?} and {:?} needs one entry for each axis of {shape}",
                self.begin, self.end
            )));
        }
        let mut out = shape.clone();
        for axis in 0..shape.rank() {
            let (begin, end) = (self.begin[axis], self.end[axis]);
            if begin == 0 && end == 0 {
                continue;
            }
            let longest = match self.mode {
                PadMode::Constant(_) => usize::MAX,
                PadMode::Reflect => shape[axis].fixed()?.saturating_sub(1),
                PadMode::Edge if shape[axis].fixed()? == 0 => 0,
                PadMode::Edge => usize::MAX,
            };
            if begin.max(end) > longest {
                return Err(Error::invalid(format!(
                    "padding of {begin} and {end} by {:?} is too long for axis {axis} of {shape}",
                    self.mode
                )));
            }
            let more = isize::try_from(begin)
                .ok()
                .zip(isize::try_from(end).ok())
                .and_then(|(b, e)| b.checked_add(e))
                .ok_or_else(|| Error::invalid("padding is too large"))?;
            out.dims_mut()[axis] = shape[axis].add(more)?;
        }
        Ok(out)
    }

    fn link(&self, inner: Port, padded: Port) -> AxisRules {
        let mut rules = AxisRules::new();
        for axis in 0..self.begin.len() {
            if self.begin[axis] == 0 && self.end[axis] == 0 {
                rules.same((inner, axis), (padded, axis));
            } else {
                rules.block((inner, axis));
                rules.block((padded, axis));
            }
        }
        rules
    }
}

impl OpRules for Pad {
    fn infer(&self, inputs: &[TensorType]) -> Result<Vec<TensorType>> {
        arity(inputs, 1..=1)?;
        Ok(vec![inputs[0].with_shape(self.padded(&inputs[0].shape)?)])
    }

    fn vjp(&self, cx: &mut Vjp<'_>) -> Result<InputGrads> {
        let g = cx.grad()?;
        if !matches!(self.mode, PadMode::Constant(_)) {
            let pad = self.clone();
            return Ok(vec![Some(cx.b.op(PadGrad { pad }, &[g])?)]);
        }
        let shape = cx.input_type(0).shape;
        let padded = (0..shape.rank()).filter(|&a| self.begin[a] + self.end[a] > 0);
        let mut slice = Slice {
            axes: padded.collect(),
            starts: Default::default(),
            ends: Default::default(),
            steps: Default::default(),
        };
        for &axis in &slice.axes.clone() {
            slice.starts.push(self.begin[axis] as isize);
            let end = self.begin[axis] + shape[axis].fixed()?;
            slice.ends.push(end as isize);
            slice.steps.push(1);
        }
        Ok(vec![Some(cx.b.op(slice, &[g])?)])
    }

    fn axes(&self, _: &[TensorType], _: &[TensorType]) -> AxisRules {
        self.link(IN, OUT)
    }

    fn cost(&self, _: &[TensorType], outputs: &[TensorType]) -> Result<Cost> {
        Cost::elementwise(outputs)
    }
}

impl OpRules for PadGrad {
    fn infer(&self, inputs: &[TensorType]) -> Result<Vec<TensorType>> {
        arity(inputs, 1..=1)?;
        let ty = &inputs[0];
        if self.pad.begin.len() != ty.rank() || self.pad.end.len() != ty.rank() {
            return Err(Error::invalid(format!(
                "padding {:?} needs one entry for each axis of {ty}",
                self.pad.begin
            )));
        }
        let mut shape = ty.shape.clone();
        for axis in 0..ty.rank() {
            let less = self.pad.begin[axis] + self.pad.end[axis];
            if less > 0 {
                shape.dims_mut()[axis] = ty.shape[axis].add(-(less as isize))?;
            }
        }
        self.pad.padded(&shape)?;
        Ok(vec![ty.with_shape(shape)])
    }

    fn vjp(&self, cx: &mut Vjp<'_>) -> Result<InputGrads> {
        let g = cx.grad()?;
        Ok(vec![Some(cx.b.op(self.pad.clone(), &[g])?)])
    }

    fn axes(&self, _: &[TensorType], _: &[TensorType]) -> AxisRules {
        self.pad.link(OUT, IN)
    }

    fn cost(&self, inputs: &[TensorType], _: &[TensorType]) -> Result<Cost> {
        Cost::elementwise(inputs)
    }
}

impl OpRules for Expand {
    fn infer(&self, inputs: &[TensorType]) -> Result<Vec<TensorType>> {
        arity(inputs, 1..=1)?;
        let x = &inputs[0];
        if x.shape.broadcast(&self.shape)? != self.shape {
            return Err(Error::shape(format!("cannot expand {x} to {}", self.shape)));
        }
        Ok(vec![x.with_shape(self.shape.clone())])
    }

    fn vjp(&self, cx: &mut Vjp<'_>) -> Result<InputGrads> {
        // The driver sums a broadcast gradient to the input's shape.
        Ok(vec![Some(cx.grad()?)])
    }

    fn axes(&self, inputs: &[TensorType], outputs: &[TensorType]) -> AxisRules {
        let mut rules = AxisRules::broadcast(inputs, outputs);
        let lead = outputs[0].rank() - inputs[0].rank();
        for axis in 0..outputs[0].rank() {
            if axis < lead || inputs[0].shape[axis - lead] != outputs[0].shape[axis] {
                rules.free((OUT, axis));
            }
        }
        rules
    }

    fn cost(&self, _: &[TensorType], outputs: &[TensorType]) -> Result<Cost> {
        Cost::elementwise(outputs)
    }

    fn shrink(&self, cx: &ShrinkCx<'_>) -> Result<Option<Op>> {
        let shape = cx.new_outputs[0].shape.clone();
        Ok(Some(Expand { shape }.into()))
    }

    fn bind(&self, bindings: &Bindings) -> Result<Option<Op>> {
        let shape = self.shape.bind(bindings)?;
        Ok(Some(Expand { shape }.into()))
    }
}

impl OpRules for Tile {
    fn infer(&self, inputs: &[TensorType]) -> Result<Vec<TensorType>> {
        arity(inputs, 1..=1)?;
        let x = &inputs[0];
        if self.repeats.len() != x.rank() {
            return Err(Error::invalid(format!(
                "repeats {:?} needs one entry for each axis of {x}",
                self.repeats
            )));
        }
        let dims = x.shape.dims().iter().zip(&self.repeats);
        let shape: Shape = dims
            .map(|(d, &r)| d.mul(r))
            .collect::<Result<Vec<_>>>()?
            .into();
        Ok(vec![x.with_shape(shape)])
    }

    fn vjp(&self, cx: &mut Vjp<'_>) -> Result<InputGrads> {
        let (mut g, x) = (cx.grad()?, cx.input_type(0).shape);
        let mut split: Vec<Dim> = Vec::new();
        for (d, &r) in x.dims().iter().zip(&self.repeats) {
            split.extend([Dim::from(r), d.clone()]);
        }
        g = cx.b.reshape(g, split)?;
        let axes: Vec<usize> = (0..x.rank()).map(|a| 2 * a).collect();
        Ok(vec![Some(cx.b.sum(g, &axes, false)?)])
    }

    fn axes(&self, inputs: &[TensorType], _: &[TensorType]) -> AxisRules {
        let mut rules = AxisRules::new();
        for axis in 0..inputs[0].rank() {
            if self.repeats[axis] == 1 {
                rules.same((IN, axis), (OUT, axis));
            } else if inputs[0].shape[axis].as_fixed().is_some() {
                rules.link((IN, axis), (OUT, axis), IndexMap::Merge { inner: 1 });
            } else {
                rules.block((IN, axis));
                rules.block((OUT, axis));
            }
        }
        rules
    }

    fn cost(&self, _: &[TensorType], outputs: &[TensorType]) -> Result<Cost> {
        Cost::elementwise(outputs)
    }
}

/// Links the axes of a full shape with those that remain without some of size 1.
fn link_without(axes: &[usize], full: Port, rank: usize, less: Port) -> AxisRules {
    let mut rules = AxisRules::new();
    let mut at = 0;
    for axis in 0..rank {
        if axes.contains(&axis) {
            rules.block((full, axis));
        } else {
            rules.same((full, axis), (less, at));
            at += 1;
        }
    }
    rules
}

fn ascending(axes: &[usize], rank: usize) -> Result<()> {
    if axes.windows(2).all(|w| w[0] < w[1]) && axes.iter().all(|&a| a < rank) {
        return Ok(());
    }
    Err(Error::invalid(format!(
        "axes {axes:?} must ascend and be below {rank}"
    )))
}

impl OpRules for Squeeze {
    fn infer(&self, inputs: &[TensorType]) -> Result<Vec<TensorType>> {
        arity(inputs, 1..=1)?;
        let x = &inputs[0];
        ascending(&self.axes, x.rank())?;
        if let Some(&axis) = self.axes.iter().find(|&&a| x.shape[a] != Dim::from(1)) {
            return Err(Error::shape(format!(
                "cannot squeeze axis {axis} of {x}: its size is not 1"
            )));
        }
        let kept = (0..x.rank()).filter(|a| !self.axes.contains(a));
        let shape: Shape = kept.map(|a| x.shape[a].clone()).collect();
        Ok(vec![x.with_shape(shape)])
    }

    fn vjp(&self, cx: &mut Vjp<'_>) -> Result<InputGrads> {
        let g = cx.grad()?;
        Ok(vec![Some(cx.b.unsqueeze(g, &self.axes)?)])
    }

    fn axes(&self, inputs: &[TensorType], _: &[TensorType]) -> AxisRules {
        link_without(&self.axes, IN, inputs[0].rank(), OUT)
    }

    fn cost(&self, _: &[TensorType], _: &[TensorType]) -> Result<Cost> {
        Ok(Cost::default())
    }
}

impl OpRules for Unsqueeze {
    fn infer(&self, inputs: &[TensorType]) -> Result<Vec<TensorType>> {
        arity(inputs, 1..=1)?;
        let x = &inputs[0];
        let rank = x.rank() + self.axes.len();
        ascending(&self.axes, rank)?;
        let mut rest = x.shape.dims().iter();
        let shape: Shape = (0..rank)
            .map(|axis| match self.axes.contains(&axis) {
                true => Dim::from(1),
                false => rest.next().cloned().unwrap_or(Dim::from(1)),
            })
            .collect();
        Ok(vec![x.with_shape(shape)])
    }

    fn vjp(&self, cx: &mut Vjp<'_>) -> Result<InputGrads> {
        let g = cx.grad()?;
        Ok(vec![Some(cx.b.squeeze(g, &self.axes)?)])
    }

    fn axes(&self, _: &[TensorType], outputs: &[TensorType]) -> AxisRules {
        link_without(&self.axes, OUT, outputs[0].rank(), IN)
    }

    fn cost(&self, _: &[TensorType], _: &[TensorType]) -> Result<Cost> {
        Ok(Cost::default())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::DType;

    #[test]
    fn reshapes_split_into_runs() {
        let n = || Dim::from("n");
        for (a, b, expected) in [
            (
                vec![n(), 4.into(), 2.into(), 2.into()],
                vec![n(), 16.into()],
                Some(vec![(0..1, 0..1), (1..4, 1..2)]),
            ),
            (
                vec![2.into(), 6.into()],
                vec![2.into(), 3.into(), 2.into()],
                Some(vec![(0..1, 0..1), (1..2, 1..3)]),
            ),
            (vec![n(), 4.into()], vec![n().mul(4).unwrap()], None),
        ] {
            assert_eq!(runs(&a.into(), &b.into()), expected);
        }
    }

    #[test]
    fn flattening_links_the_channel_axis_only() {
        let x = TensorType::new(DType::F32, [1, 4, 2, 2]);
        let op = Reshape {
            shape: [1, 16].into(),
        };
        let y = op.infer(std::slice::from_ref(&x)).unwrap();
        let rules = op.axes(std::slice::from_ref(&x), &y);
        rules.check(&[x], &y).unwrap();
        assert!(rules.links.contains(&crate::ops::AxisLink {
            a: (IN, 1),
            b: (OUT, 1),
            map: IndexMap::Merge { inner: 4 },
        }));
        assert!(rules.blocked.contains(&(IN, 2)) && rules.blocked.contains(&(IN, 3)));
    }

    #[test]
    fn of_the_parts_of_an_axis_any_may_be_followed() {
        let x = TensorType::new(DType::F32, [Dim::from("n"), 24.into()]);
        let op = Reshape {
            shape: ["n".into(), 3.into(), 4.into(), Dim::from(2)].into(),
        };
        let y = op.infer(std::slice::from_ref(&x)).unwrap();
        let inputs = [x];
        let all: Vec<AxisRules> = std::iter::once(op.axes(&inputs, &y))
            .chain(op.axes_alternatives(&inputs, &y))
            .collect();
        assert_eq!(all.len(), 3);
        for (i, (rules, inner)) in all.iter().zip([8, 2, 1]).enumerate() {
            rules.check(&inputs, &y).unwrap();
            let link = crate::ops::AxisLink {
                a: (OUT, 1 + i),
                b: (IN, 1),
                map: IndexMap::Merge { inner },
            };
            assert!(rules.links.contains(&link), "{rules:?}");
            let others = (1..4).filter(|&a| a != 1 + i);
            assert!(others.clone().all(|a| rules.blocked.contains(&(OUT, a))));
        }
        // What is merged has no alternatives.
        let back = Reshape {
            shape: inputs[0].shape.clone(),
        };
        assert!(back.axes_alternatives(&y, &inputs).is_empty());
    }

    #[test]
    fn axes_that_agree_at_the_ends_are_linked_past_symbols() {
        let dims = |d: &[Dim]| TensorType::new(DType::F32, Shape::new(d.to_vec()));
        let (n, s) = (Dim::from("n"), Dim::from("s"));
        let rows = n.times(&s).unwrap();
        let x = dims(&[n, s, 6.into()]);
        let op = Reshape {
            shape: Shape::new([rows, 6.into()]),
        };
        let y = op.infer(std::slice::from_ref(&x)).unwrap();
        let rules = op.axes(std::slice::from_ref(&x), &y);
        rules.check(std::slice::from_ref(&x), &y).unwrap();
        let mut expected = AxisRules::new();
        expected.same((IN, 2), (OUT, 1));
        expected.block((IN, 0));
        expected.block((IN, 1));
        expected.block((OUT, 0));
        assert_eq!(rules, expected);
    }

    #[test]
    fn slices_check_their_bounds() {
        let x = TensorType::new(DType::F32, [5]);
        let slice = |start, end, step| Slice {
            axes: smallvec::smallvec![0],
            starts: smallvec::smallvec![start],
            ends: smallvec::smallvec![end],
            steps: smallvec::smallvec![step],
        };
        for (s, size) in [
            ((1, 5, 2), 2),
            ((4, -1, -1), 5),
            ((0, 0, 1), 0),
            ((4, 0, -3), 2),
        ] {
            let ty = slice(s.0, s.1, s.2)
                .infer(std::slice::from_ref(&x))
                .unwrap();
            assert_eq!(ty[0].shape, [size].into(), "{s:?}");
        }
        for s in [(0, 6, 1), (3, 2, 1), (5, -1, -1), (0, 1, 0)] {
            assert!(
                slice(s.0, s.1, s.2)
                    .infer(std::slice::from_ref(&x))
                    .is_err(),
                "{s:?}"
            );
        }
    }
}
