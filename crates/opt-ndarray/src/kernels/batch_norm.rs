//! Batch normalization of `f32` by the statistics of the batch, and its gradient, in one kernel
//! with the sum and the ReLU around them.
//!
//! A channel is read from memory once: what is computed from its sums finds it in the cache. With
//! a step of its own each, the sum and the ReLU that follow would read and write all of it again.

use opt_core::ops::BatchNorm;
use opt_core::{Result, TensorType};

use super::lanes::by_isa;
use super::{Arg, CompileCx, Kernel, Out, RunCx, SharedMut, parallel};
use crate::compile::plan::Lowered;

/// Running sums of the entries of a channel.
const LANES: usize = 64;

/// Entries after which running sums are added to the total, in `f64`: so their error does not grow
/// with the size of the batch.
const FLUSH: usize = 1 << 13;

/// Elements from which a second thread is worth its start.
const PARALLEL: usize = 1 << 14;

/// `[N, C, inner]`
#[derive(Debug, Clone, Copy)]
struct Shape {
    n: usize,
    c: usize,
    inner: usize,
}

impl Shape {
    fn new(ty: &TensorType) -> Result<Shape> {
        let shape = ty.shape.fixed()?;
        Ok(Shape {
            n: shape[0],
            c: shape[1],
            inner: shape[2..].iter().product(),
        })
    }

    fn channel(self, channel: usize) -> Channel {
        Channel {
            first: channel * self.inner,
            stride: self.c * self.inner,
            inner: self.inner,
            n: self.n,
        }
    }

    fn threads(self, threads: usize) -> usize {
        match self.n * self.c * self.inner < PARALLEL {
            true => 1,
            false => threads,
        }
    }
}

/// Where the entries of a channel are: a run for each image.
#[derive(Debug, Clone, Copy)]
struct Channel {
    first: usize,
    stride: usize,
    inner: usize,
    n: usize,
}

impl Channel {
    fn run(self, image: usize) -> std::ops::Range<usize> {
        let start = self.first + image * self.stride;
        start..start + self.inner
    }

    /// The image to call for while another one is read, where runs are shorter than a page.
    #[inline(always)]
    fn ahead(self, image: usize) -> Option<usize> {
        let ahead = image + PAGE.div_ceil(self.inner.max(1));
        (self.inner < PAGE && ahead < self.n).then_some(ahead)
    }

    /// Calls for what is read of a tensor some images later.
    #[inline(always)]
    fn fetch(self, x: &[f32], image: usize) {
        if let Some(ahead) = self.ahead(image) {
            fetch(&x[self.run(ahead)]);
        }
    }
}

/// Entries of a page of memory, in which the processor looks ahead by itself.
const PAGE: usize = 1 << 10;

/// Calls for a run of entries.
#[inline(always)]
fn fetch(run: &[f32]) {
    #[cfg(target_arch = "x86_64")]
    for line in run.chunks(16) {
        use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
        #[expect(unsafe_code, reason = "vector instructions")]
        // SAFETY: a hint, which may name any address; every such processor has it.
        unsafe {
            _mm_prefetch::<_MM_HINT_T0>(line.as_ptr().cast());
        }
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = run;
}

/// A channel of a result.
struct Target<'a> {
    all: &'a SharedMut<'a, f32>,
    channel: Channel,
}

impl<'a> Target<'a> {
    /// # Safety
    /// While it is there, nobody else uses that channel.
    #[expect(unsafe_code, reason = "each task has its own channel")]
    unsafe fn new(all: &'a SharedMut<'a, f32>, channel: Channel) -> Target<'a> {
        Target { all, channel }
    }

    #[expect(unsafe_code, reason = "each task has its own channel")]
    fn run(&mut self, image: usize) -> &mut [f32] {
        // SAFETY: in the channel that this alone uses, borrowed as long as what is returned.
        unsafe { self.all.part(self.channel.run(image)) }
    }

    /// Calls for what is written some images later.
    #[inline(always)]
    fn fetch(&self, image: usize) {
        if let Some(ahead) = self.channel.ahead(image) {
            fetch(self.read(ahead));
        }
    }

    #[expect(unsafe_code, reason = "each task has its own channel")]
    fn read(&self, image: usize) -> &[f32] {
        // SAFETY: as above; what `run` returned is not in use, since that borrows this.
        unsafe { self.all.part(self.channel.run(image)) }
    }
}

/// Where the gradient by the normalized entries is.
#[derive(Clone, Copy)]
enum Source<'a> {
    Operand(&'a [f32]),
    Kept(&'a Target<'a>),
    /// Where its result goes.
    Result,
}

/// Two running sums.
struct Sums {
    lanes: [[f32; LANES]; 2],
    totals: [f64; 2],
    pending: usize,
}

