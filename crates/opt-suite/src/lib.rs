//! One set of cases run against every backend of the opt libraries.
//!
//! A [`Case`] is a graph, its inputs and what must hold of a backend that runs it. The cases
//! stand in [`gradients`] (rules against central differences) and [`forward`] (kernels against
//! expected results), one file an op family; [`training`] holds whole training runs.
//!
//! ```
//! use opt_core::{DType, GraphBuilder, Tensor, TensorType};
//! use opt_suite::Case;
//!
//! let mut b = GraphBuilder::new("identity");
//! let x = b.input("x", TensorType::new(DType::F64, [2]))?;
//! b.output("y", x)?;
//! let case = Case::gradients("identity", b.finish()?, vec![Tensor::new([2], [1f64, 2.0])?]);
//! assert_eq!(case.name, "identity");
//! # Ok::<(), opt_core::Error>(())
//! ```

#![forbid(unsafe_code)]

pub mod forward;
pub mod gradients;
pub mod mixed_precision;
pub mod training;

use opt_core::autodiff::check::check_gradients;
use opt_core::random::Philox;
use opt_core::{Backend, DType, Error, ErrorKind, Graph, Result, ResultExt, Tensor};

/// A graph, its inputs and what must hold of a backend that runs it.
#[derive(Debug, Clone)]
pub struct Case {
    /// Unique among the cases; says what is tested.
    pub name: String,
    /// The graph.
    pub graph: Graph,
    /// Its inputs, in order.
    pub inputs: Vec<Tensor>,
    /// What must hold.
    pub check: Check,
}

/// What must hold of a backend that runs a [`Case`].
#[derive(Debug, Clone)]
#[non_exhaustive]
pub enum Check {
    /// The gradients of the first output by every float input and variable agree with central
    /// differences.
    Gradients {
        /// How far an entry is moved to either side.
        step: f64,
        /// Largest difference, relative to `1 + |derivative|`.
        tolerance: f64,
    },
    /// The outputs are these: of the same dtype and shape, with NaN and infinities in the same
    /// places.
    Outputs {
        /// The outputs, in order.
        expected: Vec<Tensor>,
        /// Largest difference, relative to `1 + |expected|`; 0 asks for equality.
        tolerance: f64,
    },
    /// The outputs are those of another graph, which computes the same in `f32`: it gets the
    /// inputs of 16-bit floats widened, and its outputs are what those of the case would be
    /// without rounding.
    Widened {
        /// The graph in `f32`.
        graph: Graph,
        /// Largest difference, relative to `1 + |expected|`.
        tolerance: f64,
    },
    /// Compiling or running fails with an error of this kind.
    Fails(ErrorKind),
}

impl Case {
    /// A case whose gradients are checked, with a step of 1e-5 and a tolerance of 1e-6, which
    /// suit graphs in `f64` away from kinks.
    pub fn gradients(name: impl Into<String>, graph: Graph, inputs: Vec<Tensor>) -> Case {
        Case {
            name: name.into(),
            graph,
            inputs,
            check: Check::Gradients {
                step: 1e-5,
                tolerance: 1e-6,
            },
        }
    }

    /// A case whose outputs are checked.
    pub fn outputs(
        name: impl Into<String>,
        graph: Graph,
        inputs: Vec<Tensor>,
        expected: Vec<Tensor>,
        tolerance: f64,
    ) -> Case {
        Case {
            name: name.into(),
            graph,
            inputs,
            check: Check::Outputs {
                expected,
                tolerance,
            },
        }
    }

    /// A case that must fail.
    pub fn fails(
        name: impl Into<String>,
        graph: Graph,
        inputs: Vec<Tensor>,
        kind: ErrorKind,
    ) -> Case {
        Case {
            name: name.into(),
            graph,
            inputs,
            check: Check::Fails(kind),
        }
    }

    /// Runs the case.
    ///
    /// # Errors
    /// If what must hold does not, at the case's name.
    pub fn run(&self, backend: &dyn Backend) -> Result<()> {
        self.run_check(backend).at(|| self.name.clone())
    }

