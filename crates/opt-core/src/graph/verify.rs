//! What makes a graph valid.

use std::collections::HashSet;

use super::{Graph, NodeId, ValueKind};
use crate::ops::Op;
use crate::{Error, ErrorKind, Result, ResultExt, TensorType};

impl Graph {
    /// Checks that every value is assigned once and before it is used, names are unique, the
    /// types are what the ops infer, constants and variables hold what their types say, each
    /// variable is assigned at most once, and the facts hold.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidGraph`] or [`ErrorKind::FactViolated`], at the node or value.
    pub fn verify(&self) -> Result<()> {
        let bad = |m: String| Error::new(ErrorKind::InvalidGraph, m);
        let mut names = HashSet::new();
        let mut defined = vec![false; self.values.len()];
        for (id, value) in self.values() {
            if !names.insert(value.name.as_str()) {
                return Err(bad(format!("two values are named `{}`", value.name)));
            }
            match &value.kind {
                ValueKind::Input => {
                    if !self.inputs.contains(&id) {
                        return Err(bad(format!("`{}` is not in the inputs", value.name)));
                    }
                    defined[id.index()] = true;
                }
                ValueKind::Constant(t) | ValueKind::Variable(t) => {
                    if TensorType::new(t.dtype(), t.shape()) != value.ty {
                        return Err(bad(format!(
                            "`{}` has type {} and content {}{:?}",
                            value.name,
                            value.ty,
                            t.dtype(),
                            t.shape()
                        )));
                    }
                    defined[id.index()] = true;
                }
                ValueKind::Result { .. } => {}
            }
        }
        let mut node_names = HashSet::new();
        let mut assigned = HashSet::new();
        let mut seen: HashSet<NodeId> = HashSet::new();
        for (id, node) in self.nodes() {
            let at = || node.describe();
            if !seen.insert(id) || !node_names.insert(node.name.as_str()) {
                return Err(bad("the node, or its name, stands twice".into()).at(at()));
            }
            let mut types = Vec::with_capacity(node.inputs.len());
            for &input in &node.inputs {
                let value = self
                    .get(input)
                    .ok_or_else(|| bad(format!("no value {input:?}")).at(at()))?;
                if !defined[input.index()] {
                    return Err(
                        bad(format!("`{}` is used before it is defined", value.name)).at(at()),
                    );
                }
                types.push(value.ty.clone());
            }
            let inferred = node.op.rules().infer(&types).at(at)?;
            if inferred.len() != node.outputs.len() {
                return Err(bad("wrong number of outputs".into()).at(at()));
            }
            for (index, (&out, ty)) in node.outputs.iter().zip(&inferred).enumerate() {
                let value = self
                    .get(out)
                    .ok_or_else(|| bad(format!("no value {out:?}")).at(at()))?;
                if value.ty != *ty {
                    return Err(bad(format!(
                        "output {index} has type {}, the op gives {ty}",
                        value.ty
                    ))
                    .at(at()));
                }
                if value.kind != (ValueKind::Result { node: id, index })
                    || std::mem::replace(&mut defined[out.index()], true)
                {
                    return Err(bad(format!("`{}` is assigned twice", value.name)).at(at()));
                }
            }
            if cfg!(debug_assertions) {
                let rules = node.op.rules().axes(&types, &inferred);
                rules.check(&types, &inferred).at(at)?;
            }
            if matches!(node.op, Op::Assign(_)) {
                let target = self.value(node.inputs[0]);
                if !matches!(target.kind, ValueKind::Variable(_)) {
                    return Err(bad(format!("`{}` is no variable", target.name)).at(at()));
                }
                if !assigned.insert(node.inputs[0]) {
                    return Err(bad(format!("`{}` is assigned twice", target.name)).at(at()));
                }
            }
        }
        for (name, v) in &self.outputs {
            if self.get(*v).is_none() || !defined[v.index()] {
                return Err(bad(format!("output `{name}` is not defined")));
            }
        }
        self.facts.check(self)
    }
}
