//! Operators that move elements.

use opt_core::ops::{PadMode, Slice};
use opt_core::{Dim, Error, Result, Shape, SizeExpr, ValueId};

use super::{Lower, axes, axis, count, counts};
use crate::import::Cx;
use crate::import::node::{Node, V};

pub(super) fn find(op: &str) -> Option<Lower> {
    Some(match op {
        "Reshape" => reshape,
        "Flatten" => flatten,
        "Transpose" => transpose,
        "Squeeze" => squeeze,
        "Unsqueeze" => unsqueeze,
        "Concat" => concat,
        "Split" => split,
        "SplitToSequence" => split_to_sequence,
        "SequenceAt" => sequence_at,
        "Slice" => slice,
        "Pad" => pad,
        "Expand" => expand,
        "Tile" => tile,
        "DepthToSpace" => depth_to_space,
        "SpaceToDepth" => space_to_depth,
        "Shape" | "Size" => folded,
        "CenterCropPad" => center_crop_pad,
        "ReverseSequence" => reverse_sequence,
        _ => return None,
    })
}

/// What folding answers always, but for shapes whose size is not expressible.
fn folded(_: &mut Cx<'_>, _: &Node<'_>) -> Result<Vec<V>> {
    Err(Error::unsupported("the size overflows"))
}

fn reshape(cx: &mut Cx<'_>, node: &Node<'_>) -> Result<Vec<V>> {
    let x = cx.x(node, 0)?;
    let target = node.input(1)?;
    let allow_zero = node.flag("allowzero", false)?;
    let target = cx.sizes(target, "the shape")?;
    let dims = cx.b.type_of(x).shape.clone();
    let mut out: Vec<SizeExpr> = Vec::with_capacity(target.len());
    let mut open = None;
    for (i, size) in target.into_iter().enumerate() {
        match size.as_constant() {
            Some(-1) if open.is_none() => {
                open = Some(i);
                out.push(1.into());
            }
            Some(0) if !allow_zero => {
                let dim = dims.dims().get(i).ok_or_else(|| {
                    Error::invalid(format!("the shape copies dimension {i} of {dims}"))
                })?;
                out.push(dim.expr());
            }
            _ => out.push(size),
        }
    }
    if let Some(i) = open {
        let total = dims.size()?.expr();
        let mut rest = SizeExpr::from(1);
        for size in &out {
            rest = rest.mul(size)?;
        }
        out[i] = match total.div_exact(&rest) {
            Some(size) => size,
            None if rest.as_constant() == Some(0) && total.as_constant() == Some(0) => 0.into(),
            None => {
                return Err(Error::shape(format!(
                    "{total} entries cannot be arranged in rows of {rest}"
                )));
            }
        };
    }
    let shape: Vec<Dim> = out.into_iter().map(SizeExpr::dim).collect::<Result<_>>()?;
    if cx.b.type_of(x).shape.dims() == shape {
        return Ok(vec![node.input(0)?]);
    }
    let y = cx.b.reshape(x, shape)?;
    Ok(cx.one(y))
}

fn flatten(cx: &mut Cx<'_>, node: &Node<'_>) -> Result<Vec<V>> {
    let x = cx.x(node, 0)?;
    let dims = cx.b.type_of(x).shape.dims().to_vec();
    let rank = dims.len() as i64;
    let at = node.int_or("axis", 1)?;
    let at = if at < 0 { at + rank } else { at };
    let at = usize::try_from(at)
        .ok()
        .filter(|&a| a <= dims.len())
        .ok_or_else(|| Error::invalid(format!("axis {at} of rank {rank}")))?;
    let part = |d: &[Dim]| d.iter().cloned().collect::<Shape>().size();
    let shape = vec![part(&dims[..at])?, part(&dims[at..])?];
    if dims == shape {
        return Ok(vec![node.input(0)?]);
    }
    let y = cx.b.reshape(x, shape)?;
    Ok(cx.one(y))
}

