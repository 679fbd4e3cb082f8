//! Ops that move elements; most are views.

use opt_core::ops::{Pad, PadMode, Slice};
use opt_core::{Error, Op, Result};
use tch::Tensor;

use super::{CompileCx, Kernel, Shared, int, ints};
use crate::native::{Outs, aten};

pub(super) fn compile(op: &Op, cx: &CompileCx<'_>) -> Result<Kernel> {
    match op {
        Op::Reshape(_) | Op::Squeeze(_) | Op::Unsqueeze(_) => {
            let shape = cx.out_shape(0)?;
            Ok(Kernel::one("reshape", move |x| {
                aten!("reshape", x[0], &shape)
            }))
        }
        Op::Transpose(op) => {
            let perm = ints(&op.perm)?;
            Ok(Kernel::one("permute", move |x| {
                aten!("permute", x[0], &perm)
            }))
        }
        Op::Slice(op) => {
            let parts = parts(op, &cx.out_shape(0)?)?;
            Ok(Kernel::one("slice", move |x| {
                let y = view(x[0], &parts)?;
                flipped(y, &parts)
            }))
        }
        Op::SliceGrad(op) => {
            let parts = parts(&op.slice, &cx.shape(0)?)?;
            let shape = cx.out_shape(0)?;
            Ok(Kernel::one("slice_backward", move |x| {
                let zeros = aten!("new_zeros", x[0], &shape)?;
                let g = flipped(x[0].shallow_clone(), &parts)?;
                let place = view(&zeros, &parts)?;
                let _ = aten!("copy_", &place, &g)?;
                Ok(zeros)
            }))
        }
        Op::Concat(op) => {
            let axis = int(op.axis)?;
            Ok(Kernel::one("cat", move |x| aten!("cat", x, axis)))
        }
        Op::Split(op) => {
            let (axis, sizes) = (int(op.axis)?, ints(&op.sizes)?);
            Ok(Kernel::new("split", move |x, _| {
                let mut start = 0;
                let mut outs = Outs::new();
                for &size in &sizes {
                    outs.push(aten!("narrow", x[0], axis, start, size)?);
                    start += size;
                }
                Ok(outs)
            }))
        }
        Op::Pad(op) => pad(op, cx),
        Op::PadGrad(op) => pad_grad(&op.pad, cx),
        Op::Expand(_) => {
            let shape = cx.out_shape(0)?;
            Ok(Kernel::one("expand", move |x| {
                aten!("expand", x[0], &shape)
            }))
        }
        Op::Tile(op) => {
            let repeats = ints(&op.repeats)?;
            Ok(Kernel::one("repeat", move |x| {
                aten!("repeat", x[0], &repeats)
            }))
        }
        other => Err(Error::unsupported(format!("{} here", other.name()))),
    }
}

/// The part of a slice along one axis, walked upwards.
#[derive(Debug, Clone, Copy)]
struct Part {
    axis: i64,
    start: i64,
    end: i64,
    step: i64,
    /// Whether the slice walks downwards.
    flip: bool,
}

fn parts(op: &Slice, out: &[i64]) -> Result<Vec<Part>> {
    let mut parts = Vec::new();
    for i in 0..op.axes.len() {
        let (start, step) = (op.starts[i] as i64, op.steps[i] as i64);
        let len = out[op.axes[i]];
        let last = start + (len - 1) * step;
        let (low, high) = if step < 0 {
            (last, start)
        } else {
            (start, last)
        };
        parts.push(Part {
            axis: int(op.axes[i])?,
            start: if len == 0 { 0 } else { low },
            end: if len == 0 { 0 } else { high + 1 },
            step: step.abs(),
            flip: step < 0,
        });
    }
    Ok(parts)
}

fn view(x: &Tensor, parts: &[Part]) -> Result<Tensor> {
    let mut x = x.shallow_clone();
    for p in parts {
        x = aten!("slice.Tensor", &x, p.axis, p.start, p.end, p.step)?;
    }
    Ok(x)
}

fn flipped(x: Tensor, parts: &[Part]) -> Result<Tensor> {
    let axes: Vec<i64> = parts.iter().filter(|p| p.flip).map(|p| p.axis).collect();
    match axes.is_empty() {
        true => Ok(x),
        false => aten!("flip", &x, &axes),
    }
}

fn pad(op: &Pad, cx: &CompileCx<'_>) -> Result<Kernel> {
    let (begin, end) = (ints(&op.begin)?, ints(&op.end)?);
    if let PadMode::Constant(value) = op.mode {
        let mut pads = Vec::new();
        for (b, e) in begin.iter().zip(&end).rev() {
            pads.extend([*b, *e]);
        }
        let float = cx.inputs[0].dtype.is_float();
        return Ok(Kernel::one("constant_pad", move |x| match float {
            true => aten!("constant_pad_nd", x[0], &pads, value),
            false => aten!("constant_pad_nd", x[0], &pads, value as i64),
        }));
    }
    let sources = sources(op, &cx.shape(0)?, cx)?;
    Ok(Kernel::one("index_select", move |x| {
        let mut y = x[0].shallow_clone();
        for (axis, index) in &sources {
            y = aten!("index_select", &y, *axis, index.get())?;
        }
        Ok(y)
    }))
}

fn pad_grad(op: &Pad, cx: &CompileCx<'_>) -> Result<Kernel> {
    let shape = cx.out_shape(0)?;
    let sources = sources(op, &shape, cx)?;
    Ok(Kernel::one("index_add", move |x| {
        let mut g = x[0].shallow_clone();
        for (axis, index) in &sources {
            let mut size = g.size();
            size[*axis as usize] = shape[*axis as usize];
            let zeros = aten!("new_zeros", &g, &size)?;
            g = aten!("index_add", &zeros, *axis, index.get(), &g)?;
        }
        Ok(g)
    }))
}

/// For each padded axis, which entry of the input each entry of the output is.
fn sources(op: &Pad, input: &[i64], cx: &CompileCx<'_>) -> Result<Vec<(i64, Shared)>> {
    let mut sources = Vec::new();
    for (axis, &n) in input.iter().enumerate() {
        let (begin, end) = (int(op.begin[axis])?, int(op.end[axis])?);
        if begin == 0 && end == 0 {
            continue;
        }
        let period = (2 * (n - 1)).max(1);
        let index: Vec<i64> = (-begin..n + end)
            .map(|i| match op.mode {
                PadMode::Reflect => {
                    let j = i.rem_euclid(period);
                    if j < n { j } else { period - j }
                }
                _ => i.clamp(0, n - 1),
            })
            .collect();
        sources.push((int(axis)?, Shared::ints(&index, cx.device)?));
    }
    Ok(sources)
}
