//! Ops that move elements: copies between strided layouts, in the longest runs that they allow.

use half::{bf16, f16};
use opt_core::ops::{Op, Pad, PadGrad, PadMode, Slice};
use opt_core::tensor::{Dims, contiguous_strides};
use opt_core::{DType, Element, Error, Result, Tensor};
use smallvec::{SmallVec, smallvec};

use super::{Arg, CompileCx, Kernel, Out, RunCx, SharedMut, parallel, parallel_chunks};

/// Bytes from which a second thread is worth its start.
const PARALLEL: usize = 1 << 18;

/// Entries that a task fills with a value.
const FILL: usize = 1 << 15;

/// Entries of a square that a transposing copy moves at once, so that lines of the cache are
/// used whole on both sides.
const BLOCK: usize = 16;

/// An axis of a copy: its size, and the steps in the source and the target.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Axis {
    size: usize,
    from: isize,
    to: isize,
}

/// A copy of a box of elements from one strided layout to another.
#[derive(Debug, Clone)]
pub(super) struct Move {
    /// Which input and output.
    input: usize,
    output: usize,
    axes: SmallVec<[Axis; 6]>,
    from: isize,
    to: isize,
}

impl Move {
    /// Merges axes that are one run on both sides.
    fn new(
        (input, output): (usize, usize),
        axes: impl IntoIterator<Item = (usize, isize, isize)>,
        from: isize,
        to: isize,
    ) -> Move {
        let mut merged: SmallVec<[Axis; 6]> = SmallVec::new();
        let mut empty = false;
        for (size, from, to) in axes {
            empty |= size == 0;
            if size == 1 {
                continue;
            }
            let n = size as isize;
            match merged.last_mut() {
                Some(last) if last.from == from * n && last.to == to * n => {
                    *last = Axis {
                        size: last.size * size,
                        from,
                        to,
                    };
                }
                _ => merged.push(Axis { size, from, to }),
            }
        }
        if empty {
            merged = smallvec![Axis {
                size: 0,
                from: 1,
                to: 1
            }];
        }
        Move {
            input,
            output,
            axes: merged,
            from,
            to,
        }
    }

    fn len(&self) -> usize {
        self.axes.iter().map(|a| a.size).product()
    }

    fn run<T: Copy + Send + Sync>(&self, source: &[T], target: &SharedMut<'_, T>, threads: usize) {
        let work = self.len() * size_of::<T>();
        match self.axes.split_first() {
            Some((outer, rest)) if threads > 1 && work >= PARALLEL && !rest.is_empty() => {
                parallel(threads, outer.size, |i| {
                    let i = i as isize;
                    copy(
                        rest,
                        source,
                        self.from + i * outer.from,
                        target,
                        self.to + i * outer.to,
                    );
                });
            }
            _ => copy(&self.axes, source, self.from, target, self.to),
        }
    }
}

/// Copies a box; the boxes of two calls at a time do not overlap in the target.
fn copy<T: Copy>(axes: &[Axis], source: &[T], from: isize, target: &SharedMut<'_, T>, to: isize) {
    let Some((inner, outer)) = axes.split_last() else {
        set(target, to, source[from as usize]);
        return;
    };
    // A transposition: neighbours of the source are neighbours along another axis.
    let across = outer
        .iter()
        .rposition(|a| a.from == 1 && inner.from != 1 && inner.to == 1);
    let mut index: SmallVec<[usize; 6]> = smallvec![0; outer.len()];
    let (mut from, mut to) = (from, to);
    if axes.iter().any(|a| a.size == 0) {
        return;
    }
    loop {
        match across {
            Some(axis) => block(&outer[axis], inner, source, from, target, to),
            None => run(inner, source, from, target, to),
        }
        // The next index; an axis that `block` has walked is done at once.
        let mut axis = outer.len();
        loop {
            if axis == 0 {
                return;
            }
            axis -= 1;
            if Some(axis) == across {
                continue;
            }
            let a = &outer[axis];
            index[axis] += 1;
            from += a.from;
            to += a.to;
            if index[axis] < a.size {
                break;
            }
            from -= a.from * a.size as isize;
            to -= a.to * a.size as isize;
            index[axis] = 0;
        }
    }
}

