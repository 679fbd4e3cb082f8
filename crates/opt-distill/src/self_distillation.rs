//! Self-distillation: a network's early exits learn from its last classifier.

use opt_core::{Error, GraphBuilder, Result, ResultExt, TensorType, ValueId};
use opt_train::{CrossEntropy, Loss, ModelIo, Objective};

use crate::math::in_loss_dtype;
use crate::{LogitLoss, SoftTargets};

/// Self-distillation (Zhang, Song, Gao, Chen, Bao & Ma, "Be your own teacher: improve the
/// performance of convolutional neural networks via self distillation", 2019): a network with
/// early exits teaches itself. Its first output is the deepest classifier, the others are exits, all
/// logits for the same classes.
///
/// The loss is the cross-entropy of the deepest classifier, and for every exit that of
/// [`SoftTargets`] with the deepest as its teacher, through which no gradient passes. This is the
/// paper's loss without its hints between layers.
///
/// ```
/// use opt_core::Tensor;
/// use opt_core::nn::{Linear, ModelBuilder};
/// use opt_data::TensorDataset;
/// use opt_distill::SelfDistillation;
/// use opt_ndarray::NdarrayBackend;
/// use opt_train::{Adam, Constant, Trainer};
///
/// # fn main() -> opt_core::Result<()> {
/// let mut b = ModelBuilder::new("exits", 0);
/// let x = b.batch("x", &[2])?;
/// let x = b.layer("first", Linear::new(4), x)?;
/// let x = b.relu(x)?;
/// let exit = b.layer("exit", Linear::new(2), x)?;
/// let x = b.layer("second", Linear::new(4), x)?;
/// let x = b.relu(x)?;
/// let deepest = b.layer("head", Linear::new(2), x)?;
/// b.output("logits", deepest)?;
/// b.output("exit", exit)?;
/// let data = TensorDataset::new(vec![
///     Tensor::new([4, 2], [1f32, 0., 0., 1., 2., 1., 1., 2.])?,
///     Tensor::new([4], [0i64, 1, 0, 1])?,
/// ])?;
/// let (network, _) = Trainer::new(SelfDistillation::default(), Adam::default(), Constant(0.05))
///     .epochs(5)
///     .fit(b.finish()?, &data, &NdarrayBackend::new())?;
/// # let _ = network;
/// # Ok(())
/// # }
/// ```
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct SelfDistillation {
    /// What an exit learns from the deepest classifier and from the labels.
    pub exits: SoftTargets,
}

impl Default for SelfDistillation {
    /// Temperature 3 and weight 0.5 of what the deepest classifier teaches.
    fn default() -> SelfDistillation {
        SelfDistillation {
            exits: SoftTargets {
                temperature: 3.0,
                alpha: 0.5,
            },
        }
    }
}

impl Objective for SelfDistillation {
    fn targets(&self, b: &GraphBuilder, model: &ModelIo) -> Result<Vec<TensorType>> {
        let [deepest, _, ..] = &model.outputs[..] else {
            return Err(Error::invalid(format!(
                "self-distillation takes the deepest logits and those of one exit at least, the \
                 model has {} outputs",
                model.outputs.len()
            )));
        };
        Ok(vec![CrossEntropy.target_type(b.type_of(*deepest))?])
    }

    fn build(&self, b: &mut GraphBuilder, model: &ModelIo, targets: &[ValueId]) -> Result<ValueId> {
        let deepest = model.outputs[0];
        let (teacher, _) = in_loss_dtype(b, deepest, deepest)?;
        let mut total = Loss::build(&CrossEntropy, b, teacher, targets[0])?;
        for (i, &exit) in model.outputs.iter().enumerate().skip(1) {
            let (s, t) = in_loss_dtype(b, exit, teacher)?;
            let term = self
                .exits
                .build(b, s, t, Some(targets[0]))
                .at(|| format!("output {i}"))?;
            let (sum, term) = in_loss_dtype(b, total, term)?;
            total = b.add(sum, term)?;
        }
        Ok(total)
    }
}
