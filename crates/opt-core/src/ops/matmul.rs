//! Matrix products.

use super::rules::{arity, same_dtype};
use super::{AxisRules, Cost, InputGrads, OpRules, Port, Vjp};
use crate::{DType, Dim, Error, GraphBuilder, Result, Shape, TensorType, ValueId};

/// The matrix product of the last two axes of two inputs of one dtype and rank at least 2; the
/// axes before broadcast by numpy's rules. `[.., M, K] x [.., K, N] -> [.., M, N]`.
///
/// Floating-point inputs have one dtype; integer inputs `i8` and `u8` (mixed freely) give `i32`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct MatMul {
    /// Whether the last two axes of the first input are swapped first.
    pub trans_a: bool,
    /// Whether the last two axes of the second input are swapped first.
    pub trans_b: bool,
}

impl GraphBuilder {
    /// Matrix product.
    ///
    /// # Errors
    /// If a rank is below 2, or inner or leading dimensions do not agree.
    pub fn matmul(&mut self, a: ValueId, b: ValueId) -> Result<ValueId> {
        self.op(MatMul::default(), &[a, b])
    }

    /// Matrix product with either side transposed.
    ///
    /// # Errors
    /// As [`GraphBuilder::matmul`].
    pub fn matmul_t(
        &mut self,
        a: ValueId,
        b: ValueId,
        trans_a: bool,
        trans_b: bool,
    ) -> Result<ValueId> {
        self.op(MatMul { trans_a, trans_b }, &[a, b])
    }
}

impl MatMul {
    /// The axes M and K of the first input.
    fn axes_a(self, rank: usize) -> (usize, usize) {
        match self.trans_a {
            true => (rank - 1, rank - 2),
            false => (rank - 2, rank - 1),
        }
    }

    /// The axes K and N of the second input.
    fn axes_b(self, rank: usize) -> (usize, usize) {
        match self.trans_b {
            true => (rank - 1, rank - 2),
            false => (rank - 2, rank - 1),
        }
    }

    /// The gradient by the second input where that is one matrix and the first is a stack of
    /// them, as one product over all rows instead of a stack to be summed; `None` where the rows
    /// cannot be merged.
    fn merged_gradient_b(
        self,
        b: &mut GraphBuilder,
        x: ValueId,
        g: ValueId,
    ) -> Result<Option<ValueId>> {
        let Some((x, g)) = merge_rows(b, x)?.zip(merge_rows(b, g)?) else {
            return Ok(None);
        };
        Ok(Some(match self.trans_b {
            true => b.matmul_t(g, x, true, false)?,
            false => b.matmul_t(x, g, true, false)?,
        }))
    }
}

/// `[.., M, K]` as `[rows, K]`; `None` where the number of rows has two symbols.
fn merge_rows(b: &mut GraphBuilder, x: ValueId) -> Result<Option<ValueId>> {
    let dims = b.type_of(x).shape.dims().to_vec();
    let Some((last, rows)) = dims.split_last() else {
        return Ok(None);
    };
    match rows.iter().cloned().collect::<Shape>().size() {
        Ok(rows) => Ok(Some(b.reshape(x, vec![rows, last.clone()])?)),
        Err(_) => Ok(None),
    }
}

impl OpRules for MatMul {
    fn infer(&self, inputs: &[TensorType]) -> Result<Vec<TensorType>> {
        arity(inputs, 2..=2)?;
        let (x, y) = (&inputs[0], &inputs[1]);
        let byte = |t: &TensorType| matches!(t.dtype, DType::I8 | DType::U8);
        let dtype = if byte(x) && byte(y) {
            DType::I32
        } else {
            same_dtype(x, y)?;
            if !x.dtype.is_float() {
                return Err(Error::dtype(format!(
                    "inputs must be floating-point, i8 or u8, found {x} and {y}"
                )));
            }
            x.dtype
        };
        if x.rank() < 2 || y.rank() < 2 {
            return Err(Error::shape(format!(
                "inputs must have rank 2 at least, found {x} and {y}"
            )));
        }
        let ((m, k), (l, n)) = (self.axes_a(x.rank()), self.axes_b(y.rank()));
        if x.shape[k] != y.shape[l] {
            return Err(Error::shape(format!(
                "inner dimensions {} and {} of {x} and {y} differ",
                x.shape[k], y.shape[l]
            )));
        }
        let lead =
            |t: &TensorType| -> Shape { t.shape.dims()[..t.rank() - 2].iter().cloned().collect() };
        let mut shape = lead(x).broadcast(&lead(y))?;
        shape
            .dims_mut()
            .extend([x.shape[m].clone(), y.shape[n].clone()]);
        Ok(vec![TensorType::new(dtype, shape)])
    }

