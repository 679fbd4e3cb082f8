//! The rules of the reductions.

use super::{ArgReduce, CumSum, LogSoftmax, Reduce, ReduceOp, Softmax, TopK};
use crate::ops::elementwise::numeric;
use crate::ops::rules::{arity, axis_in, float, no_gradient};
use crate::ops::{AxisRules, Cost, InputGrads, OpRules, Port, ScatterReduction, Vjp};
use crate::{DType, Dim, Error, GraphBuilder, Result, Shape, TensorType, ValueId};

/// The shape after reducing axes.
fn reduced(shape: &Shape, axes: &[usize], keepdims: bool) -> Shape {
    let dims = shape.dims().iter().enumerate();
    dims.filter_map(|(i, d)| match axes.contains(&i) {
        false => Some(d.clone()),
        true => keepdims.then(|| Dim::from(1)),
    })
    .collect()
}

/// Blocks the given axes of the input (and of outputs that keep them); links all others.
fn block_axes(
    inputs: &[TensorType],
    outputs: &[TensorType],
    axes: &[usize],
    keepdims: bool,
) -> AxisRules {
    let mut rules = AxisRules::new();
    for o in 0..outputs.len() {
        let mut at = 0;
        for axis in 0..inputs[0].rank() {
            let input = (Port::Input(0), axis);
            match axes.contains(&axis) {
                false => rules.same(input, (Port::Output(o), at)),
                true => {
                    rules.block(input);
                    if !keepdims {
                        continue;
                    }
                    rules.block((Port::Output(o), at));
                }
            }
            at += 1;
        }
    }
    rules
}

/// Rules of an op along one axis that keeps the shape.
fn along(axis: usize, inputs: &[TensorType], outputs: &[TensorType]) -> AxisRules {
    block_axes(inputs, outputs, &[axis], true)
}

/// As many elements as the inputs have: a reduction reads each once.
fn reads(inputs: &[TensorType]) -> Result<Cost> {
    Cost::elementwise(inputs)
}

/// A reduced value with its axes back, of size 1.
fn keep(b: &mut GraphBuilder, v: ValueId, axes: &[usize], keepdims: bool) -> Result<ValueId> {
    if keepdims || axes.is_empty() {
        return Ok(v);
    }
    b.unsqueeze(v, axes)
}

impl OpRules for Reduce {
    fn infer(&self, inputs: &[TensorType]) -> Result<Vec<TensorType>> {
        arity(inputs, 1..=1)?;
        let x = &inputs[0];
        numeric(x, "the input")?;
        if self.op == ReduceOp::Mean {
            float(x, "the input of a mean")?;
        }
        for (i, &axis) in self.axes.iter().enumerate() {
            axis_in(axis, x.rank())?;
            if i > 0 && self.axes[i - 1] >= axis {
                return Err(Error::invalid(format!(
                    "axes must ascend without repetition, found {:?}",
                    self.axes
                )));
            }
            if matches!(self.op, ReduceOp::Max | ReduceOp::Min) && x.shape[axis] == Dim::from(0) {
                return Err(Error::shape(format!(
                    "no entries to take the {} of along axis {axis} of {x}",
                    self.op.name()
                )));
            }
        }
        Ok(vec![x.with_shape(reduced(
            &x.shape,
            &self.axes,
            self.keepdims,
        ))])
    }

    fn vjp(&self, cx: &mut Vjp<'_>) -> Result<InputGrads> {
        let g = cx.grad()?;
        let (x, ty) = (cx.inputs[0], cx.input_type(0));
        let b = &mut *cx.b;
        let g = keep(b, g, &self.axes, self.keepdims)?;
        let dx = match self.op {
            ReduceOp::Sum => b.expand(g, ty.shape)?,
            ReduceOp::Mean => {
                let share = divide_by_count(b, g, &ty, &self.axes)?;
                b.expand(share, ty.shape)?
            }
            ReduceOp::Max | ReduceOp::Min => {
                let y = keep(b, cx.outputs[0], &self.axes, self.keepdims)?;
                let wins = b.equal(x, y)?;
                let count = b.cast(wins, ty.dtype)?;
                let count = b.sum(count, &self.axes, true)?;
                let share = b.div(g, count)?;
                let zero = b.scalar_like(x, 0.0)?;
                b.select(wins, share, zero)?
            }
            ReduceOp::Prod => prod_gradient(b, x, g, &self.axes)?,
        };
        Ok(vec![Some(dx)])
    }

