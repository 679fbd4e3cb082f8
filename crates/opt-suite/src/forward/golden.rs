//! Outputs equal PyTorch's, in `f64` and in `f32`; `xtask/oracle/forward.py` makes the golden
//! file.

use opt_core::ops::{
    AvgPool, BatchNorm, Conv, ConvTranspose, Direction, GroupNorm, Gru, InstanceNorm, Lstm,
    MaxPool, Op, RmsNorm, Window,
};
use opt_core::{DType, GraphBuilder, Result, Tensor, TensorType};
use serde_json::Value;

use crate::Case;

const GOLDEN: &str = include_str!("../../tests/golden/forward.json");

/// The cases of the golden file.
///
/// # Panics
/// If the file is not what the script writes.
pub fn cases() -> Vec<Case> {
    let file: Value = serde_json::from_str(GOLDEN).expect("the golden file is JSON");
    let list = file.as_array().expect("a list of cases");
    let both = |golden| [(DType::F64, 1e-10), (DType::F32, 1e-5)].map(|(d, t)| case(golden, d, t));
    list.iter().flat_map(both).collect()
}

/// The ops of the golden file with their names and inputs, in `f64`.
pub(crate) fn listed() -> Vec<(String, Op, Vec<Tensor>)> {
    let file: Value = serde_json::from_str(GOLDEN).expect("the golden file is JSON");
    let one = |golden: &Value| {
        let name = golden["op"].as_str().expect("a name").to_string();
        let inputs = golden["inputs"].as_array().expect("inputs").iter();
        let inputs: Vec<Tensor> = inputs.map(|t| tensor(t, DType::F64)).collect();
        let op = op(&name, inputs[0].rank());
        (name, op, inputs)
    };
    file.as_array().expect("a list").iter().map(one).collect()
}

fn case(golden: &Value, dtype: DType, tolerance: f64) -> Case {
    let name = golden["op"].as_str().expect("a name");
    let all = |field: &str| -> Vec<Tensor> {
        let list = golden[field].as_array().expect(field);
        list.iter().map(|t| tensor(t, dtype)).collect()
    };
    let (inputs, expected) = (all("inputs"), all("outputs"));
    let make = || -> Result<_> {
        let mut b = GraphBuilder::new(name);
        let mut ids = Vec::new();
        for (i, t) in inputs.iter().enumerate() {
            ids.push(b.input(&format!("x{i}"), TensorType::new(t.dtype(), t.shape()))?);
        }
        let rank = inputs[0].rank();
        for (i, v) in b.node(op(name, rank), &ids)?.into_iter().enumerate() {
            if i < expected.len() {
                b.output(&format!("y{i}"), v)?;
            }
        }
        b.finish()
    };
    let graph = make().unwrap_or_else(|e| panic!("{name}: {e}"));
    Case::outputs(
        format!("{name} {dtype}"),
        graph,
        inputs,
        expected,
        tolerance,
    )
}

fn tensor(golden: &Value, dtype: DType) -> Tensor {
    let shape: Vec<usize> = golden["shape"]
        .as_array()
        .expect("a shape")
        .iter()
        .map(|d| d.as_u64().expect("a size") as usize)
        .collect();
    let data: Vec<f64> = golden["data"]
        .as_array()
        .expect("data")
        .iter()
        .map(|d| d.as_f64().expect("a number"))
        .collect();
    Tensor::from_f64s(dtype, shape, &data).expect("as many entries as the shape has")
}

/// The number after a word of a case's name.
fn after(name: &str, word: &str) -> Option<usize> {
    let mut words = name.split(' ').skip_while(|w| *w != word);
    words.nth(1)?.parse().ok()
}

/// The op that a case's name describes, for an input of a rank.
fn op(name: &str, rank: usize) -> Op {
    let has = |word: &str| name.split(' ').any(|w| w == word);
    let spatial = rank.saturating_sub(2);
    let number = |word: &str, default: usize| after(name, word).unwrap_or(default);
    let window = |stride: usize| {
        Window::new(spatial)
            .stride(number("stride", stride))
            .pad(number("pad", 0))
            .dilation(number("dilation", 1))
    };
    let epsilon = 1e-5;
    let kind = name.split(' ').next().expect("a word");
    let size = number(kind, 0);
    let kernel = std::iter::repeat_n(size, spatial).collect();
    let direction = match has("bidirectional") {
        true => Direction::Bidirectional,
        false => Direction::Forward,
    };
    match kind {
        "conv1d" | "conv2d" | "conv3d" => Conv {
            window: window(1),
            groups: number("groups", 1),
        }
        .into(),
        "conv_transpose1d" | "conv_transpose2d" => ConvTranspose {
            window: window(1),
            groups: number("groups", 1),
            output_padding: std::iter::repeat_n(number("output", 0), spatial).collect(),
        }
        .into(),
        "max_pool" => MaxPool {
            kernel,
            window: window(size),
            ceil_mode: has("ceil"),
        }
        .into(),
        "avg_pool" => AvgPool {
            kernel,
            window: window(size),
            ceil_mode: has("ceil"),
            count_include_pad: !has("exclude"),
        }
        .into(),
        "batch_norm" => BatchNorm {
            epsilon,
            momentum: 0.1,
            training: has("train"),
        }
        .into(),
        "group_norm" => GroupNorm {
            groups: size,
            epsilon,
        }
        .into(),
        "instance_norm" => InstanceNorm { epsilon }.into(),
        "layer_norm" => opt_core::ops::LayerNorm {
            axis: rank - size,
            epsilon,
        }
        .into(),
        "rms_norm" => RmsNorm {
            axis: rank - size,
            epsilon,
        }
        .into(),
        "lstm" => Lstm {
            hidden: 5,
            direction,
            initial: false,
        }
        .into(),
        "gru" => Gru {
            hidden: 5,
            direction,
            initial: false,
            linear_before_reset: true,
        }
        .into(),
        other => panic!("the script has an op `{other}` that the suite does not know"),
    }
}
