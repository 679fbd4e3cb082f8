//! Identity, gradient stop and assignment to variables.

use super::rules::{arity, no_gradient};
use super::{AxisRules, Cost, InputGrads, OpRules, Port, Vjp};
use crate::{Error, GraphBuilder, Result, TensorType, ValueId};

/// The input.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Identity;

/// The input, through which no gradient flows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StopGradient;

/// Gives a variable (first input) the value of the second, of the same type. It takes effect at
/// the end of the run: everything in the run reads the old content. The output is the new value.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Assign;

impl GraphBuilder {
    /// A value through which no gradient flows.
    ///
    /// # Errors
    /// None.
    pub fn stop_gradient(&mut self, x: ValueId) -> Result<ValueId> {
        self.op(StopGradient, &[x])
    }

    /// Assigns to a variable at the end of the run.
    ///
    /// # Errors
    /// If the types differ; that the target is a variable is checked by
    /// [`Graph::verify`](crate::Graph::verify).
    pub fn assign(&mut self, variable: ValueId, value: ValueId) -> Result<ValueId> {
        self.op(Assign, &[variable, value])
    }
}

impl OpRules for Identity {
    fn infer(&self, inputs: &[TensorType]) -> Result<Vec<TensorType>> {
        arity(inputs, 1..=1)?;
        Ok(inputs.to_vec())
    }

    fn vjp(&self, cx: &mut Vjp<'_>) -> Result<InputGrads> {
        Ok(vec![Some(cx.grad()?)])
    }

    fn axes(&self, inputs: &[TensorType], outputs: &[TensorType]) -> AxisRules {
        AxisRules::broadcast(inputs, outputs)
    }

    fn cost(&self, _: &[TensorType], _: &[TensorType]) -> Result<Cost> {
        Ok(Cost::default())
    }
}

impl OpRules for StopGradient {
    fn infer(&self, inputs: &[TensorType]) -> Result<Vec<TensorType>> {
        arity(inputs, 1..=1)?;
        Ok(inputs.to_vec())
    }

    fn vjp(&self, _: &mut Vjp<'_>) -> Result<InputGrads> {
        Ok(vec![None])
    }

    fn axes(&self, inputs: &[TensorType], outputs: &[TensorType]) -> AxisRules {
        AxisRules::broadcast(inputs, outputs)
    }

    fn cost(&self, _: &[TensorType], _: &[TensorType]) -> Result<Cost> {
        Ok(Cost::default())
    }
}

impl OpRules for Assign {
    fn infer(&self, inputs: &[TensorType]) -> Result<Vec<TensorType>> {
        arity(inputs, 2..=2)?;
        if inputs[0] != inputs[1] {
            return Err(Error::shape(format!(
                "a variable of type {} cannot be assigned a value of type {}",
                inputs[0], inputs[1]
            )));
        }
        Ok(vec![inputs[0].clone()])
    }

    fn vjp(&self, _: &mut Vjp<'_>) -> Result<InputGrads> {
        Err(no_gradient("Assign", "it takes effect after the run"))
    }

    fn axes(&self, inputs: &[TensorType], outputs: &[TensorType]) -> AxisRules {
        let mut rules = AxisRules::broadcast(inputs, outputs);
        for axis in 0..inputs[0].rank() {
            rules.same((Port::Input(0), axis), (Port::Input(1), axis));
        }
        rules
    }

    fn cost(&self, _: &[TensorType], _: &[TensorType]) -> Result<Cost> {
        Ok(Cost::default())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::Op;
    use crate::ops::testing::infer;

    #[test]
    fn types_of_outputs() {
        for (op, inputs, expected) in [
            (Op::from(Identity), "u4[n,2]", "u4[n,2]"),
            (Op::from(Identity), "f32[] f32[]", "error"),
            (Op::from(StopGradient), "f32[n]", "f32[n]"),
            (Op::from(Assign), "f32[2,3] f32[2,3]", "f32[2,3]"),
            (Op::from(Assign), "f32[2,3] f32[3]", "error"),
            (Op::from(Assign), "f32[2] f64[2]", "error"),
        ] {
            assert_eq!(infer(&op, inputs), expected, "{op:?} {inputs}");
        }
    }
}
