//! Expand and tile.

use super::{IN, OUT};
use crate::graph::Bindings;
use crate::ops::rules::arity;
use crate::ops::shape::{Expand, Tile};
use crate::ops::{AxisRules, Cost, IndexMap, InputGrads, Op, OpRules, ShrinkCx, Vjp};
use crate::{Dim, Error, Result, Shape, TensorType};

impl OpRules for Expand {
    fn infer(&self, inputs: &[TensorType]) -> Result<Vec<TensorType>> {
        arity(inputs, 1..=1)?;
        let x = &inputs[0];
        if x.shape.broadcast(&self.shape)? != self.shape {
            return Err(Error::shape(format!("cannot expand {x} to {}", self.shape)));
        }
        Ok(vec![x.with_shape(self.shape.clone())])
    }

    fn vjp(&self, cx: &mut Vjp<'_>) -> Result<InputGrads> {
        // The driver sums a broadcast gradient to the input's shape.
        Ok(vec![Some(cx.grad()?)])
    }

    fn axes(&self, inputs: &[TensorType], outputs: &[TensorType]) -> AxisRules {
        let mut rules = AxisRules::broadcast(inputs, outputs);
        let lead = outputs[0].rank() - inputs[0].rank();
        for axis in 0..outputs[0].rank() {
            if axis < lead || inputs[0].shape[axis - lead] != outputs[0].shape[axis] {
                rules.free((OUT, axis));
            }
        }
        rules
    }

    fn cost(&self, _: &[TensorType], outputs: &[TensorType]) -> Result<Cost> {
        Cost::elementwise(outputs)
    }

    fn shrink(&self, cx: &ShrinkCx<'_>) -> Result<Option<Op>> {
        let shape = cx.new_outputs[0].shape.clone();
        Ok(Some(Expand { shape }.into()))
    }

    fn bind(&self, bindings: &Bindings) -> Result<Option<Op>> {
        let shape = self.shape.bind(bindings)?;
        Ok(Some(Expand { shape }.into()))
    }
}

impl OpRules for Tile {
    fn infer(&self, inputs: &[TensorType]) -> Result<Vec<TensorType>> {
        arity(inputs, 1..=1)?;
        let x = &inputs[0];
        if self.repeats.len() != x.rank() {
            return Err(Error::invalid(format!(
                "repeats {:?} needs one entry for each axis of {x}",
                self.repeats
            )));
        }
        let dims = x.shape.dims().iter().zip(&self.repeats);
        let shape: Shape = dims
            .map(|(d, &r)| d.mul(r))
            .collect::<Result<Vec<_>>>()?
            .into();
        Ok(vec![x.with_shape(shape)])
    }

    fn vjp(&self, cx: &mut Vjp<'_>) -> Result<InputGrads> {
        let (mut g, x) = (cx.grad()?, cx.input_type(0).shape);
        let mut split: Vec<Dim> = Vec::new();
        for (d, &r) in x.dims().iter().zip(&self.repeats) {
            split.extend([Dim::from(r), d.clone()]);
        }
        g = cx.b.reshape(g, split)?;
        let axes: Vec<usize> = (0..x.rank()).map(|a| 2 * a).collect();
        Ok(vec![Some(cx.b.sum(g, &axes, false)?)])
    }

    fn axes(&self, inputs: &[TensorType], _: &[TensorType]) -> AxisRules {
        let mut rules = AxisRules::new();
        for axis in 0..inputs[0].rank() {
            if self.repeats[axis] == 1 {
                rules.same((IN, axis), (OUT, axis));
            } else if inputs[0].shape[axis].as_fixed().is_some() {
                rules.link((IN, axis), (OUT, axis), IndexMap::Merge { inner: 1 });
            } else {
                rules.block((IN, axis));
                rules.block((OUT, axis));
            }
        }
        rules
    }

    fn cost(&self, _: &[TensorType], outputs: &[TensorType]) -> Result<Cost> {
        Cost::elementwise(outputs)
    }
}
