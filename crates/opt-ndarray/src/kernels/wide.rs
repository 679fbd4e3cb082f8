//! 16-bit floats: what is computed from them is computed in `f32` and rounded once.
//!
//! Kernels whose work is more than a pass over memory run as they are in `f32`, between a
//! conversion of their operands into scratch memory and one of the result. Those that are a pass
//! over memory convert tile by tile with [`Wide`]. Large products of `bf16` run as they are where
//! the processor has tiles for them.

use bytemuck::Pod;
use half::slice::HalfFloatSliceExt;
use half::{bf16, f16};
use opt_core::ops::Op;
use opt_core::{DType, Element, Result, Tensor, TensorType};
use smallvec::SmallVec;

use super::{Arg, CompileCx, Kernel, Out, RunCx, compile, parallel_chunks};

/// Elements that a task converts.
const CHUNK: usize = 1 << 14;

/// Elements of a tile of [`Wide`].
const TILE: usize = 512;

/// Whether a dtype is a float of 16 bits.
pub(super) fn is_half(dtype: DType) -> bool {
    matches!(dtype, DType::F16 | DType::BF16)
}

/// Whether an op on 16-bit floats runs as a kernel of `f32` between conversions.
pub(super) fn widens(op: &Op, cx: &CompileCx<'_>) -> bool {
    let converts = matches!(
        op,
        Op::MatMul(_)
            | Op::Conv(_)
            | Op::ConvTranspose(_)
            | Op::ConvGradWeight(_)
            | Op::Attention(_)
            | Op::MaxPoolGrad(_)
            | Op::AvgPool(_)
            | Op::AvgPoolGrad(_)
            | Op::LayerNorm(_)
            | Op::GroupNorm(_)
            | Op::InstanceNorm(_)
            | Op::RmsNorm(_)
            | Op::Lstm(_)
            | Op::LstmGrad(_)
            | Op::Gru(_)
            | Op::GruGrad(_)
            | Op::GatherGrad(_)
            | Op::PadGrad(_)
    );
    converts && cx.inputs.iter().any(|ty| is_half(ty.dtype))
}

/// Where the kernel of `f32` finds an operand, or leaves a result.
#[derive(Debug)]
enum Place {
    /// Where it is.
    Own,
    /// In scratch memory, converted; the number of elements.
    Scratch(usize),
    /// Converted when compiling.
    Stored(Tensor),
}

/// A kernel of `f32` for 16-bit floats.
#[derive(Debug)]
struct Widened {
    kernel: Box<dyn Kernel>,
    inputs: Vec<Place>,
    outputs: Vec<Place>,
}

/// Compiles an op that [`widens`].
pub(super) fn compile_widened(op: &Op, cx: &CompileCx<'_>) -> Result<Box<dyn Kernel>> {
    #[cfg(target_arch = "x86_64")]
    if let Op::MatMul(product) = op
        && let Some(kernel) = super::amx::bf16::compile(product, cx)?
    {
        return Ok(kernel);
    }
    let wide = |ty: &TensorType| match is_half(ty.dtype) {
        true => ty.with_dtype(DType::F32),
        false => ty.clone(),
    };
    let place = |ty: &TensorType| -> Result<Place> {
        Ok(match is_half(ty.dtype) {
            true => Place::Scratch(ty.shape.len()?),
            false => Place::Own,
        })
    };
    let (inputs, outputs): (Vec<_>, Vec<_>) = (
        cx.inputs.iter().map(wide).collect(),
        cx.outputs.iter().map(wide).collect(),
    );
    let constants: Vec<Option<Tensor>> = cx
        .constants
        .iter()
        .map(|c| {
            c.as_ref().map(|c| match is_half(c.dtype()) {
                true => c.cast(DType::F32).contiguous(),
                false => c.clone(),
            })
        })
        .collect();
    let mut places = Vec::with_capacity(inputs.len());
    for (ty, constant) in cx.inputs.iter().zip(&constants) {
        places.push(match constant {
            Some(content) if is_half(ty.dtype) => Place::Stored(content.clone()),
            _ => place(ty)?,
        });
    }
    let kernel = compile(
        op,
        &CompileCx {
            inputs: &inputs,
            outputs: &outputs,
            constants: &constants,
            epilogue: cx.epilogue,
            extras: cx.extras,
            threads: cx.threads,
        },
    )?;
    Ok(Box::new(Widened {
        kernel,
        inputs: places,
        outputs: cx.outputs.iter().map(place).collect::<Result<_>>()?,
    }))
}

