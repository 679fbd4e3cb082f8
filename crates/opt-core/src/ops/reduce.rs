//! Reductions over axes, arg-max, top-k, running sums, softmax.

mod rules;

use smallvec::SmallVec;

use crate::{GraphBuilder, Result, ValueId};

/// What a [`Reduce`] computes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum ReduceOp {
    /// Sum.
    Sum,
    /// Arithmetic mean (floating-point only).
    Mean,
    /// Maximum; the gradient is shared evenly between ties (PyTorch's `amax`).
    Max,
    /// Minimum; ties as for `Max`.
    Min,
    /// Product; its gradient is right where factors are 0.
    Prod,
}

impl ReduceOp {
    /// ONNX's name.
    pub fn name(self) -> &'static str {
        match self {
            ReduceOp::Sum => "ReduceSum",
            ReduceOp::Mean => "ReduceMean",
            ReduceOp::Max => "ReduceMax",
            ReduceOp::Min => "ReduceMin",
            ReduceOp::Prod => "ReduceProd",
        }
    }
}

/// Reduces over axes. An empty list of axes changes nothing. Takes floating-point and unpacked
/// integer inputs; `Max` and `Min` need at least one entry.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reduce {
    /// What to compute.
    pub op: ReduceOp,
    /// The axes, ascending, without repetition.
    pub axes: SmallVec<[usize; 4]>,
    /// Whether reduced axes stay with size 1.
    pub keepdims: bool,
}

/// The index (`i64`) of the largest or smallest entry along an axis; no gradient.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ArgReduce {
    /// The largest, else the smallest.
    pub largest: bool,
    /// The axis.
    pub axis: usize,
    /// Whether the axis stays with size 1.
    pub keepdims: bool,
    /// Of equal entries the last, else the first.
    pub last: bool,
}

/// The `k` largest or smallest entries along an axis, and their indices (`i64`): two outputs,
/// sorted; equal entries in index order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TopK {
    /// How many.
    pub k: usize,
    /// The axis.
    pub axis: usize,
    /// The largest, else the smallest.
    pub largest: bool,
}

/// Running sum along an axis.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CumSum {
    /// The axis.
    pub axis: usize,
    /// Whether an entry's own value is left out.
    pub exclusive: bool,
    /// Whether to run from the end.
    pub reverse: bool,
}

/// `e^x / sum(e^x)` along an axis, computed without overflow.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Softmax {
    /// The axis.
    pub axis: usize,
}

/// `x - ln(sum(e^x))` along an axis, computed without overflow.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LogSoftmax {
    /// The axis.
    pub axis: usize,
}

impl GraphBuilder {
    /// Reduces over axes.
    ///
    /// # Errors
    /// If an axis is out of range or repeated.
    pub fn reduce(
        &mut self,
        op: ReduceOp,
        x: ValueId,
        axes: &[usize],
        keepdims: bool,
    ) -> Result<ValueId> {
        let mut axes: SmallVec<[usize; 4]> = axes.into();
        axes.sort_unstable();
        self.op(Reduce { op, axes, keepdims }, &[x])
    }

    /// Sum over axes.
    ///
    /// # Errors
    /// As [`GraphBuilder::reduce`].
    pub fn sum(&mut self, x: ValueId, axes: &[usize], keepdims: bool) -> Result<ValueId> {
        self.reduce(ReduceOp::Sum, x, axes, keepdims)
    }

    /// Mean over axes.
    ///
    /// # Errors
    /// As [`GraphBuilder::reduce`].
    pub fn mean(&mut self, x: ValueId, axes: &[usize], keepdims: bool) -> Result<ValueId> {
        self.reduce(ReduceOp::Mean, x, axes, keepdims)
    }

    /// Sum of all elements, of rank 0.
    ///
    /// # Errors
    /// As [`GraphBuilder::reduce`].
    pub fn sum_all(&mut self, x: ValueId) -> Result<ValueId> {
        let axes: Vec<usize> = (0..self.type_of(x).rank()).collect();
        self.sum(x, &axes, false)
    }

    /// Mean of all elements, of rank 0.
    ///
    /// # Errors
    /// As [`GraphBuilder::reduce`].
    pub fn mean_all(&mut self, x: ValueId) -> Result<ValueId> {
        let axes: Vec<usize> = (0..self.type_of(x).rank()).collect();
        self.mean(x, &axes, false)
    }

    /// Index of the largest entry along an axis, which goes.
    ///
    /// # Errors
    /// If the axis is out of range.
    pub fn argmax(&mut self, x: ValueId, axis: usize) -> Result<ValueId> {
        let op = ArgReduce {
            largest: true,
            axis,
            keepdims: false,
            last: false,
        };
        self.op(op, &[x])
    }

    /// The `k` largest entries along an axis and their indices.
    ///
    /// # Errors
    /// If the axis is out of range or shorter than `k`.
    pub fn top_k(&mut self, x: ValueId, k: usize, axis: usize) -> Result<(ValueId, ValueId)> {
        let op = TopK {
            k,
            axis,
            largest: true,
        };
        let out = self.node(op, &[x])?;
        Ok((out[0], out[1]))
    }

    /// Running sum along an axis.
    ///
    /// # Errors
    /// If the axis is out of range.
    pub fn cumsum(&mut self, x: ValueId, axis: usize) -> Result<ValueId> {
        let op = CumSum {
            axis,
            exclusive: false,
            reverse: false,
        };
        self.op(op, &[x])
    }

    /// Softmax along an axis.
    ///
    /// # Errors
    /// If the axis is out of range or the dtype not floating-point.
    pub fn softmax(&mut self, x: ValueId, axis: usize) -> Result<ValueId> {
        self.op(Softmax { axis }, &[x])
    }

    /// Logarithm of softmax along an axis.
    ///
    /// # Errors
    /// If the axis is out of range or the dtype not floating-point.
    pub fn log_softmax(&mut self, x: ValueId, axis: usize) -> Result<ValueId> {
        self.op(LogSoftmax { axis }, &[x])
    }
}