fn transpose(cx: &mut Cx<'_>, node: &Node<'_>) -> Result<Vec<V>> {
    let x = cx.x(node, 0)?;
    let rank = cx.b.type_of(x).rank();
    let perm = match node.ints("perm")? {
        Some(perm) => counts(&perm, "`perm`")?,
        None => (0..rank).rev().collect(),
    };
    let y = cx.b.transpose(x, &perm)?;
    Ok(cx.one(y))
}

fn squeeze(cx: &mut Cx<'_>, node: &Node<'_>) -> Result<Vec<V>> {
    let x = cx.x(node, 0)?;
    let ty = cx.b.type_of(x).clone();
    let list = match cx.ints(node, "axes", 1)? {
        Some(list) => axes(&list, ty.rank())?,
        None => {
            if let Some(d) = ty.shape.dims().iter().find(|d| d.as_fixed().is_none()) {
                return Err(Error::unsupported(format!(
                    "Squeeze without axes where the size {d} is symbolic; bind it with \
                     `Importer::dim`"
                )));
            }
            let one = |&a: &usize| ty.shape[a].as_fixed() == Some(1);
            (0..ty.rank()).filter(one).collect()
        }
    };
    let y = cx.b.squeeze(x, &list)?;
    Ok(cx.one(y))
}

fn unsqueeze(cx: &mut Cx<'_>, node: &Node<'_>) -> Result<Vec<V>> {
    let x = cx.x(node, 0)?;
    let list = cx
        .ints(node, "axes", 1)?
        .ok_or_else(|| Error::invalid("there are no axes"))?;
    let list = axes(&list, cx.b.type_of(x).rank() + list.len())?;
    let y = cx.b.unsqueeze(x, &list)?;
    Ok(cx.one(y))
}

fn concat(cx: &mut Cx<'_>, node: &Node<'_>) -> Result<Vec<V>> {
    let inputs = node.rest(0)?;
    let first = *inputs
        .first()
        .ok_or_else(|| Error::invalid("there is no input"))?;
    let axis = axis(node.int_or("axis", 1)?, cx.rank(first))?;
    let mut parts = Vec::with_capacity(inputs.len());
    for v in inputs {
        parts.push(cx.id(v)?);
    }
    let y = cx.b.concat(&parts, axis)?;
    Ok(cx.one(y))
}

fn split(cx: &mut Cx<'_>, node: &Node<'_>) -> Result<Vec<V>> {
    let x = cx.x(node, 0)?;
    let ty = cx.b.type_of(x).clone();
    let axis = axis(node.int_or("axis", 0)?, ty.rank())?;
    let parts = node.output_count();
    let given = node.int("num_outputs")?;
    let sizes = match cx.ints(node, "split", 1)? {
        Some(sizes) => counts(&sizes, "`split`")?,
        None => {
            let size = fixed_size(&ty.shape[axis])?;
            let parts = match given {
                Some(n) => count(n, "`num_outputs`")?.max(1),
                None => parts.max(1),
            };
            let chunk = size.div_ceil(parts);
            (0..parts)
                .map(|i| chunk.min(size.saturating_sub(i * chunk)))
                .collect()
        }
    };
    let out = cx.b.split(x, axis, &sizes)?;
    Ok(out.into_iter().map(|id| cx.val(id)).collect())
}

/// The size of an axis that is split.
fn fixed_size(dim: &Dim) -> Result<usize> {
    dim.as_fixed().ok_or_else(|| {
        Error::unsupported(format!(
            "splitting an axis of the symbolic size {dim}; bind it with `Importer::dim`"
        ))
    })
}

