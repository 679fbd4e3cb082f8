//! Reading ONNX: from a file's messages to a graph.

mod arithmetic;
mod context;
mod fold;
mod known;
mod messages;
mod node;
mod ops;

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::path::Path;

use bytes::Bytes;
use opt_core::graph::Bindings;
use opt_core::{
    DType, Dim, Error, ErrorKind, Graph, GraphBuilder, Result, ResultExt, Shape, Symbol, Tensor,
    TensorType, ValueId, ValueKind,
};
use prost::Message;

use crate::proto::{AttributeProto, FunctionProto, GraphProto, ModelProto, NodeProto, TensorProto};
use crate::source::Source;
use crate::tensor;
use crate::unsupported::{Refused, Unsupported};
use known::Known;
use messages::{input_type, node_name, order, substitute};
use node::{Node, V};

/// The newest operator set that is read.
pub const NEWEST_OPSET: i64 = 28;
/// The oldest operator set that is read: the first without the attributes of Caffe2's memory reuse.
pub const OLDEST_OPSET: i64 = 6;

/// The end of the names of floating-point constants that are no parameters.
pub(crate) const INTERNAL: &str = ":const";

/// Functions and branches nested deeper than this are refused.
const MAX_DEPTH: usize = 64;
/// How many nodes a model may have for each one that its file has, after its functions are put in
/// place: nested calls multiply.
const MAX_GROWTH: usize = 100;

/// Reads ONNX models.
///
/// ```no_run
/// use opt_onnx::Importer;
///
/// let graph = Importer::new().dim("batch", 1).load("model.onnx")?;
/// println!("{graph}");
/// # Ok::<(), opt_onnx::Error>(())
/// ```
///
/// Initializers become constants under their names; [`trainable`](crate::trainable) makes
/// variables of those to train. Dimensions with a name (`dim_param`) become symbols, and are bound
/// when the graph is compiled. Shape arithmetic is carried out while reading, symbols included.
/// Operators that the op set does not have are expressed by those that it has.
#[derive(Debug, Clone, Default)]
pub struct Importer {
    dims: BTreeMap<String, usize>,
    known: BTreeMap<String, Tensor>,
}

impl Importer {
    /// An importer that keeps symbols and knows nothing of the inputs' content.
    pub fn new() -> Importer {
        Importer::default()
    }

    /// Binds a named dimension to a size, for models that can only be read for fixed sizes.
    #[must_use]
    pub fn dim(mut self, name: impl Into<String>, size: usize) -> Importer {
        self.dims.insert(name.into(), size);
        self
    }

    /// Gives the content of an input, for models that have shapes, axes or the like as inputs.
    ///
    /// It is used only where the graph needs it while it is built; the graph is then valid for
    /// this content, and lists the values concerned under `onnx.specialized` in its metadata. The
    /// input stays an input, of the content's sizes.
    #[must_use]
    pub fn known_input(mut self, name: impl Into<String>, content: Tensor) -> Importer {
        self.known.insert(name.into(), content);
        self
    }

    /// Reads a model from a file, and the external data beside it.
    ///
    /// Files are memory-mapped: a program that changes one meanwhile changes the model, or ends
    /// the process. External data stays mapped as long as the tensors live.
    ///
    /// # Errors
    /// [`ErrorKind::Io`] or [`ErrorKind::Format`] if a file cannot be read or is not what the
    /// format says; [`ErrorKind::Unsupported`] if the model has operators, types or control flow
    /// that cannot be expressed: the source of the error is an [`Unsupported`] that lists
    /// them all.
    pub fn load(&self, path: impl AsRef<Path>) -> Result<Graph> {
        let path = path.as_ref();
        let (source, bytes) = Source::open(path)?;
        self.graph(bytes, &source).at(|| path.display().to_string())
    }

    /// Reads a model from memory; it cannot have external data.
    ///
    /// # Errors
    /// As [`Importer::load`].
    pub fn read(&self, bytes: impl Into<Vec<u8>>) -> Result<Graph> {
        self.graph(Bytes::from(bytes.into()), &Source::memory())
    }

    fn graph(&self, bytes: Bytes, source: &Source) -> Result<Graph> {
        let model = ModelProto::decode(bytes).map_err(|e| {
            Error::new(ErrorKind::Format, format!("not an ONNX model: {e}")).with_source(e)
        })?;
        self.convert(&model, source)
    }