impl Sums {
    #[inline(always)]
    fn new() -> Sums {
        Sums {
            lanes: [[0.0; LANES]; 2],
            totals: [0.0; 2],
            pending: 0,
        }
    }

    /// Adds what `f` gives for the entries of two slices.
    #[inline(always)]
    fn add(&mut self, x: &[f32], y: &[f32], f: impl Fn(f32, f32) -> (f32, f32)) {
        for (x, y) in x.chunks(FLUSH).zip(y.chunks(FLUSH)) {
            let (xs, ys) = (x.chunks_exact(LANES), y.chunks_exact(LANES));
            let (x_rest, y_rest) = (xs.remainder(), ys.remainder());
            // Of its own, so that the compiler keeps them in registers.
            let mut own = [[0f32; LANES]; 2];
            for (x, y) in xs.zip(ys) {
                for i in 0..LANES {
                    let (a, b) = f(x[i], y[i]);
                    own[0][i] += a;
                    own[1][i] += b;
                }
            }
            for i in 0..LANES {
                self.lanes[0][i] += own[0][i];
                self.lanes[1][i] += own[1][i];
            }
            let [first, second] = &mut self.lanes;
            let rest = x_rest.iter().zip(y_rest);
            for ((a, b), (&x, &y)) in first.iter_mut().zip(second).zip(rest) {
                let (da, db) = f(x, y);
                *a += da;
                *b += db;
            }
            self.pending += x.len();
            if self.pending >= FLUSH {
                self.flush();
            }
        }
    }

    #[inline(always)]
    fn flush(&mut self) {
        for (total, lanes) in self.totals.iter_mut().zip(&mut self.lanes) {
            *total += lanes.iter().map(|&x| f64::from(x)).sum::<f64>();
            *lanes = [0.0; LANES];
        }
        self.pending = 0;
    }

    #[inline(always)]
    fn end(mut self) -> (f64, f64) {
        self.flush();
        (self.totals[0], self.totals[1])
    }
}

by_isa! {
    /// The sums of the entries and of their squared distances from `centre`.
    fn moments(x: &[f32], channel: Channel, centre: f32) -> (f64, f64) = |_FMA| {
        let mut sums = Sums::new();
        for image in 0..channel.n {
            channel.fetch(x, image);
            let x = &x[channel.run(image)];
            sums.add(x, x, |x, _| (x, (x - centre) * (x - centre)));
        }
        sums.end()
    }
}

by_isa! {
    /// `y = a x + b`, and what comes after.
    fn normalize(
        x: &[f32], other: Option<&[f32]>, y: &mut Target<'_>, a: f32, b: f32, relu: bool
    ) = |_FMA| {
        let channel = y.channel;
        for image in 0..channel.n {
            let run = channel.run(image);
            y.fetch(image);
            if let Some(other) = other {
                channel.fetch(other, image);
            }
            let (x, y) = (&x[run.clone()], y.run(image));
            let rectify = |v: f32| if v < 0.0 { 0.0 } else { v };
            match (other.map(|other| &other[run]), relu) {
                (None, false) => y.iter_mut().zip(x).for_each(|(y, &x)| *y = x * a + b),
                (None, true) => y.iter_mut().zip(x).for_each(|(y, &x)| *y = rectify(x * a + b)),
                (Some(other), false) => {
                    let xs = x.iter().zip(other);
                    y.iter_mut().zip(xs).for_each(|(y, (&x, &o))| *y = (x * a + b) + o);
                }
                (Some(other), true) => {
                    let xs = x.iter().zip(other);
                    y.iter_mut().zip(xs).for_each(|(y, (&x, &o))| *y = rectify((x * a + b) + o));
                }
            }
        }
    }
}

by_isa! {
    /// The sums of the gradient and of its products with `x - mean`.
    fn gradient_sums(g: &[f32], x: &[f32], channel: Channel, mean: f32) -> (f64, f64) = |_FMA| {
        let mut sums = Sums::new();
        for image in 0..channel.n {
            let run = channel.run(image);
            channel.fetch(g, image);
            channel.fetch(x, image);
            sums.add(&g[run.clone()], &x[run], |g, x| (g, g * (x - mean)));
        }
        sums.end()
    }
}

