//! LSTM and GRU, forward and backward.
//!
//! One generic implementation in the element type: the gates of a step are computed from two
//! matrix products; the backward pass runs the forward again and keeps what it needs.

use bytemuck::Pod;
use opt_core::ops::{self, Direction};
use opt_core::{DType, Element, Error, Result, TensorType};

use super::{Arg, CompileCx, Kernel, Out, RunCx, real};

/// What recurrences need of an element type.
trait Real: Element + Pod + num::Ops {
    fn sigmoid(self) -> Self;
    fn tanh_of(self) -> Self;
}

mod num {
    /// Arithmetic.
    pub(super) trait Ops:
        Sized
        + Copy
        + std::ops::Add<Output = Self>
        + std::ops::Sub<Output = Self>
        + std::ops::Mul<Output = Self>
        + std::ops::AddAssign
    {
        const ZERO: Self;
        const ONE: Self;
    }
    impl Ops for f32 {
        const ZERO: f32 = 0.0;
        const ONE: f32 = 1.0;
    }
    impl Ops for f64 {
        const ZERO: f64 = 0.0;
        const ONE: f64 = 1.0;
    }
}

macro_rules! real {
    ($($t:ty),*) => {$(
        impl Real for $t {
            fn sigmoid(self) -> $t {
                1.0 / (1.0 + (-self).exp())
            }
            fn tanh_of(self) -> $t {
                self.tanh()
            }
        }
    )*};
}
real!(f32, f64);

/// Sizes of a recurrence.
#[derive(Debug, Clone, Copy)]
struct Sizes {
    steps: usize,
    batch: usize,
    input: usize,
    hidden: usize,
    directions: usize,
    reverse: bool,
    gates: usize,
}

impl Sizes {
    fn new(x: &TensorType, hidden: usize, direction: Direction, gates: usize) -> Result<Sizes> {
        let shape = x.shape.fixed()?;
        Ok(Sizes {
            steps: shape[0],
            batch: shape[1],
            input: shape[2],
            hidden,
            directions: direction.count(),
            reverse: direction == Direction::Reverse,
            gates,
        })
    }

    /// The step of the sequence that a direction reads `i`-th.
    fn step(&self, direction: usize, i: usize) -> usize {
        if self.reverse || direction == 1 {
            self.steps - 1 - i
        } else {
            i
        }
    }

    fn rows(&self) -> usize {
        self.gates * self.hidden
    }

    /// Entries of a state of one direction.
    fn state(&self) -> usize {
        self.batch * self.hidden
    }
}

/// The weights of one direction.
#[derive(Clone, Copy)]
struct Weights<'a, T> {
    w: &'a [T],
    r: &'a [T],
    bias: &'a [T],
}