    fn vjp(&self, cx: &mut Vjp<'_>) -> Result<InputGrads> {
        let g = cx.grad()?;
        let (x, y) = (cx.inputs[0], cx.inputs[1]);
        let (tx, ty) = (cx.input_type(0), cx.input_type(1));
        let (ta, tb) = (self.trans_a, self.trans_b);
        let mut grads = vec![None; 2];
        if cx.wanted[0] {
            grads[0] = Some(match ta {
                false => cx.b.matmul_t(g, y, false, !tb)?,
                true => cx.b.matmul_t(y, g, tb, true)?,
            });
        }
        if cx.wanted[1] {
            let merged = match ty.rank() == 2 && tx.rank() > 2 && !ta {
                true => self.merged_gradient_b(cx.b, x, g)?,
                false => None,
            };
            grads[1] = Some(match merged {
                Some(merged) => merged,
                None if tb => cx.b.matmul_t(g, x, true, ta)?,
                None => cx.b.matmul_t(x, g, !ta, false)?,
            });
        }
        Ok(grads)
    }

    fn axes(&self, inputs: &[TensorType], outputs: &[TensorType]) -> AxisRules {
        use Port::{Input, Output};
        let rank = outputs[0].rank();
        let ((m, k), (l, n)) = (self.axes_a(inputs[0].rank()), self.axes_b(inputs[1].rank()));
        let mut rules = AxisRules::new();
        rules.same((Input(0), m), (Output(0), rank - 2));
        rules.same((Input(1), n), (Output(0), rank - 1));
        rules.same((Input(0), k), (Input(1), l));
        for (i, input) in inputs.iter().enumerate() {
            let lead = rank - input.rank();
            for axis in 0..input.rank() - 2 {
                if input.shape[axis] == outputs[0].shape[lead + axis] {
                    rules.same((Input(i), axis), (Output(0), lead + axis));
                } else {
                    rules.free((Input(i), axis));
                }
            }
        }
        rules
    }

    fn cost(&self, inputs: &[TensorType], outputs: &[TensorType]) -> Result<Cost> {
        let (_, k) = self.axes_a(inputs[0].rank());
        let inner: Dim = inputs[0].shape[k].clone();
        Ok(Cost::macs(
            outputs[0].shape.len()?.saturating_mul(inner.fixed()?),
        ))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::Op;
    use crate::ops::testing::{axes, infer, types};

    fn op(trans_a: bool, trans_b: bool) -> Op {
        Op::from(MatMul { trans_a, trans_b })
    }

    #[test]
    fn types_of_outputs() {
        for (op, inputs, expected) in [
            (op(false, false), "f32[n,3] f32[3,4]", "f32[n,4]"),
            (op(true, false), "f32[3,n] f32[3,4]", "f32[n,4]"),
            (op(false, true), "f32[n,3] f32[4,3]", "f32[n,4]"),
            (op(true, true), "f32[3,n] f32[4,3]", "f32[n,4]"),
            (op(false, false), "f32[n,1,2,3] f32[5,3,4]", "f32[n,5,2,4]"),
            (op(false, true), "f32[n,s,3] f32[4,3]", "f32[n,s,4]"),
            (op(false, false), "i8[2,3] u8[3,4]", "i32[2,4]"),
            (op(false, false), "i32[2,3] i32[3,4]", "error"),
            (op(false, false), "i8[2,3] f32[3,4]", "error"),
            (op(false, false), "f32[2,3] f64[3,4]", "error"),
            (op(false, false), "f32[2,3] f32[4,3]", "error"),
            (op(false, false), "f32[2,3] f32[n,3]", "error"),
            (op(false, false), "f32[3] f32[3,4]", "error"),
            (op(false, false), "f32[2,2,3] f32[3,3,4]", "error"),
            (op(false, false), "f32[2,3]", "error"),
        ] {
            assert_eq!(infer(&op, inputs), expected, "{op:?} {inputs}");
        }
    }

    #[test]
    fn the_inner_axes_are_linked_to_each_other() {
        use Port::{Input, Output};
        let rules = axes(&op(false, true), "f32[8,2,3] f32[4,3]");
        let mut expected = AxisRules::new();
        expected.same((Input(0), 1), (Output(0), 1));
        expected.same((Input(1), 0), (Output(0), 2));
        expected.same((Input(0), 2), (Input(1), 1));
        expected.same((Input(0), 0), (Output(0), 0));
        assert_eq!(rules, expected);
        let rules = axes(&op(true, false), "f32[1,3,2] f32[5,3,4]");
        assert!(
            rules
                .links
                .iter()
                .any(|l| l.a == (Input(0), 1) && l.b == (Input(1), 1))
        );
        assert_eq!(rules.free, [(Input(0), 0)]);
    }

    #[test]
    fn multiply_adds() {
        let inputs = types("f32[8,2,3] f32[4,3]");
        let matmul = MatMul {
            trans_a: false,
            trans_b: true,
        };
        let outputs = matmul.infer(&inputs).unwrap();
        assert_eq!(
            matmul.cost(&inputs, &outputs).unwrap(),
            Cost::macs(8 * 2 * 3 * 4)
        );
    }
}
