//! The residual network for CIFAR-10 (He et al. 2016, section 4.2).

use crate::nn::{BatchNorm, Conv, Init, Layer, Linear, ModelBuilder};
use crate::ops::{PadMode, Slice};
use crate::{Graph, Result, ValueId};

/// Two 3x3 convolutions with a shortcut around them.
struct BasicBlock {
    channels: usize,
    stride: usize,
}

impl Layer for BasicBlock {
    fn build(&self, m: &mut ModelBuilder, x: ValueId) -> Result<ValueId> {
        let conv = |stride| {
            Conv::new(self.channels, [3, 3])
                .pad(1)
                .bias(false)
                .init(Init::RELU)
                .stride(stride)
        };
        let y = m.layer("conv1", conv(self.stride), x)?;
        let y = m.layer("bn1", BatchNorm::new(), y)?;
        let y = m.relu(y)?;
        let y = m.layer("conv2", conv(1), y)?;
        let y = m.layer("bn2", BatchNorm::new(), y)?;
        let short = self.shortcut(m, x)?;
        let y = m.add(y, short)?;
        m.relu(y)
    }
}

impl BasicBlock {
    /// Option A of the paper: every `stride`-th pixel, and zeros for the new channels, half of
    /// them on either side.
    fn shortcut(&self, m: &mut ModelBuilder, mut x: ValueId) -> Result<ValueId> {
        let channels = m.size(x, 1)?;
        if self.stride > 1 {
            let ends = [m.size(x, 2)? as isize, m.size(x, 3)? as isize];
            let step = self.stride as isize;
            let op = Slice {
                axes: smallvec::smallvec![2, 3],
                starts: smallvec::smallvec![0, 0],
                ends: ends.as_slice().into(),
                steps: smallvec::smallvec![step, step],
            };
            x = m.op(op, &[x])?;
        }
        let new = self.channels - channels;
        if new == 0 {
            return Ok(x);
        }
        let (before, after) = (new / 2, new - new / 2);
        m.pad(
            x,
            &[0, before, 0, 0],
            &[0, after, 0, 0],
            PadMode::Constant(0.0),
        )
    }
}

/// ResNet-20 for small images: a 3x3 convolution, three stages of three blocks with 16, 32 and
/// 64 channels, global average pooling. Shortcuts across stages are the paper's option A
/// (subsampled, padded with zero channels; no parameters), so there are 269,722 parameters for
/// images of 3 channels and 10 classes. Input `image`, output `logits`.
///
/// # Errors
/// If a parameter would be too large to address, or the image has no pixels.
pub fn resnet20(image: [usize; 3], classes: usize, seed: u64) -> Result<Graph> {
    let mut m = ModelBuilder::new("resnet20", seed);
    let x = m.batch("image", image)?;
    let stem = Conv::new(16, [3, 3]).pad(1).bias(false).init(Init::RELU);
    let x = m.layer("conv1", stem, x)?;
    let x = m.layer("bn1", BatchNorm::new(), x)?;
    let mut x = m.relu(x)?;
    for (stage, channels) in [(1, 16), (2, 32), (3, 64)] {
        for block in 0..3 {
            let stride = if stage > 1 && block == 0 { 2 } else { 1 };
            let name = format!("layer{stage}.{block}");
            x = m.layer(&name, BasicBlock { channels, stride }, x)?;
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
    fn the_parameter_count_is_the_known_one() {
        let graph = resnet20([3, 32, 32], 10, 0).unwrap();
        assert_eq!(graph.parameter_count(), 269_722);
        let convs = graph.nodes().filter(|(_, n)| n.op().name() == "Conv");
        assert_eq!(convs.count(), 19);
    }

    #[test]
    fn odd_images_fit_their_shortcuts() {
        resnet20([1, 9, 7], 5, 0).unwrap();
        assert!(resnet20([1, 0, 7], 5, 0).is_err());
    }
}
