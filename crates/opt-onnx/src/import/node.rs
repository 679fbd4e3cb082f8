//! A node of an ONNX file, read with bookkeeping: what a lowering did not read was not
//! understood, and is an error rather than a silently different model.

use std::cell::RefCell;
use std::collections::BTreeSet;

use opt_core::{Error, ErrorKind, Result};

use crate::proto::{AttributeProto, GraphProto, NodeProto, TensorProto, attribute_proto};
use attribute_proto::AttributeType;

/// The index of a value in the importer's table.
pub(crate) type V = usize;

/// A node with its inputs resolved.
#[derive(Debug)]
pub(crate) struct Node<'m> {
    pub(crate) proto: &'m NodeProto,
    /// The version of the operator set of its domain.
    pub(crate) version: i64,
    inputs: Vec<Option<V>>,
    read_inputs: RefCell<BTreeSet<usize>>,
    read_attributes: RefCell<BTreeSet<&'m str>>,
}

fn bad(message: String) -> Error {
    Error::new(ErrorKind::Format, message)
}

impl<'m> Node<'m> {
    pub(crate) fn new(proto: &'m NodeProto, version: i64, inputs: Vec<Option<V>>) -> Node<'m> {
        Node {
            proto,
            version,
            inputs,
            read_inputs: RefCell::default(),
            read_attributes: RefCell::default(),
        }
    }

    /// The operator's name.
    pub(crate) fn op(&self) -> &'m str {
        self.proto.op_type()
    }

    /// The number of inputs, counting those left out before the last.
    pub(crate) fn input_count(&self) -> usize {
        self.inputs.len()
    }

    /// The number of outputs that something may read.
    pub(crate) fn output_count(&self) -> usize {
        let last = self.proto.output.iter().rposition(|o| !o.is_empty());
        last.map_or(0, |i| i + 1)
    }

    /// Whether an output is asked for.
    pub(crate) fn wants(&self, index: usize) -> bool {
        self.proto.output.get(index).is_some_and(|o| !o.is_empty())
    }

    /// An input that must be there.
    pub(crate) fn input(&self, index: usize) -> Result<V> {
        self.maybe(index)
            .ok_or_else(|| bad(format!("input {index} is missing")))
    }

    /// An input that may be left out.
    pub(crate) fn maybe(&self, index: usize) -> Option<V> {
        self.read_inputs.borrow_mut().insert(index);
        self.inputs.get(index).copied().flatten()
    }

    /// All inputs from an index on; none may be left out.
    pub(crate) fn rest(&self, from: usize) -> Result<Vec<V>> {
        (from..self.inputs.len()).map(|i| self.input(i)).collect()
    }

    /// All inputs, for looking at without reading them.
    pub(crate) fn all_inputs(&self) -> &[Option<V>] {
        &self.inputs
    }

    fn attribute(&self, name: &str, kind: AttributeType) -> Result<Option<&'m AttributeProto>> {
        let Some(found) = self.proto.attribute.iter().find(|a| a.name() == name) else {
            return Ok(None);
        };
        self.read_attributes.borrow_mut().insert(found.name());
        if found
            .ref_attr_name
            .as_deref()
            .is_some_and(|n| !n.is_empty())
        {
            return Err(bad(format!(
                "attribute `{name}` refers to a function's attribute outside of a function"
            )));
        }
        // Files older than the field `type` leave it out.
        if found.r#type() != kind && found.r#type() != AttributeType::Undefined {
            return Err(bad(format!(
                "attribute `{name}` is {}, expected {}",
                found.r#type().as_str_name(),
                kind.as_str_name()
            )));
        }
        Ok(Some(found))
    }

    /// Whether an attribute is there.
    pub(crate) fn has(&self, name: &str) -> bool {
        self.proto.attribute.iter().any(|a| a.name() == name)
    }

    pub(crate) fn int(&self, name: &str) -> Result<Option<i64>> {
        Ok(self.attribute(name, AttributeType::Int)?.map(|a| a.i()))
    }

    pub(crate) fn int_or(&self, name: &str, default: i64) -> Result<i64> {
        Ok(self.int(name)?.unwrap_or(default))
    }

    /// An integer attribute that is 0 or 1.
    pub(crate) fn flag(&self, name: &str, default: bool) -> Result<bool> {
        Ok(self.int_or(name, default.into())? != 0)
    }

    pub(crate) fn float(&self, name: &str) -> Result<Option<f64>> {
        let found = self.attribute(name, AttributeType::Float)?;
        Ok(found.map(|a| exact(a.f())))
    }

    pub(crate) fn float_or(&self, name: &str, default: f64) -> Result<f64> {
        Ok(self.float(name)?.unwrap_or(default))
    }

    pub(crate) fn ints(&self, name: &str) -> Result<Option<Vec<i64>>> {
        let found = self.attribute(name, AttributeType::Ints)?;
        Ok(found.map(|a| a.ints.clone()))
    }

    pub(crate) fn floats(&self, name: &str) -> Result<Option<Vec<f64>>> {
        let found = self.attribute(name, AttributeType::Floats)?;
        Ok(found.map(|a| a.floats.iter().map(|&v| exact(v)).collect()))
    }

    pub(crate) fn text(&self, name: &str) -> Result<Option<&'m str>> {
        self.attribute(name, AttributeType::String)?
            .map(|a| {
                std::str::from_utf8(a.s.as_deref().unwrap_or_default())
                    .map_err(|_| bad(format!("attribute `{name}` is not UTF-8")))
            })
            .transpose()
    }

    pub(crate) fn text_or(&self, name: &str, default: &'static str) -> Result<&'m str> {
        Ok(self.text(name)?.unwrap_or(default))
    }

    pub(crate) fn texts(&self, name: &str) -> Result<Option<Vec<&'m str>>> {
        self.attribute(name, AttributeType::Strings)?
            .map(|a| {
                a.strings
                    .iter()
                    .map(|s| {
                        std::str::from_utf8(s)
                            .map_err(|_| bad(format!("attribute `{name}` is not UTF-8")))
                    })
                    .collect()
            })
            .transpose()
    }

    pub(crate) fn tensor(&self, name: &str) -> Result<Option<&'m TensorProto>> {
        Ok(self
            .attribute(name, AttributeType::Tensor)?
            .and_then(|a| a.t.as_ref()))
    }

    pub(crate) fn graph(&self, name: &str) -> Result<Option<&'m GraphProto>> {
        Ok(self
            .attribute(name, AttributeType::Graph)?
            .and_then(|a| a.g.as_ref()))
    }

    /// Fails unless a lowering has read every attribute and input.
    pub(crate) fn all_read(&self) -> Result<()> {
        let read = self.read_attributes.borrow();
        if let Some(a) = self
            .proto
            .attribute
            .iter()
            .find(|a| !read.contains(a.name()))
        {
            return Err(Error::unsupported(format!(
                "the attribute `{}` is not supported",
                a.name()
            )));
        }
        let read = self.read_inputs.borrow();
        let unread =
            (0..self.inputs.len()).find(|i| self.inputs[*i].is_some() && !read.contains(i));
        if let Some(i) = unread {
            return Err(Error::unsupported(format!(
                "input {i} (`{}`) is not supported",
                self.proto.input[i]
            )));
        }
        Ok(())
    }
}

/// The decimal number that an `f32` attribute stands for: 1e-5 rather than the nearest `f32` to
/// it, as the program that wrote the file meant it. Equal to the `f32` after rounding to it.
fn exact(value: f32) -> f64 {
    value.to_string().parse().unwrap_or(f64::from(value))
}
