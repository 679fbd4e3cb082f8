//! Layers with stored weights: their outputs, their biases, and what they do to a constant.

use opt_core::ops::{Binary, BinaryOp, Op};
use opt_core::{DType, Error, Graph, GraphPatch, NodeId, Result, Tensor, ValueId, ValueKind};

/// A convolution or matrix product with a stored weight that nothing else reads.
#[derive(Debug, Clone)]
pub(crate) struct Layer {
    pub(crate) node: NodeId,
    pub(crate) input: ValueId,
    pub(crate) weight: ValueId,
    /// The weight's axis of output channels.
    pub(crate) axis: usize,
    pub(crate) bias: Option<ValueId>,
    /// The value after the bias.
    pub(crate) output: ValueId,
    /// The output's axis of channels.
    pub(crate) channels: usize,
}

/// The layers of a graph, in its order.
#[derive(Debug, Clone)]
pub(crate) struct Layers(Vec<Layer>);

impl Layers {
    pub(crate) fn of(graph: &Graph) -> Layers {
        let consumers = graph.consumers();
        let outputs: Vec<ValueId> = graph.outputs().collect();
        let own = |v: ValueId| {
            let value = graph.value(v);
            let readers = consumers.get(&v).map_or(0, Vec::len);
            value.tensor().is_some()
                && value.ty().dtype == DType::F32
                && readers == 1
                && !outputs.contains(&v)
        };
        let layer = |id: NodeId| -> Option<Layer> {
            let node = graph.node(id);
            let (input, weight) = (*node.inputs().first()?, *node.inputs().get(1)?);
            let stored = graph.value(input).tensor().is_some();
            let mut output = *node.outputs().first()?;
            if stored || !matches!(node.op(), Op::Conv(_) | Op::MatMul(_)) || !own(weight) {
                return None;
            }
            let rank = graph.type_of(output).rank();
            let (axis, bias, channels) = match node.op() {
                Op::Conv(_) => match node.inputs().get(2) {
                    Some(&b) if !own(b) => return None,
                    bias => (0, bias.copied(), 1),
                },
                Op::MatMul(op) if graph.type_of(weight).rank() == 2 && !op.trans_a => {
                    let axis = usize::from(!op.trans_b);
                    let width = graph.type_of(weight).shape[axis].clone();
                    let next = match consumers.get(&output).map(Vec::as_slice) {
                        Some([(next, _)]) if !outputs.contains(&output) => Some(graph.node(*next)),
                        _ => None,
                    };
                    let add = next.filter(|n| *n.op() == Op::from(Binary { op: BinaryOp::Add }));
                    let bias = add.and_then(|n| {
                        let found = n.inputs().iter().copied().find(|&v| own(v))?;
                        (graph.type_of(found).shape.dims() == [width]).then_some(found)
                    });
                    if let (Some(_), Some(add)) = (bias, add) {
                        output = add.outputs()[0];
                    }
                    (axis, bias, rank - 1)
                }
                _ => return None,
            };
            Some(Layer {
                node: id,
                input,
                weight,
                axis,
                bias,
                output,
                channels,
            })
        };
        Layers(graph.nodes().filter_map(|(id, _)| layer(id)).collect())
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = &Layer> {
        self.0.iter()
    }

    /// The layer of a weight.
    pub(crate) fn of_weight(&self, weight: ValueId) -> Option<&Layer> {
        self.0.iter().find(|layer| layer.weight == weight)
    }

    /// The graph with a bias of zeros at every layer that has none: a variable if its weight is
    /// one.
    pub(crate) fn with_biases(&self, graph: Graph) -> Result<Graph> {
        let original = graph.clone();
        let mut patch = GraphPatch::new(graph);
        for layer in self.0.iter().filter(|l| l.bias.is_none()) {
            let (node, weight) = (original.node(layer.node), original.value(layer.weight));
            let width = weight.ty().shape[layer.axis].fixed()?;
            let zeros = Tensor::zeros(DType::F32, [width])?;
            let stem = weight.name().strip_suffix("weight");
            let name = match stem {
                Some(stem) => format!("{stem}bias"),
                None => format!("{}.bias", weight.name()),
            };
            let bias = match weight.kind() {
                ValueKind::Variable(_) => patch.variable(&name, zeros)?,
                _ => patch.named_constant(&name, zeros),
            };
            let y = match node.op() {
                Op::Conv(op) => {
                    let inputs = [layer.input, layer.weight, bias];
                    patch.named_node(node.name(), op.clone(), &inputs)?[0]
                }
                _ => patch.add(layer.output, bias)?,
            };
            patch.replace(layer.output, y)?;
        }
        patch.finish()
    }
}

impl Layer {
    /// Whether it reads zeros beyond the edges of its input.
    pub(crate) fn pads(&self, graph: &Graph) -> bool {
        match graph.node(self.node).op() {
            Op::Conv(op) => {
                let mut pads = op.window.pads_begin.iter().chain(&op.window.pads_end);
                pads.any(|&p| p > 0)
            }
            _ => false,
        }
    }

    /// What the layer without its bias makes, a channel, of an input that is constant in each
    /// channel.
    pub(crate) fn of_constant_input(&self, graph: &Graph, constant: &[f64]) -> Result<Vec<f64>> {
        let weight = graph.value(self.weight).tensor();
        let weight = weight.ok_or_else(|| Error::invalid("a layer's weight is not stored"))?;
        let (shape, data) = (weight.shape().to_vec(), weight.to_f64s());
        let mut out = vec![0.0; shape[self.axis]];
        match graph.node(self.node).op() {
            Op::Conv(op) => {
                let taps: usize = shape[2..].iter().product();
                let each = shape[0] / op.groups;
                for (i, w) in data.iter().enumerate() {
                    let (o, c) = (i / (shape[1] * taps), i / taps % shape[1]);
                    out[o] += w * constant[o / each * shape[1] + c];
                }
            }
            _ => {
                for (i, w) in data.iter().enumerate() {
                    let index = [i / shape[1], i % shape[1]];
                    out[index[self.axis]] += w * constant[index[1 - self.axis]];
                }
            }
        }
        Ok(out)
    }
}

/// A layer's bias and its content.
pub(crate) fn bias_content(graph: &Graph, layer: &Layer) -> Result<(ValueId, Vec<f64>)> {
    let bias = layer.bias.and_then(|b| Some((b, graph.value(b).tensor()?)));
    let (bias, content) = bias.ok_or_else(|| {
        let name = graph.value(layer.weight).name().to_string();
        Error::invalid("this layer has no stored bias of its own").at(name)
    })?;
    Ok((bias, content.to_f64s()))
}
