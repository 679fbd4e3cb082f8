//! Ops that move elements: reshape, transpose, slice, concat, split, pad, expand, tile, squeeze.

mod rules;

use smallvec::SmallVec;

use crate::tensor::Dims;
use crate::{Dim, GraphBuilder, Result, Shape, ValueId};

/// The same elements in another shape.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reshape {
    /// The new shape.
    pub shape: Shape,
}

/// Axes in another order: axis `i` of the output is axis `perm[i]` of the input.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Transpose {
    /// A permutation of the axes.
    pub perm: SmallVec<[usize; 4]>,
}

/// Every `step`-th entry from `start` on, before `end`, along some axes. A negative step walks
/// from `start` down to, but not including, `end` (which may be -1).
///
/// Sizes are those of the bound input: starts and ends are within it, never negative counts from
/// the end.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Slice {
    /// The axes, without repetition.
    pub axes: SmallVec<[usize; 4]>,
    /// First index on each of them.
    pub starts: SmallVec<[isize; 4]>,
    /// Index after the last on each of them.
    pub ends: SmallVec<[isize; 4]>,
    /// Step on each of them, not 0.
    pub steps: SmallVec<[isize; 4]>,
}

/// Gradient of a [`Slice`]: zeros of `shape` with the input written to the slice.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SliceGrad {
    /// The slice.
    pub slice: Slice,
    /// The shape of the slice's input.
    pub shape: Shape,
}

/// Inputs of one dtype side by side along an axis.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Concat {
    /// The axis.
    pub axis: usize,
}

/// Parts of the given sizes along an axis, one output each.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Split {
    /// The axis.
    pub axis: usize,
    /// The sizes; they add up to the axis' size.
    pub sizes: SmallVec<[usize; 4]>,
}

/// What a [`Pad`] fills in.
#[derive(Debug, Clone, Copy, PartialEq)]
#[non_exhaustive]
pub enum PadMode {
    /// A value.
    Constant(f64),
    /// The entries mirrored at the border, without the border entry itself.
    Reflect,
    /// The border entry.
    Edge,
}

/// Entries added before and after each axis.
#[derive(Debug, Clone, PartialEq)]
pub struct Pad {
    /// How many before each axis.
    pub begin: Dims,
    /// How many after each axis.
    pub end: Dims,
    /// What is filled in.
    pub mode: PadMode,
}

/// Gradient of a [`Pad`] with mode `Reflect` or `Edge`: adds each padded entry to the entry it
/// was copied from. No gradient itself.
#[derive(Debug, Clone, PartialEq)]
pub struct PadGrad {
    /// The padding.
    pub pad: Pad,
}

/// The input repeated to a larger shape by numpy's broadcasting rules.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Expand {
    /// The shape.
    pub shape: Shape,
}

/// The input repeated as a whole along each axis.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tile {
    /// Repetitions of each axis.
    pub repeats: Dims,
}

/// Removes axes of size 1.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Squeeze {
    /// The axes, ascending.
    pub axes: SmallVec<[usize; 4]>,
}

/// Inserts axes of size 1.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unsqueeze {
    /// The positions in the output, ascending.
    pub axes: SmallVec<[usize; 4]>,
}

impl GraphBuilder {
    /// The same elements in another shape.
    ///
    /// # Errors
    /// If the number of elements differs.
    pub fn reshape(&mut self, x: ValueId, shape: impl Into<Shape>) -> Result<ValueId> {
        let shape = shape.into();
        if self.type_of(x).shape == shape {
            return Ok(x);
        }
        self.op(Reshape { shape }, &[x])
    }

    /// Merges the axes from `axis` on into one (PyTorch's `flatten(start_dim)`).
    ///
    /// # Errors
    /// If more than one of those dimensions is symbolic.
    pub fn flatten(&mut self, x: ValueId, axis: usize) -> Result<ValueId> {
        let dims = self.type_of(x).shape.dims().to_vec();
        let tail: Shape = dims[axis.min(dims.len())..].iter().cloned().collect();
        let mut shape: Vec<Dim> = dims[..axis.min(dims.len())].to_vec();
        shape.push(tail.size()?);
        self.reshape(x, shape)
    }

    /// Axes in another order.
    ///
    /// # Errors
    /// If `perm` is no permutation.
    pub fn transpose(&mut self, x: ValueId, perm: &[usize]) -> Result<ValueId> {
        self.op(Transpose { perm: perm.into() }, &[x])
    }

    /// The entries `start..end` along one axis.
    ///
    /// # Errors
    /// If the range is out of bounds.
    pub fn slice(&mut self, x: ValueId, axis: usize, start: usize, end: usize) -> Result<ValueId> {
        let op = Slice {
            axes: smallvec::smallvec![axis],
            starts: smallvec::smallvec![start as isize],
            ends: smallvec::smallvec![end as isize],
            steps: smallvec::smallvec![1],
        };
        self.op(op, &[x])
    }

    /// Values side by side along an axis.
    ///
    /// # Errors
    /// If dtypes or other dimensions differ.
    pub fn concat(&mut self, parts: &[ValueId], axis: usize) -> Result<ValueId> {
        self.op(Concat { axis }, parts)
    }

    /// Parts of the given sizes along an axis.
    ///
    /// # Errors
    /// If they do not add up to the axis' size.
    pub fn split(&mut self, x: ValueId, axis: usize, sizes: &[usize]) -> Result<Vec<ValueId>> {
        let op = Split {
            axis,
            sizes: sizes.into(),
        };
        self.node(op, &[x])
    }

    /// Entries added before and after each axis.
    ///
    /// # Errors
    /// If there is not one entry an axis, or a reflection is longer than its axis.
    pub fn pad(
        &mut self,
        x: ValueId,
        begin: &[usize],
        end: &[usize],
        mode: PadMode,
    ) -> Result<ValueId> {
        let op = Pad {
            begin: begin.into(),
            end: end.into(),
            mode,
        };
        self.op(op, &[x])
    }

    /// The value repeated to a larger shape.
    ///
    /// # Errors
    /// If it does not broadcast to that shape.
    pub fn expand(&mut self, x: ValueId, shape: impl Into<Shape>) -> Result<ValueId> {
        let shape = shape.into();
        if self.type_of(x).shape == shape {
            return Ok(x);
        }
        self.op(Expand { shape }, &[x])
    }

    /// The value repeated as a whole along each axis.
    ///
    /// # Errors
    /// If there is not one number an axis.
    pub fn tile(&mut self, x: ValueId, repeats: &[usize]) -> Result<ValueId> {
        let op = Tile {
            repeats: repeats.into(),
        };
        self.op(op, &[x])
    }

    /// Removes axes of size 1.
    ///
    /// # Errors
    /// If one of them has another size.
    pub fn squeeze(&mut self, x: ValueId, axes: &[usize]) -> Result<ValueId> {
        self.op(Squeeze { axes: axes.into() }, &[x])
    }

    /// Inserts axes of size 1 at positions of the output.
    ///
    /// # Errors
    /// If a position is out of range or repeated.
    pub fn unsqueeze(&mut self, x: ValueId, axes: &[usize]) -> Result<ValueId> {
        self.op(Unsqueeze { axes: axes.into() }, &[x])
    }
}
