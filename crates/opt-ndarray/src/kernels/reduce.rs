//! Reductions over axes.

use half::{bf16, f16};
use opt_core::ops::{self, ReduceOp};
use opt_core::{DType, Element, Error, Result};
use smallvec::SmallVec;

use super::lanes::by_isa;
use super::{Arg, CompileCx, Kernel, Out, RunCx, parallel_chunks};

type Axes = SmallVec<[(usize, usize); 4]>;

/// A reduction, with neighbouring axes of one kind merged.
#[derive(Debug)]
struct Reduce {
    op: ReduceOp,
    /// Sizes and strides of the kept axes, without an innermost one.
    kept: Axes,
    /// Sizes and strides of the reduced axes, without an innermost one.
    reduced: Axes,
    inner: Inner,
    /// How many entries an output entry is made of.
    count: usize,
    dtype: DType,
}

/// What the innermost axis is, with its size.
#[derive(Debug, Clone, Copy)]
enum Inner {
    Kept(usize),
    Reduced(usize),
}

pub(crate) fn compile(op: &ops::Reduce, cx: &CompileCx<'_>) -> Result<Box<dyn Kernel>> {
    let shape = cx.inputs[0].shape.fixed()?;
    let dtype = cx.inputs[0].dtype;
    if dtype.is_packed() || dtype == DType::Bool {
        return Err(Error::unsupported(format!(
            "{} of {dtype}; cast first",
            op.op.name()
        )));
    }
    // From the innermost axis outwards: size, stride, whether it is reduced.
    let mut axes: SmallVec<[(usize, usize, bool); 4]> = SmallVec::new();
    let mut stride = 1;
    for (axis, &size) in shape.iter().enumerate().rev() {
        let reduced = op.axes.contains(&axis);
        if size != 1 {
            match axes.last_mut() {
                Some((n, _, kind)) if *kind == reduced => *n *= size,
                _ => axes.push((size, stride, reduced)),
            }
        }
        stride *= size;
    }
    let inner = match axes.first() {
        Some(&(size, _, true)) => Inner::Reduced(size),
        Some(&(size, _, false)) => Inner::Kept(size),
        None => Inner::Kept(1),
    };
    let rest = axes.get(1..).unwrap_or(&[]);
    let of = |kind: bool| -> Axes {
        rest.iter()
            .rev()
            .filter(|a| a.2 == kind)
            .map(|a| (a.0, a.1))
            .collect()
    };
    Ok(Box::new(Reduce {
        op: op.op,
        kept: of(false),
        reduced: of(true),
        inner,
        count: op.axes.iter().map(|&a| shape[a]).product(),
        dtype,
    }))
}

/// Where the entry of a flat index over some axes lies.
fn offset(axes: &[(usize, usize)], mut index: usize) -> usize {
    let mut at = 0;
    for &(size, stride) in axes.iter().rev() {
        at += (index % size) * stride;
        index /= size;
    }
    at
}

fn size(axes: &[(usize, usize)]) -> usize {
    axes.iter().map(|a| a.0).product()
}

/// Output entries that are reduced at once where the innermost axis is kept.
const WIDTH: usize = 256;

/// Input entries from which a second thread is worth its start.
const PARALLEL: usize = 1 << 16;

/// How entries are combined: in `A`, from `T`.
trait Fold<T, A>: Sync {
    fn start(&self) -> A;
    fn add(&self, sum: A, x: T) -> A;
    fn join(&self, a: A, b: A) -> A;
    fn end(&self, sum: A) -> T;

    /// Folds a run of neighbours.
    fn run(&self, x: &[T]) -> A;
}

impl Reduce {
    fn fold<T, A, F>(&self, x: &[T], out: &mut [T], fold: &F, threads: usize)
    where
        T: Copy + Send + Sync,
        A: Copy,
        F: Fold<T, A>,
    {
        let combinations = size(&self.reduced);
        let threads = if x.len() < PARALLEL { 1 } else { threads };
        match self.inner {
            Inner::Reduced(len) => {
                let grain = (PARALLEL / 4 / self.count.max(1)).max(1);
                parallel_chunks(threads, out, grain, |chunk, out| {
                    for (i, out) in out.iter_mut().enumerate() {
                        let base = offset(&self.kept, chunk * grain + i);
                        let mut sum = fold.start();
                        for r in 0..combinations {
                            let at = base + offset(&self.reduced, r);
                            sum = fold.join(sum, fold.run(&x[at..at + len]));
                        }
                        *out = fold.end(sum);
                    }
                });
            }
            Inner::Kept(len) => {
                // Chunks that end with the row, so that each is one run of the input.
                parallel_chunks(threads, out, len.max(1), |row, out| {
                    let base = offset(&self.kept, row);
                    for (tile, out) in out.chunks_mut(WIDTH).enumerate() {
                        let mut sums = [fold.start(); WIDTH];
                        for r in 0..combinations {
                            let at = base + offset(&self.reduced, r) + tile * WIDTH;
                            for (sum, &x) in sums.iter_mut().zip(&x[at..at + out.len()]) {
                                *sum = fold.add(*sum, x);
                            }
                        }
                        for (out, &sum) in out.iter_mut().zip(&sums) {
                            *out = fold.end(sum);
                        }
                    }
                });
            }
        }
    }

