//! Nagel et al. 2019 and 2020: repair after training, without training.

use opt_core::nn::{BatchNorm, Conv, Linear, ModelBuilder};
use opt_core::random::Philox;
use opt_core::{Dim, Error, Graph, Pipeline, Result, Tensor, ValueId};
use opt_quant::{AdaRound, Config, CorrectBias, Equalize, QuantizeStatic, Scheme};

use super::{Claim, Figures, Judgement, LR, Lab, Verdict};

/// A small network of depthwise separable convolutions with batch normalization, after MobileNet.
fn separable(lab: &Lab) -> Result<Graph> {
    let mut m = ModelBuilder::new("separable", lab.seed);
    let x = m.batch("features", [64])?;
    let shape: Vec<Dim> = vec!["batch".into(), 1.into(), 8.into(), 8.into()];
    let mut x = m.reshape(x, shape)?;
    let block = |m: &mut ModelBuilder, name: &str, conv: Conv, x: ValueId| -> Result<ValueId> {
        m.scope(name, |m| {
            let x = m.layer("conv", conv.bias(false), x)?;
            let x = m.layer("norm", BatchNorm::new(), x)?;
            m.relu(x)
        })
    };
    x = block(&mut m, "stem", Conv::new(16, [3, 3]).pad(1), x)?;
    for (i, (inputs, outputs, stride)) in [(16, 32, 2), (32, 32, 1), (32, 64, 2)].into_iter().enumerate() {
        let depthwise = Conv::new(inputs, [3, 3]).pad(1).stride(stride).groups(inputs);
        x = block(&mut m, &format!("depthwise{i}"), depthwise, x)?;
        x = block(&mut m, &format!("pointwise{i}"), Conv::new(outputs, [1, 1]), x)?;
    }
    let x = m.global_avg_pool(x)?;
    let x = m.flatten(x, 1)?;
    let y = m.layer("classifier", Linear::new(10), x)?;
    m.output("logits", y)?;
    m.finish()
}

/// The convolutional network, trained on the labels for 40 epochs.
fn trained(lab: &Lab) -> Result<Graph> {
    lab.apply(separable(lab)?, &lab.tune(40, LR))
}

/// Layers are quantized to 8 bits with one scale a tensor.
fn per_tensor() -> Config {
    Config::default().weights(Scheme::int8().per_tensor())
}

/// Ranges of channels are made equal, and means put right.
#[derive(Debug)]
pub(super) struct Equalization;

const FLOAT: &str = "32 bits";
const PLAIN: &str = "8 bits, one scale a tensor";
const CORRECTED: &str = "8 bits, biases corrected";
const EQUAL: &str = "8 bits, equalized";
const BOTH: &str = "8 bits, equalized and biases corrected";
const UNEVEN: &str = "rescaled perceptron, 8 bits";
const EVEN: &str = "rescaled perceptron, 8 bits, equalized";
const DENSE: &str = "perceptron, 32 bits";
const MOVED: &str = "rescaled perceptron: change of the float outputs by equalization";

/// The perceptron with hidden channels multiplied by random factors from a thirtieth to thirty and
/// divided by them in the next layer.
fn rescaled(graph: Graph, seed: u64) -> Result<Graph> {
    let mut graph = graph;
    let stream = Philox::new(seed);
    for (step, (first, second)) in [("fc1", "fc2"), ("fc2", "fc3")].into_iter().enumerate() {
        let find = |graph: &Graph, name: String| -> Result<(ValueId, Tensor)> {
            let id = graph.find(&name)?;
            let content = graph.value(id).tensor().cloned();
            Ok((id, content.ok_or_else(|| Error::invalid("a parameter"))?))
        };
        let (w, weight) = find(&graph, format!("{first}.weight"))?;
        let (b, bias) = find(&graph, format!("{first}.bias"))?;
        let (v, next) = find(&graph, format!("{second}.weight"))?;
        let channels = weight.shape()[0];
        let factor = |c: usize| 10f64.powf(3.0 * stream.uniform(step as u64, c as u64) - 1.5);
        let times = |t: &Tensor, of: &dyn Fn(usize) -> f64| {
            let data = t.to_f64s().into_iter().enumerate();
            let data: Vec<f64> = data.map(|(i, x)| x * of(i)).collect();
            Tensor::from_f64s(t.dtype(), t.shape(), &data)
        };
        let width = weight.shape()[1];
        graph.set_variable(w, times(&weight, &|i| factor(i / width))?)?;
        graph.set_variable(b, times(&bias, &factor)?)?;
        graph.set_variable(v, times(&next, &|i| 1.0 / factor(i % channels))?)?;
    }
    Ok(graph)
}

