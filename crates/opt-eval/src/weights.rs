//! The weights of a graph: which tensors count as parameters, and their content as real numbers.

use opt_core::ops::{Dequantize, Op, Port};
use opt_core::{DType, Error, Graph, Node, NodeId, Result, ResultExt, Tensor, ValueId, ValueKind};

/// A tensor that counts as parameters, and the last node that reads it as such.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Parameter<'a> {
    graph: &'a Graph,
    pub(crate) id: ValueId,
    pub(crate) tensor: &'a Tensor,
    pub(crate) reader: NodeId,
}

/// The parameters that the outputs depend on, in the order of the graph's values.
pub(crate) fn parameters<'a>(graph: &'a Graph, live: &[bool]) -> Vec<Parameter<'a>> {
    // A value is a parameter if any live node reads it as one; the last such node matters only
    // for the grid of a quantized constant.
    let mut readers: Vec<Option<NodeId>> = vec![None; graph.value_bound()];
    let nodes: Vec<(NodeId, &Node)> = graph.nodes().collect();
    for &(id, node) in nodes.iter().rev() {
        if !node.outputs().iter().any(|o| live[o.index()]) {
            continue;
        }
        // What a scale is computed from is a scale: cast, or dequantized by a scale of its own.
        let moves = matches!(node.op(), Op::Cast(_) | Op::Dequantize(_));
        let scale = moves && readers[node.outputs()[0].index()].is_none();
        let scale = scale && !graph.outputs().any(|o| o == node.outputs()[0]);
        for (i, input) in node.inputs().iter().enumerate() {
            let reader = &mut readers[input.index()];
            if !scale && reads_weight(node.op(), Port::Input(i)) && reader.is_none() {
                *reader = Some(id);
            }
        }
    }
    let parameter = |(id, value): (ValueId, &'a opt_core::Value)| {
        let tensor = match value.kind() {
            ValueKind::Variable(t) => t,
            ValueKind::Constant(t)
                if t.rank() > 0 && !matches!(t.dtype(), DType::I64 | DType::Bool) =>
            {
                t
            }
            _ => return None,
        };
        readers[id.index()].map(|reader| Parameter {
            graph,
            id,
            tensor,
            reader,
        })
    };
    graph.values().filter_map(parameter).collect()
}

impl<'a> Parameter<'a> {
    fn node(&self) -> &'a Node {
        self.graph.node(self.reader)
    }

    /// The dequantization that reads it with its scale and, if it has any, zero point; `None` for
    /// floats.
    fn grid(&self) -> Result<Option<(&'a Dequantize, &'a Tensor, Option<&'a Tensor>)>> {
        let node = self.node();
        let Op::Dequantize(op) = node.op() else {
            return Ok(None);
        };
        let (scale, zero) = (node.inputs()[1], node.inputs().get(2));
        let content = |id: ValueId, what: &str| {
            self.graph.value(id).tensor().ok_or_else(|| {
                Error::unsupported(format!("the {what} of a weight is no constant"))
                    .at(node.name().to_string())
            })
        };
        let zero = zero.map(|&zero| content(zero, "zero point")).transpose()?;
        Ok(Some((op, content(scale, "scale")?, zero)))
    }

    /// How many entries are not 0; a quantized one is 0 where it equals its zero point.
    pub(crate) fn nonzeros(&self) -> Result<u64> {
        let values = self.tensor.to_f64s();
        let grid = match self.node().op() {
            // Only zero points matter here; scales may be computed, from scales of their own.
            Op::Dequantize(_) if self.node().inputs().len() == 2 => None,
            _ => self.grid()?,
        };
        let Some((op, _, Some(zeros))) = grid else {
            return Ok(values.iter().filter(|v| **v != 0.0).count() as u64);
        };
        let of = || {
            let at = grid_index(self.tensor.shape(), zeros, op.axis, op.block)?;
            let zeros = zeros.to_f64s();
            let off = |&(i, v): &(usize, &f64)| *v != zeros[at(i)];
            Ok(values.iter().enumerate().filter(off).count() as u64)
        };
        of().at(|| self.node().name().to_string())
    }

    /// The entries as the network sees them: quantized ones dequantized.
    pub(crate) fn values(&self) -> Result<Vec<f64>> {
        let mut values = self.tensor.to_f64s();
        if let Some((op, scales, zeros)) = self.grid()? {
            let at = grid_index(self.tensor.shape(), scales, op.axis, op.block)
                .at(|| self.node().name().to_string())?;
            if let Some(zeros) = zeros.filter(|z| z.len() != scales.len()) {
                let (s, z) = (scales.shape(), zeros.shape());
                return Err(
                    Error::shape(format!("scales of shape {s:?} with zero points {z:?}"))
                        .at(self.node().name().to_string()),
                );
            }
            let zeros = zeros.map(Tensor::to_f64s);
            let scales = scales.to_f64s();
            for (i, v) in values.iter_mut().enumerate() {
                let zero = zeros.as_ref().map_or(0.0, |zeros| zeros[at(i)]);
                *v = (*v - zero) * scales[at(i)];
            }
        }
        Ok(values)
    }
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