    fn run_check(&self, backend: &dyn Backend) -> Result<()> {
        match &self.check {
            Check::Gradients { step, tolerance } => {
                check_gradients(backend, &self.graph, &self.inputs, *step, *tolerance)
            }
            Check::Outputs {
                expected,
                tolerance,
            } => {
                let found = backend.run_once(&self.graph, &self.inputs)?;
                if found.len() != expected.len() {
                    return Err(Error::invalid(format!(
                        "expected {} outputs, found {}",
                        expected.len(),
                        found.len()
                    )));
                }
                for (i, (found, expected)) in found.iter().zip(expected).enumerate() {
                    close(found, expected, *tolerance).at(|| format!("output {i}"))?;
                }
                Ok(())
            }
            Check::Widened { graph, tolerance } => {
                let inputs: Vec<Tensor> = self.inputs.iter().map(widened).collect();
                let expected = backend.run_once(graph, &inputs).at(|| "in f32")?;
                let found = backend.run_once(&self.graph, &self.inputs)?;
                for (i, (found, expected)) in found.iter().zip(&expected).enumerate() {
                    let wanted = self
                        .graph
                        .type_of(self.graph.outputs().nth(i).expect("found"));
                    if found.dtype() != wanted.dtype {
                        return Err(Error::dtype(format!(
                            "output {i} is {}, the graph says {wanted}",
                            found.dtype()
                        )));
                    }
                    close(&widened(found), expected, *tolerance).at(|| format!("output {i}"))?;
                }
                Ok(())
            }
            Check::Fails(kind) => match backend.run_once(&self.graph, &self.inputs) {
                Err(e) if e.kind() == *kind => Ok(()),
                Err(e) => Err(Error::invalid(format!(
                    "expected an error of kind {kind:?}, found {e:?}"
                ))),
                Ok(_) => Err(Error::invalid(format!(
                    "expected an error of kind {kind:?}, but it ran"
                ))),
            },
        }
    }
}

/// A backend by its name: `ndarray`, or `tch` (libtorch's processor device) where the feature of
/// that name is on.
///
/// # Errors
/// If there is none of that name.
pub fn backend(name: &str) -> Result<Box<dyn Backend>> {
    match name {
        "ndarray" => Ok(Box::new(opt_ndarray::NdarrayBackend::new())),
        #[cfg(feature = "tch")]
        "tch" => Ok(Box::new(opt_tch::TchBackend::new(opt_tch::Device::Cpu)?)),
        other => Err(Error::invalid(format!(
            "there is no backend `{other}` here; `tch` needs `--features tch`"
        ))),
    }
}

/// The unit roundoff of a dtype of 16 bits: the largest relative error of rounding to it once,
/// 2^-8 for `bf16`, 2^-11 for `f16`.
pub fn roundoff(dtype: DType) -> f64 {
    match dtype {
        DType::BF16 => 1.0 / 256.0,
        _ => 1.0 / 2048.0,
    }
}

/// A tensor of 16-bit floats as `f32`, others as they are.
fn widened(tensor: &Tensor) -> Tensor {
    match tensor.dtype() {
        DType::F16 | DType::BF16 => tensor.cast(DType::F32),
        _ => tensor.clone(),
    }
}

/// Runs cases and gathers what failed, one line a case.
pub fn failures(backend: &dyn Backend, cases: &[Case]) -> Vec<String> {
    let run = |c: &Case| c.run(backend).err().map(|e| format!("{e:?}"));
    cases.iter().filter_map(run).collect()
}

/// Fails unless two tensors have the same type and their elements differ by at most `tolerance`
/// relative to `1 + |expected|`; NaN equals NaN.
///
/// # Errors
/// With the first entry that differs.
pub fn close(found: &Tensor, expected: &Tensor, tolerance: f64) -> Result<()> {
    if found.dtype() != expected.dtype() || found.shape() != expected.shape() {
        return Err(Error::shape(format!(
            "expected {}{:?}, found {}{:?}",
            expected.dtype(),
            expected.shape(),
            found.dtype(),
            found.shape()
        )));
    }
    let pairs = found.to_f64s().into_iter().zip(expected.to_f64s());
    for (i, (f, e)) in pairs.enumerate() {
        let same = f == e || (f.is_nan() && e.is_nan());
        let near = (f - e).abs() <= tolerance * (1.0 + e.abs()) && e.is_finite();
        if !same && !near {
            return Err(Error::invalid(format!(
                "entry {i}: expected {e}, found {f}"
            )));
        }
    }
    Ok(())
}

/// A tensor of uniform random numbers in `[low, high)`: a function of the seed and the shape.
///
/// # Errors
/// If the shape has too many elements to address.
pub fn uniform(dtype: DType, shape: &[usize], seed: u64, low: f64, high: f64) -> Result<Tensor> {
    let stream = Philox::new(seed);
    let len: usize = shape.iter().product();
    let data: Vec<f64> = (0..len as u64)
        .map(|i| low + (high - low) * stream.uniform(0, i))
        .collect();
    Tensor::from_f64s(dtype, shape, &data)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn closeness_compares_types_nan_and_infinity() {
        let t = |v: &[f64]| Tensor::new([v.len()], v).unwrap();
        let inf = f64::INFINITY;
        close(&t(&[1.0, f64::NAN, inf]), &t(&[1.1, f64::NAN, inf]), 0.1).unwrap();
        assert!(close(&t(&[1.0]), &t(&[1.3]), 0.1).is_err());
        assert!(close(&t(&[1.0]), &t(&[inf]), 0.1).is_err());
        assert!(close(&t(&[f64::NAN]), &t(&[1.0]), 0.1).is_err());
        assert!(close(&t(&[1.0]), &Tensor::new([1], [1f32]).unwrap(), 0.1).is_err());
    }
}
