//! How each operator is expressed, one file a family, under the names that `opt_core::ops` has
//! for them.

mod attention;
mod control;
mod conv;
mod elementwise;
mod image;
mod index;
mod loss;
mod matmul;
mod nbits;
mod norm;
mod optimizer;
mod pool;
mod quant;
mod random;
mod recurrent;
mod reduce;
mod shape;
mod signal;
mod sizes;

use opt_core::{Error, Result};

use super::Cx;
use super::node::{Node, V};

/// Expresses a node in the graph; its outputs in order.
type Lower = for<'a, 'm, 'n, 'p> fn(&'a mut Cx<'m>, &'n Node<'p>) -> Result<Vec<V>>;

const FAMILIES: &[fn(&str) -> Option<Lower>] = &[
    elementwise::find,
    matmul::find,
    conv::find,
    pool::find,
    norm::find,
    shape::find,
    sizes::find,
    index::find,
    reduce::find,
    quant::find,
    recurrent::find,
    attention::find,
    loss::find,
    random::find,
    image::find,
    signal::find,
    control::find,
];

fn find(domain: &str, op: &str) -> Option<Lower> {
    match domain {
        "" => FAMILIES.iter().find_map(|family| family(op)),
        "com.microsoft" => find_contrib(op),
        "ai.onnx.preview.training" => optimizer::find(op),
        _ => None,
    }
}

/// Operators of ONNX Runtime's own domain that its tools write.
fn find_contrib(op: &str) -> Option<Lower> {
    Some(match op {
        "Gelu" => elementwise::gelu_exact,
        "FastGelu" => elementwise::gelu_fast,
        "BiasGelu" => elementwise::gelu_exact,
        "QuickGelu" => elementwise::quick_gelu,
        "QuantizeLinear" => quant::quantize,
        "DequantizeLinear" => quant::dequantize,
        "MatMulNBits" => nbits::matmul,
        "DynamicQuantizeMatMul" => quant::dynamic_matmul,
        "MatMulIntegerToFloat" => quant::matmul_integer_to_float,
        "QLinearAdd" | "QLinearMul" => quant::qlinear_binary,
        "QLinearSigmoid" | "QLinearLeakyRelu" => quant::qlinear_unary,
        "QLinearAveragePool" | "QLinearGlobalAveragePool" => quant::qlinear_pool,
        "QLinearConcat" => quant::qlinear_concat,
        "QGemm" => quant::qgemm,
        "SkipLayerNormalization" => norm::skip_layer_norm,
        "FusedMatMul" => matmul::fused_matmul,
        _ => return None,
    })
}

/// Whether an operator is known at all.
pub(super) fn exists(domain: &str, op: &str) -> bool {
    find(domain, op).is_some()
}

/// Expresses a node.
pub(super) fn lower(cx: &mut Cx<'_>, node: &Node<'_>) -> Result<Vec<V>> {
    let domain = super::domain(node.proto.domain());
    match find(domain, node.op()) {
        Some(lower) => lower(cx, node),
        None => Err(Error::unsupported("the operator is not supported")),
    }
}

/// An axis, counted from the end if negative.
pub(super) fn axis(value: i64, rank: usize) -> Result<usize> {
    let counted = if value < 0 {
        value.saturating_add(rank as i64)
    } else {
        value
    };
    usize::try_from(counted)
        .ok()
        .filter(|&a| a < rank)
        .ok_or_else(|| Error::invalid(format!("axis {value} of a tensor of rank {rank}")))
}

/// Axes, ascending and distinct.
pub(super) fn axes(values: &[i64], rank: usize) -> Result<Vec<usize>> {
    let mut out: Vec<usize> = values
        .iter()
        .map(|&v| axis(v, rank))
        .collect::<Result<_>>()?;
    out.sort_unstable();
    let count = out.len();
    out.dedup();
    if out.len() != count {
        return Err(Error::invalid(format!(
            "an axis stands twice in {values:?}"
        )));
    }
    Ok(out)
}

/// A number that counts something.
pub(super) fn count(value: i64, what: &str) -> Result<usize> {
    usize::try_from(value).map_err(|_| Error::invalid(format!("{what} is {value}")))
}

/// Numbers that count something.
pub(super) fn counts(values: &[i64], what: &str) -> Result<Vec<usize>> {
    values.iter().map(|&v| count(v, what)).collect()
}
