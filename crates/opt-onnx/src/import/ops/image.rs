//! Resampling of images.

use opt_core::{DType, Dim, Error, Result, Tensor, ValueId};

use super::{Lower, axis, count, counts};
use crate::import::Cx;
use crate::import::node::{Node, V};

pub(super) fn find(op: &str) -> Option<Lower> {
    Some(match op {
        "Resize" => resize,
        "Upsample" => upsample,
        "GridSample" => grid_sample,
        "AffineGrid" => affine_grid,
        _ => return None,
    })
}

/// How an axis is resampled.
struct Axis {
    axis: usize,
    input: usize,
    output: usize,
    scale: f64,
    /// Start and end of the region, in fractions of the axis.
    roi: (f64, f64),
}

struct Sampling<'a> {
    mode: &'a str,
    coordinates: &'a str,
    nearest: &'a str,
    cubic: f64,
    exclude_outside: bool,
    antialias: bool,
    extrapolation: f64,
}

impl Sampling<'_> {
    /// The coordinate in the input of an output entry; `None` where there is none.
    fn source(&self, a: &Axis, x: usize) -> Result<Option<f64>> {
        let (x, n) = (x as f64, a.input as f64);
        let width = a.scale * n;
        Ok(Some(match self.coordinates {
            "half_pixel" => (x + 0.5) / a.scale - 0.5,
            "half_pixel_symmetric" => {
                let adjustment = a.output as f64 / width;
                n / 2.0 * (1.0 - adjustment) + (x + 0.5) / a.scale - 0.5
            }
            "pytorch_half_pixel" if width == 1.0 => -0.5,
            "pytorch_half_pixel" => (x + 0.5) / a.scale - 0.5,
            "align_corners" if width == 1.0 => 0.0,
            "align_corners" => x * (n - 1.0) / (width - 1.0),
            "asymmetric" => x / a.scale,
            "tf_half_pixel_for_nn" => (x + 0.5) / a.scale,
            "tf_crop_and_resize" => {
                let (start, end) = a.roi;
                let at = if width == 1.0 {
                    (end - start) * (n - 1.0) / 2.0
                } else {
                    x * (end - start) * (n - 1.0) / (width - 1.0)
                } + start * (n - 1.0);
                if at < 0.0 || at > n - 1.0 {
                    return Ok(None);
                }
                at
            }
            other => {
                return Err(Error::unsupported(format!("the coordinates `{other}`")));
            }
        }))
    }

    /// The weights of the neighbours of a coordinate; the first neighbour is
    /// `ceil(x) - len / 2`. `ratio` is in (0, 1]: the neighbour to the left is preferred.
    fn weights(&self, ratio: f64, scale: f64) -> Result<Vec<f64>> {
        let shrink = scale.min(1.0);
        let a = self.cubic;
        let cubic = |x: f64| {
            let x = x.abs();
            if x <= 1.0 {
                ((a + 2.0) * x - (a + 3.0)) * x * x + 1.0
            } else if x < 2.0 {
                ((a * x - 5.0 * a) * x + 8.0 * a) * x - 4.0 * a
            } else {
                0.0
            }
        };
        let spread = |reach: f64, kernel: &dyn Fn(f64) -> f64| {
            let start = (-reach / shrink).floor() as i64 + 1;
            let all: Vec<f64> = (start..2 - start)
                .map(|i| kernel(shrink * (i as f64 - ratio)))
                .collect();
            let sum: f64 = all.iter().sum();
            all.iter().map(|w| w / sum).collect::<Vec<f64>>()
        };
        Ok(match (self.mode, self.antialias) {
            ("nearest", _) => {
                let right = ratio == 1.0
                    || match self.nearest {
                        "round_prefer_floor" => ratio > 0.5,
                        "round_prefer_ceil" => ratio >= 0.5,
                        "floor" => false,
                        "ceil" => true,
                        other => {
                            return Err(Error::unsupported(format!("the rounding `{other}`")));
                        }
                    };
                vec![f64::from(u8::from(!right)), f64::from(u8::from(right))]
            }
            ("linear", false) => vec![1.0 - ratio, ratio],
            ("linear", true) => spread(1.0, &|x| (1.0 - x.abs()).clamp(0.0, 1.0)),
            ("cubic", false) => (-1..3).map(|i| cubic(i as f64 - ratio)).collect(),
            ("cubic", true) => spread(2.0, &cubic),
            (other, _) => return Err(Error::unsupported(format!("the mode `{other}`"))),
        })
    }

    /// Resamples one axis: each output entry is a weighted sum of few input entries.
    fn apply(&self, cx: &mut Cx<'_>, x: ValueId, a: &Axis) -> Result<ValueId> {
        if a.input == 0 || a.output == 0 {
            return Err(Error::shape("an axis of no entries"));
        }
        let mut taps: Vec<Vec<(usize, f64)>> = Vec::with_capacity(a.output);
        let mut outside = Vec::with_capacity(a.output);
        for k in 0..a.output {
            let Some(at) = self.source(a, k)? else {
                outside.push(true);
                taps.push(vec![(0, 1.0)]);
                continue;
            };
            outside.push(false);
            let ratio = if at == at.floor() {
                1.0
            } else {
                at - at.floor()
            };
            let mut weights = self.weights(ratio, a.scale)?;
            let first = at.ceil() as i64 - weights.len() as i64 / 2;
            let last = a.input as i64 - 1;
            if self.exclude_outside {
                for (i, w) in weights.iter_mut().enumerate() {
                    if !(0..=last).contains(&(first + i as i64)) {
                        *w = 0.0;
                    }
                }
                let sum: f64 = weights.iter().sum();
                weights.iter_mut().for_each(|w| *w /= sum);
            }
            let mut merged: Vec<(usize, f64)> = Vec::new();
            for (i, w) in weights.into_iter().enumerate() {
                let index = (first + i as i64).clamp(0, last) as usize;
                match merged.iter_mut().find(|(j, _)| *j == index) {
                    Some((_, sum)) => *sum += w,
                    None => merged.push((index, w)),
                }
            }
            merged.retain(|(_, w)| *w != 0.0);
            taps.push(merged);
        }
        let most = taps.iter().map(Vec::len).max().unwrap_or(0).max(1);
        let ty = cx.b.type_of(x).clone();
        let trailing = vec![Dim::Fixed(1); ty.rank() - 1 - a.axis];
        let mut sum: Option<ValueId> = None;
        for tap in 0..most {
            let index: Vec<i64> = taps
                .iter()
                .map(|t| t.get(tap).map_or(0, |t| t.0 as i64))
                .collect();
            let weight: Vec<f64> = taps
                .iter()
                .map(|t| t.get(tap).map_or(0.0, |t| t.1))
                .collect();
            let index = cx.b.constant(Tensor::new([a.output], index)?);
            let mut part = cx.b.gather(x, index, a.axis)?;
            if weight.iter().any(|&w| w != 1.0) {
                let mut shape = vec![a.output];
                shape.extend(trailing.iter().map(|_| 1));
                let weight = cx.b.constant(Tensor::from_f64s(ty.dtype, &shape, &weight)?);
                part = cx.b.mul(part, weight)?;
            }
            sum = Some(match sum {
                Some(s) => cx.b.add(s, part)?,
                None => part,
            });
        }
        let mut y = sum.expect("there is a tap");
        if outside.contains(&true) {
            let mut shape = vec![a.output];
            shape.extend(trailing.iter().map(|_| 1));
            let mask = cx.b.constant(Tensor::from_bools(&shape, &outside)?);
            let value = cx.like(y, self.extrapolation)?;
            y = cx.b.select(mask, value, y)?;
        }
        Ok(y)
    }
}

