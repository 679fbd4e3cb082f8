//! Scaled dot-product attention.

use crate::{GraphBuilder, Result, ValueId};

/// `softmax(scale * Q K^T + mask) V` over the last two axes (Vaswani et al. 2017): q
/// `[.., L, E]`, k `[.., S, E]`, v `[.., S, V]`, optional mask that broadcasts to `[.., L, S]`
/// (floating-point: added; boolean: false entries are left out), output `[.., L, V]`. Leading
/// axes (batch, heads) are equal.
#[derive(Debug, Clone, PartialEq)]
pub struct Attention {
    /// Factor of the scores; `None` is `1 / sqrt(E)`.
    pub scale: Option<f64>,
    /// Whether a query sees only keys at its own position and before.
    pub causal: bool,
}

impl GraphBuilder {
    /// Scaled dot-product attention with the default scale.
    ///
    /// # Errors
    /// If the shapes are not those that [`Attention`] names.
    pub fn attention(
        &mut self,
        q: ValueId,
        k: ValueId,
        v: ValueId,
        mask: Option<ValueId>,
        causal: bool,
    ) -> Result<ValueId> {
        let mut inputs = vec![q, k, v];
        inputs.extend(mask);
        self.op(
            Attention {
                scale: None,
                causal,
            },
            &inputs,
        )
    }
}

crate::ops::rules::pending_rules!(Attention);