by_isa! {
    /// The gradient before a sum and a ReLU, `first + second` where `y > 0`, and its sums as
    /// [`gradient_sums`] has them. Without `first`, it is what `g` holds.
    fn masked_sums(
        first: Option<&[f32]>, second: Option<&[f32]>, y: &[f32], x: &[f32],
        g: &mut Target<'_>, mean: f32
    ) -> (f64, f64) = |_FMA| {
        let mut sums = Sums::new();
        let channel = g.channel;
        for image in 0..channel.n {
            let run = channel.run(image);
            g.fetch(image);
            for read in [first, second, Some(y), Some(x)].into_iter().flatten() {
                channel.fetch(read, image);
            }
            let g = g.run(image);
            let y = &y[run.clone()];
            let mask = |g: f32, y: f32| if y > 0.0 { g } else { 0.0 };
            let first = first.map(|first| &first[run.clone()]);
            let second = second.map(|second| &second[run.clone()]);
            match (first, second) {
                (None, None) => g.iter_mut().zip(y).for_each(|(g, &y)| *g = mask(*g, y)),
                (None, Some(b)) => {
                    g.iter_mut().zip(b.iter().zip(y)).for_each(|(g, (&b, &y))| *g = mask(*g + b, y));
                }
                (Some(a), None) => {
                    g.iter_mut().zip(a.iter().zip(y)).for_each(|(g, (&a, &y))| *g = mask(a, y));
                }
                (Some(a), Some(b)) => {
                    let ab = a.iter().zip(b).zip(y);
                    g.iter_mut().zip(ab).for_each(|(g, ((&a, &b), &y))| *g = mask(a + b, y));
                }
            }
            // The run is in the first-level cache now.
            sums.add(g, &x[run], |g, x| (g, g * (x - mean)));
        }
        sums.end()
    }
}

by_isa! {
    /// `dx = a g - slope x + shift` with the three coefficients in this order.
    fn gradient(g: Source<'_>, x: &[f32], dx: &mut Target<'_>, coefficients: [f32; 3]) = |_FMA| {
        let channel = dx.channel;
        let [a, slope, shift] = coefficients;
        for image in 0..channel.n {
            let run = channel.run(image);
            dx.fetch(image);
            let dx = dx.run(image);
            let x = &x[run.clone()];
            let g = match g {
                Source::Result => {
                    dx.iter_mut().zip(x).for_each(|(d, &x)| *d = a * *d - slope * x + shift);
                    continue;
                }
                Source::Operand(g) => &g[run],
                Source::Kept(kept) => kept.read(image),
            };
            let gx = g.iter().zip(x);
            dx.iter_mut().zip(gx).for_each(|(d, (&g, &x))| *d = a * g - slope * x + shift);
        }
    }
}

/// Normalization by the batch's statistics, what may be added to it, and a ReLU: inputs and outputs
/// of the op, and what is added as the sixth input.
#[derive(Debug, Clone)]
pub(crate) struct Normalize {
    pub(crate) op: BatchNorm,
    pub(crate) add: bool,
    pub(crate) relu: bool,
}

impl Lowered for Normalize {
    fn compile(&self, cx: &CompileCx<'_>) -> Result<Box<dyn Kernel>> {
        Ok(Box::new(Forward {
            what: self.clone(),
            shape: Shape::new(&cx.inputs[0])?,
        }))
    }

    fn bytes(&self) -> usize {
        0
    }
}

#[derive(Debug)]
struct Forward {
    what: Normalize,
    shape: Shape,
}

impl Kernel for Forward {
    fn name(&self) -> String {
        let add = if self.what.add { "+add" } else { "" };
        let relu = if self.what.relu { "+relu" } else { "" };
        format!("batch norm{add}{relu}")
    }

    fn run(&self, args: &[Arg<'_>], outs: &mut [Out<'_>], cx: &mut RunCx<'_>) -> Result<()> {
        let [x, scale, bias, mean, var] = [0, 1, 2, 3, 4].map(|i| args[i].typed::<f32>());
        let other = args.get(5).map(Arg::typed::<f32>);
        let count = (self.shape.n * self.shape.inner) as f64;
        let momentum = self.what.op.momentum;
        let unbiased = count / (count - 1.0).max(1.0);
        let mut shared = outs
            .iter_mut()
            .map(|out| SharedMut::new(out.typed::<f32>()));
        let [y, new_mean, new_var, batch_mean, batch_inv] =
            std::array::from_fn(|_| shared.next().expect("five outputs"));
        parallel(self.shape.threads(cx.threads), self.shape.c, |i| {
            let channel = self.shape.channel(i);
            let m = moments(x, channel, 0.0).0 / count;
            let centre = m as f32;
            // About the rounded mean, and so with what it lacks taken off.
            let off = m - f64::from(centre);
            let v = moments(x, channel, centre).1 / count - off * off;
            // Not `max`, which would make 0 of NaN.
            let v = if v < 0.0 { 0.0 } else { v };
            let inv = (1.0 / (v + self.what.op.epsilon).sqrt()) as f32;
            let a = scale[i] * inv;
            let next =
                |old: f32, new: f64| ((1.0 - momentum) * f64::from(old) + momentum * new) as f32;
            #[expect(
                unsafe_code,
                reason = "each channel has its own entries of the outputs"
            )]
            // SAFETY: task i is the only one to touch channel i of any output.
            unsafe {
                let mut target = Target::new(&y, channel);
                normalize(
                    x,
                    other,
                    &mut target,
                    a,
                    bias[i] - centre * a,
                    self.what.relu,
                );
                new_mean.part(i..i + 1)[0] = next(mean[i], m);
                new_var.part(i..i + 1)[0] = next(var[i], v * unbiased);
                batch_mean.part(i..i + 1)[0] = centre;
                batch_inv.part(i..i + 1)[0] = inv;
            }
        });
        Ok(())
    }
}

