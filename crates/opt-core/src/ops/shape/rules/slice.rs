//! Slice and its gradient.

use std::collections::BTreeSet;

use super::{IN, OUT};
use crate::graph::Bindings;
use crate::ops::rules::{arity, axis_in};
use crate::ops::shape::{Slice, SliceGrad};
use crate::ops::{AxisRules, Cost, IndexMap, InputGrads, Op, OpRules, Port, ShrinkCx, Vjp};
use crate::{Dim, Error, Result, Shape, TensorType};

impl Slice {
    /// Checks the slice against a shape and gives the shape of the part.
    fn part(&self, shape: &Shape) -> Result<Shape> {
        let n = self.axes.len();
        if self.starts.len() != n || self.ends.len() != n || self.steps.len() != n {
            return Err(Error::invalid(
                "a slice needs one start, end and step an axis",
            ));
        }
        let distinct: BTreeSet<_> = self.axes.iter().collect();
        if distinct.len() != n {
            return Err(Error::invalid(format!(
                "the axes {:?} of a slice repeat",
                self.axes
            )));
        }
        let mut out = shape.clone();
        for i in 0..n {
            axis_in(self.axes[i], shape.rank())?;
            let size = shape[self.axes[i]].fixed()? as isize;
            let (start, end, step) = (self.starts[i], self.ends[i], self.steps[i]);
            let fits = match step {
                0 => false,
                s if s > 0 => 0 <= start && start <= end && end <= size,
                _ => -1 <= end && end <= start && start < size,
            };
            if !fits {
                return Err(Error::invalid(format!(
                    "cannot take {start}..{end} by {step} of axis {} of {shape}",
                    self.axes[i]
                )));
            }
            let count = (end - start).unsigned_abs().div_ceil(step.unsigned_abs());
            out.dims_mut()[self.axes[i]] = Dim::from(count);
        }
        Ok(out)
    }

    /// Links the whole (at `whole`) with the part (at `part`).
    fn link(&self, whole: Port, part: Port, rank: usize) -> AxisRules {
        let mut rules = AxisRules::new();
        for axis in 0..rank {
            match self.axes.iter().position(|&a| a == axis) {
                None => rules.same((whole, axis), (part, axis)),
                Some(i) if self.steps[i] == 1 => rules.link(
                    (part, axis),
                    (whole, axis),
                    IndexMap::Offset(self.starts[i] as usize),
                ),
                Some(_) => {
                    rules.block((whole, axis));
                    rules.block((part, axis));
                }
            }
        }
        rules
    }

    /// The slice after entries of the whole were removed; `kept` are the indices kept of an axis.
    fn shrunk(&self, kept: &dyn Fn(usize) -> Option<Vec<usize>>) -> Slice {
        let mut out = self.clone();
        for (i, &axis) in self.axes.iter().enumerate() {
            if let Some(kept) = kept(axis) {
                let before = |end: isize| kept.iter().filter(|&&k| (k as isize) < end).count();
                out.starts[i] = before(self.starts[i]) as isize;
                out.ends[i] = before(self.ends[i]) as isize;
            }
        }
        out
    }
}

impl OpRules for Slice {
    fn infer(&self, inputs: &[TensorType]) -> Result<Vec<TensorType>> {
        arity(inputs, 1..=1)?;
        Ok(vec![inputs[0].with_shape(self.part(&inputs[0].shape)?)])
    }

    fn vjp(&self, cx: &mut Vjp<'_>) -> Result<InputGrads> {
        let (g, shape) = (cx.grad()?, cx.input_type(0).shape);
        let slice = self.clone();
        Ok(vec![Some(cx.b.op(SliceGrad { slice, shape }, &[g])?)])
    }

    fn axes(&self, inputs: &[TensorType], _: &[TensorType]) -> AxisRules {
        self.link(IN, OUT, inputs[0].rank())
    }

    fn cost(&self, _: &[TensorType], outputs: &[TensorType]) -> Result<Cost> {
        Cost::elementwise(outputs)
    }

    fn shrink(&self, cx: &ShrinkCx<'_>) -> Result<Option<Op>> {
        Ok(Some(
            self.shrunk(&|axis| cx.kept.get(&(IN, axis)).cloned())
                .into(),
        ))
    }
}

impl OpRules for SliceGrad {
    fn infer(&self, inputs: &[TensorType]) -> Result<Vec<TensorType>> {
        arity(inputs, 1..=1)?;
        let part = self.slice.part(&self.shape)?;
        if part != inputs[0].shape {
            return Err(Error::shape(format!(
                "the slice of {} has shape {part}, the gradient is {}",
                self.shape, inputs[0]
            )));
        }
        Ok(vec![inputs[0].with_shape(self.shape.clone())])
    }

    fn vjp(&self, cx: &mut Vjp<'_>) -> Result<InputGrads> {
        let g = cx.grad()?;
        Ok(vec![Some(cx.b.op(self.slice.clone(), &[g])?)])
    }

    fn axes(&self, inputs: &[TensorType], _: &[TensorType]) -> AxisRules {
        self.slice.link(OUT, IN, inputs[0].rank())
    }

    fn cost(&self, _: &[TensorType], outputs: &[TensorType]) -> Result<Cost> {
        Cost::elementwise(outputs)
    }

    fn shrink(&self, cx: &ShrinkCx<'_>) -> Result<Option<Op>> {
        let slice = self
            .slice
            .shrunk(&|axis| cx.kept.get(&(OUT, axis)).cloned());
        let shape = cx.new_outputs[0].shape.clone();
        Ok(Some(SliceGrad { slice, shape }.into()))
    }

    fn bind(&self, bindings: &Bindings) -> Result<Option<Op>> {
        let (slice, shape) = (self.slice.clone(), self.shape.bind(bindings)?);
        Ok(Some(SliceGrad { slice, shape }.into()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::DType;

    #[test]
    fn slices_check_their_bounds() {
        let x = TensorType::new(DType::F32, [5]);
        let slice = |start, end, step| Slice {
            axes: smallvec::smallvec![0],
            starts: smallvec::smallvec![start],
            ends: smallvec::smallvec![end],
            steps: smallvec::smallvec![step],
        };
        for (s, size) in [
            ((1, 5, 2), 2),
            ((4, -1, -1), 5),
            ((0, 0, 1), 0),
            ((4, 0, -3), 2),
        ] {
            let ty = slice(s.0, s.1, s.2)
                .infer(std::slice::from_ref(&x))
                .unwrap();
            assert_eq!(ty[0].shape, [size].into(), "{s:?}");
        }
        for s in [(0, 6, 1), (3, 2, 1), (5, -1, -1), (0, 1, 0)] {
            assert!(
                slice(s.0, s.1, s.2)
                    .infer(std::slice::from_ref(&x))
                    .is_err(),
                "{s:?}"
            );
        }
    }
}
