//! An op of our own: the snake activation.

use std::any::Any;
use std::sync::Arc;

use opt_core::ops::{AxisRules, Cost, CustomOp, InputGrads, Op, OpRules, UnaryOp, Vjp};
use opt_core::{Error, GraphBuilder, Result, Tensor, TensorType, ValueId};

/// `x + sin(a x)^2 / a`, an activation that keeps periodic functions learnable (Liu, Hartwig &
/// Ueda 2020). One floating-point input of any shape; the output has its type.
#[derive(Debug, Clone, PartialEq)]
pub struct Snake {
    /// The frequency `a`, not 0.
    pub frequency: f64,
}

impl Snake {
    /// Adds the op to a graph.
    ///
    /// # Errors
    /// If the input is not floating-point.
    pub fn build(self, b: &mut GraphBuilder, x: ValueId) -> Result<ValueId> {
        b.op(Op::Custom(Arc::new(self)), &[x])
    }
}

impl OpRules for Snake {
    fn infer(&self, inputs: &[TensorType]) -> Result<Vec<TensorType>> {
        match inputs {
            [x] if x.dtype.is_float() => Ok(vec![x.clone()]),
            _ => Err(Error::dtype(format!(
                "snake takes one floating-point input, found {inputs:?}"
            ))),
        }
    }

    /// `1 + sin(2 a x)`.
    fn vjp(&self, cx: &mut Vjp<'_>) -> Result<InputGrads> {
        let grad = cx.grad()?;
        let angle = cx.b.mul_scalar(cx.inputs[0], 2.0 * self.frequency)?;
        let sine = cx.b.unary(UnaryOp::Sin, angle)?;
        let slope = cx.b.add_scalar(sine, 1.0)?;
        Ok(vec![Some(cx.b.mul(grad, slope)?)])
    }

    fn axes(&self, inputs: &[TensorType], outputs: &[TensorType]) -> AxisRules {
        AxisRules::broadcast(inputs, outputs)
    }

    fn cost(&self, _: &[TensorType], outputs: &[TensorType]) -> Result<Cost> {
        Cost::elementwise(outputs)
    }
}

impl CustomOp for Snake {
    fn name(&self) -> &str {
        "custom_pass.Snake"
    }

    fn eval(&self, inputs: &[Tensor]) -> Result<Vec<Tensor>> {
        let x = &inputs[0];
        let y: Vec<f64> = x
            .to_f64s()
            .into_iter()
            .map(|x| x + (self.frequency * x).sin().powi(2) / self.frequency)
            .collect();
        Ok(vec![Tensor::from_f64s(x.dtype(), x.shape(), &y)?])
    }

    fn is_same(&self, other: &dyn CustomOp) -> bool {
        other.as_any().downcast_ref::<Snake>() == Some(self)
    }

    fn as_any(&self) -> &dyn Any {
        self
    }
}
