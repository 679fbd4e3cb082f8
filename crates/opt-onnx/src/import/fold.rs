//! Arithmetic on known content: the shape computations that exporters write as nodes.

use opt_core::tensor::Dims;
use opt_core::{DType, Result, Tensor};

use super::arithmetic::{
    arithmetic, binary, broadcast, cast, choose, non_zero, range, reduce, reshape, scatter_nd,
    spread, unary,
};
use super::known::{Item, Items, MAX_ITEMS};
use super::node::Node;
use super::{Cx, Known};
use crate::tensor;

impl Cx<'_> {
    /// The content of a node's outputs, if that of its inputs is known and small, and whether it
    /// follows from the content given for an input. `None` where it is not known: that is never
    /// an error, since a lowering says what is wrong with a node.
    pub(super) fn fold(&mut self, node: &Node<'_>) -> Result<Option<(Vec<Items>, bool)>> {
        if !node.proto.domain().is_empty() && node.proto.domain() != "ai.onnx" {
            return Ok(None);
        }
        match node.op() {
            // What depends on shapes alone.
            "Shape" => {
                let dims = self.ty(node.input(0)?).shape.dims().to_vec();
                let rank = dims.len() as i64;
                let bound = |v: i64| if v < 0 { v + rank } else { v }.clamp(0, rank) as usize;
                let start = bound(node.int_or("start", 0)?);
                let end = bound(node.int_or("end", rank)?);
                let dims = dims.get(start..end.max(start)).unwrap_or_default();
                return Ok(Some((vec![Items::of_dims(dims)], false)));
            }
            "Size" => {
                let Ok(size) = self.ty(node.input(0)?).shape.size() else {
                    return Ok(None);
                };
                let items = Items::new(DType::I64, &[], vec![Item::Int(size.expr())]);
                return Ok(Some((vec![items], false)));
            }
            _ => {}
        }
        if !FOLDED.contains(&node.op()) {
            return Ok(None);
        }
        let mut inputs = Vec::with_capacity(node.input_count());
        let mut offered = false;
        for v in node.all_inputs() {
            let Some(v) = v else {
                inputs.push(None);
                continue;
            };
            let val = &self.vals[*v];
            // A large tensor is not converted only to be found too large.
            if let Some(Known::Tensor(t)) = &val.known
                && t.len() > MAX_ITEMS
            {
                return Ok(None);
            }
            let Some(items) = val.known.as_ref().and_then(Known::items) else {
                return Ok(None);
            };
            offered |= val.offered;
            inputs.push(Some(items));
        }
        let folded = evaluate(node, &inputs, self)?;
        Ok(folded
            .filter(|out| out.iter().all(|o| o.items.len() <= MAX_ITEMS))
            .map(|out| (out, offered)))
    }
}

/// The operators that are evaluated on known content.
const FOLDED: &[&str] = &[
    "Abs",
    "Add",
    "And",
    "Cast",
    "CastLike",
    "Ceil",
    "Concat",
    "ConstantOfShape",
    "CumSum",
    "Div",
    "Equal",
    "Exp",
    "Expand",
    "Flatten",
    "Floor",
    "Gather",
    "Greater",
    "GreaterOrEqual",
    "Identity",
    "Less",
    "LessOrEqual",
    "Log",
    "Max",
    "Min",
    "Mod",
    "Mul",
    "Neg",
    "NonZero",
    "Not",
    "Or",
    "Pow",
    "Range",
    "Reciprocal",
    "ReduceMax",
    "ReduceMin",
    "ReduceProd",
    "ReduceSum",
    "Reshape",
    "Round",
    "ScatterElements",
    "ScatterND",
    "Size",
    "Slice",
    "Split",
    "Sqrt",
    "Squeeze",
    "Sub",
    "Sum",
    "Tile",
    "Transpose",
    "Trilu",
    "Unsqueeze",
    "Where",
    "Xor",
];

pub(super) fn integers(items: &Items) -> Option<Vec<i64>> {
    items.items.iter().map(Item::as_i64).collect()
}

pub(super) fn axis(value: i64, rank: usize) -> Option<usize> {
    let value = if value < 0 {
        value + rank as i64
    } else {
        value
    };
    usize::try_from(value).ok().filter(|&a| a < rank)
}

/// A list from an attribute or a known input.
fn list(
    node: &Node<'_>,
    name: &str,
    inputs: &[Option<Items>],
    at: usize,
) -> Result<Option<Vec<i64>>> {
    Ok(match node.ints(name)? {
        Some(list) => Some(list),
        None => inputs.get(at).and_then(Option::as_ref).and_then(integers),
    })
}

