//! What a model costs: parameters, non-zeros, multiply-adds, bytes and memory.

use opt_core::graph::Bindings;
use opt_core::{Dim, Graph, Result, ResultExt, ValueId, ValueKind};

use crate::activation::peak_bytes;
use crate::layers::{LayerCost, Layers};
use crate::size::{live_values, weights_bytes};
use crate::weights::parameters;

/// What a model costs to store and to run once. Only what the graph's outputs depend on counts.
///
/// ```
/// use opt_core::{DType, Dim, GraphBuilder, Tensor, TensorType};
/// use opt_eval::ModelCost;
///
/// let mut b = GraphBuilder::new("linear");
/// let x = b.input("x", TensorType::new(DType::F32, ["batch".into(), Dim::from(8)]))?;
/// let w = b.variable("w", Tensor::full(DType::F32, [8, 2], 1.0)?)?;
/// let y = b.matmul(x, w)?;
/// b.output("y", y)?;
/// let cost = ModelCost::of_one(&b.finish()?)?;
/// assert_eq!((cost.parameters, cost.nonzeros, cost.macs), (16, 16, 16));
/// # Ok::<(), opt_core::Error>(())
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct ModelCost {
    /// Elements of the weights: variables, and constants of rank 1 or more that are floats or
    /// quantized integers. Not counted are batch normalization's running statistics (buffers in
    /// PyTorch's terms), quantization scales and zero points, and `i64` and `bool` constants
    /// (indices and masks).
    pub parameters: u64,
    /// Of the parameters, those that are not 0; a quantized one is 0 where it equals its zero
    /// point.
    pub nonzeros: u64,
    /// Multiply-adds of matrix products, convolutions and recurrences.
    pub macs: u64,
    /// Other arithmetic, in elements processed.
    pub elements: u64,
    /// The length of the safetensors file of the weights ([`weights_bytes`]).
    pub bytes: u64,
    /// The bytes of inputs, intermediate results and outputs that are needed at the same time, at
    /// their largest: while a node runs, its inputs and outputs, and every other result that a
    /// later node or an output needs, when nodes run in the graph's order. Not counted are weights
    /// and a kernel's scratch memory; a backend that works in place, fuses nodes or reorders them
    /// takes less, one that packs inputs more.
    pub peak_activation_bytes: u64,
    /// The multiply-adds and elements of each node, in the graph's order.
    pub nodes: Vec<NodeCost>,
    /// The same, parameters and bytes layer by layer, in the graph's order.
    pub layers: Vec<LayerCost>,
}

/// What a node costs to run once.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct NodeCost {
    /// The node's name.
    pub name: String,
    /// The name of its op.
    pub op: String,
    /// Multiply-adds.
    pub macs: u64,
    /// Other arithmetic, in elements processed.
    pub elements: u64,
}

impl ModelCost {
    /// The cost with symbolic dimensions bound. Nodes that depend on constants alone cost
    /// nothing: they are computed once, when the graph is compiled.
    ///
    /// # Errors
    /// If a symbol is not bound, with the node in the path, or a weight's dtype cannot be stored.
    pub fn of(graph: &Graph, bindings: &Bindings) -> Result<ModelCost> {
        let graph = graph.bind(bindings)?;
        let live = live_values(&graph);
        let mut cost = ModelCost {
            parameters: 0,
            nonzeros: 0,
            macs: 0,
            elements: 0,
            bytes: weights_bytes(&graph)?,
            peak_activation_bytes: 0,
            nodes: Vec::new(),
            layers: Vec::new(),
        };
        let mut folded = vec![false; graph.value_bound()];
        for (id, value) in graph.values() {
            folded[id.index()] = matches!(value.kind(), ValueKind::Constant(_));
        }
        let layers = Layers::of(&graph, &live)?;
        cost.layers = layers.costs(&graph);
        for (id, node) in graph.nodes() {
            if !node.outputs().iter().any(|o| live[o.index()]) {
                continue;
            }
            let rules = node.op().rules();
            if rules.is_deterministic() && node.inputs().iter().all(|i| folded[i.index()]) {
                for output in node.outputs() {
                    folded[output.index()] = true;
                }
                continue;
            }
            let types = |ids: &[ValueId]| -> Vec<_> {
                ids.iter().map(|&v| graph.type_of(v).clone()).collect()
            };
            let of_node = rules
                .cost(&types(node.inputs()), &types(node.outputs()))
                .at(|| node.name().to_string())?;
            cost.macs += of_node.macs;
            cost.elements += of_node.elements;
            if let Some(layer) = layers.of_node(id) {
                cost.layers[layer].macs += of_node.macs;
                cost.layers[layer].elements += of_node.elements;
            }
            cost.nodes.push(NodeCost {
                name: node.name().to_string(),
                op: node.op().name().to_string(),
                macs: of_node.macs,
                elements: of_node.elements,
            });
        }
        for parameter in parameters(&graph, &live) {
            let (count, nonzeros) = (parameter.tensor.len() as u64, parameter.nonzeros()?);
            cost.parameters += count;
            cost.nonzeros += nonzeros;
            if let Some(layer) = layers.of_value(parameter.id) {
                cost.layers[layer].parameters += count;
                cost.layers[layer].nonzeros += nonzeros;
            }
        }
        cost.peak_activation_bytes = peak_bytes(&graph, &live, &folded)?;
        Ok(cost)
    }