fn resize(cx: &mut Cx<'_>, node: &Node<'_>) -> Result<Vec<V>> {
    let x = cx.x(node, 0)?;
    let ty = cx.b.type_of(x).clone();
    let given = |cx: &mut Cx<'_>, at: usize, what: &str| -> Result<Option<Vec<f64>>> {
        match node.maybe(at) {
            Some(v) => {
                let list = cx.numbers(v, what)?;
                Ok((!list.is_empty()).then_some(list))
            }
            None => Ok(None),
        }
    };
    let (roi, scales, sizes) = if node.version >= 11 {
        let sizes = match node.maybe(3) {
            Some(v) => Some(cx.integers(v, "the sizes")?),
            None => None,
        };
        // A region that nothing uses need not be known.
        let crops =
            node.text_or("coordinate_transformation_mode", "half_pixel")? == "tf_crop_and_resize";
        let roi = if crops {
            given(cx, 1, "the region")?
        } else {
            node.maybe(1);
            None
        };
        (roi, given(cx, 2, "the scales")?, sizes)
    } else {
        (None, given(cx, 1, "the scales")?, None)
    };
    let over = match node.ints("axes")? {
        Some(list) => list
            .iter()
            .map(|&a| axis(a, ty.rank()))
            .collect::<Result<Vec<_>>>()?,
        None => (0..ty.rank()).collect(),
    };
    let sampling = Sampling {
        mode: node.text_or("mode", "nearest")?,
        // Before opset 11 coordinates were scaled and rounded down.
        coordinates: node.text_or(
            "coordinate_transformation_mode",
            if node.version >= 11 {
                "half_pixel"
            } else {
                "asymmetric"
            },
        )?,
        nearest: node.text_or(
            "nearest_mode",
            if node.version >= 11 {
                "round_prefer_floor"
            } else {
                "floor"
            },
        )?,
        cubic: node.float_or("cubic_coeff_a", -0.75)?,
        exclude_outside: node.flag("exclude_outside", false)?,
        antialias: node.flag("antialias", false)?,
        extrapolation: node.float_or("extrapolation_value", 0.0)?,
    };
    let policy = node.text_or("keep_aspect_ratio_policy", "stretch")?;
    let input: Vec<Option<usize>> = over.iter().map(|&a| ty.shape[a].as_fixed()).collect();
    let mut plan: Vec<(f64, Option<usize>)> = Vec::new();
    match (&scales, &sizes) {
        (Some(scales), None) if scales.len() == over.len() => {
            plan.extend(scales.iter().map(|&s| (s, None)));
        }
        (None, Some(sizes)) if sizes.len() == over.len() => {
            let sizes = counts(sizes, "a size")?;
            let mut ratios = Vec::new();
            for (&size, n) in sizes.iter().zip(&input) {
                let n = n.ok_or_else(|| Error::unsupported("sizes for a symbolic axis"))?;
                ratios.push(size as f64 / n as f64);
            }
            let one = match policy {
                "stretch" => None,
                "not_larger" => ratios.iter().copied().reduce(f64::min),
                "not_smaller" => ratios.iter().copied().reduce(f64::max),
                other => return Err(Error::unsupported(format!("the policy `{other}`"))),
            };
            for (i, (&size, n)) in sizes.iter().zip(&input).enumerate() {
                plan.push(match one {
                    None => (ratios[i], Some(size)),
                    Some(scale) => {
                        let n = n.unwrap_or(0) as f64;
                        (scale, Some((scale * n + 0.5).floor() as usize))
                    }
                });
            }
        }
        _ => return Err(Error::invalid("either scales or sizes, one for each axis")),
    }
    let mut y = x;
    for (i, &a) in over.iter().enumerate() {
        let (scale, size) = plan[i];
        // An axis that stays as it is may be symbolic.
        let crop = roi.as_ref().map(|r| (r[i], r[i + over.len()]));
        let untouched = scale == 1.0 && crop.is_none_or(|c| c == (0.0, 1.0));
        if untouched && size.is_none_or(|s| Some(s) == input[i]) {
            continue;
        }
        let n = ty.shape[a].fixed().map_err(|_| {
            Error::unsupported(format!(
                "resizing the symbolic axis {}; bind it with `Importer::dim`",
                ty.shape[a]
            ))
        })?;
        if !(scale.is_finite() && scale > 0.0 && scale < 1e6) {
            return Err(Error::invalid(format!("a scale of {scale}")));
        }
        let plan = Axis {
            axis: a,
            input: n,
            output: size.unwrap_or((n as f64 * scale).floor() as usize),
            scale,
            roi: crop.unwrap_or((0.0, 1.0)),
        };
        y = sampling.apply(cx, y, &plan)?;
    }
    if y == x {
        return Ok(vec![node.input(0)?]);
    }
    Ok(cx.one(y))
}

