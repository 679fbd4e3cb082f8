//! One layer at a time.

use opt_core::{Context, Graph, Pass, Result, ResultExt};

use super::compare::{indices, outputs, run};
use super::moved::{LayerErrors, Moved};
use crate::rules::{Rules, Select};
use crate::scheme::Scheme;

/// Makes the pass that quantizes as rules say, such as
/// `|rules: &Rules| Box::new(QuantizeWeights::int8().rules(rules.clone())) as Box<dyn Pass>`.
pub trait Quantizer {
    /// The pass for rules.
    fn pass(&self, rules: &Rules) -> Box<dyn Pass>;
}

impl<F: Fn(&Rules) -> Box<dyn Pass>> Quantizer for F {
    fn pass(&self, rules: &Rules) -> Box<dyn Pass> {
        self(rules)
    }
}

/// Rules that quantize one layer and leave the others alone.
pub(super) fn only(layer: &str, scheme: Scheme) -> Result<Rules> {
    Ok(Rules::new()
        .apply(Select::name(layer), scheme)
        .keep(Select::regex("")?)
        .allow_unused())
}

/// Quantizes one layer at a time, named by its node or its weight, and tells how far that moves the
/// graph's outputs, over the calibration examples. Errors of several outputs are summed.
///
/// A quantizer that calibrates does so for each layer.
///
/// ```
/// use opt_core::nn::{Linear, ModelBuilder};
/// use opt_core::{Context, Pass, Tensor};
/// use opt_data::TensorDataset;
/// use opt_ndarray::NdarrayBackend;
/// use opt_quant::analysis::sensitivity;
/// use opt_quant::{QuantizeWeights, Rules, Scheme};
///
/// let mut m = ModelBuilder::new("model", 0);
/// let x = m.batch("x", [64])?;
/// let h = m.layer("fc1", Linear::new(64), x)?;
/// let y = m.layer("fc2", Linear::new(3), h)?;
/// m.output("y", y)?;
/// let graph = m.finish()?;
///
/// let x: Vec<f32> = (0..640).map(|i| (i as f32).sin()).collect();
/// let data = TensorDataset::new(vec![Tensor::new([10, 64], x)?])?;
/// let backend = NdarrayBackend::new();
/// let mut cx = Context::new().with_backend(&backend).with_calibration(&data);
/// let pass = |rules: &Rules| {
///     Box::new(QuantizeWeights::new(Scheme::int4()).rules(rules.clone())) as Box<dyn Pass>
/// };
/// let layers = ["fc1.weight", "fc2.weight"];
/// let table = sensitivity(&graph, &pass, Scheme::int4(), &layers, &mut cx)?;
/// println!("{table}");
/// assert_eq!(table.layers.len(), 2);
/// # Ok::<(), opt_quant::Error>(())
/// ```
///
/// # Errors
/// Those of the pass and of running the graph, at the layer's name.
pub fn sensitivity(
    graph: &Graph,
    quantizer: &dyn Quantizer,
    scheme: Scheme,
    layers: &[&str],
    cx: &mut Context<'_>,
) -> Result<LayerErrors> {
    let mut found = LayerErrors::default();
    for &layer in layers {
        let moved = alone(graph, quantizer, scheme, layer, cx).at(|| layer.to_string())?;
        found.layers.push(moved.finish(layer));
    }
    Ok(found)
}

/// How far one layer moves the outputs.
pub(super) fn alone(
    graph: &Graph,
    quantizer: &dyn Quantizer,
    scheme: Scheme,
    layer: &str,
    cx: &mut Context<'_>,
) -> Result<Moved> {
    let (data, backend) = (cx.calibration()?, cx.backend()?);
    let pass = quantizer.pass(&only(layer, scheme)?);
    let (quantized, _) = pass.apply(graph.clone(), cx)?;
    let pairs = outputs(graph, &quantized)?;
    let moved = run(graph, &quantized, &pairs, &indices(data)?, data, backend)?;
    Ok(moved.into_iter().reduce(Moved::plus).unwrap_or_default())
}
