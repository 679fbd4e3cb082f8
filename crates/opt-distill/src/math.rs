//! Formulas that several losses share, with finite gradients everywhere.

use opt_core::ops::ReduceOp;
use opt_core::{DType, Error, GraphBuilder, Result, ValueId};

/// Fails unless a number is finite and above 0.
pub(crate) fn expect_positive(what: &str, value: f64) -> Result<()> {
    if value.is_finite() && value > 0.0 {
        return Ok(());
    }
    Err(Error::invalid(format!(
        "the {what} is {value}, not a positive number"
    )))
}

/// Fails unless a number is finite and 0 at least.
pub(crate) fn expect_not_negative(what: &str, value: f64) -> Result<()> {
    if value.is_finite() && value >= 0.0 {
        return Ok(());
    }
    Err(Error::invalid(format!(
        "the {what} is {value}, not a number of 0 or more"
    )))
}

/// Two values in the dtype that losses between them are computed in: `f64` if either is, else
/// `f32`, so that nothing is summed in half precision.
pub(crate) fn in_loss_dtype(
    b: &mut GraphBuilder,
    x: ValueId,
    y: ValueId,
) -> Result<(ValueId, ValueId)> {
    let dtypes = [b.type_of(x).dtype, b.type_of(y).dtype];
    if let Some(other) = dtypes.iter().find(|d| !d.is_float()) {
        return Err(Error::dtype(format!(
            "a loss compares floating-point values, found {other}"
        )));
    }
    let dtype = match dtypes.contains(&DType::F64) {
        true => DType::F64,
        false => DType::F32,
    };
    Ok((b.cast(x, dtype)?, b.cast(y, dtype)?))
}

/// The square root of what is above `tiny`, and 0, with gradient 0, elsewhere; and where it is
/// above.
pub(crate) fn root(b: &mut GraphBuilder, x: ValueId, tiny: f64) -> Result<(ValueId, ValueId)> {
    let tiny = b.scalar_like(x, tiny)?;
    let (zero, one) = (b.scalar_like(x, 0.0)?, b.scalar_like(x, 1.0)?);
    let above = b.greater(x, tiny)?;
    // The gradient of the root is infinite at 0, and 0 times infinity is NaN.
    let safe = b.select(above, x, one)?;
    let root = b.sqrt(safe)?;
    Ok((b.select(above, root, zero)?, above))
}

/// `x / |x|` along axes; 0, with gradient 0, where the squared norm is at most `tiny`.
pub(crate) fn unit(b: &mut GraphBuilder, x: ValueId, axes: &[usize], tiny: f64) -> Result<ValueId> {
    let square = b.mul(x, x)?;
    let square = b.sum(square, axes, true)?;
    let (norm, above) = root(b, square, tiny)?;
    let (zero, one) = (b.scalar_like(x, 0.0)?, b.scalar_like(x, 1.0)?);
    let norm = b.select(above, norm, one)?;
    let unit = b.div(x, norm)?;
    b.select(above, unit, zero)
}

/// `ln sum e^x` along an axis, which stays with size 1.
pub(crate) fn log_sum_exp(b: &mut GraphBuilder, x: ValueId, axis: usize) -> Result<ValueId> {
    let largest = b.reduce(ReduceOp::Max, x, &[axis], true)?;
    let largest = b.stop_gradient(largest)?;
    let shifted = b.sub(x, largest)?;
    let powers = b.exp(shifted)?;
    let sum = b.sum(powers, &[axis], true)?;
    let log = b.log(sum)?;
    b.add(log, largest)
}

/// The value as `[N, D]`.
pub(crate) fn rows(b: &mut GraphBuilder, x: ValueId) -> Result<ValueId> {
    match b.type_of(x).rank() {
        0 => Err(Error::shape("a single number has no examples")),
        1 => b.unsqueeze(x, &[1]),
        2 => Ok(x),
        _ => b.flatten(x, 1),
    }
}
