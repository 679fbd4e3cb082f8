//! Writing ONNX: from a graph to a file's messages.

mod attributes;
mod integers;
mod nbits;
mod nodes;
mod products;
mod sizes;
mod write;

use std::collections::{BTreeMap, HashMap, HashSet};
use std::path::Path;

use opt_core::{
    Dim, Error, ErrorKind, Graph, NodeId, Op, Result, ResultExt, Tensor, TensorType, ValueId,
    ValueKind,
};

use crate::import::NEWEST_OPSET;
use crate::proto::{
    AttributeProto, GraphProto, ModelProto, NodeProto, OperatorSetIdProto, StringStringEntryProto,
    TensorShapeProto, TypeProto, ValueInfoProto, tensor_shape_proto, type_proto,
};
use crate::tensor;
use crate::unsupported::{Refused, Unsupported};

/// The oldest operator set that is written.
pub const OLDEST_EXPORT_OPSET: i64 = 13;
/// The operator set that is written unless another is asked for.
pub const DEFAULT_OPSET: i64 = 21;

/// Writes graphs as ONNX models.
///
/// ```
/// use opt_core::nn::{Linear, ModelBuilder};
/// use opt_onnx::{Exporter, Importer};
///
/// let mut m = ModelBuilder::new("model", 0);
/// let x = m.batch("x", [8])?;
/// let y = m.layer("fc", Linear::new(3), x)?;
/// m.output("y", y)?;
/// let graph = m.finish()?;
///
/// let bytes = Exporter::new().to_bytes(&graph)?;
/// let back = Importer::new().read(bytes)?;
/// assert_eq!(back.type_of(back.output("y")?).to_string(), "f32[batch,3]");
/// # Ok::<(), opt_onnx::Error>(())
/// ```
///
/// A matrix product with a bias becomes a `Gemm`; products of values quantized at run time with
/// quantized weights become `MatMulInteger`. What an older operator set does not have is
/// expressed by what it has. Constants and variables become initializers under their names;
/// documentation and properties of an imported model are kept.
#[derive(Debug, Clone, Default)]
pub struct Exporter {
    opset: Option<i64>,
    external: Option<bool>,
    nbits: bool,
}

impl Exporter {
    /// An exporter to operator set 21, or to that of the imported model if it is newer, or to the
    /// oldest that has the graph's dtypes (23 for 4-bit floats, 24 for the scales of microscaling
    /// formats, 25 for 2-bit integers, 28 for 6-bit floats).
    pub fn new() -> Exporter {
        Exporter::default()
    }

    /// The operator set to write, 13 to the newest.
    #[must_use]
    pub fn opset(mut self, version: i64) -> Exporter {
        self.opset = Some(version);
        self
    }

    /// Whether large tensors go to a file of their own, `NAME.data`, beside the model's; by
    /// default where the model would be larger than the 2 GiB that the format allows.
    #[must_use]
    pub fn external_data(mut self, yes: bool) -> Exporter {
        self.external = Some(yes);
        self
    }

    /// Writes products with weights in blocks of 2, 4 or 8-bit integers (16 to 256 entries of the
    /// summed axis, a power of two) as ONNX Runtime's own operator `com.microsoft.MatMulNBits`,
    /// which computes with the packed weight. ONNX's form, a `DequantizeLinear` before the product,
    /// is read by more programs. The [`Importer`](crate::Importer) reads both.
    #[must_use]
    pub fn matmul_nbits(mut self, yes: bool) -> Exporter {
        self.nbits = yes;
        self
    }

    /// Writes a graph to a file, atomically.
    ///
    /// # Errors
    /// [`ErrorKind::Unsupported`] if nodes have no counterpart in the operator set: the source
    /// of the error is an [`Unsupported`] that lists them all; [`ErrorKind::Io`] if a file cannot
    /// be written.
    pub fn save(&self, graph: &Graph, path: impl AsRef<Path>) -> Result<()> {
        let path = path.as_ref();
        let (model, tensors) = self.model(graph)?;
        write::save(model, &tensors, path, self.external).at(|| path.display().to_string())
    }

