//! Folding batch normalization into the layer before it.

use crate::ops::{Binary, BinaryOp, Op};
use crate::{
    Context, Error, Graph, GraphPatch, Node, Pass, Report, Result, Tensor, ValueId, ValueKind,
};

/// Folds batch normalization in evaluation mode into the convolution or matrix product before it:
/// `scale / sqrt(var + epsilon)` goes into the weight's output channels, the rest into the bias.
///
/// The folded weight is a new variable (or constant, if the weight was one) under the old name;
/// its pruning mask moves with it, since scaling keeps zeros. A batch normalization whose input
/// has other readers, or follows nothing foldable, stays.
///
/// ```
/// use opt_core::nn::zoo;
/// use opt_core::pass::FoldBatchNorm;
/// use opt_core::{Context, Pass};
///
/// let model = zoo::resnet20([3, 32, 32], 10, 0)?;
/// let (graph, report) = FoldBatchNorm.apply(model, &mut Context::new())?;
/// assert_eq!(report.changed, 19);
/// assert!(graph.nodes().all(|(_, n)| n.op().name() != "BatchNorm"));
/// # Ok::<(), opt_core::Error>(())
/// ```
#[derive(Debug, Clone, Copy, Default)]
pub struct FoldBatchNorm;

/// The layer that a batch normalization follows.
struct Layer {
    node: Node,
    weight: ValueId,
    /// The weight's axis of output channels.
    axis: usize,
    /// The bias and, for a matrix product, the node that adds it.
    bias: Option<ValueId>,
}

/// The layer that defines `value`, if it can take factors and offsets.
fn layer(graph: &Graph, value: ValueId, readers: &dyn Fn(ValueId) -> usize) -> Option<Layer> {
    if readers(value) != 1 {
        return None;
    }
    let (_, node) = graph.producer(value)?;
    let axis_of = |node: &Node| match node.op() {
        Op::Conv(_) => Some(0),
        Op::ConvTranspose(op) if op.groups == 1 => Some(1),
        Op::MatMul(op) if graph.type_of(node.inputs()[0]).rank() == 2 => {
            Some(usize::from(!op.trans_b))
        }
        _ => None,
    };
    if let Some(axis) = axis_of(node) {
        let weight = node.inputs()[1];
        graph.value(weight).tensor()?;
        let bias = node.inputs().get(2).copied();
        if let Some(bias) = bias {
            graph.value(bias).tensor()?;
        }
        return Some(Layer {
            node: node.clone(),
            weight,
            axis,
            bias,
        });
    }
    if node.op() == &Op::Binary(Binary { op: BinaryOp::Add }) {
        let (a, b) = (node.inputs()[0], node.inputs()[1]);
        let (product, bias) = if graph.value(b).tensor().is_some() {
            (a, b)
        } else {
            (b, a)
        };
        graph.value(bias).tensor()?;
        let (_, matmul) = graph.producer(product)?;
        if !matches!(matmul.op(), Op::MatMul(_)) || readers(product) != 1 {
            return None;
        }
        let weight = matmul.inputs()[1];
        graph.value(weight).tensor()?;
        let axis = axis_of(matmul)?;
        let width = graph.type_of(weight).shape[axis].as_fixed()?;
        if graph.type_of(bias).shape != [width].into() {
            return None;
        }
        return Some(Layer {
            node: matmul.clone(),
            weight,
            axis,
            bias: Some(bias),
        });
    }
    None
}

/// A tensor with each entry of an axis times a factor.
fn scaled(tensor: &Tensor, axis: usize, factors: &[f64]) -> Result<Tensor> {
    let inner: usize = tensor.shape()[axis + 1..].iter().product();
    let mut data = tensor.to_f64s();
    for (i, v) in data.iter_mut().enumerate() {
        *v *= factors[i / inner.max(1) % factors.len()];
    }
    Tensor::from_f64s(tensor.dtype(), tensor.shape(), &data)
}

