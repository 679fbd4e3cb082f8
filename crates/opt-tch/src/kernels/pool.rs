//! Max and average pooling and their gradients.

use opt_core::ops::{AvgPool, AvgPoolGrad, MaxPool, MaxPoolGrad, Window};
use opt_core::{Error, Result};
use smallvec::smallvec;
use tch::Tensor;

use super::{CompileCx, Kernel, int, ints};
use crate::native::{Arg, Outs, aten, atens};

/// What padding holds, so that it never wins.
const LOWEST: f64 = f64::NEG_INFINITY;

/// A pooling window; one axis is run as two, the first of size 1.
#[derive(Debug, Clone)]
struct Pool {
    kernel: Vec<i64>,
    strides: Vec<i64>,
    pads: Vec<i64>,
    dilations: Vec<i64>,
    ceil: bool,
    /// Whether an axis was added.
    line: bool,
    /// What is padded before the operator, as `constant_pad_nd` takes it; empty where the
    /// operator can.
    before: Vec<i64>,
}

impl Pool {
    fn new(
        kernel: &[usize],
        window: &Window,
        ceil: bool,
        input: &[i64],
        output: &[i64],
    ) -> Result<Pool> {
        let mut pool = Pool {
            kernel: ints(kernel)?,
            strides: ints(&window.strides)?,
            pads: ints(&window.pads_begin)?,
            dilations: ints(&window.dilations)?,
            ceil,
            line: kernel.len() == 1,
            before: Vec::new(),
        };
        if !(1..=3).contains(&kernel.len()) {
            return Err(Error::unsupported(format!(
                "pooling over {} axes on the libtorch backend",
                kernel.len()
            )));
        }
        let native = window.pads_begin == window.pads_end
            && pool.pads.iter().zip(&pool.kernel).all(|(p, k)| 2 * p <= *k);
        if !native {
            // Exactly what the last window reaches.
            for i in (0..kernel.len()).rev() {
                let reach = pool.dilations[i] * (pool.kernel[i] - 1) + 1;
                let wanted = (output[i + 2] - 1) * pool.strides[i] + reach;
                let end = (wanted - input[i + 2] - pool.pads[i]).max(0);
                pool.before.extend([pool.pads[i], end]);
                pool.pads[i] = 0;
            }
            pool.ceil = false;
        }
        if pool.line {
            for (list, unit) in [
                (&mut pool.kernel, 1),
                (&mut pool.strides, 1),
                (&mut pool.pads, 0),
                (&mut pool.dilations, 1),
            ] {
                list.insert(0, unit);
            }
        }
        Ok(pool)
    }

    /// The input as the operator takes it.
    fn enter(&self, x: &Tensor, filler: f64) -> Result<Tensor> {
        let mut x = x.shallow_clone();
        if !self.before.is_empty() {
            x = aten!("constant_pad_nd", &x, &self.before, filler)?;
        }
        match self.line {
            true => aten!("unsqueeze", &x, 2i64),
            false => Ok(x),
        }
    }

    /// What the operator gives, as the op has it.
    fn leave(&self, y: Tensor) -> Result<Tensor> {
        match self.line {
            true => aten!("squeeze.dim", &y, 2i64),
            false => Ok(y),
        }
    }

    /// A gradient by what `enter` gave, by the input.
    fn crop(&self, g: Tensor, shape: &[i64]) -> Result<Tensor> {
        let mut g = self.leave(g)?;
        for (i, pair) in self.before.chunks(2).enumerate() {
            let axis = shape.len() - 1 - i;
            g = aten!("narrow", &g, int(axis)?, pair[0], shape[axis])?;
        }
        Ok(g)
    }

    fn max(&self, x: &Tensor) -> Result<Outs> {
        let (k, s, p, d) = (&self.kernel, &self.strides, &self.pads, &self.dilations);
        match self.kernel.len() {
            2 => atens!("max_pool2d_with_indices", x, k, s, p, d, self.ceil),
            _ => atens!("max_pool3d_with_indices", x, k, s, p, d, self.ceil),
        }
    }

    fn max_backward(&self, g: &Tensor, x: &Tensor, index: &Tensor) -> Result<Tensor> {
        let (k, s, p, d, c) = (
            &self.kernel,
            &self.strides,
            &self.pads,
            &self.dilations,
            self.ceil,
        );
        match self.kernel.len() {
            2 => aten!(
                "max_pool2d_with_indices_backward",
                g,
                x,
                k,
                s,
                p,
                d,
                c,
                index
            ),
            _ => aten!(
                "max_pool3d_with_indices_backward",
                g,
                x,
                k,
                s,
                p,
                d,
                c,
                index
            ),
        }
    }
}

