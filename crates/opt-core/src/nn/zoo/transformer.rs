//! A transformer encoder that classifies token sequences.

use crate::nn::{Embedding, Init, LayerNorm, Linear, ModelBuilder, TransformerEncoderLayer};
use crate::ops::UnaryOp;
use crate::{DType, Graph, Result};

/// The sizes of a [`transformer_classifier`].
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct TransformerClassifier {
    /// Number of tokens.
    pub vocabulary: usize,
    /// Tokens in a sequence.
    pub steps: usize,
    /// Width of the model.
    pub width: usize,
    /// Attention heads, which divide the width.
    pub heads: usize,
    /// Width of the feed-forward parts.
    pub feedforward: usize,
    /// Number of encoder layers.
    pub layers: usize,
    /// The probability of dropout in each layer.
    pub dropout: f64,
    /// Number of classes.
    pub classes: usize,
}

/// Token and position embeddings, pre-norm encoder layers with GELU (Vaswani et al. 2017; Xiong
/// et al. 2020), a layer normalization, the mean over the sequence and a linear layer. Input
/// `tokens` `[batch, steps]` (`i64`), output `logits`.
///
/// # Errors
/// If the heads do not divide the width.
pub fn transformer_classifier(config: &TransformerClassifier, seed: u64) -> Result<Graph> {
    let mut m = ModelBuilder::new("transformer_classifier", seed);
    let tokens = m.batch_of(DType::I64, "tokens", [config.steps])?;
    let small = Init::Normal {
        mean: 0.0,
        std: 0.02,
    };
    let table = Embedding::new(config.vocabulary, config.width).init(small);
    let x = m.layer("embedding", table, tokens)?;
    let position = m.parameter("position", [config.steps, config.width], &small)?;
    let mut x = m.add(x, position)?;
    for index in 0..config.layers {
        let layer = TransformerEncoderLayer::new(config.heads, config.feedforward)
            .activation(UnaryOp::Gelu { tanh: false })
            .dropout(config.dropout)
            .norm_first(true);
        x = m.layer(&format!("layers.{index}"), layer, x)?;
    }
    let x = m.layer("norm", LayerNorm::new(), x)?;
    let x = m.mean(x, &[1], false)?;
    let logits = m.layer("fc", Linear::new(config.classes), x)?;
    m.output("logits", logits)?;
    m.finish()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_parameter_count_adds_up() {
        let config = TransformerClassifier {
            vocabulary: 100,
            steps: 10,
            width: 32,
            heads: 4,
            feedforward: 64,
            layers: 2,
            dropout: 0.1,
            classes: 5,
        };
        let graph = transformer_classifier(&config, 0).unwrap();
        let expected = 100 * 32 + 10 * 32 + 2 * 8_544 + 64 + 32 * 5 + 5;
        assert_eq!(graph.parameter_count(), expected);
    }
}