    fn axes(&self, inputs: &[TensorType], outputs: &[TensorType]) -> AxisRules {
        // Even a sum is blocked: the activation of a pruned channel need not be 0.
        block_axes(inputs, outputs, &self.axes, self.keepdims)
    }

    fn cost(&self, inputs: &[TensorType], _: &[TensorType]) -> Result<Cost> {
        reads(inputs)
    }
}

/// `g` divided by the number of entries along `axes`; a symbolic number becomes the sum of ones,
/// which a backend folds when it compiles.
fn divide_by_count(
    b: &mut GraphBuilder,
    g: ValueId,
    ty: &TensorType,
    axes: &[usize],
) -> Result<ValueId> {
    let (mut known, mut symbolic) = (1.0, Vec::new());
    for &axis in axes {
        match ty.shape[axis].as_fixed() {
            Some(n) => known *= n as f64,
            None => symbolic.push(ty.shape[axis].clone()),
        }
    }
    let g = b.mul_scalar(g, 1.0 / known)?;
    if symbolic.is_empty() {
        return Ok(g);
    }
    let one = b.scalar_like(g, 1.0)?;
    let ones = b.expand(one, symbolic)?;
    let count = b.sum_all(ones)?;
    b.div(g, count)
}

/// `g` times the product of the other entries, from the product of the non-zero ones and the
/// number of zeros: with one zero only that entry has a gradient, with two none has.
fn prod_gradient(b: &mut GraphBuilder, x: ValueId, g: ValueId, axes: &[usize]) -> Result<ValueId> {
    let (zero, one) = (b.scalar_like(x, 0.0)?, b.scalar_like(x, 1.0)?);
    let dtype = b.type_of(x).dtype;
    let is_zero = b.equal(x, zero)?;
    let nonzero = b.select(is_zero, one, x)?;
    let product = b.reduce(ReduceOp::Prod, nonzero, axes, true)?;
    let zeros = b.cast(is_zero, dtype)?;
    let zeros = b.sum(zeros, axes, true)?;
    let none = b.equal(zeros, zero)?;
    let single = b.equal(zeros, one)?;
    let scaled = b.mul(g, product)?;
    let at_zero = b.select(single, scaled, zero)?;
    let elsewhere = b.select(none, scaled, zero)?;
    let elsewhere = b.div(elsewhere, nonzero)?;
    b.select(is_zero, at_zero, elsewhere)
}

impl OpRules for ArgReduce {
    fn infer(&self, inputs: &[TensorType]) -> Result<Vec<TensorType>> {
        arity(inputs, 1..=1)?;
        let x = &inputs[0];
        numeric(x, "the input")?;
        axis_in(self.axis, x.rank())?;
        if x.shape[self.axis] == Dim::from(0) {
            return Err(Error::shape(format!(
                "no entries along axis {} of {x}",
                self.axis
            )));
        }
        let shape = reduced(&x.shape, &[self.axis], self.keepdims);
        Ok(vec![TensorType::new(DType::I64, shape)])
    }

    fn vjp(&self, _: &mut Vjp<'_>) -> Result<InputGrads> {
        Err(no_gradient("ArgReduce", "its output is an index"))
    }

    fn axes(&self, inputs: &[TensorType], outputs: &[TensorType]) -> AxisRules {
        block_axes(inputs, outputs, &[self.axis], self.keepdims)
    }

    fn cost(&self, inputs: &[TensorType], _: &[TensorType]) -> Result<Cost> {
        reads(inputs)
    }
}

impl OpRules for TopK {
    fn infer(&self, inputs: &[TensorType]) -> Result<Vec<TensorType>> {
        arity(inputs, 1..=1)?;
        let x = &inputs[0];
        numeric(x, "the input")?;
        axis_in(self.axis, x.rank())?;
        if x.shape[self.axis].as_fixed().is_some_and(|n| n < self.k) {
            return Err(Error::shape(format!(
                "{} entries asked for along axis {} of {x}",
                self.k, self.axis
            )));
        }
        let mut shape = x.shape.clone();
        shape.dims_mut()[self.axis] = self.k.into();
        let values = x.with_shape(shape);
        let indices = values.with_dtype(DType::I64);
        Ok(vec![values, indices])
    }

