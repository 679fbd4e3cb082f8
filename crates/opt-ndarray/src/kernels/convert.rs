//! Elements between memory and registers: broadcast operands, and conversion between dtypes.

use half::{bf16, f16};
use opt_core::{DType, Element, Error, Result};
use smallvec::SmallVec;

use super::lanes::Lane;
use super::wide::{narrow, widen};
use super::{Arg, Kernel, Out, RunCx, minifloat};

/// How an input lies in memory against the flat index of the output.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Walk {
    /// Sizes and strides of the axes that are left after merging.
    axes: SmallVec<[(usize, usize); 6]>,
}

impl Walk {
    /// The walk over an input that broadcasts to a shape.
    pub(super) fn new(input: &[usize], shape: &[usize]) -> Walk {
        let lead = shape.len() - input.len();
        let mut axes: SmallVec<[(usize, usize); 6]> = SmallVec::new();
        let mut stride = 1;
        for (axis, &size) in shape.iter().enumerate().rev() {
            let own = if axis >= lead { input[axis - lead] } else { 1 };
            let step = if own == 1 { 0 } else { stride };
            stride *= own;
            if size == 1 {
                continue;
            }
            // Built from the innermost axis outwards: the last pushed is the next inner one.
            match axes.last_mut() {
                Some((n, s)) if step == *s * *n => *n *= size,
                _ => axes.push((size, step)),
            }
        }
        axes.reverse();
        Walk { axes }
    }

    pub(super) fn is_scalar(&self) -> bool {
        self.axes.iter().all(|&(_, step)| step == 0)
    }

    pub(super) fn is_full(&self) -> bool {
        matches!(self.axes[..], [(_, 1)])
    }

    /// Copies the entries `start..start + out.len()` of the broadcast input.
    pub(super) fn load<S: Copy, R: Copy>(
        &self,
        source: &[S],
        start: usize,
        out: &mut [R],
        convert: impl Fn(S) -> R,
    ) {
        let Some((&(inner, step), outer)) = self.axes.split_last() else {
            out.fill(convert(source[0]));
            return;
        };
        let mut done = 0;
        while done < out.len() {
            let mut rest = (start + done) / inner;
            let at = (start + done) % inner;
            let mut base = 0;
            for &(size, step) in outer.iter().rev() {
                base += (rest % size) * step;
                rest /= size;
            }
            let run = (inner - at).min(out.len() - done);
            let target = &mut out[done..done + run];
            match step {
                0 => target.fill(convert(source[base])),
                1 => {
                    for (to, &from) in target.iter_mut().zip(&source[base + at..]) {
                        *to = convert(from);
                    }
                }
                _ => {
                    for (i, to) in target.iter_mut().enumerate() {
                        *to = convert(source[base + (at + i) * step]);
                    }
                }
            }
            done += run;
        }
    }
}

/// Loads entries of any dtype into a register.
pub(super) fn load<R: Lane>(dtype: DType, bytes: &[u8], walk: &Walk, start: usize, out: &mut [R]) {
    use bytemuck::cast_slice;
    match dtype {
        DType::F32 => walk.load(cast_slice::<u8, f32>(bytes), start, out, R::from_f32),
        DType::F64 => walk.load(cast_slice::<u8, f64>(bytes), start, out, R::from_f64),
        DType::F16 => walk.load(cast_slice::<u8, f16>(bytes), start, out, |x| {
            R::from_f32(x.to_f32())
        }),
        DType::BF16 => walk.load(cast_slice::<u8, bf16>(bytes), start, out, |x| {
            R::from_f32(x.to_f32())
        }),
        DType::I64 => walk.load(cast_slice::<u8, i64>(bytes), start, out, R::from_i64),
        DType::I32 => walk.load(cast_slice::<u8, i32>(bytes), start, out, |x| {
            R::from_i64(x.into())
        }),
        DType::I8 => walk.load(cast_slice::<u8, i8>(bytes), start, out, |x| {
            R::from_i64(x.into())
        }),
        _ => walk.load(bytes, start, out, |x| R::from_i64(x.into())),
    }
}

