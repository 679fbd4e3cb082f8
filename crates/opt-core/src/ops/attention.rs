//! Scaled dot-product attention.

use super::rules::{arity, float, same_dtype};
use super::{AxisRules, Cost, InputGrads, OpRules, Port, Vjp};
use crate::{DType, Error, GraphBuilder, Result, Shape, Tensor, TensorType, ValueId};

/// `softmax(scale * Q K^T + mask) V` over the last two axes (Vaswani et al. 2017): q
/// `[.., L, E]`, k `[.., S, E]`, v `[.., S, V]`, optional mask that broadcasts to `[.., L, S]`
/// (of q's dtype: added; boolean: false entries are left out), output `[.., L, V]`. Leading axes
/// (batch, heads) are equal.
///
/// The gradient by 16-bit floats is computed in `f32` and rounded at the end.
///
/// A query that sees no key (all left out, or all scores negative infinity) gives zeros, and
/// gradients of zero, as in PyTorch.
#[derive(Debug, Clone, PartialEq)]
pub struct Attention {
    /// Factor of the scores; `None` is `1 / sqrt(E)`.
    pub scale: Option<f64>,
    /// Whether query `i` sees only keys `0..=i`; that is the upper left triangle where L and S
    /// differ (PyTorch's `is_causal`).
    pub causal: bool,
}

impl GraphBuilder {
    /// Scaled dot-product attention with the default scale.
    ///
    /// # Errors
    /// If the shapes are not those that [`Attention`] names.
    pub fn attention(
        &mut self,
        q: ValueId,
        k: ValueId,
        v: ValueId,
        mask: Option<ValueId>,
        causal: bool,
    ) -> Result<ValueId> {
        let mut inputs = vec![q, k, v];
        inputs.extend(mask);
        self.op(
            Attention {
                scale: None,
                causal,
            },
            &inputs,
        )
    }
}

impl Attention {
    /// The factor of the scores for a width E.
    ///
    /// # Errors
    /// If the default is asked for and E is symbolic.
    pub fn scale_for(&self, query: &TensorType) -> Result<f64> {
        match (self.scale, query.shape.dims().last()) {
            (Some(scale), _) => Ok(scale),
            (None, Some(width)) => Ok(1.0 / (width.fixed()?.max(1) as f64).sqrt()),
            (None, None) => Err(Error::shape("a query of rank 0")),
        }
    }
}

/// The shape of the scores, `[.., L, S]`.
fn scores_shape(inputs: &[TensorType]) -> Shape {
    let (q, k) = (&inputs[0], &inputs[1]);
    let mut shape = q.shape.clone();
    shape.dims_mut()[q.rank() - 1] = k.shape[k.rank() - 2].clone();
    shape
}

/// The lowest finite number of a dtype.
fn lowest(dtype: DType) -> f64 {
    match dtype {
        DType::F16 => f64::from(half::f16::MIN),
        DType::BF16 => f64::from(half::bf16::MIN),
        DType::F32 => f64::from(f32::MIN),
        _ => f64::MIN,
    }
}

/// `[L, S]`, true where the key's position is not after the query's.
fn causal(b: &mut GraphBuilder, scores: &Shape) -> Result<ValueId> {
    let rank = scores.rank();
    let mut positions = |axis: usize| -> Result<ValueId> {
        let mut shape = Shape::from([1, 1]);
        let size = scores[rank - 2 + axis].clone();
        shape.dims_mut()[axis] = size.clone();
        if let Some(n) = size.as_fixed() {
            let counts: Vec<i64> = (0..n as i64).collect();
            return Ok(b.constant(Tensor::new(shape.fixed()?, counts)?));
        }
        // A running sum of ones counts to a size that is known only when compiled.
        let one = b.scalar(DType::I64, 1.0)?;
        let ones = b.expand(one, shape)?;
        let op = super::CumSum {
            axis,
            exclusive: true,
            reverse: false,
        };
        b.op(op, &[ones])
    };
    let (rows, columns) = (positions(0)?, positions(1)?);
    b.greater_or_equal(rows, columns)
}

impl OpRules for Attention {
    fn infer(&self, inputs: &[TensorType]) -> Result<Vec<TensorType>> {
        arity(inputs, 3..=4)?;
        let (q, k, v) = (&inputs[0], &inputs[1], &inputs[2]);
        float(q, "the query")?;
        same_dtype(q, k)?;
        same_dtype(q, v)?;
        let rank = q.rank();
        let bad = |what: &str| {
            Err(Error::shape(format!(
                "{what}, found query {q}, key {k}, value {v}"
            )))
        };
        if rank < 2 || k.rank() != rank || v.rank() != rank {
            return bad("query, key and value must have one rank of 2 at least");
        }
        let lead = |t: &TensorType| t.shape.dims()[..rank - 2].to_vec();
        if lead(q) != lead(k) || lead(q) != lead(v) {
            return bad("leading dimensions must be equal");
        }
        if q.shape[rank - 1] != k.shape[rank - 1] {
            return bad("query and key must have one width");
        }
        if k.shape[rank - 2] != v.shape[rank - 2] {
            return bad("key and value must have one length");
        }
        if self.scale.is_some_and(|s| !s.is_finite()) {
            return Err(Error::invalid(format!(
                "the scale must be finite, found {:?}",
                self.scale
            )));
        }
        if let Some(mask) = inputs.get(3) {
            if mask.dtype != DType::Bool {
                same_dtype(q, mask)?;
            }
            let scores = scores_shape(inputs);
            if mask.shape.broadcast(&scores)? != scores {
                return Err(Error::shape(format!(
                    "the mask must broadcast to {scores}, found {mask}"
                )));
            }
        }
        let mut shape = q.shape.clone();
        shape.dims_mut()[rank - 1] = v.shape[rank - 1].clone();
        Ok(vec![q.with_shape(shape)])
    }

