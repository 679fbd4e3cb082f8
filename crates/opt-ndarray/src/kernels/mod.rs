//! Kernels, one file an op family, under the names that `opt_core::ops` has for them.
//!
//! Each family has a `compile` function that turns an op, with the types of a node, into a
//! [`Kernel`] with everything precomputed that does not depend on the inputs' content.

use std::fmt;

use bytemuck::Pod;
use opt_core::ops::UnaryOp;
use opt_core::{DType, Result, Tensor, TensorType};

/// An operand: contiguous, row-major.
#[derive(Clone, Copy)]
pub(crate) struct Arg<'a> {
    pub(crate) dtype: DType,
    pub(crate) shape: &'a [usize],
    pub(crate) bytes: &'a [u8],
}

impl<'a> Arg<'a> {
    /// The elements; the caller has matched on the dtype.
    pub(crate) fn typed<T: Pod>(&self) -> &'a [T] {
        bytemuck::cast_slice(self.bytes)
    }
}

/// A result to fill: contiguous, row-major; holds garbage before.
pub(crate) struct Out<'a> {
    pub(crate) dtype: DType,
    pub(crate) shape: &'a [usize],
    pub(crate) bytes: &'a mut [u8],
}

impl Out<'_> {
    /// The elements; the caller has matched on the dtype.
    pub(crate) fn typed<T: Pod>(&mut self) -> &mut [T] {
        bytemuck::cast_slice_mut(self.bytes)
    }
}

/// What a kernel runs with beside its operands.
pub(crate) struct RunCx<'a> {
    /// How many threads it may use; with 1 it must not touch rayon.
    pub(crate) threads: usize,
    /// As many bytes as [`Kernel::scratch`] asked for, 64-byte aligned, content undefined.
    pub(crate) scratch: &'a mut [u8],
}

/// A compiled node, or several fused ones.
pub(crate) trait Kernel: Send + Sync + fmt::Debug {
    /// What it is, for profiles: `conv+relu`.
    fn name(&self) -> String;

    /// Bytes of scratch memory it needs.
    fn scratch(&self) -> usize {
        0
    }

    /// Whether it may write an output over an input of the same size: pairs of
    /// (input, output) for which output entry `i` depends on input entry `i` only.
    fn in_place(&self) -> &[(usize, usize)] {
        &[]
    }

    /// Fills the outputs. The result does not depend on `cx.threads`. An input that was given up
    /// for an output in place arrives with empty bytes.
    fn run(&self, args: &[Arg<'_>], outs: &mut [Out<'_>], cx: &mut RunCx<'_>) -> Result<()>;
}

/// What a family's `compile` works with.
pub(crate) struct CompileCx<'a> {
    /// Types of the inputs, without symbols.
    pub(crate) inputs: &'a [TensorType],
    /// Types of the outputs, without symbols.
    pub(crate) outputs: &'a [TensorType],
    /// The content of inputs that are constant, to prepack or check.
    pub(crate) constants: &'a [Option<Tensor>],
    /// Element-wise functions to apply to the output, in order, in the same pass over memory;
    /// only for `conv` and `matmul` on `f32`, which take a bias as their third input too.
    pub(crate) epilogue: &'a [UnaryOp],
    /// How many threads will run the kernel.
    pub(crate) threads: usize,
}
