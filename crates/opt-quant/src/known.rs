//! Ranges of values that the graph itself tells.

use std::collections::{BTreeMap, BTreeSet};

use opt_core::ops::{Binary, BinaryOp, Op, PadMode, ReduceOp, UnaryOp};
use opt_core::{DType, Graph, Node, ValueId};

/// Bounds of a value; infinite where nothing is known.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Bounds {
    pub(crate) low: f64,
    pub(crate) high: f64,
}

const ANY: Bounds = Bounds::new(f64::NEG_INFINITY, f64::INFINITY);

/// Constants with more entries than this are not looked through.
const MOST_ENTRIES: usize = 1 << 16;

impl Bounds {
    pub(crate) const fn new(low: f64, high: f64) -> Bounds {
        Bounds { low, high }
    }

    /// The range, if it has two ends.
    pub(crate) fn ends(self) -> Option<(f64, f64)> {
        (self.low.is_finite() && self.high.is_finite()).then_some((self.low, self.high))
    }

    fn or(self, other: Bounds) -> Bounds {
        Bounds::new(self.low.min(other.low), self.high.max(other.high))
    }

    /// Those of a function that does not decrease.
    fn rising(self, f: impl Fn(f64) -> f64) -> Bounds {
        Bounds::new(f(self.low), f(self.high))
    }

    /// The smallest and largest of some numbers that bound a result; nothing is known if one is NaN
    /// (infinity less infinity, or times 0).
    fn around(ends: &[f64]) -> Bounds {
        if ends.iter().any(|v| v.is_nan()) {
            return ANY;
        }
        let all = |f: fn(f64, f64) -> f64, start| ends.iter().copied().fold(start, f);
        Bounds::new(
            all(f64::min, f64::INFINITY),
            all(f64::max, f64::NEG_INFINITY),
        )
    }
}

/// The bounds of all values of a graph, from the functions that make them and from what is `given` of
/// some. They hold for every input.
pub(crate) fn known(
    graph: &Graph,
    given: &BTreeMap<ValueId, (f64, f64)>,
) -> BTreeMap<ValueId, Bounds> {
    let mut out: BTreeMap<ValueId, Bounds> = BTreeMap::new();
    for (&value, &(low, high)) in given {
        out.insert(value, Bounds::new(low, high));
    }
    for &value in graph.inputs() {
        let bounds = source(graph, value);
        if bounds != ANY {
            out.entry(value).or_insert(bounds);
        }
    }
    let assigned: BTreeSet<ValueId> = graph
        .nodes()
        .filter(|(_, node)| matches!(node.op(), Op::Assign(_)))
        .map(|(_, node)| node.inputs()[0])
        .collect();
    for (_, node) in graph.nodes() {
        // Sums of products are not bounded here, and their weights are large.
        if matches!(
            node.op(),
            Op::MatMul(_) | Op::Conv(_) | Op::ConvTranspose(_)
        ) {
            continue;
        }
        let bounds_of = |v: &ValueId| match out.get(v) {
            Some(&bounds) => bounds,
            None if assigned.contains(v) => ANY,
            None => source(graph, *v),
        };
        let inputs: Vec<Bounds> = node.inputs().iter().map(bounds_of).collect();
        let bounds = of(graph, node, &inputs);
        for &v in node.outputs() {
            if bounds != ANY {
                out.entry(v).or_insert(bounds);
            }
        }
    }
    out
}

/// The bounds of an input, by its dtype, or of a parameter or constant, by its content.
fn source(graph: &Graph, value: ValueId) -> Bounds {
    let value = graph.value(value);
    match (value.tensor(), value.ty().dtype) {
        (Some(tensor), _) if (1..=MOST_ENTRIES).contains(&tensor.len()) => {
            Bounds::around(&tensor.to_f64s())
        }
        (_, DType::Bool) => Bounds::new(0.0, 1.0),
        (_, DType::U8) => Bounds::new(0.0, 255.0),
        (_, DType::I8) => Bounds::new(-128.0, 127.0),
        _ => ANY,
    }
}

