//! Quantize, dequantize and fake-quantize, in float: the reference of the integer kernels.

use opt_core::ops;
use opt_core::tensor::{MiniFloat, read_code, write_codes};
use opt_core::{DType, Error, Result, TensorType};

use super::{Arg, CompileCx, Kernel, Out, RunCx, minifloat, parallel_chunks, real};

pub(super) mod lines;

/// Which scale an entry has: entry `i` has number
/// `i / outer_step * rows + i / inner % size / block * inner + i % inner`, simplified to the
/// cases per tensor, per channel and blocked.
#[derive(Debug, Clone, Copy)]
pub(super) struct Grid {
    size: usize,
    inner: usize,
    /// Entries of the axis that share a scale; `None` is per tensor or per channel.
    block: Option<usize>,
}

impl Grid {
    fn new(x: &TensorType, axis: Option<usize>, block: Option<usize>) -> Result<Grid> {
        let shape = x.shape.fixed()?;
        Ok(match axis {
            None => Grid {
                size: 1,
                inner: shape.iter().product::<usize>().max(1),
                block: None,
            },
            Some(axis) => Grid {
                size: shape[axis],
                inner: shape[axis + 1..].iter().product::<usize>().max(1),
                block,
            },
        })
    }

    #[inline]
    pub(super) fn at(&self, i: usize) -> usize {
        let channel = i / self.inner % self.size;
        match self.block {
            None => channel,
            Some(block) => {
                let outer = i / (self.inner * self.size);
                let blocks = self.size.div_ceil(block);
                (outer * blocks + channel / block) * self.inner + i % self.inner
            }
        }
    }
}

