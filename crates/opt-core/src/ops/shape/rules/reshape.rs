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

/// The axes of a range whose size is not 1.
fn large(shape: &Shape, range: &std::ops::Range<usize>) -> Vec<usize> {
    let all = range.clone();
    all.filter(|&i| shape[i].as_fixed() != Some(1)).collect()
}

/// The links of a reshape: in each run the axes of equal size, or an axis and the first of those
/// that it is merged from, or the one of those that it is split into that is chosen by number. All
/// others are blocked.
fn reshape_links(x: &Shape, y: &Shape, choice: usize) -> AxisRules {
    let mut rules = AxisRules::new();
    let Some(runs) = runs(x, y) else {
        // Symbols hide the runs between the axes that agree at both ends.
        let (a, b) = (x.dims(), y.dims());
        let least = a.len().min(b.len());
        let lead = (0..least).take_while(|&i| a[i] == b[i]).count();
        let tail = (1..=least - lead).take_while(|&i| a[a.len() - i] == b[b.len() - i]);
        let tail = tail.count();
        for i in 0..lead {
            rules.same((IN, i), (OUT, i));
        }
        for i in 1..=tail {
            rules.same((IN, a.len() - i), (OUT, b.len() - i));
        }
        (lead..a.len() - tail).for_each(|i| rules.block((IN, i)));
        (lead..b.len() - tail).for_each(|i| rules.block((OUT, i)));
        return rules;
    };
    for (a, b) in runs {
        let (from, into) = (large(x, &a), large(y, &b));
        let chosen = match from.len() {
            1 => into.get(choice).or(into.first()),
            _ => into.first(),
        };
        let linked = match (from.first(), chosen) {
            (Some(&i), Some(&j)) => {
                let (p, q) = (x[i].as_fixed(), y[j].as_fixed());
                match (p, q) {
                    _ if x[i] == y[j] => rules.same((IN, i), (OUT, j)),
                    (Some(p), Some(q)) if p > 0 && q % p == 0 && p < q => {
                        rules.link((IN, i), (OUT, j), IndexMap::Merge { inner: q / p })
                    }
                    (Some(p), Some(q)) if q > 0 && p % q == 0 => {
                        let faster = into.iter().filter(|&&k| k > j);
                        let inner = match from.len() {
                            1 => faster.filter_map(|&k| y[k].as_fixed()).product(),
                            _ => p / q,
                        };
                        rules.link((OUT, j), (IN, i), IndexMap::Merge { inner })
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
        reshape_links(&inputs[0].shape, &outputs[0].shape, 0)
    }

    /// Where one axis is split into several, such as queries, keys and values, heads and their
    /// width, entries of any of those may go.
    fn axes_alternatives(&self, inputs: &[TensorType], outputs: &[TensorType]) -> Vec<AxisRules> {
        let (x, y) = (&inputs[0].shape, &outputs[0].shape);
        let parts = runs(x, y).into_iter().flatten().filter_map(|(a, b)| {
            let parts = large(y, &b).len();
            (large(x, &a).len() == 1).then_some(parts)
        });
        let most = parts.max().unwrap_or(1);
        (1..most).map(|c| reshape_links(x, y, c)).collect()
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

    #[test]
    fn axes_without_entries_are_no_fault() {
        let x = TensorType::new(DType::F32, [0, 3, 4]);
        let op = Reshape {
            shape: Shape::from([3, 4, 0]),
        };
        let y = op.infer(std::slice::from_ref(&x)).unwrap();
        let rules = op.axes(std::slice::from_ref(&x), &y);
        rules.check(std::slice::from_ref(&x), &y).unwrap();
    }

    #[test]
    fn of_the_parts_of_an_axis_any_may_be_followed() {
        let x = TensorType::new(DType::F32, [Dim::from("n"), 24.into()]);
        let op = Reshape {
            shape: ["n".into(), 3.into(), 4.into(), Dim::from(2)].into(),
        };
        let y = op.infer(std::slice::from_ref(&x)).unwrap();
        let inputs = [x];
        let all: Vec<AxisRules> = std::iter::once(op.axes(&inputs, &y))
            .chain(op.axes_alternatives(&inputs, &y))
            .collect();
        assert_eq!(all.len(), 3);
        for (i, (rules, inner)) in all.iter().zip([8, 2, 1]).enumerate() {
            rules.check(&inputs, &y).unwrap();
            let link = crate::ops::AxisLink {
                a: (OUT, 1 + i),
                b: (IN, 1),
                map: IndexMap::Merge { inner },
            };
            assert!(rules.links.contains(&link), "{rules:?}");
            let others = (1..4).filter(|&a| a != 1 + i);
            assert!(others.clone().all(|a| rules.blocked.contains(&(OUT, a))));
        }
        // What is merged has no alternatives.
        let back = Reshape {
            shape: inputs[0].shape.clone(),
        };
        assert!(back.axes_alternatives(&y, &inputs).is_empty());
    }

    #[test]
    fn axes_that_agree_at_the_ends_are_linked_past_symbols() {
        let dims = |d: &[Dim]| TensorType::new(DType::F32, Shape::new(d.to_vec()));
        let (n, s) = (Dim::from("n"), Dim::from("s"));
        let rows = n.times(&s).unwrap();
        let x = dims(&[n, s, 6.into()]);
        let op = Reshape {
            shape: Shape::new([rows, 6.into()]),
        };
        let y = op.infer(std::slice::from_ref(&x)).unwrap();
        let rules = op.axes(std::slice::from_ref(&x), &y);
        rules.check(std::slice::from_ref(&x), &y).unwrap();
        let mut expected = AxisRules::new();
        expected.same((IN, 2), (OUT, 1));
        expected.block((IN, 0));
        expected.block((IN, 1));
        expected.block((OUT, 0));
        assert_eq!(rules, expected);
    }
}
