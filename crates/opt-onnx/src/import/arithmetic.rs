//! Arithmetic on known content, symbols included.

use opt_core::tensor::Dims;
use opt_core::{DType, SizeExpr, Tensor};

use super::fold::{axis, integers};
use super::known::{Item, Items, MAX_ITEMS};

/// The shape that a `Reshape` to `target` gives, without symbols.
pub(super) fn reshape(shape: &[usize], target: &[i64], allow_zero: bool) -> Option<Dims> {
    let total: usize = shape.iter().product();
    let mut out: Dims = Dims::new();
    let mut open = None;
    for (i, &d) in target.iter().enumerate() {
        out.push(match d {
            -1 => {
                open = Some(i);
                1
            }
            0 if !allow_zero => *shape.get(i)?,
            d => usize::try_from(d).ok()?,
        });
    }
    let product = out.iter().try_fold(1usize, |n, &d| n.checked_mul(d))?;
    if let Some(i) = open {
        out[i] = total.checked_div(product)?;
    }
    (out.iter().product::<usize>() == total).then_some(out)
}

pub(super) fn broadcast(a: &[usize], b: &[usize]) -> Option<Dims> {
    let rank = a.len().max(b.len());
    let at = |s: &[usize], i: usize| (i + s.len()).checked_sub(rank).map_or(1, |j| s[j]);
    let shape: Option<Dims> = (0..rank)
        .map(|i| match (at(a, i), at(b, i)) {
            (x, y) if x == y => Some(x),
            (1, y) => Some(y),
            (x, 1) => Some(x),
            _ => None,
        })
        .collect();
    let shape = shape?;
    let len = shape.iter().try_fold(1usize, |n, &d| n.checked_mul(d))?;
    (len <= MAX_ITEMS).then_some(shape)
}

/// The items repeated to a shape that they broadcast to.
pub(super) fn spread(x: &Items, shape: &[usize]) -> Option<Items> {
    let mut positions = x.positions()?;
    let mut full: Dims = smallvec::smallvec![1; shape.len().checked_sub(x.shape.len())?];
    full.extend_from_slice(&x.shape);
    positions = positions.reshape(&full).ok()?;
    for (axis, &n) in shape.iter().enumerate() {
        if full[axis] != n {
            positions = positions.select(axis, &vec![0; n]).ok()?;
        }
    }
    x.pick(&positions)
}

pub(super) fn unary(op: &str, x: &Items) -> Option<Items> {
    let items: Option<Vec<Item>> = x
        .items
        .iter()
        .map(|item| match item {
            Item::Num(v) => {
                let v = *v;
                let y = match op {
                    "Abs" => v.abs(),
                    "Neg" => -v,
                    "Ceil" => v.ceil(),
                    "Floor" => v.floor(),
                    "Round" => v.round_ties_even(),
                    "Sqrt" => v.sqrt(),
                    "Exp" => v.exp(),
                    "Log" => v.ln(),
                    "Reciprocal" => 1.0 / v,
                    _ => return None,
                };
                Some(rounded(y, x.dtype))
            }
            Item::Int(e) => match op {
                "Neg" => Some(Item::Int(SizeExpr::default().sub(e).ok()?)),
                "Abs" if e.as_constant().is_none() => {
                    (e.lower_bound(0)? >= 0).then(|| item.clone())
                }
                "Abs" => item.as_i64()?.checked_abs().map(Item::int),
                "Not" => item.as_i64().map(|v| Item::int(i64::from(v == 0))),
                _ => None,
            },
        })
        .collect();
    Some(Items::new(x.dtype, &x.shape, items?))
}

/// A number as its type holds it.
pub(super) fn rounded(value: f64, dtype: DType) -> Item {
    let exact = Tensor::from_f64s(dtype, [], &[value]).and_then(|t| t.item());
    Item::Num(exact.unwrap_or(value))
}