/// Integers of any quantized type.
enum Ints<'a> {
    I8(&'a [i8]),
    U8(&'a [u8]),
    I32(&'a [i32]),
    /// Packed, with the bits of one; signed if true.
    Packed(&'a [u8], usize, bool),
    /// No zero points: all are 0.
    Zero,
}

impl<'a> Ints<'a> {
    fn of(arg: &Arg<'a>) -> Ints<'a> {
        match arg.dtype {
            DType::I8 => Ints::I8(arg.typed()),
            DType::I32 => Ints::I32(arg.typed()),
            DType::I4 => Ints::Packed(arg.bytes, 4, true),
            DType::U4 => Ints::Packed(arg.bytes, 4, false),
            DType::I2 => Ints::Packed(arg.bytes, 2, true),
            DType::U2 => Ints::Packed(arg.bytes, 2, false),
            _ => Ints::U8(arg.bytes),
        }
    }

    /// The zero points of a node, its third input.
    fn zeros(args: &[Arg<'a>]) -> Ints<'a> {
        args.get(2).map_or(Ints::Zero, Ints::of)
    }

    fn at(&self, i: usize) -> i32 {
        match self {
            Ints::I8(v) => i32::from(v[i]),
            Ints::U8(v) => i32::from(v[i]),
            Ints::I32(v) => v[i],
            Ints::Packed(bytes, bits, signed) => {
                let code = read_code(bytes, *bits, i);
                match signed {
                    true => i32::from((code << (8 - bits)) as i8 >> (8 - bits)),
                    false => i32::from(code),
                }
            }
            Ints::Zero => 0,
        }
    }
}

fn f32_only(ty: &TensorType, what: &str) -> Result<()> {
    if ty.dtype == DType::F32 {
        return Ok(());
    }
    Err(Error::unsupported(format!(
        "{what} with {} scales; cast to f32",
        ty.dtype
    )))
}

fn integers(dtype: DType, wide: bool) -> Result<()> {
    if dtype.int_range().is_ok() || (wide && dtype == DType::I32) {
        return Ok(());
    }
    Err(Error::unsupported(format!("quantized values of {dtype}")))
}

/// The grid point of `x`: `clamp(round_half_even(x / scale) + zero, low, high)`; NaN gives zero's
/// point.
#[inline]
fn grid_point(x: f32, scale: f32, zero: i32, low: i32, high: i32) -> i32 {
    let q = (x / scale).round_ties_even();
    if q.is_nan() {
        return zero;
    }
    // Float to integer conversion saturates.
    (q as i32).saturating_add(zero).clamp(low, high)
}

#[derive(Debug)]
struct Quantize {
    grid: Grid,
    dtype: DType,
    low: i32,
    high: i32,
}

impl Kernel for Quantize {
    fn name(&self) -> String {
        "quantize".to_string()
    }

    fn run(&self, args: &[Arg<'_>], outs: &mut [Out<'_>], cx: &mut RunCx<'_>) -> Result<()> {
        let (x, scale) = (args[0].typed::<f32>(), args[1].typed::<f32>());
        let zeros = Ints::zeros(args);
        let point = |i: usize| {
            let k = self.grid.at(i);
            grid_point(x[i], scale[k], zeros.at(k), self.low, self.high) as u8
        };
        if self.dtype.is_packed() {
            write_codes((0..x.len()).map(point), self.dtype.bits(), outs[0].bytes);
            return Ok(());
        }
        let (size, inner) = (self.grid.size, self.grid.inner);
        if self.grid.block.is_some() {
            for (i, byte) in outs[0].bytes.iter_mut().enumerate() {
                *byte = point(i);
            }
            return Ok(());
        }
        let range = (self.low, self.high);
        let threads = if x.len() < lines::TASK { 1 } else { cx.threads };
        let task = lines::task(size, inner);
        parallel_chunks(threads, outs[0].bytes, task, |i, out| {
            let runs = lines::runs(i * task, out.len(), size, inner);
            for (k, run) in runs {
                let x = &x[i * task + run.start..][..run.len()];
                lines::quantize(x, scale[k], zeros.at(k), range, &mut out[run]);
            }
        });
        Ok(())
    }
}

/// Float to integer grid.
pub(crate) fn compile_quantize(op: &ops::Quantize, cx: &CompileCx<'_>) -> Result<Box<dyn Kernel>> {
    f32_only(&cx.inputs[0], "quantization")?;
    f32_only(&cx.inputs[1], "quantization")?;
    if let Some(format) = MiniFloat::of(op.dtype) {
        return Ok(Box::new(minifloat::Quantize {
            grid: Grid::new(&cx.inputs[0], op.axis, op.block)?,
            format,
            bits: op.dtype.bits(),
        }));
    }
    integers(op.dtype, false)?;
    let (low, high) = op.dtype.int_range()?;
    Ok(Box::new(Quantize {
        grid: Grid::new(&cx.inputs[0], op.axis, op.block)?,
        dtype: op.dtype,
        low,
        high,
    }))
}

#[derive(Debug)]
struct Dequantize {
    grid: Grid,
}

impl Kernel for Dequantize {
    fn name(&self) -> String {
        "dequantize".to_string()
    }

    fn run(&self, args: &[Arg<'_>], outs: &mut [Out<'_>], cx: &mut RunCx<'_>) -> Result<()> {
        let (q, zeros) = (Ints::of(&args[0]), Ints::zeros(args));
        let level = |i: usize, k: usize| q.at(i).wrapping_sub(zeros.at(k));
        if outs[0].dtype == DType::F64 {
            let scale = args[1].typed::<f64>();
            for (i, y) in outs[0].typed::<f64>().iter_mut().enumerate() {
                let k = self.grid.at(i);
                *y = f64::from(level(i, k)) * scale[k];
            }
        } else if matches!(args[0].dtype, DType::I8 | DType::U8) && self.grid.block.is_none() {
            let (Grid { size, inner, .. }, scale) = (self.grid, args[1].typed::<f32>());
            let (x, flip) = (args[0].bytes, args[0].dtype == DType::I8);
            let threads = if x.len() < lines::TASK { 1 } else { cx.threads };
            let task = lines::task(size, inner);
            parallel_chunks(threads, outs[0].typed::<f32>(), task, |i, out| {
                let runs = lines::runs(i * task, out.len(), size, inner);
                for (k, run) in runs {
                    let x = &x[i * task + run.start..][..run.len()];
                    lines::dequantize(x, flip, scale[k], zeros.at(k), &mut out[run]);
                }
            });
        } else {
            let scale = args[1].typed::<f32>();
            for (i, y) in outs[0].typed::<f32>().iter_mut().enumerate() {
                let k = self.grid.at(i);
                *y = level(i, k) as f32 * scale[k];
            }
        }
        Ok(())
    }
}

/// Integer grid to float.
pub(crate) fn compile_dequantize(
    op: &ops::Dequantize,
    cx: &CompileCx<'_>,
) -> Result<Box<dyn Kernel>> {
    let scales = cx.inputs[1].dtype;
    if !matches!(scales, DType::F32 | DType::F64) {
        return Err(Error::unsupported(format!(
            "dequantization with {scales} scales; cast to f32"
        )));
    }
    if let Some(format) = MiniFloat::of(cx.inputs[0].dtype) {
        return Ok(Box::new(minifloat::Dequantize {
            grid: Grid::new(&cx.inputs[0], op.axis, op.block)?,
            table: Box::new(format.table()),
            bits: cx.inputs[0].dtype.bits(),
        }));
    }
    integers(cx.inputs[0].dtype, true)?;
    Ok(Box::new(Dequantize {
        grid: Grid::new(&cx.inputs[0], op.axis, op.block)?,
    }))
}

#[derive(Debug)]
struct FakeQuantize {
    grid: Grid,
    low: i32,
    high: i32,
}

macro_rules! fake {
    ($name:ident, $t:ty) => {
        fn $name(kernel: &FakeQuantize, args: &[Arg<'_>], out: &mut [$t], threads: usize) {
            let [x, scale, zero] = [0, 1, 2].map(|i| args[i].typed::<$t>());
            let Grid { size, inner, .. } = kernel.grid;
            let (low, high) = (kernel.low as $t, kernel.high as $t);
            let threads = if x.len() < 1 << 14 { 1 } else { threads };
            parallel_chunks(threads, out, inner, |run, out| {
                let (s, z) = (scale[run % size], zero[run % size]);
                for (y, &x) in out.iter_mut().zip(&x[run * inner..]) {
                    let q = (x / s + z).round_ties_even().max(low).min(high);
                    *y = (q - z) * s;
                }
            });
        }
    };
}

fake!(fake_f32, f32);
fake!(fake_f64, f64);

impl Kernel for FakeQuantize {
    fn name(&self) -> String {
        "fake quantize".to_string()
    }

    fn run(&self, args: &[Arg<'_>], outs: &mut [Out<'_>], cx: &mut RunCx<'_>) -> Result<()> {
        match args[0].dtype {
            DType::F64 => fake_f64(self, args, outs[0].typed(), cx.threads),
            _ => fake_f32(self, args, outs[0].typed(), cx.threads),
        }
        Ok(())
    }
}

/// Rounding to a grid, in float.
pub(crate) fn compile_fake_quantize(
    op: &ops::FakeQuantize,
    cx: &CompileCx<'_>,
) -> Result<Box<dyn Kernel>> {
    real(&cx.inputs[0], "FakeQuantize")?;
    Ok(Box::new(FakeQuantize {
        grid: Grid::new(&cx.inputs[0], op.axis, None)?,
        low: op.low,
        high: op.high,
    }))
}

#[derive(Debug)]
struct DynamicQuantize {
    threads: usize,
    /// Tasks of [`lines::TASK`] elements.
    tasks: usize,
}

pub(crate) fn compile_dynamic_quantize(cx: &CompileCx<'_>) -> Result<Box<dyn Kernel>> {
    f32_only(&cx.inputs[0], "dynamic quantization")?;
    Ok(Box::new(DynamicQuantize {
        threads: cx.threads,
        tasks: cx.inputs[0].shape.len()?.div_ceil(lines::TASK),
    }))
}

impl Kernel for DynamicQuantize {
    fn name(&self) -> String {
        "dynamic_quantize".into()
    }

    fn scratch(&self) -> usize {
        self.tasks * size_of::<[f32; 2]>()
    }

    fn run(&self, args: &[Arg<'_>], outs: &mut [Out<'_>], cx: &mut RunCx<'_>) -> Result<()> {
        let x: &[f32] = args[0].typed();
        let scratch = &mut cx.scratch[..self.scratch()];
        let ranges: &mut [[f32; 2]] = bytemuck::cast_slice_mut(scratch);
        parallel_chunks(self.threads, ranges, 1, |task, range| {
            let start = task * lines::TASK;
            range[0] = lines::range(&x[start..x.len().min(start + lines::TASK)]);
        });
        // The grid has to hold 0 exactly. NaN compares false and so does not count.
        let (mut low, mut high) = (0f32, 0f32);
        for &[least, most] in &*ranges {
            low = if least < low { least } else { low };
            high = if most > high { most } else { high };
        }
        let spread = (high - low) / 255.0;
        let scale = if spread > 0.0 { spread } else { 1.0 };
        let zero = (-low / scale).round_ties_even().clamp(0.0, 255.0) as i32;
        let [q, scale_out, zero_out] = outs else {
            return Err(Error::invalid("dynamic quantization has three outputs"));
        };
        scale_out.typed::<f32>()[0] = scale;
        zero_out.bytes[0] = zero as u8;
        parallel_chunks(self.threads, q.bytes, lines::TASK, |task, out| {
            let x = &x[task * lines::TASK..][..out.len()];
            lines::quantize(x, scale, zero, (0, 255), out);
        });
        Ok(())
    }
}