    /// The sizes that symbols are bound to: those given, and those of inputs whose content is.
    fn bindings(&self, graph: &GraphProto) -> Bindings {
        let given = self.dims.iter().map(|(name, &n)| (Symbol::new(name), n));
        let mut bindings: Bindings = given.collect();
        for input in &graph.input {
            let (Some(content), Ok(ty)) = (self.known.get(input.name()), input_type(input)) else {
                continue;
            };
            for (dim, &n) in ty.shape.dims().iter().zip(content.shape()) {
                if let Dim::Symbol(s) = dim {
                    bindings.entry(s.clone()).or_insert(n);
                }
            }
        }
        bindings
    }

    fn convert(&self, model: &ModelProto, source: &Source) -> Result<Graph> {
        let Some(main) = &model.graph else {
            return Err(bad("not an ONNX model: it has no graph"));
        };
        let mut opsets = HashMap::new();
        for import in &model.opset_import {
            opsets.insert(domain(import.domain()).to_string(), import.version());
        }
        if let Some(&version) = opsets.get("")
            && !(OLDEST_OPSET..=NEWEST_OPSET).contains(&version)
        {
            return Err(Error::unsupported(format!(
                "the model is of operator set {version}; {OLDEST_OPSET} to {NEWEST_OPSET} are \
                 supported"
            )));
        }
        let functions = model
            .functions
            .iter()
            .map(|f| {
                (
                    (
                        domain(f.domain()).into(),
                        f.name().into(),
                        f.overload().into(),
                    ),
                    f,
                )
            })
            .collect();
        let bodies = model.functions.iter().map(|f| f.node.len());
        let stored = main.node.len() + bodies.sum::<usize>();
        let mut cx = Cx {
            b: GraphBuilder::new(main.name()),
            vals: Vec::new(),
            scopes: vec![HashMap::new()],
            opsets,
            functions,
            source,
            refused: Vec::new(),
            sequences: HashMap::new(),
            specialized: BTreeSet::new(),
            parameters: HashSet::new(),
            path: Vec::new(),
            depth: 0,
            nodes: 0,
            most_nodes: 10_000 + MAX_GROWTH * stored,
        };
        cx.inputs(self, main)?;
        cx.initializers(main)?;
        cx.body(&main.node)?;
        if !cx.refused.is_empty() {
            return Err(Unsupported::error(cx.refused));
        }
        for output in &main.output {
            let name = output.name();
            let v = cx
                .lookup(name)
                .ok_or_else(|| bad(format!("the output `{name}` is not defined")))?;
            let id = cx.id(v).at(|| format!("output `{name}`"))?;
            cx.b.output(name, id)?;
        }
        cx.name_constants()?;
        cx.metadata(model, main);
        let graph = cx.b.into_graph();
        let outputs = graph.named_outputs().to_vec();
        let graph = graph.extract(&outputs, false)?;
        graph.verify()?;
        Ok(graph)
    }
}

/// The names of the inputs of a model file, without the initializers that old files list among
/// them.
///
/// # Errors
/// If the file cannot be read or is no ONNX model.
pub fn input_names(path: impl AsRef<Path>) -> Result<Vec<String>> {
    let path = path.as_ref();
    let (_, bytes) = Source::open(path)?;
    let model = ModelProto::decode(bytes)
        .map_err(|e| bad(format!("not an ONNX model: {e}")).at(path.display().to_string()))?;
    let graph = model.graph.unwrap_or_default();
    let initialized: HashSet<&str> = graph.initializer.iter().map(TensorProto::name).collect();
    Ok(graph
        .input
        .iter()
        .map(|i| i.name().to_string())
        .filter(|n| !initialized.contains(n.as_str()))
        .collect())
}

fn bad(message: impl Into<String>) -> Error {
    Error::new(ErrorKind::Format, message)
}

/// The name of a domain; the default one has two.
fn domain(name: &str) -> &str {
    if name == "ai.onnx" { "" } else { name }
}

/// A value of the model.
#[derive(Debug, Clone)]
struct Val {
    name: String,
    ty: TensorType,
    /// Its value in the graph, if it has one yet.
    id: Option<ValueId>,
    known: Option<Known>,
    /// Whether what is known is the content of an input that the caller gave.
    offered: bool,
    /// Whether it comes from something that was refused.
    refused: bool,
}

type FunctionId = (String, String, String);