fn upsample(cx: &mut Cx<'_>, node: &Node<'_>) -> Result<Vec<V>> {
    let x = cx.x(node, 0)?;
    let ty = cx.b.type_of(x).clone();
    let scales = match node.floats("scales")? {
        Some(scales) => scales,
        None => {
            let v = node.input(1)?;
            cx.numbers(v, "the scales")?
        }
    };
    if scales.len() != ty.rank() {
        return Err(Error::invalid("there must be one scale for each axis"));
    }
    let sampling = Sampling {
        mode: node.text_or("mode", "nearest")?,
        coordinates: "asymmetric",
        nearest: "floor",
        cubic: -0.75,
        exclude_outside: false,
        antialias: false,
        extrapolation: 0.0,
    };
    let mut y = x;
    for (a, &scale) in scales.iter().enumerate() {
        if scale == 1.0 {
            continue;
        }
        if !(scale.is_finite() && scale > 0.0 && scale < 1e6) {
            return Err(Error::invalid(format!("a scale of {scale}")));
        }
        let n = ty.shape[a].fixed()?;
        let plan = Axis {
            axis: a,
            input: n,
            output: (n as f64 * scale).floor() as usize,
            scale,
            roi: (0.0, 1.0),
        };
        y = sampling.apply(cx, y, &plan)?;
    }
    Ok(cx.one(y))
}

