//! Gather, scatter and one-hot.

use half::{bf16, f16};
use opt_core::ops::{Op, ScatterReduction};
use opt_core::tensor::Dims;
use opt_core::{DType, Element, Error, Result};

use super::{Arg, CompileCx, Kernel, Out, RunCx, parallel_chunks};

/// Bytes from which a second thread is worth its start.
const PARALLEL: usize = 1 << 18;

/// Indices of either integer type, as entries of an axis.
#[derive(Clone, Copy)]
enum Indices<'a> {
    I64(&'a [i64]),
    I32(&'a [i32]),
}

impl<'a> Indices<'a> {
    fn new(arg: &Arg<'a>) -> Result<Indices<'a>> {
        match arg.dtype {
            DType::I64 => Ok(Indices::I64(arg.typed())),
            DType::I32 => Ok(Indices::I32(arg.typed())),
            other => Err(Error::unsupported(format!(
                "indices of {other}; use i64 or i32"
            ))),
        }
    }

    fn len(&self) -> usize {
        match self {
            Indices::I64(x) => x.len(),
            Indices::I32(x) => x.len(),
        }
    }

    fn raw(&self, i: usize) -> i64 {
        match self {
            Indices::I64(x) => x[i],
            Indices::I32(x) => x[i].into(),
        }
    }

    /// The entry that an index names, negative ones counted from the end, if there is one.
    fn find(&self, i: usize, size: usize) -> Option<usize> {
        let raw = self.raw(i);
        let at = if raw < 0 {
            raw.checked_add(size as i64)?
        } else {
            raw
        };
        usize::try_from(at).ok().filter(|&at| at < size)
    }

    /// As [`Indices::find`], or the error that names index and axis.
    fn at(&self, i: usize, size: usize, axis: usize) -> Result<usize> {
        self.find(i, size).ok_or_else(|| {
            Error::invalid(format!(
                "index {} is out of range for axis {axis} of size {size}",
                self.raw(i)
            ))
        })
    }

    fn check(&self, size: usize, axis: usize) -> Result<()> {
        (0..self.len()).try_for_each(|i| self.at(i, size, axis).map(|_| ()))
    }
}

/// The product of the sizes before an axis, its size, and that of the sizes after it.
fn around(shape: &[usize], axis: usize) -> (usize, usize, usize) {
    (
        shape[..axis].iter().product(),
        shape[axis],
        shape[axis + 1..].iter().product(),
    )
}

pub(crate) fn compile(op: &Op, cx: &CompileCx<'_>) -> Result<Box<dyn Kernel>> {
    for ty in cx.inputs.iter().chain(cx.outputs) {
        if ty.dtype.is_packed() {
            return Err(Error::unsupported(format!(
                "{} of packed {}",
                op.name(),
                ty.dtype
            )));
        }
    }
    let input = cx.inputs[0].shape.fixed()?;
    let output = cx.outputs[0].shape.fixed()?;
    Ok(match op {
        Op::Gather(op) => Box::new(Gather {
            axis: op.axis,
            dims: around(&input, op.axis),
        }),
        Op::GatherGrad(op) => {
            let dims = around(&output, op.axis);
            Box::new(GatherGrad {
                axis: op.axis,
                dims,
            })
        }
        Op::GatherElements(op) => Box::new(Elements::new(op.axis, &input, &output, None)),
        Op::ScatterElements(op) => {
            let indices = cx.inputs[1].shape.fixed()?;
            Box::new(Elements::new(op.axis, &input, &indices, Some(op.reduction)))
        }
        Op::OneHot(op) => {
            let (outer, _, inner) = around(&output, op.axis);
            Box::new(OneHot {
                dims: (outer, op.depth, inner),
            })
        }
        other => {
            return Err(Error::unsupported(format!(
                "{} as an indexing op",
                other.name()
            )));
        }
    })
}

#[derive(Debug)]
struct Gather {
    axis: usize,
    /// Sizes before, at and after the axis.
    dims: (usize, usize, usize),
}

impl Kernel for Gather {
    fn name(&self) -> String {
        "gather".into()
    }

    fn run(&self, args: &[Arg<'_>], outs: &mut [Out<'_>], cx: &mut RunCx<'_>) -> Result<()> {
        let (_, size, inner) = self.dims;
        let indices = Indices::new(&args[1])?;
        indices.check(size, self.axis)?;
        let row = inner * (args[0].dtype.bits() / 8);
        let (source, target) = (args[0].bytes, &mut *outs[0].bytes);
        if row == 0 || target.is_empty() {
            return Ok(());
        }
        // Some rows a task, so that short rows are worth a task.
        let rows = (PARALLEL / 8 / row).max(1);
        let threads = if target.len() < PARALLEL {
            1
        } else {
            cx.threads
        };
        let count = indices.len();
        parallel_chunks(threads, target, rows * row, |chunk, target| {
            for (i, to) in target.chunks_exact_mut(row).enumerate() {
                let entry = chunk * rows + i;
                let at = indices.find(entry % count, size).unwrap_or_default();
                to.copy_from_slice(&source[(entry / count * size + at) * row..][..row]);
            }
        });
        Ok(())
    }
}

#[derive(Debug)]
struct GatherGrad {
    axis: usize,
    /// Sizes before, at and after the axis.
    dims: (usize, usize, usize),
}

impl GatherGrad {
    fn add<T: Element>(&self, indices: Indices<'_>, grad: &[T], out: &mut [T]) -> Result<()> {
        let (outer, size, inner) = self.dims;
        out.fill(T::from_f64(0.0));
        for o in 0..outer {
            for i in 0..indices.len() {
                let at = indices.at(i, size, self.axis)?;
                let to = &mut out[(o * size + at) * inner..][..inner];
                let from = &grad[(o * indices.len() + i) * inner..][..inner];
                for (to, from) in to.iter_mut().zip(from) {
                    *to = T::from_f64(to.to_f64() + from.to_f64());
                }
            }
        }
        Ok(())
    }
}

impl Kernel for GatherGrad {
    fn name(&self) -> String {
        "gathergrad".into()
    }

    fn run(&self, args: &[Arg<'_>], outs: &mut [Out<'_>], _: &mut RunCx<'_>) -> Result<()> {
        let (indices, grad, out) = (Indices::new(&args[0])?, &args[1], &mut outs[0]);
        match grad.dtype {
            DType::F32 => self.add::<f32>(indices, grad.typed(), out.typed()),
            DType::F64 => self.add::<f64>(indices, grad.typed(), out.typed()),
            DType::F16 => self.add::<f16>(indices, grad.typed(), out.typed()),
            DType::BF16 => self.add::<bf16>(indices, grad.typed(), out.typed()),
            other => Err(Error::unsupported(format!("GatherGrad of {other}"))),
        }
    }
}

/// Gathers or scatters with an index for each element.
#[derive(Debug)]
struct Elements {
    axis: usize,
    /// The data's shape, and that of the indices.
    data: Dims,
    indices: Dims,
    scatter: Option<ScatterReduction>,
}

impl Elements {
    fn new(
        axis: usize,
        data: &[usize],
        indices: &[usize],
        scatter: Option<ScatterReduction>,
    ) -> Elements {
        Elements {
            axis,
            data: data.into(),
            indices: indices.into(),
            scatter,
        }
    }

    /// Calls `f` with the flat index of each element of the indices and of the data.
    fn each(&self, indices: Indices<'_>, mut f: impl FnMut(usize, usize)) -> Result<()> {
        for flat in 0..indices.len() {
            let at = indices.at(flat, self.data[self.axis], self.axis)?;
            let (mut rest, mut target, mut step) = (flat, 0, 1);
            for axis in (0..self.data.len()).rev() {
                let i = rest % self.indices[axis];
                rest /= self.indices[axis];
                target += step * if axis == self.axis { at } else { i };
                step *= self.data[axis];
            }
            f(flat, target);
        }
        Ok(())
    }

    fn add<T: Element>(&self, indices: Indices<'_>, updates: &[T], out: &mut [T]) -> Result<()> {
        self.each(indices, |from, to| {
            out[to] = T::from_f64(out[to].to_f64() + updates[from].to_f64());
        })
    }
}

impl Kernel for Elements {
    fn name(&self) -> String {
        if self.scatter.is_some() {
            "scatterelements"
        } else {
            "gatherelements"
        }
        .into()
    }

    fn in_place(&self) -> &[(usize, usize)] {
        if self.scatter.is_some() {
            &[(0, 0)]
        } else {
            &[]
        }
    }

    fn run(&self, args: &[Arg<'_>], outs: &mut [Out<'_>], _: &mut RunCx<'_>) -> Result<()> {
        let (indices, out) = (Indices::new(&args[1])?, &mut outs[0]);
        let size = args[0].dtype.bits() / 8;
        let Some(reduction) = self.scatter else {
            let data = args[0].bytes;
            return self.each(indices, |to, from| {
                out.bytes[to * size..][..size].copy_from_slice(&data[from * size..][..size]);
            });
        };
        if !args[0].bytes.is_empty() {
            out.bytes.copy_from_slice(args[0].bytes);
        }
        let updates = &args[2];
        match (reduction, updates.dtype) {
            (ScatterReduction::None, _) => self.each(indices, |from, to| {
                out.bytes[to * size..][..size]
                    .copy_from_slice(&updates.bytes[from * size..][..size]);
            }),
            (ScatterReduction::Add, DType::F32) => {
                self.add::<f32>(indices, updates.typed(), out.typed())
            }
            (ScatterReduction::Add, DType::F64) => {
                self.add::<f64>(indices, updates.typed(), out.typed())
            }
            (ScatterReduction::Add, DType::F16) => {
                self.add::<f16>(indices, updates.typed(), out.typed())
            }
            (ScatterReduction::Add, DType::BF16) => {
                self.add::<bf16>(indices, updates.typed(), out.typed())
            }
            (ScatterReduction::Add, DType::I64) => {
                let (from, to): (&[i64], &mut [i64]) = (updates.typed(), out.typed());
                self.each(indices, |i, at| to[at] = to[at].wrapping_add(from[i]))
            }
            (ScatterReduction::Add, DType::I32) => {
                let (from, to): (&[i32], &mut [i32]) = (updates.typed(), out.typed());
                self.each(indices, |i, at| to[at] = to[at].wrapping_add(from[i]))
            }
            (how, dtype) => Err(Error::unsupported(format!(
                "ScatterElements ({how:?}) of {dtype}"
            ))),
        }
    }
}

#[derive(Debug)]
struct OneHot {
    /// Sizes before, at and after the new axis.
    dims: (usize, usize, usize),
}

impl OneHot {
    fn fill<T: Copy>(&self, indices: Indices<'_>, out: &mut [T], zero: T, one: T) {
        let (_, depth, inner) = self.dims;
        out.fill(zero);
        for i in 0..indices.len() {
            if let Some(at) = indices.find(i, depth) {
                out[(i / inner * depth + at) * inner + i % inner] = one;
            }
        }
    }

    fn of<T: Element>(&self, indices: Indices<'_>, out: &mut Out<'_>) {
        self.fill(indices, out.typed(), T::from_f64(0.0), T::from_f64(1.0));
    }
}

impl Kernel for OneHot {
    fn name(&self) -> String {
        "onehot".into()
    }

    fn run(&self, args: &[Arg<'_>], outs: &mut [Out<'_>], _: &mut RunCx<'_>) -> Result<()> {
        let (indices, out) = (Indices::new(&args[0])?, &mut outs[0]);
        match out.dtype {
            DType::F32 => self.of::<f32>(indices, out),
            DType::F64 => self.of::<f64>(indices, out),
            DType::F16 => self.of::<f16>(indices, out),
            DType::BF16 => self.of::<bf16>(indices, out),
            DType::I64 => self.of::<i64>(indices, out),
            DType::I32 => self.of::<i32>(indices, out),
            DType::I8 => self.of::<i8>(indices, out),
            DType::U8 | DType::Bool => self.of::<u8>(indices, out),
            other => return Err(Error::unsupported(format!("OneHot of {other}"))),
        }
        Ok(())
    }
}