/// The largest change of an output on the test images, as a share of the largest output.
fn change(lab: &Lab, before: &Graph, after: &Graph) -> Result<f64> {
    let images = [lab.test.fields()[0].clone()];
    let outputs = |graph: &Graph| -> Result<Vec<f64>> {
        Ok(lab.backend().run_once(graph, &images)?[0].to_f64s())
    };
    let (a, b) = (outputs(before)?, outputs(after)?);
    let size = a.iter().fold(0.0f64, |m, v| m.max(v.abs()));
    let apart = a.iter().zip(&b).fold(0.0f64, |m, (a, b)| m.max((a - b).abs()));
    Ok(100.0 * apart / size)
}

impl Claim for Equalization {
    fn name(&self) -> &'static str {
        "equalization"
    }

    fn title(&self) -> &'static str {
        "Equal ranges and corrected biases make one scale a tensor enough, without data or training"
    }

    fn paper(&self) -> &'static str {
        "Nagel, van Baalen, Blankevoort & Welling, \"Data-free quantization through weight \
         equalization and bias correction\", ICCV 2019, tables 1 and 2: MobileNetV2 on ImageNet \
         with 8 bits and one scale a tensor 0.1 % top-1, equalized 69.9 %, with high biases \
         absorbed and biases corrected 71.2 %; in float 71.7 %."
    }

    fn method(&self) -> &'static str {
        "A network of a convolution and three depthwise separable ones, with batch normalization and \
         ReLU, trained for 40 epochs, and LeNet-300-100 whose hidden channels are multiplied by \
         random factors from 1/30 to 30 and divided by them in the next layer, which changes nothing \
         in float. Both run with integers of 8 bits and one scale a weight. Biases are corrected by \
         the training images. Reproduced if the rescaled network loses more than 10 points, and at \
         most half a point once it is equalized, its outputs in float having moved by less than \
         0.01 % of the largest, and if the convolutional network gets back nine tenths of what it \
         lost, or ends within two standard errors of 32 bits."
    }

    fn measure(&self, lab: &Lab) -> Result<Vec<(&'static str, f64)>> {
        let quantize = || QuantizeStatic::with(per_tensor());
        let correct = || CorrectBias::new(per_tensor());
        let model = trained(lab)?;
        let error = |pipeline: Pipeline| lab.error(&lab.run(model.clone(), &pipeline)?);
        let equal = || Pipeline::new().then(Equalize::new());
        let dense = lab.trained()?;
        let uneven = rescaled(dense.clone(), lab.seed)?;
        let even = lab.apply(uneven.clone(), &Equalize::new())?;
        Ok(vec![
            (FLOAT, lab.error(&model)?),
            (PLAIN, error(Pipeline::new().then(quantize()))?),
            (CORRECTED, error(Pipeline::new().then(correct()).then(quantize()))?),
            (EQUAL, error(equal().then(quantize()))?),
            (BOTH, error(equal().then(correct()).then(quantize()))?),
            (DENSE, lab.error(&dense)?),
            (UNEVEN, lab.error(&lab.apply(uneven.clone(), &quantize())?)?),
            (MOVED, change(lab, &uneven, &even)?),
            (EVEN, lab.error(&lab.apply(even, &quantize())?)?),
        ])
    }

    fn judge(&self, figures: &Figures) -> Judgement {
        let mean = |name| figures.of(name).mean();
        let (lost, left) = (figures.difference(PLAIN, FLOAT), figures.difference(BOTH, FLOAT));
        let (broken, mended) = (
            figures.difference(UNEVEN, DENSE),
            figures.difference(EVEN, DENSE),
        );
        let moved = figures.of(MOVED).values.iter().copied().fold(0.0, f64::max);
        let rescaled = broken.mean > 10.0 && mended.mean <= 0.5 && moved < 0.01;
        let repaired = left.mean <= (0.1 * lost.mean).max(2.0 * left.error);
        let verdict = match (rescaled, repaired) {
            (true, true) => Verdict::Reproduced,
            (true, false) | (false, true) => Verdict::Partly,
            _ => Verdict::NotReproduced,
        };
        Judgement {
            verdict,
            headline: format!(
                "error {:.1} % with uneven channels, {:.2} % equalized (32 bits: {:.2} %)",
                mean(UNEVEN),
                mean(EVEN),
                mean(DENSE)
            ),
            reason: format!(
                "Of the convolutional network one scale a tensor costs {lost} points, and {left} \
                 after both repairs. With rescaled channels it costs {broken} points, and {mended} \
                 after equalization, which moves no output by more than {moved:.5} %."
            ),
        }
    }
}