/// What lies beyond the border of an image.
#[derive(Clone, Copy, PartialEq)]
enum Beyond {
    Zeros,
    Border,
    Reflection { align: bool },
}

/// A coordinate brought into `0..n`, unless what lies beyond is zeros.
fn bring_inside(cx: &mut Cx<'_>, x: ValueId, n: usize, beyond: Beyond) -> Result<ValueId> {
    let last = n.saturating_sub(1) as f64;
    match beyond {
        Beyond::Zeros => Ok(x),
        Beyond::Border => cx.b.clip(x, 0.0, last),
        Beyond::Reflection { align } => {
            let (low, span) = if align { (0.0, last) } else { (-0.5, n as f64) };
            if span == 0.0 {
                return cx.b.mul_scalar(x, 0.0);
            }
            let shifted = cx.b.add_scalar(x, -low)?;
            let distance = cx.b.abs(shifted)?;
            let turns = cx.b.mul_scalar(distance, 1.0 / span)?;
            let turns = cx.b.floor(turns)?;
            let whole = cx.b.mul_scalar(turns, span)?;
            let rest = cx.b.sub(distance, whole)?;
            // Every other turn runs backwards.
            let half = cx.b.mul_scalar(turns, 0.5)?;
            let floor = cx.b.floor(half)?;
            let odd = cx.b.sub(half, floor)?;
            let zero = cx.like(odd, 0.0)?;
            let backwards = cx.b.greater(odd, zero)?;
            let minus = cx.b.neg(rest)?;
            let mirrored = cx.b.add_scalar(minus, span)?;
            let y = cx.b.select(backwards, mirrored, rest)?;
            let y = cx.b.add_scalar(y, low)?;
            cx.b.clip(y, 0.0, last)
        }
    }
}

