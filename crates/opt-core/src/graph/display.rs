//! Graphs as text, Graphviz and Mermaid.

use std::fmt::{self, Write};

use super::{Graph, ValueId, ValueKind};

impl Graph {
    /// The graph in Graphviz's DOT language: boxes are nodes, edges carry the types.
    pub fn to_dot(&self) -> String {
        let mut out = String::from("digraph {\n  node [shape=box, fontname=\"monospace\"];\n");
        for &v in &self.inputs {
            let value = self.value(v);
            let _ = writeln!(
                out,
                "  v{} [label={:?}, shape=ellipse];",
                v.0,
                format!("{}\n{}", value.name, value.ty)
            );
        }
        for (id, node) in self.nodes() {
            let mut label = format!("{}\n{}", node.op.name(), node.name);
            for &input in &node.inputs {
                let value = self.value(input);
                if value.tensor().is_some() {
                    let _ = write!(label, "\n{} {}", value.name, value.ty);
                }
            }
            let _ = writeln!(out, "  n{} [label={label:?}];", id.0);
            for &input in &node.inputs {
                if let Some(from) = self.dot_source(input) {
                    let ty = self.type_of(input).to_string();
                    let _ = writeln!(out, "  {from} -> n{} [label={ty:?}];", id.0);
                }
            }
        }
        for (i, (name, v)) in self.outputs.iter().enumerate() {
            let _ = writeln!(out, "  o{i} [label={name:?}, shape=ellipse];");
            if let Some(from) = self.dot_source(*v) {
                let ty = self.type_of(*v).to_string();
                let _ = writeln!(out, "  {from} -> o{i} [label={ty:?}];");
            }
        }
        out.push_str("}\n");
        out
    }

    /// The graph as a Mermaid flow chart, for Markdown files.
    pub fn to_mermaid(&self) -> String {
        let mut out = String::from("flowchart TD\n");
        let clean = |s: &str| s.replace('"', "'");
        for &v in &self.inputs {
            let value = self.value(v);
            let _ = writeln!(
                out,
                "  v{}([\"{}<br/>{}\"])",
                v.0,
                clean(&value.name),
                value.ty
            );
        }
        for (id, node) in self.nodes() {
            let _ = writeln!(
                out,
                "  n{}[\"{}<br/>{}\"]",
                id.0,
                node.op.name(),
                clean(&node.name)
            );
            for &input in &node.inputs {
                if let Some(from) = self.dot_source(input) {
                    let _ = writeln!(out, "  {from} -->|\"{}\"| n{}", self.type_of(input), id.0);
                }
            }
        }
        for (i, (name, v)) in self.outputs.iter().enumerate() {
            let _ = writeln!(out, "  o{i}([\"{}\"])", clean(name));
            if let Some(from) = self.dot_source(*v) {
                let _ = writeln!(out, "  {from} --> o{i}");
            }
        }
        out
    }

    fn dot_source(&self, v: ValueId) -> Option<String> {
        match self.value(v).kind {
            ValueKind::Input => Some(format!("v{}", v.0)),
            ValueKind::Result { node, .. } => Some(format!("n{}", node.0)),
            _ => None,
        }
    }
}

/// One line a value and node, in topological order.
impl fmt::Display for Graph {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "graph {}", self.name)?;
        for &v in &self.inputs {
            let value = self.value(v);
            writeln!(f, "  input {}: {}", value.name, value.ty)?;
        }
        for (_, value, _) in self.variables() {
            writeln!(f, "  variable {}: {}", value.name, value.ty)?;
        }
        for (_, value) in self.values() {
            if let ValueKind::Constant(t) = &value.kind {
                writeln!(f, "  constant {}: {t:?}", value.name)?;
            }
        }
        for (_, node) in self.nodes() {
            f.write_str("  ")?;
            for (i, &o) in node.outputs.iter().enumerate() {
                let value = self.value(o);
                let sep = if i > 0 { ", " } else { "" };
                write!(f, "{sep}{}: {}", value.name, value.ty)?;
            }
            write!(f, " = {:?}(", node.op)?;
            for (i, &v) in node.inputs.iter().enumerate() {
                let sep = if i > 0 { ", " } else { "" };
                write!(f, "{sep}{}", self.value(v).name)?;
            }
            writeln!(f, ")")?;
        }
        for (name, v) in &self.outputs {
            writeln!(f, "  output {name} = {}", self.value(*v).name)?;
        }
        Ok(())
    }
}

impl fmt::Debug for Graph {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}