/// The gradient of a normalization by the batch's statistics, with what comes before it: inputs
/// and outputs of the op; with `relu`, the ReLU's output as the next input and gradients only where
/// it is above 0; with `add`, another gradient to add first as the last input; with `keep`, the
/// gradient by what the ReLU had as the fourth output.
#[derive(Debug, Clone, Default)]
pub(crate) struct NormalizeGrad {
    pub(crate) relu: bool,
    pub(crate) add: bool,
    pub(crate) keep: bool,
}

impl Lowered for NormalizeGrad {
    fn compile(&self, cx: &CompileCx<'_>) -> Result<Box<dyn Kernel>> {
        // A gradient becomes what is kept, or else the result, entry by entry.
        let in_place = match (self.relu, self.keep) {
            (true, true) => Some((4, 3)),
            (true, false) => Some((4, 0)),
            (false, _) => None,
        };
        Ok(Box::new(Backward {
            what: self.clone(),
            shape: Shape::new(&cx.inputs[0])?,
            in_place,
        }))
    }

    fn bytes(&self) -> usize {
        0
    }
}

#[derive(Debug)]
struct Backward {
    what: NormalizeGrad,
    shape: Shape,
    in_place: Option<(usize, usize)>,
}

impl Kernel for Backward {
    fn name(&self) -> String {
        let add = if self.what.add { "add+" } else { "" };
        let relu = if self.what.relu { "relu grad+" } else { "" };
        format!("{add}{relu}batch norm grad")
    }

    fn in_place(&self) -> &[(usize, usize)] {
        self.in_place.as_slice()
    }

    fn run(&self, args: &[Arg<'_>], outs: &mut [Out<'_>], cx: &mut RunCx<'_>) -> Result<()> {
        let [x, scale, mean, inv] = [0, 1, 2, 3].map(|i| args[i].typed::<f32>());
        // A gradient that was given up is where its output is.
        let [first, y, second] = [4, 5, 6].map(|i| {
            let there = args.get(i).filter(|arg| !arg.bytes.is_empty());
            there.map(Arg::typed::<f32>)
        });
        let over = 1.0 / (self.shape.n * self.shape.inner) as f64;
        let mut shared = outs
            .iter_mut()
            .map(|out| SharedMut::new(out.typed::<f32>()));
        let [dx, dscale, dbias] = std::array::from_fn(|_| shared.next().expect("three outputs"));
        let kept = shared.next();
        parallel(self.shape.threads(cx.threads), self.shape.c, |i| {
            let channel = self.shape.channel(i);
            let (m, r) = (mean[i], inv[i]);
            #[expect(
                unsafe_code,
                reason = "each channel has its own entries of the outputs"
            )]
            // SAFETY: task i is the only one to touch channel i of any output.
            let (mut dx, mut kept) = unsafe {
                (
                    Target::new(&dx, channel),
                    kept.as_ref().map(|kept| Target::new(kept, channel)),
                )
            };
            let (sum, dot) = match (y, first) {
                (Some(y), _) => {
                    let g = kept.as_mut().unwrap_or(&mut dx);
                    masked_sums(first, second, y, x, g, m)
                }
                (None, first) => gradient_sums(first.unwrap_or_default(), x, channel, m),
            };
            // dx = scale * inv * (g - mean(g) - (x - m) * inv^2 * mean(g (x - m)))
            let a = f64::from(scale[i]) * f64::from(r);
            let slope = a * f64::from(r) * f64::from(r) * dot * over;
            let shift = f64::from(m) * slope - a * sum * over;
            let coefficients = [a, slope, shift].map(|v| v as f32);
            let g = match (y, &kept) {
                (None, _) => Source::Operand(first.unwrap_or_default()),
                (Some(_), None) => Source::Result,
                (Some(_), Some(kept)) => Source::Kept(kept),
            };
            gradient(g, x, &mut dx, coefficients);
            #[expect(
                unsafe_code,
                reason = "each channel has its own entries of the outputs"
            )]
            // SAFETY: as above.
            unsafe {
                dscale.part(i..i + 1)[0] = (dot * f64::from(r)) as f32;
                dbias.part(i..i + 1)[0] = sum as f32;
            }
        });
        Ok(())
    }
}
