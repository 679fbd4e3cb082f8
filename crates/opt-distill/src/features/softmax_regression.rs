//! Softmax regression representation learning.

use std::collections::{HashMap, HashSet};

use opt_core::{Error, GraphBuilder, Result, ValueId};
use opt_train::{KlDiv, Loss, Mse};

use super::{FeatureLoss, Features, Matching};
use crate::math::expect_positive;

/// Softmax regression representation learning (Yang, Martinez, Bulat & Tzimiropoulos, "Knowledge
/// distillation via softmax regression representation learning", 2021): the student's layer goes
/// through the rest of the teacher, usually its classifier, which is frozen; what comes out is to
/// equal the teacher's logits. The student's features have to be as good as the teacher's in what
/// the teacher uses them for.
///
/// This is the paper's `L_SR`; add a [`Hint`](super::Hint) on the same pair for its `L_FM`. A
/// projection ([`LayerPair::project`](crate::LayerPair::project)) makes the student's layer fit.
/// What the rest of the teacher reads beside the layer is the teacher's own.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct SoftmaxRegression(Compare);

#[derive(Debug, Clone, Copy, PartialEq)]
enum Compare {
    Logits,
    Probabilities { temperature: f64 },
}

impl SoftmaxRegression {
    /// The mean squared difference of the logits, as the authors' code has it.
    pub fn mse() -> SoftmaxRegression {
        SoftmaxRegression(Compare::Logits)
    }

    /// `T^2 * KL(teacher || student)` between the probabilities at a temperature above 0; with 1
    /// its gradient is that of the paper's cross-entropy.
    pub fn kl_div(temperature: f64) -> SoftmaxRegression {
        SoftmaxRegression(Compare::Probabilities { temperature })
    }
}

/// Adds again what leads from `from` to `to`, reading `with` instead of `from`.
fn replay(b: &mut GraphBuilder, from: ValueId, with: ValueId, to: ValueId) -> Result<ValueId> {
    let mut needed: HashSet<ValueId> = [to].into();
    for (_, node) in b.graph().nodes().rev() {
        if node.outputs().iter().any(|o| needed.contains(o)) {
            needed.extend(node.inputs());
        }
    }
    let nodes: Vec<_> = b.graph().nodes().map(|(_, n)| n.clone()).collect();
    let mut moved: HashMap<ValueId, ValueId> = [(from, with)].into();
    for node in nodes {
        let on_the_way = node.outputs().iter().any(|o| needed.contains(o))
            && !node.outputs().contains(&from)
            && node.inputs().iter().any(|i| moved.contains_key(i));
        if !on_the_way {
            continue;
        }
        let inputs: Vec<_> = node
            .inputs()
            .iter()
            .map(|i| *moved.get(i).unwrap_or(i))
            .collect();
        let outputs = b.named_node("regression", node.op().clone(), &inputs)?;
        moved.extend(node.outputs().iter().copied().zip(outputs));
    }
    match moved.get(&to) {
        Some(&found) if to != from => Ok(found),
        _ => Err(Error::invalid(format!(
            "the teacher's output `{}` is not computed from its layer `{}`",
            b.graph().value(to).name(),
            b.graph().value(from).name()
        ))),
    }
}

impl FeatureLoss for SoftmaxRegression {
    fn matching(&self) -> Matching {
        Matching::Shape
    }

    fn build(&self, b: &mut GraphBuilder, features: &Features) -> Result<ValueId> {
        let output = features.teacher_output.ok_or_else(|| {
            Error::invalid("the rest of the teacher is not known: it has no output")
        })?;
        let (found, layer) = (
            b.type_of(features.student).clone(),
            b.type_of(features.teacher_layer).clone(),
        );
        if found.shape != layer.shape {
            return Err(Error::shape(format!(
                "the rest of the teacher takes {layer}, the student's layer is {found}; a pair for \
                 it must not pool the teacher"
            )));
        }
        let layer = b.cast(features.student, layer.dtype)?;
        let student = replay(b, features.teacher_layer, layer, output)?;
        let (student, teacher) = crate::math::in_loss_dtype(b, student, output)?;
        let teacher = b.stop_gradient(teacher)?;
        match self.0 {
            Compare::Logits => Mse.build(b, student, teacher),
            Compare::Probabilities { temperature } => {
                expect_positive("temperature", temperature)?;
                let student = b.mul_scalar(student, 1.0 / temperature)?;
                let student = b.log_softmax(student, 1)?;
                let teacher = b.mul_scalar(teacher, 1.0 / temperature)?;
                let teacher = b.softmax(teacher, 1)?;
                let loss = KlDiv.build(b, student, teacher)?;
                b.mul_scalar(loss, temperature * temperature)
            }
        }
    }
}
