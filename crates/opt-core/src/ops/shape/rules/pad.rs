//! Pad and its gradient.

use super::{IN, OUT};
use crate::ops::rules::arity;
use crate::ops::shape::{Pad, PadGrad, PadMode, Slice};
use crate::ops::{AxisRules, Cost, InputGrads, OpRules, Port, Vjp};
use crate::{Error, Result, Shape, TensorType};

impl Pad {
    fn padded(&self, shape: &Shape) -> Result<Shape> {
        if self.begin.len() != shape.rank() || self.end.len() != shape.rank() {
            return Err(Error::invalid(format!(
                "padding {:?} and {:?} needs one entry for each axis of {shape}",
                self.begin, self.end
            )));
        }
        let mut out = shape.clone();
        for axis in 0..shape.rank() {
            let (begin, end) = (self.begin[axis], self.end[axis]);
            if begin == 0 && end == 0 {
                continue;
            }
            let longest = match self.mode {
                PadMode::Constant(_) => usize::MAX,
                PadMode::Reflect => shape[axis].fixed()?.saturating_sub(1),
                PadMode::Edge if shape[axis].fixed()? == 0 => 0,
                PadMode::Edge => usize::MAX,
            };
            if begin.max(end) > longest {
                return Err(Error::invalid(format!(
                    "padding of {begin} and {end} by {:?} is too long for axis {axis} of {shape}",
                    self.mode
                )));
            }
            let more = isize::try_from(begin)
                .ok()
                .zip(isize::try_from(end).ok())
                .and_then(|(b, e)| b.checked_add(e))
                .ok_or_else(|| Error::invalid("padding is too large"))?;
            out.dims_mut()[axis] = shape[axis].add(more)?;
        }
        Ok(out)
    }

    fn link(&self, inner: Port, padded: Port) -> AxisRules {
        let mut rules = AxisRules::new();
        for axis in 0..self.begin.len() {
            if self.begin[axis] == 0 && self.end[axis] == 0 {
                rules.same((inner, axis), (padded, axis));
            } else {
                rules.block((inner, axis));
                rules.block((padded, axis));
            }
        }
        rules
    }
}

impl OpRules for Pad {
    fn infer(&self, inputs: &[TensorType]) -> Result<Vec<TensorType>> {
        arity(inputs, 1..=1)?;
        Ok(vec![inputs[0].with_shape(self.padded(&inputs[0].shape)?)])
    }

    fn vjp(&self, cx: &mut Vjp<'_>) -> Result<InputGrads> {
        let g = cx.grad()?;
        if !matches!(self.mode, PadMode::Constant(_)) {
            let pad = self.clone();
            return Ok(vec![Some(cx.b.op(PadGrad { pad }, &[g])?)]);
        }
        let shape = cx.input_type(0).shape;
        let padded = (0..shape.rank()).filter(|&a| self.begin[a] + self.end[a] > 0);
        let mut slice = Slice {
            axes: padded.collect(),
            starts: Default::default(),
            ends: Default::default(),
            steps: Default::default(),
        };
        for &axis in &slice.axes.clone() {
            slice.starts.push(self.begin[axis] as isize);
            let end = self.begin[axis] + shape[axis].fixed()?;
            slice.ends.push(end as isize);
            slice.steps.push(1);
        }
        Ok(vec![Some(cx.b.op(slice, &[g])?)])
    }

    fn axes(&self, _: &[TensorType], _: &[TensorType]) -> AxisRules {
        self.link(IN, OUT)
    }

    fn cost(&self, _: &[TensorType], outputs: &[TensorType]) -> Result<Cost> {
        Cost::elementwise(outputs)
    }
}

impl OpRules for PadGrad {
    fn infer(&self, inputs: &[TensorType]) -> Result<Vec<TensorType>> {
        arity(inputs, 1..=1)?;
        let ty = &inputs[0];
        if self.pad.begin.len() != ty.rank() || self.pad.end.len() != ty.rank() {
            return Err(Error::invalid(format!(
                "padding {:?} needs one entry for each axis of {ty}",
                self.pad.begin
            )));
        }
        let mut shape = ty.shape.clone();
        for axis in 0..ty.rank() {
            let less = self.pad.begin[axis] + self.pad.end[axis];
            if less > 0 {
                shape.dims_mut()[axis] = ty.shape[axis].add(-(less as isize))?;
            }
        }
        self.pad.padded(&shape)?;
        Ok(vec![ty.with_shape(shape)])
    }

    fn vjp(&self, cx: &mut Vjp<'_>) -> Result<InputGrads> {
        let g = cx.grad()?;
        Ok(vec![Some(cx.b.op(self.pad.clone(), &[g])?)])
    }

    fn axes(&self, _: &[TensorType], _: &[TensorType]) -> AxisRules {
        self.pad.link(OUT, IN)
    }

    fn cost(&self, inputs: &[TensorType], _: &[TensorType]) -> Result<Cost> {
        Cost::elementwise(inputs)
    }
}