/// Stores a register as entries of any dtype; integers wrap around.
pub(super) fn store<R: Lane>(dtype: DType, from: &[R], to: &mut [u8]) {
    fn all<R: Copy, T: bytemuck::Pod>(from: &[R], to: &mut [u8], convert: impl Fn(R) -> T) {
        let to: &mut [T] = bytemuck::cast_slice_mut(to);
        for (to, &from) in to.iter_mut().zip(from) {
            *to = convert(from);
        }
    }
    match dtype {
        DType::F32 => all(from, to, R::to_f32),
        DType::F64 => all(from, to, R::to_f64),
        DType::F16 => all(from, to, |x| f16::from_f32(x.to_f32())),
        DType::BF16 => all(from, to, |x| bf16::from_f32(x.to_f32())),
        DType::I64 => all(from, to, R::to_i64),
        DType::I32 => all(from, to, |x| x.to_i64() as i32),
        DType::I8 => all(from, to, |x| x.to_i64() as i8),
        DType::Bool => all(from, to, |x| u8::from(x != R::default())),
        _ => all(from, to, |x| x.to_i64() as u8),
    }
}

/// Conversion of the element type, as [`opt_core::Tensor::cast`] does it.
#[derive(Debug)]
pub(super) struct Cast;

impl Kernel for Cast {
    fn name(&self) -> String {
        "cast".into()
    }

    fn run(&self, args: &[Arg<'_>], outs: &mut [Out<'_>], cx: &mut RunCx<'_>) -> Result<()> {
        let (from, to) = (&args[0], &mut outs[0]);
        match (from.dtype, to.dtype) {
            (DType::F16 | DType::BF16, DType::F32) => {
                widen(from, to.typed(), cx.threads);
                return Ok(());
            }
            (DType::F32, DType::F16 | DType::BF16) => {
                narrow(from.typed(), to, cx.threads);
                return Ok(());
            }
            (a, b) if a.is_storage() || b.is_storage() => {
                return minifloat::cast(from, to, cx.threads);
            }
            _ => {}
        }
        match from.dtype {
            DType::F32 => cast_from::<f32>(from, to),
            DType::F64 => cast_from::<f64>(from, to),
            DType::F16 => cast_from::<f16>(from, to),
            DType::BF16 => cast_from::<bf16>(from, to),
            DType::I64 => cast_from::<i64>(from, to),
            DType::I32 => cast_from::<i32>(from, to),
            DType::I8 => cast_from::<i8>(from, to),
            DType::U8 | DType::Bool => cast_from::<u8>(from, to),
            other => Err(Error::unsupported(format!(
                "a cast of {other}; dequantize it"
            ))),
        }
    }
}

fn cast_from<S: Element>(from: &Arg<'_>, to: &mut Out<'_>) -> Result<()> {
    fn all<S: Element, T: Element>(from: &[S], to: &mut [T]) {
        for (to, &from) in to.iter_mut().zip(from) {
            *to = T::from_f64(from.to_f64());
        }
    }
    let from: &[S] = from.typed();
    match to.dtype {
        dtype if dtype == S::DTYPE => to.typed::<S>().copy_from_slice(from),
        DType::F32 => all(from, to.typed::<f32>()),
        DType::F64 => all(from, to.typed::<f64>()),
        DType::F16 => all(from, to.typed::<f16>()),
        DType::BF16 => all(from, to.typed::<bf16>()),
        DType::I64 => all(from, to.typed::<i64>()),
        DType::I32 => all(from, to.typed::<i32>()),
        DType::I8 => all(from, to.typed::<i8>()),
        DType::U8 => all(from, to.typed::<u8>()),
        DType::Bool => {
            for (to, from) in to.typed::<u8>().iter_mut().zip(from) {
                *to = u8::from(from.to_f64() != 0.0);
            }
        }
        other => {
            return Err(Error::unsupported(format!(
                "a cast to {other}; quantize it"
            )));
        }
    }
    Ok(())
}
