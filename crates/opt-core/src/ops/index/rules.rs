//! The rules of gather, scatter and one-hot.

use super::{Gather, GatherElements, GatherGrad, OneHot, ScatterElements, ScatterReduction};
use crate::graph::Bindings;
use crate::ops::rules::{arity, axis_in, no_gradient, same_dtype};
use crate::ops::{AxisRules, Cost, InputGrads, Op, OpRules, Port, Vjp};
use crate::{DType, Dim, Error, Result, Shape, TensorType, ValueId};

fn indices(ty: &TensorType) -> Result<()> {
    if matches!(ty.dtype, DType::I64 | DType::I32) {
        return Ok(());
    }
    Err(Error::dtype(format!(
        "indices must be i64 or i32, found {ty}"
    )))
}

/// `shape` with one axis replaced by the dimensions of another shape.
fn replaced(shape: &Shape, axis: usize, by: &Shape) -> Shape {
    let dims = shape.dims();
    let (before, after) = (&dims[..axis], &dims[axis + 1..]);
    before
        .iter()
        .chain(by.dims())
        .chain(after)
        .cloned()
        .collect()
}

/// Links of a gather between the data (`data`), its indices and the gathered values.
fn gather_axes(
    axis: usize,
    data: (Port, usize),
    index: (Port, usize),
    gathered: Port,
) -> AxisRules {
    let mut rules = AxisRules::new();
    for a in 0..data.1 {
        match a.cmp(&axis) {
            std::cmp::Ordering::Less => rules.same((data.0, a), (gathered, a)),
            std::cmp::Ordering::Equal => rules.block((data.0, a)),
            std::cmp::Ordering::Greater => rules.same((data.0, a), (gathered, a - 1 + index.1)),
        }
    }
    for a in 0..index.1 {
        rules.same((index.0, a), (gathered, axis + a));
    }
    rules
}

impl OpRules for Gather {
    fn infer(&self, inputs: &[TensorType]) -> Result<Vec<TensorType>> {
        arity(inputs, 2..=2)?;
        axis_in(self.axis, inputs[0].rank())?;
        indices(&inputs[1])?;
        let shape = replaced(&inputs[0].shape, self.axis, &inputs[1].shape);
        Ok(vec![inputs[0].with_shape(shape)])
    }

    fn vjp(&self, cx: &mut Vjp<'_>) -> Result<InputGrads> {
        let g = cx.grad()?;
        let op = GatherGrad {
            axis: self.axis,
            size: cx.input_type(0).shape[self.axis].clone(),
        };
        Ok(vec![Some(cx.b.op(op, &[cx.inputs[1], g])?), None])
    }

    fn axes(&self, inputs: &[TensorType], _: &[TensorType]) -> AxisRules {
        let (data, index) = (inputs[0].rank(), inputs[1].rank());
        let ports = (Port::Input(0), Port::Input(1));
        gather_axes(
            self.axis,
            (ports.0, data),
            (ports.1, index),
            Port::Output(0),
        )
    }

    fn cost(&self, _: &[TensorType], outputs: &[TensorType]) -> Result<Cost> {
        Cost::elementwise(outputs)
    }
}

impl OpRules for GatherGrad {
    fn infer(&self, inputs: &[TensorType]) -> Result<Vec<TensorType>> {
        arity(inputs, 2..=2)?;
        let (index, g) = (&inputs[0], &inputs[1]);
        indices(index)?;
        let end = self.axis + index.rank();
        if end > g.rank() || g.shape.dims()[self.axis..end] != *index.shape.dims() {
            return Err(Error::shape(format!(
                "a gradient of {g} for indices {index} on axis {}",
                self.axis
            )));
        }
        let dims = g.shape.dims();
        let shape: Shape = dims[..self.axis]
            .iter()
            .chain([&self.size])
            .chain(&dims[end..])
            .cloned()
            .collect();
        Ok(vec![g.with_shape(shape)])
    }

    fn vjp(&self, cx: &mut Vjp<'_>) -> Result<InputGrads> {
        let g = cx.grad()?;
        Ok(vec![None, Some(cx.b.gather(g, cx.inputs[0], self.axis)?)])
    }

    fn axes(&self, inputs: &[TensorType], outputs: &[TensorType]) -> AxisRules {
        let (data, index) = (outputs[0].rank(), inputs[0].rank());
        let ports = (Port::Output(0), Port::Input(0));
        gather_axes(self.axis, (ports.0, data), (ports.1, index), Port::Input(1))
    }

    fn cost(&self, inputs: &[TensorType], _: &[TensorType]) -> Result<Cost> {
        Cost::elementwise(&inputs[1..])
    }

    fn bind(&self, bindings: &Bindings) -> Result<Option<Op>> {
        let (axis, size) = (self.axis, self.size.bind(bindings)?);
        Ok(Some(GatherGrad { axis, size }.into()))
    }
}

/// Fails unless indices of this shape address entries of data on an axis.
fn addressed(data: &TensorType, index: &TensorType, axis: usize) -> Result<()> {
    axis_in(axis, data.rank())?;
    indices(index)?;
    let fits = index.rank() == data.rank()
        && (0..data.rank()).all(|a| {
            let (d, i) = (&data.shape[a], &index.shape[a]);
            a == axis || d == i || d.as_fixed().zip(i.as_fixed()).is_some_and(|(d, i)| i <= d)
        });
    if fits {
        return Ok(());
    }
    Err(Error::shape(format!(
        "indices {index} do not address {data} along axis {axis}"
    )))
}