fn grid_sample(cx: &mut Cx<'_>, node: &Node<'_>) -> Result<Vec<V>> {
    let (x, grid) = (cx.x(node, 0)?, cx.x(node, 1)?);
    let align = node.flag("align_corners", false)?;
    let mode = match node.text_or("mode", "linear")? {
        "linear" | "bilinear" => 2,
        "nearest" => 1,
        "cubic" | "bicubic" => 4,
        other => return Err(Error::unsupported(format!("the mode `{other}`"))),
    };
    let beyond = match node.text_or("padding_mode", "zeros")? {
        "zeros" => Beyond::Zeros,
        "border" => Beyond::Border,
        "reflection" => Beyond::Reflection { align },
        other => return Err(Error::unsupported(format!("the padding `{other}`"))),
    };
    let (tx, tg) = (cx.b.type_of(x).clone(), cx.b.type_of(grid).clone());
    let spatial = tx.rank().saturating_sub(2);
    if spatial == 0 || tg.rank() != tx.rank() || tg.shape[tg.rank() - 1].as_fixed() != Some(spatial)
    {
        return Err(Error::shape(format!("a grid {tg} for {tx}")));
    }
    if mode == 4 && spatial > 2 {
        return Err(Error::unsupported("cubic sampling in three dimensions"));
    }
    let sizes = opt_core::Shape::new(tx.shape.dims()[2..].iter().cloned()).fixed()?;
    let channels = tx.shape[1].clone();
    let points = opt_core::Shape::new(tg.shape.dims()[1..tg.rank() - 1].iter().cloned());
    let count = points.size()?;
    // [N, points] for each axis; the grid's last entry is the first axis.
    let mut choices: Vec<Vec<(ValueId, ValueId)>> = Vec::new();
    for (k, &n) in sizes.iter().enumerate() {
        let entry = spatial - 1 - k;
        let g = cx.b.slice(grid, tg.rank() - 1, entry, entry + 1)?;
        let g = cx.b.reshape(g, vec![tg.shape[0].clone(), count.clone()])?;
        let g = cx.b.cast(g, tx.dtype)?;
        let g = cx.b.add_scalar(g, 1.0)?;
        let at = if align {
            cx.b.mul_scalar(g, (n as f64 - 1.0) / 2.0)?
        } else {
            let scaled = cx.b.mul_scalar(g, n as f64 / 2.0)?;
            cx.b.add_scalar(scaled, -0.5)?
        };
        let mut taps = Vec::new();
        if mode == 4 {
            let floor = cx.b.floor(at)?;
            let t = cx.b.sub(at, floor)?;
            for i in -1..3 {
                let index = cx.b.add_scalar(floor, f64::from(i))?;
                let index = bring_inside(cx, index, n, beyond)?;
                taps.push((index, cubic_weight(cx, t, i)?));
            }
        } else {
            let at = bring_inside(cx, at, n, beyond)?;
            if mode == 1 {
                let index = cx.b.round(at)?;
                taps.push((index, cx.b.full_like(index, 1.0)?));
            } else {
                let floor = cx.b.floor(at)?;
                let right = cx.b.sub(at, floor)?;
                let minus = cx.b.neg(right)?;
                let left = cx.b.add_scalar(minus, 1.0)?;
                let next = cx.b.add_scalar(floor, 1.0)?;
                taps.push((floor, left));
                taps.push((next, right));
            }
        }
        // Entries beyond the border count for nothing; their index may be any.
        let mut checked = Vec::new();
        for (index, weight) in taps {
            let (zero, last) = (cx.like(index, 0.0)?, cx.like(index, n as f64 - 1.0)?);
            let (above, below) = (
                cx.b.greater_or_equal(index, zero)?,
                cx.b.less_or_equal(index, last)?,
            );
            let inside = cx.b.and(above, below)?;
            let nothing = cx.like(weight, 0.0)?;
            let weight = cx.b.select(inside, weight, nothing)?;
            let index = cx.b.select(inside, index, zero)?;
            checked.push((cx.b.cast(index, DType::I64)?, weight));
        }
        choices.push(checked);
    }
    let flat = cx.b.reshape(
        x,
        vec![
            tx.shape[0].clone(),
            channels.clone(),
            Dim::Fixed(sizes.iter().product()),
        ],
    )?;
    let wide = vec![tx.shape[0].clone(), channels.clone(), count.clone()];
    let mut sum: Option<ValueId> = None;
    let combinations: usize = choices.iter().map(Vec::len).product();
    for c in 0..combinations {
        let (mut rest, mut index, mut weight) = (c, None, None);
        for (axis, taps) in choices.iter().enumerate() {
            let (i, w) = taps[rest % taps.len()];
            rest /= taps.len();
            index = Some(match index {
                None => i,
                Some(before) => {
                    let scaled = cx.b.mul_scalar(before, sizes[axis] as f64)?;
                    cx.b.add(scaled, i)?
                }
            });
            weight = Some(match weight {
                None => w,
                Some(before) => cx.b.mul(before, w)?,
            });
        }
        let (Some(index), Some(weight)) = (index, weight) else {
            return Err(Error::shape("there is no spatial axis"));
        };
        let index = cx.b.unsqueeze(index, &[1])?;
        let index = cx.b.expand(index, wide.clone())?;
        let weight = cx.b.unsqueeze(weight, &[1])?;
        let picked = cx.b.gather_elements(flat, index, 2)?;
        let part = cx.b.mul(picked, weight)?;
        sum = Some(match sum {
            Some(s) => cx.b.add(s, part)?,
            None => part,
        });
    }
    let mut shape = vec![tx.shape[0].clone(), channels];
    shape.extend_from_slice(points.dims());
    let y = cx.b.reshape(sum.expect("there is a tap"), shape)?;
    Ok(cx.one(y))
}

