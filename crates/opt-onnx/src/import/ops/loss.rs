//! Losses.

use opt_core::{DType, Error, Result, ValueId};

use super::Lower;
use crate::import::Cx;
use crate::import::node::{Node, V};

pub(super) fn find(op: &str) -> Option<Lower> {
    Some(match op {
        "NegativeLogLikelihoodLoss" => nll,
        "SoftmaxCrossEntropyLoss" => cross_entropy,
        _ => return None,
    })
}

fn nll(cx: &mut Cx<'_>, node: &Node<'_>) -> Result<Vec<V>> {
    let x = cx.x(node, 0)?;
    let y = negative_log_likelihood(cx, node, x)?;
    Ok(cx.one(y))
}

fn cross_entropy(cx: &mut Cx<'_>, node: &Node<'_>) -> Result<Vec<V>> {
    let x = cx.x(node, 0)?;
    if cx.b.type_of(x).rank() < 2 {
        return Err(Error::shape("scores must be [N,C,..]"));
    }
    let log = cx.b.log_softmax(x, 1)?;
    let loss = negative_log_likelihood(cx, node, log)?;
    Ok(vec![cx.val(loss), cx.val(log)])
}

/// Minus the entries of `x` `[N, C, ..]` at the labels `[N, ..]`, weighted by class and reduced.
fn negative_log_likelihood(cx: &mut Cx<'_>, node: &Node<'_>, x: ValueId) -> Result<ValueId> {
    let labels = cx.x(node, 1)?;
    let weight = cx.maybe_x(node, 2)?;
    let ignore = node.int("ignore_index")?;
    let reduction = node.text_or("reduction", "mean")?;
    if cx.b.type_of(x).rank() < 2 {
        return Err(Error::shape("scores must be [N,C,..]"));
    }
    let labels = cx.b.cast(labels, DType::I64)?;
    let zero = cx.like(labels, 0.0)?;
    let (kept, labels) = match ignore {
        Some(index) => {
            let ignored = cx.like(labels, index as f64)?;
            let hit = cx.b.equal(labels, ignored)?;
            // Any class will do where the entry does not count.
            let safe = cx.b.select(hit, zero, labels)?;
            (Some(cx.b.not(hit)?), safe)
        }
        None => (None, labels),
    };
    let column = cx.b.unsqueeze(labels, &[1])?;
    let picked = cx.b.gather_elements(x, column, 1)?;
    let picked = cx.b.squeeze(picked, &[1])?;
    let mut loss = cx.b.neg(picked)?;
    let mut counted = match weight {
        Some(w) => Some(cx.b.gather(w, labels, 0)?),
        None => None,
    };
    if let Some(kept) = kept {
        let zero = cx.like(loss, 0.0)?;
        let ones = match counted {
            Some(w) => w,
            None => cx.like(loss, 1.0)?,
        };
        counted = Some(cx.b.select(kept, ones, zero)?);
        // Not by the weight alone: zero times infinity is no number.
        loss = cx.b.select(kept, loss, zero)?;
    }
    if let Some(w) = counted {
        loss = cx.b.mul(loss, w)?;
    }
    match reduction {
        "none" => Ok(loss),
        "sum" => cx.b.sum_all(loss),
        "mean" => match counted {
            None => cx.b.mean_all(loss),
            Some(w) => {
                let (loss, total) = (cx.b.sum_all(loss)?, cx.b.sum_all(w)?);
                cx.b.div(loss, total)
            }
        },
        other => Err(Error::unsupported(format!("the reduction `{other}`"))),
    }
}
