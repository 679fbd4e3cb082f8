//! Esser et al. 2020.

use opt_core::{Pipeline, Result};
use opt_quant::{Config, QuantizeAware, QuantizeStatic, Scheme};

use super::{Claim, Figures, Judgement, LR, Lab, Verdict};

/// Weights of two bits, if they are trained.
#[derive(Debug)]
pub(super) struct TwoBits;

const DENSE: &str = "32-bit weights";
const NEAREST: &str = "2-bit weights, rounded to nearest";
const PER_TENSOR: &str = "2-bit weights, rounded to nearest, one scale a layer";
const TRAINED: &str = "2-bit weights, trained, scales from the range";
const LEARNED: &str = "2-bit weights, trained, scales learned";

impl Claim for TwoBits {
    fn name(&self) -> &'static str {
        "two-bits"
    }

    fn title(&self) -> &'static str {
        "Training brings weights of two bits near full precision; rounding destroys them"
    }

    fn paper(&self) -> &'static str {
        "Esser et al., \"Learned step size quantization\", ICLR 2020, table 1: ResNet-18 on ImageNet \
         with weights and activations of 2 bits 67.6 % top-1, full precision 70.5 %."
    }

    fn method(&self) -> &'static str {
        "LeNet-300-100 with weights of the levels -2, -1, 0 and 1 times a scale for each neuron, and \
         8-bit activations: rounded after training with the scales that the largest weight gives, or \
         trained for 100 more epochs with rounding in the forward pass, with such scales or with \
         learned ones. All run as integers. Reproduced if trained weights are within two points of \
         full precision and rounded ones are not."
    }

    fn measure(&self, lab: &Lab) -> Result<Vec<(&'static str, f64)>> {
        let two = Scheme::int2().per_channel();
        let config = Config::default().weights(two);
        let dense = lab.trained()?;
        let aware = |config: Config| {
            let pass = QuantizeAware::new(config, lab.tune(100, LR / 4.0));
            let graph = lab.run(dense.clone(), &Pipeline::new().then(pass))?;
            lab.error(&graph)
        };
        let coarse = Config::default().weights(two.per_tensor());
        let coarse = lab.apply(dense.clone(), &QuantizeStatic::with(coarse))?;
        let nearest = lab.apply(dense.clone(), &QuantizeStatic::with(config.clone()))?;
        Ok(vec![
            (DENSE, lab.error(&dense)?),
            (PER_TENSOR, lab.error(&coarse)?),
            (NEAREST, lab.error(&nearest)?),
            (TRAINED, aware(config.clone())?),
            (LEARNED, aware(config.learn_scales())?),
        ])
    }

    fn judge(&self, figures: &Figures) -> Judgement {
        let mean = |name| figures.of(name).mean();
        let loss = figures.difference(LEARNED, DENSE);
        let rounding = figures.difference(NEAREST, DENSE);
        let verdict = match (loss.mean <= 2.0, rounding.mean > 2.0) {
            (true, true) => Verdict::Reproduced,
            (false, true) if mean(LEARNED) < mean(NEAREST) => Verdict::Partly,
            _ => Verdict::NotReproduced,
        };
        let learned = figures.difference(LEARNED, TRAINED);
        Judgement {
            verdict,
            headline: format!(
                "error {:.1} % rounded, {:.2} % trained (32 bits: {:.2} %)",
                mean(NEAREST),
                mean(LEARNED),
                mean(DENSE)
            ),
            reason: format!(
                "Rounding costs {rounding} points, training with learned scales leaves {loss}. \
                 Learning the scales changes the error by {learned} points against scales from the \
                 weights' range."
            ),
        }
    }
}