#[expect(unsafe_code, reason = "writes the caller's part of a shared target")]
fn set<T>(target: &SharedMut<'_, T>, at: isize, value: T) {
    // SAFETY: `at` checks the bounds; nobody else writes this element.
    unsafe { target.at(at as usize).write(value) }
}

/// One run along an axis.
fn run<T: Copy>(a: &Axis, source: &[T], from: isize, target: &SharedMut<'_, T>, to: isize) {
    if a.to == 1 {
        let range = to as usize..to as usize + a.size;
        #[expect(unsafe_code, reason = "writes the caller's part of a shared target")]
        // SAFETY: nobody else writes these elements.
        let out = unsafe { target.part(range) };
        match a.from {
            1 => out.copy_from_slice(&source[from as usize..][..a.size]),
            0 => out.fill(source[from as usize]),
            _ => {
                for (i, out) in out.iter_mut().enumerate() {
                    *out = source[(from + i as isize * a.from) as usize];
                }
            }
        }
    } else {
        for i in 0..a.size as isize {
            set(target, to + i * a.to, source[(from + i * a.from) as usize]);
        }
    }
}

/// A plane whose source runs along `across` and whose target runs along `inner`.
fn block<T: Copy>(
    across: &Axis,
    inner: &Axis,
    source: &[T],
    from: isize,
    target: &SharedMut<'_, T>,
    to: isize,
) {
    for i0 in (0..across.size).step_by(BLOCK) {
        for j0 in (0..inner.size).step_by(BLOCK) {
            let width = BLOCK.min(inner.size - j0);
            for i in i0..across.size.min(i0 + BLOCK) {
                let start = (to + i as isize * across.to) as usize + j0;
                #[expect(unsafe_code, reason = "writes the caller's part of a shared target")]
                // SAFETY: nobody else writes these elements.
                let out = unsafe { target.part(start..start + width) };
                let mut at = from + i as isize + j0 as isize * inner.from;
                for out in out {
                    *out = source[at as usize];
                    at += inner.from;
                }
            }
        }
    }
}

/// Copies, over a value everywhere where they leave some of it.
#[derive(Debug)]
struct Moves {
    name: &'static str,
    moves: Vec<Move>,
    fill: Option<Tensor>,
}

fn strides(shape: &[usize]) -> SmallVec<[isize; 4]> {
    contiguous_strides(shape)
}

/// Sizes with the steps of a source and a target.
fn zip<'a>(
    shape: &'a [usize],
    from: &'a [isize],
    to: &'a [isize],
) -> impl Iterator<Item = (usize, isize, isize)> + 'a {
    shape
        .iter()
        .zip(from)
        .zip(to)
        .map(|((&n, &f), &t)| (n, f, t))
}

/// The first index and the steps of a slice of a tensor of some strides.
fn sliced(op: &Slice, strides: &[isize]) -> (isize, SmallVec<[isize; 4]>) {
    let (mut base, mut steps) = (0, SmallVec::from_slice(strides));
    for (i, &axis) in op.axes.iter().enumerate() {
        base += op.starts[i] * strides[axis];
        steps[axis] = op.steps[i] * strides[axis];
    }
    (base, steps)
}