impl FoldBatchNorm {
    /// Applies the folding without a context; returns how many were folded.
    ///
    /// # Errors
    /// If a parameter of a batch normalization is not a constant or variable.
    pub fn fold(graph: Graph) -> Result<(Graph, usize)> {
        let consumers = graph.consumers();
        let outputs: Vec<ValueId> = graph.outputs().collect();
        let readers = |v: ValueId| {
            consumers.get(&v).map_or(0, Vec::len) + outputs.iter().filter(|&&o| o == v).count()
        };
        let original = graph.clone();
        let mut patch = GraphPatch::new(graph);
        let mut renamed = Vec::new();
        for (_, node) in original.nodes() {
            let Op::BatchNorm(op) = node.op() else {
                continue;
            };
            if op.training {
                continue;
            }
            let Some(layer) = layer(&original, node.inputs()[0], &readers) else {
                continue;
            };
            if readers(layer.weight) != 1 || layer.bias.is_some_and(|b| readers(b) != 1) {
                continue;
            }
            let mut parameters = Vec::new();
            for &p in &node.inputs()[1..] {
                let value = original.value(p);
                let tensor = value.tensor().ok_or_else(|| {
                    Error::invalid("a parameter of the batch normalization is computed")
                        .at(node.name().to_string())
                })?;
                parameters.push(tensor.to_f64s());
            }
            let [scale, shift, mean, var] = &parameters[..] else {
                continue;
            };
            let factors: Vec<f64> = scale
                .iter()
                .zip(var)
                .map(|(s, v)| s / (v + op.epsilon).sqrt())
                .collect();
            let old = layer.bias.and_then(|b| original.value(b).tensor());
            let old = old.map_or(vec![0.0; mean.len()], Tensor::to_f64s);
            let bias: Vec<f64> = (0..mean.len())
                .map(|c| (old[c] - mean[c]) * factors[c] + shift[c])
                .collect();
            let weight = original.value(layer.weight);
            let content = weight.tensor().expect("checked by `layer`");
            let trained = matches!(weight.kind(), ValueKind::Variable(_));
            let new_weight = scaled(content, layer.axis, &factors)?;
            let new_bias = Tensor::from_f64s(content.dtype(), [bias.len()], &bias)?;
            let mut add = |name: &str, tensor: Tensor| -> Result<ValueId> {
                if trained {
                    patch.variable(&format!("{name}.folded"), tensor)
                } else {
                    Ok(patch.named_constant(&format!("{name}.folded"), tensor))
                }
            };
            let w = add(weight.name(), new_weight)?;
            let bias_name = match layer.bias {
                Some(b) => original.value(b).name().to_string(),
                None => original.value(node.inputs()[2]).name().to_string(),
            };
            let b = add(&bias_name, new_bias)?;
            renamed.push((w, weight.name().to_string()));
            renamed.push((b, bias_name));
            if let Some(mask) = original.facts().mask(layer.weight) {
                let mask = crate::Fact::Mask(mask.clone());
                patch.graph_mut().facts_mut().insert(w, mask);
            }
            let x = layer.node.inputs()[0];
            let y = match layer.node.op() {
                Op::MatMul(op) => {
                    let product = patch.named_node(layer.node.name(), *op, &[x, w])?[0];
                    patch.add(product, b)?
                }
                op => patch.named_node(layer.node.name(), op.clone(), &[x, w, b])?[0],
            };
            patch.replace(node.outputs()[0], y)?;
            // Whoever knows the layer by its output's name finds it.
            let output = original.value(node.outputs()[0]).name();
            renamed.push((y, output.to_string()));
        }
        let folded = renamed.len() / 3;
        let mut graph = patch.finish()?;
        graph.rename(&renamed);
        Ok((graph, folded))
    }
}

impl Pass for FoldBatchNorm {
    fn name(&self) -> &str {
        "fold_batch_norm"
    }

    fn apply(&self, graph: Graph, _: &mut Context<'_>) -> Result<(Graph, Report)> {
        let (graph, folded) = FoldBatchNorm::fold(graph)?;
        Ok((graph, Report::new(folded)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::nn::{BatchNorm, Conv, ModelBuilder};

    #[test]
    fn the_output_keeps_the_name_of_the_normalization() {
        let mut b = ModelBuilder::new("m", 0);
        let x = b.batch("x", [2, 4, 4]).unwrap();
        let y = b.layer("conv", Conv::new(3, [1, 1]), x).unwrap();
        let y = b.layer("norm", BatchNorm::new(), y).unwrap();
        let name = b.graph().value(y).name().to_string();
        let y = b.relu(y).unwrap();
        b.output("y", y).unwrap();
        let (graph, folded) = FoldBatchNorm::fold(b.finish().unwrap()).unwrap();
        assert_eq!(folded, 1);
        let output = graph.find(&name).unwrap();
        let (_, node) = graph.producer(output).unwrap();
        assert_eq!(node.op().name(), "Conv");
        assert!(graph.find("conv.weight").is_ok() && graph.find("conv.bias").is_ok());
    }
}