/// Bytes that a place takes of the scratch memory: whole cache lines.
fn room(place: &Place) -> usize {
    match place {
        Place::Scratch(len) => (len * size_of::<f32>()).next_multiple_of(64),
        _ => 0,
    }
}

/// The start of a buffer, as `len` numbers, and the rest of it.
fn take<'a>(rest: &mut &'a mut [u8], place: &Place, len: usize) -> &'a mut [f32] {
    let (own, left) = std::mem::take(rest).split_at_mut(room(place));
    *rest = left;
    &mut bytemuck::cast_slice_mut(own)[..len]
}

impl Kernel for Widened {
    fn name(&self) -> String {
        self.kernel.name()
    }

    fn scratch(&self) -> usize {
        let places = self.inputs.iter().chain(&self.outputs);
        places.map(room).sum::<usize>() + self.kernel.scratch()
    }

    fn run(&self, args: &[Arg<'_>], outs: &mut [Out<'_>], cx: &mut RunCx<'_>) -> Result<()> {
        let mut rest = &mut *cx.scratch;
        let mut wide_args: SmallVec<[Arg<'_>; 12]> = SmallVec::new();
        for (arg, place) in args.iter().zip(&self.inputs) {
            let bytes = match place {
                Place::Own => arg.bytes,
                Place::Stored(content) => content.bytes()?,
                Place::Scratch(len) => {
                    let wide = take(&mut rest, place, *len);
                    widen(arg, wide, cx.threads);
                    bytemuck::cast_slice(wide)
                }
            };
            wide_args.push(Arg {
                dtype: match place {
                    Place::Own => arg.dtype,
                    _ => DType::F32,
                },
                shape: arg.shape,
                bytes,
            });
        }
        let mut results: SmallVec<[&mut [f32]; 6]> = SmallVec::new();
        for place in &self.outputs {
            if let Place::Scratch(len) = place {
                results.push(take(&mut rest, place, *len));
            }
        }
        {
            let mut wide = results.iter_mut();
            let mut wide_outs: SmallVec<[Out<'_>; 6]> = SmallVec::new();
            for (out, place) in outs.iter_mut().zip(&self.outputs) {
                wide_outs.push(match place {
                    Place::Scratch(_) => Out {
                        dtype: DType::F32,
                        shape: out.shape,
                        bytes: bytemuck::cast_slice_mut(wide.next().expect("one a place")),
                    },
                    _ => Out {
                        dtype: out.dtype,
                        shape: out.shape,
                        bytes: out.bytes,
                    },
                });
            }
            let mut inner = RunCx {
                threads: cx.threads,
                scratch: rest,
            };
            self.kernel.run(&wide_args, &mut wide_outs, &mut inner)?;
        }
        let halves = outs.iter_mut().zip(&self.outputs);
        let halves = halves.filter(|(_, place)| matches!(place, Place::Scratch(_)));
        for ((out, _), wide) in halves.zip(&results) {
            narrow(wide, out, cx.threads);
        }
        Ok(())
    }
}

/// Converts an operand of 16-bit floats.
pub(super) fn widen(from: &Arg<'_>, to: &mut [f32], threads: usize) {
    fn all<T: Wide<Real = f32>>(from: &[T], to: &mut [f32], threads: usize) {
        parallel_chunks(threads, to, CHUNK, |i, to| {
            T::widen(&from[i * CHUNK..][..to.len()], to);
        });
    }
    match from.dtype {
        DType::BF16 => all::<bf16>(from.typed(), to, threads),
        _ => all::<f16>(from.typed(), to, threads),
    }
}

/// Rounds a result to 16-bit floats.
pub(super) fn narrow(from: &[f32], to: &mut Out<'_>, threads: usize) {
    fn all<T: Wide<Real = f32>>(from: &[f32], to: &mut [T], threads: usize) {
        parallel_chunks(threads, to, CHUNK, |i, to| {
            T::narrow(&from[i * CHUNK..][..to.len()], to);
        });
    }
    match to.dtype {
        DType::BF16 => all::<bf16>(from, to.typed(), threads),
        _ => all::<f16>(from, to.typed(), threads),
    }
}

/// An element type with the one that is computed in: itself, or `f32` for 16 bits.
pub(super) trait Wide: Element + Pod {
    /// What is computed in.
    type Real: Element + Pod;

    /// Converts to what is computed in.
    fn widen(from: &[Self], to: &mut [Self::Real]);

    /// Rounds from what is computed in.
    fn narrow(from: &[Self::Real], to: &mut [Self]);

    /// One entry.
    fn one(self) -> Self::Real;

    /// Rounds one entry.
    fn round(value: Self::Real) -> Self;

    /// Calls `f` with parts of `x`, from the first to the last.
    fn read(x: &[Self], f: impl FnMut(&[Self::Real]));

    /// Calls `f` with parts of two slices of one length, from the first to the last.
    fn pairs(x: &[Self], y: &[Self], f: impl FnMut(&[Self::Real], &[Self::Real]));

    /// Calls `f` with the start of each part of `y` and its entries to fill.
    fn write(y: &mut [Self], f: impl FnMut(usize, &mut [Self::Real]));
}

macro_rules! own {
    ($($t:ty),*) => {$(
        impl Wide for $t {
            type Real = $t;
            fn widen(from: &[$t], to: &mut [$t]) {
                to.copy_from_slice(from);
            }
            fn narrow(from: &[$t], to: &mut [$t]) {
                to.copy_from_slice(from);
            }
            fn one(self) -> $t {
                self
            }
            fn round(value: $t) -> $t {
                value
            }
            fn read(x: &[$t], mut f: impl FnMut(&[$t])) {
                f(x);
            }
            fn pairs(x: &[$t], y: &[$t], mut f: impl FnMut(&[$t], &[$t])) {
                f(x, y);
            }
            fn write(y: &mut [$t], mut f: impl FnMut(usize, &mut [$t])) {
                f(0, y);
            }
        }
    )*};
}
own!(f32, f64);

macro_rules! half {
    ($($t:ty, $narrow:expr);*) => {$(
        impl Wide for $t {
            type Real = f32;
            fn widen(from: &[$t], to: &mut [f32]) {
                from.convert_to_f32_slice(to);
            }
            fn narrow(from: &[f32], to: &mut [$t]) {
                $narrow(from, to);
            }
            fn one(self) -> f32 {
                self.to_f32()
            }
            fn round(value: f32) -> $t {
                <$t>::from_f32(value)
            }
            fn read(x: &[$t], mut f: impl FnMut(&[f32])) {
                let mut tile = [0.0; TILE];
                for x in x.chunks(TILE) {
                    let tile = &mut tile[..x.len()];
                    x.convert_to_f32_slice(tile);
                    f(tile);
                }
            }
            fn pairs(x: &[$t], y: &[$t], mut f: impl FnMut(&[f32], &[f32])) {
                let (mut a, mut b) = ([0.0; TILE], [0.0; TILE]);
                for (x, y) in x.chunks(TILE).zip(y.chunks(TILE)) {
                    let (a, b) = (&mut a[..x.len()], &mut b[..y.len()]);
                    x.convert_to_f32_slice(a);
                    y.convert_to_f32_slice(b);
                    f(a, b);
                }
            }
            fn write(y: &mut [$t], mut f: impl FnMut(usize, &mut [f32])) {
                let mut tile = [0.0; TILE];
                for (i, y) in y.chunks_mut(TILE).enumerate() {
                    let tile = &mut tile[..y.len()];
                    f(i * TILE, tile);
                    Self::narrow(tile, y);
                }
            }
        }
    )*};
}
half!(
    f16, |from: &[f32], to: &mut [f16]| to.convert_from_f32_slice(from);
    bf16, |from: &[f32], to: &mut [bf16]| narrow_bf16(from, to.reinterpret_cast_mut())
);

super::lanes::by_isa! {
    /// The nearest `bf16`, halves to the even one; a NaN stays one.
    pub(super) fn narrow_bf16(from: &[f32], to: &mut [u16]) = |_FMA| {
        for (to, &v) in to.iter_mut().zip(from) {
            let bits = v.to_bits();
            let rounded = bits.wrapping_add(0x7fff + (bits >> 16 & 1)) >> 16;
            *to = if v.is_nan() { bits >> 16 | 0x40 } else { rounded } as u16;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rounding_to_bf16_is_that_of_the_type() {
        // All numbers of 16 bits, what lies around them, and halfway.
        for high in 0..=u16::MAX {
            let low = [0u32, 1, 0x7fff, 0x8000, 0x8001, 0xffff];
            let from = low.map(|low| f32::from_bits(u32::from(high) << 16 | low));
            let mut found = [0u16; 6];
            narrow_bf16(&from, &mut found);
            assert_eq!(found, from.map(|v| bf16::from_f32(v).to_bits()));
        }
    }
}
