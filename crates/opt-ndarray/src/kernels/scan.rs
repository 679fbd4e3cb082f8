//! Kernels that walk along one axis: arg-max, top-k, running sums.

use std::cmp::Ordering;
use std::ops::AddAssign;

use bytemuck::Pod;
use half::{bf16, f16};
use opt_core::ops::{ArgReduce, CumSum, TopK};
use opt_core::{DType, Error, Result};

use super::index::Around;
use super::{Arg, CompileCx, Kernel, Out, RunCx};

/// An element with a total order for maxima: NaN is above everything (numpy, PyTorch).
trait Ordered: Pod {
    fn order(self, other: Self) -> Ordering;
}

macro_rules! ordered_float {
    ($($t:ty),*) => {$(
        impl Ordered for $t {
            fn order(self, other: Self) -> Ordering {
                self.partial_cmp(&other)
                    .unwrap_or_else(|| self.is_nan().cmp(&other.is_nan()))
            }
        }
    )*};
}
ordered_float!(f32, f64, f16, bf16);

macro_rules! ordered_int {
    ($($t:ty),*) => {$(
        impl Ordered for $t {
            fn order(self, other: Self) -> Ordering {
                self.cmp(&other)
            }
        }
    )*};
}
ordered_int!(i64, i32, i8, u8);

macro_rules! by_dtype {
    ($dtype:expr, $call:ident ( $($arg:expr),* )) => {
        match $dtype {
            DType::F32 => $call::<f32>($($arg),*),
            DType::F64 => $call::<f64>($($arg),*),
            DType::F16 => $call::<f16>($($arg),*),
            DType::BF16 => $call::<bf16>($($arg),*),
            DType::I64 => $call::<i64>($($arg),*),
            DType::I32 => $call::<i32>($($arg),*),
            DType::I8 => $call::<i8>($($arg),*),
            _ => $call::<u8>($($arg),*),
        }
    };
}

fn unpacked(dtype: DType) -> Result<()> {
    if dtype.is_packed() {
        return Err(Error::unsupported(format!("ordering packed {dtype}")));
    }
    Ok(())
}

#[derive(Debug)]
struct ArgKernel {
    op: ArgReduce,
    around: Around,
}

fn arg<T: Ordered>(kernel: &ArgKernel, data: &Arg<'_>, out: &mut Out<'_>) {
    let Around { outer, size, inner } = kernel.around;
    let (data, out) = (data.typed::<T>(), out.typed::<i64>());
    for o in 0..outer {
        for i in 0..inner {
            let at = |k: usize| data[(o * size + k) * inner + i];
            let mut best = 0;
            for k in 1..size {
                let order = at(k).order(at(best));
                let better = match order {
                    Ordering::Equal => kernel.op.last,
                    Ordering::Greater => kernel.op.largest,
                    Ordering::Less => !kernel.op.largest,
                };
                if better {
                    best = k;
                }
            }
            out[o * inner + i] = best as i64;
        }
    }
}

impl Kernel for ArgKernel {
    fn name(&self) -> String {
        if self.op.largest { "argmax" } else { "argmin" }.to_string()
    }

    fn run(&self, args: &[Arg<'_>], outs: &mut [Out<'_>], _: &mut RunCx<'_>) -> Result<()> {
        by_dtype!(args[0].dtype, arg(self, &args[0], &mut outs[0]));
        Ok(())
    }
}

/// Index of the largest or smallest entry.
pub(crate) fn compile_arg_reduce(op: &ArgReduce, cx: &CompileCx<'_>) -> Result<Box<dyn Kernel>> {
    unpacked(cx.inputs[0].dtype)?;
    let around = Around::new(&cx.inputs[0], op.axis)?;
    if around.size == 0 {
        return Err(Error::shape(format!(
            "axis {} of {} is empty: there is no largest entry",
            op.axis, cx.inputs[0]
        )));
    }
    Ok(Box::new(ArgKernel {
        op: op.clone(),
        around,
    }))
}

#[derive(Debug)]
struct TopKKernel {
    op: TopK,
    around: Around,
}