/// The state of an import.
#[derive(Debug)]
pub(crate) struct Cx<'m> {
    pub(crate) b: GraphBuilder,
    vals: Vec<Val>,
    /// Names visible at this place, those of the innermost branch or function last.
    scopes: Vec<HashMap<String, V>>,
    opsets: HashMap<String, i64>,
    functions: HashMap<FunctionId, &'m FunctionProto>,
    source: &'m Source,
    refused: Vec<Refused>,
    /// The parts of values that are sequences of tensors; nothing else may read those.
    sequences: HashMap<V, Vec<V>>,
    specialized: BTreeSet<String>,
    /// The names of initializers, and of tensors that are nodes.
    parameters: HashSet<String>,
    /// The names of the nodes that this place is inside of.
    path: Vec<String>,
    depth: usize,
    nodes: usize,
    most_nodes: usize,
}

impl<'m> Cx<'m> {
    fn inputs(&mut self, importer: &Importer, graph: &GraphProto) -> Result<()> {
        let initialized: HashSet<&str> = graph.initializer.iter().map(TensorProto::name).collect();
        let mut offered: BTreeSet<&str> = importer.known.keys().map(String::as_str).collect();
        let mut unbound: BTreeSet<&str> = importer.dims.keys().map(String::as_str).collect();
        let mut symbols = BTreeSet::new();
        let mut refused = Vec::new();
        let bindings = importer.bindings(graph);
        for input in &graph.input {
            let name = input.name();
            // Up to IR version 3 every initializer is listed as an input too.
            if initialized.contains(name) {
                continue;
            }
            let ty = match input_type(input) {
                Ok(ty) => ty,
                Err(e) if e.kind() == ErrorKind::Unsupported => {
                    refused.push(Refused::value(name, e.message()));
                    continue;
                }
                Err(e) => return Err(e.at(format!("input `{name}`"))),
            };
            for dim in ty.shape.dims() {
                for symbol in dim.expr().symbols() {
                    unbound.remove(symbol.as_str());
                    symbols.insert(symbol.as_str().to_string());
                }
            }
            let dims = ty.shape.bind(&bindings).at(|| format!("input `{name}`"))?;
            let ty = ty.with_shape(dims);
            let known = importer.known.get(name);
            if let Some(content) = known {
                offered.remove(name);
                let fits = content.dtype() == ty.dtype
                    && content.rank() == ty.rank()
                    && (ty.shape.dims().iter().zip(content.shape()))
                        .all(|(d, &n)| d.as_fixed().is_none_or(|d| d == n));
                if !fits {
                    return Err(Error::invalid(format!(
                        "the input `{name}` is {ty}, the content given for it {}{:?}",
                        content.dtype(),
                        content.shape()
                    )));
                }
            }
            let id = self.b.input(name, ty.clone())?;
            let known = known.map(|t| Known::Tensor(t.clone()));
            self.define(
                name,
                Val {
                    name: name.to_string(),
                    ty,
                    id: Some(id),
                    offered: known.is_some(),
                    known,
                    refused: false,
                },
            )?;
        }
        if !refused.is_empty() {
            return Err(Unsupported::error(refused));
        }
        if let Some(name) = offered.first() {
            let names: Vec<&str> = graph.input.iter().map(|i| i.name()).collect();
            return Err(Error::invalid(format!(
                "content was given for the input `{name}`; the model has the inputs {names:?}"
            )));
        }
        if let Some(name) = unbound.first() {
            return Err(Error::invalid(format!(
                "no dimension is named `{name}`; the model has the symbols {symbols:?}"
            )));
        }
        Ok(())
    }

    fn initializers(&mut self, graph: &GraphProto) -> Result<()> {
        for proto in &graph.initializer {
            self.initializer(proto)?;
        }
        if let Some(sparse) = graph.sparse_initializer.first() {
            let name = sparse.values.as_ref().map_or("", TensorProto::name);
            self.refused.push(Refused::value(
                name,
                "sparse initializers are not supported",
            ));
        }
        Ok(())
    }

    fn initializer(&mut self, proto: &TensorProto) -> Result<()> {
        let name = proto.name();
        self.parameters.insert(name.to_string());
        let val = match tensor::read(proto, self.source) {
            Ok(content) => Val::known(name, Known::Tensor(content)),
            Err(e) if e.kind() == ErrorKind::Unsupported => {
                self.refused.push(Refused::value(name, e.message()));
                Val::refused(name)
            }
            Err(e) => return Err(e),
        };
        self.define(name, val)
    }

    fn define(&mut self, name: &str, val: Val) -> Result<()> {
        let v = self.push(val);
        self.bind_name(name, v)
    }