/// The bounds of a node's outputs.
fn of(graph: &Graph, node: &Node, inputs: &[Bounds]) -> Bounds {
    let Some(&x) = inputs.first() else {
        return ANY;
    };
    match node.op() {
        Op::Unary(op) => unary(op.op, x),
        Op::Binary(Binary { op }) => binary(*op, node, x, inputs[1]),
        Op::Softmax(_) => Bounds::new(0.0, 1.0),
        Op::LogSoftmax(_) => Bounds::new(f64::NEG_INFINITY, 0.0),
        Op::Where(_) => inputs[1].or(inputs[2]),
        Op::Concat(_) => inputs[1..].iter().fold(x, |all, &b| all.or(b)),
        Op::Cast(op) if op.dtype.is_float() => x,
        Op::Reduce(op) if matches!(op.op, ReduceOp::Mean | ReduceOp::Max | ReduceOp::Min) => x,
        // Padding counts as zeros.
        Op::AvgPool(_) => x.or(Bounds::new(0.0, 0.0)),
        Op::Pad(op) => match op.mode {
            PadMode::Constant(value) => x.or(Bounds::new(value, value)),
            _ => x,
        },
        Op::Reshape(_)
        | Op::Transpose(_)
        | Op::Squeeze(_)
        | Op::Unsqueeze(_)
        | Op::Slice(_)
        | Op::Split(_)
        | Op::Expand(_)
        | Op::Tile(_)
        | Op::Identity(_)
        | Op::StopGradient(_)
        | Op::MaxPool(_)
        | Op::Gather(_)
        | Op::GatherElements(_)
            if graph.type_of(node.outputs()[0]).dtype.is_float() =>
        {
            x
        }
        _ => ANY,
    }
}

fn unary(op: UnaryOp, x: Bounds) -> Bounds {
    let least = |low: f64| Bounds::new(low, x.high.max(0.0));
    match op {
        UnaryOp::Relu => x.rising(|v| v.max(0.0)),
        UnaryOp::Sigmoid => Bounds::new(0.0, 1.0),
        UnaryOp::HardSigmoid { alpha, beta } if alpha >= 0.0 => {
            let at = |v: f64| if alpha == 0.0 { beta } else { alpha * v + beta };
            x.rising(|v| at(v).clamp(0.0, 1.0))
        }
        UnaryOp::HardSigmoid { .. } => Bounds::new(0.0, 1.0),
        UnaryOp::Tanh
        | UnaryOp::Erf
        | UnaryOp::Sign
        | UnaryOp::Sin
        | UnaryOp::Cos
        | UnaryOp::Softsign => Bounds::new(-1.0, 1.0),
        UnaryOp::Atan => Bounds::new(-std::f64::consts::FRAC_PI_2, std::f64::consts::FRAC_PI_2),
        UnaryOp::Neg => Bounds::new(-x.high, -x.low),
        UnaryOp::Abs => {
            let far = x.low.abs().max(x.high.abs());
            let near = if x.low > 0.0 || x.high < 0.0 {
                x.low.abs().min(x.high.abs())
            } else {
                0.0
            };
            Bounds::new(near, far)
        }
        UnaryOp::Floor => x.rising(f64::floor),
        UnaryOp::Ceil => x.rising(f64::ceil),
        UnaryOp::Round => x.rising(f64::round_ties_even),
        UnaryOp::Exp | UnaryOp::Sqrt | UnaryOp::Softplus => Bounds::new(0.0, f64::INFINITY),
        UnaryOp::LeakyRelu { alpha } if (0.0..=1.0).contains(&alpha) => x.rising(|v| {
            if v < 0.0 && alpha > 0.0 {
                alpha * v
            } else {
                v.max(0.0)
            }
        }),
        UnaryOp::Elu { alpha } if alpha >= 0.0 => least(-alpha),
        UnaryOp::Selu => Bounds::new(-1.7581, x.high.max(0.0) * 1.0508),
        // The least values of these functions, rounded away from zero.
        UnaryOp::Gelu { .. } => least(-0.171),
        UnaryOp::Silu => least(-0.2785),
        UnaryOp::HardSwish => least(-0.375_001),
        UnaryOp::Mish => least(-0.3089),
        _ => ANY,
    }
}