/// Axes other than the indexed one link the data (ports `data`) and what has the indices' shape
/// (`index`); axes of other sizes are blocked.
fn element_axes(
    axis: usize,
    data: (&[Port], &TensorType),
    index: (&[Port], &TensorType),
) -> AxisRules {
    let mut rules = AxisRules::new();
    for a in 0..data.1.rank() {
        let linked = a != axis && data.1.shape[a] == index.1.shape[a];
        let ports: Vec<Port> = data.0.iter().chain(index.0).copied().collect();
        for &port in &ports {
            if linked && port != ports[0] {
                rules.same((ports[0], a), (port, a));
            } else if !linked {
                rules.block((port, a));
            }
        }
    }
    rules
}

fn zeros_like(cx: &mut Vjp<'_>, value: ValueId) -> Result<ValueId> {
    let ty = cx.b.type_of(value).clone();
    let zero = cx.b.scalar(ty.dtype, 0.0)?;
    cx.b.expand(zero, ty.shape)
}

impl OpRules for GatherElements {
    fn infer(&self, inputs: &[TensorType]) -> Result<Vec<TensorType>> {
        arity(inputs, 2..=2)?;
        addressed(&inputs[0], &inputs[1], self.axis)?;
        Ok(vec![inputs[0].with_shape(inputs[1].shape.clone())])
    }

    fn vjp(&self, cx: &mut Vjp<'_>) -> Result<InputGrads> {
        let g = cx.grad()?;
        let zeros = zeros_like(cx, cx.inputs[0])?;
        let op = ScatterElements {
            axis: self.axis,
            reduction: ScatterReduction::Add,
        };
        Ok(vec![Some(cx.b.op(op, &[zeros, cx.inputs[1], g])?), None])
    }

    fn axes(&self, inputs: &[TensorType], _: &[TensorType]) -> AxisRules {
        element_axes(
            self.axis,
            (&[Port::Input(0)], &inputs[0]),
            (&[Port::Input(1), Port::Output(0)], &inputs[1]),
        )
    }

    fn cost(&self, _: &[TensorType], outputs: &[TensorType]) -> Result<Cost> {
        Cost::elementwise(outputs)
    }
}

impl OpRules for ScatterElements {
    fn infer(&self, inputs: &[TensorType]) -> Result<Vec<TensorType>> {
        arity(inputs, 3..=3)?;
        addressed(&inputs[0], &inputs[1], self.axis)?;
        same_dtype(&inputs[0], &inputs[2])?;
        if inputs[1].shape != inputs[2].shape {
            return Err(Error::shape(format!(
                "indices {} and updates {} differ in shape",
                inputs[1], inputs[2]
            )));
        }
        Ok(vec![inputs[0].clone()])
    }

    fn vjp(&self, cx: &mut Vjp<'_>) -> Result<InputGrads> {
        let g = cx.grad()?;
        let (index, axis) = (cx.inputs[1], self.axis);
        let replaces = self.reduction == ScatterReduction::None;
        let mut grads = vec![None; 3];
        if cx.wanted[0] {
            grads[0] = Some(if replaces {
                let zeros = zeros_like(cx, cx.inputs[2])?;
                cx.b.scatter_elements(g, index, zeros, axis, ScatterReduction::None)?
            } else {
                g
            });
        }
        if cx.wanted[2] {
            // With repeated indices the forward keeps the last update only, while this gives
            // every one of them the gradient, as PyTorch does.
            grads[2] = Some(cx.b.gather_elements(g, index, axis)?);
        }
        Ok(grads)
    }

    fn axes(&self, inputs: &[TensorType], _: &[TensorType]) -> AxisRules {
        element_axes(
            self.axis,
            (&[Port::Input(0), Port::Output(0)], &inputs[0]),
            (&[Port::Input(1), Port::Input(2)], &inputs[1]),
        )
    }

    fn cost(&self, _: &[TensorType], outputs: &[TensorType]) -> Result<Cost> {
        Cost::elementwise(outputs)
    }
}

impl OpRules for OneHot {
    fn infer(&self, inputs: &[TensorType]) -> Result<Vec<TensorType>> {
        arity(inputs, 1..=1)?;
        indices(&inputs[0])?;
        axis_in(self.axis, inputs[0].rank() + 1)?;
        let mut shape = inputs[0].shape.clone();
        shape.dims_mut().insert(self.axis, Dim::from(self.depth));
        Ok(vec![TensorType::new(self.dtype, shape)])
    }

    fn vjp(&self, _: &mut Vjp<'_>) -> Result<InputGrads> {
        Err(no_gradient("OneHot", "its input is an index"))
    }

    fn axes(&self, inputs: &[TensorType], _: &[TensorType]) -> AxisRules {
        let mut rules = AxisRules::new();
        for a in 0..inputs[0].rank() {
            let out = a + usize::from(a >= self.axis);
            rules.same((Port::Input(0), a), (Port::Output(0), out));
        }
        rules.block((Port::Output(0), self.axis));
        rules
    }

    fn cost(&self, _: &[TensorType], outputs: &[TensorType]) -> Result<Cost> {
        Cost::elementwise(outputs)
    }
}
