//! Matrix products.

use crate::{GraphBuilder, Result, ValueId};

/// The matrix product of the last two axes of two inputs of one dtype and rank at least 2; the
/// axes before broadcast by numpy's rules. `[.., M, K] x [.., K, N] -> [.., M, N]`.
///
/// Integer inputs `i8` and `u8` (mixed freely) give `i32`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct MatMul {
    /// Whether the last two axes of the first input are swapped first.
    pub trans_a: bool,
    /// Whether the last two axes of the second input are swapped first.
    pub trans_b: bool,
}

impl GraphBuilder {
    /// Matrix product.
    ///
    /// # Errors
    /// If a rank is below 2, or inner or leading dimensions do not agree.
    pub fn matmul(&mut self, a: ValueId, b: ValueId) -> Result<ValueId> {
        self.op(MatMul::default(), &[a, b])
    }

    /// Matrix product with either side transposed.
    ///
    /// # Errors
    /// As [`GraphBuilder::matmul`].
    pub fn matmul_t(
        &mut self,
        a: ValueId,
        b: ValueId,
        trans_a: bool,
        trans_b: bool,
    ) -> Result<ValueId> {
        self.op(MatMul { trans_a, trans_b }, &[a, b])
    }
}

crate::ops::rules::pending_rules!(MatMul);