fn binary(op: BinaryOp, node: &Node, a: Bounds, b: Bounds) -> Bounds {
    match op {
        BinaryOp::Max => Bounds::new(a.low.max(b.low), a.high.max(b.high)),
        BinaryOp::Min => Bounds::new(a.low.min(b.low), a.high.min(b.high)),
        BinaryOp::Add => Bounds::around(&[a.low + b.low, a.high + b.high]),
        BinaryOp::Sub => Bounds::around(&[a.low - b.high, a.high - b.low]),
        BinaryOp::Mul if node.inputs()[0] == node.inputs()[1] => {
            let square = unary(UnaryOp::Abs, a);
            square.rising(|v| v * v)
        }
        BinaryOp::Mul => {
            // Values are finite: 0 times an unbounded one is 0.
            let product = |a: f64, b: f64| if a == 0.0 || b == 0.0 { 0.0 } else { a * b };
            let (low, high) = (|v| product(a.low, v), |v| product(a.high, v));
            Bounds::around(&[low(b.low), low(b.high), high(b.low), high(b.high)])
        }
        BinaryOp::Div if b.low > 0.0 || b.high < 0.0 => {
            let ends = [
                a.low / b.low,
                a.low / b.high,
                a.high / b.low,
                a.high / b.high,
            ];
            Bounds::around(&ends)
        }
        _ => ANY,
    }
}

#[cfg(test)]
mod tests {
    use opt_core::backend::CompileSpec;
    use opt_core::ops::Unary;
    use opt_core::{GraphBuilder, Tensor, TensorType};
    use opt_ndarray::NdarrayBackend;
    use proptest::prelude::*;

    use super::*;

    const FUNCTIONS: [UnaryOp; 27] = [
        UnaryOp::Neg,
        UnaryOp::Abs,
        UnaryOp::Sign,
        UnaryOp::Exp,
        UnaryOp::Floor,
        UnaryOp::Ceil,
        UnaryOp::Round,
        UnaryOp::Sin,
        UnaryOp::Cos,
        UnaryOp::Atan,
        UnaryOp::Erf,
        UnaryOp::Relu,
        UnaryOp::LeakyRelu { alpha: 0.1 },
        UnaryOp::LeakyRelu { alpha: 0.0 },
        UnaryOp::Elu { alpha: 1.5 },
        UnaryOp::Selu,
        UnaryOp::Sigmoid,
        UnaryOp::HardSigmoid {
            alpha: 0.2,
            beta: 0.5,
        },
        UnaryOp::HardSigmoid {
            alpha: 0.0,
            beta: 0.5,
        },
        UnaryOp::HardSigmoid {
            alpha: -0.3,
            beta: 0.4,
        },
        UnaryOp::Tanh,
        UnaryOp::Gelu { tanh: false },
        UnaryOp::Gelu { tanh: true },
        UnaryOp::Silu,
        UnaryOp::HardSwish,
        UnaryOp::Mish,
        UnaryOp::Softsign,
    ];

