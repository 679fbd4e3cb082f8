//! Random tensors and dropout, entry by entry as [`opt_core::random`] defines them.

use half::{bf16, f16};
use opt_core::ops::{Distribution, Dropout, Random};
use opt_core::random::Philox;
use opt_core::{DType, Element, Error, Result};

use super::lanes::by_isa;
use super::{Arg, CompileCx, Kernel, Out, RunCx, SharedMut, parallel};

/// Entries that are drawn at once: sixteen Philox blocks.
const TILE: usize = 64;

/// Entries a task.
const TASK: usize = 16 * TILE;

by_isa! {
    /// The words of sixteen blocks, in the order of the entries.
    fn words(seed: u64, step: u64, block: u64, out: &mut [u32; TILE]) = |_FMA| {
        const N: usize = TILE / 4;
        let (mut c0, mut c1) = ([0u32; N], [0u32; N]);
        let (mut c2, mut c3) = ([step as u32; N], [(step >> 32) as u32; N]);
        for i in 0..N {
            let at = block.wrapping_add(i as u64);
            (c0[i], c1[i]) = (at as u32, (at >> 32) as u32);
        }
        let (mut k0, mut k1) = (seed as u32, (seed >> 32) as u32);
        for _ in 0..10 {
            for i in 0..N {
                let a = u64::from(c0[i]) * 0xD251_1F53;
                let b = u64::from(c2[i]) * 0xCD9E_8D57;
                c0[i] = (b >> 32) as u32 ^ c1[i] ^ k0;
                c1[i] = b as u32;
                c2[i] = (a >> 32) as u32 ^ c3[i] ^ k1;
                c3[i] = a as u32;
            }
            k0 = k0.wrapping_add(0x9E37_79B9);
            k1 = k1.wrapping_add(0xBB67_AE85);
        }
        for i in 0..N {
            out[4 * i] = c0[i];
            out[4 * i + 1] = c1[i];
            out[4 * i + 2] = c2[i];
            out[4 * i + 3] = c3[i];
        }
    }
}

/// As [`Philox::uniform`] makes it of a word.
fn uniform(word: u32) -> f64 {
    f64::from(word >> 8) / f64::from(1u32 << 24)
}

/// Calls `f` with the uniforms of `TILE` entries at a time.
fn draw(seed: u64, step: u64, len: usize, threads: usize, f: impl Fn(usize, &[f64]) + Sync) {
    parallel(threads, len.div_ceil(TASK), |task| {
        let end = len.min((task + 1) * TASK);
        for start in (task * TASK..end).step_by(TILE) {
            let mut w = [0u32; TILE];
            words(seed, step, (start / 4) as u64, &mut w);
            let u = w.map(uniform);
            f(start, &u[..TILE.min(end - start)]);
        }
    });
}

/// The step, an `i64` scalar.
fn step(arg: &Arg<'_>) -> Result<u64> {
    let step: &[i64] = arg.typed();
    step.first()
        .map(|&s| s as u64)
        .ok_or_else(|| Error::shape("the step has no element"))
}

pub(crate) fn compile(op: &Random, cx: &CompileCx<'_>) -> Result<Box<dyn Kernel>> {
    if !cx.outputs[0].dtype.is_float() {
        return Err(Error::unsupported(format!(
            "Random of {}",
            cx.outputs[0].dtype
        )));
    }
    Ok(Box::new(RandomKernel(op.clone())))
}

#[derive(Debug)]
struct RandomKernel(Random);

impl RandomKernel {
    fn fill<T: Element>(&self, out: &mut [T], step: u64, threads: usize) -> Result<()> {
        let (seed, len) = (self.0.seed, out.len());
        let out = SharedMut::new(out);
        match self.0.distribution {
            Distribution::Uniform { low, high } => draw(seed, step, len, threads, |start, u| {
                #[expect(unsafe_code, reason = "each task writes its own entries")]
                // SAFETY: the ranges do not overlap.
                let out = unsafe { out.part(start..start + u.len()) };
                for (out, u) in out.iter_mut().zip(u) {
                    *out = T::from_f64(low + (high - low) * u);
                    if out.to_f64() >= high && high > low {
                        // Rounded up to the bound, which is not in the range.
                        *out = T::from_f64(low);
                    }
                }
            }),
            Distribution::Normal { mean, std } => {
                let stream = Philox::new(seed);
                draw(seed, step, len, threads, |start, u| {
                    #[expect(unsafe_code, reason = "each task writes its own entries")]
                    // SAFETY: the ranges do not overlap.
                    let out = unsafe { out.part(start..start + u.len()) };
                    for (i, out) in out.iter_mut().enumerate() {
                        // The pair of an entry may end beyond the last entry.
                        let z = match u.get((i & !1)..(i & !1) + 2) {
                            Some(&[a, b]) => {
                                let radius = (-2.0 * (1.0 - a).ln()).sqrt();
                                let angle = std::f64::consts::TAU * b;
                                radius * if i % 2 == 0 { angle.cos() } else { angle.sin() }
                            }
                            _ => stream.normal(step, (start + i) as u64),
                        };
                        *out = T::from_f64(mean + std * z);
                    }
                });
            }
            other => return Err(Error::unsupported(format!("the distribution {other:?}"))),
        }
        Ok(())
    }
}

