//! Multi-head attention and the transformer's encoder layer.

use super::{Dropout, Init, Layer, LayerNorm, Linear, ModelBuilder};
use crate::ops::UnaryOp;
use crate::{Dim, Error, Result, Shape, ValueId};

/// Multi-head attention (Vaswani et al. 2017) over `[N, L, E]`, with linear layers `q_proj`,
/// `k_proj`, `v_proj` and `out_proj` of width E; the heads share E evenly.
#[derive(Debug, Clone, Copy)]
pub struct MultiHeadAttention {
    heads: usize,
    causal: bool,
}

impl MultiHeadAttention {
    /// With the number of heads, which divides E.
    pub fn new(heads: usize) -> MultiHeadAttention {
        MultiHeadAttention {
            heads,
            causal: false,
        }
    }

    /// Whether a position sees only itself and those before.
    #[must_use]
    pub fn causal(mut self, causal: bool) -> MultiHeadAttention {
        self.causal = causal;
        self
    }

    /// Attention of queries `[N, L, E]` over keys and values `[N, S, ..]`; the mask broadcasts
    /// to `[N, heads, L, S]` (see [`ops::Attention`](crate::ops::Attention)).
    ///
    /// # Errors
    /// If the shapes do not fit or the heads do not divide E.
    pub fn attend(
        &self,
        m: &mut ModelBuilder,
        query: ValueId,
        key: ValueId,
        value: ValueId,
        mask: Option<ValueId>,
    ) -> Result<ValueId> {
        let ty = m.type_of(query).clone();
        if ty.rank() != 3 {
            return Err(Error::shape(format!(
                "attention takes [batch, length, width], found {ty}"
            )));
        }
        let width = m.size(query, 2)?;
        if self.heads == 0 || width % self.heads != 0 {
            return Err(Error::invalid(format!(
                "{} heads do not divide the width {width}",
                self.heads
            )));
        }
        let xavier = Init::XavierUniform { gain: 1.0 };
        let linear = Linear::new(width).init(xavier).bias_init(Init::ZEROS);
        let head = |m: &mut ModelBuilder, name: &str, x: ValueId| -> Result<ValueId> {
            let y = m.layer(name, &linear, x)?;
            let dims = m.type_of(y).shape.dims()[..2].to_vec();
            let split = [Dim::from(self.heads), Dim::from(width / self.heads)];
            let y = m.reshape(y, Shape::from([&dims[..], &split[..]].concat()))?;
            m.transpose(y, &[0, 2, 1, 3])
        };
        let q = head(m, "q_proj", query)?;
        let k = head(m, "k_proj", key)?;
        let v = head(m, "v_proj", value)?;
        let y = m.attention(q, k, v, mask, self.causal)?;
        let y = m.transpose(y, &[0, 2, 1, 3])?;
        let y = m.reshape(y, ty.shape)?;
        m.layer("out_proj", &linear, y)
    }
}

/// Self-attention without a mask.
impl Layer for MultiHeadAttention {
    fn build(&self, m: &mut ModelBuilder, x: ValueId) -> Result<ValueId> {
        self.attend(m, x, x, x, None)
    }
}

/// An encoder layer of the transformer (Vaswani et al. 2017) over `[N, L, E]`: self-attention
/// `self_attn` and a feed-forward part `linear1`, activation, `linear2`, each with a residual
/// and a layer normalization `norm1`, `norm2`.
#[derive(Debug, Clone, Copy)]
pub struct TransformerEncoderLayer {
    attention: MultiHeadAttention,
    feedforward: usize,
    activation: UnaryOp,
    dropout: f64,
    norm_first: bool,
}

impl TransformerEncoderLayer {
    /// With the number of heads and the width of the feed-forward part; ReLU, no dropout,
    /// normalized after the residual as in the paper.
    pub fn new(heads: usize, feedforward: usize) -> TransformerEncoderLayer {
        TransformerEncoderLayer {
            attention: MultiHeadAttention::new(heads),
            feedforward,
            activation: UnaryOp::Relu,
            dropout: 0.0,
            norm_first: false,
        }
    }

    /// The activation function of the feed-forward part.
    #[must_use]
    pub fn activation(mut self, activation: UnaryOp) -> TransformerEncoderLayer {
        self.activation = activation;
        self
    }