pub(crate) fn compile(op: &Op, cx: &CompileCx<'_>) -> Result<Box<dyn Kernel>> {
    let dtype = cx.inputs[0].dtype;
    if dtype.is_packed() {
        return Err(Error::unsupported(format!(
            "{} of packed {dtype}",
            op.name()
        )));
    }
    let input = cx.inputs[0].shape.fixed()?;
    let output = cx.outputs[0].shape.fixed()?;
    let (from, to) = (strides(&input), strides(&output));
    let mut fill = None;
    let (name, moves) = match op {
        Op::Transpose(op) => {
            let axes = op
                .perm
                .iter()
                .zip(&to)
                .map(|(&p, &t)| (input[p], from[p], t));
            ("transpose", vec![Move::new((0, 0), axes, 0, 0)])
        }
        Op::Slice(op) => {
            let (base, steps) = sliced(op, &from);
            (
                "slice",
                vec![Move::new((0, 0), zip(&output, &steps, &to), base, 0)],
            )
        }
        Op::SliceGrad(op) => {
            fill = Some(Tensor::zeros(dtype, [])?);
            let (base, steps) = sliced(&op.slice, &to);
            (
                "slicegrad",
                vec![Move::new((0, 0), zip(&input, &from, &steps), 0, base)],
            )
        }
        Op::Concat(op) => {
            let mut moves = Vec::new();
            let mut at = 0;
            for (i, ty) in cx.inputs.iter().enumerate() {
                let shape = ty.shape.fixed()?;
                moves.push(Move::new((i, 0), zip(&shape, &strides(&shape), &to), 0, at));
                at += shape[op.axis] as isize * to[op.axis];
            }
            ("concat", moves)
        }
        Op::Split(op) => {
            let mut moves = Vec::new();
            let mut at = 0;
            for (i, ty) in cx.outputs.iter().enumerate() {
                let shape = ty.shape.fixed()?;
                moves.push(Move::new(
                    (0, i),
                    zip(&shape, &from, &strides(&shape)),
                    at,
                    0,
                ));
                at += shape[op.axis] as isize * from[op.axis];
            }
            ("split", moves)
        }
        Op::Expand(_) => {
            let lead = output.len() - input.len();
            let axes = output.iter().enumerate().map(|(i, &n)| {
                let own = i >= lead && input[i - lead] == n;
                (n, if own { from[i - lead] } else { 0 }, to[i])
            });
            ("expand", vec![Move::new((0, 0), axes, 0, 0)])
        }
        Op::Tile(op) => {
            let axes = (0..input.len()).flat_map(|i| {
                [
                    (op.repeats[i], 0, to[i] * input[i] as isize),
                    (input[i], from[i], to[i]),
                ]
            });
            ("tile", vec![Move::new((0, 0), axes, 0, 0)])
        }
        Op::Pad(op) => match op.mode {
            PadMode::Constant(value) => {
                fill = Some(Tensor::full(dtype, [], value)?);
                let base = op
                    .begin
                    .iter()
                    .zip(&to)
                    .map(|(&b, &t)| b as isize * t)
                    .sum();
                (
                    "pad",
                    vec![Move::new((0, 0), zip(&input, &from, &to), 0, base)],
                )
            }
            _ => return Ok(Box::new(Mirror::new(op, &input, &output, false)?)),
        },
        Op::PadGrad(PadGrad { pad }) => {
            return Ok(Box::new(Mirror::new(pad, &output, &input, true)?));
        }
        other => return Err(Error::unsupported(format!("{} as a copy", other.name()))),
    };
    Ok(Box::new(Moves { name, moves, fill }))
}

