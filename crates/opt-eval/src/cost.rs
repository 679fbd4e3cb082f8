//! What a model costs: parameters, non-zeros, multiply-adds and bytes.

use opt_core::graph::Bindings;
use opt_core::ops::{Op, Port};
use opt_core::{DType, Dim, Error, Graph, Node, Result, ResultExt, Tensor, ValueId, ValueKind};

use crate::size::{live_values, weights_bytes};

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
    /// The multiply-adds and elements of each node, in the graph's order.
    pub nodes: Vec<NodeCost>,
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
        let (parameters, nonzeros) = count_parameters(&graph, &live)?;
        let mut cost = ModelCost {
            parameters,
            nonzeros,
            macs: 0,
            elements: 0,
            bytes: weights_bytes(&graph)?,
            nodes: Vec::new(),
        };
        let mut folded = vec![false; graph.value_bound()];
        for (id, value) in graph.values() {
            folded[id.index()] = matches!(value.kind(), ValueKind::Constant(_));
        }
        for (_, node) in graph.nodes() {
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
            cost.nodes.push(NodeCost {
                name: node.name().to_string(),
                op: node.op().name().to_string(),
                macs: of_node.macs,
                elements: of_node.elements,
            });
        }
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

/// Parameters and those that are not zero.
fn count_parameters(graph: &Graph, live: &[bool]) -> Result<(u64, u64)> {
    // A value is a parameter if any live node reads it as one; the last such node matters only
    // for the zero point of a quantized constant.
    let mut readers: Vec<Option<&Node>> = vec![None; graph.value_bound()];
    for (_, node) in graph.nodes() {
        if !node.outputs().iter().any(|o| live[o.index()]) {
            continue;
        }
        for (i, input) in node.inputs().iter().enumerate() {
            if reads_weight(node.op(), Port::Input(i)) {
                readers[input.index()] = Some(node);
            }
        }
    }
    let (mut parameters, mut nonzeros) = (0, 0);
    for (id, value) in graph.values() {
        let tensor = match value.kind() {
            ValueKind::Variable(t) => t,
            ValueKind::Constant(t)
                if t.rank() > 0 && !matches!(t.dtype(), DType::I64 | DType::Bool) =>
            {
                t
            }
            _ => continue,
        };
        let Some(node) = readers[id.index()] else {
            continue;
        };
        parameters += tensor.len() as u64;
        nonzeros += match (node.op(), node.inputs()) {
            (Op::Dequantize(op), &[_, _, zero_point]) => {
                let zeros = graph.value(zero_point).tensor().ok_or_else(|| {
                    Error::unsupported("the zero point of a weight is no constant")
                        .at(node.name().to_string())
                })?;
                off_zero_point(tensor, zeros, op.axis, op.block).at(|| node.name().to_string())?
            }
            _ => tensor.to_f64s().iter().filter(|v| **v != 0.0).count() as u64,
        };
    }
    Ok((parameters, nonzeros))
}

/// Whether an op reads an input as a weight, rather than as a scale, a zero point or a running
/// statistic.
fn reads_weight(op: &Op, port: Port) -> bool {
    !matches!(
        (op, port),
        (
            Op::Quantize(_) | Op::Dequantize(_) | Op::DynamicQuantize(_) | Op::FakeQuantize(_),
            Port::Input(1 | 2)
        ) | (Op::BatchNorm(_), Port::Input(3 | 4))
    )
}

/// How many quantized values differ from their zero point, which is a scalar, one an entry of
/// `axis`, or one a block of `axis`.
fn off_zero_point(
    values: &Tensor,
    zeros: &Tensor,
    axis: Option<usize>,
    block: Option<usize>,
) -> Result<u64> {
    let (q, z) = (values.to_f64s(), zeros.to_f64s());
    let Some(axis) = axis else {
        let zero = zeros.item()?;
        return Ok(q.iter().filter(|v| **v != zero).count() as u64);
    };
    let shape = values.shape();
    let size = *shape
        .get(axis)
        .ok_or_else(|| Error::invalid(format!("axis {axis} of shape {shape:?}")))?;
    let inner: usize = shape[axis + 1..].iter().product();
    let per_block = block.unwrap_or(1).max(1);
    let blocks = size.div_ceil(per_block);
    let expected = match block {
        None => size,
        Some(_) => shape[..axis].iter().product::<usize>() * blocks * inner,
    };
    if z.len() != expected {
        return Err(Error::shape(format!(
            "zero points of shape {:?} for values of shape {shape:?} along axis {axis}",
            zeros.shape()
        )));
    }
    let zero = |i: usize| {
        let along = i / inner % size;
        match block {
            None => z[along],
            Some(_) => z[(i / (inner * size) * blocks + along / per_block) * inner + i % inner],
        }
    };
    Ok(q.iter().enumerate().filter(|&(i, v)| *v != zero(i)).count() as u64)
}

#[cfg(test)]
mod tests {
    use super::*;
    use opt_core::{GraphBuilder, TensorType};

    fn f32s(shape: &[usize], data: &[f32]) -> Tensor {
        Tensor::new(shape, data).unwrap()
    }

    #[test]
    fn zero_points_by_tensor_axis_and_block() {
        let q = Tensor::new([2, 4], [1i8, 2, 3, 4, 1, 2, 3, 4]).unwrap();
        let zeros = |shape: &[usize], z: &[i8]| Tensor::new(shape, z).unwrap();
        let count = |z: Tensor, axis, block| off_zero_point(&q, &z, axis, block).unwrap();
        assert_eq!(count(zeros(&[], &[2]), None, None), 6);
        assert_eq!(count(zeros(&[2], &[2, 0]), Some(0), None), 7);
        assert_eq!(count(zeros(&[4], &[1, 2, 0, 0]), Some(1), None), 4);
        assert_eq!(count(zeros(&[2, 2], &[1, 4, 3, 3]), Some(1), Some(2)), 5);
        assert!(off_zero_point(&q, &zeros(&[3], &[0; 3]), Some(1), None).is_err());
        assert!(off_zero_point(&q, &zeros(&[2], &[0; 2]), Some(2), None).is_err());
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
