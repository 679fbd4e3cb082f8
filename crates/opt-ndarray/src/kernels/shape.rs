//! Kernels that move elements: transpose, slice, concat, split, pad, expand, tile.

use std::ops::AddAssign;

use bytemuck::Pod;
use opt_core::ops::{
    Concat, Expand, Pad, PadGrad, PadMode, Slice, SliceGrad, Split, Tile, Transpose,
};
use opt_core::{DType, Error, Result, TensorType};

use super::{Arg, CompileCx, Kernel, Out, RunCx};

/// Bytes of an element; packed dtypes cannot be addressed element by element.
pub(super) fn element_size(ty: &TensorType) -> Result<usize> {
    if ty.dtype.is_packed() {
        return Err(Error::unsupported(format!(
            "moving elements of packed {}; unpack it to i8 first",
            ty.dtype
        )));
    }
    Ok(ty.dtype.bits() / 8)
}

/// A copy between two arrays over a common index space, each side with its strides in elements:
/// the odometer of every kernel of this file. Axes that are contiguous on both sides are merged,
/// so that the innermost loop copies runs.
#[derive(Debug, Clone)]
struct Walk {
    shape: Vec<usize>,
    from: Vec<isize>,
    to: Vec<isize>,
    from_start: usize,
    to_start: usize,
}

impl Walk {
    fn new(shape: &[usize], from: &[isize], to: &[isize]) -> Walk {
        let mut walk = Walk {
            shape: Vec::new(),
            from: Vec::new(),
            to: Vec::new(),
            from_start: 0,
            to_start: 0,
        };
        for axis in 0..shape.len() {
            if shape[axis] == 1 {
                continue;
            }
            let size = shape[axis] as isize;
            match walk.shape.last_mut() {
                Some(last)
                    if *walk.from.last().expect("as long") == from[axis] * size
                        && *walk.to.last().expect("as long") == to[axis] * size =>
                {
                    *last *= shape[axis];
                    *walk.from.last_mut().expect("as long") = from[axis];
                    *walk.to.last_mut().expect("as long") = to[axis];
                }
                _ => {
                    walk.shape.push(shape[axis]);
                    walk.from.push(from[axis]);
                    walk.to.push(to[axis]);
                }
            }
        }
        walk
    }

    fn starting(mut self, from: usize, to: usize) -> Walk {
        self.from_start = from;
        self.to_start = to;
        self
    }

    /// Calls `run(from, to, length, from step, to step)` for each innermost run.
    fn runs(&self, mut run: impl FnMut(usize, usize, usize, isize, isize)) {
        if self.shape.contains(&0) {
            return;
        }
        let Some(inner) = self.shape.len().checked_sub(1) else {
            run(self.from_start, self.to_start, 1, 1, 1);
            return;
        };
        let mut index: smallvec::SmallVec<[usize; 8]> = smallvec::smallvec![0; inner];
        let (mut from, mut to) = (self.from_start as isize, self.to_start as isize);
        loop {
            run(
                from as usize,
                to as usize,
                self.shape[inner],
                self.from[inner],
                self.to[inner],
            );
            let mut axis = inner;
            loop {
                if axis == 0 {
                    return;
                }
                axis -= 1;
                index[axis] += 1;
                from += self.from[axis];
                to += self.to[axis];
                if index[axis] < self.shape[axis] {
                    break;
                }
                from -= self.from[axis] * self.shape[axis] as isize;
                to -= self.to[axis] * self.shape[axis] as isize;
                index[axis] = 0;
            }
        }
    }

    fn copy<T: Copy>(&self, source: &[T], target: &mut [T]) {
        self.runs(|from, to, len, fs, ts| {
            if fs == 1 && ts == 1 {
                target[to..to + len].copy_from_slice(&source[from..from + len]);
            } else if fs == 0 && ts == 1 {
                target[to..to + len].fill(source[from]);
            } else {
                let (mut f, mut t) = (from as isize, to as isize);
                for _ in 0..len {
                    target[t as usize] = source[f as usize];
                    f += fs;
                    t += ts;
                }
            }
        });
    }

