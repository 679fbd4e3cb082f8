//! Ops that downstream crates define.

use std::any::Any;
use std::fmt;
use std::sync::Arc;

use super::OpRules;
use crate::{Result, Tensor};

/// An op that a downstream crate defines: its rules, and a reference evaluation on host tensors
/// that every backend can fall back to.
///
/// Wrap it in [`Op::Custom`](super::Op::Custom); `examples/custom_pass` shows a whole one.
pub trait CustomOp: OpRules + fmt::Debug + Send + Sync + Any {
    /// The name, unique among ops: `domain.Name`.
    fn name(&self) -> &str;

    /// Computes the outputs from contiguous inputs.
    ///
    /// # Errors
    /// If the inputs hold something the op does not take.
    fn eval(&self, inputs: &[Tensor]) -> Result<Vec<Tensor>>;

    /// Whether another op is the same with the same attributes.
    fn is_same(&self, other: &dyn CustomOp) -> bool;

    /// The op as `Any`, for `is_same` and for passes that look for it.
    fn as_any(&self) -> &dyn Any;
}

impl PartialEq for dyn CustomOp {
    fn eq(&self, other: &dyn CustomOp) -> bool {
        self.is_same(other)
    }
}

pub(super) fn rules(op: &Arc<dyn CustomOp>) -> &dyn OpRules {
    let op: &dyn CustomOp = op.as_ref();
    op
}