fn top_k<T: Ordered>(
    kernel: &TopKKernel,
    data: &Arg<'_>,
    values: &mut Out<'_>,
    indices: &mut Out<'_>,
    order: &mut [u32],
) {
    let Around { outer, size, inner } = kernel.around;
    let k = kernel.op.k;
    let data = data.typed::<T>();
    let (values, indices) = (values.typed::<T>(), indices.typed::<i64>());
    for o in 0..outer {
        for i in 0..inner {
            let at = |j: u32| data[(o * size + j as usize) * inner + i];
            for (j, slot) in order.iter_mut().enumerate() {
                *slot = j as u32;
            }
            order.sort_unstable_by(|&a, &b| {
                let by = at(a).order(at(b));
                let by = if kernel.op.largest { by.reverse() } else { by };
                by.then(a.cmp(&b))
            });
            for (r, &j) in order.iter().take(k).enumerate() {
                values[(o * k + r) * inner + i] = at(j);
                indices[(o * k + r) * inner + i] = i64::from(j);
            }
        }
    }
}

impl Kernel for TopKKernel {
    fn name(&self) -> String {
        "top-k".to_string()
    }

    fn scratch(&self) -> usize {
        self.around.size * size_of::<u32>()
    }

    fn run(&self, args: &[Arg<'_>], outs: &mut [Out<'_>], cx: &mut RunCx<'_>) -> Result<()> {
        let order: &mut [u32] =
            bytemuck::cast_slice_mut(&mut cx.scratch[..self.around.size * size_of::<u32>()]);
        let (values, indices) = outs.split_at_mut(1);
        by_dtype!(
            args[0].dtype,
            top_k(self, &args[0], &mut values[0], &mut indices[0], order)
        );
        Ok(())
    }
}

/// The largest or smallest entries.
pub(crate) fn compile_top_k(op: &TopK, cx: &CompileCx<'_>) -> Result<Box<dyn Kernel>> {
    unpacked(cx.inputs[0].dtype)?;
    Ok(Box::new(TopKKernel {
        op: op.clone(),
        around: Around::new(&cx.inputs[0], op.axis)?,
    }))
}

#[derive(Debug)]
struct CumSumKernel {
    op: CumSum,
    around: Around,
}

fn cumsum<T: Pod + AddAssign>(kernel: &CumSumKernel, data: &Arg<'_>, out: &mut Out<'_>) {
    let Around { outer, size, inner } = kernel.around;
    let (data, out) = (data.typed::<T>(), out.typed::<T>());
    for o in 0..outer {
        for i in 0..inner {
            let mut sum = T::zeroed();
            for step in 0..size {
                let k = if kernel.op.reverse {
                    size - 1 - step
                } else {
                    step
                };
                let at = (o * size + k) * inner + i;
                if kernel.op.exclusive {
                    out[at] = sum;
                    sum += data[at];
                } else {
                    sum += data[at];
                    out[at] = sum;
                }
            }
        }
    }
}

impl Kernel for CumSumKernel {
    fn name(&self) -> String {
        "cumsum".to_string()
    }

    fn run(&self, args: &[Arg<'_>], outs: &mut [Out<'_>], _: &mut RunCx<'_>) -> Result<()> {
        let (data, out) = (&args[0], &mut outs[0]);
        match data.dtype {
            DType::F64 => cumsum::<f64>(self, data, out),
            DType::I64 => cumsum::<i64>(self, data, out),
            DType::I32 => cumsum::<i32>(self, data, out),
            _ => cumsum::<f32>(self, data, out),
        }
        Ok(())
    }
}

/// Running sum.
pub(crate) fn compile_cumsum(op: &CumSum, cx: &CompileCx<'_>) -> Result<Box<dyn Kernel>> {
    let dtype = cx.inputs[0].dtype;
    if !matches!(dtype, DType::F32 | DType::F64 | DType::I64 | DType::I32) {
        return Err(Error::unsupported(format!("running sum of {dtype}")));
    }
    Ok(Box::new(CumSumKernel {
        op: op.clone(),
        around: Around::new(&cx.inputs[0], op.axis)?,
    }))
}
