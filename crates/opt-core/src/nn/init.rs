//! Initial content of parameters.

use crate::ops::UnaryOp;
use crate::random::Philox;
use crate::tensor::Dims;
use crate::{DType, Error, Result, Tensor};

/// Which size a variance is scaled by.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Fan {
    /// The number of inputs of an output: keeps the variance of the activations.
    #[default]
    In,
    /// The number of outputs of an input: keeps the variance of the gradients.
    Out,
}

/// How a parameter starts.
///
/// Fans are PyTorch's: of a weight `[O, I, kernel..]` the fan in is `I` times the kernel's size
/// and the fan out `O` times it.
///
/// ```
/// use opt_core::{DType, nn::{Fan, Init}};
///
/// let init = Init::KaimingNormal { fan: Fan::In, gain: 2f64.sqrt() };
/// let weight = init.tensor(DType::F32, [64, 100], 7, 0)?;
/// let variance = weight.to_f64s().iter().map(|w| w * w).sum::<f64>() / 6400.0;
/// assert!((variance - 0.02).abs() < 2e-3);
/// # Ok::<(), opt_core::Error>(())
/// ```
#[derive(Debug, Clone, Copy, PartialEq)]
#[non_exhaustive]
pub enum Init {
    /// One number everywhere.
    Constant(f64),
    /// Uniform in `[low, high)`.
    Uniform {
        /// Lower bound.
        low: f64,
        /// Upper bound.
        high: f64,
    },
    /// Normal.
    Normal {
        /// Mean.
        mean: f64,
        /// Standard deviation.
        std: f64,
    },
    /// Uniform with standard deviation `gain / sqrt(fan)` (He et al. 2015).
    KaimingUniform {
        /// The fan.
        fan: Fan,
        /// The factor; see [`gain`].
        gain: f64,
    },
    /// Normal with standard deviation `gain / sqrt(fan)` (He et al. 2015).
    KaimingNormal {
        /// The fan.
        fan: Fan,
        /// The factor; see [`gain`].
        gain: f64,
    },
    /// Uniform with standard deviation `gain * sqrt(2 / (fan in + fan out))` (Glorot & Bengio
    /// 2010).
    XavierUniform {
        /// The factor; see [`gain`].
        gain: f64,
    },
    /// Normal with standard deviation `gain * sqrt(2 / (fan in + fan out))` (Glorot & Bengio
    /// 2010).
    XavierNormal {
        /// The factor; see [`gain`].
        gain: f64,
    },
    /// `gain` times a matrix `[O, rest]` with orthonormal rows or columns, whichever are fewer
    /// (Saxe et al. 2013).
    Orthogonal {
        /// The factor; see [`gain`].
        gain: f64,
    },
}

impl Init {
    /// Zeros.
    pub const ZEROS: Init = Init::Constant(0.0);

    /// Ones.
    pub const ONES: Init = Init::Constant(1.0);

    /// PyTorch's default for the weights of linear layers and convolutions: uniform within
    /// `1 / sqrt(fan in)`.
    pub const LINEAR: Init = Init::KaimingUniform {
        fan: Fan::In,
        gain: 0.577_350_269_189_625_8,
    };

    /// The usual start of a network of ReLUs: normal, by the fan in.
    pub const RELU: Init = Init::KaimingNormal {
        fan: Fan::In,
        gain: std::f64::consts::SQRT_2,
    };

    /// Fan in and fan out of a shape.
    ///
    /// # Errors
    /// If the rank is below 2.
    pub fn fans(shape: &[usize]) -> Result<(usize, usize)> {
        match shape {
            [outputs, inputs, kernel @ ..] => {
                let size: usize = kernel.iter().product();
                Ok((inputs * size, outputs * size))
            }
            _ => Err(Error::shape(format!(
                "a shape of rank 2 at least has fans, found {shape:?}"
            ))),
        }
    }