    fn push(&mut self, val: Val) -> V {
        self.vals.push(val);
        self.vals.len() - 1
    }

    fn bind_name(&mut self, name: &str, v: V) -> Result<()> {
        if name.is_empty() {
            return Err(bad("a value has no name"));
        }
        let scope = self.scopes.last_mut().expect("there is a scope");
        if scope.insert(name.to_string(), v).is_some() {
            return Err(bad(format!("the value `{name}` is defined twice")));
        }
        Ok(())
    }

    fn lookup(&self, name: &str) -> Option<V> {
        self.scopes.iter().rev().find_map(|s| s.get(name)).copied()
    }

    /// The nodes of a graph or function, in an order in which each follows what it reads.
    fn body(&mut self, nodes: &[NodeProto]) -> Result<()> {
        self.nodes = self.nodes.saturating_add(nodes.len());
        if self.nodes > self.most_nodes {
            return Err(Error::unsupported(format!(
                "the model has more than {} nodes once its functions are put in place",
                self.most_nodes
            )));
        }
        for index in order(nodes)? {
            self.node(&nodes[index])?;
        }
        Ok(())
    }

    fn node(&mut self, proto: &NodeProto) -> Result<()> {
        let place = self.place(proto);
        let mut inputs = Vec::with_capacity(proto.input.len());
        let mut refused = false;
        for name in &proto.input {
            if name.is_empty() {
                inputs.push(None);
                continue;
            }
            let v = self.lookup(name).ok_or_else(|| {
                bad(format!(
                    "`{name}` is not defined: it is no input, no initializer and no output of \
                     another node"
                ))
                .at(place.clone())
            })?;
            refused |= self.vals[v].refused;
            inputs.push(Some(v));
        }
        while inputs.last() == Some(&None) {
            inputs.pop();
        }
        let domain = domain(proto.domain());
        let version = self.opsets.get(domain).copied();
        let function = self
            .functions
            .get(&(
                domain.into(),
                proto.op_type().into(),
                proto.overload().into(),
            ))
            .copied();
        let result = match (function, version) {
            (Some(function), _) if !refused => self.call(proto, function, &inputs),
            _ if !ops::exists(domain, proto.op_type()) && function.is_none() => {
                Err(Error::unsupported("the operator is not supported"))
            }
            _ if refused => Err(Error::unsupported("")),
            (_, None) if domain.is_empty() => {
                return Err(bad("the model does not say which operator set it uses").at(place));
            }
            (_, version) => {
                let node = Node::new(proto, version.unwrap_or(1), inputs);
                self.lower(&node)
            }
        };
        match result {
            Ok(outputs) => self.bind_outputs(proto, &outputs).at(|| place),
            Err(e) if e.kind() == ErrorKind::Unsupported => {
                // An empty message is a consequence of what was refused before.
                if !e.message().is_empty() {
                    let inner: Vec<&str> = e.path().collect();
                    let message = inner.iter().map(|p| format!("{p}: ")).collect::<String>();
                    self.refused.push(Refused {
                        place,
                        op: proto.op_type().to_string(),
                        domain: domain.to_string(),
                        version,
                        reason: message + e.message(),
                    });
                }
                for name in proto.output.iter().filter(|n| !n.is_empty()) {
                    self.define(name, Val::refused(name))?;
                }
                Ok(())
            }
            Err(e) => Err(e.at(place)),
        }
    }

    fn bind_outputs(&mut self, proto: &NodeProto, outputs: &[V]) -> Result<()> {
        for (index, name) in proto.output.iter().enumerate() {
            if name.is_empty() {
                continue;
            }
            let Some(&v) = outputs.get(index) else {
                return Err(Error::unsupported(format!(
                    "output {index} (`{name}`) is not supported"
                )));
            };
            self.bind_name(name, v)?;
        }
        Ok(())
    }

    /// A node's place for messages: its name, or that of its first output.
    fn place(&self, proto: &NodeProto) -> String {
        let mut place = String::new();
        for part in &self.path {
            place.push_str(part);
            place.push('/');
        }
        place + node_name(proto)
    }

