//! Dynamic quantization: activations are quantized when the model runs.

use std::collections::BTreeMap;

use opt_core::ops::Op;
use opt_core::pass::Needs;
use opt_core::{Context, Graph, GraphPatch, Pass, Report, Result, ResultExt, ValueId};

use crate::scheme::{Scheme, quantize_tensor};
use crate::stored::find;

/// Quantizes matrix products with stored weights: weights to int8 now, activations to uint8 with a
/// scale and zero point found in each run. No calibration is needed.
///
/// The result has [`DynamicQuantize`](opt_core::ops::DynamicQuantize) and dequantization before
/// each product; exported to ONNX they become `MatMulInteger`, as ONNX Runtime's
/// `quantize_dynamic` writes it.
///
/// ```
/// use opt_core::nn::{Linear, ModelBuilder};
/// use opt_core::{Context, Pass};
/// use opt_quant::QuantizeDynamic;
///
/// let mut m = ModelBuilder::new("model", 0);
/// let x = m.batch("x", [8])?;
/// let y = m.layer("fc", Linear::new(3), x)?;
/// m.output("y", y)?;
/// let (graph, report) = QuantizeDynamic::new().per_channel().apply(m.finish()?, &mut Context::new())?;
/// assert_eq!(report.changed, 1);
/// assert!(graph.nodes().any(|(_, n)| n.op().name() == "DynamicQuantize"));
/// # Ok::<(), opt_quant::Error>(())
/// ```
#[derive(Debug, Clone, Default, PartialEq)]
pub struct QuantizeDynamic {
    per_channel: bool,
    exclude: Vec<String>,
}

impl QuantizeDynamic {
    /// One scale for each weight.
    pub fn new() -> QuantizeDynamic {
        QuantizeDynamic::default()
    }

    /// One scale for each output channel of a weight.
    #[must_use]
    pub fn per_channel(mut self) -> QuantizeDynamic {
        self.per_channel = true;
        self
    }

    /// Leaves out layers whose weights' names contain the pattern; one that matches nothing is an
    /// error.
    #[must_use]
    pub fn exclude(mut self, pattern: impl Into<String>) -> QuantizeDynamic {
        self.exclude.push(pattern.into());
        self
    }
}

impl Pass for QuantizeDynamic {
    fn name(&self) -> &str {
        "quantize_dynamic"
    }

    fn config(&self) -> String {
        format!(
            "per_channel = {}\nexclude = {:?}\n",
            self.per_channel, self.exclude
        )
    }

    fn needs(&self) -> Needs {
        Needs::NOTHING
    }

    fn apply(&self, graph: Graph, _: &mut Context<'_>) -> Result<(Graph, Report)> {
        let (layers, left) = find(&graph, &self.exclude, false)?;
        let mut scheme = Scheme::weights();
        scheme.per_channel = self.per_channel;
        let original = graph.clone();
        let mut patch = GraphPatch::new(graph);
        let mut report = Report::new(layers.len());
        let mut inputs: BTreeMap<ValueId, [ValueId; 3]> = BTreeMap::new();
        let mut weights: BTreeMap<(ValueId, usize), [ValueId; 3]> = BTreeMap::new();
        for layer in layers {
            let node = original.node(layer.node);
            let Op::MatMul(op) = node.op() else { continue };
            let x = node.inputs()[0];
            let value = original.value(layer.weight);
            let name = value.name().to_string();
            let [q, scale, zero] = match inputs.get(&x) {
                Some(found) => *found,
                None => {
                    let new = patch.dynamic_quantize(x).at(|| node.name().to_string())?;
                    inputs.insert(x, new);
                    new
                }
            };
            let a = patch.dequantize(q, scale, zero, None)?;
            // A weight that several layers read is stored once.
            let axis = self.per_channel.then_some(layer.axis);
            let stored = match weights.get(&(layer.weight, layer.axis)) {
                Some(found) => *found,
                None => {
                    let content = value.tensor().expect("found as stored");
                    let params = scheme.of_tensor(content, layer.axis).at(|| name.clone())?;
                    let q = quantize_tensor(content, &params)?;
                    let new = [
                        patch.named_constant(&format!("{name}.q"), q),
                        patch.named_constant(&format!("{name}.s"), params.scale),
                        patch.named_constant(&format!("{name}.z"), params.zero_point),
                    ];
                    weights.insert((layer.weight, layer.axis), new);
                    new
                }
            };
            let b = patch.dequantize(stored[0], stored[1], stored[2], axis)?;
            let y = patch.named_node(node.name(), *op, &[a, b])?[0];
            patch.replace(node.outputs()[0], y)?;
        }
        for note in left {
            report = report.note(note);
        }
        Ok((patch.finish()?, report))
    }
}
