//! Concat and split.

use super::{IN, OUT};
use crate::ops::rules::{arity, axis_in, same_dtype};
use crate::ops::shape::{Concat, Split};
use crate::ops::{AxisRules, Cost, IndexMap, InputGrads, Op, OpRules, Port, ShrinkCx, Vjp};
use crate::{Dim, Error, Result, TensorType};

impl OpRules for Concat {
    fn infer(&self, inputs: &[TensorType]) -> Result<Vec<TensorType>> {
        arity(inputs, 1..=usize::MAX)?;
        let first = &inputs[0];
        axis_in(self.axis, first.rank())?;
        let mut total = Dim::from(0);
        for ty in inputs {
            same_dtype(first, ty)?;
            let agrees = ty.rank() == first.rank()
                && (0..first.rank()).all(|a| a == self.axis || ty.shape[a] == first.shape[a]);
            if !agrees {
                return Err(Error::shape(format!(
                    "cannot concatenate {first} and {ty} along axis {}",
                    self.axis
                )));
            }
            total = total.plus(&ty.shape[self.axis])?;
        }
        let mut shape = first.shape.clone();
        shape.dims_mut()[self.axis] = total;
        Ok(vec![first.with_shape(shape)])
    }

    fn vjp(&self, cx: &mut Vjp<'_>) -> Result<InputGrads> {
        let g = cx.grad()?;
        let sizes = (0..cx.inputs.len())
            .map(|i| cx.input_type(i).shape[self.axis].fixed())
            .collect::<Result<Vec<_>>>()?;
        let parts = cx.b.split(g, self.axis, &sizes)?;
        Ok(parts.into_iter().map(Some).collect())
    }

    fn axes(&self, inputs: &[TensorType], outputs: &[TensorType]) -> AxisRules {
        let mut rules = AxisRules::new();
        let mut at = Some(0);
        for (i, ty) in inputs.iter().enumerate() {
            for axis in 0..ty.rank() {
                let (a, b) = ((Port::Input(i), axis), (OUT, axis));
                match at {
                    _ if axis != self.axis => rules.same(a, b),
                    Some(offset) => rules.link(a, b, IndexMap::Offset(offset)),
                    None => {
                        rules.block(a);
                        rules.block(b);
                    }
                }
            }
            at = at.zip(ty.shape[self.axis].as_fixed()).map(|(a, n)| a + n);
        }
        if outputs[0].shape[self.axis].as_fixed().is_none() {
            rules.block((OUT, self.axis));
        }
        rules
    }

    fn cost(&self, _: &[TensorType], outputs: &[TensorType]) -> Result<Cost> {
        Cost::elementwise(outputs)
    }
}

impl OpRules for Split {
    fn infer(&self, inputs: &[TensorType]) -> Result<Vec<TensorType>> {
        arity(inputs, 1..=1)?;
        let x = &inputs[0];
        axis_in(self.axis, x.rank())?;
        let total = self
            .sizes
            .iter()
            .try_fold(0usize, |sum, &n| sum.checked_add(n));
        if self.sizes.is_empty() || total != Some(x.shape[self.axis].fixed()?) {
            return Err(Error::shape(format!(
                "the parts {:?} do not add up to axis {} of {x}",
                self.sizes, self.axis
            )));
        }
        let part = |&size: &usize| {
            let mut shape = x.shape.clone();
            shape.dims_mut()[self.axis] = Dim::from(size);
            x.with_shape(shape)
        };
        Ok(self.sizes.iter().map(part).collect())
    }

    fn vjp(&self, cx: &mut Vjp<'_>) -> Result<InputGrads> {
        let mut parts = Vec::with_capacity(cx.outputs.len());
        for (i, &out) in cx.outputs.iter().enumerate() {
            parts.push(match cx.grads[i] {
                Some(g) => g,
                None => {
                    let ty = cx.b.type_of(out).clone();
                    let zero = cx.b.scalar(ty.dtype, 0.0)?;
                    cx.b.expand(zero, ty.shape)?
                }
            });
        }
        Ok(vec![Some(cx.b.concat(&parts, self.axis)?)])
    }

    fn axes(&self, inputs: &[TensorType], _: &[TensorType]) -> AxisRules {
        let mut rules = AxisRules::new();
        let mut at = 0;
        for (o, &size) in self.sizes.iter().enumerate() {
            for axis in 0..inputs[0].rank() {
                let part = (Port::Output(o), axis);
                if axis == self.axis {
                    rules.link(part, (IN, axis), IndexMap::Offset(at));
                } else {
                    rules.same(part, (IN, axis));
                }
            }
            at += size;
        }
        rules
    }

    fn cost(&self, _: &[TensorType], outputs: &[TensorType]) -> Result<Cost> {
        Cost::elementwise(outputs)
    }

    fn shrink(&self, cx: &ShrinkCx<'_>) -> Result<Option<Op>> {
        let sizes = cx
            .new_outputs
            .iter()
            .map(|t| t.shape[self.axis].fixed())
            .collect::<Result<_>>()?;
        Ok(Some(
            Split {
                axis: self.axis,
                sizes,
            }
            .into(),
        ))
    }
}
