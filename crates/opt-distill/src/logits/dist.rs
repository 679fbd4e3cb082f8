//! Distillation from a stronger teacher.

use opt_core::{GraphBuilder, Result, ValueId};

use super::{LogitLoss, expect_matrix};
use crate::math::{expect_not_negative, expect_positive, root};

/// DIST (Huang, You, Wang, Qian & Xu, "Knowledge distillation from a stronger teacher", 2022):
/// `tau^2 * (beta * inter + gamma * intra)` for the probabilities `softmax(z / tau)` of logits
/// `[N, C]`.
///
/// `inter` is 1 minus the mean over the examples of Pearson's correlation between the student's
/// and the teacher's row; `intra` is the same for the columns: how the examples rank for one
/// class. The student has to agree in relations, not in the probabilities themselves.
///
/// As in the authors' code, `1e-8` is added to the product of the norms. A row or column without
/// variation (a squared norm of `1e-14` at most after the mean is taken off: equal probabilities,
/// or the columns of a batch of 1) has correlation 0 and gradient 0.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Dist {
    /// Weight of the relation between classes.
    pub beta: f64,
    /// Weight of the relation within a class.
    pub gamma: f64,
    /// The temperature, above 0.
    pub tau: f64,
}

impl Default for Dist {
    /// The defaults of the authors' code: 1, 1 and temperature 1.
    fn default() -> Dist {
        Dist {
            beta: 1.0,
            gamma: 1.0,
            tau: 1.0,
        }
    }
}

/// What is taken for no variation.
const FLAT: f64 = 1e-14;

/// What the authors add to the product of the norms.
const EPS: f64 = 1e-8;

/// 1 minus the mean of Pearson's correlations along an axis.
fn relation(b: &mut GraphBuilder, s: ValueId, t: ValueId, axis: usize) -> Result<ValueId> {
    let mut centred = |v: ValueId| -> Result<(ValueId, ValueId, ValueId)> {
        let mean = b.mean(v, &[axis], true)?;
        let v = b.sub(v, mean)?;
        let square = b.mul(v, v)?;
        let square = b.sum(square, &[axis], false)?;
        let (norm, varies) = root(b, square, FLAT)?;
        Ok((v, norm, varies))
    };
    let (s, s_norm, s_varies) = centred(s)?;
    let (t, t_norm, t_varies) = centred(t)?;
    let product = b.mul(s, t)?;
    let product = b.sum(product, &[axis], false)?;
    let norms = b.mul(s_norm, t_norm)?;
    let norms = b.add_scalar(norms, EPS)?;
    let correlation = b.div(product, norms)?;
    let vary = b.and(s_varies, t_varies)?;
    let zero = b.scalar_like(correlation, 0.0)?;
    let correlation = b.select(vary, correlation, zero)?;
    let mean = b.mean_all(correlation)?;
    let one = b.scalar_like(mean, 1.0)?;
    b.sub(one, mean)
}

impl LogitLoss for Dist {
    fn temperature(&self) -> f64 {
        self.tau
    }

    fn build(
        &self,
        b: &mut GraphBuilder,
        student: ValueId,
        teacher: ValueId,
        _: Option<ValueId>,
    ) -> Result<ValueId> {
        expect_positive("temperature", self.tau)?;
        expect_not_negative("beta", self.beta)?;
        expect_not_negative("gamma", self.gamma)?;
        expect_matrix(b, student, teacher, "DIST")?;
        let teacher = b.stop_gradient(teacher)?;
        let mut probabilities = |z: ValueId| -> Result<ValueId> {
            let z = b.mul_scalar(z, 1.0 / self.tau)?;
            b.softmax(z, 1)
        };
        let (s, t) = (probabilities(student)?, probabilities(teacher)?);
        let inter = relation(b, s, t, 1)?;
        let intra = relation(b, s, t, 0)?;
        let inter = b.mul_scalar(inter, self.beta * self.tau * self.tau)?;
        let intra = b.mul_scalar(intra, self.gamma * self.tau * self.tau)?;
        b.add(inter, intra)
    }
}
