//! Reverse-mode gradients as a graph transform.

pub mod check;

use std::collections::{HashMap, HashSet};

use crate::ops::{Op, Vjp};
use crate::{Error, ErrorKind, GraphBuilder, Result, ResultExt, ValueId};

/// The gradients that [`grad`] added to a graph.
#[derive(Debug, Clone, PartialEq)]
pub struct Gradients {
    by: HashMap<ValueId, ValueId>,
}

impl Gradients {
    /// The gradient of the loss by a value that was asked for.
    ///
    /// # Errors
    /// If it was not asked for.
    pub fn of(&self, value: ValueId) -> Result<ValueId> {
        self.by
            .get(&value)
            .copied()
            .ok_or_else(|| Error::invalid(format!("no gradient by {value:?} was asked for")))
    }
}

/// Adds the nodes that compute the gradients of `loss` (one element) by `wrt`.
///
/// Only what lies between `wrt` and the loss gets backward nodes: a frozen teacher gets none.
/// Gradients of broadcast inputs are summed to the input's shape here, in one place.
///
/// ```
/// use opt_core::{DType, GraphBuilder, Tensor, autodiff::grad};
///
/// # fn main() -> opt_core::Result<()> {
/// let mut b = GraphBuilder::new("square");
/// let w = b.variable("w", Tensor::scalar(3f32))?;
/// let loss = b.mul(w, w)?;
/// let gradients = grad(&mut b, loss, &[w])?;
/// b.output("dw", gradients.of(w)?)?;
/// assert_eq!(b.type_of(gradients.of(w)?).to_string(), "f32[]");
/// # Ok(())
/// # }
/// ```
///
/// # Errors
/// [`ErrorKind::NoGradient`] if the loss does not depend on a value of `wrt`, or an op in between
/// has no gradient (at its node); [`ErrorKind::Shape`] if the loss has not one element.
pub fn grad(b: &mut GraphBuilder, loss: ValueId, wrt: &[ValueId]) -> Result<Gradients> {
    let ty = b.type_of(loss).clone();
    if !ty.dtype.is_float() || ty.shape.size()?.as_fixed() != Some(1) {
        return Err(Error::shape(format!(
            "the loss must be one floating-point number, found {ty}; take its mean first"
        )));
    }
    let nodes: Vec<_> = b.graph().nodes().map(|(_, n)| n.clone()).collect();
    let mut depends: HashSet<ValueId> = wrt.iter().copied().collect();
    for node in &nodes {
        let blocked = matches!(node.op(), Op::StopGradient(_) | Op::Assign(_));
        if !blocked && node.inputs().iter().any(|v| depends.contains(v)) {
            depends.extend(
                node.outputs()
                    .iter()
                    .filter(|&&o| b.type_of(o).dtype.is_float()),
            );
        }
    }
    let mut grads: HashMap<ValueId, ValueId> = HashMap::new();
    let one = b.scalar(ty.dtype, 1.0)?;
    let seed = b.expand(one, ty.shape)?;
    grads.insert(loss, seed);
    for node in nodes.iter().rev() {
        let outputs: Vec<Option<ValueId>> = node
            .outputs()
            .iter()
            .map(|o| grads.get(o).copied().filter(|_| depends.contains(o)))
            .collect();
        let wanted: Vec<bool> = node.inputs().iter().map(|v| depends.contains(v)).collect();
        if outputs.iter().all(Option::is_none) || !wanted.contains(&true) {
            continue;
        }
        let mut cx = Vjp {
            b,
            inputs: node.inputs(),
            outputs: node.outputs(),
            grads: &outputs,
            wanted: &wanted,
        };
        let at = || format!("{} ({})", node.name(), node.op().name());
        let input_grads = node.op().rules().vjp(&mut cx).at(at)?;
        debug_assert_eq!(input_grads.len(), node.inputs().len(), "{}", at());
        for ((&input, gradient), &wanted) in node.inputs().iter().zip(input_grads).zip(&wanted) {
            let Some(gradient) = gradient.filter(|_| wanted) else {
                continue;
            };
            let gradient = sum_to(b, gradient, input).at(at)?;
            let total = match grads.get(&input) {
                Some(&sum) => b.add(sum, gradient)?,
                None => gradient,
            };
            grads.insert(input, total);
        }
    }
    let mut by = HashMap::new();
    for &v in wrt {
        let Some(&g) = grads.get(&v) else {
            let name = b.graph().value(v).name().to_string();
            return Err(Error::new(
                ErrorKind::NoGradient,
                "the loss does not depend on this value (or only through ops without gradient)",
            )
            .at(name));
        };
        by.insert(v, g);
    }
    Ok(Gradients { by })
}

/// Sums a gradient of the broadcast shape to the shape of the value it is the gradient by.
fn sum_to(b: &mut GraphBuilder, gradient: ValueId, value: ValueId) -> Result<ValueId> {
    let (from, to) = (b.type_of(gradient).clone(), b.type_of(value).clone());
    if from == to {
        return Ok(gradient);
    }
    let fail = || {
        Error::shape(format!(
            "a gradient of type {from} for a value of type {to}"
        ))
    };
    if from.dtype != to.dtype {
        return Err(fail());
    }
    let lead = from.rank().checked_sub(to.rank()).ok_or_else(fail)?;
    let axes: Vec<usize> = (0..from.rank())
        .filter(|&a| a < lead || from.shape[a] != to.shape[a - lead])
        .collect();
    if axes
        .iter()
        .any(|&a| a >= lead && to.shape[a - lead].as_fixed() != Some(1))
    {
        return Err(fail());
    }
    let summed = b.sum(gradient, &axes, false)?;
    b.reshape(summed, to.shape)
}