/// The weight of the neighbour `i` (-1 to 2) at a fraction `t`, of the cubic kernel with -0.75.
fn cubic_weight(cx: &mut Cx<'_>, t: ValueId, i: i32) -> Result<ValueId> {
    const A: f64 = -0.75;
    // A polynomial in the distance to the neighbour, highest power first.
    let (distance, c) = match i {
        -1 => (cx.b.add_scalar(t, 1.0)?, [A, -5.0 * A, 8.0 * A, -4.0 * A]),
        0 => (t, [A + 2.0, -(A + 3.0), 0.0, 1.0]),
        _ => {
            let minus = cx.b.neg(t)?;
            let d = cx.b.add_scalar(minus, f64::from(i))?;
            if i == 1 {
                (d, [A + 2.0, -(A + 3.0), 0.0, 1.0])
            } else {
                (d, [A, -5.0 * A, 8.0 * A, -4.0 * A])
            }
        }
    };
    let mut y = cx.b.mul_scalar(distance, c[0])?;
    y = cx.b.add_scalar(y, c[1])?;
    for &next in &c[2..] {
        y = cx.b.mul(y, distance)?;
        y = cx.b.add_scalar(y, next)?;
    }
    Ok(y)
}

fn affine_grid(cx: &mut Cx<'_>, node: &Node<'_>) -> Result<Vec<V>> {
    let theta = cx.x(node, 0)?;
    let size = node.input(1)?;
    let size = cx.integers(size, "the size")?;
    let align = node.flag("align_corners", false)?;
    let size = counts(&size, "a size")?;
    if size.len() < 4 || size.len() > 5 {
        return Err(Error::shape(format!("a size of {size:?}")));
    }
    let spatial = &size[2..];
    let points: usize = spatial.iter().product();
    count(points as i64, "the size")?;
    let dims = spatial.len();
    // Rows of coordinates (the last axis first) and a one.
    let mut base = Vec::with_capacity(points * (dims + 1));
    for p in 0..points {
        let (mut rest, mut at) = (p, Vec::new());
        for &n in spatial.iter().rev() {
            let i = (rest % n) as f64;
            rest /= n;
            let n = n as f64;
            at.push(if align {
                if n > 1.0 {
                    -1.0 + 2.0 * i / (n - 1.0)
                } else {
                    0.0
                }
            } else {
                (2.0 * i + 1.0) / n - 1.0
            });
        }
        at.push(1.0);
        base.extend(at);
    }
    let dtype = cx.b.type_of(theta).dtype;
    let base =
        cx.b.constant(Tensor::from_f64s(dtype, [points, dims + 1], &base)?);
    let grid = super::matmul::product(cx, base, theta, false, true)?;
    let mut shape = vec![cx.b.type_of(theta).shape[0].clone()];
    shape.extend(spatial.iter().map(|&n| Dim::Fixed(n)));
    shape.push(Dim::Fixed(dims));
    let y = cx.b.reshape(grid, shape)?;
    Ok(cx.one(y))
}