    const PAIRS: [BinaryOp; 6] = [
        BinaryOp::Add,
        BinaryOp::Sub,
        BinaryOp::Mul,
        BinaryOp::Div,
        BinaryOp::Max,
        BinaryOp::Min,
    ];

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(24))]
        /// Whatever the inputs within their bounds, results lie within theirs.
        #[test]
        fn bounds_hold(
            ends in (-6.0..6.0f64, -6.0..6.0f64),
            other in (-3.0..3.0f64, -3.0..3.0f64),
            shares in proptest::collection::vec(0.0..=1.0f64, 8),
            bounded in any::<bool>(),
        ) {
            let sorted = |(a, b): (f64, f64)| (a.min(b), a.max(b));
            let (one, two) = (sorted(ends), sorted(other));
            let values = |(low, high): (f64, f64)| -> Vec<f32> {
                let mut out: Vec<f32> = shares.iter().map(|s| (low + (high - low) * s) as f32).collect();
                out.extend([low as f32, high as f32]);
                out
            };
            let mut g = GraphBuilder::new("functions");
            let x = g.input("x", TensorType::new(DType::F32, [10])).unwrap();
            let y = g.input("y", TensorType::new(DType::F32, [10])).unwrap();
            for (i, op) in FUNCTIONS.into_iter().enumerate() {
                let f = g.op(Unary { op }, &[x]).unwrap();
                g.output(&format!("u{i}"), f).unwrap();
            }
            for (i, op) in PAIRS.into_iter().enumerate() {
                let f = g.op(Binary { op }, &[x, y]).unwrap();
                g.output(&format!("b{i}"), f).unwrap();
            }
            let square = g.mul(x, x).unwrap();
            g.output("square", square).unwrap();
            let graph = g.finish().unwrap();
            let mut given = BTreeMap::from([(x, one), (y, two)]);
            if !bounded {
                given.clear();
            }
            let bounds = known(&graph, &given);
            let backend = NdarrayBackend::new();
            let spec = CompileSpec::new();
            let mut session = opt_core::Backend::compile(&backend, &graph, &spec).unwrap().session().unwrap();
            let inputs = [one, two].map(|r| Tensor::new([10], values(r)).unwrap());
            for ((name, v), tensor) in graph.named_outputs().iter().zip(session.run(&inputs).unwrap()) {
                let b = bounds.get(v).copied().unwrap_or(ANY);
                for found in tensor.to_f64s() {
                    let room = 1e-5 * (1.0 + found.abs());
                    prop_assert!(
                        !found.is_finite() || (b.low - room <= found && found <= b.high + room),
                        "{} of {:?}: {} outside {:?}", name, graph.producer(*v).unwrap().1.op(), found, b
                    );
                }
            }
        }
    }

    #[test]
    fn clips_are_known_through_pools_and_sums() {
        let mut g = GraphBuilder::new("clips");
        let x = g
            .input("x", TensorType::new(DType::F32, [1, 2, 4, 4]))
            .unwrap();
        let zero = g.constant(Tensor::scalar(0f32));
        let six = g.constant(Tensor::scalar(6f32));
        let low = g.maximum(x, zero).unwrap();
        let relu6 = g.minimum(low, six).unwrap();
        let sum = g.add(relu6, relu6).unwrap();
        let flat = g.reshape(sum, [1, 32]).unwrap();
        let shares = g.softmax(flat, 1).unwrap();
        let raw = g.input("raw", TensorType::new(DType::U8, [3])).unwrap();
        let pixels = g.cast(raw, DType::F32).unwrap();
        for (name, v) in [("flat", flat), ("shares", shares), ("pixels", pixels)] {
            g.output(name, v).unwrap();
        }
        let graph = g.finish().unwrap();
        let bounds = known(&graph, &BTreeMap::new());
        assert_eq!(bounds.get(&x), None);
        assert_eq!(bounds[&low].ends(), None);
        assert_eq!(bounds[&low].low, 0.0);
        assert_eq!(bounds[&relu6].ends(), Some((0.0, 6.0)));
        assert_eq!(bounds[&flat].ends(), Some((0.0, 12.0)));
        assert_eq!(bounds[&shares].ends(), Some((0.0, 1.0)));
        assert_eq!(bounds[&pixels].ends(), Some((0.0, 255.0)));
    }
}
