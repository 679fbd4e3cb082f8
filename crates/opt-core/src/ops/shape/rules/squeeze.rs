//! Squeeze and unsqueeze.

use super::{IN, OUT};
use crate::ops::rules::arity;
use crate::ops::shape::{Squeeze, Unsqueeze};
use crate::ops::{AxisRules, Cost, InputGrads, OpRules, Port, Vjp};
use crate::{Dim, Error, Result, Shape, TensorType};

/// Links the axes of a full shape with those that remain without some of size 1.
fn link_without(axes: &[usize], full: Port, rank: usize, less: Port) -> AxisRules {
    let mut rules = AxisRules::new();
    let mut at = 0;
    for axis in 0..rank {
        if axes.contains(&axis) {
            rules.block((full, axis));
        } else {
            rules.same((full, axis), (less, at));
            at += 1;
        }
    }
    rules
}

fn ascending(axes: &[usize], rank: usize) -> Result<()> {
    if axes.windows(2).all(|w| w[0] < w[1]) && axes.iter().all(|&a| a < rank) {
        return Ok(());
    }
    Err(Error::invalid(format!(
        "axes {axes:?} must ascend and be below {rank}"
    )))
}

impl OpRules for Squeeze {
    fn infer(&self, inputs: &[TensorType]) -> Result<Vec<TensorType>> {
        arity(inputs, 1..=1)?;
        let x = &inputs[0];
        ascending(&self.axes, x.rank())?;
        if let Some(&axis) = self.axes.iter().find(|&&a| x.shape[a] != Dim::from(1)) {
            return Err(Error::shape(format!(
                "cannot squeeze axis {axis} of {x}: its size is not 1"
            )));
        }
        let kept = (0..x.rank()).filter(|a| !self.axes.contains(a));
        let shape: Shape = kept.map(|a| x.shape[a].clone()).collect();
        Ok(vec![x.with_shape(shape)])
    }

    fn vjp(&self, cx: &mut Vjp<'_>) -> Result<InputGrads> {
        let g = cx.grad()?;
        Ok(vec![Some(cx.b.unsqueeze(g, &self.axes)?)])
    }

    fn axes(&self, inputs: &[TensorType], _: &[TensorType]) -> AxisRules {
        link_without(&self.axes, IN, inputs[0].rank(), OUT)
    }

    fn cost(&self, _: &[TensorType], _: &[TensorType]) -> Result<Cost> {
        Ok(Cost::default())
    }
}

impl OpRules for Unsqueeze {
    fn infer(&self, inputs: &[TensorType]) -> Result<Vec<TensorType>> {
        arity(inputs, 1..=1)?;
        let x = &inputs[0];
        let rank = x.rank() + self.axes.len();
        ascending(&self.axes, rank)?;
        let mut rest = x.shape.dims().iter();
        let shape: Shape = (0..rank)
            .map(|axis| match self.axes.contains(&axis) {
                true => Dim::from(1),
                false => rest.next().cloned().unwrap_or(Dim::from(1)),
            })
            .collect();
        Ok(vec![x.with_shape(shape)])
    }

    fn vjp(&self, cx: &mut Vjp<'_>) -> Result<InputGrads> {
        let g = cx.grad()?;
        Ok(vec![Some(cx.b.squeeze(g, &self.axes)?)])
    }

    fn axes(&self, _: &[TensorType], outputs: &[TensorType]) -> AxisRules {
        link_without(&self.axes, OUT, outputs[0].rank(), IN)
    }

    fn cost(&self, _: &[TensorType], _: &[TensorType]) -> Result<Cost> {
        Ok(Cost::default())
    }
}