    /// A graph as the bytes of an ONNX file.
    ///
    /// # Errors
    /// As [`Exporter::save`], and if the model is too large for one file.
    pub fn to_bytes(&self, graph: &Graph) -> Result<Vec<u8>> {
        let (model, tensors) = self.model(graph)?;
        write::bytes(model, &tensors)
    }

    /// The model without the content of its initializers, and that content.
    fn model(&self, graph: &Graph) -> Result<(ModelProto, Vec<Tensor>)> {
        let imported = graph.metadata().get("onnx.opset");
        let imported = imported.and_then(|v| v.parse().ok()).unwrap_or(0);
        let dtypes = graph.values().map(|(_, v)| tensor::since(v.ty().dtype));
        let needed = dtypes.max().unwrap_or(0);
        let opset = self
            .opset
            .unwrap_or(DEFAULT_OPSET.max(imported).max(needed));
        if !(OLDEST_EXPORT_OPSET..=NEWEST_OPSET).contains(&opset) {
            return Err(Error::invalid(format!(
                "operator set {opset}; {OLDEST_EXPORT_OPSET} to {NEWEST_OPSET} can be written"
            )));
        }
        let mut cx = Cx::new(graph, opset, self.nbits);
        cx.name_values();
        for (id, node) in graph.nodes() {
            if cx.fused.contains(&id) {
                continue;
            }
            if let Err(e) = nodes::write(&mut cx, id, node) {
                if e.kind() != ErrorKind::Unsupported {
                    return Err(e.at(node.name().to_string()));
                }
                cx.refused.push(Refused {
                    place: node.name().to_string(),
                    op: node.op().name().to_string(),
                    domain: String::new(),
                    version: Some(opset),
                    reason: e.message().to_string(),
                });
            }
        }
        if !cx.refused.is_empty() {
            return Err(Unsupported::error(cx.refused));
        }
        cx.finish()
    }
}

/// The version of the file format that goes with an operator set.
fn ir_version(opset: i64) -> i64 {
    match opset {
        ..=14 => 7,
        15..=18 => 8,
        19..=20 => 9,
        21..=22 => 10,
        23 => 11,
        24 => 12,
        25..=27 => 13,
        _ => 14,
    }
}

/// The state of an export.
struct Cx<'g> {
    graph: &'g Graph,
    opset: i64,
    /// Whether to write `MatMulNBits`.
    nbits: bool,
    consumers: HashMap<ValueId, Vec<(NodeId, usize)>>,
    names: HashMap<ValueId, String>,
    used: HashSet<String>,
    node_names: HashSet<String>,
    /// Nodes written together with another.
    fused: HashSet<NodeId>,
    nodes: Vec<NodeProto>,
    /// Initializers that the graph has no value for: shapes, axes and the like.
    extra: BTreeMap<String, Tensor>,
    /// Constants and variables that a node reads.
    stored: Vec<ValueId>,
    seen: HashSet<ValueId>,
    /// Names of sizes computed by nodes.
    sizes: HashMap<String, String>,
    refused: Vec<Refused>,
}

