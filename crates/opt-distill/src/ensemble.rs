//! The logits of several teachers as those of one.

use opt_core::{Error, GraphBuilder, Result, ValueId};

use crate::math::log_sum_exp;

/// How the logits of several teachers are averaged (Hinton, Vinyals & Dean 2015 name both).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub enum Average {
    /// The arithmetic mean of the probabilities at the temperature of the loss.
    #[default]
    Probabilities,
    /// The mean of the logits, which is the geometric mean of the probabilities.
    Logits,
}

/// Logits `[N, C, ..]` whose softmax at a temperature is the weighted average of the teachers'.
pub(crate) fn averaged(
    b: &mut GraphBuilder,
    logits: &[(f64, ValueId)],
    average: Average,
    temperature: f64,
) -> Result<ValueId> {
    let [(_, first), rest @ ..] = logits else {
        return Err(Error::invalid("there is no teacher"));
    };
    let ty = b.type_of(*first).clone();
    for (_, other) in rest {
        let found = b.type_of(*other);
        if *found != ty {
            return Err(Error::shape(format!(
                "the logits of one teacher are {ty}, of another {found}"
            )));
        }
    }
    if rest.is_empty() {
        return Ok(*first);
    }
    if ty.rank() < 2 {
        return Err(Error::shape(format!("logits are [N, C, ..], found {ty}")));
    }
    let total: f64 = logits.iter().map(|(weight, _)| weight).sum();
    let mut parts = Vec::new();
    for &(weight, z) in logits {
        let share = weight / total;
        let part = match average {
            Average::Logits => b.mul_scalar(z, share)?,
            Average::Probabilities => {
                let cool = b.mul_scalar(z, 1.0 / temperature)?;
                let log = b.log_softmax(cool, 1)?;
                b.add_scalar(log, share.ln())?
            }
        };
        parts.push(b.unsqueeze(part, &[0])?);
    }
    let parts = b.concat(&parts, 0)?;
    match average {
        Average::Logits => b.sum(parts, &[0], false),
        Average::Probabilities => {
            let log = log_sum_exp(b, parts, 0)?;
            let log = b.squeeze(log, &[0])?;
            b.mul_scalar(log, temperature)
        }
    }
}
