//! Random sources. All are counter-based (Philox 4x32-10, Salmon et al. 2011): entry `i` depends
//! only on the op's seed, the step given as input, and `i`; see [`crate::random`].

use crate::{DType, GraphBuilder, Result, Shape, ValueId};

/// What a [`Random`] draws from.
#[derive(Debug, Clone, Copy, PartialEq)]
#[non_exhaustive]
pub enum Distribution {
    /// Uniform in `[low, high)`.
    Uniform {
        /// Lower bound.
        low: f64,
        /// Upper bound.
        high: f64,
    },
    /// Normal.
    Normal {
        /// Mean.
        mean: f64,
        /// Standard deviation.
        std: f64,
    },
}

/// A random tensor; the input is the step, an `i64` scalar (a variable that each run increments).
#[derive(Debug, Clone, PartialEq)]
pub struct Random {
    /// What to draw from.
    pub distribution: Distribution,
    /// The dtype, floating-point.
    pub dtype: DType,
    /// The shape.
    pub shape: Shape,
    /// Distinguishes random ops of one graph.
    pub seed: u64,
}

/// Dropout (Srivastava et al. 2014).
///
/// In eval mode the identity with one input. In training mode the inputs are x and the step (an
/// `i64` scalar), and the outputs are x times the mask, and the mask: `1 / (1 - p)` with
/// probability `1 - p`, else 0.
#[derive(Debug, Clone, PartialEq)]
pub struct Dropout {
    /// The probability of a zero, in `[0, 1)`.
    pub p: f64,
    /// Distinguishes random ops of one graph.
    pub seed: u64,
    /// Whether anything is dropped.
    pub training: bool,
}

impl GraphBuilder {
    /// Dropout in eval mode; the pass `TrainMode` switches it on.
    ///
    /// # Errors
    /// If `p` is not in `[0, 1)` or the dtype not floating-point.
    pub fn dropout(&mut self, x: ValueId, p: f64, seed: u64) -> Result<ValueId> {
        let op = Dropout {
            p,
            seed,
            training: false,
        };
        self.op(op, &[x])
    }
}

crate::ops::rules::pending_rules!(Random, Dropout);