    fn vjp(&self, cx: &mut Vjp<'_>) -> Result<InputGrads> {
        let g = cx.grad()?;
        let types: Vec<TensorType> = (0..cx.inputs.len()).map(|i| cx.input_type(i)).collect();
        let scores_shape = scores_shape(&types);
        let last = scores_shape.rank() - 1;
        let scale = self.scale_for(&types[0])?;
        let b = &mut *cx.b;
        // The gradient by the scores is a small difference, which 16 bits lose.
        let own = types[0].dtype;
        let dtype = match own {
            DType::F16 | DType::BF16 => DType::F32,
            dtype => dtype,
        };
        let mut inputs = Vec::with_capacity(types.len());
        for (&v, ty) in cx.inputs.iter().zip(&types) {
            inputs.push(match ty.dtype.is_float() {
                true => b.cast(v, dtype)?,
                false => v,
            });
        }
        let (q, k, v, mask) = (inputs[0], inputs[1], inputs[2], inputs.get(3));
        let g = b.cast(g, dtype)?;
        let scaled = b.mul_scalar(q, scale)?;
        let mut scores = b.matmul_t(scaled, k, false, true)?;
        let mut visible = None;
        let mut hide = |b: &mut GraphBuilder, more: ValueId| -> Result<()> {
            visible = Some(match visible {
                Some(seen) => b.and(seen, more)?,
                None => more,
            });
            Ok(())
        };
        if self.causal {
            let triangle = causal(b, &scores_shape)?;
            hide(b, triangle)?;
        }
        if let (Some(&mask), Some(ty)) = (mask, types.get(3)) {
            if ty.dtype == DType::Bool {
                hide(b, mask)?;
            } else {
                scores = b.add(scores, mask)?;
                let infinite = b.scalar_like(scores, f64::NEG_INFINITY)?;
                let finite = b.not_equal(scores, infinite)?;
                hide(b, finite)?;
            }
        }
        // The lowest number in place of negative infinity, and zeros after the softmax, so that
        // a query that sees nothing gives 0 rather than NaN.
        let p = match visible {
            None => b.softmax(scores, last)?,
            Some(visible) => {
                let low = b.scalar_like(scores, lowest(dtype))?;
                let zero = b.scalar_like(scores, 0.0)?;
                let scores = b.select(visible, scores, low)?;
                let p = b.softmax(scores, last)?;
                b.select(visible, p, zero)?
            }
        };
        let mut grads = vec![None; cx.inputs.len()];
        if cx.wanted[2] {
            let dv = b.matmul_t(p, g, true, false)?;
            grads[2] = Some(b.cast(dv, own)?);
        }
        let wants_mask = cx.wanted.get(3).copied().unwrap_or(false);
        if !cx.wanted[0] && !cx.wanted[1] && !wants_mask {
            return Ok(grads);
        }
        let dp = b.matmul_t(g, v, false, true)?;
        // The sum of p dp over the keys is that of g y over the width (Dao et al. 2022), but a y
        // of 16 bits is rounded.
        let weighted = match own == dtype {
            true => b.mul(g, cx.outputs[0])?,
            false => b.mul(p, dp)?,
        };
        let mean = b.sum(weighted, &[last], true)?;
        let centred = b.sub(dp, mean)?;
        let ds = b.mul(p, centred)?;
        if cx.wanted[0] {
            let dq = b.matmul(ds, k)?;
            let dq = b.mul_scalar(dq, scale)?;
            grads[0] = Some(b.cast(dq, own)?);
        }
        if cx.wanted[1] {
            let dk = b.matmul_t(ds, scaled, true, false)?;
            grads[1] = Some(b.cast(dk, own)?);
        }
        if wants_mask {
            grads[3] = Some(b.cast(ds, own)?);
        }
        Ok(grads)
    }