/// PyTorch's exporter writes `split` so; the parts are read by constant indices.
fn split_to_sequence(cx: &mut Cx<'_>, node: &Node<'_>) -> Result<Vec<V>> {
    let x = cx.x(node, 0)?;
    let ty = cx.b.type_of(x).clone();
    let axis = axis(node.int_or("axis", 0)?, ty.rank())?;
    let size = fixed_size(&ty.shape[axis])?;
    let keep = node.flag("keepdims", true)?;
    let (sizes, squeeze) = match node.maybe(1) {
        None => (vec![1; size], !keep),
        Some(v) if cx.rank(v) == 0 => {
            let list = cx.integers(v, "the size of the parts")?;
            let chunk = count(list.first().copied().unwrap_or(0), "the size of the parts")?;
            if chunk == 0 {
                return Err(Error::invalid("parts of no entries"));
            }
            let parts = (0..size).step_by(chunk).map(|at| chunk.min(size - at));
            (parts.collect(), false)
        }
        Some(v) => (counts(&cx.integers(v, "the sizes")?, "a size")?, false),
    };
    let mut parts = Vec::new();
    for mut id in cx.b.split(x, axis, &sizes)? {
        if squeeze {
            id = cx.b.squeeze(id, &[axis])?;
        }
        parts.push(cx.val(id));
    }
    let sequence = cx.val(x);
    cx.sequences.insert(sequence, parts);
    Ok(vec![sequence])
}

fn sequence_at(cx: &mut Cx<'_>, node: &Node<'_>) -> Result<Vec<V>> {
    let sequence = node.input(0)?;
    let index = node.input(1)?;
    let index = cx.integers(index, "the position")?;
    let parts = cx
        .sequences
        .get(&sequence)
        .ok_or_else(|| Error::unsupported("a sequence that is no split"))?;
    let &[index] = &index[..] else {
        return Err(Error::shape("the position must be one number"));
    };
    let index = super::axis(index, parts.len())?;
    Ok(vec![parts[index]])
}

/// What a slice takes of one axis.
struct Cut {
    axis: usize,
    start: SizeExpr,
    len: SizeExpr,
    step: i64,
}

/// What `start..end` by `step` takes of an axis, sizes perhaps symbolic.
fn cut(axis: usize, size: &SizeExpr, start: &SizeExpr, end: &SizeExpr, step: i64) -> Result<Cut> {
    if step == 0 {
        return Err(Error::invalid("a step of 0"));
    }
    let constants = (size.as_constant(), start.as_constant(), end.as_constant());
    if let (Some(n), Some(s), Some(e)) = constants {
        let wrap = |v: i64| if v < 0 { v.saturating_add(n) } else { v };
        let (low, high) = if step > 0 { (0, n) } else { (-1, n - 1) };
        let (s, e) = (wrap(s).clamp(low, high), wrap(e).clamp(low, high));
        let room = if step > 0 { e - s } else { s - e };
        let stride = step.saturating_abs();
        let len = if room > 0 { (room - 1) / stride + 1 } else { 0 };
        return Ok(Cut {
            axis,
            start: s.into(),
            len: len.into(),
            step,
        });
    }
    // Ends beyond any size mean the axis' own end.
    const FAR: i64 = i32::MAX as i64;
    let place = |v: &SizeExpr, before_first: i64| -> Result<SizeExpr> {
        match v.as_constant() {
            Some(c) if c >= FAR => size.add(&before_first.min(0).into()),
            Some(c) if c <= -FAR => Ok(before_first.into()),
            Some(c) if c < 0 => size.add(v),
            _ => Ok(v.clone()),
        }
    };
    let first = if step > 0 { 0 } else { -1 };
    let start = place(start, first)?;
    let mut end = place(end, first)?;
    // An end past the axis' size is its size, where that can be told.
    if step > 0 && end.sub(size)?.lower_bound(1).is_some_and(|l| l >= 0) {
        end = size.clone();
    }
    let room = if step > 0 {
        end.sub(&start)?
    } else {
        start.sub(&end)?
    };
    let stride = step.saturating_abs();
    let len = room.add(&(stride - 1).into())?.div_floor(stride)?;
    Ok(Cut {
        axis,
        start,
        len,
        step,
    })
}