/// Learned rounding against the nearest.
#[derive(Debug)]
pub(super) struct Rounding;

const NEAREST: &str = "4-bit weights, rounded to nearest";
const LEARNED: &str = "4-bit weights, rounding learned";
const SHARE: &str = "error of the layers' outputs, learned against nearest";

impl Claim for Rounding {
    fn name(&self) -> &'static str {
        "rounding"
    }

    fn title(&self) -> &'static str {
        "Rounding to the nearest is not the best rounding"
    }

    fn paper(&self) -> &'static str {
        "Nagel, Amjad, van Baalen, Louizos & Blankevoort, \"Up or down? Adaptive rounding for \
         post-training quantization\", ICML 2020: ResNet-18 on ImageNet with weights of 4 \
         bits 23.99 % top-1 rounded to the nearest, 68.71 % with learned rounding, in float \
         69.68 %; MobileNetV2 8.09, 69.78 and 71.72 %."
    }

    fn method(&self) -> &'static str {
        "The network of depthwise separable convolutions, its batch normalization folded, with \
         weights of 4 bits and one scale a tensor, that of the smallest squared error, and 8-bit \
         activations: rounded to the nearest, or with rounding that is learned for 1,000 steps a \
         layer on patches of the training images, without labels. Reproduced if the learned one is \
         better by more than two standard errors and removes half of what rounding costs."
    }

    fn measure(&self, lab: &Lab) -> Result<Vec<(&'static str, f64)>> {
        let config = Config::default().weights(Scheme::int4().per_tensor());
        let model = trained(lab)?;
        let pass = |steps: usize| AdaRound::new(config.clone()).iterations(steps);
        let rounded = |steps: usize| {
            let quantize = QuantizeStatic::with(config.clone());
            let pipeline = Pipeline::new().then(pass(steps)).then(quantize);
            let (graph, reports) = lab.run_with_reports(model.clone(), &pipeline)?;
            let shares = reports[0].1.figures.values();
            let share = 100.0 * shares.sum::<f64>() / reports[0].1.figures.len().max(1) as f64;
            Ok::<_, Error>((lab.error(&graph)?, share))
        };
        let (nearest, _) = rounded(0)?;
        let (learned, share) = rounded(1000)?;
        Ok(vec![
            (FLOAT, lab.error(&model)?),
            (NEAREST, nearest),
            (LEARNED, learned),
            (SHARE, share),
        ])
    }

    fn judge(&self, figures: &Figures) -> Judgement {
        let mean = |name| figures.of(name).mean();
        let gain = figures.difference(LEARNED, NEAREST);
        let cost = figures.difference(NEAREST, FLOAT);
        let better = gain.mean < -2.0 * gain.error;
        let verdict = match (better, -gain.mean >= 0.5 * cost.mean) {
            (true, true) => Verdict::Reproduced,
            (true, false) => Verdict::Partly,
            _ => Verdict::NotReproduced,
        };
        Judgement {
            verdict,
            headline: format!(
                "error {:.2} % rounded to nearest, {:.2} % learned (32 bits: {:.2} %)",
                mean(NEAREST),
                mean(LEARNED),
                mean(FLOAT)
            ),
            reason: format!(
                "Rounding to the nearest costs {cost} points; learned rounding changes the error by \
                 {gain}. The squared error of a layer's outputs is {:.0} % of that of the nearest on \
                 average.",
                mean(SHARE)
            ),
        }
    }
}
