//! Decoupled knowledge distillation.

use opt_core::ops::ReduceOp;
use opt_core::{DType, Error, GraphBuilder, Result, ValueId};

use super::{LogitLoss, expect_matrix};
use crate::math::{expect_not_negative, expect_positive, log_sum_exp};

/// Decoupled knowledge distillation (Zhao, Cui, Song, Qiu & Liang, "Decoupled knowledge
/// distillation", 2022): `T^2 * (alpha * TCKD + beta * NCKD)`, averaged over the batch, for logits
/// `[N, C]` divided by T.
///
/// TCKD is the divergence between the two-class distributions (target, not target), NCKD between
/// the distributions over the classes that are not the target. Soft targets are `TCKD + (1 - p) *
/// NCKD` with the teacher's probability p of the target: they suppress what a sure teacher knows
/// of the other classes, which `beta` brings back.
///
/// Everything is computed from logarithms, so that the loss and its gradient are finite where a
/// probability rounds to 0. With two classes NCKD is 0.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Dkd {
    /// Weight of the target-class part.
    pub alpha: f64,
    /// Weight of the non-target-class part.
    pub beta: f64,
    /// T, above 0.
    pub temperature: f64,
}

impl Default for Dkd {
    /// The authors' settings for CIFAR-100: alpha 1, beta 8, temperature 4.
    fn default() -> Dkd {
        Dkd {
            alpha: 1.0,
            beta: 8.0,
            temperature: 4.0,
        }
    }
}

/// The logarithms of probabilities: of the target and of all others together, `[N, 1]` each, and
/// of every class given that it is not the target, `[N, C]`, with no meaning at the target.
struct Decoupled {
    target: ValueId,
    others: ValueId,
    among_others: ValueId,
}

impl Decoupled {
    fn new(
        b: &mut GraphBuilder,
        logits: ValueId,
        is_target: ValueId,
        temperature: f64,
    ) -> Result<Decoupled> {
        let z = b.mul_scalar(logits, 1.0 / temperature)?;
        let zero = b.scalar_like(z, 0.0)?;
        // At the target stands a number that is no larger than the others, and counts 0.
        let least = b.reduce(ReduceOp::Min, z, &[1], true)?;
        let least = b.stop_gradient(least)?;
        let rest = b.select(is_target, least, z)?;
        let largest = b.reduce(ReduceOp::Max, rest, &[1], true)?;
        let largest = b.stop_gradient(largest)?;
        let shifted = b.sub(rest, largest)?;
        let powers = b.exp(shifted)?;
        let powers = b.select(is_target, zero, powers)?;
        let sum = b.sum(powers, &[1], true)?;
        let log = b.log(sum)?;
        let others = b.add(log, largest)?;
        let all = log_sum_exp(b, z, 1)?;
        let target = b.select(is_target, z, zero)?;
        let target = b.sum(target, &[1], true)?;
        Ok(Decoupled {
            target: b.sub(target, all)?,
            among_others: b.sub(rest, others)?,
            others: b.sub(others, all)?,
        })
    }
}

/// `p * (ln p - ln q)`, element by element, from the logarithms.
fn divergence(b: &mut GraphBuilder, log_p: ValueId, log_q: ValueId) -> Result<ValueId> {
    let p = b.exp(log_p)?;
    let difference = b.sub(log_p, log_q)?;
    b.mul(p, difference)
}

impl LogitLoss for Dkd {
    fn needs_labels(&self) -> bool {
        true
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
        expect_positive("temperature", self.temperature)?;
        expect_not_negative("alpha", self.alpha)?;
        expect_not_negative("beta", self.beta)?;
        let classes = expect_matrix(b, student, teacher, "decoupled distillation")?;
        let classes = classes.ok_or_else(|| {
            Error::shape("decoupled distillation needs a fixed number of classes")
        })?;
        let labels =
            labels.ok_or_else(|| Error::invalid("decoupled distillation needs the labels"))?;
        let ty = b.type_of(labels);
        if ty.dtype != DType::I64 || ty.rank() != 1 {
            return Err(Error::dtype(format!(
                "decoupled distillation takes labels i64[N], found {ty}"
            )));
        }
        let teacher = b.stop_gradient(teacher)?;
        let dtype = b.type_of(student).dtype;
        let is_target = b.one_hot(labels, classes, dtype)?;
        let zero = b.scalar(dtype, 0.0)?;
        let is_target = b.greater(is_target, zero)?;
        let s = Decoupled::new(b, student, is_target, self.temperature)?;
        let t = Decoupled::new(b, teacher, is_target, self.temperature)?;
        let hit = divergence(b, t.target, s.target)?;
        let miss = divergence(b, t.others, s.others)?;
        let target_class = b.add(hit, miss)?;
        let target_class = b.mean_all(target_class)?;
        let other = divergence(b, t.among_others, s.among_others)?;
        let other = b.select(is_target, zero, other)?;
        let other = b.sum(other, &[1], false)?;
        let other = b.mean_all(other)?;
        let square = self.temperature * self.temperature;
        let target_class = b.mul_scalar(target_class, self.alpha * square)?;
        let other = b.mul_scalar(other, self.beta * square)?;
        b.add(target_class, other)
    }
}
