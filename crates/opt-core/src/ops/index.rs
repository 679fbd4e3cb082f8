//! Gather, scatter, one-hot, embedding.

mod rules;

use crate::{DType, Dim, GraphBuilder, Result, ValueId};

/// Entries of `data` along an axis by index (`i64` or `i32`): the output's shape is `data`'s
/// with the axis replaced by the shape of the indices. Negative indices count from the end; an
/// index out of range is an error at run time.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Gather {
    /// The axis.
    pub axis: usize,
}

/// Gradient of [`Gather`] by its data: inputs are the indices and the gradient by the output,
/// the output has size `size` on the axis and sums the entries of equal indices.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GatherGrad {
    /// The axis.
    pub axis: usize,
    /// The data's size on the axis.
    pub size: Dim,
}

/// `out[i][j][k] = data[index[i][j][k]][j][k]` for axis 0, and so on (PyTorch's `gather`); the
/// output has the shape of the indices.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GatherElements {
    /// The axis.
    pub axis: usize,
}

/// What [`ScatterElements`] does with the old entry.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum ScatterReduction {
    /// Replaces it; of equal indices the last wins.
    None,
    /// Adds to it.
    Add,
}

/// Writes `updates` into a copy of `data`: `out[index[i][j]][j] = updates[i][j]` for axis 0.
/// Inputs: data, indices, updates (of the indices' shape). Source: ONNX `ScatterElements`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ScatterElements {
    /// The axis.
    pub axis: usize,
    /// What happens to the old entry.
    pub reduction: ScatterReduction,
}

/// 1 at the index, 0 elsewhere, along a new axis; an index out of range gives all zeros
/// (ONNX). No gradient.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OneHot {
    /// Size of the new axis.
    pub depth: usize,
    /// Its position in the output.
    pub axis: usize,
    /// The dtype of the output.
    pub dtype: DType,
}

impl GraphBuilder {
    /// Entries by index along an axis.
    ///
    /// # Errors
    /// If the axis is out of range or the indices are no integers.
    pub fn gather(&mut self, data: ValueId, indices: ValueId, axis: usize) -> Result<ValueId> {
        self.op(Gather { axis }, &[data, indices])
    }

    /// Rows of a table `[entries, width]` by index: `[..] -> [.., width]`.
    ///
    /// # Errors
    /// As [`GraphBuilder::gather`].
    pub fn embedding(&mut self, table: ValueId, indices: ValueId) -> Result<ValueId> {
        self.gather(table, indices, 0)
    }

    /// Entries by an index for each.
    ///
    /// # Errors
    /// If the ranks differ or the indices are no integers.
    pub fn gather_elements(
        &mut self,
        data: ValueId,
        indices: ValueId,
        axis: usize,
    ) -> Result<ValueId> {
        self.op(GatherElements { axis }, &[data, indices])
    }

    /// Writes or adds entries by an index for each.
    ///
    /// # Errors
    /// If shapes or dtypes do not agree.
    pub fn scatter_elements(
        &mut self,
        data: ValueId,
        indices: ValueId,
        updates: ValueId,
        axis: usize,
        reduction: ScatterReduction,
    ) -> Result<ValueId> {
        self.op(
            ScatterElements { axis, reduction },
            &[data, indices, updates],
        )
    }

    /// One-hot encoding along a new last axis.
    ///
    /// # Errors
    /// If the indices are no integers.
    pub fn one_hot(&mut self, indices: ValueId, depth: usize, dtype: DType) -> Result<ValueId> {
        let axis = self.type_of(indices).rank();
        self.op(OneHot { depth, axis, dtype }, &[indices])
    }
}