pub(super) fn binary(op: &str, a: &Items, b: &Items, fmod: bool) -> Option<Items> {
    if a.dtype != b.dtype && op != "Pow" {
        return None;
    }
    let shape = broadcast(&a.shape, &b.shape)?;
    let (x, y) = (spread(a, &shape)?, spread(b, &shape)?);
    let compares = matches!(
        op,
        "Equal" | "Less" | "LessOrEqual" | "Greater" | "GreaterOrEqual"
    );
    let items: Option<Vec<Item>> = x
        .items
        .iter()
        .zip(&y.items)
        .map(|(x, y)| {
            if compares {
                return compare(op, x, y).map(|b| Item::int(b.into()));
            }
            arithmetic(op, x, y, fmod, a.dtype)
        })
        .collect();
    let dtype = if compares { DType::Bool } else { a.dtype };
    Some(Items::new(dtype, &shape, items?))
}

pub(super) fn compare(op: &str, x: &Item, y: &Item) -> Option<bool> {
    use std::cmp::Ordering;
    let order = match (x, y) {
        (Item::Num(x), Item::Num(y)) => x.partial_cmp(y),
        (Item::Int(x), Item::Int(y)) if x == y => Some(Ordering::Equal),
        (Item::Int(x), Item::Int(y)) => {
            if let (Some(x), Some(y)) = (x.as_constant(), y.as_constant()) {
                Some(x.cmp(&y))
            } else if x.sub(y).ok()?.lower_bound(0).is_some_and(|l| l > 0) {
                Some(Ordering::Greater)
            } else if y.sub(x).ok()?.lower_bound(0).is_some_and(|l| l > 0) {
                Some(Ordering::Less)
            } else if op == "Equal" {
                // Exporters compare a symbolic size with 1 and 0 to tell broadcasting; a symbol
                // stands for sizes in general, as in PyTorch's exporter.
                let least = |a: &SizeExpr, b: &SizeExpr| -> Option<bool> {
                    Some(a.sub(b).ok()?.lower_bound(2)? > 0)
                };
                (least(x, y) == Some(true) || least(y, x) == Some(true)).then_some(Ordering::Less)
            } else {
                None
            }
        }
        _ => return None,
    };
    // Numbers without an order are not numbers, of which nothing holds.
    let Some(order) = order else {
        return matches!((x, y), (Item::Num(_), Item::Num(_))).then_some(false);
    };
    Some(match op {
        "Equal" => order == Ordering::Equal,
        "Less" => order == Ordering::Less,
        "LessOrEqual" => order != Ordering::Greater,
        "Greater" => order == Ordering::Greater,
        _ => order != Ordering::Less,
    })
}

pub(super) fn arithmetic(op: &str, x: &Item, y: &Item, fmod: bool, dtype: DType) -> Option<Item> {
    match (x, y) {
        (Item::Num(x), y) => {
            let (x, y) = (*x, y.as_f64()?);
            let value = match op {
                "Add" | "Sum" => x + y,
                "Sub" => x - y,
                "Mul" => x * y,
                "Div" => x / y,
                "Pow" => x.powf(y),
                "Max" if x.is_nan() || y.is_nan() => f64::NAN,
                "Min" if x.is_nan() || y.is_nan() => f64::NAN,
                "Max" => x.max(y),
                "Min" => x.min(y),
                "Mod" if fmod => x % y,
                _ => return None,
            };
            Some(rounded(value, dtype))
        }
        (Item::Int(a), Item::Int(b)) => {
            let symbolic = match op {
                "Add" | "Sum" => a.add(b).ok(),
                "Sub" => a.sub(b).ok(),
                "Mul" => a.mul(b).ok(),
                // Sizes are not negative, so that truncation is rounding down.
                "Div" if a.as_constant().is_none() => match (a.div_exact(b), b.as_constant()) {
                    (Some(q), _) => Some(q),
                    (None, Some(by)) if a.lower_bound(0)? >= 0 => a.div_floor(by).ok(),
                    _ => None,
                },
                "Mod" if a.as_constant().is_none() => {
                    let by = b.as_constant().filter(|&b| b > 0)?;
                    a.lower_bound(0).filter(|&l| l >= 0)?;
                    let whole = a.div_floor(by).ok()?.mul(&by.into()).ok()?;
                    a.sub(&whole).ok()
                }
                "Max" | "Min" if a.as_constant().is_none() || b.as_constant().is_none() => {
                    let above = |x: &SizeExpr, y: &SizeExpr| {
                        let gap = x.sub(y).ok().and_then(|d| d.lower_bound(1));
                        gap.is_some_and(|l| l >= 0)
                    };
                    match (above(a, b), above(b, a)) {
                        (true, _) => Some(if op == "Max" { a } else { b }.clone()),
                        (_, true) => Some(if op == "Max" { b } else { a }.clone()),
                        _ => None,
                    }
                }
                _ => {
                    let (a, b) = (a.as_constant()?, b.as_constant()?);
                    let value = match op {
                        "Div" => a.checked_div(b),
                        "Mod" if fmod => a.checked_rem(b),
                        "Mod" => a.checked_rem(b).map(|r| {
                            if r != 0 && (r < 0) != (b < 0) {
                                r + b
                            } else {
                                r
                            }
                        }),
                        "Pow" => u32::try_from(b).ok().and_then(|b| a.checked_pow(b)),
                        "Max" => Some(a.max(b)),
                        "Min" => Some(a.min(b)),
                        "And" => Some(i64::from(a != 0 && b != 0)),
                        "Or" => Some(i64::from(a != 0 || b != 0)),
                        "Xor" => Some(i64::from((a != 0) != (b != 0))),
                        _ => None,
                    };
                    value.map(SizeExpr::from)
                }
            }?;
            in_range(&symbolic, dtype).then_some(Item::Int(symbolic))
        }
        _ => None,
    }
}

