//! Losses that are ops; the others are a few nodes each and stand in `opt-train`.

use super::rules::{arity, float, of_dtype};
use super::{AxisRules, Cost, InputGrads, OneHot, OpRules, Port, Vjp};
use crate::{DType, Error, GraphBuilder, Result, Shape, TensorType, ValueId};

/// `-log_softmax(x)[label]` along axis 1: inputs are logits `[N, C, ..]` and class indices
/// `[N, ..]` (`i64`), the output `[N, ..]` is one loss an entry. A label out of `0..C` is an
/// error at run time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SoftmaxCrossEntropy;

impl GraphBuilder {
    /// Softmax cross-entropy of each entry; take the mean for a loss.
    ///
    /// # Errors
    /// If the shapes are not those that [`SoftmaxCrossEntropy`] names.
    pub fn softmax_cross_entropy(&mut self, logits: ValueId, labels: ValueId) -> Result<ValueId> {
        self.op(SoftmaxCrossEntropy, &[logits, labels])
    }
}

impl OpRules for SoftmaxCrossEntropy {
    fn infer(&self, inputs: &[TensorType]) -> Result<Vec<TensorType>> {
        arity(inputs, 2..=2)?;
        let (logits, labels) = (&inputs[0], &inputs[1]);
        float(logits, "the logits")?;
        of_dtype(labels, DType::I64, "the labels")?;
        if logits.rank() < 2 {
            return Err(Error::shape(format!(
                "the logits must be [N, C, ..], found {logits}"
            )));
        }
        let dims = logits.shape.dims().iter().enumerate();
        let rest: Shape = dims
            .filter(|(i, _)| *i != 1)
            .map(|(_, d)| d.clone())
            .collect();
        if labels.shape != rest {
            return Err(Error::shape(format!(
                "the labels of logits {logits} must have shape {rest}, found {labels}"
            )));
        }
        Ok(vec![logits.with_shape(rest)])
    }

    fn vjp(&self, cx: &mut Vjp<'_>) -> Result<InputGrads> {
        let g = cx.grad()?;
        let (logits, labels) = (cx.inputs[0], cx.inputs[1]);
        let ty = cx.input_type(0);
        let one_hot = OneHot {
            depth: ty.shape[1].fixed()?,
            axis: 1,
            dtype: ty.dtype,
        };
        let p = cx.b.softmax(logits, 1)?;
        let target = cx.b.op(one_hot, &[labels])?;
        let error = cx.b.sub(p, target)?;
        let g = cx.b.unsqueeze(g, &[1])?;
        Ok(vec![Some(cx.b.mul(error, g)?), None])
    }

    fn axes(&self, inputs: &[TensorType], _: &[TensorType]) -> AxisRules {
        let mut rules = AxisRules::new();
        for axis in (0..inputs[0].rank()).filter(|&a| a != 1) {
            let at = axis.saturating_sub(1);
            rules.same((Port::Input(0), axis), (Port::Input(1), at));
            rules.same((Port::Input(0), axis), (Port::Output(0), at));
        }
        rules.block((Port::Input(0), 1));
        rules
    }

    fn cost(&self, inputs: &[TensorType], _: &[TensorType]) -> Result<Cost> {
        Cost::elementwise(&inputs[..1])
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::Op;
    use crate::ops::testing::{axes, infer};

    #[test]
    fn types_of_outputs() {
        let op = Op::from(SoftmaxCrossEntropy);
        for (inputs, expected) in [
            ("f32[n,10] i64[n]", "f32[n]"),
            ("f64[2,3,4,5] i64[2,4,5]", "f64[2,4,5]"),
            ("f32[n,10] i32[n]", "error"),
            ("f32[n,10] i64[n,10]", "error"),
            ("f32[n,10] i64[m]", "error"),
            ("f32[10] i64[10]", "error"),
            ("i64[n,10] i64[n]", "error"),
            ("f32[n,10]", "error"),
        ] {
            assert_eq!(infer(&op, inputs), expected, "{inputs}");
        }
    }

    #[test]
    fn classes_are_blocked() {
        let rules = axes(&Op::from(SoftmaxCrossEntropy), "f32[2,3,4] i64[2,4]");
        assert_eq!(rules.blocked, [(Port::Input(0), 1)]);
    }
}
