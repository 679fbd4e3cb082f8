//! Values made of sizes: dimensions as data, and counting up to one.

use super::rules::{arity, no_gradient};
use super::{AxisRules, Cost, InputGrads, Op, OpRules, Port, ShrinkCx, Vjp};
use crate::graph::Bindings;
use crate::{DType, Dim, GraphBuilder, Result, Shape, TensorType, ValueId};

/// Sizes as data: no inputs, the output is `i64[n]` with the `n` dimensions. A constant as soon
/// as the symbols are bound. It stands for what ONNX computes from `Shape`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sizes {
    /// The dimensions.
    pub dims: Shape,
}

/// `0, 1, .., len - 1`: no inputs, the output is `i64[len]`. A constant as soon as the symbols
/// are bound. Source: ONNX `Range` from 0 by 1.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Iota {
    /// How many.
    pub len: Dim,
}

impl GraphBuilder {
    /// Sizes as data.
    ///
    /// # Errors
    /// None.
    pub fn sizes(&mut self, dims: impl Into<Shape>) -> Result<ValueId> {
        self.op(Sizes { dims: dims.into() }, &[])
    }

    /// `0, 1, .., len - 1`.
    ///
    /// # Errors
    /// None.
    pub fn iota(&mut self, len: impl Into<Dim>) -> Result<ValueId> {
        self.op(Iota { len: len.into() }, &[])
    }
}

impl OpRules for Sizes {
    fn infer(&self, inputs: &[TensorType]) -> Result<Vec<TensorType>> {
        arity(inputs, 0..=0)?;
        Ok(vec![TensorType::new(DType::I64, [self.dims.rank()])])
    }

    fn vjp(&self, _: &mut Vjp<'_>) -> Result<InputGrads> {
        Err(no_gradient("Sizes", "its output is an integer"))
    }

    fn axes(&self, _: &[TensorType], _: &[TensorType]) -> AxisRules {
        let mut rules = AxisRules::new();
        rules.block((Port::Output(0), 0));
        rules
    }

    fn cost(&self, _: &[TensorType], _: &[TensorType]) -> Result<Cost> {
        Ok(Cost::default())
    }

    fn bind(&self, bindings: &Bindings) -> Result<Option<Op>> {
        let dims = self.dims.bind(bindings)?;
        Ok(Some(Sizes { dims }.into()))
    }
}

impl OpRules for Iota {
    fn infer(&self, inputs: &[TensorType]) -> Result<Vec<TensorType>> {
        arity(inputs, 0..=0)?;
        Ok(vec![TensorType::new(DType::I64, [self.len.clone()])])
    }

    fn vjp(&self, _: &mut Vjp<'_>) -> Result<InputGrads> {
        Err(no_gradient("Iota", "its output is an integer"))
    }

    fn axes(&self, _: &[TensorType], _: &[TensorType]) -> AxisRules {
        let mut rules = AxisRules::new();
        rules.block((Port::Output(0), 0));
        rules
    }

    fn cost(&self, _: &[TensorType], _: &[TensorType]) -> Result<Cost> {
        Ok(Cost::default())
    }

    fn shrink(&self, cx: &ShrinkCx<'_>) -> Result<Option<Op>> {
        let len = cx.new_outputs[0].shape[0].clone();
        Ok(Some(Iota { len }.into()))
    }

    fn bind(&self, bindings: &Bindings) -> Result<Option<Op>> {
        let len = self.len.bind(bindings)?;
        Ok(Some(Iota { len }.into()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::testing::infer;

    #[test]
    fn types_of_outputs() {
        let dims = Shape::new([Dim::from("n"), 3.into()]);
        assert_eq!(infer(&Op::from(Sizes { dims }), ""), "i64[2]");
        assert_eq!(infer(&Op::from(Iota { len: "n".into() }), ""), "i64[n]");
        assert_eq!(infer(&Op::from(Iota { len: 2.into() }), "f32[]"), "error");
    }
}