impl Kernel for RandomKernel {
    fn name(&self) -> String {
        "random".into()
    }

    fn run(&self, args: &[Arg<'_>], outs: &mut [Out<'_>], cx: &mut RunCx<'_>) -> Result<()> {
        let (step, out) = (step(&args[0])?, &mut outs[0]);
        match out.dtype {
            DType::F32 => self.fill::<f32>(out.typed(), step, cx.threads),
            DType::F64 => self.fill::<f64>(out.typed(), step, cx.threads),
            DType::F16 => self.fill::<f16>(out.typed(), step, cx.threads),
            DType::BF16 => self.fill::<bf16>(out.typed(), step, cx.threads),
            other => Err(Error::unsupported(format!("Random of {other}"))),
        }
    }
}

pub(crate) fn compile_dropout(op: &Dropout, cx: &CompileCx<'_>) -> Result<Box<dyn Kernel>> {
    if !cx.inputs[0].dtype.is_float() {
        return Err(Error::unsupported(format!(
            "Dropout of {}",
            cx.inputs[0].dtype
        )));
    }
    Ok(Box::new(DropoutKernel(op.clone())))
}

/// Dropout in training mode.
#[derive(Debug)]
struct DropoutKernel(Dropout);

impl DropoutKernel {
    fn apply<T: Element>(&self, x: &[T], y: &mut [T], mask: &mut [T], step: u64, threads: usize) {
        let scale = T::from_f64(1.0 / (1.0 - self.0.p));
        let zero = T::from_f64(0.0);
        let (y, mask) = (SharedMut::new(y), SharedMut::new(mask));
        draw(self.0.seed, step, x.len(), threads, |start, u| {
            let range = start..start + u.len();
            #[expect(unsafe_code, reason = "each task writes its own entries")]
            // SAFETY: the ranges do not overlap.
            let (y, mask) = unsafe { (y.part(range.clone()), mask.part(range.clone())) };
            for (((y, mask), x), &u) in y.iter_mut().zip(mask).zip(&x[range]).zip(u) {
                *mask = if u >= self.0.p { scale } else { zero };
                *y = T::from_f64(x.to_f64() * mask.to_f64());
            }
        });
    }
}

impl Kernel for DropoutKernel {
    fn name(&self) -> String {
        "dropout".into()
    }

    fn run(&self, args: &[Arg<'_>], outs: &mut [Out<'_>], cx: &mut RunCx<'_>) -> Result<()> {
        let (x, step) = (&args[0], step(&args[1])?);
        let [y, mask] = outs else {
            return Err(Error::invalid("dropout has two outputs in training mode"));
        };
        match x.dtype {
            DType::F32 => self.apply::<f32>(x.typed(), y.typed(), mask.typed(), step, cx.threads),
            DType::F64 => self.apply::<f64>(x.typed(), y.typed(), mask.typed(), step, cx.threads),
            DType::F16 => self.apply::<f16>(x.typed(), y.typed(), mask.typed(), step, cx.threads),
            DType::BF16 => self.apply::<bf16>(x.typed(), y.typed(), mask.typed(), step, cx.threads),
            other => return Err(Error::unsupported(format!("Dropout of {other}"))),
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entries_are_those_of_the_stream() {
        let op = Random {
            distribution: Distribution::Normal {
                mean: 1.0,
                std: 2.0,
            },
            dtype: DType::F64,
            shape: [131].into(),
            seed: 99,
        };
        let stream = Philox::new(99);
        let mut out = vec![0f64; 131];
        RandomKernel(op.clone()).fill(&mut out, 1 << 40, 1).unwrap();
        for (i, &x) in out.iter().enumerate() {
            assert_eq!(x, 1.0 + 2.0 * stream.normal(1 << 40, i as u64));
        }
        let distribution = Distribution::Uniform {
            low: -1.0,
            high: 3.0,
        };
        let uniforms = RandomKernel(Random { distribution, ..op });
        let mut out = vec![0f32; 3000];
        uniforms.fill(&mut out, 7, 3).unwrap();
        for (i, &x) in out.iter().enumerate() {
            assert_eq!(x, (-1.0 + 4.0 * stream.uniform(7, i as u64)) as f32);
        }
    }

    #[test]
    fn dropout_keeps_an_entry_if_its_uniform_is_not_below_p() {
        let op = DropoutKernel(Dropout {
            p: 0.25,
            seed: 3,
            training: true,
        });
        let x = vec![3f32; 200];
        let (mut y, mut mask) = (vec![0f32; 200], vec![0f32; 200]);
        op.apply(&x, &mut y, &mut mask, 5, 1);
        for i in 0..200 {
            let keep = Philox::new(3).uniform(5, i as u64) >= 0.25;
            assert_eq!(mask[i], if keep { 1.0 / 0.75 } else { 0.0 });
            assert_eq!(y[i], 3.0 * mask[i]);
        }
    }
}
