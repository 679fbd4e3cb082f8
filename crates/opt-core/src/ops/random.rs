//! Random sources. All are counter-based (Philox 4x32-10, Salmon et al. 2011): entry `i` depends
//! only on the op's seed, the step given as input, and `i`; see [`crate::random`].

use super::rules::{arity, float};
use super::{AxisRules, Cost, InputGrads, Op, OpRules, Port, ShrinkCx, Vjp};
use crate::graph::Bindings;
use crate::{DType, Error, GraphBuilder, Result, Shape, TensorType, ValueId};

/// What a [`Random`] draws from.
#[derive(Debug, Clone, Copy, PartialEq)]
#[non_exhaustive]
pub enum Distribution {
    /// Uniform in `[low, high)`; `low` is below `high`, both finite.
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
        /// Standard deviation, not negative.
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

/// Fails unless an input is an `i64` scalar.
fn step(ty: &TensorType) -> Result<()> {
    if *ty == TensorType::new(DType::I64, Shape::default()) {
        return Ok(());
    }
    Err(Error::dtype(format!(
        "the step must be an i64 scalar, found {ty}"
    )))
}

impl OpRules for Random {
    fn infer(&self, inputs: &[TensorType]) -> Result<Vec<TensorType>> {
        arity(inputs, 1..=1)?;
        step(&inputs[0])?;
        let output = TensorType::new(self.dtype, self.shape.clone());
        float(&output, "a random tensor")?;
        let valid = match self.distribution {
            Distribution::Uniform { low, high } => {
                low < high && low.is_finite() && high.is_finite()
            }
            Distribution::Normal { mean, std } => mean.is_finite() && std.is_finite() && std >= 0.0,
        };
        if !valid {
            return Err(Error::invalid(format!(
                "{:?} is no distribution",
                self.distribution
            )));
        }
        Ok(vec![output])
    }

    fn vjp(&self, _: &mut Vjp<'_>) -> Result<InputGrads> {
        Ok(vec![None])
    }

    fn axes(&self, _: &[TensorType], outputs: &[TensorType]) -> AxisRules {
        let mut rules = AxisRules::new();
        for axis in 0..outputs[0].rank() {
            rules.free((Port::Output(0), axis));
        }
        rules
    }

    fn cost(&self, _: &[TensorType], outputs: &[TensorType]) -> Result<Cost> {
        Cost::elementwise(outputs)
    }

    fn shrink(&self, cx: &ShrinkCx<'_>) -> Result<Option<Op>> {
        let shape = cx.new_outputs[0].shape.clone();
        Ok(Some(Op::from(Random {
            shape,
            ..self.clone()
        })))
    }

    fn bind(&self, bindings: &Bindings) -> Result<Option<Op>> {
        let shape = self.shape.bind(bindings)?;
        Ok((shape != self.shape).then(|| {
            Op::from(Random {
                shape,
                ..self.clone()
            })
        }))
    }

    fn is_deterministic(&self) -> bool {
        false
    }
}

impl OpRules for Dropout {
    fn infer(&self, inputs: &[TensorType]) -> Result<Vec<TensorType>> {
        let count = if self.training { 2 } else { 1 };
        arity(inputs, count..=count)?;
        float(&inputs[0], "the input")?;
        if !(0.0..1.0).contains(&self.p) {
            return Err(Error::invalid(format!(
                "the probability of a zero must be in [0, 1), found {}",
                self.p
            )));
        }
        if !self.training {
            return Ok(inputs.to_vec());
        }
        step(&inputs[1])?;
        Ok(vec![inputs[0].clone(); 2])
    }

    fn vjp(&self, cx: &mut Vjp<'_>) -> Result<InputGrads> {
        if !self.training {
            return Ok(vec![Some(cx.grad()?)]);
        }
        let dx = match cx.grads[0] {
            Some(g) => Some(cx.b.mul(g, cx.outputs[1])?),
            None => None,
        };
        Ok(vec![dx, None])
    }

    fn axes(&self, inputs: &[TensorType], outputs: &[TensorType]) -> AxisRules {
        AxisRules::broadcast(&inputs[..1], outputs)
    }

    fn cost(&self, _: &[TensorType], outputs: &[TensorType]) -> Result<Cost> {
        match self.training {
            true => Cost::elementwise(&outputs[..1]),
            false => Ok(Cost::default()),
        }
    }

    fn is_deterministic(&self) -> bool {
        !self.training
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Symbol;
    use crate::ops::testing::infer;

    #[test]
    fn types_of_outputs() {
        let dropout = |p, training| {
            Op::from(Dropout {
                p,
                seed: 1,
                training,
            })
        };
        let random = |distribution, dtype| {
            Op::from(Random {
                distribution,
                dtype,
                shape: Shape::new(["n".into(), crate::Dim::from(3)]),
                seed: 1,
            })
        };
        let uniform = |low, high| Distribution::Uniform { low, high };
        let normal = |std| Distribution::Normal { mean: 0.0, std };
        for (op, inputs, expected) in [
            (dropout(0.5, false), "f32[n,3]", "f32[n,3]"),
            (dropout(0.5, true), "f32[n,3] i64[]", "f32[n,3] f32[n,3]"),
            (dropout(0.5, true), "f32[n,3]", "error"),
            (dropout(0.5, true), "f32[n,3] i64[1]", "error"),
            (dropout(0.5, false), "f32[n,3] i64[]", "error"),
            (dropout(1.0, false), "f32[3]", "error"),
            (dropout(-0.1, false), "f32[3]", "error"),
            (dropout(f64::NAN, false), "f32[3]", "error"),
            (dropout(0.5, false), "i64[3]", "error"),
            (random(uniform(0.0, 1.0), DType::F32), "i64[]", "f32[n,3]"),
            (random(uniform(1.0, 1.0), DType::F32), "i64[]", "error"),
            (random(normal(1.0), DType::BF16), "i64[]", "bf16[n,3]"),
            (random(normal(-1.0), DType::F32), "i64[]", "error"),
            (random(normal(1.0), DType::I32), "i64[]", "error"),
            (random(normal(1.0), DType::F32), "i32[]", "error"),
        ] {
            assert_eq!(infer(&op, inputs), expected, "{op:?} {inputs}");
        }
    }

    #[test]
    fn symbols_of_a_random_tensor_bind() {
        let random = Random {
            distribution: Distribution::Normal {
                mean: 0.0,
                std: 1.0,
            },
            dtype: DType::F32,
            shape: Shape::new(["n".into(), crate::Dim::from(3)]),
            seed: 1,
        };
        let bound = random.bind(&[(Symbol::new("n"), 5)].into()).unwrap();
        assert_eq!(infer(&bound.unwrap(), "i64[]"), "f32[5,3]");
        assert!(random.bind(&Bindings::new()).unwrap().is_none());
    }
}