fn max_of(op: &MaxPool, input: &[i64], output: &[i64]) -> Result<Pool> {
    Pool::new(&op.kernel, &op.window, op.ceil_mode, input, output)
}

fn filler(cx: &CompileCx<'_>, pool: &Pool) -> Result<f64> {
    let dtype = cx.inputs[0].dtype;
    if dtype.is_float() || pool.before.is_empty() {
        return Ok(LOWEST);
    }
    Ok(f64::from(dtype.int_range()?.0))
}

pub(super) fn compile_max_pool(op: &MaxPool, cx: &CompileCx<'_>) -> Result<Kernel> {
    let pool = max_of(op, &cx.shape(0)?, &cx.out_shape(0)?)?;
    let lowest = filler(cx, &pool)?;
    Ok(Kernel::one("max_pool", move |x| {
        let y = pool.max(&pool.enter(x[0], lowest)?)?.swap_remove(0);
        pool.leave(y)
    }))
}

/// Max pooling whose second output, the indices, its gradient reads.
pub(crate) fn compile_max_pool_indices(op: &MaxPool, cx: &CompileCx<'_>) -> Result<Kernel> {
    let pool = max_of(op, &cx.shape(0)?, &cx.out_shape(0)?)?;
    Ok(Kernel::new("max_pool", move |x, _| {
        let mut outs = pool.max(&pool.enter(x[0], LOWEST)?)?;
        let index = outs.swap_remove(1);
        let y = pool.leave(outs.swap_remove(0))?;
        Ok(smallvec![y, index])
    }))
}

pub(super) fn compile_max_pool_grad(op: &MaxPoolGrad, cx: &CompileCx<'_>) -> Result<Kernel> {
    let shape = cx.shape(0)?;
    let pool = max_of(&op.pool, &shape, &cx.shape(1)?)?;
    // A third input holds the forward's indices where they were kept.
    Ok(Kernel::one("max_pool_backward", move |x| {
        let padded = pool.enter(x[0], LOWEST)?;
        let g = match pool.line {
            true => aten!("unsqueeze", x[1], 2i64)?,
            false => x[1].shallow_clone(),
        };
        let index = match x.get(2) {
            Some(index) => index.shallow_clone(),
            None => pool.max(&padded)?.swap_remove(1),
        };
        pool.crop(pool.max_backward(&g, &padded, &index)?, &shape)
    }))
}

/// How an average is computed.
#[derive(Debug, Clone)]
enum Average {
    Native(Pool, bool),
    /// A sum over each window, and the number of entries that count in each.
    Sums(Box<Sums>),
}

#[derive(Debug, Clone)]
struct Sums {
    kernel: Vec<i64>,
    strides: Vec<i64>,
    dilations: Vec<i64>,
    /// Padding around the input, up to what the last window reaches.
    pads: Vec<i64>,
    /// Padding with entries that count, and then with such that do not.
    counted: [Vec<i64>; 2],
    input: Vec<i64>,
}

impl Sums {
    fn new(op: &AvgPool, input: &[i64], output: &[i64]) -> Result<Sums> {
        let (begin, end) = (ints(&op.window.pads_begin)?, ints(&op.window.pads_end)?);
        let (kernel, strides, dilations) = (
            ints(&op.kernel)?,
            ints(&op.window.strides)?,
            ints(&op.window.dilations)?,
        );
        let mut sums = Sums {
            kernel,
            strides,
            dilations,
            pads: Vec::new(),
            counted: [Vec::new(), Vec::new()],
            input: input.to_vec(),
        };
        for i in (0..begin.len()).rev() {
            let reach = sums.dilations[i] * (sums.kernel[i] - 1) + 1;
            let wanted = (output[i + 2] - 1) * sums.strides[i] + reach;
            let after = (wanted - input[i + 2] - begin[i]).max(0);
            sums.pads.extend([begin[i], after]);
            let real = match op.count_include_pad {
                true => (begin[i], end[i].min(after)),
                false => (0, 0),
            };
            sums.counted[0].extend([real.0, real.1]);
            sums.counted[1].extend([begin[i] - real.0, after - real.1]);
        }
        Ok(sums)
    }

    /// One channel at a time.
    fn flat(&self, shape: &[i64]) -> Vec<i64> {
        let mut flat = vec![shape[0] * shape[1], 1];
        flat.extend(&shape[2..]);
        flat
    }

