//! Relational knowledge distillation.

use opt_core::{Error, GraphBuilder, Result, ValueId};
use opt_train::{Huber, Loss};

use super::{FeatureLoss, Features, Matching};
use crate::math::{expect_not_negative, root, rows, unit};

/// Relational knowledge distillation (Park, Kim, Lu & Cho, "Relational knowledge distillation",
/// 2019): distances and angles between the examples of a batch, with each example's layer as one
/// vector. Shapes need not agree but in the number of examples.
///
/// - Distance: Huber's loss (delta 1) between the pairs' Euclidean distances, each divided by the
///   mean of all that are above 0; the mean over the `N^2` ordered pairs.
/// - Angle: Huber's loss between the cosines of the angles at `i` between `j` and `k`; the mean over
///   the `N^3` ordered triples.
///
/// Both as in the authors' code. A pair that coincides (a squared distance of `1e-12` at most) has
/// distance 0 and no direction, and no gradient; with a batch of 1 the loss is 0. Memory grows with
/// `N^2 D + N^3` for D entries an example.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Rkd {
    /// Weight of the distances.
    pub distance: f64,
    /// Weight of the angles.
    pub angle: f64,
}

/// The squared distance up to which two examples coincide.
const TINY: f64 = 1e-12;

impl Rkd {
    /// Distances alone, with weight 1.
    pub fn distance() -> Rkd {
        Rkd::distance_and_angle(1.0, 0.0)
    }

    /// Angles alone, with weight 1.
    pub fn angle() -> Rkd {
        Rkd::distance_and_angle(0.0, 1.0)
    }

    /// Both, weighted: often 1 and 2 in metric learning, 25 and 50 beside a cross-entropy.
    pub fn distance_and_angle(distance: f64, angle: f64) -> Rkd {
        Rkd { distance, angle }
    }
}

/// `x_j - x_i` for all pairs: `[N, D] -> [N, N, D]`.
fn differences(b: &mut GraphBuilder, x: ValueId) -> Result<ValueId> {
    let x = rows(b, x)?;
    let to = b.unsqueeze(x, &[0])?;
    let from = b.unsqueeze(x, &[1])?;
    b.sub(to, from)
}

/// The distances divided by their mean: `[N, N, D] -> [N, N]`.
fn distances(b: &mut GraphBuilder, differences: ValueId) -> Result<ValueId> {
    let square = b.mul(differences, differences)?;
    let square = b.sum(square, &[2], false)?;
    let (distance, apart) = root(b, square, TINY)?;
    let dtype = b.type_of(distance).dtype;
    let count = b.cast(apart, dtype)?;
    let count = b.sum_all(count)?;
    let one = b.scalar(dtype, 1.0)?;
    let count = b.maximum(count, one)?;
    let total = b.sum_all(distance)?;
    let mean = b.div(total, count)?;
    // Nothing is apart: all distances are 0, whatever they are divided by.
    let zero = b.scalar(dtype, 0.0)?;
    let some = b.greater(mean, zero)?;
    let mean = b.select(some, mean, one)?;
    b.div(distance, mean)
}

/// The cosines of all angles: `[N, N, D] -> [N, N, N]`.
fn angles(b: &mut GraphBuilder, differences: ValueId) -> Result<ValueId> {
    let directions = unit(b, differences, &[2], TINY)?;
    b.matmul_t(directions, directions, false, true)
}

impl FeatureLoss for Rkd {
    fn matching(&self) -> Matching {
        Matching::Batch
    }

    fn build(&self, b: &mut GraphBuilder, features: &Features) -> Result<ValueId> {
        expect_not_negative("weight of the distances", self.distance)?;
        expect_not_negative("weight of the angles", self.angle)?;
        let teacher = b.stop_gradient(features.teacher)?;
        let s = differences(b, features.student)?;
        let t = differences(b, teacher)?;
        let mut total = None;
        for (weight, relation) in [
            (
                self.distance,
                distances as fn(&mut GraphBuilder, ValueId) -> Result<ValueId>,
            ),
            (self.angle, angles),
        ] {
            if weight == 0.0 {
                continue;
            }
            let (s, t) = (relation(b, s)?, relation(b, t)?);
            let loss = Huber::default().build(b, s, t)?;
            let loss = b.mul_scalar(loss, weight)?;
            total = Some(match total {
                Some(total) => b.add(total, loss)?,
                None => loss,
            });
        }
        total.ok_or_else(|| Error::invalid("distances and angles both have weight 0"))
    }
}
