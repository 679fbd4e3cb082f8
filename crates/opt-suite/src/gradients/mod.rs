//! Gradient rules against central differences in `f64` and against PyTorch, one file an op
//! family.

pub mod attention;
pub mod conv;
pub mod elementwise;
pub mod golden;
pub mod half;
pub mod loss;
pub mod matmul;
pub mod quant;
pub mod random;
pub mod reduce;
pub mod shape;
pub mod symbolic;

use opt_core::autodiff::grad;
use opt_core::{DType, Graph, GraphBuilder, Result, Tensor, TensorType, ValueId};

use crate::{Case, Check};

/// All gradient cases.
pub fn cases() -> Vec<Case> {
    [
        attention::cases(),
        conv::cases(),
        elementwise::cases(),
        golden::cases(),
        half::cases(),
        loss::cases(),
        matmul::cases(),
        quant::cases(),
        random::cases(),
        reduce::cases(),
        shape::cases(),
        symbolic::cases(),
    ]
    .concat()
}

/// A graph of inputs of the tensors' types and one output.
///
/// # Panics
/// If the graph cannot be built: the case is wrong.
pub fn graph(
    name: &str,
    inputs: &[Tensor],
    build: impl FnOnce(&mut GraphBuilder, &[ValueId]) -> Result<ValueId>,
) -> Graph {
    let make = || -> Result<Graph> {
        let mut b = GraphBuilder::new(name);
        let ids = declare(&mut b, &types_of(inputs))?;
        let y = build(&mut b, &ids)?;
        b.output("y", y)?;
        b.finish()
    };
    make().unwrap_or_else(|e| panic!("{name}: {e}"))
}

fn types_of(inputs: &[Tensor]) -> Vec<TensorType> {
    let one = |t: &Tensor| TensorType::new(t.dtype(), t.shape());
    inputs.iter().map(one).collect()
}

fn declare(b: &mut GraphBuilder, types: &[TensorType]) -> Result<Vec<ValueId>> {
    let one = |(i, ty): (usize, &TensorType)| b.input(&format!("x{i}"), ty.clone());
    types.iter().enumerate().map(one).collect()
}

/// A case that compares the gradients of what `build` adds with central differences.
///
/// # Panics
/// As [`graph`].
pub fn differences(
    name: &str,
    inputs: Vec<Tensor>,
    build: impl FnOnce(&mut GraphBuilder, &[ValueId]) -> Result<ValueId>,
) -> Case {
    let graph = graph(name, &inputs, build);
    Case::gradients(name, graph, inputs)
}

/// A case that compares the gradients of `sum(y * cotangent)` by all float inputs with given
/// ones, where differences would not do: at ties, kinks and zeros.
///
/// # Panics
/// As [`graph`].
pub fn values(
    name: &str,
    inputs: Vec<Tensor>,
    cotangent: Tensor,
    expected: Vec<Tensor>,
    build: impl FnOnce(&mut GraphBuilder, &[ValueId]) -> Result<ValueId>,
) -> Case {
    let types = types_of(&inputs);
    values_of(name, &types, inputs, cotangent, expected, build)
}

/// [`values`] with the types of the inputs, which may be symbolic; the cotangent then has rank 0.
///
/// # Panics
/// As [`graph`].
pub fn values_of(
    name: &str,
    types: &[TensorType],
    inputs: Vec<Tensor>,
    cotangent: Tensor,
    expected: Vec<Tensor>,
    build: impl FnOnce(&mut GraphBuilder, &[ValueId]) -> Result<ValueId>,
) -> Case {
    let make = || -> Result<Graph> {
        let mut b = GraphBuilder::new(name);
        let ids = declare(&mut b, types)?;
        let y = build(&mut b, &ids)?;
        let weights = b.constant(cotangent);
        let weighted = b.mul(y, weights)?;
        let loss = b.sum_all(weighted)?;
        let float = |v: &&ValueId| b.type_of(**v).dtype.is_float();
        let wrt: Vec<ValueId> = ids.iter().filter(float).copied().collect();
        let gradients = grad(&mut b, loss, &wrt)?;
        for (i, &v) in wrt.iter().enumerate() {
            b.output(&format!("g{i}"), gradients.of(v)?)?;
        }
        b.finish()
    };
    let graph = make().unwrap_or_else(|e| panic!("{name}: {e}"));
    Case {
        name: name.to_string(),
        graph,
        inputs,
        check: Check::Outputs {
            expected,
            tolerance: 1e-9,
        },
    }
}

/// Uniform numbers in `f64`.
///
/// # Panics
/// If the shape is too large.
pub fn uniform(shape: &[usize], seed: u64, low: f64, high: f64) -> Tensor {
    crate::uniform(DType::F64, shape, seed, low, high).expect("a small shape")
}

/// Uniform numbers in `f64` with random signs: away from kinks at 0.
///
/// # Panics
/// If the shape is too large.
pub fn signed(shape: &[usize], seed: u64, low: f64, high: f64) -> Tensor {
    let size = uniform(shape, seed, low, high).to_f64s();
    let signs = uniform(shape, !seed, -1.0, 1.0).to_f64s();
    let data: Vec<f64> = size
        .iter()
        .zip(&signs)
        .map(|(v, s)| v * s.signum())
        .collect();
    tensor(shape, &data)
}

/// A tensor in `f64`.
///
/// # Panics
/// If the number of elements is wrong.
pub fn tensor(shape: &[usize], data: &[f64]) -> Tensor {
    Tensor::new(shape, data).expect("as many elements as the shape has")
}