impl Moves {
    fn all<T: bytemuck::Pod + Send + Sync>(
        &self,
        args: &[Arg<'_>],
        outs: &mut [Out<'_>],
        threads: usize,
    ) -> Result<()> {
        if let Some(fill) = &self.fill {
            let value: T = bytemuck::pod_read_unaligned(fill.bytes()?);
            parallel_chunks(threads, outs[0].typed(), FILL, |_, out: &mut [T]| {
                out.fill(value);
            });
        }
        let outs: SmallVec<[SharedMut<'_, T>; 4]> = outs
            .iter_mut()
            .map(|out| SharedMut::new(out.typed::<T>()))
            .collect();
        for m in &self.moves {
            m.run(args[m.input].typed::<T>(), &outs[m.output], threads);
        }
        Ok(())
    }
}

impl Kernel for Moves {
    fn name(&self) -> String {
        self.name.into()
    }

    fn run(&self, args: &[Arg<'_>], outs: &mut [Out<'_>], cx: &mut RunCx<'_>) -> Result<()> {
        match args[0].dtype.bits() {
            8 => self.all::<u8>(args, outs, cx.threads),
            16 => self.all::<u16>(args, outs, cx.threads),
            32 => self.all::<u32>(args, outs, cx.threads),
            _ => self.all::<u64>(args, outs, cx.threads),
        }
    }
}

/// Padding with entries of the input, and its gradient.
#[derive(Debug)]
struct Mirror {
    /// For each axis of the padded tensor, where along the plain one its entries come from, in
    /// elements of the whole.
    maps: Vec<Vec<usize>>,
    gradient: bool,
}

impl Mirror {
    fn new(pad: &Pad, plain: &[usize], padded: &[usize], gradient: bool) -> Result<Mirror> {
        let steps = strides(plain);
        let mut maps = Vec::new();
        for (axis, (&n, &size)) in plain.iter().zip(padded).enumerate() {
            let mut map = Vec::with_capacity(size);
            for i in 0..size {
                let at = i as isize - pad.begin[axis] as isize;
                let last = n as isize - 1;
                let source = match pad.mode {
                    PadMode::Edge => at.clamp(0, last.max(0)),
                    PadMode::Reflect if at < 0 => -at,
                    PadMode::Reflect if at > last => 2 * last - at,
                    PadMode::Reflect => at,
                    _ => return Err(Error::unsupported("this mode of padding")),
                };
                if source < 0 || source > last {
                    return Err(Error::shape(format!(
                        "axis {axis} of size {n} is padded too far"
                    )));
                }
                map.push(source as usize * steps[axis] as usize);
            }
            maps.push(map);
        }
        Ok(Mirror { maps, gradient })
    }

    /// Calls `f` with the flat index of each padded entry and of its source.
    fn each(&self, mut f: impl FnMut(usize, usize)) {
        let Some((inner, outer)) = self.maps.split_last() else {
            return f(0, 0);
        };
        if self.maps.iter().any(Vec::is_empty) {
            return;
        }
        let mut index: Dims = smallvec![0; outer.len()];
        let mut at = 0;
        loop {
            let base: usize = outer.iter().zip(&index).map(|(m, &i)| m[i]).sum();
            for &source in inner {
                f(at, base + source);
                at += 1;
            }
            let mut axis = outer.len();
            loop {
                if axis == 0 {
                    return;
                }
                axis -= 1;
                index[axis] += 1;
                if index[axis] < outer[axis].len() {
                    break;
                }
                index[axis] = 0;
            }
        }
    }

    fn gather<T: bytemuck::Pod>(&self, args: &[Arg<'_>], outs: &mut [Out<'_>]) {
        let (from, to): (&[T], &mut [T]) = (args[0].typed(), outs[0].typed());
        self.each(|padded, plain| to[padded] = from[plain]);
    }

    fn add<T: Element>(&self, args: &[Arg<'_>], outs: &mut [Out<'_>]) {
        let (from, to): (&[T], &mut [T]) = (args[0].typed(), outs[0].typed());
        to.fill(T::from_f64(0.0));
        self.each(|padded, plain| {
            to[plain] = T::from_f64(to[plain].to_f64() + from[padded].to_f64());
        });
    }
}

impl Kernel for Mirror {
    fn name(&self) -> String {
        if self.gradient { "padgrad" } else { "pad" }.into()
    }

    fn run(&self, args: &[Arg<'_>], outs: &mut [Out<'_>], _: &mut RunCx<'_>) -> Result<()> {
        match (self.gradient, args[0].dtype) {
            (false, dtype) => match dtype.bits() {
                8 => self.gather::<u8>(args, outs),
                16 => self.gather::<u16>(args, outs),
                32 => self.gather::<u32>(args, outs),
                _ => self.gather::<u64>(args, outs),
            },
            (true, DType::F32) => self.add::<f32>(args, outs),
            (true, DType::F64) => self.add::<f64>(args, outs),
            (true, DType::F16) => self.add::<f16>(args, outs),
            (true, DType::BF16) => self.add::<bf16>(args, outs),
            (true, other) => return Err(Error::unsupported(format!("PadGrad of {other}"))),
        }
        Ok(())
    }
}