    /// The probability of a zero in the two residual branches and after the activation.
    #[must_use]
    pub fn dropout(mut self, p: f64) -> TransformerEncoderLayer {
        self.dropout = p;
        self
    }

    /// Whether to normalize the input of a branch (pre-norm, Xiong et al. 2020) rather than the
    /// sum after it.
    #[must_use]
    pub fn norm_first(mut self, norm_first: bool) -> TransformerEncoderLayer {
        self.norm_first = norm_first;
        self
    }

    /// Whether a position sees only itself and those before.
    #[must_use]
    pub fn causal(mut self, causal: bool) -> TransformerEncoderLayer {
        self.attention = self.attention.causal(causal);
        self
    }

    /// Dropout under a name, or nothing if none is asked for.
    fn drop(&self, m: &mut ModelBuilder, name: &str, x: ValueId) -> Result<ValueId> {
        match self.dropout == 0.0 {
            true => Ok(x),
            false => m.layer(name, Dropout::new(self.dropout), x),
        }
    }

    /// A residual branch with its normalization.
    fn branch(
        &self,
        m: &mut ModelBuilder,
        norm: &str,
        x: ValueId,
        branch: impl FnOnce(&mut ModelBuilder, ValueId) -> Result<ValueId>,
    ) -> Result<ValueId> {
        if self.norm_first {
            let y = m.layer(norm, LayerNorm::new(), x)?;
            let y = branch(m, y)?;
            return m.add(x, y);
        }
        let y = branch(m, x)?;
        let y = m.add(x, y)?;
        m.layer(norm, LayerNorm::new(), y)
    }
}

impl Layer for TransformerEncoderLayer {
    fn build(&self, m: &mut ModelBuilder, x: ValueId) -> Result<ValueId> {
        let last = m.type_of(x).rank().saturating_sub(1);
        let width = m.size(x, last)?;
        let x = self.branch(m, "norm1", x, |m, x| {
            let y = m.layer("self_attn", self.attention, x)?;
            self.drop(m, "dropout1", y)
        })?;
        self.branch(m, "norm2", x, |m, x| {
            let y = m.layer("linear1", Linear::new(self.feedforward), x)?;
            let y = m.unary(self.activation, y)?;
            let y = self.drop(m, "dropout", y)?;
            let y = m.layer("linear2", Linear::new(width), y)?;
            self.drop(m, "dropout2", y)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parameter_counts_are_pytorchs() {
        // torch.nn.TransformerEncoderLayer(32, 4, 64) has 8,544 parameters.
        for norm_first in [false, true] {
            let mut m = ModelBuilder::new("m", 0);
            let x = m.batch("x", [10, 32]).unwrap();
            let layer = TransformerEncoderLayer::new(4, 64)
                .norm_first(norm_first)
                .dropout(0.1);
            let y = m.layer("layer", layer, x).unwrap();
            assert_eq!(m.type_of(y).to_string(), "f32[batch,10,32]");
            m.output("y", y).unwrap();
            assert_eq!(m.finish().unwrap().parameter_count(), 8_544);
        }
    }

    #[test]
    fn lengths_may_be_symbols() {
        let mut m = ModelBuilder::new("m", 0);
        let shape = Shape::new([Dim::from("batch"), Dim::from("sequence"), 32.into()]);
        let x = m
            .input("x", crate::TensorType::new(crate::DType::F32, shape))
            .unwrap();
        let layer = TransformerEncoderLayer::new(4, 64).causal(true);
        let y = m.layer("layer", layer, x).unwrap();
        assert_eq!(m.type_of(y).to_string(), "f32[batch,sequence,32]");
    }

    #[test]
    fn heads_must_divide_the_width() {
        let mut m = ModelBuilder::new("m", 0);
        let x = m.batch("x", [10, 32]).unwrap();
        assert!(m.layer("a", MultiHeadAttention::new(5), x).is_err());
        assert!(m.layer("b", MultiHeadAttention::new(0), x).is_err());
        let flat = m.flatten(x, 1).unwrap();
        assert!(m.layer("c", MultiHeadAttention::new(4), flat).is_err());
    }
}