/// Applies cuts: those of fixed sizes as one slice, the others as gathers by computed indices.
fn apply_cuts(cx: &mut Cx<'_>, mut x: ValueId, cuts: Vec<Cut>) -> Result<ValueId> {
    let mut op = Slice {
        axes: smallvec::smallvec![],
        starts: smallvec::smallvec![],
        ends: smallvec::smallvec![],
        steps: smallvec::smallvec![],
    };
    let mut moving = Vec::new();
    for cut in cuts {
        let dim = cx.b.type_of(x).shape[cut.axis].clone();
        if cut.step == 1 && cut.start.as_constant() == Some(0) && cut.len == dim.expr() {
            continue;
        }
        match (
            dim.as_fixed(),
            cut.start.as_constant(),
            cut.len.as_constant(),
        ) {
            (Some(_), Some(start), Some(len)) => {
                op.axes.push(cut.axis);
                op.starts.push(start as isize);
                // Stays within the axis: an end past the last step would be refused.
                let end = if len == 0 {
                    start
                } else {
                    start + (len - 1) * cut.step + cut.step.signum()
                };
                op.ends.push(end as isize);
                op.steps.push(cut.step as isize);
            }
            _ => moving.push(cut),
        }
    }
    if !op.axes.is_empty() {
        x = cx.b.op(op, &[x])?;
    }
    for cut in moving {
        let len = cut.len.dim()?;
        let mut index = cx.b.iota(len)?;
        if cut.step != 1 {
            index = cx.b.mul_scalar(index, cut.step as f64)?;
        }
        if cut.start.as_constant() != Some(0) {
            let start = cut.start.dim()?;
            let start = cx.b.sizes([start])?;
            index = cx.b.add(index, start)?;
        }
        x = cx.b.gather(x, index, cut.axis)?;
    }
    Ok(x)
}

fn slice(cx: &mut Cx<'_>, node: &Node<'_>) -> Result<Vec<V>> {
    let x = cx.x(node, 0)?;
    let list = |cx: &mut Cx<'_>, name: &str, at: usize| -> Result<Option<Vec<SizeExpr>>> {
        if let Some(values) = node.ints(name)? {
            return Ok(Some(values.into_iter().map(SizeExpr::from).collect()));
        }
        node.maybe(at).map(|v| cx.sizes(v, name)).transpose()
    };
    let missing = |what: &str| Error::invalid(format!("there are no {what}"));
    let starts = list(cx, "starts", 1)?.ok_or_else(|| missing("starts"))?;
    let ends = list(cx, "ends", 2)?.ok_or_else(|| missing("ends"))?;
    let rank = cx.b.type_of(x).rank();
    let over = match cx.ints(node, "axes", 3)? {
        Some(list) => list.iter().map(|&a| axis(a, rank)).collect::<Result<_>>()?,
        None => (0..starts.len()).collect::<Vec<_>>(),
    };
    let steps = cx
        .ints(node, "steps", 4)?
        .unwrap_or_else(|| vec![1; starts.len()]);
    if [ends.len(), over.len(), steps.len()] != [starts.len(); 3] {
        return Err(Error::invalid(
            "starts, ends, axes and steps differ in number",
        ));
    }
    let dims = cx.b.type_of(x).shape.clone();
    let mut cuts = Vec::with_capacity(over.len());
    for (i, &a) in over.iter().enumerate() {
        if a >= rank {
            return Err(Error::invalid(format!("axis {a} of rank {rank}")));
        }
        cuts.push(cut(a, &dims[a].expr(), &starts[i], &ends[i], steps[i])?);
    }
    let y = apply_cuts(cx, x, cuts)?;
    if y == x {
        return Ok(vec![node.input(0)?]);
    }
    Ok(cx.one(y))
}

