//! Inverted residuals (Sandler et al. 2018).

use crate::nn::{BatchNorm, Conv, Dropout, Fan, Init, Layer, Linear, ModelBuilder};
use crate::{Graph, Result, ValueId};

/// The paper's stages: expansion, channels, blocks, stride of the first.
const STAGES: [[usize; 4]; 7] = [
    [1, 16, 1, 1],
    [6, 24, 2, 2],
    [6, 32, 3, 2],
    [6, 64, 4, 2],
    [6, 96, 3, 1],
    [6, 160, 3, 2],
    [6, 320, 1, 1],
];

/// Expands the channels by a 1x1 convolution, moves a depthwise 3x3 kernel over them and projects
/// them back by a 1x1 convolution, without an activation at the narrow ends. The input is added
/// where it has the shape of the output.
#[derive(Debug, Clone, Copy)]
pub struct InvertedResidual {
    channels: usize,
    expansion: usize,
    stride: usize,
}

impl InvertedResidual {
    /// With output channels, the factor of the expansion (1 leaves it out) and the stride.
    pub fn new(channels: usize, expansion: usize, stride: usize) -> InvertedResidual {
        InvertedResidual {
            channels,
            expansion,
            stride,
        }
    }
}

/// Convolution without bias, batch normalization and ReLU6.
fn conv_bn_relu6(m: &mut ModelBuilder, name: &str, conv: Conv, x: ValueId) -> Result<ValueId> {
    let x = conv_bn(m, name, conv, x)?;
    m.clip(x, 0.0, 6.0)
}

fn conv_bn(m: &mut ModelBuilder, name: &str, conv: Conv, x: ValueId) -> Result<ValueId> {
    let init = Init::KaimingNormal {
        fan: Fan::Out,
        gain: std::f64::consts::SQRT_2,
    };
    m.scope(name, |m| {
        let x = m.layer("conv", conv.bias(false).init(init), x)?;
        m.layer("bn", BatchNorm::new(), x)
    })
}

impl Layer for InvertedResidual {
    fn build(&self, m: &mut ModelBuilder, x: ValueId) -> Result<ValueId> {
        let inputs = m.size(x, 1)?;
        let wide = inputs * self.expansion;
        let mut y = x;
        if self.expansion != 1 {
            y = conv_bn_relu6(m, "expand", Conv::new(wide, [1, 1]), y)?;
        }
        let depthwise = Conv::new(wide, [3, 3])
            .pad(1)
            .stride(self.stride)
            .groups(wide);
        y = conv_bn_relu6(m, "depthwise", depthwise, y)?;
        y = conv_bn(m, "project", Conv::new(self.channels, [1, 1]), y)?;
        match self.stride == 1 && inputs == self.channels {
            true => m.add(x, y),
            false => Ok(y),
        }
    }
}

/// The sizes of a [`mobilenet_v2`].
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct MobileNetV2 {
    /// `[C, H, W]` of the images.
    pub image: [usize; 3],
    /// Number of classes.
    pub classes: usize,
    /// Factor of all channels, which are rounded to multiples of 8; the last ones do not get
    /// fewer than at 1.
    pub width: f64,
    /// How many of the five halvings to keep: 5 for images of 224 pixels, 2 for 32. The first
    /// ones go, since small images hold their detail in few pixels.
    pub halvings: usize,
    /// The probability of dropout before the classifier.
    pub dropout: f64,
}

impl MobileNetV2 {
    /// For images `[3, 224, 224]` and 1000 classes: 3,504,872 parameters.
    pub fn imagenet() -> MobileNetV2 {
        MobileNetV2 {
            image: [3, 224, 224],
            classes: 1000,
            width: 1.0,
            halvings: 5,
            dropout: 0.2,
        }
    }

