//! Outputs and gradients equal PyTorch's, for the rules where conventions differ: kinks, ties,
//! zeros, broadcasting, masks. `xtask/oracle/gradients.py` makes the golden file.

use opt_core::ops::{Attention, Binary, BinaryOp, FakeQuantize, ReduceOp, UnaryOp};
use opt_core::{DType, GraphBuilder, Result, Tensor, ValueId};
use serde_json::Value;

use super::values;
use crate::{Case, Check};

const GOLDEN: &str = include_str!("../../tests/golden/gradients.json");

/// The cases of the golden file.
///
/// # Panics
/// If the file is not what the script writes.
pub fn cases() -> Vec<Case> {
    let file: Value = serde_json::from_str(GOLDEN).expect("the golden file is JSON");
    let list = file.as_array().expect("a list of cases");
    list.iter()
        .enumerate()
        .flat_map(|(i, c)| case(i, c))
        .collect()
}

/// A case for the output and one for the gradients.
fn case(index: usize, golden: &Value) -> Vec<Case> {
    let op = golden["op"].as_str().expect("a name");
    let causal = golden["attributes"]["causal"] == true;
    let all = |field: &str| -> Vec<Tensor> {
        let list = golden[field].as_array().expect(field);
        list.iter().map(tensor).collect()
    };
    let (mut inputs, mut gradients) = (all("inputs"), all("gradients"));
    if op == "FakeQuantize" {
        // PyTorch's scale and zero point have shape [1].
        for t in inputs[1..].iter_mut().chain(&mut gradients[1..]) {
            *t = t.reshape([]).expect("one entry");
        }
    }
    let build = |b: &mut GraphBuilder, x: &[ValueId]| apply(op, causal, b, x);
    let name = format!("golden/{index} {op}");
    let cotangent = tensor(&golden["cotangent"]);
    let mut backward = values(
        &format!("{name} gradient"),
        inputs.clone(),
        cotangent,
        gradients,
        build,
    );
    // PyTorch computes some constants in f32.
    if let Check::Outputs { tolerance, .. } = &mut backward.check {
        *tolerance = 1e-6;
    }
    let forward = Case::outputs(
        format!("{name} output"),
        super::graph(op, &inputs, build),
        inputs,
        vec![tensor(&golden["output"])],
        1e-6,
    );
    vec![forward, backward]
}

fn tensor(golden: &Value) -> Tensor {
    let dtype = DType::ALL
        .into_iter()
        .find(|d| golden["dtype"] == d.to_string());
    let shape: Vec<usize> = list(&golden["shape"], |v| v.as_u64().map(|n| n as usize));
    let data: Vec<f64> = list(&golden["data"], |v| match v.as_str() {
        Some(text) => text.parse().ok(),
        None => v.as_f64(),
    });
    Tensor::from_f64s(dtype.expect("a dtype"), shape, &data).expect("as many entries as the shape")
}

fn list<T>(value: &Value, parse: impl Fn(&Value) -> Option<T>) -> Vec<T> {
    let items = value.as_array().expect("a list").iter();
    items.map(|v| parse(v).expect("a number")).collect()
}

fn apply(op: &str, causal: bool, b: &mut GraphBuilder, x: &[ValueId]) -> Result<ValueId> {
    use UnaryOp::*;
    let unary = match op {
        "Abs" => Abs,
        "Sign" => Sign,
        "Floor" => Floor,
        "Round" => Round,
        "Relu" => Relu,
        "LeakyRelu" => LeakyRelu { alpha: 0.01 },
        "Elu" => Elu { alpha: 0.7 },
        "Selu" => Selu,
        "Sigmoid" => Sigmoid,
        "HardSigmoid" => HardSigmoid {
            alpha: 1.0 / 6.0,
            beta: 0.5,
        },
        "Tanh" => Tanh,
        "Gelu" => Gelu { tanh: false },
        "GeluTanh" => Gelu { tanh: true },
        "Silu" => Silu,
        "HardSwish" => HardSwish,
        "Mish" => Mish,
        "Softplus" => Softplus,
        "Softsign" => Softsign,
        "Erf" => Erf,
        "Expm1" => Expm1,
        "ReduceMax" => return b.reduce(ReduceOp::Max, x[0], &[1], false),
        "ReduceMin" => return b.reduce(ReduceOp::Min, x[0], &[0], false),
        "ReduceProd" => return b.reduce(ReduceOp::Prod, x[0], &[1], false),
        "ReduceMean" => return b.mean(x[0], &[0], false),
        "Softmax" => return b.softmax(x[0], 1),
        "LogSoftmax" => return b.log_softmax(x[0], 1),
        "CumSum" => return b.cumsum(x[0], 1),
        "TopK" => return Ok(b.top_k(x[0], 2, 1)?.0),
        "Where" => return b.select(x[0], x[1], x[2]),
        "SoftmaxCrossEntropy" => return b.softmax_cross_entropy(x[0], x[1]),
        "Attention" => {
            let scale = None;
            return b.op(Attention { scale, causal }, x);
        }
        "FakeQuantize" => {
            let op = FakeQuantize {
                low: -8,
                high: 7,
                axis: None,
            };
            return b.op(op, x);
        }
        _ => return binary(op, b, x),
    };
    b.unary(unary, x[0])
}

fn binary(op: &str, b: &mut GraphBuilder, x: &[ValueId]) -> Result<ValueId> {
    let op = match op {
        "Max" => BinaryOp::Max,
        "Min" => BinaryOp::Min,
        "Div" => BinaryOp::Div,
        "Mul" => BinaryOp::Mul,
        "Mod" => BinaryOp::Mod,
        "Pow" => BinaryOp::Pow,
        "PRelu" => BinaryOp::PRelu,
        _ => panic!("the golden file has the op {op}, which no case knows"),
    };
    b.op(Binary { op }, x)
}
