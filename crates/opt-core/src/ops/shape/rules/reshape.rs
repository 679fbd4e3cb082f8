//! Reshape: runs of axes are merged and cut.

use super::{IN, OUT};
use crate::graph::Bindings;
use crate::ops::rules::arity;
use crate::ops::shape::Reshape;
use crate::ops::{AxisRules, Cost, IndexMap, InputGrads, Op, OpRules, ShrinkCx, Vjp};
use crate::{Error, Result, Shape, TensorType};

/// Runs of axes of two shapes with equal products, in order: `[N, C, H, W]` against `[N, C*H*W]`
/// gives `(0..1, 0..1)` and `(1..4, 1..2)`. `None` where symbols hide the runs.
type Runs = Vec<(std::ops::Range<usize>, std::ops::Range<usize>)>;

fn runs(a: &Shape, b: &Shape) -> Option<Runs> {
    let (a, b) = (a.dims(), b.dims());
    let (mut i, mut j) = (0, 0);
    let mut out = Vec::new();
    while i < a.len() || j < b.len() {
        let (start_i, start_j) = (i, j);
        if i < a.len() && j < b.len() && a[i] == b[j] {
            i += 1;
            j += 1;
        } else {
            let (mut p, mut q) = (1usize, 1usize);
            // A run grows on the side with the smaller product until both agree.
            loop {
                if p == q && (i > start_i || j > start_j) && p != 1 {
                    break;
                }
                let grow_a = i < a.len() && (p <= q || j == b.len());
                if grow_a {
                    p = p.checked_mul(a[i].as_fixed()?)?;
                    i += 1;
                } else if j < b.len() {
                    q = q.checked_mul(b[j].as_fixed()?)?;
                    j += 1;
                } else {
                    break;
                }
            }
            if p != q {
                return None;
            }
        }
        out.push((start_i..i, start_j..j));
    }
    Some(out)
}

impl OpRules for Reshape {
    fn infer(&self, inputs: &[TensorType]) -> Result<Vec<TensorType>> {
        arity(inputs, 1..=1)?;
        let x = &inputs[0];
        let fail = || Error::shape(format!("cannot reshape {x} to {}", self.shape));
        let same = x.shape.size()? == self.shape.size()?;
        if !same {
            return Err(fail());
        }
        Ok(vec![x.with_shape(self.shape.clone())])
    }

    fn vjp(&self, cx: &mut Vjp<'_>) -> Result<InputGrads> {
        let (g, shape) = (cx.grad()?, cx.input_type(0).shape);
        Ok(vec![Some(cx.b.reshape(g, shape)?)])
    }

    fn axes(&self, inputs: &[TensorType], outputs: &[TensorType]) -> AxisRules {
        let (x, y) = (&inputs[0].shape, &outputs[0].shape);
        let Some(runs) = runs(x, y) else {
            return AxisRules::blocked(inputs, outputs);
        };
        let mut rules = AxisRules::new();
        for (a, b) in runs {
            let big = |s: &Shape, r: &std::ops::Range<usize>| {
                r.clone().find(|&i| s[i].as_fixed() != Some(1))
            };
            let linked = match (big(x, &a), big(y, &b)) {
                (Some(i), Some(j)) => {
                    let (p, q) = (x[i].clone(), y[j].clone());
                    match (p.as_fixed(), q.as_fixed()) {
                        _ if p == q => rules.same((IN, i), (OUT, j)),
                        (Some(p), Some(q)) if q % p == 0 && p < q => {
                            rules.link((IN, i), (OUT, j), IndexMap::Merge { inner: q / p })
                        }
                        (Some(p), Some(q)) if p % q == 0 => {
                            rules.link((OUT, j), (IN, i), IndexMap::Merge { inner: p / q })
                        }
                        _ => {
                            rules.block((IN, i));
                            rules.block((OUT, j));
                        }
                    }
                    (Some(i), Some(j))
                }
                _ => (None, None),
            };
            for i in a.filter(|&i| Some(i) != linked.0) {
                rules.block((IN, i));
            }
            for j in b.filter(|&j| Some(j) != linked.1) {
                rules.block((OUT, j));
            }
        }
        rules
    }

    fn cost(&self, _: &[TensorType], _: &[TensorType]) -> Result<Cost> {
        Ok(Cost::default())
    }

    fn shrink(&self, cx: &ShrinkCx<'_>) -> Result<Option<Op>> {
        let shape = cx.new_outputs[0].shape.clone();
        Ok(Some(Reshape { shape }.into()))
    }

    fn bind(&self, bindings: &Bindings) -> Result<Option<Op>> {
        let shape = self.shape.bind(bindings)?;
        Ok(Some(Reshape { shape }.into()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{DType, Dim};

    #[test]
    fn reshapes_split_into_runs() {
        let n = || Dim::from("n");
        for (a, b, expected) in [
            (
                vec![n(), 4.into(), 2.into(), 2.into()],
                vec![n(), 16.into()],
                Some(vec![(0..1, 0..1), (1..4, 1..2)]),
            ),
            (
                vec![2.into(), 6.into()],
                vec![2.into(), 3.into(), 2.into()],
                Some(vec![(0..1, 0..1), (1..2, 1..3)]),
            ),
            (vec![n(), 4.into()], vec![n().mul(4).unwrap()], None),
        ] {
            assert_eq!(runs(&a.into(), &b.into()), expected);
        }
    }

    #[test]
    fn flattening_links_the_channel_axis_only() {
        let x = TensorType::new(DType::F32, [1, 4, 2, 2]);
        let op = Reshape {
            shape: [1, 16].into(),
        };
        let y = op.infer(std::slice::from_ref(&x)).unwrap();
        let rules = op.axes(std::slice::from_ref(&x), &y);
        rules.check(&[x], &y).unwrap();
        assert!(rules.links.contains(&crate::ops::AxisLink {
            a: (IN, 1),
            b: (OUT, 1),
            map: IndexMap::Merge { inner: 4 },
        }));
        assert!(rules.blocked.contains(&(IN, 2)) && rules.blocked.contains(&(IN, 3)));
    }
}
