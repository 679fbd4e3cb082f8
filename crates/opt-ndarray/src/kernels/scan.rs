//! Arg-max, top-k and running sums along an axis.

use std::cmp::Ordering;

use half::{bf16, f16};
use opt_core::ops::{ArgReduce, CumSum, TopK};
use opt_core::{DType, Element, Error, Result};

use super::{Arg, CompileCx, Kernel, Out, RunCx};

/// Calls a generic function for the dtype of the elements.
macro_rules! by_dtype {
    ($dtype:expr, $what:expr, $t:ident => $call:expr) => {
        match $dtype {
            DType::F32 => by_dtype!(@ $t, f32, $call),
            DType::F64 => by_dtype!(@ $t, f64, $call),
            DType::F16 => by_dtype!(@ $t, f16, $call),
            DType::BF16 => by_dtype!(@ $t, bf16, $call),
            DType::I64 => by_dtype!(@ $t, i64, $call),
            DType::I32 => by_dtype!(@ $t, i32, $call),
            DType::I8 => by_dtype!(@ $t, i8, $call),
            DType::U8 | DType::Bool => by_dtype!(@ $t, u8, $call),
            other => return Err(Error::unsupported(format!("{} of {other}", $what))),
        }
    };
    (@ $t:ident, $own:ty, $call:expr) => {{
        type $t = $own;
        $call
    }};
}

/// The lines along an axis: their number before it, their length, their number after it.
#[derive(Debug, Clone, Copy)]
struct Lines {
    outer: usize,
    len: usize,
    inner: usize,
}

impl Lines {
    fn new(shape: &[usize], axis: usize) -> Lines {
        Lines {
            outer: shape[..axis].iter().product(),
            len: shape[axis],
            inner: shape[axis + 1..].iter().product(),
        }
    }

    /// For each line its number, and where an array with `len` entries a line has its first.
    fn each(self, mut f: impl FnMut(usize, &dyn Fn(usize, usize) -> usize)) {
        for o in 0..self.outer {
            for i in 0..self.inner {
                let inner = self.inner;
                f(o * inner + i, &move |len, at| (o * len + at) * inner + i);
            }
        }
    }
}

/// A total order in which NaN is the largest.
fn order<T: PartialOrd>(a: &T, b: &T) -> Ordering {
    a.partial_cmp(b).unwrap_or_else(|| {
        let nan = |x: &T| x.partial_cmp(x).is_none();
        nan(a).cmp(&nan(b))
    })
}

pub(crate) fn compile_arg(op: &ArgReduce, cx: &CompileCx<'_>) -> Result<Box<dyn Kernel>> {
    let lines = Lines::new(&cx.inputs[0].shape.fixed()?, op.axis);
    if lines.len == 0 && lines.outer * lines.inner > 0 {
        return Err(Error::shape("the largest of no entries"));
    }
    Ok(Box::new(Arg1 {
        op: op.clone(),
        lines,
    }))
}

#[derive(Debug)]
struct Arg1 {
    op: ArgReduce,
    lines: Lines,
}

impl Arg1 {
    fn find<T: Element + PartialOrd>(&self, x: &[T], out: &mut [i64]) {
        let better = if self.op.largest {
            Ordering::Greater
        } else {
            Ordering::Less
        };
        let Lines { len, inner, .. } = self.lines;
        for (line, out) in out.iter_mut().enumerate() {
            let start = line / inner * len * inner + line % inner;
            let mut best = 0;
            for i in 1..len {
                let found = order(&x[start + i * inner], &x[start + best * inner]);
                if found == better || self.op.last && found == Ordering::Equal {
                    best = i;
                }
            }
            *out = best as i64;
        }
    }
}

impl Kernel for Arg1 {
    fn name(&self) -> String {
        if self.op.largest { "argmax" } else { "argmin" }.into()
    }

    fn run(&self, args: &[Arg<'_>], outs: &mut [Out<'_>], _: &mut RunCx<'_>) -> Result<()> {
        let out = outs[0].typed();
        by_dtype!(args[0].dtype, "ArgReduce", T => self.find::<T>(args[0].typed(), out));
        Ok(())
    }
}