fn pad(cx: &mut Cx<'_>, node: &Node<'_>) -> Result<Vec<V>> {
    let x = cx.x(node, 0)?;
    let rank = cx.b.type_of(x).rank();
    let pads = cx
        .ints(node, "pads", 1)?
        .ok_or_else(|| Error::invalid("there are no pads"))?;
    let value = match node.float("value")? {
        Some(value) => value,
        None => match node.maybe(2) {
            Some(v) => cx
                .numbers(v, "the padding")?
                .first()
                .copied()
                .unwrap_or(0.0),
            None => 0.0,
        },
    };
    let over = match node.maybe(3) {
        Some(v) => cx
            .integers(v, "axes")?
            .iter()
            .map(|&a| axis(a, rank))
            .collect::<Result<Vec<_>>>()?,
        None => (0..rank).collect(),
    };
    if pads.len() != 2 * over.len() {
        return Err(Error::invalid(format!(
            "{} pads for {} axes",
            pads.len(),
            over.len()
        )));
    }
    let mut sides = vec![(0i64, 0i64); rank];
    for (i, &a) in over.iter().enumerate() {
        sides[a] = (pads[i], pads[i + over.len()]);
    }
    let mode = node.text_or("mode", "constant")?;
    let y = pad_by(cx, x, &sides, mode, value)?;
    if y == x {
        return Ok(vec![node.input(0)?]);
    }
    Ok(cx.one(y))
}

/// Pads, or crops where a number is negative.
fn pad_by(
    cx: &mut Cx<'_>,
    x: ValueId,
    sides: &[(i64, i64)],
    mode: &str,
    value: f64,
) -> Result<ValueId> {
    const MOST: i64 = 1 << 40;
    if let Some(pads) = sides
        .iter()
        .find(|s| s.0.max(s.1) > MOST || s.0.min(s.1) < -MOST)
    {
        return Err(Error::invalid(format!("pads of {pads:?}")));
    }
    let dims = cx.b.type_of(x).shape.clone();
    let mut cuts = Vec::new();
    for (axis, &(begin, end)) in sides.iter().enumerate() {
        if begin < 0 || end < 0 {
            let size = dims[axis].expr();
            let stop = size.add(&end.min(0).into())?;
            cuts.push(cut(axis, &size, &(-begin.min(0)).into(), &stop, 1)?);
        }
    }
    let mut y = apply_cuts(cx, x, cuts)?;
    let begin = counts(
        &sides.iter().map(|s| s.0.max(0)).collect::<Vec<_>>(),
        "a pad",
    )?;
    let end = counts(
        &sides.iter().map(|s| s.1.max(0)).collect::<Vec<_>>(),
        "a pad",
    )?;
    if begin.iter().chain(&end).all(|&n| n == 0) {
        return Ok(y);
    }
    let mode = match mode {
        "constant" => PadMode::Constant(value),
        "reflect" => PadMode::Reflect,
        "edge" => PadMode::Edge,
        "wrap" => {
            for axis in 0..sides.len() {
                let size = cx.b.type_of(y).shape[axis].fixed()?;
                if begin[axis].max(end[axis]) > size {
                    return Err(Error::unsupported("wrapping around more than once"));
                }
                let mut parts = vec![y];
                if begin[axis] > 0 {
                    parts.insert(0, cx.b.slice(y, axis, size - begin[axis], size)?);
                }
                if end[axis] > 0 {
                    parts.push(cx.b.slice(y, axis, 0, end[axis])?);
                }
                if parts.len() > 1 {
                    y = cx.b.concat(&parts, axis)?;
                }
            }
            return Ok(y);
        }
        other => return Err(Error::unsupported(format!("the mode `{other}`"))),
    };
    cx.b.pad(y, &begin, &end, mode)
}