    fn vjp(&self, cx: &mut Vjp<'_>) -> Result<InputGrads> {
        let g = cx.grad()?;
        let zeros = cx.b.full_like(cx.inputs[0], 0.0)?;
        let indices = cx.outputs[1];
        // Adding rather than writing: the indices are distinct, and the gradient of a sum is cheap.
        let dx =
            cx.b.scatter_elements(zeros, indices, g, self.axis, ScatterReduction::Add)?;
        Ok(vec![Some(dx)])
    }

    fn axes(&self, inputs: &[TensorType], outputs: &[TensorType]) -> AxisRules {
        block_axes(inputs, outputs, &[self.axis], true)
    }

    fn cost(&self, inputs: &[TensorType], _: &[TensorType]) -> Result<Cost> {
        reads(inputs)
    }
}

impl OpRules for CumSum {
    fn infer(&self, inputs: &[TensorType]) -> Result<Vec<TensorType>> {
        arity(inputs, 1..=1)?;
        numeric(&inputs[0], "the input")?;
        axis_in(self.axis, inputs[0].rank())?;
        Ok(vec![inputs[0].clone()])
    }

    fn vjp(&self, cx: &mut Vjp<'_>) -> Result<InputGrads> {
        let g = cx.grad()?;
        let back = CumSum {
            reverse: !self.reverse,
            ..self.clone()
        };
        Ok(vec![Some(cx.b.op(back, &[g])?)])
    }

    fn axes(&self, inputs: &[TensorType], outputs: &[TensorType]) -> AxisRules {
        along(self.axis, inputs, outputs)
    }

    fn cost(&self, _: &[TensorType], outputs: &[TensorType]) -> Result<Cost> {
        Cost::elementwise(outputs)
    }
}

/// The type of a softmax, checked.
fn infer_softmax(axis: usize, inputs: &[TensorType]) -> Result<Vec<TensorType>> {
    arity(inputs, 1..=1)?;
    float(&inputs[0], "the input")?;
    axis_in(axis, inputs[0].rank())?;
    Ok(vec![inputs[0].clone()])
}

impl OpRules for Softmax {
    fn infer(&self, inputs: &[TensorType]) -> Result<Vec<TensorType>> {
        infer_softmax(self.axis, inputs)
    }

    fn vjp(&self, cx: &mut Vjp<'_>) -> Result<InputGrads> {
        let g = cx.grad()?;
        let y = cx.outputs[0];
        let weighted = cx.b.mul(g, y)?;
        let mean = cx.b.sum(weighted, &[self.axis], true)?;
        let centred = cx.b.sub(g, mean)?;
        Ok(vec![Some(cx.b.mul(y, centred)?)])
    }

    fn axes(&self, inputs: &[TensorType], outputs: &[TensorType]) -> AxisRules {
        along(self.axis, inputs, outputs)
    }

    fn cost(&self, _: &[TensorType], outputs: &[TensorType]) -> Result<Cost> {
        Cost::elementwise(outputs)
    }
}

impl OpRules for LogSoftmax {
    fn infer(&self, inputs: &[TensorType]) -> Result<Vec<TensorType>> {
        infer_softmax(self.axis, inputs)
    }

    fn vjp(&self, cx: &mut Vjp<'_>) -> Result<InputGrads> {
        let g = cx.grad()?;
        let p = cx.b.exp(cx.outputs[0])?;
        let total = cx.b.sum(g, &[self.axis], true)?;
        let share = cx.b.mul(p, total)?;
        Ok(vec![Some(cx.b.sub(g, share)?)])
    }

    fn axes(&self, inputs: &[TensorType], outputs: &[TensorType]) -> AxisRules {
        along(self.axis, inputs, outputs)
    }

