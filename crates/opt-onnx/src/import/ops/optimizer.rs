//! The update rules of ONNX's training preview, one tensor or several at a time.

use opt_core::ops::BinaryOp;
use opt_core::{Error, Result, ValueId};

use super::Lower;
use crate::import::Cx;
use crate::import::node::{Node, V};

pub(super) fn find(op: &str) -> Option<Lower> {
    Some(match op {
        "Adagrad" => adagrad,
        "Adam" => adam,
        "Momentum" => momentum,
        _ => return None,
    })
}

/// The rate and the step count, which every rule starts with, and the other inputs in `groups`
/// runs of equal length.
fn operands(
    cx: &mut Cx<'_>,
    node: &Node<'_>,
    groups: usize,
) -> Result<(ValueId, ValueId, Vec<Vec<ValueId>>)> {
    let (rate, count) = (cx.x(node, 0)?, cx.x(node, 1)?);
    let rest = node.rest(2)?;
    if rest.is_empty() || rest.len() % groups != 0 {
        return Err(Error::invalid(format!(
            "{} tensors are no {groups} equal groups",
            rest.len()
        )));
    }
    let mut ids = Vec::new();
    for v in rest {
        ids.push(cx.id(v)?);
    }
    let each = ids.len() / groups;
    let scalar = |cx: &mut Cx<'_>, v: ValueId| cx.b.reshape(v, [0usize; 0]);
    let (rate, count) = (scalar(cx, rate)?, scalar(cx, count)?);
    Ok((rate, count, ids.chunks(each).map(<[_]>::to_vec).collect()))
}

/// The gradient with the weight's decay added.
fn decayed(cx: &mut Cx<'_>, x: ValueId, g: ValueId, factor: f64) -> Result<ValueId> {
    let part = cx.b.mul_scalar(x, factor)?;
    cx.b.add(part, g)
}

fn collect(cx: &mut Cx<'_>, groups: Vec<Vec<ValueId>>) -> Vec<V> {
    groups.into_iter().flatten().map(|id| cx.val(id)).collect()
}

fn adagrad(cx: &mut Cx<'_>, node: &Node<'_>) -> Result<Vec<V>> {
    let (rate, count, groups) = operands(cx, node, 3)?;
    let decay = node.float_or("decay_factor", 0.0)?;
    let epsilon = node.float_or("epsilon", 0.0)?;
    let norm = node.float_or("norm_coefficient", 0.0)?;
    let dtype = cx.b.type_of(rate).dtype;
    // rate / (1 + count * decay)
    let count = cx.b.cast(count, dtype)?;
    let slowed = cx.b.mul_scalar(count, decay)?;
    let slowed = cx.b.add_scalar(slowed, 1.0)?;
    let rate = cx.b.div(rate, slowed)?;
    let (mut xs, mut hs) = (Vec::new(), Vec::new());
    for ((&x, &g), &h) in groups[0].iter().zip(&groups[1]).zip(&groups[2]) {
        let g = decayed(cx, x, g, norm)?;
        let square = cx.b.mul(g, g)?;
        let h = cx.b.add(h, square)?;
        let root = cx.b.sqrt(h)?;
        let root = cx.b.add_scalar(root, epsilon)?;
        let step = cx.b.mul(rate, g)?;
        let step = cx.b.div(step, root)?;
        xs.push(cx.b.sub(x, step)?);
        hs.push(h);
    }
    Ok(collect(cx, vec![xs, hs]))
}

