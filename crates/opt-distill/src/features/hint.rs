//! Hints: the student's layer imitates the teacher's.

use opt_core::{GraphBuilder, Result, ValueId};
use opt_train::{Huber, Loss, Mae, Mse};

use super::{FeatureLoss, Features, Matching};

/// Hints of FitNets (Romero, Ballas, Kahou, Chassang, Gatta & Bengio, "FitNets: hints for thin
/// deep nets", 2015): the student's layer, through a trainable regressor
/// ([`LayerPair::project`](crate::LayerPair::project)), is to equal the teacher's.
///
/// The loss is the mean over all entries; the paper's is half the sum of squares.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Hint(Distance);

#[derive(Debug, Clone, Copy, PartialEq)]
enum Distance {
    Mse,
    Mae,
    Huber(Huber),
}

impl Hint {
    /// The mean squared error.
    pub fn mse() -> Hint {
        Hint(Distance::Mse)
    }

    /// The mean absolute error.
    pub fn mae() -> Hint {
        Hint(Distance::Mae)
    }

    /// Huber's loss, a square up to `delta` and a line beyond.
    pub fn huber(delta: f64) -> Hint {
        Hint(Distance::Huber(Huber { delta }))
    }
}

impl FeatureLoss for Hint {
    fn matching(&self) -> Matching {
        Matching::Shape
    }

    fn build(&self, b: &mut GraphBuilder, features: &Features) -> Result<ValueId> {
        let loss: &dyn Loss = match &self.0 {
            Distance::Mse => &Mse,
            Distance::Mae => &Mae,
            Distance::Huber(huber) => huber,
        };
        let teacher = b.stop_gradient(features.teacher)?;
        // Checks the settings.
        loss.target_type(b.type_of(features.student))?;
        loss.build(b, features.student, teacher)
    }
}