/// Whether a result needs no wrapping to its type.
pub(super) fn in_range(value: &SizeExpr, dtype: DType) -> bool {
    let Some(value) = value.as_constant() else {
        return matches!(dtype, DType::I64 | DType::I32);
    };
    match dtype {
        DType::I64 => true,
        DType::I32 => i32::try_from(value).is_ok(),
        DType::Bool => value == 0 || value == 1,
        other => other
            .int_range()
            .is_ok_and(|(low, high)| (i64::from(low)..=i64::from(high)).contains(&value)),
    }
}

pub(super) fn cast(x: &Items, to: DType) -> Option<Items> {
    // Floats that only store numbers are none to compute with, and weights stay as they are stored.
    let weight = x.dtype.is_storage() && x.items.len() > 16;
    if weight || (to.is_storage() && !to.is_int()) {
        return None;
    }
    let items: Option<Vec<Item>> = x
        .items
        .iter()
        .map(|item| match (item, to) {
            (Item::Num(v), DType::Bool) => Some(Item::int(i64::from(*v != 0.0))),
            (Item::Num(v), to) if to.is_float() => Some(rounded(*v, to)),
            // Beyond the range of the type, conversions differ between programs.
            (Item::Num(v), to) => {
                let value = (v.is_finite() && v.abs() < 9e15).then_some(v.trunc() as i64)?;
                in_range(&value.into(), to).then(|| Item::int(value))
            }
            (Item::Int(_), to) if to.is_float() => item.as_f64().map(|v| rounded(v, to)),
            (Item::Int(e), DType::Bool) => e.as_constant().map(|v| Item::int(i64::from(v != 0))),
            (Item::Int(e), to) => in_range(e, to).then(|| item.clone()),
        })
        .collect();
    Some(Items::new(to, &x.shape, items?))
}

pub(super) fn choose(condition: &Items, a: &Items, b: &Items) -> Option<Items> {
    if a.dtype != b.dtype {
        return None;
    }
    let shape = broadcast(&condition.shape, &broadcast(&a.shape, &b.shape)?)?;
    let (c, x, y) = (
        spread(condition, &shape)?,
        spread(a, &shape)?,
        spread(b, &shape)?,
    );
    let items: Option<Vec<Item>> = (0..c.items.len())
        .map(|i| {
            let take = c.items[i].as_i64()? != 0;
            Some(if take {
                x.items[i].clone()
            } else {
                y.items[i].clone()
            })
        })
        .collect();
    Some(Items::new(a.dtype, &shape, items?))
}

