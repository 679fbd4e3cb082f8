//! Hinton's soft targets.

use std::sync::Arc;

use opt_core::graph::Inlined;
use opt_core::pass::EvalMode;
use opt_core::{Error, Graph, GraphBuilder, Result, ResultExt, TensorType, ValueId};
use opt_train::{CrossEntropy, KlDiv, Loss, ModelIo, Objective};

/// Soft targets (Hinton, Vinyals & Dean 2015):
/// `alpha * T^2 * KL(softmax(t / T) || softmax(s / T)) + (1 - alpha) * CE(s, label)` for the
/// logits s of the student and t of the teacher, with the divergence averaged over the batch.
/// The factor `T^2` keeps the soft gradients' size when the temperature changes.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct SoftTargets {
    /// T, above 0: the higher, the more the small probabilities count.
    pub temperature: f64,
    /// Weight of the soft term, in `[0, 1]`.
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
    /// The objective of a student of this teacher. Both take the same inputs; the first outputs
    /// are the logits `[N, C]`.
    pub fn from_teacher(self, teacher: Graph) -> FromTeacher {
        FromTeacher {
            targets: self,
            teacher: Arc::new(teacher),
        }
    }

    /// Adds the loss between the student's and the teacher's logits and the labels.
    ///
    /// # Errors
    /// If the temperature or weight is out of range or the types differ.
    pub fn build(
        &self,
        b: &mut GraphBuilder,
        student: ValueId,
        teacher: ValueId,
        labels: ValueId,
    ) -> Result<ValueId> {
        let SoftTargets { temperature, alpha } = *self;
        if !(temperature.is_finite() && temperature > 0.0) {
            return Err(Error::invalid(format!(
                "the temperature is {temperature}, not a positive number"
            )));
        }
        if !(0.0..=1.0).contains(&alpha) {
            return Err(Error::invalid(format!("alpha is {alpha}, not in [0, 1]")));
        }
        let (s, t) = (b.type_of(student).clone(), b.type_of(teacher).clone());
        if s != t {
            return Err(Error::shape(format!(
                "the student's logits are {s}, the teacher's {t}"
            )));
        }
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
        let hard = Loss::build(&CrossEntropy, b, student, labels)?;
        let hard = b.mul_scalar(hard, 1.0 - alpha)?;
        b.add(soft, hard)
    }
}

/// The objective that [`SoftTargets::from_teacher`] makes.
#[derive(Debug, Clone)]
pub struct FromTeacher {
    targets: SoftTargets,
    teacher: Arc<Graph>,
}

impl Objective for FromTeacher {
    fn targets(&self, b: &GraphBuilder, model: &ModelIo) -> Result<Vec<TensorType>> {
        let logits = model
            .outputs
            .first()
            .ok_or_else(|| Error::invalid("the student has no output"))?;
        Ok(vec![CrossEntropy.target_type(b.type_of(*logits))?])
    }

    fn build(&self, b: &mut GraphBuilder, model: &ModelIo, targets: &[ValueId]) -> Result<ValueId> {
        let (teacher, _) = EvalMode::switch((*self.teacher).clone())?;
        let outputs = b
            .inline(&teacher, &model.inputs, "teacher", Inlined::Frozen)
            .at(|| "teacher")?;
        let teacher = outputs
            .first()
            .ok_or_else(|| Error::invalid("the teacher has no output"))?;
        self.targets
            .build(b, model.outputs[0], *teacher, targets[0])
    }
}