impl<'a, T: Real> Weights<'a, T> {
    fn of(s: &Sizes, args: &[Arg<'a>], direction: usize) -> Weights<'a, T> {
        let rows = s.rows();
        let part = |arg: &Arg<'a>, len: usize| &arg.typed::<T>()[direction * len..][..len];
        Weights {
            w: part(&args[1], rows * s.input),
            r: part(&args[2], rows * s.hidden),
            bias: part(&args[3], 2 * rows),
        }
    }
}

fn dot<T: Real>(a: &[T], b: &[T]) -> T {
    a.iter().zip(b).fold(T::ZERO, |s, (&a, &b)| s + a * b)
}

fn axpy<T: Real>(a: T, x: &[T], y: &mut [T]) {
    for (y, &x) in y.iter_mut().zip(x) {
        *y += a * x;
    }
}

/// The pre-activations of a step for one batch entry: `wx = W x + b_w` and `rh = R h + b_r`,
/// apart, since a GRU combines them by a gate.
fn gates<T: Real>(
    s: &Sizes,
    weights: Weights<'_, T>,
    x: &[T],
    h: &[T],
    wx: &mut [T],
    rh: &mut [T],
) {
    let rows = s.rows();
    for g in 0..rows {
        wx[g] = dot(&weights.w[g * s.input..][..s.input], x) + weights.bias[g];
        rh[g] = dot(&weights.r[g * s.hidden..][..s.hidden], h) + weights.bias[rows + g];
    }
}

/// Gradients by the weights, summed over steps and batch, and by what a step read.
struct Sums<'a, T> {
    dw: &'a mut [T],
    dr: &'a mut [T],
    dbias: &'a mut [T],
}

impl<T: Real> Sums<'_, T> {
    /// Adds the contribution of one batch entry of a step, from the gradients by `W x + b_w`
    /// and by `R h + b_r`.
    fn add(
        &mut self,
        s: &Sizes,
        weights: Weights<'_, T>,
        (dwx, drh): (&[T], &[T]),
        (x, h): (&[T], &[T]),
        (dx, dh): (&mut [T], &mut [T]),
    ) {
        let rows = s.rows();
        for g in 0..rows {
            axpy(dwx[g], x, &mut self.dw[g * s.input..][..s.input]);
            axpy(drh[g], h, &mut self.dr[g * s.hidden..][..s.hidden]);
            self.dbias[g] += dwx[g];
            self.dbias[rows + g] += drh[g];
            axpy(dwx[g], &weights.w[g * s.input..][..s.input], dx);
            axpy(drh[g], &weights.r[g * s.hidden..][..s.hidden], dh);
        }
    }
}

/// A cell: how the gates make the next state. A state is h, and for an LSTM c after it.
trait Cell: Send + Sync + std::fmt::Debug {
    /// States carried from step to step.
    const STATES: usize;

    /// Computes the new states of one batch entry in place.
    fn forward<T: Real>(&self, hidden: usize, wx: &[T], rh: &[T], h: &mut [T], c: &mut [T]);

    /// From the old states, the pre-activations and the gradients by the new states: the
    /// gradients by the pre-activations, and in place those by the old states as far as they do
    /// not go through `R h`.
    fn backward<T: Real>(
        &self,
        hidden: usize,
        wx: &[T],
        rh: &[T],
        old: (&[T], &[T]),
        grads: (&mut [T], &mut [T]),
        out: (&mut [T], &mut [T]),
    );
}

#[derive(Debug, Clone, Copy)]
struct LstmCell;

impl LstmCell {
    /// The input, output, forget and cell gates of a unit, from the pre-activations.
    #[inline(always)]
    fn gates<T: Real>(hidden: usize, wx: &[T], rh: &[T], unit: usize) -> [T; 4] {
        let at = |gate: usize| wx[gate * hidden + unit] + rh[gate * hidden + unit];
        [
            at(0).sigmoid(),
            at(1).sigmoid(),
            at(2).sigmoid(),
            at(3).tanh_of(),
        ]
    }
}

impl Cell for LstmCell {
    const STATES: usize = 2;

    fn forward<T: Real>(&self, hidden: usize, wx: &[T], rh: &[T], h: &mut [T], c: &mut [T]) {
        for j in 0..hidden {
            let [i, o, f, g] = LstmCell::gates(hidden, wx, rh, j);
            c[j] = f * c[j] + i * g;
            h[j] = o * c[j].tanh_of();
        }
    }

    fn backward<T: Real>(
        &self,
        hidden: usize,
        wx: &[T],
        rh: &[T],
        (_, c): (&[T], &[T]),
        (dh, dc): (&mut [T], &mut [T]),
        (dwx, drh): (&mut [T], &mut [T]),
    ) {
        for j in 0..hidden {
            let [i, o, f, g] = LstmCell::gates(hidden, wx, rh, j);
            let t = (f * c[j] + i * g).tanh_of();
            let total = dc[j] + dh[j] * o * (T::ONE - t * t);
            let d = [
                total * g * i * (T::ONE - i),
                dh[j] * t * o * (T::ONE - o),
                total * c[j] * f * (T::ONE - f),
                total * i * (T::ONE - g * g),
            ];
            for (gate, d) in d.into_iter().enumerate() {
                dwx[gate * hidden + j] = d;
                drh[gate * hidden + j] = d;
            }
            dc[j] = total * f;
            dh[j] = T::ZERO;
        }
    }
}

