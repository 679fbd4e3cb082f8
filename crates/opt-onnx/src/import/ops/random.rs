//! Dropout.

use opt_core::ops::Dropout;
use opt_core::{DType, Error, Result};

use super::Lower;
use crate::import::Cx;
use crate::import::node::{Node, V};

pub(super) fn find(op: &str) -> Option<Lower> {
    Some(match op {
        "Dropout" => dropout,
        _ => return None,
    })
}

fn dropout(cx: &mut Cx<'_>, node: &Node<'_>) -> Result<Vec<V>> {
    let x = cx.x(node, 0)?;
    if node.version < 7 && !node.flag("is_test", false)? {
        return Err(Error::unsupported("dropout in training mode (is_test = 0)"));
    }
    // An attribute up to opset 11, an input from 12 on.
    let p = match node.float("ratio")? {
        Some(p) => p,
        None => match node.maybe(1) {
            Some(v) => match cx.numbers(v, "the ratio") {
                Ok(list) => list.first().copied().unwrap_or(0.5),
                // In evaluation nothing depends on it.
                Err(_) => 0.5,
            },
            None => 0.5,
        },
    };
    if !(0.0..1.0).contains(&p) {
        return Err(Error::invalid(format!("a ratio of {p}")));
    }
    if let Some(v) = node.maybe(2) {
        let training = cx.integers(v, "training_mode")?;
        if training.first().is_some_and(|&t| t != 0) && p > 0.0 {
            return Err(Error::unsupported(
                "dropout in training mode: read the model in evaluation mode and switch the \
                 graph with the pass `TrainMode`",
            ));
        }
    }
    let seed = node.int("seed")?.unwrap_or(cx.b.node_count() as i64) as u64;
    let op = Dropout {
        p,
        seed,
        training: false,
    };
    let ty = cx.b.type_of(x).clone();
    let y = cx.b.op(op, &[x])?;
    let mut out = cx.one(y);
    if node.wants(1) {
        let dtype = if node.version >= 10 {
            DType::Bool
        } else {
            ty.dtype
        };
        let one = cx.b.scalar(dtype, 1.0)?;
        let mask = cx.b.expand(one, ty.shape)?;
        out.push(cx.val(mask));
    }
    Ok(out)
}
