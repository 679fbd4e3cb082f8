//! Gather, scatter and one-hot kernels.

use std::ops::AddAssign;

use bytemuck::Pod;
use half::{bf16, f16};
use opt_core::ops::{
    Gather, GatherElements, GatherGrad, OneHot, ScatterElements, ScatterReduction,
};
use opt_core::{DType, Error, ErrorKind, Result, TensorType};

use super::shape::element_size;
use super::{Arg, CompileCx, Kernel, Out, RunCx};

/// How an array is split around an axis: product of the axes before, its size, product after.
#[derive(Debug, Clone, Copy)]
pub(super) struct Around {
    pub(super) outer: usize,
    pub(super) size: usize,
    pub(super) inner: usize,
}

impl Around {
    pub(super) fn new(ty: &TensorType, axis: usize) -> Result<Around> {
        let shape = ty.shape.fixed()?;
        Ok(Around {
            outer: shape[..axis].iter().product(),
            size: shape[axis],
            inner: shape[axis + 1..].iter().product(),
        })
    }
}

/// Entry `i` of an integer operand.
pub(super) fn index_at(arg: &Arg<'_>, i: usize) -> i64 {
    match arg.dtype {
        DType::I32 => i64::from(arg.typed::<i32>()[i]),
        _ => arg.typed::<i64>()[i],
    }
}

/// An index that may count from the end, checked against the size of its axis.
fn checked(index: i64, size: usize) -> Result<usize> {
    let at = if index < 0 {
        index + size as i64
    } else {
        index
    };
    usize::try_from(at)
        .ok()
        .filter(|&i| i < size)
        .ok_or_else(|| {
            Error::new(
                ErrorKind::Data,
                format!("index {index} is out of range for an axis of size {size}"),
            )
        })
}

fn integer(ty: &TensorType) -> Result<()> {
    if matches!(ty.dtype, DType::I64 | DType::I32) {
        return Ok(());
    }
    Err(Error::dtype(format!(
        "indices must be i64 or i32, found {ty}"
    )))
}

#[derive(Debug)]
struct GatherKernel {
    around: Around,
    size: usize,
}

impl Kernel for GatherKernel {
    fn name(&self) -> String {
        "gather".to_string()
    }

    fn run(&self, args: &[Arg<'_>], outs: &mut [Out<'_>], _: &mut RunCx<'_>) -> Result<()> {
        let Around { outer, size, inner } = self.around;
        let row = inner * self.size;
        let count: usize = args[1].shape.iter().product();
        let target = &mut *outs[0].bytes;
        for i in 0..count {
            let at = checked(index_at(&args[1], i), size)?;
            for o in 0..outer {
                target[(o * count + i) * row..][..row]
                    .copy_from_slice(&args[0].bytes[(o * size + at) * row..][..row]);
            }
        }
        Ok(())
    }
}

/// Entries by index along an axis.
pub(crate) fn compile_gather(op: &Gather, cx: &CompileCx<'_>) -> Result<Box<dyn Kernel>> {
    integer(&cx.inputs[1])?;
    Ok(Box::new(GatherKernel {
        around: Around::new(&cx.inputs[0], op.axis)?,
        size: element_size(&cx.inputs[0])?,
    }))
}

/// Dtypes that entries are added in.
fn addable(dtype: DType) -> Result<()> {
    if matches!(
        dtype,
        DType::F32 | DType::F64 | DType::F16 | DType::BF16 | DType::I64 | DType::I32
    ) {
        return Ok(());
    }
    Err(Error::unsupported(format!(
        "adding entries of {dtype} by index"
    )))
}

macro_rules! by_addable {
    ($dtype:expr, $t:ident => $body:expr) => {
        match $dtype {
            DType::F64 => {
                type $t = f64;
                $body
            }
            DType::F16 => {
                type $t = f16;
                $body
            }
            DType::BF16 => {
                type $t = bf16;
                $body
            }
            DType::I64 => {
                type $t = i64;
                $body
            }
            DType::I32 => {
                type $t = i32;
                $body
            }
            _ => {
                type $t = f32;
                $body
            }
        }
    };
}

#[derive(Debug)]
struct GatherGradKernel {
    around: Around,
}

impl Kernel for GatherGradKernel {
    fn name(&self) -> String {
        "gather grad".to_string()
    }

    fn run(&self, args: &[Arg<'_>], outs: &mut [Out<'_>], _: &mut RunCx<'_>) -> Result<()> {
        fn add<T: Pod + AddAssign>(
            around: Around,
            indices: &Arg<'_>,
            from: &[T],
            to: &mut [T],
        ) -> Result<()> {
            let Around { outer, size, inner } = around;
            let count: usize = indices.shape.iter().product();
            to.fill(T::zeroed());
            for i in 0..count {
                let at = checked(index_at(indices, i), size)?;
                for o in 0..outer {
                    let row = &from[(o * count + i) * inner..][..inner];
                    for (t, &g) in to[(o * size + at) * inner..][..inner].iter_mut().zip(row) {
                        *t += g;
                    }
                }
            }
            Ok(())
        }
        by_addable!(args[1].dtype, T => {
            add::<T>(self.around, &args[0], args[1].typed(), outs[0].typed())
        })
    }
}

/// Sums gradients of equal indices.
pub(crate) fn compile_gather_grad(op: &GatherGrad, cx: &CompileCx<'_>) -> Result<Box<dyn Kernel>> {
    integer(&cx.inputs[0])?;
    addable(cx.inputs[1].dtype)?;
    Ok(Box::new(GatherGradKernel {
        around: Around::new(&cx.outputs[0], op.axis)?,
    }))
}

