//! Bias correction.

use opt_core::pass::{FoldBatchNorm, Needs};
use opt_core::{Context, Graph, GraphPatch, Pass, Report, Result, ResultExt, Tensor};

use crate::batches::Batches;
use crate::layers::{Layers, bias_content};
use crate::moments::moments_over;
use crate::simulate::{fake_activations, rounded, weight_grid};
use crate::static_pass::Config;

/// Takes the mean error that quantization makes in each channel out of the biases (Nagel et al.,
/// "Data-free quantization through weight equalization and bias correction", ICCV 2019, section
/// 4.2, by examples).
///
/// Layer after layer, in the graph's order: the mean of each output channel over the calibration
/// examples in float, less the mean with the weights and activations before it rounded and the
/// biases before it corrected, is added to the bias. A layer without a bias gets one. Batch
/// normalization is folded first; the result is in float, and quantizing it with the same
/// configuration gives what was corrected for.
///
/// See [`Equalize`](crate::Equalize) for an example. The report has, for each layer, the root mean
/// square of what was added.
#[derive(Debug, Clone, Default)]
pub struct CorrectBias {
    config: Config,
}

impl CorrectBias {
    /// For a quantization with a configuration.
    pub fn new(config: Config) -> CorrectBias {
        CorrectBias { config }
    }
}

impl Pass for CorrectBias {
    fn name(&self) -> &str {
        "correct_bias"
    }

    fn config(&self) -> String {
        self.config.to_toml()
    }

    fn needs(&self) -> Needs {
        Needs::CALIBRATION
    }

    fn apply(&self, graph: Graph, cx: &mut Context<'_>) -> Result<(Graph, Report)> {
        let (graph, _) = FoldBatchNorm::fold(graph)?;
        let graph = Layers::of(&graph).with_biases(graph)?;
        let (mut graph, plan, ranges) = self.config.plan(graph, cx)?;
        let data = cx.calibration().or_else(|e| cx.training().map_err(|_| e))?;
        let batches = Batches::new(data, cx.backend()?, &self.config.calibration)?;
        let layers = Layers::of(&graph);
        let planned = plan.layers.iter();
        let planned: Vec<_> = planned
            .filter_map(|p| Some((p, layers.of_weight(p.weight)?)))
            .collect();
        let outputs: Vec<_> = planned.iter().map(|(_, l)| l.output).collect();
        let exact = moments_over(&graph, &outputs, &batches)?;
        let mut simulated = graph.clone();
        for (planned, layer) in &planned {
            let params = weight_grid(&graph, planned)?;
            let value = graph.value(layer.weight);
            let name = || value.name().to_string();
            let content = value.tensor().expect("planned as stored");
            let content = rounded(content, &params).at(name)?;
            simulated.set_content(layer.weight, content)?;
        }
        let mut patch = GraphPatch::new(simulated);
        fake_activations(&mut patch, &ranges)?;
        let mut simulated = patch.finish()?;
        let mut report = Report::new(planned.len());
        for layer in plan
            .layers
            .iter()
            .filter(|p| layers.of_weight(p.weight).is_none())
        {
            let name = graph.value(layer.weight).name();
            report = report.note(format!("{name}: its bias is read by others too, and stays"));
        }
        for ((_, layer), exact) in planned.iter().zip(&exact) {
            let found = moments_over(&simulated, &[layer.output], &batches)?;
            let shift: Vec<f64> = exact
                .iter()
                .zip(&found[0])
                .map(|(a, b)| a.mean - b.mean)
                .collect();
            let (bias, content) = bias_content(&graph, layer)?;
            let sum: Vec<f64> = content.iter().zip(&shift).map(|(b, s)| b + s).collect();
            let ty = graph.type_of(bias).clone();
            let corrected = Tensor::from_f64s(ty.dtype, ty.shape.fixed()?, &sum)?;
            simulated.set_content(bias, corrected.clone())?;
            graph.set_content(bias, corrected)?;
            let square = shift.iter().map(|s| s * s).sum::<f64>() / shift.len().max(1) as f64;
            let name = graph.value(layer.weight).name();
            report = report.figure(format!("shift of {name}"), square.sqrt());
        }
        Ok((graph, report))
    }
}
