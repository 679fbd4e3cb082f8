//! The rules of LSTM and GRU.

use super::{Gru, GruGrad, Lstm, LstmGrad};
use crate::ops::rules::{arity, float, no_gradient, same_dtype};
use crate::ops::{AxisRules, Cost, Direction, InputGrads, OpRules, Port, Vjp};
use crate::{Dim, Error, Result, Shape, TensorType};

/// Input and output shapes that LSTM and GRU share, for a number of gates and of states.
struct Layout {
    gates: usize,
    states: usize,
    hidden: usize,
    direction: Direction,
    initial: bool,
}

impl Layout {
    fn infer(&self, inputs: &[TensorType]) -> Result<Vec<TensorType>> {
        let count = if self.initial { 4 + self.states } else { 4 };
        arity(inputs, count..=count)?;
        let x = &inputs[0];
        float(x, "the input")?;
        if x.rank() != 3 || self.hidden == 0 {
            return Err(Error::shape(format!(
                "the input must be [T, N, I] and the hidden width at least 1, found {x} and {}",
                self.hidden
            )));
        }
        let (t, n, i) = (x.shape[0].clone(), x.shape[1].clone(), x.shape[2].clone());
        let (d, h) = (Dim::from(self.direction.count()), Dim::from(self.hidden));
        let rows = h.mul(self.gates)?;
        let state: Shape = vec![d.clone(), n.clone(), h.clone()].into();
        let mut expected: Vec<(&str, Shape)> = vec![
            ("weight", vec![d.clone(), rows.clone(), i].into()),
            (
                "recurrent weight",
                vec![d.clone(), rows.clone(), h.clone()].into(),
            ),
            ("bias", vec![d.clone(), rows.mul(2)?].into()),
        ];
        if self.initial {
            expected.extend(vec![("initial state", state.clone()); self.states]);
        }
        for (ty, (what, shape)) in inputs[1..].iter().zip(expected) {
            same_dtype(x, ty)?;
            if ty.shape != shape {
                return Err(Error::shape(format!(
                    "the {what} must be {shape}, found {ty}"
                )));
            }
        }
        let mut outputs = vec![x.with_shape(vec![t, d, n, h])];
        outputs.extend(vec![x.with_shape(state); self.states]);
        Ok(outputs)
    }

    /// Only the batch and the input width may shrink; the hidden width is in all gates at once.
    fn axes(&self, inputs: &[TensorType], outputs: &[TensorType]) -> AxisRules {
        let mut rules = AxisRules::blocked(inputs, outputs);
        let x = Port::Input(0);
        let width = (Port::Input(1), 2);
        rules
            .blocked
            .retain(|&a| a != (x, 2) && a != width && a != (x, 1));
        rules.same((x, 2), width);
        rules.block((x, 1));
        rules
    }

    fn cost(&self, inputs: &[TensorType]) -> Result<Cost> {
        let x = inputs[0].shape.fixed()?;
        let rows = self.direction.count() * self.gates * self.hidden;
        Ok(Cost::macs(x[0] * x[1] * rows * (x[2] + self.hidden)))
    }

    fn vjp(&self, cx: &mut Vjp<'_>, op: crate::Op) -> Result<InputGrads> {
        let mut inputs = cx.inputs.to_vec();
        for (i, &out) in cx.outputs.iter().enumerate() {
            inputs.push(match cx.grads[i] {
                Some(g) => g,
                None => {
                    let ty = cx.b.type_of(out).clone();
                    let zero = cx.b.scalar(ty.dtype, 0.0)?;
                    cx.b.expand(zero, ty.shape)?
                }
            });
        }
        Ok(cx.b.node(op, &inputs)?.into_iter().map(Some).collect())
    }

