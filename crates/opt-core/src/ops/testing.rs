//! Helpers of the rules' tests: types written as text.

use super::{AxisRules, Op};
use crate::{DType, Dim, Shape, TensorType};

/// Types from their text: `f32[n,3] i64[]`.
pub(crate) fn types(text: &str) -> Vec<TensorType> {
    let parse = |t: &str| {
        let (dtype, dims) = t.trim_end_matches(']').split_once('[').expect(t);
        let dtype = DType::ALL.into_iter().find(|d| d.to_string() == dtype);
        let dims = dims.split(',').filter(|d| !d.is_empty());
        let dim = |d: &str| d.parse::<usize>().map_or_else(|_| Dim::from(d), Dim::from);
        TensorType::new(dtype.expect(t), dims.map(dim).collect::<Shape>())
    };
    text.split_whitespace().map(parse).collect()
}

/// The types of an op's outputs as text, or `error`. Where there are outputs the axis rules are
/// checked too.
pub(crate) fn infer(op: &Op, inputs: &str) -> String {
    let inputs = types(inputs);
    let Ok(outputs) = op.rules().infer(&inputs) else {
        return "error".to_string();
    };
    let rules = op.rules().axes(&inputs, &outputs);
    rules.check(&inputs, &outputs).unwrap();
    let text: Vec<String> = outputs.iter().map(ToString::to_string).collect();
    text.join(" ")
}

/// The axis rules of an op.
pub(crate) fn axes(op: &Op, inputs: &str) -> AxisRules {
    let inputs = types(inputs);
    let outputs = op.rules().infer(&inputs).unwrap();
    let rules = op.rules().axes(&inputs, &outputs);
    rules.check(&inputs, &outputs).unwrap();
    rules
}