fn expand(cx: &mut Cx<'_>, node: &Node<'_>) -> Result<Vec<V>> {
    let x = cx.x(node, 0)?;
    let target = node.input(1)?;
    let target: Shape = cx
        .sizes(target, "the shape")?
        .into_iter()
        .map(SizeExpr::dim)
        .collect::<Result<_>>()?;
    let shape = cx.b.type_of(x).shape.broadcast(&target)?;
    if cx.b.type_of(x).shape == shape {
        return Ok(vec![node.input(0)?]);
    }
    let y = cx.b.expand(x, shape)?;
    Ok(cx.one(y))
}

fn tile(cx: &mut Cx<'_>, node: &Node<'_>) -> Result<Vec<V>> {
    let x = cx.x(node, 0)?;
    let repeats = node.input(1)?;
    let repeats = cx.sizes(repeats, "the repeats")?;
    let constant: Option<Vec<i64>> = repeats.iter().map(SizeExpr::as_constant).collect();
    if let Some(repeats) = constant {
        let y = cx.b.tile(x, &counts(&repeats, "a repeat")?)?;
        return Ok(cx.one(y));
    }
    // A symbolic number of repetitions: a new axis that is broadcast and merged.
    let dims = cx.b.type_of(x).shape.dims().to_vec();
    if repeats.len() != dims.len() {
        return Err(Error::invalid("there must be one number for each axis"));
    }
    let (mut split, mut wide, mut merged) = (Vec::new(), Vec::new(), Vec::new());
    for (n, d) in repeats.into_iter().zip(dims) {
        let n = n.dim()?;
        split.extend([Dim::Fixed(1), d.clone()]);
        wide.extend([n.clone(), d.clone()]);
        merged.push(n.times(&d)?);
    }
    let y = cx.b.reshape(x, split)?;
    let y = cx.b.expand(y, wide)?;
    let y = cx.b.reshape(y, merged)?;
    Ok(cx.one(y))
}

fn planes(cx: &Cx<'_>, x: ValueId) -> Result<[Dim; 4]> {
    let shape = cx.b.type_of(x).shape.clone();
    match shape.dims() {
        [n, c, h, w] => Ok([n.clone(), c.clone(), h.clone(), w.clone()]),
        _ => Err(Error::shape(format!("expected [N,C,H,W], found {shape}"))),
    }
}

/// The size of a block; beyond any image it is refused, so that its square fits.
fn block(node: &Node<'_>) -> Result<usize> {
    let size = count(node.int_or("blocksize", 0)?, "`blocksize`")?;
    if !(1..=1 << 20).contains(&size) {
        return Err(Error::invalid(format!("`blocksize` is {size}")));
    }
    Ok(size)
}

fn depth_to_space(cx: &mut Cx<'_>, node: &Node<'_>) -> Result<Vec<V>> {
    let x = cx.x(node, 0)?;
    let [n, c, h, w] = planes(cx, x)?;
    let b = block(node)?;
    let c = c.fixed()?;
    if c % (b * b) != 0 {
        return Err(Error::shape(format!("{c} channels in blocks of {b}")));
    }
    let d = c / (b * b);
    let fixed = Dim::Fixed;
    let (split, perm): (_, &[usize]) = match node.text_or("mode", "DCR")? {
        "DCR" => (
            vec![
                n.clone(),
                fixed(b),
                fixed(b),
                fixed(d),
                h.clone(),
                w.clone(),
            ],
            &[0, 3, 4, 1, 5, 2],
        ),
        "CRD" => (
            vec![
                n.clone(),
                fixed(d),
                fixed(b),
                fixed(b),
                h.clone(),
                w.clone(),
            ],
            &[0, 1, 4, 2, 5, 3],
        ),
        other => return Err(Error::unsupported(format!("the mode `{other}`"))),
    };
    let y = cx.b.reshape(x, split)?;
    let y = cx.b.transpose(y, perm)?;
    let y = cx.b.reshape(y, vec![n, fixed(d), h.mul(b)?, w.mul(b)?])?;
    Ok(cx.one(y))
}