    fn lower(&mut self, node: &Node<'_>) -> Result<Vec<V>> {
        let count = self.b.node_count();
        let folded = self.fold(node)?;
        let offered = folded.as_ref().is_some_and(|(_, offered)| *offered);
        // Integers are shape arithmetic: what is known of them needs no nodes. Floats keep their
        // nodes, so that a weight behind one can be trained; inputs keep theirs, so that the graph
        // depends on the content given for them only where it must.
        let mut outputs = match folded {
            Some((items, false)) if items.iter().all(|i| !i.dtype.is_float()) => {
                return Ok(items.into_iter().map(|i| self.items(i)).collect());
            }
            Some((items, _)) => match ops::lower(self, node).and_then(|out| {
                node.all_read()?;
                Ok(out)
            }) {
                Ok(out) => {
                    for (&v, items) in out.iter().zip(items) {
                        if self.vals[v].known.is_none()
                            && self.vals[v].ty.shape.rank() == items.shape.len()
                        {
                            self.vals[v].known = Some(Known::Items(items));
                            self.vals[v].offered = offered;
                        }
                    }
                    out
                }
                Err(e) if e.kind() == ErrorKind::Unsupported => {
                    if offered {
                        self.specialize(node);
                    }
                    items.into_iter().map(|i| self.items(i)).collect()
                }
                Err(e) => return Err(e),
            },
            None => {
                let out = ops::lower(self, node)?;
                node.all_read()?;
                out
            }
        };
        outputs.truncate(node.proto.output.len().max(1));
        self.name_nodes(node.proto, count, &outputs);
        Ok(outputs)
    }

    /// Notes that the graph holds for the content of these inputs only.
    fn specialize(&mut self, node: &Node<'_>) {
        for v in node.all_inputs().iter().flatten() {
            if self.vals[*v].offered {
                let name = self.vals[*v].name.clone();
                self.specialized.insert(name);
            }
        }
    }

    /// Names what a node of the model became: the node that defines its first output has its
    /// name, those before it are named after it; values have the model's names.
    fn name_nodes(&mut self, proto: &NodeProto, count: usize, outputs: &[V]) {
        let base = self.place(proto);
        let last = outputs
            .first()
            .and_then(|&v| self.vals[v].id)
            .and_then(|id| self.b.graph().producer(id).map(|(n, _)| n));
        let prefix: String = self.path.iter().map(|p| format!("{p}/")).collect();
        for node in self.b.nodes_since(count) {
            if Some(node) == last {
                self.b.rename_node(node, &base);
            } else {
                let op = self.b.graph().node(node).op().name().to_string();
                self.b.rename_node(node, &format!("{base}/{op}"));
            }
        }
        for (name, &v) in proto.output.iter().zip(outputs) {
            let Some(id) = self.vals[v].id else { continue };
            let made_here = self
                .b
                .graph()
                .producer(id)
                .is_some_and(|(n, _)| n.index() >= count);
            if made_here && !name.is_empty() {
                // A name that is taken belongs to a value that was made for another node; names of
                // outputs of the graph are kept apart from those of values.
                let _ = self.b.rename(id, &format!("{prefix}{name}"));
                self.vals[v].name = format!("{prefix}{name}");
            }
        }
    }

    /// Puts a function of the model in the place of a call.
    fn call(
        &mut self,
        proto: &NodeProto,
        function: &'m FunctionProto,
        inputs: &[Option<V>],
    ) -> Result<Vec<V>> {
        let attributes = |name: &str| -> Option<&AttributeProto> {
            let given = proto.attribute.iter().find(|a| a.name() == name);
            given.or_else(|| function.attribute_proto.iter().find(|a| a.name() == name))
        };
        if inputs.len() > function.input.len() {
            return Err(bad(format!(
                "the function takes {} inputs, found {}",
                function.input.len(),
                inputs.len()
            )));
        }
        // Nodes that use the function's attributes are written anew with their content.
        let nodes = substitute(&function.node, &attributes, 0)?;
        // Lives as long as the import, which borrows names from it.
        let nodes: &[NodeProto] = Box::leak(nodes.into_boxed_slice());
        let mut scope = HashMap::new();
        for (name, v) in function.input.iter().zip(inputs) {
            if let Some(v) = v {
                scope.insert(name.clone(), *v);
            }
        }
        let mut opsets: HashMap<String, i64> = HashMap::new();
        for import in &function.opset_import {
            opsets.insert(domain(import.domain()).to_string(), import.version());
        }
        let outer_scopes = std::mem::replace(&mut self.scopes, vec![scope]);
        let outer_opsets = std::mem::replace(&mut self.opsets, opsets);
        let result = self.nested(node_name(proto), |cx| {
            cx.body(nodes)?;
            function
                .output
                .iter()
                .map(|name| {
                    cx.lookup(name).ok_or_else(|| {
                        bad(format!("the function's output `{name}` is not defined"))
                    })
                })
                .collect()
        });
        self.scopes = outer_scopes;
        self.opsets = outer_opsets;
        result
    }

