//! Floats of 8 bits and fewer: quantization to them and back, and casts; casts of packed integers.

use opt_core::tensor::{MiniFloat, read_code, write_codes};
use opt_core::{DType, Error, Result, Tensor};

use super::quant::Grid;
use super::{Arg, Kernel, Out, RunCx, parallel_chunks};

/// Entries of a task.
const CHUNK: usize = 1 << 14;

#[derive(Debug)]
pub(super) struct Quantize {
    pub(super) grid: Grid,
    pub(super) format: MiniFloat,
    pub(super) bits: usize,
}

impl Kernel for Quantize {
    fn name(&self) -> String {
        "quantize".to_string()
    }

    fn run(&self, args: &[Arg<'_>], outs: &mut [Out<'_>], cx: &mut RunCx<'_>) -> Result<()> {
        let (x, scale) = (args[0].typed::<f32>(), args[1].typed::<f32>());
        let bits = self.bits;
        // A chunk is a whole number of bytes.
        parallel_chunks(
            cx.threads,
            outs[0].bytes,
            CHUNK * bits / 8,
            |chunk, bytes| {
                let start = chunk * CHUNK;
                let end = (start + CHUNK).min(x.len());
                let code = |i: usize| {
                    let quotient = x[i] / scale[self.grid.at(i)];
                    self.format.encode(f64::from(quotient))
                };
                write_codes((start..end).map(code), bits, bytes);
            },
        );
        Ok(())
    }
}

#[derive(Debug)]
pub(super) struct Dequantize {
    pub(super) grid: Grid,
    pub(super) table: Box<[f32; 256]>,
    pub(super) bits: usize,
}

impl Kernel for Dequantize {
    fn name(&self) -> String {
        "dequantize".to_string()
    }

    fn run(&self, args: &[Arg<'_>], outs: &mut [Out<'_>], cx: &mut RunCx<'_>) -> Result<()> {
        let codes = args[0].bytes;
        let value = |i: usize| self.table[usize::from(read_code(codes, self.bits, i))];
        if outs[0].dtype == DType::F64 {
            let scale = args[1].typed::<f64>();
            parallel_chunks(cx.threads, outs[0].typed::<f64>(), CHUNK, |chunk, out| {
                for (i, y) in (chunk * CHUNK..).zip(out) {
                    *y = f64::from(value(i)) * scale[self.grid.at(i)];
                }
            });
        } else {
            let scale = args[1].typed::<f32>();
            parallel_chunks(cx.threads, outs[0].typed::<f32>(), CHUNK, |chunk, out| {
                for (i, y) in (chunk * CHUNK..).zip(out) {
                    *y = value(i) * scale[self.grid.at(i)];
                }
            });
        }
        Ok(())
    }
}

/// A cast from or to a type that only stores numbers.
pub(super) fn cast(from: &Arg<'_>, to: &mut Out<'_>, threads: usize) -> Result<()> {
    if from.dtype == DType::F32
        && let Some(format) = MiniFloat::of(to.dtype)
    {
        let (x, bits) = (from.typed::<f32>(), to.dtype.bits());
        parallel_chunks(threads, to.bytes, CHUNK * bits / 8, |chunk, bytes| {
            let part = &x[chunk * CHUNK..][..CHUNK.min(x.len() - chunk * CHUNK)];
            let codes = part.iter().map(|&v| format.encode(f64::from(v)));
            write_codes(codes, bits, bytes);
        });
        return Ok(());
    }
    if from.dtype.is_storage() && matches!(to.dtype, DType::F32 | DType::I32) {
        let (codes, bits) = (from.bytes, from.dtype.bits());
        let values = values_of(from.dtype)?;
        if to.dtype == DType::F32 {
            parallel_chunks(threads, to.typed::<f32>(), CHUNK, |chunk, out| {
                for (i, y) in (chunk * CHUNK..).zip(out) {
                    *y = values[usize::from(read_code(codes, bits, i))];
                }
            });
        } else {
            parallel_chunks(threads, to.typed::<i32>(), CHUNK, |chunk, out| {
                for (i, y) in (chunk * CHUNK..).zip(out) {
                    *y = values[usize::from(read_code(codes, bits, i))] as i32;
                }
            });
        }
        return Ok(());
    }
    // Rare pairs, as the program's own tensors convert them.
    let buffer = opt_core::tensor::Buffer::from_slice(from.bytes);
    let x = Tensor::from_buffer(from.dtype, from.shape, buffer)?;
    let y = x.cast(to.dtype);
    to.bytes.copy_from_slice(y.bytes()?);
    Ok(())
}

/// The numbers that the codes of a type stand for, as a table.
fn values_of(dtype: DType) -> Result<Box<[f32; 256]>> {
    if let Some(format) = MiniFloat::of(dtype) {
        return Ok(Box::new(format.table()));
    }
    let (low, _) = dtype
        .int_range()
        .map_err(|_| Error::unsupported(format!("a cast of {dtype}")))?;
    let bits = dtype.bits();
    Ok(Box::new(std::array::from_fn(|code| {
        let code = (code & ((1 << bits) - 1)) as i32;
        let wraps = low < 0 && code >= 1 << (bits - 1);
        (code - if wraps { 1 << bits } else { 0 }) as f32
    })))
}