    /// The types of a gradient op: inputs, then gradients by the outputs.
    fn infer_grad(&self, inputs: &[TensorType]) -> Result<Vec<TensorType>> {
        let outputs = 1 + self.states;
        let split = inputs.len().saturating_sub(outputs);
        let (forward, grads) = inputs.split_at(split);
        let types = self.infer(forward)?;
        if types != grads {
            return Err(Error::shape(format!(
                "the outputs are {types:?}, the gradients {grads:?}"
            )));
        }
        Ok(forward.to_vec())
    }
}

impl Lstm {
    fn layout(&self) -> Layout {
        Layout {
            gates: 4,
            states: 2,
            hidden: self.hidden,
            direction: self.direction,
            initial: self.initial,
        }
    }
}

impl Gru {
    fn layout(&self) -> Layout {
        Layout {
            gates: 3,
            states: 1,
            hidden: self.hidden,
            direction: self.direction,
            initial: self.initial,
        }
    }
}

macro_rules! forward_rules {
    ($op:ident, $grad:ident, $field:ident) => {
        impl OpRules for $op {
            fn infer(&self, inputs: &[TensorType]) -> Result<Vec<TensorType>> {
                self.layout().infer(inputs)
            }

            fn vjp(&self, cx: &mut Vjp<'_>) -> Result<InputGrads> {
                let op = $grad {
                    $field: self.clone(),
                };
                self.layout().vjp(cx, op.into())
            }

            fn axes(&self, inputs: &[TensorType], outputs: &[TensorType]) -> AxisRules {
                self.layout().axes(inputs, outputs)
            }

            fn cost(&self, inputs: &[TensorType], _: &[TensorType]) -> Result<Cost> {
                self.layout().cost(inputs)
            }
        }

        impl OpRules for $grad {
            fn infer(&self, inputs: &[TensorType]) -> Result<Vec<TensorType>> {
                self.$field.layout().infer_grad(inputs)
            }

            fn vjp(&self, _: &mut Vjp<'_>) -> Result<InputGrads> {
                Err(no_gradient(
                    stringify!($grad),
                    "second derivatives of recurrent ops are not supported",
                ))
            }

            fn axes(&self, inputs: &[TensorType], outputs: &[TensorType]) -> AxisRules {
                AxisRules::blocked(inputs, outputs)
            }

            fn cost(&self, inputs: &[TensorType], _: &[TensorType]) -> Result<Cost> {
                let forward = self.$field.layout().cost(inputs)?;
                Ok(Cost {
                    macs: 3 * forward.macs,
                    elements: 0,
                })
            }
        }
    };
}

forward_rules!(Lstm, LstmGrad, lstm);
forward_rules!(Gru, GruGrad, gru);

#[cfg(test)]
mod tests {
    use super::*;
    use crate::DType;

    #[test]
    fn shapes_follow_onnx() {
        let f = |s: &[usize]| TensorType::new(DType::F32, s);
        let lstm = Lstm {
            hidden: 3,
            direction: Direction::Bidirectional,
            initial: false,
        };
        let inputs = [f(&[7, 2, 5]), f(&[2, 12, 5]), f(&[2, 12, 3]), f(&[2, 24])];
        let out = lstm.infer(&inputs).unwrap();
        assert_eq!(out, [f(&[7, 2, 2, 3]), f(&[2, 2, 3]), f(&[2, 2, 3])]);
        lstm.axes(&inputs, &out).check(&inputs, &out).unwrap();
        let with_grads = [&inputs[..], &out].concat();
        let grad = LstmGrad { lstm };
        assert_eq!(grad.infer(&with_grads).unwrap(), inputs);
        let gru = Gru {
            hidden: 3,
            direction: Direction::Forward,
            initial: true,
            linear_before_reset: true,
        };
        let inputs = [
            f(&[7, 2, 5]),
            f(&[1, 9, 5]),
            f(&[1, 9, 3]),
            f(&[1, 18]),
            f(&[1, 2, 3]),
        ];
        assert_eq!(gru.infer(&inputs).unwrap().len(), 2);
        assert!(gru.infer(&inputs[..4]).is_err());
    }
}
