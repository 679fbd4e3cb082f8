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
    for (i, (inputs, outputs, stride)) in [(16, 32, 2), (32, 32, 1), (32, 64, 2)]
        .into_iter()
        .enumerate()
    {
        let depthwise = Conv::new(inputs, [3, 3])
            .pad(1)
            .stride(stride)
            .groups(inputs);
        x = block(&mut m, &format!("depthwise{i}"), depthwise, x)?;
        x = block(
            &mut m,
            &format!("pointwise{i}"),
            Conv::new(outputs, [1, 1]),
            x,
        )?;
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

/// The convolutional network's blocks, in order, and the layer that reads the last.
const CHAIN: [&str; 8] = [
    "stem",
    "depthwise0",
    "pointwise0",
    "depthwise1",
    "pointwise1",
    "depthwise2",
    "pointwise2",
    "classifier",
];

/// Weights of some bits with one scale a tensor.
fn per_tensor(bits: u32) -> Config {
    Config::default().weights(Scheme::int8().per_tensor().bits(bits))
}

/// Ranges of channels are made equal, and means put right.
#[derive(Debug)]
pub(super) struct Equalization;

const FLOAT: &str = "32 bits";
const PLAIN: &str = "4-bit weights, one scale a tensor";
const CORRECTED: &str = "4-bit weights, biases corrected";
const EQUAL: &str = "4-bit weights, equalized";
const BOTH: &str = "4-bit weights, equalized and biases corrected";
const UNEVEN: &str = "uneven channels, 8 bits, one scale a tensor";
const EVEN: &str = "uneven channels, 8 bits, equalized and biases corrected";
const DENSE: &str = "perceptron, 32 bits";
const UNEVEN_DENSE: &str = "perceptron with uneven channels, 8 bits, one scale a tensor";
const EVEN_DENSE: &str = "perceptron with uneven channels, 8 bits, equalized";
const MOVED: &str = "change of the perceptron's outputs in float by equalization";

/// A graph with the entries of a parameter times factors.
fn times(graph: &mut Graph, name: &str, factor: &dyn Fn(usize) -> f64) -> Result<()> {
    let id = graph.find(name)?;
    let content = graph.value(id).tensor().cloned();
    let content = content.ok_or_else(|| Error::invalid(format!("`{name}` is no parameter")))?;
    let data = content.to_f64s().into_iter().enumerate();
    let data: Vec<f64> = data.map(|(i, x)| x * factor(i)).collect();
    graph.set_variable(
        id,
        Tensor::from_f64s(content.dtype(), content.shape(), &data)?,
    )
}

/// How many entries of a parameter follow each other in a row of its first axis.
fn row(graph: &Graph, name: &str) -> Result<usize> {
    let shape = graph.type_of(graph.find(name)?).shape.fixed()?;
    Ok(shape[1..].iter().product())
}

/// Multiplies what makes channels by random factors from a thirtieth to thirty, and divides what
/// reads them, which changes nothing in float. `made` are parameters with the channels along the
/// first axis.
fn uneven(graph: &mut Graph, made: [&str; 2], read: &str, stream: Philox, step: u64) -> Result<()> {
    let factor = |c: usize| 10f64.powf(3.0 * stream.uniform(step, c as u64) - 1.5);
    for name in made {
        let row = row(graph, name)?;
        times(graph, name, &|i| factor(i / row))?;
    }
    let channels = graph.type_of(graph.find(made[1])?).shape.fixed()?[0];
    let taps = row(graph, read)?;
    // A depthwise weight has its channels along the first axis too.
    times(graph, read, &|i| match taps >= channels {
        true => 1.0 / factor(i % channels),
        false => 1.0 / factor(i / taps),
    })
}

/// LeNet-300-100 with uneven hidden channels.
fn uneven_dense(mut graph: Graph, seed: u64) -> Result<Graph> {
    for (step, (first, second)) in [("fc1", "fc2"), ("fc2", "fc3")].into_iter().enumerate() {
        let (w, b) = (format!("{first}.weight"), format!("{first}.bias"));
        let read = format!("{second}.weight");
        uneven(&mut graph, [&w, &b], &read, Philox::new(seed), step as u64)?;
    }
    Ok(graph)
}

/// The convolutional network with uneven channels, by its batch normalization.
fn uneven_separable(mut graph: Graph, seed: u64) -> Result<Graph> {
    for (step, pair) in CHAIN.windows(2).enumerate() {
        let (w, b) = (
            format!("{}.norm.weight", pair[0]),
            format!("{}.norm.bias", pair[0]),
        );
        let read = match pair[1] {
            "classifier" => "classifier.weight".to_string(),
            block => format!("{block}.conv.weight"),
        };
        uneven(&mut graph, [&w, &b], &read, Philox::new(seed), step as u64)?;
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
    let apart = a
        .iter()
        .zip(&b)
        .fold(0.0f64, |m, (a, b)| m.max((a - b).abs()));
    Ok(100.0 * apart / size)
}

impl Claim for Equalization {
    fn name(&self) -> &'static str {
        "equalization"
    }

    fn title(&self) -> &'static str {
        "Equal ranges and corrected biases make one scale a tensor enough, without training"
    }

    fn paper(&self) -> &'static str {
        "Nagel, van Baalen, Blankevoort & Welling, \"Data-free quantization through weight \
         equalization and bias correction\", ICCV 2019, tables 1 and 2: MobileNetV2 on ImageNet \
         with 8 bits and one scale a tensor 0.1 % top-1, equalized 69.9 %, with high biases \
         absorbed and biases corrected 71.2 %; in float 71.7 %."
    }

    fn method(&self) -> &'static str {
        "A network of a convolution and three depthwise separable ones, with batch normalization and \
         ReLU, trained for 40 epochs. Training on digits leaves its channels even, so each is \
         multiplied by a random factor from 1/30 to 30 and divided by it in the next layer, which \
         changes nothing in float; likewise the hidden ones of LeNet-300-100. Both run with integers \
         of 8 bits and one scale a weight; the even network with weights of 4 bits shows what each \
         repair adds. Biases are corrected by the training images. Reproduced if both uneven \
         networks lose more than 10 points and get back nine tenths of that, LeNet's outputs in \
         float having moved by less than 0.01 % of the largest."
    }

    fn measure(&self, lab: &Lab) -> Result<Vec<(&'static str, f64)>> {
        let quantize = |bits| QuantizeStatic::with(per_tensor(bits));
        let correct = |bits| CorrectBias::new(per_tensor(bits));
        let model = trained(lab)?;
        let spread = uneven_separable(model.clone(), lab.seed)?;
        let error =
            |graph: &Graph, pipeline: Pipeline| lab.error(&lab.run(graph.clone(), &pipeline)?);
        let (none, equal) = (Pipeline::new, || Pipeline::new().then(Equalize::new()));
        let dense = lab.trained()?;
        let spread_dense = uneven_dense(dense.clone(), lab.seed)?;
        let even = lab.apply(spread_dense.clone(), &Equalize::new())?;
        let both = |bits| equal().then(correct(bits)).then(quantize(bits));
        Ok(vec![
            (FLOAT, lab.error(&model)?),
            (PLAIN, error(&model, none().then(quantize(4)))?),
            (
                CORRECTED,
                error(&model, none().then(correct(4)).then(quantize(4)))?,
            ),
            (EQUAL, error(&model, equal().then(quantize(4)))?),
            (BOTH, error(&model, both(4))?),
            (UNEVEN, error(&spread, none().then(quantize(8)))?),
            (EVEN, error(&spread, both(8))?),
            (DENSE, lab.error(&dense)?),
            (
                UNEVEN_DENSE,
                error(&spread_dense, none().then(quantize(8)))?,
            ),
            (EVEN_DENSE, error(&even, none().then(quantize(8)))?),
            (MOVED, change(lab, &spread_dense, &even)?),
        ])
    }

    fn judge(&self, figures: &Figures) -> Judgement {
        let mean = |name| figures.of(name).mean();
        let (lost, left) = (
            figures.difference(UNEVEN, FLOAT),
            figures.difference(EVEN, FLOAT),
        );
        let (broken, mended) = (
            figures.difference(UNEVEN_DENSE, DENSE),
            figures.difference(EVEN_DENSE, DENSE),
        );
        let moved = figures.of(MOVED).values.iter().copied().fold(0.0, f64::max);
        let repaired = |lost: f64, left: f64| lost > 10.0 && left <= 0.1 * lost;
        let first = repaired(lost.mean, left.mean);
        let second = repaired(broken.mean, mended.mean) && moved < 0.01;
        let verdict = match (first, second) {
            (true, true) => Verdict::Reproduced,
            (true, false) | (false, true) => Verdict::Partly,
            _ => Verdict::NotReproduced,
        };
        let repair = |name| figures.difference(name, PLAIN);
        Judgement {
            verdict,
            headline: format!(
                "error {:.1} % with uneven channels, {:.2} % repaired (32 bits: {:.2} %)",
                mean(UNEVEN),
                mean(EVEN),
                mean(FLOAT)
            ),
            reason: format!(
                "With uneven channels one scale a tensor costs the convolutional network {lost} \
                 points, and {left} after both repairs; LeNet-300-100 {broken} points, and {mended} \
                 after equalization, which moves no output by more than {moved:.5} %. With weights of \
                 4 bits corrected biases change the error by {}, equalization by {}, both by {}.",
                repair(CORRECTED),
                repair(EQUAL),
                repair(BOTH)
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
