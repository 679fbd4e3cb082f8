//! A recurrent classifier of token sequences.

use crate::nn::{Embedding, Linear, Lstm, ModelBuilder};
use crate::ops::Direction;
use crate::{DType, Graph, Result};

/// The sizes of an [`lstm_classifier`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LstmClassifier {
    /// Number of tokens.
    pub vocabulary: usize,
    /// Tokens in a sequence.
    pub steps: usize,
    /// Width of the embedding.
    pub width: usize,
    /// Width of the hidden state.
    pub hidden: usize,
    /// Whether the sequence is read from both ends.
    pub bidirectional: bool,
    /// Number of classes.
    pub classes: usize,
}

/// An embedding, an LSTM and a linear layer on its last hidden state. Input `tokens`
/// `[batch, steps]` (`i64`), output `logits`.
///
/// # Errors
/// If a parameter would be too large to address, or the hidden width is 0.
pub fn lstm_classifier(config: &LstmClassifier, seed: u64) -> Result<Graph> {
    let mut m = ModelBuilder::new("lstm_classifier", seed);
    let tokens = m.batch_of(DType::I64, "tokens", [config.steps])?;
    let table = Embedding::new(config.vocabulary, config.width);
    let x = m.layer("embedding", table, tokens)?;
    let lstm = Lstm::new(config.hidden).direction(match config.bidirectional {
        true => Direction::Bidirectional,
        false => Direction::Forward,
    });
    let states = m.scope("lstm", |m| lstm.states(m, x))?;
    let logits = m.layer("fc", Linear::new(config.classes), states.last)?;
    m.output("logits", logits)?;
    m.finish()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_parameter_count_is_pytorchs() {
        for (bidirectional, directions) in [(false, 1), (true, 2)] {
            let config = LstmClassifier {
                vocabulary: 100,
                steps: 12,
                width: 16,
                hidden: 32,
                bidirectional,
                classes: 4,
            };
            let graph = lstm_classifier(&config, 0).unwrap();
            let lstm = 4 * 32 * 16 + 4 * 32 * 32 + 2 * 4 * 32;
            let expected = 100 * 16 + directions * lstm + directions * 32 * 4 + 4;
            assert_eq!(graph.parameter_count(), expected);
            let none = LstmClassifier {
                hidden: 0,
                ..config
            };
            assert!(lstm_classifier(&none, 0).is_err());
        }
    }
}