fn adam(cx: &mut Cx<'_>, node: &Node<'_>) -> Result<Vec<V>> {
    let (rate, count, groups) = operands(cx, node, 4)?;
    let alpha = node.float_or("alpha", 0.9)?;
    let beta = node.float_or("beta", 0.999)?;
    let epsilon = node.float_or("epsilon", 0.0)?;
    let norm = node.float_or("norm_coefficient", 0.0)?;
    let post = node.float_or("norm_coefficient_post", 0.0)?;
    let dtype = cx.b.type_of(rate).dtype;
    // rate * sqrt(1 - beta^t) / (1 - alpha^t) from the first step on, rate at step 0.
    let t = cx.b.cast(count, dtype)?;
    let bias = |cx: &mut Cx<'_>, base: f64| -> Result<ValueId> {
        let base = cx.like(t, base)?;
        let power =
            cx.b.op(opt_core::ops::Binary { op: BinaryOp::Pow }, &[base, t])?;
        let minus = cx.b.neg(power)?;
        cx.b.add_scalar(minus, 1.0)
    };
    let (first, second) = (bias(cx, alpha)?, bias(cx, beta)?);
    let root = cx.b.sqrt(second)?;
    let corrected = cx.b.mul(rate, root)?;
    let corrected = cx.b.div(corrected, first)?;
    let zero = cx.like(t, 0.0)?;
    let started = cx.b.greater(t, zero)?;
    let rate = cx.b.select(started, corrected, rate)?;
    let (mut xs, mut vs, mut hs) = (Vec::new(), Vec::new(), Vec::new());
    let each = groups[0]
        .iter()
        .zip(&groups[1])
        .zip(&groups[2])
        .zip(&groups[3]);
    for (((&x, &g), &v), &h) in each {
        let g = decayed(cx, x, g, norm)?;
        let (old, new) = (cx.b.mul_scalar(v, alpha)?, cx.b.mul_scalar(g, 1.0 - alpha)?);
        let v = cx.b.add(old, new)?;
        let square = cx.b.mul(g, g)?;
        let (old, new) = (
            cx.b.mul_scalar(h, beta)?,
            cx.b.mul_scalar(square, 1.0 - beta)?,
        );
        let h = cx.b.add(old, new)?;
        let root = cx.b.sqrt(h)?;
        let root = cx.b.add_scalar(root, epsilon)?;
        let step = cx.b.mul(rate, v)?;
        let step = cx.b.div(step, root)?;
        let y = cx.b.sub(x, step)?;
        xs.push(cx.b.mul_scalar(y, 1.0 - post)?);
        vs.push(v);
        hs.push(h);
    }
    Ok(collect(cx, vec![xs, vs, hs]))
}

fn momentum(cx: &mut Cx<'_>, node: &Node<'_>) -> Result<Vec<V>> {
    let (rate, count, groups) = operands(cx, node, 3)?;
    let attribute = |name: &str| -> Result<f64> {
        node.float(name)?
            .ok_or_else(|| Error::invalid(format!("there is no `{name}`")))
    };
    let (alpha, beta) = (attribute("alpha")?, attribute("beta")?);
    let norm = attribute("norm_coefficient")?;
    let nesterov = match node.text_or("mode", "standard")? {
        "standard" => false,
        "nesterov" => true,
        other => return Err(Error::unsupported(format!("the mode `{other}`"))),
    };
    // At the first step the gradient counts in full.
    let zero = cx.like(count, 0.0)?;
    let started = cx.b.greater(count, zero)?;
    let (full, part) = (cx.like(rate, 1.0)?, cx.like(rate, beta)?);
    let weight = cx.b.select(started, part, full)?;
    let (mut xs, mut vs) = (Vec::new(), Vec::new());
    for ((&x, &g), &v) in groups[0].iter().zip(&groups[1]).zip(&groups[2]) {
        let g = decayed(cx, x, g, norm)?;
        let (old, new) = (cx.b.mul_scalar(v, alpha)?, cx.b.mul(weight, g)?);
        let v = cx.b.add(old, new)?;
        let direction = if nesterov {
            let ahead = cx.b.mul_scalar(v, alpha)?;
            cx.b.add(g, ahead)?
        } else {
            v
        };
        let step = cx.b.mul(rate, direction)?;
        xs.push(cx.b.sub(x, step)?);
        vs.push(v);
    }
    Ok(collect(cx, vec![xs, vs]))
}