    fn axes(&self, inputs: &[TensorType], outputs: &[TensorType]) -> AxisRules {
        use Port::{Input, Output};
        let rank = outputs[0].rank();
        let mut rules = AxisRules::new();
        for axis in 0..rank - 2 {
            for i in 0..3 {
                rules.same((Input(i), axis), (Output(0), axis));
            }
        }
        rules.same((Input(0), rank - 2), (Output(0), rank - 2));
        if self.causal {
            rules.block((Input(0), rank - 2));
        }
        // A key that goes changes every softmax, even one whose entries are zeros.
        rules.same((Input(1), rank - 2), (Input(2), rank - 2));
        rules.block((Input(1), rank - 2));
        // The default scale counts the width.
        rules.same((Input(0), rank - 1), (Input(1), rank - 1));
        if self.scale.is_none() {
            rules.block((Input(0), rank - 1));
        }
        rules.same((Input(2), rank - 1), (Output(0), rank - 1));
        if let Some(mask) = inputs.get(3) {
            let (lead, scores) = (rank - mask.rank(), scores_shape(inputs));
            for axis in 0..mask.rank() {
                let at = lead + axis;
                if mask.shape[axis] != scores[at] {
                    rules.free((Input(3), axis));
                } else if at == rank - 1 {
                    rules.block((Input(3), axis));
                } else {
                    rules.same((Input(3), axis), (Output(0), at));
                }
            }
        }
        rules
    }

    fn cost(&self, inputs: &[TensorType], _: &[TensorType]) -> Result<Cost> {
        let scores = scores_shape(inputs).len()?;
        let width = |t: &TensorType| t.shape[t.rank() - 1].fixed();
        let widths = width(&inputs[0])? + width(&inputs[2])?;
        Ok(Cost {
            macs: scores.saturating_mul(widths) as u64,
            elements: scores as u64,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::Op;
    use crate::ops::testing::{axes, infer, types};

    fn op(scale: Option<f64>, causal: bool) -> Op {
        Op::from(Attention { scale, causal })
    }

    #[test]
    fn types_of_outputs() {
        let op = op(None, false);
        for (inputs, expected) in [
            ("f32[n,2,l,8] f32[n,2,s,8] f32[n,2,s,5]", "f32[n,2,l,5]"),
            ("f32[4,8] f32[6,8] f32[6,5] bool[4,6]", "f32[4,5]"),
            (
                "f32[n,2,4,8] f32[n,2,6,8] f32[n,2,6,5] f32[n,1,1,6]",
                "f32[n,2,4,5]",
            ),
            ("f32[4,8] f32[6,8] f32[6,5] f32[]", "f32[4,5]"),
            ("f32[4,8] f32[6,8] f32[6,5] f64[4,6]", "error"),
            ("f32[4,8] f32[6,8] f32[6,5] bool[2,4,6]", "error"),
            ("f32[4,8] f32[6,8] f32[6,5] bool[6,4]", "error"),
            ("f32[4,8] f32[6,7] f32[6,5]", "error"),
            ("f32[4,8] f32[6,8] f32[7,5]", "error"),
            ("f32[2,4,8] f32[3,6,8] f32[2,6,5]", "error"),
            ("f32[2,4,8] f32[6,8] f32[6,5]", "error"),
            ("f32[8] f32[8] f32[8]", "error"),
            ("f32[4,8] f64[6,8] f32[6,5]", "error"),
            ("i32[4,8] i32[6,8] i32[6,5]", "error"),
            ("f32[4,8] f32[6,8]", "error"),
        ] {
            assert_eq!(infer(&op, inputs), expected, "{inputs}");
        }
        assert_eq!(
            infer(
                &super::tests::op(Some(f64::NAN), false),
                "f32[4,8] f32[6,8] f32[6,5]"
            ),
            "error"
        );
    }

    #[test]
    fn heads_and_values_are_linked_keys_are_blocked() {
        use Port::{Input, Output};
        let inputs = "f32[3,2,4,8] f32[3,2,6,8] f32[3,2,6,5] bool[1,4,6]";
        let rules = axes(&op(None, false), inputs);
        let linked = |a, b| rules.links.iter().any(|l| l.a == a && l.b == b);
        assert!(linked((Input(1), 1), (Output(0), 1)));
        assert!(linked((Input(2), 3), (Output(0), 3)));
        assert!(linked((Input(3), 1), (Output(0), 2)));
        assert!(rules.blocked.contains(&(Input(1), 2)));
        assert!(rules.blocked.contains(&(Input(0), 3)));
        assert!(rules.blocked.contains(&(Input(3), 2)));
        assert_eq!(rules.free, [(Input(3), 0)]);
        let rules = axes(&op(Some(0.5), true), inputs);
        assert!(!rules.blocked.contains(&(Input(0), 3)));
        assert!(rules.blocked.contains(&(Input(0), 2)));
    }

    #[test]
    fn multiply_adds() {
        let inputs = types("f32[3,4,8] f32[3,6,8] f32[3,6,5]");
        let op = Attention {
            scale: None,
            causal: false,
        };
        let outputs = op.infer(&inputs).unwrap();
        assert_eq!(
            op.cost(&inputs, &outputs).unwrap().macs,
            3 * 4 * 6 * (8 + 5)
        );
    }
}