#[derive(Debug, Clone, Copy)]
struct GruCell;

impl Cell for GruCell {
    const STATES: usize = 1;

    fn forward<T: Real>(&self, hidden: usize, wx: &[T], rh: &[T], h: &mut [T], _: &mut [T]) {
        for j in 0..hidden {
            let at = |gate: usize| wx[gate * hidden + j] + rh[gate * hidden + j];
            let (z, r) = (at(0).sigmoid(), at(1).sigmoid());
            let n = (wx[2 * hidden + j] + r * rh[2 * hidden + j]).tanh_of();
            h[j] = (T::ONE - z) * n + z * h[j];
        }
    }

    fn backward<T: Real>(
        &self,
        hidden: usize,
        wx: &[T],
        rh: &[T],
        (h, _): (&[T], &[T]),
        (dh, _): (&mut [T], &mut [T]),
        (dwx, drh): (&mut [T], &mut [T]),
    ) {
        for j in 0..hidden {
            let at = |gate: usize| wx[gate * hidden + j] + rh[gate * hidden + j];
            let (z, r) = (at(0).sigmoid(), at(1).sigmoid());
            let m = rh[2 * hidden + j];
            let n = (wx[2 * hidden + j] + r * m).tanh_of();
            let dn = dh[j] * (T::ONE - z) * (T::ONE - n * n);
            let dz = dh[j] * (h[j] - n) * z * (T::ONE - z);
            let dr = dn * m * r * (T::ONE - r);
            for (gate, d) in [dz, dr].into_iter().enumerate() {
                dwx[gate * hidden + j] = d;
                drh[gate * hidden + j] = d;
            }
            dwx[2 * hidden + j] = dn;
            drh[2 * hidden + j] = dn * r;
            dh[j] = dh[j] * z;
        }
    }
}

#[derive(Debug)]
struct Recurrent<C> {
    sizes: Sizes,
    cell: C,
    initial: bool,
    name: &'static str,
}

impl<C: Cell> Recurrent<C> {
    /// The initial states of a direction: h, then c.
    fn start<T: Real>(&self, args: &[Arg<'_>], direction: usize, states: &mut [T]) {
        let len = self.sizes.state();
        states.fill(T::ZERO);
        if self.initial {
            for (i, state) in states.chunks_mut(len).enumerate() {
                let source = args[4 + i].typed::<T>();
                state.copy_from_slice(&source[direction * len..][..len]);
            }
        }
    }

    /// One step for the whole batch, states in place.
    fn step<T: Real>(
        &self,
        weights: Weights<'_, T>,
        x: &[T],
        states: &mut [T],
        gates_of: &mut [T],
    ) {
        let s = &self.sizes;
        let (wx, rh) = gates_of.split_at_mut(s.rows());
        let (h, c) = states.split_at_mut(s.state());
        for n in 0..s.batch {
            let range = n * s.hidden..(n + 1) * s.hidden;
            gates(
                s,
                weights,
                &x[n * s.input..][..s.input],
                &h[range.clone()],
                wx,
                rh,
            );
            let c = if C::STATES > 1 {
                &mut c[range.clone()]
            } else {
                &mut []
            };
            self.cell.forward(s.hidden, wx, rh, &mut h[range], c);
        }
    }

    fn forward<T: Real>(&self, args: &[Arg<'_>], outs: &mut [Out<'_>], scratch: &mut [T]) {
        let s = &self.sizes;
        let x = args[0].typed::<T>();
        let len = s.state();
        let (states, rest) = scratch.split_at_mut(C::STATES * len);
        for d in 0..s.directions {
            let weights = Weights::of(s, args, d);
            self.start(args, d, states);
            for i in 0..s.steps {
                let t = s.step(d, i);
                let x = &x[t * s.batch * s.input..][..s.batch * s.input];
                self.step(weights, x, states, &mut rest[..2 * s.rows()]);
                outs[0].typed::<T>()[(t * s.directions + d) * len..][..len]
                    .copy_from_slice(&states[..len]);
            }
            for (i, state) in states.chunks(len.max(1)).enumerate() {
                outs[1 + i].typed::<T>()[d * len..][..len].copy_from_slice(state);
            }
        }
    }
}

impl<C: Cell> Kernel for Recurrent<C> {
    fn name(&self) -> String {
        self.name.to_string()
    }

