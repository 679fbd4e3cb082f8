//! Hinton's soft targets.

use opt_core::{Error, Graph, GraphBuilder, Result, ValueId};
use opt_train::{CrossEntropy, KlDiv, Loss};

use super::{LogitLoss, expect_logits};
use crate::math::expect_positive;
use crate::{Distillation, FromTeacher};

/// Soft targets (Hinton, Vinyals & Dean, "Distilling the knowledge in a neural network", 2015):
/// `alpha * T^2 * KL(softmax(t / T) || softmax(s / T)) + (1 - alpha) * CE(s, label)` for the
/// logits s of the student and t of the teacher, `[N, C, ..]`, with the divergence averaged over
/// the batch. The factor `T^2` keeps the soft gradients' size when the temperature changes. A
/// probability of 0 adds 0.
///
/// It is a whole objective, by [`SoftTargets::from_teacher`], and with `alpha` 1 a term among
/// others of a [`Distillation`].
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct SoftTargets {
    /// T, above 0: the higher, the more the small probabilities count.
    pub temperature: f64,
    /// Weight of the soft term, in `[0, 1]`; with 1 no labels are read.
    pub alpha: f64,
}

impl Default for SoftTargets {
    /// Temperature 4, weight 0.9.
    fn default() -> SoftTargets {
        SoftTargets {
            temperature: 4.0,
            alpha: 0.9,
        }
    }
}

impl SoftTargets {
    /// The divergence alone: `alpha` 1.
    pub fn only(temperature: f64) -> SoftTargets {
        SoftTargets {
            temperature,
            alpha: 1.0,
        }
    }

    /// The objective of a student of this teacher. Both take the same inputs; the first outputs
    /// are the logits.
    pub fn from_teacher(self, teacher: Graph) -> FromTeacher {
        Distillation::from(self).from_teacher(teacher)
    }
}

impl From<SoftTargets> for Distillation {
    fn from(targets: SoftTargets) -> Distillation {
        Distillation::new().logits(1.0, targets)
    }
}

impl LogitLoss for SoftTargets {
    fn needs_labels(&self) -> bool {
        self.alpha != 1.0
    }

    fn temperature(&self) -> f64 {
        self.temperature
    }

    fn build(
        &self,
        b: &mut GraphBuilder,
        student: ValueId,
        teacher: ValueId,
        labels: Option<ValueId>,
    ) -> Result<ValueId> {
        let SoftTargets { temperature, alpha } = *self;
        expect_positive("temperature", temperature)?;
        if !(0.0..=1.0).contains(&alpha) {
            return Err(Error::invalid(format!("alpha is {alpha}, not in [0, 1]")));
        }
        expect_logits(b, student, teacher)?;
        let teacher = b.stop_gradient(teacher)?;
        let cool = b.mul_scalar(student, 1.0 / temperature)?;
        let log = b.log_softmax(cool, 1)?;
        let soft = b.mul_scalar(teacher, 1.0 / temperature)?;
        let soft = b.softmax(soft, 1)?;
        let divergence = KlDiv.build(b, log, soft)?;
        let soft = b.mul_scalar(divergence, alpha * temperature * temperature)?;
        if alpha == 1.0 {
            return Ok(soft);
        }
        let labels = labels.ok_or_else(|| {
            Error::invalid(format!("soft targets with alpha {alpha} need the labels"))
        })?;
        let hard = Loss::build(&CrossEntropy, b, student, labels)?;
        let hard = b.mul_scalar(hard, 1.0 - alpha)?;
        b.add(soft, hard)
    }
}
