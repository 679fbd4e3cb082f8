//! What lowerings work with: values of the model, their types and what is known of them.

use opt_core::{DType, Error, Result, SizeExpr, TensorType, ValueId};

use super::known::{self, Items, Known};
use super::node::{Node, V};
use super::{Cx, Val, bad};
use crate::source::Source;

impl<'m> Cx<'m> {
    /// A value of the graph as a value of the model.
    pub(crate) fn val(&mut self, id: ValueId) -> V {
        let value = self.b.graph().value(id);
        let known = value.tensor().map(|t| Known::Tensor(t.clone()));
        let (name, ty) = (value.name().to_string(), value.ty().clone());
        self.push(Val {
            name,
            ty,
            id: Some(id),
            known,
            offered: false,
            refused: false,
        })
    }

    /// The only output of a lowering.
    pub(crate) fn one(&mut self, id: ValueId) -> Vec<V> {
        vec![self.val(id)]
    }

    /// A value of known content.
    pub(crate) fn items(&mut self, items: Items) -> V {
        self.push(Val::known("const", Known::Items(items)))
    }

    /// The type of a value.
    pub(crate) fn ty(&self, v: V) -> &TensorType {
        &self.vals[v].ty
    }

    pub(crate) fn rank(&self, v: V) -> usize {
        self.vals[v].ty.rank()
    }

    pub(crate) fn dtype(&self, v: V) -> DType {
        self.vals[v].ty.dtype
    }

    /// The graph's value of a value, made of its content if it has none yet.
    pub(crate) fn id(&mut self, v: V) -> Result<ValueId> {
        if self.sequences.contains_key(&v) {
            return Err(Error::unsupported(
                "sequences of tensors are not supported here",
            ));
        }
        if let Some(id) = self.vals[v].id {
            return Ok(id);
        }
        let val = self.vals[v].clone();
        let known = val.known.expect("a value has an id or a content");
        let id = match known.tensor() {
            Some(content) => self.b.named_constant(&val.name, content),
            None => {
                let items = known.items().expect("what is no tensor is items");
                let dims = items.dims().map_err(|e| {
                    Error::unsupported(format!(
                        "a value computed from sizes may become negative: {}",
                        e.message()
                    ))
                })?;
                let id = self.b.sizes(dims)?;
                let id = self.b.reshape(id, &items.shape[..])?;
                if items.dtype == DType::I64 {
                    id
                } else {
                    self.b.cast(id, items.dtype)?
                }
            }
        };
        self.vals[v].id = Some(id);
        Ok(id)
    }

    /// An input as a value of the graph.
    pub(crate) fn x(&mut self, node: &Node<'_>, index: usize) -> Result<ValueId> {
        let v = node.input(index)?;
        self.id(v)
    }

    /// An optional input as a value of the graph.
    pub(crate) fn maybe_x(&mut self, node: &Node<'_>, index: usize) -> Result<Option<ValueId>> {
        node.maybe(index).map(|v| self.id(v)).transpose()
    }

    /// What is known of a value, whoever said it.
    pub(super) fn known(&self, v: V) -> Option<&Known> {
        self.vals[v].known.as_ref()
    }

    /// The content of a value that has to be known.
    pub(crate) fn content(&mut self, v: V, what: &str) -> Result<Items> {
        let val = &self.vals[v];
        let Some(items) = val.known.as_ref().and_then(Known::items) else {
            let name = &val.name;
            let hint = if self.b.graph().inputs().iter().any(|i| Some(*i) == val.id) {
                ": it is an input of the model; give its content with `Importer::known_input`"
            } else {
                ", but it depends on the model's inputs"
            };
            return Err(Error::unsupported(format!(
                "{what} (`{name}`) has to be known when the model is read{hint}"
            )));
        };
        if val.offered {
            let name = val.name.clone();
            self.specialized.insert(name);
        }
        Ok(items)
    }

    /// The integers of a value that has to be known, sizes included.
    pub(crate) fn sizes(&mut self, v: V, what: &str) -> Result<Vec<SizeExpr>> {
        let items = self.content(v, what)?;
        items
            .items
            .into_iter()
            .map(|item| match item {
                known::Item::Int(e) => Ok(e),
                known::Item::Num(_) => Err(bad(format!("{what} must be integers"))),
            })
            .collect()
    }

    /// The integers of a value that has to be known.
    pub(crate) fn integers(&mut self, v: V, what: &str) -> Result<Vec<i64>> {
        let name = self.vals[v].name.clone();
        self.sizes(v, what)?
            .into_iter()
            .map(|e| {
                e.as_constant().ok_or_else(|| {
                    Error::unsupported(format!(
                        "{what} (`{name}`) depends on the symbolic size {e}; bind it with \
                         `Importer::dim`"
                    ))
                })
            })
            .collect()
    }

    /// The numbers of a value that has to be known.
    pub(crate) fn numbers(&mut self, v: V, what: &str) -> Result<Vec<f64>> {
        let items = self.content(v, what)?;
        items
            .items
            .iter()
            .map(|item| {
                item.as_f64().ok_or_else(|| {
                    Error::unsupported(format!(
                        "{what} depends on a symbolic size; bind it with `Importer::dim`"
                    ))
                })
            })
            .collect()
    }

    /// A list that is an attribute up to some operator set and an input from there on.
    pub(crate) fn ints(
        &mut self,
        node: &Node<'_>,
        name: &str,
        input: usize,
    ) -> Result<Option<Vec<i64>>> {
        if let Some(list) = node.ints(name)? {
            return Ok(Some(list));
        }
        node.maybe(input)
            .map(|v| self.integers(v, name))
            .transpose()
    }

    /// A scalar constant of the dtype of a value.
    pub(crate) fn like(&mut self, value: ValueId, content: f64) -> Result<ValueId> {
        self.b.scalar_like(value, content)
    }

    pub(crate) fn source(&self) -> &'m Source {
        self.source
    }
}
