//! The models of the workloads: the zoo's, and those that it has not.

use opt_core::nn::zoo::{self, TransformerClassifier};
use opt_core::nn::{BatchNorm, Conv, Init, Layer, Linear, ModelBuilder};
use opt_core::ops::{MaxPool, Window};
use opt_core::{Error, Graph, Result, ValueId};

use crate::protocol::Model;

/// The graph of a model with initial weights: one input, one output `[batch, classes]`.
///
/// # Errors
/// If the sizes do not fit each other, or the model is a file.
pub fn build(model: &Model, seed: u64) -> Result<Graph> {
    match model {
        Model::Mlp {
            features,
            hidden,
            classes,
        } => mlp(*features, hidden, *classes, seed),
        Model::Lenet5 { image, classes } => zoo::lenet5(*image, *classes, seed),
        Model::Resnet20 { image, classes } => zoo::resnet20(*image, *classes, seed),
        Model::Resnet50 { image, classes } => resnet50(*image, *classes, seed),
        &Model::Encoder {
            vocabulary,
            steps,
            width,
            heads,
            feedforward,
            layers,
            classes,
        } => {
            let config = TransformerClassifier {
                vocabulary,
                steps,
                width,
                heads,
                feedforward,
                layers,
                dropout: 0.0,
                classes,
            };
            zoo::transformer_classifier(&config, seed)
        }
        Model::Onnx { file } => Err(Error::invalid(format!(
            "{file} is an ONNX file, not a model that is built here"
        ))),
    }
}

/// Linear layers `fc1`, `fc2`, .. with ReLUs between them.
fn mlp(features: usize, hidden: &[usize], classes: usize, seed: u64) -> Result<Graph> {
    let mut m = ModelBuilder::new("mlp", seed);
    let mut x = m.batch("features", [features])?;
    for (i, &width) in hidden.iter().enumerate() {
        x = m.layer(&format!("fc{}", i + 1), Linear::new(width), x)?;
        x = m.relu(x)?;
    }
    let last = format!("fc{}", hidden.len() + 1);
    let logits = m.layer(&last, Linear::new(classes), x)?;
    m.output("logits", logits)?;
    m.finish()
}

/// A 1x1, a 3x3 (which has the stride, as torchvision has it) and a 1x1 convolution to four times
/// the channels, with a shortcut around them.
struct Bottleneck {
    channels: usize,
    stride: usize,
}

impl Layer for Bottleneck {
    fn build(&self, m: &mut ModelBuilder, x: ValueId) -> Result<ValueId> {
        let outputs = 4 * self.channels;
        let y = m.layer("conv1", conv(self.channels, 1), x)?;
        let y = m.layer("bn1", BatchNorm::new(), y)?;
        let y = m.relu(y)?;
        let y = m.layer("conv2", conv(self.channels, 3).stride(self.stride), y)?;
        let y = m.layer("bn2", BatchNorm::new(), y)?;
        let y = m.relu(y)?;
        let y = m.layer("conv3", conv(outputs, 1), y)?;
        let y = m.layer("bn3", BatchNorm::new(), y)?;
        let short = if self.stride > 1 || m.size(x, 1)? != outputs {
            let s = m.layer("downsample.0", conv(outputs, 1).stride(self.stride), x)?;
            m.layer("downsample.1", BatchNorm::new(), s)?
        } else {
            x
        };
        let y = m.add(y, short)?;
        m.relu(y)
    }
}

/// A convolution without a bias that keeps the image's size.
fn conv(outputs: usize, kernel: usize) -> Conv {
    Conv::new(outputs, [kernel, kernel])
        .pad(kernel / 2)
        .bias(false)
        .init(Init::RELU)
}

/// ResNet-50 (He et al. 2016), with torchvision's names; 25,557,032 parameters for 1000 classes.
fn resnet50([channels, height, width]: [usize; 3], classes: usize, seed: u64) -> Result<Graph> {
    let mut m = ModelBuilder::new("resnet50", seed);
    let x = m.batch("image", [channels, height, width])?;
    let x = m.layer("conv1", conv(64, 7).stride(2), x)?;
    let x = m.layer("bn1", BatchNorm::new(), x)?;
    let x = m.relu(x)?;
    let pool = MaxPool {
        kernel: [3, 3].as_slice().into(),
        window: Window::new(2).stride(2).pad(1),
        ceil_mode: false,
    };
    let mut x = m.op(pool, &[x])?;
    for (stage, (blocks, channels)) in [(3, 64), (4, 128), (6, 256), (3, 512)]
        .into_iter()
        .enumerate()
    {
        for block in 0..blocks {
            let stride = if stage > 0 && block == 0 { 2 } else { 1 };
            let name = format!("layer{}.{block}", stage + 1);
            x = m.layer(&name, Bottleneck { channels, stride }, x)?;
        }
    }
    let x = m.global_avg_pool(x)?;
    let x = m.flatten(x, 1)?;
    let logits = m.layer("fc", Linear::new(classes), x)?;
    m.output("logits", logits)?;
    m.finish()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parameter_counts_are_the_known_ones() {
        let image = [3, 64, 64];
        let resnet = resnet50(image, 1000, 0).unwrap();
        assert_eq!(resnet.parameter_count(), 25_557_032);
        // As many entries as torchvision's state dict without its 53 batch counters.
        assert_eq!(resnet.variables().count(), 267);
        let model = Model::Mlp {
            features: 784,
            hidden: vec![128],
            classes: 10,
        };
        let mlp = build(&model, 0).unwrap();
        assert_eq!(mlp.parameter_count(), 784 * 128 + 128 + 1280 + 10);
        assert!(mlp.find("fc2.weight").is_ok());
    }
}
