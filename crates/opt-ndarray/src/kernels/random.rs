//! Random tensors and dropout, on the counter-based stream of `opt_core::random`.

use bytemuck::Pod;
use opt_core::ops::{Distribution, Dropout, Random};
use opt_core::random::Philox;
use opt_core::{DType, Element, Error, Result};

use super::{Arg, CompileCx, Kernel, Out, RunCx};

fn step_of(arg: &Arg<'_>) -> u64 {
    arg.typed::<i64>()[0] as u64
}

fn float(dtype: DType) -> Result<()> {
    if matches!(dtype, DType::F32 | DType::F64) {
        return Ok(());
    }
    Err(Error::unsupported(format!(
        "random numbers of {dtype}; draw f32 and cast"
    )))
}

#[derive(Debug)]
struct RandomKernel {
    distribution: Distribution,
    stream: Philox,
}

fn fill<T: Element + Pod>(kernel: &RandomKernel, step: u64, out: &mut [T]) -> Result<()> {
    let stream = kernel.stream;
    match kernel.distribution {
        Distribution::Uniform { low, high } => {
            for (i, v) in out.iter_mut().enumerate() {
                *v = T::from_f64(low + (high - low) * stream.uniform(step, i as u64));
            }
        }
        Distribution::Normal { mean, std } => {
            for (i, v) in out.iter_mut().enumerate() {
                *v = T::from_f64(mean + std * stream.normal(step, i as u64));
            }
        }
        other => return Err(Error::unsupported(format!("distribution {other:?}"))),
    }
    Ok(())
}

impl Kernel for RandomKernel {
    fn name(&self) -> String {
        "random".to_string()
    }

    fn run(&self, args: &[Arg<'_>], outs: &mut [Out<'_>], _: &mut RunCx<'_>) -> Result<()> {
        let step = step_of(&args[0]);
        match outs[0].dtype {
            DType::F64 => fill::<f64>(self, step, outs[0].typed()),
            _ => fill::<f32>(self, step, outs[0].typed()),
        }
    }
}

/// A random tensor.
pub(crate) fn compile_random(op: &Random, _: &CompileCx<'_>) -> Result<Box<dyn Kernel>> {
    float(op.dtype)?;
    Ok(Box::new(RandomKernel {
        distribution: op.distribution,
        stream: Philox::new(op.seed),
    }))
}

#[derive(Debug)]
struct DropoutKernel {
    p: f64,
    stream: Philox,
}

impl DropoutKernel {
    fn apply<T: Element + Pod + std::ops::Mul<Output = T>>(
        &self,
        step: u64,
        x: &[T],
        y: &mut [T],
        mask: &mut [T],
    ) {
        let keep = T::from_f64(1.0 / (1.0 - self.p));
        let threshold = (self.p * f64::from(1u32 << 24)).ceil() as u32;
        let zero = T::from_f64(0.0);
        for (block, ((x, y), mask)) in x
            .chunks(4)
            .zip(y.chunks_mut(4))
            .zip(mask.chunks_mut(4))
            .enumerate()
        {
            let words = self.stream.block(step, block as u64);
            for (j, &x) in x.iter().enumerate() {
                let m = if words[j] >> 8 >= threshold {
                    keep
                } else {
                    zero
                };
                mask[j] = m;
                y[j] = x * m;
            }
        }
    }
}

impl Kernel for DropoutKernel {
    fn name(&self) -> String {
        "dropout".to_string()
    }

    fn run(&self, args: &[Arg<'_>], outs: &mut [Out<'_>], _: &mut RunCx<'_>) -> Result<()> {
        let step = step_of(&args[1]);
        let (y, mask) = outs.split_at_mut(1);
        if args[0].dtype == DType::F64 {
            self.apply::<f64>(step, args[0].typed(), y[0].typed(), mask[0].typed());
        } else {
            self.apply::<f32>(step, args[0].typed(), y[0].typed(), mask[0].typed());
        }
        Ok(())
    }
}

/// Dropout in training mode; in eval mode it is an alias of its input.
pub(crate) fn compile_dropout(op: &Dropout, cx: &CompileCx<'_>) -> Result<Box<dyn Kernel>> {
    float(cx.inputs[0].dtype)?;
    Ok(Box::new(DropoutKernel {
        p: op.p,
        stream: Philox::new(op.seed),
    }))
}