    fn scratch(&self) -> usize {
        (C::STATES * self.sizes.state() + 2 * self.sizes.rows()) * size_of::<f64>()
    }

    fn run(&self, args: &[Arg<'_>], outs: &mut [Out<'_>], cx: &mut RunCx<'_>) -> Result<()> {
        match args[0].dtype {
            DType::F64 => self.forward::<f64>(args, outs, bytemuck::cast_slice_mut(cx.scratch)),
            _ => self.forward::<f32>(args, outs, bytemuck::cast_slice_mut(cx.scratch)),
        }
        Ok(())
    }
}

#[derive(Debug)]
struct RecurrentGrad<C>(Recurrent<C>);

impl<C: Cell> RecurrentGrad<C> {
    fn scratch_len(&self) -> usize {
        let s = &self.0.sizes;
        // The states before every step and after the last, the gradients by the states, and the
        // gates with their gradients.
        C::STATES * s.state() * (s.steps + 2) + 4 * s.rows()
    }

    fn backward<T: Real>(&self, args: &[Arg<'_>], outs: &mut [Out<'_>], scratch: &mut [T]) {
        let s = &self.0.sizes;
        let forward_inputs = if self.0.initial { 4 + C::STATES } else { 4 };
        let (args, grads) = args.split_at(forward_inputs);
        let x = args[0].typed::<T>();
        let (len, states) = (s.state(), C::STATES * s.state());
        let (kept, rest) = scratch.split_at_mut(states * (s.steps + 1));
        let (dstates, rest) = rest.split_at_mut(states);
        let (gates_of, dgates) = rest[..4 * s.rows()].split_at_mut(2 * s.rows());
        let (first, more) = outs.split_at_mut(4);
        let [dx, dw, dr, dbias] = first else {
            unreachable!("four gradients at least")
        };
        for out in [&mut *dx, &mut *dw, &mut *dr, &mut *dbias] {
            out.bytes.fill(0);
        }
        for d in 0..s.directions {
            let weights = Weights::of(s, args, d);
            let rows = s.rows();
            let mut sums = Sums {
                dw: &mut dw.typed::<T>()[d * rows * s.input..][..rows * s.input],
                dr: &mut dr.typed::<T>()[d * rows * s.hidden..][..rows * s.hidden],
                dbias: &mut dbias.typed::<T>()[d * 2 * rows..][..2 * rows],
            };
            self.0.start(args, d, &mut kept[..states]);
            for i in 0..s.steps {
                let (before, after) = kept.split_at_mut((i + 1) * states);
                after[..states].copy_from_slice(&before[i * states..]);
                let x = &x[s.step(d, i) * s.batch * s.input..][..s.batch * s.input];
                self.0.step(weights, x, &mut after[..states], gates_of);
            }
            for (i, state) in dstates.chunks_mut(len.max(1)).enumerate() {
                state.copy_from_slice(&grads[1 + i].typed::<T>()[d * len..][..len]);
            }
            for i in (0..s.steps).rev() {
                let t = s.step(d, i);
                let dy = &grads[0].typed::<T>()[(t * s.directions + d) * len..][..len];
                for (dh, &g) in dstates.iter_mut().zip(dy) {
                    *dh += g;
                }
                let old = &kept[i * states..][..states];
                let (dh, dc) = dstates.split_at_mut(len);
                for n in 0..s.batch {
                    let range = n * s.hidden..(n + 1) * s.hidden;
                    let at = (t * s.batch + n) * s.input..(t * s.batch + n + 1) * s.input;
                    let (wx, rh) = gates_of.split_at_mut(rows);
                    let (dwx, drh) = dgates.split_at_mut(rows);
                    let h = &old[range.clone()];
                    gates(s, weights, &x[at.clone()], h, wx, rh);
                    let (c, dc): (&[T], &mut [T]) = if C::STATES > 1 {
                        (&old[len..][range.clone()], &mut dc[range.clone()])
                    } else {
                        (&[], &mut [])
                    };
                    let dh = &mut dh[range];
                    self.0
                        .cell
                        .backward(s.hidden, wx, rh, (h, c), (dh, dc), (dwx, drh));
                    let dx = &mut dx.typed::<T>()[at.clone()];
                    sums.add(s, weights, (dwx, drh), (&x[at], h), (dx, dh));
                }
            }
            for (i, out) in more.iter_mut().enumerate() {
                out.typed::<T>()[d * len..][..len].copy_from_slice(&dstates[i * len..][..len]);
            }
        }
    }
}

impl<C: Cell> Kernel for RecurrentGrad<C> {
    fn name(&self) -> String {
        format!("{} grad", self.0.name)
    }