fn evaluate(node: &Node<'_>, inputs: &[Option<Items>], cx: &Cx<'_>) -> Result<Option<Vec<Items>>> {
    let at = |i: usize| inputs.get(i).and_then(Option::as_ref);
    let Some(x) = at(0) else { return Ok(None) };
    let one = |items: Option<Items>| Ok(items.map(|i| vec![i]));
    match node.op() {
        "Identity" => one(Some(x.clone())),
        "Abs" | "Neg" | "Ceil" | "Floor" | "Round" | "Sqrt" | "Exp" | "Log" | "Reciprocal"
        | "Not" => one(unary(node.op(), x)),
        "Add" | "Sub" | "Mul" | "Div" | "Mod" | "Pow" | "Max" | "Min" | "And" | "Or" | "Xor"
        | "Equal" | "Less" | "LessOrEqual" | "Greater" | "GreaterOrEqual" | "Sum" => {
            let fmod = node.int_or("fmod", 0)? != 0;
            let mut result = x.clone();
            for i in 1..inputs.len() {
                let Some(y) = at(i) else { return Ok(None) };
                match binary(node.op(), &result, y, fmod) {
                    Some(r) => result = r,
                    None => return Ok(None),
                }
            }
            one(Some(result))
        }
        "Cast" => {
            let Ok(to) = tensor::dtype_of(node.int_or("to", 0)?) else {
                return Ok(None);
            };
            one(cast(x, to))
        }
        "CastLike" => one(at(1).and_then(|like| cast(x, like.dtype))),
        "Where" => {
            let (Some(a), Some(b)) = (at(1), at(2)) else {
                return Ok(None);
            };
            one(choose(x, a, b))
        }
        "Range" => {
            let (Some(limit), Some(delta)) = (at(1), at(2)) else {
                return Ok(None);
            };
            one(range(x, limit, delta))
        }
        "ConstantOfShape" => {
            let value = match node.tensor("value")? {
                Some(proto) => match tensor::read(proto, cx.source()) {
                    Ok(t) => Items::of(&t),
                    Err(_) => None,
                },
                None => Some(Items::new(DType::F32, &[1], vec![Item::Num(0.0)])),
            };
            let (Some(value), Some(shape)) = (value, integers(x)) else {
                return Ok(None);
            };
            let shape: Option<Dims> = shape.iter().map(|&d| usize::try_from(d).ok()).collect();
            let Some(shape) = shape else { return Ok(None) };
            let len = shape.iter().try_fold(1usize, |n, &d| n.checked_mul(d));
            let (Some(len), Some(item)) = (len.filter(|&n| n <= MAX_ITEMS), value.items.first())
            else {
                return Ok(None);
            };
            one(Some(Items::new(
                value.dtype,
                &shape,
                vec![item.clone(); len],
            )))
        }
        "Reshape" => one(at(1).and_then(integers).and_then(|target| {
            let allow_zero = node.int_or("allowzero", 0).ok()? != 0;
            let shape = reshape(&x.shape, &target, allow_zero)?;
            Some(x.reshaped(&shape))
        })),
        "Flatten" => {
            let rank = x.shape.len() as i64;
            let at = node.int_or("axis", 1)?;
            let at = if at < 0 { at + rank } else { at };
            let Ok(at) = usize::try_from(at) else {
                return Ok(None);
            };
            if at > x.shape.len() {
                return Ok(None);
            }
            let outer: usize = x.shape[..at].iter().product();
            let inner: usize = x.shape[at..].iter().product();
            one(Some(x.reshaped(&[outer, inner])))
        }
        "Squeeze" => {
            let given = inputs.len() > 1 || node.has("axes");
            let axes = list(node, "axes", inputs, 1)?;
            let rank = x.shape.len();
            let axes: Option<Vec<usize>> = match axes {
                Some(list) => list.iter().map(|&a| axis(a, rank)).collect(),
                None if given => None,
                None => Some((0..rank).filter(|&a| x.shape[a] == 1).collect()),
            };
            one(axes.and_then(|axes| {
                let fits = axes.iter().all(|&a| x.shape[a] == 1);
                let kept = (0..rank).filter(|a| !axes.contains(a)).map(|a| x.shape[a]);
                let kept: Dims = kept.collect();
                fits.then(|| x.reshaped(&kept))
            }))
        }
        "Unsqueeze" => {
            let Some(axes) = list(node, "axes", inputs, 1)? else {
                return Ok(None);
            };
            let rank = x.shape.len() + axes.len();
            let axes: Option<Vec<usize>> = axes.iter().map(|&a| axis(a, rank)).collect();
            one(axes.and_then(|axes| {
                let mut rest = x.shape.iter();
                let shape: Option<Dims> = (0..rank)
                    .map(|a| {
                        if axes.contains(&a) {
                            Some(1)
                        } else {
                            rest.next().copied()
                        }
                    })
                    .collect();
                let shape = shape?;
                rest.next().is_none().then(|| x.reshaped(&shape))
            }))
        }
        "Transpose" => {
            let rank = x.shape.len();
            let perm: Option<Vec<usize>> = match node.ints("perm")? {
                Some(list) => list.iter().map(|&a| usize::try_from(a).ok()).collect(),
                None => Some((0..rank).rev().collect()),
            };
            one(perm.and_then(|perm| x.pick(&x.positions()?.transpose(&perm).ok()?)))
        }
        "Concat" => {
            let Some(axis) = axis(node.int_or("axis", 1)?, x.shape.len()) else {
                return Ok(None);
            };
            // Each part's positions start where those of the part before end.
            let mut all = Items::new(x.dtype, &[0], Vec::new());
            let mut parts = Vec::new();
            for i in 0..inputs.len() {
                let Some(part) = at(i) else { return Ok(None) };
                let start = all.items.len() as i64;
                let positions: Vec<i64> = (start..start + part.items.len() as i64).collect();
                all.items.extend(part.items.iter().cloned());
                match Tensor::new(&part.shape, positions) {
                    Ok(t) => parts.push(t),
                    Err(_) => return Ok(None),
                }
            }
            all.shape = [all.items.len()].into_iter().collect();
            one(Tensor::concat(&parts, axis).ok().and_then(|p| all.pick(&p)))
        }
        "Gather" => {
            let Some(index) = at(1).and_then(integers) else {
                return Ok(None);
            };
            let Some(axis) = axis(node.int_or("axis", 0)?, x.shape.len()) else {
                return Ok(None);
            };
            let size = x.shape[axis];
            let index: Option<Vec<usize>> = index.iter().map(|&i| self::axis(i, size)).collect();
            let shape = at(1).map(|i| i.shape.clone()).unwrap_or_default();
            one(index.and_then(|index| {
                let picked = x.pick(&x.positions()?.select(axis, &index).ok()?)?;
                let mut out: Dims = x.shape[..axis].into();
                out.extend_from_slice(&shape);
                out.extend_from_slice(&x.shape[axis + 1..]);
                Some(picked.reshaped(&out))
            }))
        }
        "Slice" => {
            let starts = list(node, "starts", inputs, 1)?;
            let ends = list(node, "ends", inputs, 2)?;
            let axes = list(node, "axes", inputs, 3)?;
            let steps = list(node, "steps", inputs, 4)?;
            if (inputs.len() > 3 && at(3).is_some() && axes.is_none())
                || (inputs.len() > 4 && at(4).is_some() && steps.is_none())
            {
                return Ok(None);
            }
            let (Some(starts), Some(ends)) = (starts, ends) else {
                return Ok(None);
            };
            let axes = axes.unwrap_or_else(|| (0..starts.len() as i64).collect());
            let steps = steps.unwrap_or_else(|| vec![1; starts.len()]);
            let mut positions = match x.positions() {
                Some(p) => p,
                None => return Ok(None),
            };
            for i in 0..starts.len() {
                let (Some(axis), Some(&end), Some(&step)) = (
                    axes.get(i).and_then(|&a| axis(a, x.shape.len())),
                    ends.get(i),
                    steps.get(i),
                ) else {
                    return Ok(None);
                };
                let Some(index) = slice_indices(positions.shape()[axis], starts[i], end, step)
                else {
                    return Ok(None);
                };
                match positions.select(axis, &index) {
                    Ok(p) => positions = p,
                    Err(_) => return Ok(None),
                }
            }
            one(x.pick(&positions))
        }
        "Split" => {
            let Some(axis) = axis(node.int_or("axis", 0)?, x.shape.len()) else {
                return Ok(None);
            };
            let count = node.output_count();
            let sizes = match list(node, "split", inputs, 1)? {
                Some(sizes) => sizes,
                None if inputs.len() > 1 => return Ok(None),
                None => {
                    let chunk = x.shape[axis].div_ceil(count.max(1)) as i64;
                    let last = x.shape[axis] as i64 - chunk * (count as i64 - 1);
                    let mut sizes = vec![chunk; count];
                    if let Some(s) = sizes.last_mut() {
                        *s = last;
                    }
                    sizes
                }
            };
            let mut start = 0usize;
            let mut parts = Vec::new();
            for size in sizes {
                let end = usize::try_from(size)
                    .ok()
                    .and_then(|s| start.checked_add(s));
                let Some(end) = end.filter(|&e| e <= x.shape[axis]) else {
                    return Ok(None);
                };
                let index: Vec<usize> = (start..end).collect();
                let part = x
                    .positions()
                    .and_then(|p| p.select(axis, &index).ok())
                    .and_then(|p| x.pick(&p));
                let Some(part) = part else { return Ok(None) };
                parts.push(part);
                start = end;
            }
            Ok(Some(parts))
        }
        "Expand" => one(at(1).and_then(integers).and_then(|target| {
            let target: Option<Dims> = target.iter().map(|&d| usize::try_from(d).ok()).collect();
            let shape = broadcast(&x.shape, &target?)?;
            spread(x, &shape)
        })),
        "Tile" => one(at(1).and_then(integers).and_then(|repeats| {
            let mut positions = x.positions()?;
            if repeats.len() != x.shape.len() {
                return None;
            }
            for (axis, &n) in repeats.iter().enumerate() {
                let n = usize::try_from(n).ok().filter(|&n| n <= MAX_ITEMS)?;
                if n.checked_mul(positions.len())? > MAX_ITEMS {
                    return None;
                }
                let size = positions.shape()[axis];
                let index: Vec<usize> = (0..n * size).map(|i| i % size).collect();
                positions = positions.select(axis, &index).ok()?;
            }
            x.pick(&positions)
        })),
        "ReduceProd" | "ReduceSum" | "ReduceMax" | "ReduceMin" => {
            let axes = list(node, "axes", inputs, 1)?;
            if axes.is_none() && at(1).is_some() {
                return Ok(None);
            }
            let keep = node.int_or("keepdims", 1)? != 0;
            let noop = node.int_or("noop_with_empty_axes", 0)? != 0;
            one(reduce(node.op(), x, axes, keep, noop))
        }
        "NonZero" => one(non_zero(x)),
        "CumSum" => {
            let Some(axis) = at(1)
                .and_then(integers)
                .and_then(|a| axis(*a.first()?, x.shape.len()))
            else {
                return Ok(None);
            };
            if node.int_or("exclusive", 0)? != 0 || node.int_or("reverse", 0)? != 0 {
                return Ok(None);
            }
            let inner: usize = x.shape[axis + 1..].iter().product();
            let mut out = x.clone();
            for i in 0..out.items.len() {
                if !(i / inner).is_multiple_of(x.shape[axis]) {
                    match arithmetic("Add", &out.items[i - inner], &out.items[i], false, x.dtype) {
                        Some(item) => out.items[i] = item,
                        None => return Ok(None),
                    }
                }
            }
            one(Some(out))
        }
        "Trilu" => {
            let k = match inputs.get(1) {
                Some(_) => match at(1).and_then(integers).and_then(|k| k.first().copied()) {
                    Some(k) => k,
                    None => return Ok(None),
                },
                None => 0,
            };
            let upper = node.int_or("upper", 1)? != 0;
            let rank = x.shape.len();
            if rank < 2 {
                return Ok(None);
            }
            let (rows, columns) = (x.shape[rank - 2], x.shape[rank - 1]);
            let mut out = x.clone();
            for (i, item) in out.items.iter_mut().enumerate() {
                let (row, column) = ((i / columns % rows) as i64, (i % columns) as i64);
                let keep = if upper {
                    column - row >= k
                } else {
                    column - row <= k
                };
                if !keep {
                    *item = if x.dtype.is_float() {
                        Item::Num(0.0)
                    } else {
                        Item::int(0)
                    };
                }
            }
            one(Some(out))
        }
        "ScatterElements" | "ScatterND" => {
            let none = node.text_or("reduction", "none")? == "none";
            let (Some(index), Some(updates)) = (at(1), at(2)) else {
                return Ok(None);
            };
            if !none {
                return Ok(None);
            }
            if node.op() == "ScatterND" {
                return one(scatter_nd(x, index, updates));
            }
            // Only along the one axis of a list.
            let Some(at) = integers(index) else {
                return Ok(None);
            };
            if x.shape.len() != 1 || index.shape.len() != 1 {
                return Ok(None);
            }
            let mut out = x.clone();
            for (&i, item) in at.iter().zip(&updates.items) {
                match axis(i, x.items.len()) {
                    Some(i) => out.items[i] = item.clone(),
                    None => return Ok(None),
                }
            }
            one(Some(out))
        }
        _ => Ok(None),
    }
}

/// The indices that a slice of an axis takes.
pub(super) fn slice_indices(size: usize, start: i64, end: i64, step: i64) -> Option<Vec<usize>> {
    let n = size as i64;
    let wrap = |v: i64| if v < 0 { v.saturating_add(n) } else { v };
    let (start, end) = (wrap(start), wrap(end));
    let (mut at, end) = match step {
        0 => return None,
        s if s > 0 => (start.clamp(0, n), end.clamp(0, n)),
        _ => (start.clamp(-1, n - 1), end.clamp(-1, n - 1)),
    };
    let mut out = Vec::new();
    while (step > 0 && at < end) || (step < 0 && at > end) {
        out.push(usize::try_from(at).ok()?);
        at = at.saturating_add(step);
    }
    Some(out)
}