impl<'g> Cx<'g> {
    fn new(graph: &'g Graph, opset: i64, nbits: bool) -> Cx<'g> {
        Cx {
            graph,
            opset,
            nbits,
            consumers: graph.consumers(),
            names: HashMap::new(),
            used: HashSet::new(),
            node_names: HashSet::new(),
            fused: HashSet::new(),
            nodes: Vec::new(),
            extra: BTreeMap::new(),
            stored: Vec::new(),
            seen: HashSet::new(),
            sizes: HashMap::new(),
            refused: Vec::new(),
        }
    }

    /// Outputs of the model have the outputs' names, all else the values' own.
    fn name_values(&mut self) {
        for (name, _) in self.graph.named_outputs() {
            self.used.insert(name.clone());
        }
        for &id in self.graph.inputs() {
            let name = self.graph.value(id).name().to_string();
            self.used.insert(name.clone());
            self.names.insert(id, name);
        }
        for (name, id) in self.graph.named_outputs() {
            let made = matches!(self.graph.value(*id).kind(), ValueKind::Result { .. });
            if made && !self.names.contains_key(id) {
                self.names.insert(*id, name.clone());
            }
        }
        for (_, node) in self.graph.nodes() {
            self.node_names.insert(node.name().to_string());
        }
        for (id, value) in self.graph.values() {
            if !self.names.contains_key(&id) {
                let name = self.fresh(value.name());
                self.names.insert(id, name);
            }
        }
    }

    /// A name of a value that is not in use.
    fn fresh(&mut self, base: &str) -> String {
        let mut name = base.to_string();
        let mut count = 0;
        while name.is_empty() || !self.used.insert(name.clone()) {
            count += 1;
            name = format!("{base}_{count}");
        }
        name
    }

    fn ty(&self, id: ValueId) -> &'g TensorType {
        self.graph.type_of(id)
    }

    /// The name of a value that a node reads.
    fn read(&mut self, id: ValueId) -> String {
        if self.graph.value(id).tensor().is_some() && self.seen.insert(id) {
            self.stored.push(id);
        }
        self.names[&id].clone()
    }

    fn read_all(&mut self, ids: &[ValueId]) -> Vec<String> {
        ids.iter().map(|&id| self.read(id)).collect()
    }

    /// The name of a value that a node writes.
    fn name(&self, id: ValueId) -> String {
        self.names[&id].clone()
    }

    /// An initializer that the graph has no value for.
    fn constant(&mut self, base: &str, content: Tensor) -> String {
        let name = self.fresh(base);
        self.extra.insert(name.clone(), content);
        name
    }

    fn ints(&mut self, base: &str, values: &[i64]) -> Result<String> {
        let content = Tensor::new([values.len()], values)?;
        Ok(self.constant(base, content))
    }

    /// A scalar of the dtype of a value.
    fn scalar(&mut self, base: &str, like: ValueId, value: f64) -> Result<String> {
        let content = Tensor::full(self.ty(like).dtype, [], value)?;
        Ok(self.constant(base, content))
    }

    /// Adds a node.
    fn emit(
        &mut self,
        op: &str,
        name: &str,
        inputs: Vec<String>,
        outputs: Vec<String>,
        attribute: Vec<AttributeProto>,
    ) {
        self.nodes.push(NodeProto {
            name: Some(name.to_string()),
            op_type: Some(op.to_string()),
            input: inputs,
            output: outputs,
            attribute,
            ..NodeProto::default()
        });
    }

    /// Adds a node that the graph has no node for, with one output; returns its name.
    fn helper(
        &mut self,
        op: &str,
        base: &str,
        inputs: Vec<String>,
        attribute: Vec<AttributeProto>,
    ) -> String {
        let mut name = format!("{base}/{op}");
        let mut count = 0;
        while !self.node_names.insert(name.clone()) {
            count += 1;
            name = format!("{base}/{op}_{count}");
        }
        let output = self.fresh(&format!("{name}:out"));
        self.emit(op, &name, inputs, vec![output.clone()], attribute);
        output
    }