    fn scratch(&self) -> usize {
        self.scratch_len() * size_of::<f64>()
    }

    fn run(&self, args: &[Arg<'_>], outs: &mut [Out<'_>], cx: &mut RunCx<'_>) -> Result<()> {
        match args[0].dtype {
            DType::F64 => self.backward::<f64>(args, outs, bytemuck::cast_slice_mut(cx.scratch)),
            _ => self.backward::<f32>(args, outs, bytemuck::cast_slice_mut(cx.scratch)),
        }
        Ok(())
    }
}

fn lstm(op: &ops::Lstm, cx: &CompileCx<'_>) -> Result<Recurrent<LstmCell>> {
    real(&cx.inputs[0], "Lstm")?;
    Ok(Recurrent {
        sizes: Sizes::new(&cx.inputs[0], op.hidden, op.direction, 4)?,
        cell: LstmCell,
        initial: op.initial,
        name: "lstm",
    })
}

fn gru(op: &ops::Gru, cx: &CompileCx<'_>) -> Result<Recurrent<GruCell>> {
    real(&cx.inputs[0], "Gru")?;
    if !op.linear_before_reset {
        return Err(Error::unsupported(
            "a GRU whose reset gate applies before the recurrent product \
             (`linear_before_reset = false`)",
        ));
    }
    Ok(Recurrent {
        sizes: Sizes::new(&cx.inputs[0], op.hidden, op.direction, 3)?,
        cell: GruCell,
        initial: op.initial,
        name: "gru",
    })
}

/// Long short-term memory.
pub(crate) fn compile_lstm(op: &ops::Lstm, cx: &CompileCx<'_>) -> Result<Box<dyn Kernel>> {
    Ok(Box::new(lstm(op, cx)?))
}

/// Gradients of an LSTM.
pub(crate) fn compile_lstm_grad(op: &ops::LstmGrad, cx: &CompileCx<'_>) -> Result<Box<dyn Kernel>> {
    Ok(Box::new(RecurrentGrad(lstm(&op.lstm, cx)?)))
}

/// Gated recurrent unit.
pub(crate) fn compile_gru(op: &ops::Gru, cx: &CompileCx<'_>) -> Result<Box<dyn Kernel>> {
    Ok(Box::new(gru(op, cx)?))
}

/// Gradients of a GRU.
pub(crate) fn compile_gru_grad(op: &ops::GruGrad, cx: &CompileCx<'_>) -> Result<Box<dyn Kernel>> {
    Ok(Box::new(RecurrentGrad(gru(&op.gru, cx)?)))
}
