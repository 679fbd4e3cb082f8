//! LSTM and GRU over a sequence.

mod rules;

use crate::{GraphBuilder, Result, ValueId};

/// The order in which a recurrent op reads the sequence.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub enum Direction {
    /// From the first step to the last.
    #[default]
    Forward,
    /// From the last step to the first.
    Reverse,
    /// Both, each with its own weights.
    Bidirectional,
}

impl Direction {
    /// 2 if bidirectional, else 1: the size of the direction axes.
    pub fn count(self) -> usize {
        if self == Direction::Bidirectional {
            2
        } else {
            1
        }
    }
}

/// Long short-term memory (Hochreiter & Schmidhuber 1997), ONNX's layout. With sequence length
/// T, batch N, input width I, hidden width H and D directions, the inputs are
///
/// - x `[T, N, I]`, weight `[D, 4H, I]`, recurrent weight `[D, 4H, H]`, bias `[D, 8H]` (input
///   then recurrent); gates in the order input, output, forget, cell;
/// - with `initial`, h0 `[D, N, H]` and c0 `[D, N, H]` (else zeros).
///
/// Outputs: y `[T, D, N, H]`, the last h `[D, N, H]`, the last c `[D, N, H]`. Gates are
/// sigmoids, cell and output tanh.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Lstm {
    /// H.
    pub hidden: usize,
    /// The order of the sequence.
    pub direction: Direction,
    /// Whether h0 and c0 are inputs.
    pub initial: bool,
}

/// Gradients of an [`Lstm`]: inputs are its inputs and then the gradients by its three outputs;
/// outputs are the gradients by its inputs. No gradient itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LstmGrad {
    /// The LSTM.
    pub lstm: Lstm,
}

/// Gated recurrent unit (Cho et al. 2014), ONNX's layout: inputs x `[T, N, I]`, weight
/// `[D, 3H, I]`, recurrent weight `[D, 3H, H]`, bias `[D, 6H]` (gates update, reset, hidden),
/// and with `initial` h0 `[D, N, H]`. Outputs: y `[T, D, N, H]`, the last h `[D, N, H]`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Gru {
    /// H.
    pub hidden: usize,
    /// The order of the sequence.
    pub direction: Direction,
    /// Whether h0 is an input.
    pub initial: bool,
    /// Whether the reset gate applies after the recurrent product (PyTorch, cuDNN) rather than
    /// before it.
    pub linear_before_reset: bool,
}

/// Gradients of a [`Gru`]: inputs are its inputs and then the gradients by its two outputs;
/// outputs are the gradients by its inputs. No gradient itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GruGrad {
    /// The GRU.
    pub gru: Gru,
}

impl GraphBuilder {
    /// A forward LSTM with zero initial state; returns y, the last h and the last c.
    ///
    /// # Errors
    /// If the shapes are not those that [`Lstm`] names.
    pub fn lstm(
        &mut self,
        x: ValueId,
        weight: ValueId,
        recurrent: ValueId,
        bias: ValueId,
        hidden: usize,
    ) -> Result<Vec<ValueId>> {
        let op = Lstm {
            hidden,
            direction: Direction::Forward,
            initial: false,
        };
        self.node(op, &[x, weight, recurrent, bias])
    }

    /// A forward GRU with zero initial state and PyTorch's reset gate; returns y and the last h.
    ///
    /// # Errors
    /// If the shapes are not those that [`Gru`] names.
    pub fn gru(
        &mut self,
        x: ValueId,
        weight: ValueId,
        recurrent: ValueId,
        bias: ValueId,
        hidden: usize,
    ) -> Result<Vec<ValueId>> {
        let op = Gru {
            hidden,
            direction: Direction::Forward,
            initial: false,
            linear_before_reset: true,
        };
        self.node(op, &[x, weight, recurrent, bias])
    }
}
