//! How many bytes a model's weights take on disk.

use opt_core::{Graph, Result, Tensor, ValueId, safetensors};

/// The tensors that a graph's outputs depend on: variables and constants, with their names. They
/// are what has to be stored of a model beside its structure: weights, running statistics, and
/// quantization scales and zero points. What only a training step reads (optimizer state) is not
/// among them.
pub fn weights(graph: &Graph) -> Vec<(ValueId, &str, &Tensor)> {
    let live = live_values(graph);
    graph
        .values()
        .filter(|(id, _)| live[id.index()])
        .filter_map(|(id, value)| Some((id, value.name(), value.tensor()?)))
        .collect()
}

/// The exact length in bytes of the safetensors file that holds a graph's [`weights`], without
/// metadata: 8 bytes for the header's length, the header as JSON padded to a multiple of 8, and
/// the data. Packed 4-bit tensors count as the `U8` bytes they are stored in.
///
/// ```
/// use opt_core::{DType, GraphBuilder, Tensor, TensorType};
///
/// let mut b = GraphBuilder::new("bias");
/// let x = b.input("x", TensorType::new(DType::F32, [1, 100]))?;
/// let bias = b.variable("b", Tensor::zeros(DType::F32, [100])?)?;
/// let y = b.add(x, bias)?;
/// b.output("y", y)?;
/// // {"b":{"dtype":"F32","shape":[100],"data_offsets":[0,400]}} takes 58 bytes, 64 when padded.
/// assert_eq!(opt_eval::weights_bytes(&b.finish()?)?, 8 + 64 + 400);
/// # Ok::<(), opt_core::Error>(())
/// ```
///
/// # Errors
/// None for graphs that verify.
pub fn weights_bytes(graph: &Graph) -> Result<u64> {
    let weights = weights(graph).into_iter();
    safetensors::encoded_len(weights.map(|(_, name, t)| (name, t)), &[])
}

/// Which values the outputs depend on, indexed by value.
pub(crate) fn live_values(graph: &Graph) -> Vec<bool> {
    let mut live = vec![false; graph.value_bound()];
    for output in graph.outputs() {
        live[output.index()] = true;
    }
    for (_, node) in graph.nodes().rev() {
        if node.outputs().iter().any(|o| live[o.index()]) {
            for input in node.inputs() {
                live[input.index()] = true;
            }
        }
    }
    live
}