    fn float<T: Copy + Send + Sync>(
        &self,
        x: &[T],
        out: &mut [T],
        to: impl Fn(T) -> f64 + Sync,
        from: impl Fn(f64) -> T + Sync,
        run: Option<fn(&[T]) -> f64>,
        threads: usize,
    ) {
        let fold = Plain {
            start: self.start(),
            op: self.op,
            to,
            from,
            run,
            mean: self.mean(),
        };
        self.fold(x, out, &fold, threads);
    }

    /// The factor of a sum.
    fn mean(&self) -> f64 {
        match self.op {
            ReduceOp::Mean => 1.0 / self.count as f64,
            _ => 1.0,
        }
    }

    fn start(&self) -> f64 {
        match self.op {
            ReduceOp::Max => f64::NEG_INFINITY,
            ReduceOp::Min => f64::INFINITY,
            ReduceOp::Prod => 1.0,
            _ => 0.0,
        }
    }

    fn integer<T: Copy + Send + Sync>(
        &self,
        x: &[T],
        out: &mut [T],
        to: impl Fn(T) -> i64 + Sync,
        from: impl Fn(i64) -> T + Sync,
        limits: (i64, i64),
        threads: usize,
    ) {
        self.fold(
            x,
            out,
            &Integers {
                op: self.op,
                to,
                from,
                limits,
            },
            threads,
        );
    }
}

/// Floating-point entries, combined in `f64`.
struct Plain<T, F, G> {
    op: ReduceOp,
    start: f64,
    to: F,
    from: G,
    /// A faster way for a run of neighbours, if there is one.
    run: Option<fn(&[T]) -> f64>,
    mean: f64,
}

fn combine(op: ReduceOp, a: f64, b: f64) -> f64 {
    match op {
        ReduceOp::Max if a > b || a.is_nan() => a,
        ReduceOp::Min if a < b || a.is_nan() => a,
        ReduceOp::Max | ReduceOp::Min => b,
        ReduceOp::Prod => a * b,
        _ => a + b,
    }
}

impl<T, F, G> Fold<T, f64> for Plain<T, F, G>
where
    T: Copy,
    F: Fn(T) -> f64 + Sync,
    G: Fn(f64) -> T + Sync,
{
    fn start(&self) -> f64 {
        self.start
    }
    fn add(&self, sum: f64, x: T) -> f64 {
        combine(self.op, sum, (self.to)(x))
    }
    fn join(&self, a: f64, b: f64) -> f64 {
        combine(self.op, a, b)
    }
    fn end(&self, sum: f64) -> T {
        (self.from)(sum * self.mean)
    }
    fn run(&self, x: &[T]) -> f64 {
        match self.run {
            Some(run) => run(x),
            None => x.iter().fold(self.start, |sum, &x| self.add(sum, x)),
        }
    }
}

struct Integers<F, G> {
    op: ReduceOp,
    to: F,
    from: G,
    limits: (i64, i64),
}

impl<T, F, G> Fold<T, i64> for Integers<F, G>
where
    T: Copy,
    F: Fn(T) -> i64 + Sync,
    G: Fn(i64) -> T + Sync,
{
    fn start(&self) -> i64 {
        match self.op {
            ReduceOp::Max => self.limits.0,
            ReduceOp::Min => self.limits.1,
            ReduceOp::Prod => 1,
            _ => 0,
        }
    }
    fn add(&self, sum: i64, x: T) -> i64 {
        self.join(sum, (self.to)(x))
    }
    fn join(&self, a: i64, b: i64) -> i64 {
        match self.op {
            ReduceOp::Max => a.max(b),
            ReduceOp::Min => a.min(b),
            ReduceOp::Prod => a.wrapping_mul(b),
            _ => a.wrapping_add(b),
        }
    }
    fn end(&self, sum: i64) -> T {
        (self.from)(sum)
    }
    fn run(&self, x: &[T]) -> i64 {
        x.iter().fold(self.start(), |sum, &x| self.add(sum, x))
    }
}

/// Joins partial results, half with half.
#[inline(always)]
fn fold(mut lanes: [f32; 64], join: impl Fn(f32, f32) -> f32) -> f32 {
    let mut width = 32;
    while width > 0 {
        for i in 0..width {
            lanes[i] = join(lanes[i], lanes[i + width]);
        }
        width /= 2;
    }
    lanes[0]
}

by_isa! {
    /// The sum in 64 partial sums, joined into `f64` every 4096 entries, so that the error does
    /// not grow with the length.
    pub(super) fn sum(x: &[f32]) -> f64 = |_FMA| {
        let mut total = 0f64;
        for block in x.chunks(4096) {
            let mut lanes = [0f32; 64];
            let mut chunks = block.chunks_exact(64);
            for chunk in &mut chunks {
                for (lane, &x) in lanes.iter_mut().zip(chunk) {
                    *lane += x;
                }
            }
            for (lane, &x) in lanes.iter_mut().zip(chunks.remainder()) {
                *lane += x;
            }
            total += f64::from(fold(lanes, |a, b| a + b));
        }
        total
    }
}