    /// For images `[3, 32, 32]` and 10 classes.
    pub fn cifar() -> MobileNetV2 {
        MobileNetV2 {
            image: [3, 32, 32],
            classes: 10,
            halvings: 2,
            ..MobileNetV2::imagenet()
        }
    }
}

/// The nearest multiple of 8 that is at most a tenth below.
fn round_to_8(channels: f64) -> usize {
    let rounded = (((channels + 4.0) / 8.0) as usize * 8).max(8);
    match (rounded as f64) < 0.9 * channels {
        true => rounded + 8,
        false => rounded,
    }
}

/// MobileNetV2: a stem, seventeen [`InvertedResidual`]s, a 1x1 convolution, global average
/// pooling. Input `image`, output `logits`.
///
/// ```
/// use opt_core::nn::zoo::{MobileNetV2, mobilenet_v2};
///
/// let small = MobileNetV2 { width: 0.25, ..MobileNetV2::cifar() };
/// let graph = mobilenet_v2(&small, 0)?;
/// assert!(graph.parameter_count() < 300_000);
/// # Ok::<(), opt_core::Error>(())
/// ```
///
/// # Errors
/// If the image is too small for the halvings.
pub fn mobilenet_v2(config: &MobileNetV2, seed: u64) -> Result<Graph> {
    let mut m = ModelBuilder::new("mobilenet_v2", seed);
    let x = m.batch("image", config.image)?;
    let mut left = 5usize.saturating_sub(config.halvings);
    let mut halve = |stride: usize| -> usize {
        if stride == 1 || left == 0 {
            return stride;
        }
        left -= 1;
        1
    };
    let scaled = |channels: usize| round_to_8(channels as f64 * config.width);
    let stem = Conv::new(scaled(32), [3, 3]).pad(1).stride(halve(2));
    let mut x = conv_bn_relu6(&mut m, "stem", stem, x)?;
    let mut index = 0;
    for [expansion, channels, blocks, stride] in STAGES {
        for block in 0..blocks {
            let stride = if block == 0 { halve(stride) } else { 1 };
            let layer = InvertedResidual::new(scaled(channels), expansion, stride);
            x = m.layer(&format!("block{index}"), layer, x)?;
            index += 1;
        }
    }
    let last = round_to_8(1280.0 * config.width.max(1.0));
    let x = conv_bn_relu6(&mut m, "head", Conv::new(last, [1, 1]), x)?;
    let x = m.global_avg_pool(x)?;
    let x = m.flatten(x, 1)?;
    let x = m.layer("dropout", Dropout::new(config.dropout), x)?;
    let normal = Init::Normal {
        mean: 0.0,
        std: 0.01,
    };
    let classifier = Linear::new(config.classes)
        .init(normal)
        .bias_init(Init::ZEROS);
    let logits = m.layer("classifier", classifier, x)?;
    m.output("logits", logits)?;
    m.finish()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_parameter_count_is_torchvisions() {
        let graph = mobilenet_v2(&MobileNetV2::imagenet(), 0).unwrap();
        assert_eq!(graph.parameter_count(), 3_504_872);
    }

    #[test]
    fn halvings_are_counted() {
        for (halvings, size) in [(5, 1), (2, 8), (0, 32)] {
            let config = MobileNetV2 {
                halvings,
                width: 0.1,
                ..MobileNetV2::cifar()
            };
            let graph = mobilenet_v2(&config, 0).unwrap();
            let last = graph.nodes().rfind(|(_, n)| n.op().name() == "Conv");
            let last = graph.type_of(last.unwrap().1.outputs()[0]).to_string();
            assert_eq!(last, format!("f32[batch,1280,{size},{size}]"));
        }
    }

    #[test]
    fn channels_round_as_in_the_paper() {
        for (channels, rounded) in [
            (32.0, 32),
            (24.0 * 0.75, 24),
            (1.0, 8),
            (12.0, 16),
            (11.0, 16),
        ] {
            assert_eq!(round_to_8(channels), rounded, "{channels}");
        }
    }
}