    fn copy_sized(&self, size: usize, source: &[u8], target: &mut [u8]) {
        fn all<T: Pod>(walk: &Walk, source: &[u8], target: &mut [u8]) {
            let target: &mut [T] = bytemuck::cast_slice_mut(target);
            walk.copy(bytemuck::cast_slice::<u8, T>(source), target);
        }
        match size {
            1 => all::<u8>(self, source, target),
            2 => all::<u16>(self, source, target),
            4 => all::<u32>(self, source, target),
            _ => all::<u64>(self, source, target),
        }
    }
}

fn strides(shape: &[usize]) -> Vec<isize> {
    opt_core::tensor::contiguous_strides(shape).to_vec()
}

fn shape_of(ty: &TensorType) -> Result<Vec<usize>> {
    Ok(ty.shape.fixed()?.to_vec())
}

/// One copy from the input to the output, which is zeroed or filled first where the copy does not
/// cover it.
#[derive(Debug)]
struct CopyKernel {
    name: &'static str,
    size: usize,
    walk: Walk,
    /// The bytes of the element to fill the output with first.
    fill: Option<Vec<u8>>,
}

impl Kernel for CopyKernel {
    fn name(&self) -> String {
        self.name.to_string()
    }

    fn run(&self, args: &[Arg<'_>], outs: &mut [Out<'_>], _: &mut RunCx<'_>) -> Result<()> {
        let target = &mut *outs[0].bytes;
        match &self.fill {
            Some(element) if element.iter().all(|&b| b == 0) => target.fill(0),
            Some(element) => {
                for chunk in target.chunks_exact_mut(self.size) {
                    chunk.copy_from_slice(element);
                }
            }
            None => {}
        }
        self.walk.copy_sized(self.size, args[0].bytes, target);
        Ok(())
    }
}

/// Axes in another order.
pub(crate) fn compile_transpose(op: &Transpose, cx: &CompileCx<'_>) -> Result<Box<dyn Kernel>> {
    let size = element_size(&cx.inputs[0])?;
    let input = strides(&shape_of(&cx.inputs[0])?);
    let shape = shape_of(&cx.outputs[0])?;
    let from: Vec<isize> = op.perm.iter().map(|&p| input[p]).collect();
    Ok(Box::new(CopyKernel {
        name: "transpose",
        size,
        walk: Walk::new(&shape, &from, &strides(&shape)),
        fill: None,
    }))
}

/// For a slice of `whole` of which `part` is the shape: the start and the strides in the whole.
fn sliced(op: &Slice, whole: &[usize]) -> (usize, Vec<isize>) {
    let mut steps = strides(whole);
    let mut start = 0isize;
    for (i, &axis) in op.axes.iter().enumerate() {
        start += op.starts[i] * steps[axis];
        steps[axis] *= op.steps[i];
    }
    (start.max(0) as usize, steps)
}

/// A part along axes.
pub(crate) fn compile_slice(op: &Slice, cx: &CompileCx<'_>) -> Result<Box<dyn Kernel>> {
    let size = element_size(&cx.inputs[0])?;
    let shape = shape_of(&cx.outputs[0])?;
    let (start, from) = sliced(op, &shape_of(&cx.inputs[0])?);
    Ok(Box::new(CopyKernel {
        name: "slice",
        size,
        walk: Walk::new(&shape, &from, &strides(&shape)).starting(start, 0),
        fill: None,
    }))
}

/// Zeros with the input written to a slice.
pub(crate) fn compile_slice_grad(op: &SliceGrad, cx: &CompileCx<'_>) -> Result<Box<dyn Kernel>> {
    let size = element_size(&cx.inputs[0])?;
    let shape = shape_of(&cx.inputs[0])?;
    let (start, to) = sliced(&op.slice, &shape_of(&cx.outputs[0])?);
    Ok(Box::new(CopyKernel {
        name: "slice grad",
        size,
        walk: Walk::new(&shape, &strides(&shape), &to).starting(0, start),
        fill: Some(vec![0; size]),
    }))
}

/// The input repeated to a larger shape.
pub(crate) fn compile_expand(_: &Expand, cx: &CompileCx<'_>) -> Result<Box<dyn Kernel>> {
    let size = element_size(&cx.inputs[0])?;
    let (input, shape) = (shape_of(&cx.inputs[0])?, shape_of(&cx.outputs[0])?);
    let lead = shape.len() - input.len();
    let mut from = vec![0; shape.len()];
    for (axis, stride) in strides(&input).into_iter().enumerate() {
        if input[axis] == shape[lead + axis] {
            from[lead + axis] = stride;
        }
    }
    Ok(Box::new(CopyKernel {
        name: "expand",
        size,
        walk: Walk::new(&shape, &from, &strides(&shape)),
        fill: None,
    }))
}