by_isa! {
    /// The largest entry; NaN if there is one, minus infinity of nothing.
    pub(super) fn max(x: &[f32]) -> f32 = |_FMA| {
        let larger = |a: f32, b: f32| if a > b || a.is_nan() { a } else { b };
        let mut lanes = [f32::NEG_INFINITY; 64];
        let mut chunks = x.chunks_exact(64);
        for chunk in &mut chunks {
            for (lane, &x) in lanes.iter_mut().zip(chunk) {
                *lane = larger(*lane, x);
            }
        }
        for (lane, &x) in lanes.iter_mut().zip(chunks.remainder()) {
            *lane = larger(*lane, x);
        }
        fold(lanes, larger)
    }
}

by_isa! {
    /// Adds a slice to sums.
    fn add_to(sums: &mut [f32], x: &[f32]) = |_FMA| {
        for (sum, &x) in sums.iter_mut().zip(x) {
            *sum += x;
        }
    }
}

impl Reduce {
    /// Sums and means of `f32` where the innermost axis, of size `len`, is kept.
    fn column_sums(&self, x: &[f32], out: &mut [f32], len: usize, threads: usize) {
        let scale = self.mean();
        let combinations = size(&self.reduced);
        let threads = if x.len() < PARALLEL { 1 } else { threads };
        // A row, or the part of a long one that a thread takes; the same cut for any number of
        // threads.
        let rows = size(&self.kept);
        let width = if rows == 1 { len.min(WIDTH) } else { len };
        let per_row = len.div_ceil(width.max(1)).max(1);
        parallel_chunks(threads, out, width.max(1), |chunk, out| {
            let base = offset(&self.kept, chunk / per_row) + chunk % per_row * width;
            for (tile, out) in out.chunks_mut(WIDTH).enumerate() {
                let mut totals = [0f64; WIDTH];
                let mut sums = [0f32; WIDTH];
                let sums = &mut sums[..out.len()];
                for r in 0..combinations {
                    let at = base + offset(&self.reduced, r) + tile * WIDTH;
                    add_to(sums, &x[at..at + out.len()]);
                    if r % 64 == 63 || r + 1 == combinations {
                        for (total, sum) in totals.iter_mut().zip(&mut *sums) {
                            *total += f64::from(std::mem::take(sum));
                        }
                    }
                }
                for (out, &total) in out.iter_mut().zip(&totals) {
                    *out = (total * scale) as f32;
                }
            }
        });
    }
}

impl Kernel for Reduce {
    fn name(&self) -> String {
        self.op.name().to_lowercase()
    }

    fn run(&self, args: &[Arg<'_>], outs: &mut [Out<'_>], cx: &mut RunCx<'_>) -> Result<()> {
        let (x, out, threads) = (&args[0], &mut outs[0], cx.threads);
        match self.dtype {
            DType::F32 => {
                let sums = matches!(self.op, ReduceOp::Sum | ReduceOp::Mean);
                if let (true, Inner::Kept(len)) = (sums, self.inner) {
                    self.column_sums(x.typed(), out.typed(), len, threads);
                    return Ok(());
                }
                let run: Option<fn(&[f32]) -> f64> = match self.op {
                    ReduceOp::Max => Some(|x| max(x).into()),
                    ReduceOp::Sum | ReduceOp::Mean => Some(sum),
                    _ => None,
                };
                let (x, out) = (x.typed::<f32>(), out.typed());
                self.float(x, out, f64::from, |x| x as f32, run, threads);
            }
            DType::F64 => {
                self.float(x.typed::<f64>(), out.typed(), |x| x, |x| x, None, threads);
            }
            DType::F16 => {
                let (x, out) = (x.typed(), out.typed());
                self.float(x, out, f16::to_f64, Element::from_f64, None, threads);
            }
            DType::BF16 => {
                let (x, out) = (x.typed(), out.typed());
                self.float(x, out, bf16::to_f64, Element::from_f64, None, threads);
            }
            DType::I64 => {
                let limits = (i64::MIN, i64::MAX);
                self.integer(x.typed(), out.typed(), |x: i64| x, |x| x, limits, threads);
            }
            DType::I32 => {
                let limits = (i32::MIN.into(), i32::MAX.into());
                self.integer(
                    x.typed::<i32>(),
                    out.typed(),
                    i64::from,
                    |x| x as i32,
                    limits,
                    threads,
                );
            }
            DType::I8 => {
                self.integer(
                    x.typed::<i8>(),
                    out.typed(),
                    i64::from,
                    |x| x as i8,
                    (-128, 127),
                    threads,
                );
            }
            DType::U8 => {
                self.integer(
                    x.typed::<u8>(),
                    out.typed(),
                    i64::from,
                    |x| x as u8,
                    (0, 255),
                    threads,
                );
            }
            other => {
                return Err(Error::unsupported(format!("{} of {other}", self.op.name())));
            }
        }
        Ok(())
    }
}