/// For entry `i` of an array of indices: its position with the axis' coordinate replaced by the
/// index, in an array with another size on that axis (the other dimensions may be larger too).
#[derive(Debug)]
struct Elements {
    axis: usize,
    strides: Vec<usize>,
    size: usize,
}

impl Elements {
    fn new(data: &TensorType, axis: usize) -> Result<Elements> {
        let shape = data.shape.fixed()?;
        Ok(Elements {
            axis,
            strides: opt_core::tensor::contiguous_strides(&shape)
                .iter()
                .map(|&s| s as usize)
                .collect(),
            size: shape[axis],
        })
    }

    /// Calls `each(position in the data, position in the indices)`.
    fn visit(&self, indices: &Arg<'_>, mut each: impl FnMut(usize, usize)) -> Result<()> {
        let count: usize = indices.shape.iter().product();
        let mut coordinate: smallvec::SmallVec<[usize; 8]> =
            smallvec::smallvec![0; indices.shape.len()];
        for i in 0..count {
            let at = checked(index_at(indices, i), self.size)?;
            let mut position = at * self.strides[self.axis];
            for (axis, &c) in coordinate.iter().enumerate() {
                if axis != self.axis {
                    position += c * self.strides[axis];
                }
            }
            each(position, i);
            for axis in (0..coordinate.len()).rev() {
                coordinate[axis] += 1;
                if coordinate[axis] < indices.shape[axis] {
                    break;
                }
                coordinate[axis] = 0;
            }
        }
        Ok(())
    }
}

#[derive(Debug)]
struct GatherElementsKernel {
    elements: Elements,
    size: usize,
}

impl Kernel for GatherElementsKernel {
    fn name(&self) -> String {
        "gather elements".to_string()
    }

    fn run(&self, args: &[Arg<'_>], outs: &mut [Out<'_>], _: &mut RunCx<'_>) -> Result<()> {
        let (data, target, size) = (args[0].bytes, &mut *outs[0].bytes, self.size);
        self.elements.visit(&args[1], |at, i| {
            target[i * size..][..size].copy_from_slice(&data[at * size..][..size]);
        })
    }
}

/// Entries by an index for each.
pub(crate) fn compile_gather_elements(
    op: &GatherElements,
    cx: &CompileCx<'_>,
) -> Result<Box<dyn Kernel>> {
    integer(&cx.inputs[1])?;
    Ok(Box::new(GatherElementsKernel {
        elements: Elements::new(&cx.inputs[0], op.axis)?,
        size: element_size(&cx.inputs[0])?,
    }))
}

#[derive(Debug)]
struct ScatterElementsKernel {
    elements: Elements,
    size: usize,
    add: bool,
}

impl Kernel for ScatterElementsKernel {
    fn name(&self) -> String {
        "scatter elements".to_string()
    }

    fn run(&self, args: &[Arg<'_>], outs: &mut [Out<'_>], _: &mut RunCx<'_>) -> Result<()> {
        outs[0].bytes.copy_from_slice(args[0].bytes);
        if self.add {
            return by_addable!(args[0].dtype, T => {
                let (updates, target) = (args[2].typed::<T>(), outs[0].typed::<T>());
                self.elements.visit(&args[1], |at, i| target[at] += updates[i])
            });
        }
        let (updates, target, size) = (args[2].bytes, &mut *outs[0].bytes, self.size);
        self.elements.visit(&args[1], |at, i| {
            target[at * size..][..size].copy_from_slice(&updates[i * size..][..size]);
        })
    }
}

/// Writes or adds entries by an index for each.
pub(crate) fn compile_scatter_elements(
    op: &ScatterElements,
    cx: &CompileCx<'_>,
) -> Result<Box<dyn Kernel>> {
    integer(&cx.inputs[1])?;
    let add = match op.reduction {
        ScatterReduction::None => false,
        ScatterReduction::Add => {
            addable(cx.inputs[0].dtype)?;
            true
        }
        other => return Err(Error::unsupported(format!("scatter with {other:?}"))),
    };
    Ok(Box::new(ScatterElementsKernel {
        elements: Elements::new(&cx.inputs[0], op.axis)?,
        size: element_size(&cx.inputs[0])?,
        add,
    }))
}

#[derive(Debug)]
struct OneHotKernel {
    around: Around,
    one: Vec<u8>,
}

impl Kernel for OneHotKernel {
    fn name(&self) -> String {
        "one-hot".to_string()
    }

    fn run(&self, args: &[Arg<'_>], outs: &mut [Out<'_>], _: &mut RunCx<'_>) -> Result<()> {
        let Around { outer, size, inner } = self.around;
        let target = &mut *outs[0].bytes;
        target.fill(0);
        let bytes = self.one.len();
        for o in 0..outer {
            for i in 0..inner {
                let index = index_at(&args[0], o * inner + i);
                if let Ok(at) = usize::try_from(index)
                    && at < size
                {
                    target[((o * size + at) * inner + i) * bytes..][..bytes]
                        .copy_from_slice(&self.one);
                }
            }
        }
        Ok(())
    }
}

/// One-hot encoding.
pub(crate) fn compile_one_hot(op: &OneHot, cx: &CompileCx<'_>) -> Result<Box<dyn Kernel>> {
    integer(&cx.inputs[0])?;
    element_size(&cx.outputs[0])?;
    Ok(Box::new(OneHotKernel {
        around: Around::new(&cx.outputs[0], op.axis)?,
        one: opt_core::Tensor::full(op.dtype, [], 1.0)?.bytes()?.to_vec(),
    }))
}
