//! LSTM and GRU layers over batches of sequences.

use super::{Init, Layer, ModelBuilder};
use crate::ops::{self, Direction, Op};
use crate::{Dim, Error, Result, Shape, ValueId};

/// What a recurrent layer gives.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct States {
    /// The hidden states of all steps, `[N, T, D * H]`; the directions side by side.
    pub all: ValueId,
    /// The hidden state after the last step of each direction, `[N, D * H]`.
    pub last: ValueId,
}

macro_rules! recurrent {
    ($(#[$doc:meta])* $name:ident, $gates:literal) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy)]
        pub struct $name {
            hidden: usize,
            direction: Direction,
        }

        impl $name {
            /// A forward layer with a hidden width.
            pub fn new(hidden: usize) -> $name {
                $name {
                    hidden,
                    direction: Direction::Forward,
                }
            }

            /// In which order the sequence is read; in both, the output is twice as wide.
            #[must_use]
            pub fn direction(mut self, direction: Direction) -> $name {
                self.direction = direction;
                self
            }

            /// Applies the layer to `[N, T, I]`, as [`Layer::build`], and gives the last hidden
            /// state too.
            ///
            /// # Errors
            /// As [`Layer::build`].
            pub fn states(&self, m: &mut ModelBuilder, x: ValueId) -> Result<States> {
                let (directions, hidden) = (self.direction.count(), self.hidden);
                let ty = m.type_of(x).clone();
                if ty.rank() != 3 {
                    return Err(Error::shape(format!(
                        "a recurrent layer takes [batch, steps, width], found {ty}"
                    )));
                }
                let bound = 1.0 / (hidden.max(1) as f64).sqrt();
                let init = Init::Uniform {
                    low: -bound,
                    high: bound,
                };
                let (rows, width) = ($gates * hidden, m.size(x, 2)?);
                let weight = m.parameter("weight", [directions, rows, width], &init)?;
                let recurrent = m.parameter("recurrent", [directions, rows, hidden], &init)?;
                let bias = m.parameter("bias", [directions, 2 * rows], &init)?;
                let steps_first = m.transpose(x, &[1, 0, 2])?;
                let outputs = m.node(self.op(), &[steps_first, weight, recurrent, bias])?;
                let (all, last) = (outputs[0], outputs[1]);
                let [n, t] = [ty.shape[0].clone(), ty.shape[1].clone()];
                let merged = Dim::from(directions * hidden);
                let all = m.transpose(all, &[2, 0, 1, 3])?;
                let all = m.reshape(all, Shape::from(vec![n.clone(), t, merged.clone()]))?;
                let last = m.transpose(last, &[1, 0, 2])?;
                let last = m.reshape(last, Shape::from(vec![n, merged]))?;
                Ok(States { all, last })
            }
        }

        impl Layer for $name {
            fn build(&self, m: &mut ModelBuilder, x: ValueId) -> Result<ValueId> {
                Ok(self.states(m, x)?.all)
            }
        }
    };
}

recurrent! {
    /// Long short-term memory over `[N, T, I]`, with zero initial state: `[N, T, D * H]`.
    ///
    /// The parameters have the layout of the op, which is ONNX's: `weight` `[D, 4H, I]`,
    /// `recurrent` `[D, 4H, H]`, `bias` `[D, 8H]`, gates in the order input, output, forget, cell
    /// (PyTorch's `weight_ih_l0` and `weight_hh_l0` have input, forget, cell, output). All start
    /// uniformly within `1 / sqrt(H)`.
    Lstm, 4
}

recurrent! {
    /// Gated recurrent unit over `[N, T, I]`, with zero initial state and PyTorch's reset gate:
    /// `[N, T, D * H]`.
    ///
    /// The parameters have the layout of the op, which is ONNX's: `weight` `[D, 3H, I]`,
    /// `recurrent` `[D, 3H, H]`, `bias` `[D, 6H]`, gates in the order update, reset, hidden
    /// (PyTorch's have reset, update, hidden). All start uniformly within `1 / sqrt(H)`.
    Gru, 3
}

impl Lstm {
    fn op(&self) -> Op {
        Op::from(ops::Lstm {
            hidden: self.hidden,
            direction: self.direction,
            initial: false,
        })
    }
}

impl Gru {
    fn op(&self) -> Op {
        Op::from(ops::Gru {
            hidden: self.hidden,
            direction: self.direction,
            initial: false,
            linear_before_reset: true,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shapes_are_batch_first() {
        let mut m = ModelBuilder::new("m", 0);
        let x = m.batch("x", [7, 3]).unwrap();
        let both = Lstm::new(5).direction(Direction::Bidirectional);
        let y = m.layer("lstm", both, x).unwrap();
        assert_eq!(m.type_of(y).to_string(), "f32[batch,7,10]");
        let states = m.scope("gru", |m| Gru::new(4).states(m, y)).unwrap();
        assert_eq!(m.type_of(states.all).to_string(), "f32[batch,7,4]");
        assert_eq!(m.type_of(states.last).to_string(), "f32[batch,4]");
        let flat = m.flatten(x, 1).unwrap();
        assert!(m.layer("flat", Lstm::new(5), flat).is_err());
    }
}
