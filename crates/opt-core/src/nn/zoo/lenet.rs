//! The two LeNets of the pruning literature (LeCun et al. 1998).

use crate::nn::{Conv, Linear, ModelBuilder};
use crate::{Graph, Result};

/// LeNet-300-100: a perceptron with two hidden layers of 300 and 100 ReLUs; 266,610 parameters
/// for 784 features and 10 classes. Input `features` `[batch, features]`, output `logits`.
///
/// # Errors
/// If a parameter would be too large to address.
pub fn lenet_300_100(features: usize, classes: usize, seed: u64) -> Result<Graph> {
    let mut m = ModelBuilder::new("lenet_300_100", seed);
    let mut x = m.batch("features", [features])?;
    for (name, width) in [("fc1", 300), ("fc2", 100)] {
        x = m.layer(name, Linear::new(width), x)?;
        x = m.relu(x)?;
    }
    let logits = m.layer("fc3", Linear::new(classes), x)?;
    m.output("logits", logits)?;
    m.finish()
}

/// LeNet-5 as Caffe has it, the one that pruning papers report on: convolutions of 20 and 50
/// channels with a 5x5 kernel, each max-pooled, and 500 hidden ReLUs; 431,080 parameters for
/// images `[1, 28, 28]` and 10 classes. Input `image`, output `logits`.
///
/// # Errors
/// If the image is smaller than 16x16.
pub fn lenet5(image: [usize; 3], classes: usize, seed: u64) -> Result<Graph> {
    let mut m = ModelBuilder::new("lenet5", seed);
    let mut x = m.batch("image", image)?;
    for (name, channels) in [("conv1", 20), ("conv2", 50)] {
        x = m.layer(name, Conv::new(channels, [5, 5]), x)?;
        x = m.max_pool(x, 2)?;
    }
    let x = m.flatten(x, 1)?;
    let x = m.layer("fc1", Linear::new(500), x)?;
    let x = m.relu(x)?;
    let logits = m.layer("fc2", Linear::new(classes), x)?;
    m.output("logits", logits)?;
    m.finish()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parameter_counts_are_the_known_ones() {
        assert_eq!(
            lenet_300_100(784, 10, 0).unwrap().parameter_count(),
            266_610
        );
        assert_eq!(
            lenet5([1, 28, 28], 10, 0).unwrap().parameter_count(),
            431_080
        );
        assert!(lenet5([1, 12, 12], 10, 0).is_err());
    }
}