pub(super) fn range(start: &Items, limit: &Items, delta: &Items) -> Option<Items> {
    let all = [start, limit, delta].map(|i| i.items.first());
    let [Some(start_item), Some(limit), Some(delta)] = all else {
        return None;
    };
    let count = if start.dtype.is_float() {
        let (s, l, d) = (start_item.as_f64()?, limit.as_f64()?, delta.as_f64()?);
        ((l - s) / d).ceil().max(0.0)
    } else {
        let (s, l, d) = (start_item.as_i64()?, limit.as_i64()?, delta.as_i64()?);
        ((l.checked_sub(s)? as f64) / d as f64).ceil().max(0.0)
    };
    if count.is_nan() || count > MAX_ITEMS as f64 {
        return None;
    }
    let items: Option<Vec<Item>> = (0..count as i64)
        .map(|i| match start_item {
            Item::Num(s) => Some(rounded(s + i as f64 * delta.as_f64()?, start.dtype)),
            Item::Int(_) => {
                let value = i
                    .checked_mul(delta.as_i64()?)?
                    .checked_add(start_item.as_i64()?)?;
                Some(Item::int(value))
            }
        })
        .collect();
    Some(Items::new(start.dtype, &[count as usize], items?))
}

pub(super) fn reduce(
    op: &str,
    x: &Items,
    axes: Option<Vec<i64>>,
    keep: bool,
    noop: bool,
) -> Option<Items> {
    let rank = x.shape.len();
    let mut axes = axes.unwrap_or_default();
    if axes.is_empty() {
        if noop {
            return Some(x.clone());
        }
        axes = (0..rank as i64).collect();
    }
    let axes: Vec<usize> = axes.iter().map(|&a| axis(a, rank)).collect::<Option<_>>()?;
    let step = match op {
        "ReduceProd" => "Mul",
        "ReduceSum" => "Add",
        "ReduceMax" => "Max",
        _ => "Min",
    };
    let kept: Dims = (0..rank)
        .map(|a| if axes.contains(&a) { 1 } else { x.shape[a] })
        .collect();
    let mut slots: Vec<Option<Item>> = vec![None; kept.iter().product()];
    for (i, item) in x.items.iter().enumerate() {
        let (mut rest, mut at, mut stride) = (i, 0, 1);
        for a in (0..rank).rev() {
            let index = rest % x.shape[a];
            rest /= x.shape[a];
            if !axes.contains(&a) {
                at += index * stride;
            }
            stride *= kept[a];
        }
        slots[at] = Some(match slots[at].take() {
            None => item.clone(),
            Some(sum) => arithmetic(step, &sum, item, false, x.dtype)?,
        });
    }
    let neutral = || {
        let value = match op {
            "ReduceProd" => 1,
            "ReduceSum" => 0,
            _ => return None,
        };
        Some(if x.dtype.is_float() {
            Item::Num(value as f64)
        } else {
            Item::int(value)
        })
    };
    let items: Option<Vec<Item>> = slots.into_iter().map(|s| s.or_else(neutral)).collect();
    let shape: Dims = if keep {
        kept
    } else {
        (0..rank)
            .filter(|a| !axes.contains(a))
            .map(|a| x.shape[a])
            .collect()
    };
    Some(Items::new(x.dtype, &shape, items?))
}

pub(super) fn non_zero(x: &Items) -> Option<Items> {
    let mut found = Vec::new();
    for (i, item) in x.items.iter().enumerate() {
        let set = match item {
            Item::Num(v) => *v != 0.0,
            Item::Int(_) => item.as_i64()? != 0,
        };
        if set {
            found.push(i);
        }
    }
    let rank = x.shape.len();
    let mut items = Vec::with_capacity(rank * found.len());
    for axis in 0..rank {
        let inner: usize = x.shape[axis + 1..].iter().product();
        items.extend(
            found
                .iter()
                .map(|i| Item::int((i / inner % x.shape[axis]) as i64)),
        );
    }
    Some(Items::new(DType::I64, &[rank, found.len()], items))
}

pub(super) fn scatter_nd(x: &Items, index: &Items, updates: &Items) -> Option<Items> {
    let at = integers(index)?;
    let depth = *index.shape.last()?;
    let inner: usize = x.shape.get(depth..)?.iter().product();
    let mut out = x.clone();
    for (k, tuple) in at.chunks(depth.max(1)).enumerate() {
        let mut start = 0;
        for (a, &i) in tuple.iter().enumerate() {
            start = start * x.shape[a] + axis(i, x.shape[a])?;
        }
        for j in 0..inner {
            *out.items.get_mut(start * inner + j)? = updates.items.get(k * inner + j)?.clone();
        }
    }
    Some(out)
}
