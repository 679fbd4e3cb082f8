//! The memory that a run's intermediate results take at most.

use opt_core::{Graph, Result, ResultExt, ValueId};

/// The largest number of bytes of inputs and intermediate results that are needed at the same
/// time, when the nodes run in the graph's order: while a node runs, its inputs and outputs, and
/// every other result that a later node or an output needs. `folded` values do not count, as
/// weights do not, and neither does a kernel's scratch memory. All symbols have to be bound.
pub(crate) fn peak_bytes(graph: &Graph, live: &[bool], folded: &[bool]) -> Result<u64> {
    let counts =
        |v: ValueId| live[v.index()] && !folded[v.index()] && graph.value(v).tensor().is_none();
    let bytes = |v: ValueId| -> Result<u64> {
        let value = graph.value(v);
        let len = value.ty().shape.len().at(|| value.name().to_string())?;
        Ok(value.ty().dtype.bytes(len) as u64)
    };
    // The position after which a value is not needed any more.
    let mut last = vec![0; graph.value_bound()];
    let nodes: Vec<_> = graph
        .nodes()
        .map(|(_, node)| node)
        .filter(|node| node.outputs().iter().any(|&o| counts(o)))
        .collect();
    for (i, node) in nodes.iter().enumerate() {
        for v in node.inputs().iter().chain(node.outputs()) {
            last[v.index()] = i;
        }
    }
    for output in graph.outputs() {
        last[output.index()] = nodes.len();
    }
    let (mut held, mut peak) = (0, 0);
    for &input in graph.inputs().iter().filter(|v| counts(**v)) {
        held += bytes(input)?;
    }
    let mut gone = vec![false; graph.value_bound()];
    peak = held.max(peak);
    for (i, node) in nodes.iter().enumerate() {
        // An output that nobody reads is written all the same.
        let unread = |v: ValueId| !live[v.index()] && !folded[v.index()];
        let outputs = node.outputs();
        for &v in outputs.iter().filter(|&&v| counts(v) || unread(v)) {
            held += bytes(v)?;
        }
        peak = held.max(peak);
        for &v in node.inputs().iter().chain(outputs) {
            if last[v.index()] == i && (counts(v) || unread(v)) && !gone[v.index()] {
                gone[v.index()] = true;
                held -= bytes(v)?;
            }
        }
    }
    Ok(peak)
}

#[cfg(test)]
mod tests {
    use crate::ModelCost;
    use opt_core::graph::Bindings;
    use opt_core::{DType, Dim, GraphBuilder, Symbol, Tensor, TensorType};

    /// `x [batch, 4] -> relu a -> matmul b [batch, 8] -> relu c; a + a = d`, outputs `c` and `d`.
    fn graph() -> opt_core::Graph {
        let mut b = GraphBuilder::new("net");
        let shape: [Dim; 2] = ["batch".into(), 4.into()];
        let x = b.input("x", TensorType::new(DType::F32, shape)).unwrap();
        let a = b.relu(x).unwrap();
        let w = b
            .variable("w", Tensor::zeros(DType::F32, [4, 8]).unwrap())
            .unwrap();
        let y = b.matmul(a, w).unwrap();
        let c = b.relu(y).unwrap();
        let d = b.add(a, a).unwrap();
        b.output("c", c).unwrap();
        b.output("d", d).unwrap();
        b.finish().unwrap()
    }

    #[test]
    fn values_are_held_until_their_last_reader() {
        // While c is computed: a (16 bytes, read later by d), y and c (32 each).
        assert_eq!(
            ModelCost::of_one(&graph()).unwrap().peak_activation_bytes,
            80
        );
        let five = Bindings::from([(Symbol::new("batch"), 5)]);
        let cost = ModelCost::of(&graph(), &five).unwrap();
        assert_eq!(cost.peak_activation_bytes, 400);
    }

    #[test]
    fn small_dtypes_count_in_their_bytes_and_weights_do_not() {
        let mut b = GraphBuilder::new("quantized");
        let x = b.input("x", TensorType::new(DType::F32, [100])).unwrap();
        let scale = b.scalar(DType::F32, 0.5).unwrap();
        let zero = b.constant(Tensor::scalar(0i8));
        let q = b.quantize(x, scale, zero, None).unwrap();
        b.output("q", q).unwrap();
        let cost = ModelCost::of_one(&b.finish().unwrap()).unwrap();
        assert_eq!(cost.peak_activation_bytes, 400 + 100);
        let empty = GraphBuilder::new("empty").finish().unwrap();
        assert_eq!(ModelCost::of_one(&empty).unwrap().peak_activation_bytes, 0);
    }
}