fn space_to_depth(cx: &mut Cx<'_>, node: &Node<'_>) -> Result<Vec<V>> {
    let x = cx.x(node, 0)?;
    let [n, c, h, w] = planes(cx, x)?;
    let b = block(node)?;
    let (h, w) = (h.fixed()?, w.fixed()?);
    if h % b != 0 || w % b != 0 {
        return Err(Error::shape(format!("{h} x {w} in blocks of {b}")));
    }
    let crd = match node.text_or("mode", "DCR")? {
        "DCR" => false,
        "CRD" => true,
        other => return Err(Error::unsupported(format!("the mode `{other}`"))),
    };
    let fixed = Dim::Fixed;
    let split = vec![
        n.clone(),
        c.clone(),
        fixed(h / b),
        fixed(b),
        fixed(w / b),
        fixed(b),
    ];
    let y = cx.b.reshape(x, split)?;
    let perm = if crd {
        [0, 1, 3, 5, 2, 4]
    } else {
        [0, 3, 5, 1, 2, 4]
    };
    let y = cx.b.transpose(y, &perm)?;
    let y =
        cx.b.reshape(y, vec![n, c.mul(b * b)?, fixed(h / b), fixed(w / b)])?;
    Ok(cx.one(y))
}

fn center_crop_pad(cx: &mut Cx<'_>, node: &Node<'_>) -> Result<Vec<V>> {
    let x = cx.x(node, 0)?;
    let target = node.input(1)?;
    let target = cx.integers(target, "the shape")?;
    let ty = cx.b.type_of(x).clone();
    let over = match node.ints("axes")? {
        Some(list) => list
            .iter()
            .map(|&a| axis(a, ty.rank()))
            .collect::<Result<Vec<_>>>()?,
        None => (0..ty.rank()).collect(),
    };
    if over.len() != target.len() {
        return Err(Error::invalid("there must be one size for each axis"));
    }
    let mut sides = vec![(0i64, 0i64); ty.rank()];
    for (&a, &size) in over.iter().zip(&target) {
        let have = ty.shape[a].fixed()? as i64;
        let gap = size - have;
        // Cropping takes the smaller half first, and so does padding.
        let begin = if gap >= 0 { gap / 2 } else { -(-gap / 2) };
        sides[a] = (begin, gap - begin);
    }
    let y = pad_by(cx, x, &sides, "constant", 0.0)?;
    if y == x {
        return Ok(vec![node.input(0)?]);
    }
    Ok(cx.one(y))
}

fn reverse_sequence(cx: &mut Cx<'_>, node: &Node<'_>) -> Result<Vec<V>> {
    let (x, lengths) = (cx.x(node, 0)?, cx.x(node, 1)?);
    let ty = cx.b.type_of(x).clone();
    let batch = axis(node.int_or("batch_axis", 1)?, ty.rank())?;
    let time = axis(node.int_or("time_axis", 0)?, ty.rank())?;
    if batch > 1 || time > 1 || batch == time {
        return Err(Error::invalid("batch and time must be the first two axes"));
    }
    // Within its length, step t is step length - 1 - t.
    let steps = cx.b.iota(ty.shape[time].clone())?;
    let (steps, lengths) = if time == 0 {
        (cx.b.unsqueeze(steps, &[1])?, cx.b.unsqueeze(lengths, &[0])?)
    } else {
        (cx.b.unsqueeze(steps, &[0])?, cx.b.unsqueeze(lengths, &[1])?)
    };
    let last = cx.b.add_scalar(lengths, -1.0)?;
    let mirrored = cx.b.sub(last, steps)?;
    let inside = cx.b.less(steps, lengths)?;
    let mut index = cx.b.select(inside, mirrored, steps)?;
    if ty.rank() > 2 {
        let trailing: Vec<usize> = (2..ty.rank()).collect();
        index = cx.b.unsqueeze(index, &trailing)?;
    }
    let index = cx.b.expand(index, ty.shape.clone())?;
    let y = cx.b.gather_elements(x, index, time)?;
    Ok(cx.one(y))
}
