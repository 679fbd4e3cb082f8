//! Reading ONNX's messages: names, types, the order of nodes, the bodies of functions.

use std::collections::HashMap;

use opt_core::{Dim, Error, Result, SizeExpr, Symbol, TensorType};

use super::{MAX_DEPTH, bad};
use crate::proto::{
    AttributeProto, NodeProto, TypeProto, ValueInfoProto, attribute_proto, tensor_shape_proto,
    type_proto,
};
use crate::tensor;

pub(super) fn node_name(proto: &NodeProto) -> &str {
    if !proto.name().is_empty() {
        return proto.name();
    }
    let first = proto.output.iter().find(|o| !o.is_empty());
    first.map_or(proto.op_type(), String::as_str)
}

/// An order of nodes in which each follows those whose outputs it reads; the given order where
/// it is one.
pub(super) fn order(nodes: &[NodeProto]) -> Result<Vec<usize>> {
    let mut made: HashMap<&str, usize> = HashMap::new();
    for (i, node) in nodes.iter().enumerate() {
        for name in node.output.iter().filter(|n| !n.is_empty()) {
            made.insert(name, i);
        }
    }
    // 0: not seen, 1: open, 2: done.
    let mut state = vec![0u8; nodes.len()];
    let mut out = Vec::with_capacity(nodes.len());
    for start in 0..nodes.len() {
        let mut stack = vec![(start, 0usize)];
        while let Some((i, next)) = stack.pop() {
            if state[i] == 2 {
                continue;
            }
            state[i] = 1;
            let mut waits = false;
            for (k, name) in nodes[i].input.iter().enumerate().skip(next) {
                let Some(&maker) = made.get(name.as_str()) else {
                    continue;
                };
                match state[maker] {
                    2 => {}
                    1 => {
                        return Err(bad(format!(
                            "the graph has a cycle through the node `{}`",
                            node_name(&nodes[maker])
                        )));
                    }
                    _ => {
                        stack.push((i, k + 1));
                        stack.push((maker, 0));
                        waits = true;
                        break;
                    }
                }
            }
            if !waits {
                state[i] = 2;
                out.push(i);
            }
        }
    }
    Ok(out)
}

/// Nodes of a function with its attributes put in, in their branches too.
pub(super) fn substitute<'a>(
    nodes: &[NodeProto],
    attributes: &dyn Fn(&str) -> Option<&'a AttributeProto>,
    depth: usize,
) -> Result<Vec<NodeProto>> {
    if depth > MAX_DEPTH {
        return Err(Error::unsupported("branches nested too deep"));
    }
    let mut out = nodes.to_vec();
    for node in &mut out {
        let mut kept = Vec::with_capacity(node.attribute.len());
        for mut attribute in std::mem::take(&mut node.attribute) {
            let reference = attribute.ref_attr_name().to_string();
            if !reference.is_empty() {
                // One that is not given is as if it were not there.
                if let Some(found) = attributes(&reference) {
                    kept.push(AttributeProto {
                        name: attribute.name.clone(),
                        ..found.clone()
                    });
                }
                continue;
            }
            if attribute.r#type() == attribute_proto::AttributeType::Graph
                && let Some(graph) = &mut attribute.g
            {
                graph.node = substitute(&graph.node, attributes, depth + 1)?;
            }
            kept.push(attribute);
        }
        node.attribute = kept;
    }
    Ok(out)
}

/// A named dimension; PyTorch's exporter writes expressions such as `4*h + 1`.
fn dim_param(text: &str) -> Dim {
    let name = || Dim::Symbol(Symbol::new(text));
    let compact: String = text.chars().filter(|c| !c.is_whitespace()).collect();
    let is_name = |t: &str| {
        t.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_')
            && t.chars().all(|c| c.is_ascii_alphanumeric() || c == '_')
    };
    if is_name(&compact) {
        return name();
    }
    // A sum of products; whatever else there is, is a name like any other.
    let mut sum = SizeExpr::default();
    for term in compact
        .replace('-', "+-1*")
        .split('+')
        .filter(|t| !t.is_empty())
    {
        let mut product = SizeExpr::from(1);
        for factor in term.split('*') {
            let factor = match factor.parse::<i64>() {
                Ok(n) => n.into(),
                Err(_) if is_name(factor) => Symbol::new(factor).into(),
                Err(_) => return name(),
            };
            match product.mul(&factor) {
                Ok(p) => product = p,
                Err(_) => return name(),
            }
        }
        match sum.add(&product) {
            Ok(s) => sum = s,
            Err(_) => return name(),
        }
    }
    // As a size it has a symbol at least: a plain number would be no name.
    if sum.as_constant().is_some() {
        return name();
    }
    sum.dim().unwrap_or_else(|_| name())
}

/// The type of an input of the model.
pub(super) fn input_type(info: &ValueInfoProto) -> Result<TensorType> {
    let tensor = match &info.r#type {
        Some(TypeProto {
            value: Some(type_proto::Value::TensorType(t)),
            ..
        }) => t,
        Some(TypeProto { value: Some(_), .. }) => {
            return Err(Error::unsupported(
                "only tensors are supported, not sequences, maps, options or sparse tensors",
            ));
        }
        _ => return Err(bad("it has no type")),
    };
    let dtype = tensor::dtype(tensor.elem_type())?;
    let Some(shape) = &tensor.shape else {
        return Err(Error::unsupported(
            "its number of dimensions is not known; run shape inference on the model first",
        ));
    };
    let dims: Result<Vec<Dim>> = shape
        .dim
        .iter()
        .enumerate()
        .map(|(axis, dim)| match &dim.value {
            Some(tensor_shape_proto::dimension::Value::DimValue(n)) => usize::try_from(*n)
                .ok()
                .filter(|&n| n <= isize::MAX as usize / 8)
                .map(Dim::Fixed)
                .ok_or_else(|| bad(format!("dimension {axis} is {n}"))),
            Some(tensor_shape_proto::dimension::Value::DimParam(name)) if !name.is_empty() => {
                Ok(dim_param(name))
            }
            _ => Ok(Dim::Symbol(Symbol::new(format!(
                "{}_dim_{axis}",
                info.name()
            )))),
        })
        .collect();
    let ty = TensorType::new(dtype, dims?);
    let fixed = ty.shape.dims().iter().filter_map(Dim::as_fixed);
    let size = fixed.map(|d| d.max(1)).try_fold(1usize, usize::checked_mul);
    if size.is_none_or(|n| n > isize::MAX as usize / 8) {
        return Err(bad(format!("the dimensions of {ty} overflow")));
    }
    Ok(ty)
}