    /// A tensor of this content: a function of the seed, the stream (which tells the parameters
    /// of a model apart) and the shape.
    ///
    /// # Errors
    /// If the dtype is not floating-point, a number is not finite, or the shape has no fans
    /// where they are needed.
    pub fn tensor(
        &self,
        dtype: DType,
        shape: impl AsRef<[usize]>,
        seed: u64,
        stream: u64,
    ) -> Result<Tensor> {
        let shape: Dims = shape.as_ref().into();
        if !dtype.is_float() {
            return Err(Error::dtype(format!(
                "a parameter must be floating-point, found {dtype}"
            )));
        }
        let random = Philox::new(seed);
        let len = crate::tensor::checked_len(&shape)?;
        let uniform = |low: f64, high: f64| -> Vec<f64> {
            let at = |i| low + (high - low) * random.uniform(stream, i);
            (0..len as u64).map(at).collect()
        };
        let normal = |mean: f64, std: f64| -> Vec<f64> {
            let at = |i| mean + std * random.normal(stream, i);
            (0..len as u64).map(at).collect()
        };
        let kaiming = |fan: Fan, gain: f64| -> Result<f64> {
            let (fan_in, fan_out) = Init::fans(&shape)?;
            let fan = if fan == Fan::In { fan_in } else { fan_out };
            Ok(gain / (fan.max(1) as f64).sqrt())
        };
        let xavier = |gain: f64| -> Result<f64> {
            let (fan_in, fan_out) = Init::fans(&shape)?;
            Ok(gain * (2.0 / (fan_in + fan_out).max(1) as f64).sqrt())
        };
        // A uniform distribution within `b` has standard deviation `b / sqrt(3)`.
        let width = 3f64.sqrt();
        let data = match *self {
            Init::Constant(value) => vec![value; len],
            Init::Uniform { low, high } => uniform(low, high),
            Init::Normal { mean, std } => normal(mean, std),
            Init::KaimingUniform { fan, gain } => {
                let bound = width * kaiming(fan, gain)?;
                uniform(-bound, bound)
            }
            Init::KaimingNormal { fan, gain } => normal(0.0, kaiming(fan, gain)?),
            Init::XavierUniform { gain } => {
                let bound = width * xavier(gain)?;
                uniform(-bound, bound)
            }
            Init::XavierNormal { gain } => normal(0.0, xavier(gain)?),
            Init::Orthogonal { gain } => {
                Init::fans(&shape)?;
                let rows = shape[0];
                let columns = len.checked_div(rows).unwrap_or(0);
                let mut data = normal(0.0, 1.0);
                orthogonalize(&mut data, rows, columns);
                data.iter_mut().for_each(|v| *v *= gain);
                data
            }
        };
        if data.iter().any(|v| !v.is_finite()) {
            return Err(Error::invalid(format!(
                "{self:?} gives numbers that are not finite"
            )));
        }
        Tensor::from_f64s(dtype, &shape, &data)
    }
}

/// Makes the rows of a matrix, or its columns where those are fewer, orthonormal: modified
/// Gram-Schmidt, run twice so that rounding does not add up. It is the Q of a QR decomposition
/// whose R has a positive diagonal.
fn orthogonalize(data: &mut [f64], rows: usize, columns: usize) {
    let by_rows = rows <= columns;
    let (count, width) = match by_rows {
        true => (rows, columns),
        false => (columns, rows),
    };
    let at = |vector: usize, entry: usize| match by_rows {
        true => vector * columns + entry,
        false => entry * columns + vector,
    };
    let mut basis: Vec<Vec<f64>> = Vec::with_capacity(count);
    for vector in 0..count {
        let mut v: Vec<f64> = (0..width).map(|e| data[at(vector, e)]).collect();
        for _ in 0..2 {
            for q in &basis {
                let dot: f64 = q.iter().zip(&v).map(|(a, b)| a * b).sum();
                v.iter_mut().zip(q).for_each(|(a, b)| *a -= dot * b);
            }
        }
        let norm = v.iter().map(|a| a * a).sum::<f64>().sqrt();
        v.iter_mut().for_each(|a| *a /= norm);
        for (entry, &value) in v.iter().enumerate() {
            data[at(vector, entry)] = value;
        }
        basis.push(v);
    }
}