    fn cost(&self, _: &[TensorType], outputs: &[TensorType]) -> Result<Cost> {
        Cost::elementwise(outputs)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::Op;
    use crate::ops::testing::{axes, infer};

    fn reduce(op: ReduceOp, axes: &[usize], keepdims: bool) -> Op {
        Op::from(Reduce {
            op,
            axes: axes.into(),
            keepdims,
        })
    }

    #[test]
    fn types_of_outputs() {
        let arg = |axis, keepdims| {
            Op::from(ArgReduce {
                largest: true,
                axis,
                keepdims,
                last: false,
            })
        };
        let top = |k, axis| {
            Op::from(TopK {
                k,
                axis,
                largest: true,
            })
        };
        let cumsum = |axis| {
            Op::from(CumSum {
                axis,
                exclusive: false,
                reverse: false,
            })
        };
        for (op, input, expected) in [
            (reduce(ReduceOp::Sum, &[1], false), "f32[n,3,4]", "f32[n,4]"),
            (
                reduce(ReduceOp::Sum, &[0, 2], true),
                "i32[n,3,4]",
                "i32[1,3,1]",
            ),
            (reduce(ReduceOp::Sum, &[], false), "f32[]", "f32[]"),
            (reduce(ReduceOp::Sum, &[2], false), "f32[2,3]", "error"),
            (reduce(ReduceOp::Sum, &[1, 0], false), "f32[2,3]", "error"),
            (reduce(ReduceOp::Sum, &[0, 0], false), "f32[2,3]", "error"),
            (reduce(ReduceOp::Sum, &[0], false), "bool[2]", "error"),
            (reduce(ReduceOp::Sum, &[0], false), "i4[2]", "error"),
            (reduce(ReduceOp::Mean, &[0], false), "i64[2]", "error"),
            (reduce(ReduceOp::Mean, &[0], false), "f16[2]", "f16[]"),
            (reduce(ReduceOp::Max, &[0], false), "f32[0,2]", "error"),
            (reduce(ReduceOp::Max, &[1], false), "f32[0,2]", "f32[0]"),
            (arg(1, false), "f32[n,3]", "i64[n]"),
            (arg(1, true), "i8[n,3]", "i64[n,1]"),
            (arg(2, false), "f32[n,3]", "error"),
            (arg(0, false), "f32[0]", "error"),
            (top(2, 1), "f32[n,3]", "f32[n,2] i64[n,2]"),
            (top(4, 1), "f32[n,3]", "error"),
            (top(2, 0), "f32[n,3]", "f32[2,3] i64[2,3]"),
            (cumsum(0), "i64[3]", "i64[3]"),
            (cumsum(1), "i64[3]", "error"),
            (Op::from(Softmax { axis: 1 }), "f32[n,3]", "f32[n,3]"),
            (Op::from(Softmax { axis: 0 }), "f32[]", "error"),
            (Op::from(Softmax { axis: 0 }), "i32[3]", "error"),
            (Op::from(LogSoftmax { axis: 0 }), "f64[3]", "f64[3]"),
            (Op::from(LogSoftmax { axis: 0 }), "f64[3] f64[3]", "error"),
        ] {
            assert_eq!(infer(&op, input), expected, "{op:?} {input}");
        }
    }

    #[test]
    fn reduced_axes_are_blocked_and_the_others_move_up() {
        use Port::{Input, Output};
        let rules = axes(&reduce(ReduceOp::Sum, &[1], false), "f32[2,3,4]");
        let mut expected = AxisRules::new();
        expected.same((Input(0), 0), (Output(0), 0));
        expected.block((Input(0), 1));
        expected.same((Input(0), 2), (Output(0), 1));
        assert_eq!(rules, expected);
        let rules = axes(&reduce(ReduceOp::Mean, &[1], true), "f32[2,3,4]");
        assert_eq!(rules.blocked, [(Input(0), 1), (Output(0), 1)]);
    }

    #[test]
    fn the_gradient_of_a_mean_over_a_symbol_counts_when_compiled() {
        let mut b = GraphBuilder::new("mean");
        let shape = Shape::new([Dim::from("batch"), 3.into()]);
        let x = b.input("x", TensorType::new(DType::F32, shape)).unwrap();
        let loss = b.mean_all(x).unwrap();
        let grads = crate::autodiff::grad(&mut b, loss, &[x]).unwrap();
        assert_eq!(b.type_of(grads.of(x).unwrap()).to_string(), "f32[batch,3]");
        assert!(
            b.graph()
                .nodes()
                .any(|(_, n)| matches!(n.op(), Op::Expand(e) if e.shape.rank() == 1))
        );
    }
}
