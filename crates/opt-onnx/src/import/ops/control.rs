//! Constants, copies and branches.

use opt_core::{Error, Result, Tensor};

use super::Lower;
use crate::import::known::Known;
use crate::import::node::{Node, V};
use crate::import::{Cx, Val};
use crate::tensor;

pub(super) fn find(op: &str) -> Option<Lower> {
    Some(match op {
        "Constant" => constant,
        "Identity" => identity,
        "If" => branch,
        _ => return None,
    })
}

fn constant(cx: &mut Cx<'_>, node: &Node<'_>) -> Result<Vec<V>> {
    let content = if let Some(proto) = node.tensor("value")? {
        tensor::read(proto, cx.source())?
    } else if let Some(v) = node.float("value_float")? {
        Tensor::scalar(v as f32)
    } else if let Some(v) = node.int("value_int")? {
        Tensor::scalar(v)
    } else if let Some(list) = node.floats("value_floats")? {
        let list: Vec<f32> = list.iter().map(|&v| v as f32).collect();
        Tensor::new([list.len()], list)?
    } else if let Some(list) = node.ints("value_ints")? {
        Tensor::new([list.len()], list)?
    } else {
        return Err(Error::unsupported("only tensors and numbers are supported"));
    };
    let name = node.proto.output.first().map_or("const", String::as_str);
    if content.len() > 1 {
        cx.parameters.insert(name.to_string());
    }
    Ok(vec![cx.push(Val::known(name, Known::Tensor(content)))])
}

fn identity(cx: &mut Cx<'_>, node: &Node<'_>) -> Result<Vec<V>> {
    let v = node.input(0)?;
    // PyTorch's TorchScript exporter stores equal parameters once and copies them by name: each
    // is a parameter of its own, which training tells apart.
    if let (Some(Known::Tensor(content)), false) = (&cx.vals[v].known, cx.vals[v].offered) {
        let name = node.proto.output.first().map_or("const", String::as_str);
        let (name, content) = (name.to_string(), content.clone());
        if cx.parameters.contains(&cx.vals[v].name) {
            cx.parameters.insert(name.clone());
        }
        let copy = Val::known(&name, Known::Tensor(content));
        return Ok(vec![cx.push(copy)]);
    }
    Ok(vec![v])
}

fn branch(cx: &mut Cx<'_>, node: &Node<'_>) -> Result<Vec<V>> {
    let condition = node.input(0)?;
    let (yes, no) = (node.graph("then_branch")?, node.graph("else_branch")?);
    let condition = cx.integers(condition, "the condition")?;
    let taken = match condition.first() {
        Some(0) => no,
        Some(_) => yes,
        None => return Err(Error::shape("the condition has no entry")),
    };
    let graph = taken.ok_or_else(|| Error::invalid("a branch is missing"))?;
    cx.branch(node, graph)
}