/// Which scale and zero point go with each entry of a shape: one for all, one an entry of `axis`,
/// or one a block of `axis`.
fn grid_index(
    shape: &[usize],
    parameters: &Tensor,
    axis: Option<usize>,
    block: Option<usize>,
) -> Result<impl Fn(usize) -> usize + use<>> {
    let size = match axis {
        None => 1,
        Some(axis) => *shape
            .get(axis)
            .ok_or_else(|| Error::invalid(format!("axis {axis} of shape {shape:?}")))?,
    };
    let inner: usize = axis.map_or(1, |axis| shape[axis + 1..].iter().product());
    let per_block = block.unwrap_or(1).max(1);
    let blocks = size.div_ceil(per_block);
    let expected = match (axis, block) {
        (None, _) => 1,
        (Some(_), None) => size,
        (Some(axis), Some(_)) => shape[..axis].iter().product::<usize>() * blocks * inner,
    };
    if parameters.len() != expected {
        return Err(Error::shape(format!(
            "scales or zero points of shape {:?} for values of shape {shape:?} along axis {axis:?}",
            parameters.shape()
        )));
    }
    Ok(move |i: usize| {
        let along = i / inner % size;
        match (axis, block) {
            (None, _) => 0,
            (_, None) => along,
            (_, Some(_)) => (i / (inner * size) * blocks + along / per_block) * inner + i % inner,
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::size::live_values;
    use opt_core::GraphBuilder;

    /// A graph whose output is a dequantized constant.
    fn dequantized(zeros: Tensor, axis: Option<usize>, block: Option<usize>) -> Result<Graph> {
        let mut b = GraphBuilder::new("weights");
        let q = b.constant(Tensor::new([2, 4], [1i8, 2, 3, 4, 1, 2, 3, 4]).unwrap());
        let scale = b.constant(Tensor::full(DType::F32, zeros.shape(), 0.5).unwrap());
        let zeros = b.constant(zeros);
        let y = b.op(Dequantize { axis, block }, &[q, scale, zeros])?;
        b.output("y", y)?;
        b.finish()
    }

    #[test]
    fn zero_points_by_tensor_axis_and_block() {
        let zeros = |shape: &[usize], z: &[i8]| Tensor::new(shape, z).unwrap();
        let all = |z: Tensor, axis, block| {
            let graph = dequantized(z, axis, block).unwrap();
            let found = parameters(&graph, &live_values(&graph));
            let nonzeros = found[0].nonzeros().unwrap();
            let values = found[0].values().unwrap();
            let off = values.iter().filter(|v| **v != 0.0).count() as u64;
            assert_eq!((found.len(), off), (1, nonzeros));
            values
        };
        let by = |q: [f64; 8]| q.map(|q| q * 0.5).to_vec();
        assert_eq!(
            all(zeros(&[], &[2]), None, None),
            by([-1., 0., 1., 2., -1., 0., 1., 2.])
        );
        assert_eq!(
            all(zeros(&[2], &[2, 0]), Some(0), None),
            by([-1., 0., 1., 2., 1., 2., 3., 4.])
        );
        assert_eq!(
            all(zeros(&[4], &[1, 2, 0, 0]), Some(1), None),
            by([0., 0., 3., 4., 0., 0., 3., 4.])
        );
        assert_eq!(
            all(zeros(&[2, 2], &[1, 4, 3, 3]), Some(1), Some(2)),
            by([0., 1., -1., 0., -2., -1., 0., 1.])
        );
        let index = |shape: &[usize], axis| grid_index(&[2, 4], &zeros(shape, &[0; 3]), axis, None);
        assert!(index(&[3], Some(1)).is_err());
        assert!(index(&[3], Some(2)).is_err());
    }
}