    /// Puts a branch in the place of its node, where its condition is known.
    pub(crate) fn branch(&mut self, node: &Node<'_>, graph: &GraphProto) -> Result<Vec<V>> {
        self.scopes.push(HashMap::new());
        let result = self.nested(node_name(node.proto), |cx| {
            cx.initializers(graph)?;
            cx.body(&graph.node)?;
            graph
                .output
                .iter()
                .map(|o| {
                    cx.lookup(o.name()).ok_or_else(|| {
                        bad(format!("the branch's output `{}` is not defined", o.name()))
                    })
                })
                .collect()
        });
        self.scopes.pop();
        result
    }

    fn nested<T>(&mut self, name: &str, body: impl FnOnce(&mut Self) -> Result<T>) -> Result<T> {
        if self.depth >= MAX_DEPTH {
            return Err(Error::unsupported(format!(
                "functions and branches are nested more than {MAX_DEPTH} deep"
            )));
        }
        self.depth += 1;
        self.path.push(name.to_string());
        let result = body(self);
        self.path.pop();
        self.depth -= 1;
        result
    }

    /// Marks the floats that belong to the computation, not to the model: what lowerings made, and
    /// single numbers that the model has as nodes. They are no parameters to train.
    fn name_constants(&mut self) -> Result<()> {
        let internal: Vec<(ValueId, String)> = self
            .b
            .graph()
            .values()
            .filter(|(_, value)| {
                matches!(value.kind(), ValueKind::Constant(_))
                    && value.ty().dtype.is_float()
                    && !self.parameters.contains(value.name())
                    && !value.name().ends_with(INTERNAL)
            })
            .map(|(id, value)| (id, value.name().to_string()))
            .collect();
        for (id, name) in internal {
            let mut new = format!("{name}{INTERNAL}");
            let mut count = 0;
            while self.b.rename(id, &new).is_err() {
                count += 1;
                new = format!("{name}_{count}{INTERNAL}");
            }
        }
        Ok(())
    }

    fn metadata(&mut self, model: &ModelProto, main: &GraphProto) {
        let opset = self.opsets.get("").copied();
        let specialized: Vec<String> = self.specialized.iter().cloned().collect();
        let metadata = self.b.graph_mut().metadata_mut();
        for entry in &model.metadata_props {
            metadata.insert(entry.key().into(), entry.value().into());
        }
        let mut keep = |key: &str, value: Option<&str>| {
            if let Some(value) = value.filter(|v| !v.is_empty()) {
                metadata.insert(format!("onnx.{key}"), value.to_string());
            }
        };
        keep("producer_name", model.producer_name.as_deref());
        keep("producer_version", model.producer_version.as_deref());
        keep("domain", model.domain.as_deref());
        keep("doc_string", model.doc_string.as_deref());
        keep("graph_doc_string", main.doc_string.as_deref());
        keep("specialized", Some(&specialized.join(",")));
        if let Some(version) = model.model_version {
            keep("model_version", Some(&version.to_string()));
        }
        if let Some(opset) = opset {
            keep("opset", Some(&opset.to_string()));
        }
        for node in &main.node {
            keep(
                &format!("doc.node.{}", node_name(node)),
                node.doc_string.as_deref(),
            );
        }
        let values = main.input.iter().chain(&main.output);
        for value in values.chain(&main.value_info) {
            keep(
                &format!("doc.value.{}", value.name()),
                value.doc_string.as_deref(),
            );
        }
        for value in &main.initializer {
            keep(
                &format!("doc.value.{}", value.name()),
                value.doc_string.as_deref(),
            );
        }
    }
}

impl Val {
    fn known(name: &str, known: Known) -> Val {
        let ty = match &known {
            Known::Tensor(t) => TensorType::new(t.dtype(), t.shape()),
            Known::Items(i) => TensorType::new(i.dtype, &i.shape[..]),
        };
        Val {
            name: name.to_string(),
            ty,
            id: None,
            known: Some(known),
            offered: false,
            refused: false,
        }
    }

    fn refused(name: &str) -> Val {
        Val {
            name: name.to_string(),
            ty: TensorType::new(DType::F32, Shape::default()),
            id: None,
            known: None,
            offered: false,
            refused: true,
        }
    }
}