    /// The cost for one example: symbols that are the first axis of an input are bound to 1.
    ///
    /// # Errors
    /// As [`ModelCost::of`]; other symbols (a sequence length) have to be bound there.
    pub fn of_one(graph: &Graph) -> Result<ModelCost> {
        ModelCost::of(graph, &batch_of_one(graph))
    }
}

/// Bindings of the symbols that are the first axis of an input to 1.
pub(crate) fn batch_of_one(graph: &Graph) -> Bindings {
    let mut bindings = Bindings::new();
    for &input in graph.inputs() {
        if let Some(Dim::Symbol(symbol)) = graph.type_of(input).shape.dims().first() {
            bindings.insert(symbol.clone(), 1);
        }
    }
    bindings
}

#[cfg(test)]
mod tests {
    use super::*;
    use opt_core::{DType, GraphBuilder, Tensor, TensorType};

    fn f32s(shape: &[usize], data: &[f32]) -> Tensor {
        Tensor::new(shape, data).unwrap()
    }

    #[test]
    fn costs_of_a_small_network() {
        let mut b = GraphBuilder::new("net");
        let shape: [Dim; 2] = ["batch".into(), 3.into()];
        let x = b.input("x", TensorType::new(DType::F32, shape)).unwrap();
        let w = b
            .variable("w", f32s(&[3, 2], &[1., 0., 2., 0., 3., 4.]))
            .unwrap();
        let y = b.matmul(x, w).unwrap();
        // Scale and zero point of a quantized weight are no parameters; 7 is its zero.
        let q = b.constant(Tensor::new([2, 2], [7i8, 1, 7, 2]).unwrap());
        let scale = b.scalar(DType::F32, 0.5).unwrap();
        let zero = b.constant(Tensor::scalar(7i8));
        let v = b.dequantize(q, scale, zero, None).unwrap();
        let y = b.matmul(y, v).unwrap();
        let half = b.scalar(DType::F32, 0.5).unwrap();
        let y = b.mul(y, half).unwrap();
        b.output("y", y).unwrap();
        // Dead: no output depends on it.
        let dead = b.variable("dead", f32s(&[2, 9], &[1.; 18])).unwrap();
        b.matmul(y, dead).unwrap();
        let graph = b.finish().unwrap();

        let one = ModelCost::of_one(&graph).unwrap();
        assert_eq!((one.parameters, one.nonzeros), (10, 6));
        assert_eq!(one.macs, 6 + 4);
        assert_eq!(
            one.nodes.len(),
            3,
            "dequantizing a constant is folded: {one:?}"
        );
        assert_eq!(one.bytes, weights_bytes(&graph).unwrap());
        let bindings = Bindings::from([(opt_core::Symbol::new("batch"), 5)]);
        let five = ModelCost::of(&graph, &bindings).unwrap();
        assert_eq!((five.parameters, five.macs), (10, 50));
        assert!(ModelCost::of(&graph, &Bindings::new()).is_err());
    }
}