    fn sum(&self, x: &Tensor, transposed: bool) -> Result<Tensor> {
        let mut kernel = vec![1, 1];
        kernel.extend(&self.kernel);
        let ones = aten!("new_ones", x, &kernel)?;
        let zeros = vec![0; self.kernel.len()];
        aten!(
            "convolution",
            x,
            &ones,
            Arg::None,
            &self.strides,
            &zeros,
            &self.dilations,
            transposed,
            &zeros,
            1i64,
        )
    }

    fn counts(&self, like: &Tensor) -> Result<Tensor> {
        let mut shape = vec![1, 1];
        shape.extend(&self.input[2..]);
        let ones = aten!("new_ones", like, &shape)?;
        let ones = aten!("constant_pad_nd", &ones, &self.counted[0], 1.0)?;
        let ones = aten!("constant_pad_nd", &ones, &self.counted[1], 0.0)?;
        self.sum(&ones, false)
    }

    fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let flat = aten!("reshape", x, &self.flat(&self.input))?;
        let padded = aten!("constant_pad_nd", &flat, &self.pads, 0.0)?;
        let y = aten!("div.Tensor", &self.sum(&padded, false)?, &self.counts(x)?)?;
        let mut shape = self.input[..2].to_vec();
        shape.extend(&y.size()[2..]);
        aten!("reshape", &y, &shape)
    }

    fn backward(&self, g: &Tensor) -> Result<Tensor> {
        let flat = aten!("reshape", g, &self.flat(&g.size()))?;
        let mut y = self.sum(&aten!("div.Tensor", &flat, &self.counts(g)?)?, true)?;
        let rank = self.input.len();
        let mut missing = Vec::new();
        for (i, pair) in self.pads.chunks(2).enumerate() {
            let axis = rank - 1 - i;
            missing.extend([0, (pair[0] + self.input[axis] - y.size()[axis]).max(0)]);
        }
        y = aten!("constant_pad_nd", &y, &missing, 0.0)?;
        for (i, pair) in self.pads.chunks(2).enumerate() {
            let axis = rank - 1 - i;
            y = aten!("narrow", &y, int(axis)?, pair[0], self.input[axis])?;
        }
        aten!("reshape", &y, &self.input)
    }
}

fn average(op: &AvgPool, input: &[i64], output: &[i64]) -> Result<Average> {
    let pool = Pool::new(&op.kernel, &op.window, op.ceil_mode, input, output)?;
    if pool.before.is_empty() && pool.dilations.iter().all(|&d| d == 1) {
        return Ok(Average::Native(pool, op.count_include_pad));
    }
    Ok(Average::Sums(Box::new(Sums::new(op, input, output)?)))
}

pub(super) fn compile_avg_pool(op: &AvgPool, cx: &CompileCx<'_>) -> Result<Kernel> {
    let average = average(op, &cx.shape(0)?, &cx.out_shape(0)?)?;
    Ok(Kernel::one("avg_pool", move |x| match &average {
        Average::Sums(sums) => sums.forward(x[0]),
        Average::Native(pool, include) => {
            let x = pool.enter(x[0], 0.0)?;
            let (k, s, p) = (&pool.kernel, &pool.strides, &pool.pads);
            let y = match pool.kernel.len() {
                2 => aten!("avg_pool2d", &x, k, s, p, pool.ceil, *include)?,
                _ => aten!("avg_pool3d", &x, k, s, p, pool.ceil, *include)?,
            };
            pool.leave(y)
        }
    }))
}

pub(super) fn compile_avg_pool_grad(op: &AvgPoolGrad, cx: &CompileCx<'_>) -> Result<Kernel> {
    let shape = cx.out_shape(0)?;
    let average = average(&op.pool, &shape, &cx.shape(0)?)?;
    Ok(Kernel::one("avg_pool_backward", move |x| match &average {
        Average::Sums(sums) => sums.backward(x[0]),
        Average::Native(pool, include) => {
            // Only the sizes of the input are looked at.
            let like = pool.enter(&aten!("new_empty", x[0], &shape)?, 0.0)?;
            let g = match pool.line {
                true => aten!("unsqueeze", x[0], 2i64)?,
                false => x[0].shallow_clone(),
            };
            let (k, s, p, c) = (&pool.kernel, &pool.strides, &pool.pads, pool.ceil);
            let y = match pool.kernel.len() {
                2 => aten!(
                    "avg_pool2d_backward",
                    &g,
                    &like,
                    k,
                    s,
                    p,
                    c,
                    *include,
                    Arg::None
                )?,
                _ => aten!(
                    "avg_pool3d_backward",
                    &g,
                    &like,
                    k,
                    s,
                    p,
                    c,
                    *include,
                    Arg::None
                )?,
            };
            pool.crop(y, &shape)
        }
    }))
}