pub(crate) fn compile_top_k(op: &TopK, cx: &CompileCx<'_>) -> Result<Box<dyn Kernel>> {
    let lines = Lines::new(&cx.inputs[0].shape.fixed()?, op.axis);
    if op.k > lines.len {
        return Err(Error::invalid(format!(
            "the top {} of {} entries",
            op.k, lines.len
        )));
    }
    Ok(Box::new(Top {
        op: op.clone(),
        lines,
    }))
}

#[derive(Debug)]
struct Top {
    op: TopK,
    lines: Lines,
}

impl Top {
    fn find<T: Element + PartialOrd>(
        &self,
        x: &[T],
        values: &mut [T],
        indices: &mut [i64],
        scratch: &mut [u8],
    ) {
        let Lines { len, .. } = self.lines;
        let k = self.op.k;
        let rank: &mut [u64] = bytemuck::cast_slice_mut(scratch);
        let rank = &mut rank[..len];
        self.lines.each(|_, at| {
            for (i, r) in rank.iter_mut().enumerate() {
                *r = i as u64;
            }
            let compare = |&a: &u64, &b: &u64| {
                let found = order(&x[at(len, a as usize)], &x[at(len, b as usize)]);
                let found = if self.op.largest {
                    found.reverse()
                } else {
                    found
                };
                found.then(a.cmp(&b))
            };
            if 0 < k && k < len {
                rank.select_nth_unstable_by(k - 1, compare);
            }
            rank[..k].sort_unstable_by(compare);
            for (i, &r) in rank[..k].iter().enumerate() {
                values[at(k, i)] = x[at(len, r as usize)];
                indices[at(k, i)] = r as i64;
            }
        });
    }
}

impl Kernel for Top {
    fn name(&self) -> String {
        "topk".into()
    }

    fn scratch(&self) -> usize {
        self.lines.len * size_of::<u64>()
    }

    fn run(&self, args: &[Arg<'_>], outs: &mut [Out<'_>], cx: &mut RunCx<'_>) -> Result<()> {
        let [values, indices] = outs else {
            return Err(Error::invalid("top-k has two outputs"));
        };
        let (x, indices, scratch) = (&args[0], indices.typed(), &mut *cx.scratch);
        by_dtype!(x.dtype, "TopK", T => {
            self.find::<T>(x.typed(), values.typed(), indices, scratch);
        });
        Ok(())
    }
}

pub(crate) fn compile_cumsum(op: &CumSum, cx: &CompileCx<'_>) -> Result<Box<dyn Kernel>> {
    let lines = Lines::new(&cx.inputs[0].shape.fixed()?, op.axis);
    Ok(Box::new(Sums {
        op: op.clone(),
        lines,
    }))
}

#[derive(Debug)]
struct Sums {
    op: CumSum,
    lines: Lines,
}

impl Sums {
    fn all<T: Copy, A: Copy>(
        &self,
        x: &[T],
        out: &mut [T],
        zero: A,
        add: impl Fn(A, T) -> A,
        end: impl Fn(A) -> T,
    ) {
        let Lines { len, .. } = self.lines;
        self.lines.each(|_, at| {
            let mut sum = zero;
            for i in 0..len {
                let i = at(len, if self.op.reverse { len - 1 - i } else { i });
                let before = sum;
                sum = add(sum, x[i]);
                out[i] = end(if self.op.exclusive { before } else { sum });
            }
        });
    }

    fn float<T: Element>(&self, x: &[T], out: &mut [T]) {
        self.all(x, out, 0f64, |sum, x| sum + x.to_f64(), T::from_f64);
    }
}

impl Kernel for Sums {
    fn name(&self) -> String {
        "cumsum".into()
    }

    fn run(&self, args: &[Arg<'_>], outs: &mut [Out<'_>], _: &mut RunCx<'_>) -> Result<()> {
        let (x, out) = (&args[0], &mut outs[0]);
        match x.dtype {
            DType::F32 => self.float::<f32>(x.typed(), out.typed()),
            DType::F64 => self.float::<f64>(x.typed(), out.typed()),
            DType::F16 => self.float::<f16>(x.typed(), out.typed()),
            DType::BF16 => self.float::<bf16>(x.typed(), out.typed()),
            DType::I64 => {
                self.all(x.typed(), out.typed(), 0i64, i64::wrapping_add, |x| x);
            }
            DType::I32 => {
                self.all(x.typed(), out.typed(), 0i32, i32::wrapping_add, |x| x);
            }
            other => return Err(Error::unsupported(format!("CumSum of {other}"))),
        }
        Ok(())
    }
}
