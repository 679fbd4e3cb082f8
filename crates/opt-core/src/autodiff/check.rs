//! Checking gradients against central differences.

use super::grad;
use crate::{Backend, Error, Graph, GraphBuilder, Result, Tensor, ValueKind};

/// Compares the gradients of a graph's first output (made one number by a fixed random weighting
/// of its elements) by every float input and variable with central differences. The graph should
/// be in `f64`.
///
/// # Errors
/// If compiling or running fails, or a derivative differs by more than `tolerance` relative to
/// `1 + |derivative|`; the message names the value, the entry and both figures.
pub fn check_gradients(
    backend: &dyn Backend,
    graph: &Graph,
    inputs: &[Tensor],
    step: f64,
    tolerance: f64,
) -> Result<()> {
    let mut b = GraphBuilder::extend(graph.bind(&crate::backend::bindings_of(graph, inputs)?)?);
    let bound = b.graph().clone();
    let out = bound
        .outputs()
        .next()
        .ok_or_else(|| Error::invalid("no output"))?;
    let ty = bound.type_of(out).clone();
    let stream = crate::random::Philox::new(0x5eed);
    let weights: Vec<f64> = (0..ty.shape.len()? as u64)
        .map(|i| stream.uniform(0, i) + 0.5)
        .collect();
    let weights = b.constant(Tensor::from_f64s(ty.dtype, ty.shape.fixed()?, &weights)?);
    let weighted = b.mul(out, weights)?;
    let loss = b.sum_all(weighted)?;
    b.clear_outputs();
    b.output("loss", loss)?;
    let forward = b.graph().clone();
    let wrt: Vec<_> = bound
        .values()
        .filter(|(_, v)| matches!(v.kind(), ValueKind::Input | ValueKind::Variable(_)))
        .filter(|(_, v)| v.ty().dtype.is_float())
        .map(|(id, _)| id)
        .collect();
    let gradients = grad(&mut b, loss, &wrt)?;
    for (i, &v) in wrt.iter().enumerate() {
        b.output(&format!("grad{i}"), gradients.of(v)?)?;
    }
    let analytic = backend.run_once(&b.finish()?, inputs)?;
    let spec = crate::CompileSpec::new();
    let mut session = backend.compile(&forward, &spec)?.session()?;
    for (i, &v) in wrt.iter().enumerate() {
        let value = forward.value(v);
        let position = forward.inputs().iter().position(|&x| x == v);
        let content = match position {
            Some(p) => inputs[p].clone(),
            None => value.tensor().expect("a variable").clone(),
        };
        let data = content.to_f64s();
        let expected = analytic[i + 1].to_f64s();
        for k in 0..data.len() {
            let mut side = |delta: f64| -> Result<f64> {
                let mut moved = data.clone();
                moved[k] += delta;
                let moved = Tensor::from_f64s(content.dtype(), content.shape(), &moved)?;
                let mut inputs = inputs.to_vec();
                match position {
                    Some(p) => inputs[p] = moved,
                    None => session.set_variable(v, &moved)?,
                }
                session.run(&inputs)?[0].item()
            };
            let numeric = (side(step)? - side(-step)?) / (2.0 * step);
            if position.is_none() {
                session.set_variable(v, &content)?;
            }
            let error = (numeric - expected[k]).abs() / (1.0 + numeric.abs());
            if !error.is_finite() || error > tolerance {
                return Err(Error::invalid(format!(
                    "derivative by `{}`[{k}] is {} by the rule, {numeric} by central differences",
                    value.name(),
                    expected[k]
                )));
            }
        }
    }
    Ok(())
}
