//! Transpose.

use std::collections::BTreeSet;

use super::{IN, OUT};
use crate::ops::rules::arity;
use crate::ops::shape::Transpose;
use crate::ops::{AxisRules, Cost, InputGrads, OpRules, Vjp};
use crate::{Error, Result, Shape, TensorType};

/// The inverse of a permutation.
fn inverse(perm: &[usize]) -> Vec<usize> {
    let mut out = vec![0; perm.len()];
    for (i, &p) in perm.iter().enumerate() {
        out[p] = i;
    }
    out
}

impl OpRules for Transpose {
    fn infer(&self, inputs: &[TensorType]) -> Result<Vec<TensorType>> {
        arity(inputs, 1..=1)?;
        let x = &inputs[0];
        let distinct: BTreeSet<usize> = self.perm.iter().copied().collect();
        if self.perm.len() != x.rank() || !distinct.into_iter().eq(0..x.rank()) {
            return Err(Error::invalid(format!(
                "{:?} is no permutation of the axes of {x}",
                self.perm
            )));
        }
        let shape: Shape = self.perm.iter().map(|&p| x.shape[p].clone()).collect();
        Ok(vec![x.with_shape(shape)])
    }

    fn vjp(&self, cx: &mut Vjp<'_>) -> Result<InputGrads> {
        let g = cx.grad()?;
        Ok(vec![Some(cx.b.transpose(g, &inverse(&self.perm))?)])
    }

    fn axes(&self, _: &[TensorType], _: &[TensorType]) -> AxisRules {
        let mut rules = AxisRules::new();
        for (i, &p) in self.perm.iter().enumerate() {
            rules.same((IN, p), (OUT, i));
        }
        rules
    }

    fn cost(&self, _: &[TensorType], outputs: &[TensorType]) -> Result<Cost> {
        Cost::elementwise(outputs)
    }
}