    fn value_info(&self, name: &str, ty: &TensorType) -> Result<ValueInfoProto> {
        let dim = |d: &Dim| {
            let value = match d {
                Dim::Fixed(n) => tensor_shape_proto::dimension::Value::DimValue(*n as i64),
                other => tensor_shape_proto::dimension::Value::DimParam(other.to_string()),
            };
            tensor_shape_proto::Dimension {
                value: Some(value),
                ..Default::default()
            }
        };
        let tensor = type_proto::Tensor {
            elem_type: Some(tensor::code(ty.dtype)?),
            shape: Some(TensorShapeProto {
                dim: ty.shape.dims().iter().map(dim).collect(),
            }),
        };
        Ok(ValueInfoProto {
            name: Some(name.to_string()),
            r#type: Some(TypeProto {
                value: Some(type_proto::Value::TensorType(tensor)),
                ..TypeProto::default()
            }),
            doc_string: self.metadata(&format!("doc.value.{name}")),
            ..ValueInfoProto::default()
        })
    }

    fn metadata(&self, key: &str) -> Option<String> {
        self.graph.metadata().get(&format!("onnx.{key}")).cloned()
    }

    fn finish(mut self) -> Result<(ModelProto, Vec<Tensor>)> {
        let mut inputs = Vec::new();
        for &id in self.graph.inputs() {
            let value = self.graph.value(id);
            inputs.push(self.value_info(value.name(), value.ty())?);
        }
        let mut outputs = Vec::new();
        for (name, id) in self.graph.named_outputs() {
            // One value may be several outputs, and inputs and constants need a node in between.
            if self.names[id] != *name {
                let source = self.read(*id);
                let node = self.fresh(&format!("{name}/Identity"));
                self.emit("Identity", &node, vec![source], vec![name.clone()], vec![]);
            }
            outputs.push(self.value_info(name, self.ty(*id))?);
        }
        let mut initializer = Vec::new();
        let mut tensors = Vec::new();
        for id in std::mem::take(&mut self.stored) {
            let content = self.graph.value(id).tensor().expect("it was stored");
            let name = self.name(id);
            let mut proto = tensor::header(&name, content)?;
            proto.doc_string = self.metadata(&format!("doc.value.{name}"));
            initializer.push(proto);
            tensors.push(content.contiguous());
        }
        for (name, content) in std::mem::take(&mut self.extra) {
            initializer.push(tensor::header(&name, &content)?);
            tensors.push(content);
        }
        let mut nodes = std::mem::take(&mut self.nodes);
        for node in &mut nodes {
            node.doc_string = self.metadata(&format!("doc.node.{}", node.name()));
        }
        let own = |key: &str| key.starts_with("onnx.");
        let metadata_props = self
            .graph
            .metadata()
            .iter()
            .filter(|(key, _)| !own(key))
            .map(|(key, value)| StringStringEntryProto {
                key: Some(key.clone()),
                value: Some(value.clone()),
            })
            .collect();
        let mut domains = vec![(String::new(), self.opset)];
        if nodes.iter().any(|n| n.domain() == nbits::DOMAIN) {
            domains.push((nbits::DOMAIN.into(), 1));
        }
        let set = |(domain, version)| OperatorSetIdProto {
            domain: Some(domain),
            version: Some(version),
        };
        let model = ModelProto {
            ir_version: Some(ir_version(self.opset)),
            opset_import: domains.into_iter().map(set).collect(),
            producer_name: Some("opt-onnx".into()),
            producer_version: Some(env!("CARGO_PKG_VERSION").into()),
            domain: self.metadata("domain"),
            model_version: self.metadata("model_version").and_then(|v| v.parse().ok()),
            doc_string: self.metadata("doc_string"),
            metadata_props,
            graph: Some(GraphProto {
                name: Some(if self.graph.name().is_empty() {
                    "graph".into()
                } else {
                    self.graph.name().to_string()
                }),
                node: nodes,
                initializer,
                input: inputs,
                output: outputs,
                doc_string: self.metadata("graph_doc_string"),
                ..GraphProto::default()
            }),
            ..ModelProto::default()
        };
        Ok((model, tensors))
    }

    /// The only node that reads a value, if the value is no output of the model.
    fn only_reader(&self, id: ValueId) -> Option<NodeId> {
        if self.graph.outputs().any(|o| o == id) {
            return None;
        }
        match self.consumers.get(&id).map(Vec::as_slice) {
            Some([(node, _)]) => Some(*node),
            _ => None,
        }
    }

    /// The op and inputs of the node that makes a value.
    fn maker(&self, id: ValueId) -> Option<(NodeId, &'g Op, &'g [ValueId])> {
        let (id, node) = self.graph.producer(id)?;
        Some((id, node.op(), node.inputs()))
    }
}