/// The input repeated as a whole along each axis.
pub(crate) fn compile_tile(op: &Tile, cx: &CompileCx<'_>) -> Result<Box<dyn Kernel>> {
    let size = element_size(&cx.inputs[0])?;
    let (input, output) = (shape_of(&cx.inputs[0])?, shape_of(&cx.outputs[0])?);
    let (from_in, from_out) = (strides(&input), strides(&output));
    let (mut shape, mut from, mut to) = (Vec::new(), Vec::new(), Vec::new());
    for axis in 0..input.len() {
        shape.extend([op.repeats[axis], input[axis]]);
        from.extend([0, from_in[axis]]);
        to.extend([from_out[axis] * input[axis] as isize, from_out[axis]]);
    }
    Ok(Box::new(CopyKernel {
        name: "tile",
        size,
        walk: Walk::new(&shape, &from, &to),
        fill: None,
    }))
}

/// The bytes of a number in a dtype.
fn element_bytes(dtype: DType, value: f64) -> Result<Vec<u8>> {
    Ok(opt_core::Tensor::full(dtype, [], value)?.bytes()?.to_vec())
}

/// Entries added before and after each axis.
pub(crate) fn compile_pad(op: &Pad, cx: &CompileCx<'_>) -> Result<Box<dyn Kernel>> {
    let size = element_size(&cx.inputs[0])?;
    let (input, output) = (shape_of(&cx.inputs[0])?, shape_of(&cx.outputs[0])?);
    match op.mode {
        PadMode::Constant(value) => {
            let to = strides(&output);
            let start: isize = to.iter().zip(&op.begin).map(|(s, &b)| s * b as isize).sum();
            Ok(Box::new(CopyKernel {
                name: "pad",
                size,
                walk: Walk::new(&input, &strides(&input), &to).starting(0, start as usize),
                fill: Some(element_bytes(cx.inputs[0].dtype, value)?),
            }))
        }
        PadMode::Reflect | PadMode::Edge => Ok(Box::new(PadIndexed {
            size,
            sources: padded_sources(op, &input, &output)?,
        })),
        other => Err(Error::unsupported(format!("padding mode {other:?}"))),
    }
}

/// For each entry of a padded output, the index of the input entry it copies.
fn padded_sources(op: &Pad, input: &[usize], output: &[usize]) -> Result<Vec<u32>> {
    let axes: Vec<Vec<usize>> = (0..input.len())
        .map(|axis| {
            let last = input[axis] as isize - 1;
            (0..output[axis])
                .map(|i| {
                    let at = i as isize - op.begin[axis] as isize;
                    let at = match op.mode {
                        PadMode::Reflect if at < 0 => -at,
                        PadMode::Reflect if at > last => 2 * last - at,
                        _ => at.clamp(0, last),
                    };
                    at as usize
                })
                .collect()
        })
        .collect();
    let strides = strides(input);
    let mut sources = vec![0usize];
    for (axis, indices) in axes.iter().enumerate() {
        sources = sources
            .iter()
            .flat_map(|s| indices.iter().map(move |i| (s, i)))
            .map(|(s, i)| s + i * strides[axis] as usize)
            .collect();
    }
    sources
        .into_iter()
        .map(|s| u32::try_from(s).map_err(|_| Error::unsupported("padding over 2^32 elements")))
        .collect()
}

#[derive(Debug)]
struct PadIndexed {
    size: usize,
    sources: Vec<u32>,
}

impl Kernel for PadIndexed {
    fn name(&self) -> String {
        "pad".to_string()
    }

    fn run(&self, args: &[Arg<'_>], outs: &mut [Out<'_>], _: &mut RunCx<'_>) -> Result<()> {
        let size = self.size;
        for (target, &s) in outs[0].bytes.chunks_exact_mut(size).zip(&self.sources) {
            target.copy_from_slice(&args[0].bytes[s as usize * size..][..size]);
        }
        Ok(())
    }
}

