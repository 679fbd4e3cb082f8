//! Esser et al. 2020: weights and activations of few bits.

use opt_core::Result;
use opt_quant::{Config, ObserverKind, QuantizeAware, QuantizeStatic, Scheme};

use super::{Claim, Figures, Judgement, LR, Lab, Verdict};

/// Weights and activations of few bits, with learned scales.
#[derive(Debug)]
pub(super) struct FewBits;

const DENSE: &str = "32 bits";
const NEAREST: &str = "2 bits, rounded after training";
const FOUR: &str = "4 bits, trained";
const THREE: &str = "3 bits, trained";
const TWO: &str = "2 bits, trained";
const FIXED: &str = "2 bits, trained, ranges of activations fixed";

/// Weights and activations of as many bits, and scales that are learned.
fn config(bits: u32) -> Config {
    Config::default()
        .weights(Scheme::int4().per_channel().bits(bits))
        .activations(Scheme::activations().bits(bits))
        .observer(ObserverKind::Mse)
        .learn_scales()
}

impl Claim for FewBits {
    fn name(&self) -> &'static str {
        "few-bits"
    }

    fn title(&self) -> &'static str {
        "With learned scales 4 bits cost nothing and 2 bits little, activations too"
    }

    fn paper(&self) -> &'static str {
        "Esser et al., \"Learned step size quantization\", ICLR 2020, table 1: ResNet-18 on ImageNet \
         with weights and activations of 4, 3 and 2 bits 71.1, 70.2 and 67.6 % top-1, full precision \
         70.5 %."
    }

    fn method(&self) -> &'static str {
        "LeNet-300-100, trained for 60 epochs, and for 60 more with weights (a scale a neuron) and \
         activations (a scale a tensor, the images too) on grids of as many bits whose scales are \
         learned; at 2 bits also with ranges of activations as calibration finds them. Reproduced if \
         4 bits are within half a point of full precision and 2 bits within two."
    }

    fn measure(&self, lab: &Lab) -> Result<Vec<(&'static str, f64)>> {
        let dense = lab.trained()?;
        let aware = |config: Config| {
            let pass = QuantizeAware::new(config, lab.tune(60, LR / 4.0));
            lab.error(&lab.apply(dense.clone(), &pass)?)
        };
        let nearest = lab.apply(dense.clone(), &QuantizeStatic::with(config(2)))?;
        Ok(vec![
            (DENSE, lab.error(&dense)?),
            (NEAREST, lab.error(&nearest)?),
            (FOUR, aware(config(4).learn_ranges())?),
            (THREE, aware(config(3).learn_ranges())?),
            (TWO, aware(config(2).learn_ranges())?),
            (FIXED, aware(config(2))?),
        ])
    }

    fn judge(&self, figures: &Figures) -> Judgement {
        let mean = |name| figures.of(name).mean();
        let loss = |name| figures.difference(name, DENSE);
        let (four, three, two) = (loss(FOUR), loss(THREE), loss(TWO));
        let verdict = match (four.mean <= 0.5, two.mean <= 2.0) {
            (true, true) => Verdict::Reproduced,
            (true, false) | (false, true) => Verdict::Partly,
            _ => Verdict::NotReproduced,
        };
        let ranges = figures.difference(TWO, FIXED);
        Judgement {
            verdict,
            headline: format!(
                "error {:.2}, {:.2} and {:.2} % at 4, 3 and 2 bits (32 bits: {:.2} %)",
                mean(FOUR),
                mean(THREE),
                mean(TWO),
                mean(DENSE)
            ),
            reason: format!(
                "4 bits cost {four} points, 3 bits {three}, 2 bits {two}. Learning the ranges of \
                 activations changes the error at 2 bits by {ranges} points."
            ),
        }
    }
}
