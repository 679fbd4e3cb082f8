//! Losses between the logits of a student and its teacher, one a file.

mod dist;
mod dkd;
mod soft_targets;

pub use dist::Dist;
pub use dkd::Dkd;
pub use soft_targets::SoftTargets;

use opt_core::{Error, GraphBuilder, Result, ValueId};

/// A loss between the logits of a student and its teacher.
///
/// [`Distillation::logits`](crate::Distillation::logits) takes any; this one is not of this crate:
///
/// ```
/// use opt_core::{GraphBuilder, Result, ValueId};
/// use opt_distill::{Distillation, LogitLoss};
///
/// /// The mean squared difference of the logits (Ba & Caruana 2014).
/// #[derive(Debug)]
/// struct LogitRegression;
///
/// impl LogitLoss for LogitRegression {
///     fn build(
///         &self,
///         b: &mut GraphBuilder,
///         student: ValueId,
///         teacher: ValueId,
///         _: Option<ValueId>,
///     ) -> Result<ValueId> {
///         let difference = b.sub(student, teacher)?;
///         let square = b.mul(difference, difference)?;
///         b.mean_all(square)
///     }
/// }
/// # let _ = Distillation::new().logits(1.0, LogitRegression);
/// ```
pub trait LogitLoss: std::fmt::Debug + Send + Sync {
    /// Whether the loss reads the labels.
    fn needs_labels(&self) -> bool {
        false
    }

    /// The temperature at which the probabilities of an ensemble of teachers are averaged.
    fn temperature(&self) -> f64 {
        1.0
    }

    /// Adds the loss, a value of rank 0. Both logits are `[N, C, ..]` of one type, `f32` or
    /// `f64`; no gradient passes to the teacher's. The labels are there if
    /// [`LogitLoss::needs_labels`]: class indices, `i64` `[N, ..]`.
    ///
    /// # Errors
    /// If a setting is out of its range or the types do not fit.
    fn build(
        &self,
        b: &mut GraphBuilder,
        student: ValueId,
        teacher: ValueId,
        labels: Option<ValueId>,
    ) -> Result<ValueId>;
}

/// Fails unless student and teacher have logits of the same type, for two classes at least.
/// Returns the number of classes if it is known.
fn expect_logits(b: &GraphBuilder, student: ValueId, teacher: ValueId) -> Result<Option<usize>> {
    let (s, t) = (b.type_of(student), b.type_of(teacher));
    if s != t {
        return Err(Error::shape(format!(
            "the student's logits are {s}, the teacher's {t}"
        )));
    }
    if s.rank() < 2 {
        return Err(Error::shape(format!(
            "logits are [N, C, ..], the student's are {s}"
        )));
    }
    let classes = s.shape[1].as_fixed();
    if classes.is_some_and(|c| c < 2) {
        return Err(Error::shape(format!(
            "logits of two classes at least are compared, the student's are {s}"
        )));
    }
    Ok(classes)
}

/// As [`expect_logits`], for losses that are defined on `[N, C]`.
fn expect_matrix(
    b: &GraphBuilder,
    student: ValueId,
    teacher: ValueId,
    loss: &str,
) -> Result<Option<usize>> {
    let classes = expect_logits(b, student, teacher)?;
    let ty = b.type_of(student);
    if ty.rank() == 2 {
        return Ok(classes);
    }
    Err(Error::shape(format!(
        "{loss} takes logits [N, C], the student's are {ty}; reshape both to one row a position"
    )))
}