/// Adds each padded entry to the entry it was copied from.
pub(crate) fn compile_pad_grad(op: &PadGrad, cx: &CompileCx<'_>) -> Result<Box<dyn Kernel>> {
    let (output, input) = (shape_of(&cx.inputs[0])?, shape_of(&cx.outputs[0])?);
    let dtype = cx.inputs[0].dtype;
    if !matches!(dtype, DType::F32 | DType::F64) {
        return Err(Error::unsupported(format!(
            "gradient of padding in {dtype}"
        )));
    }
    Ok(Box::new(PadGradKernel {
        sources: padded_sources(&op.pad, &input, &output)?,
    }))
}

#[derive(Debug)]
struct PadGradKernel {
    sources: Vec<u32>,
}

impl Kernel for PadGradKernel {
    fn name(&self) -> String {
        "pad grad".to_string()
    }

    fn run(&self, args: &[Arg<'_>], outs: &mut [Out<'_>], _: &mut RunCx<'_>) -> Result<()> {
        fn add<T: Pod + AddAssign>(sources: &[u32], from: &[T], to: &mut [T]) {
            to.fill(T::zeroed());
            for (&s, &g) in sources.iter().zip(from) {
                to[s as usize] += g;
            }
        }
        if args[0].dtype == DType::F64 {
            add::<f64>(&self.sources, args[0].typed(), outs[0].typed());
        } else {
            add::<f32>(&self.sources, args[0].typed(), outs[0].typed());
        }
        Ok(())
    }
}

/// Rows of bytes: how inputs lie side by side in an output (concat), or an input in outputs
/// (split).
#[derive(Debug)]
struct Rows {
    name: &'static str,
    outer: usize,
    /// Bytes of one row of each part.
    parts: Vec<usize>,
}

impl Rows {
    fn new(name: &'static str, axis: usize, parts: &[TensorType]) -> Result<Rows> {
        let mut rows = Vec::with_capacity(parts.len());
        let mut outer = 1;
        for ty in parts {
            let shape = ty.shape.fixed()?;
            outer = shape[..axis].iter().product();
            rows.push(shape[axis..].iter().product::<usize>() * element_size(ty)?);
        }
        Ok(Rows {
            name,
            outer,
            parts: rows,
        })
    }
}

#[derive(Debug)]
struct ConcatKernel(Rows);

impl Kernel for ConcatKernel {
    fn name(&self) -> String {
        self.0.name.to_string()
    }

    fn run(&self, args: &[Arg<'_>], outs: &mut [Out<'_>], _: &mut RunCx<'_>) -> Result<()> {
        let total: usize = self.0.parts.iter().sum();
        let target = &mut *outs[0].bytes;
        let mut at = 0;
        for (arg, &row) in args.iter().zip(&self.0.parts) {
            for o in 0..self.0.outer {
                target[o * total + at..][..row].copy_from_slice(&arg.bytes[o * row..][..row]);
            }
            at += row;
        }
        Ok(())
    }
}

/// Tensors side by side.
pub(crate) fn compile_concat(op: &Concat, cx: &CompileCx<'_>) -> Result<Box<dyn Kernel>> {
    Ok(Box::new(ConcatKernel(Rows::new(
        "concat", op.axis, cx.inputs,
    )?)))
}

#[derive(Debug)]
struct SplitKernel(Rows);

impl Kernel for SplitKernel {
    fn name(&self) -> String {
        self.0.name.to_string()
    }

    fn run(&self, args: &[Arg<'_>], outs: &mut [Out<'_>], _: &mut RunCx<'_>) -> Result<()> {
        let total: usize = self.0.parts.iter().sum();
        let mut at = 0;
        for (out, &row) in outs.iter_mut().zip(&self.0.parts) {
            for o in 0..self.0.outer {
                out.bytes[o * row..][..row]
                    .copy_from_slice(&args[0].bytes[o * total + at..][..row]);
            }
            at += row;
        }
        Ok(())
    }
}

/// Parts along an axis.
pub(crate) fn compile_split(op: &Split, cx: &CompileCx<'_>) -> Result<Box<dyn Kernel>> {
    Ok(Box::new(SplitKernel(Rows::new(
        "split", op.axis, cx.outputs,
    )?)))
}