/// The factor by which an initialiser makes up for what an activation function does to the
/// variance (PyTorch's `calculate_gain`); 1 for functions without a recommended one.
pub fn gain(activation: UnaryOp) -> f64 {
    match activation {
        UnaryOp::Relu => std::f64::consts::SQRT_2,
        UnaryOp::LeakyRelu { alpha } => (2.0 / (1.0 + alpha * alpha)).sqrt(),
        UnaryOp::Tanh => 5.0 / 3.0,
        UnaryOp::Selu => 0.75,
        _ => 1.0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn moments(init: Init, shape: &[usize]) -> (f64, f64, f64) {
        let data = init.tensor(DType::F64, shape, 3, 5).unwrap().to_f64s();
        let n = data.len() as f64;
        let mean = data.iter().sum::<f64>() / n;
        let std = (data.iter().map(|v| (v - mean) * (v - mean)).sum::<f64>() / n).sqrt();
        let largest = data.iter().fold(0f64, |m, v| m.max(v.abs()));
        (mean, std, largest)
    }

    #[test]
    fn standard_deviations_follow_the_fans() {
        // Fan in 20 * 9 = 180, fan out 40 * 9 = 360.
        let shape = [40, 20, 3, 3];
        assert_eq!(Init::fans(&shape).unwrap(), (180, 360));
        let (g, root3) = (gain(UnaryOp::Tanh), 3f64.sqrt());
        for (init, std, bound) in [
            (
                Init::KaimingUniform {
                    fan: Fan::In,
                    gain: g,
                },
                g / 180f64.sqrt(),
                root3,
            ),
            (
                Init::KaimingUniform {
                    fan: Fan::Out,
                    gain: g,
                },
                g / 360f64.sqrt(),
                root3,
            ),
            (
                Init::KaimingNormal {
                    fan: Fan::In,
                    gain: g,
                },
                g / 180f64.sqrt(),
                6.0,
            ),
            (
                Init::XavierUniform { gain: g },
                g * (2f64 / 540.0).sqrt(),
                root3,
            ),
            (
                Init::XavierNormal { gain: g },
                g * (2f64 / 540.0).sqrt(),
                6.0,
            ),
            (
                Init::Uniform {
                    low: -1.0,
                    high: 1.0,
                },
                1.0 / root3,
                root3,
            ),
            (
                Init::Normal {
                    mean: 0.0,
                    std: 0.2,
                },
                0.2,
                6.0,
            ),
        ] {
            let (mean, found, largest) = moments(init, &shape);
            assert!(mean.abs() < 0.04 * std, "{init:?}: mean {mean}");
            assert!(
                (found / std - 1.0).abs() < 0.03,
                "{init:?}: {found} for {std}"
            );
            assert!(largest <= bound * std, "{init:?}: {largest}");
        }
    }

    #[test]
    fn the_default_of_linear_layers_is_pytorchs() {
        let (_, _, largest) = moments(Init::LINEAR, &[50, 100]);
        assert!(largest <= 0.1 && largest > 0.0999, "{largest}");
    }

    #[test]
    fn orthogonal_rows_or_columns_are_orthonormal() {
        for shape in [[4, 6], [6, 4], [5, 5]] {
            let [rows, columns] = shape;
            let init = Init::Orthogonal { gain: 2.0 };
            let t = init.tensor(DType::F64, shape, 1, 1).unwrap();
            let t = match rows <= columns {
                true => t,
                false => t.transpose(&[1, 0]).unwrap(),
            };
            let (n, width) = (t.shape()[0], t.shape()[1]);
            let data = t.to_f64s();
            for i in 0..n {
                for j in 0..n {
                    let dot: f64 = (0..width)
                        .map(|k| data[i * width + k] * data[j * width + k])
                        .sum();
                    let expected = if i == j { 4.0 } else { 0.0 };
                    assert!((dot - expected).abs() < 1e-12, "{shape:?} {i} {j}: {dot}");
                }
            }
        }
    }

    #[test]
    fn what_cannot_be_initialised_is_an_error() {
        assert!(Init::RELU.tensor(DType::F32, [3], 0, 0).is_err());
        assert!(Init::ONES.tensor(DType::I64, [3], 0, 0).is_err());
        let infinite = Init::Normal {
            mean: 0.0,
            std: f64::INFINITY,
        };
        assert!(infinite.tensor(DType::F32, [3], 0, 0).is_err());
        assert!(
            Init::Orthogonal { gain: 1.0 }
                .tensor(DType::F32, [3], 0, 0)
                .is_err()
        );
        let empty = Init::Orthogonal { gain: 1.0 }.tensor(DType::F32, [0, 3], 0, 0);
        assert_eq!(empty.unwrap().len(), 0);
    }
}
