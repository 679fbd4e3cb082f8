//! Batch normalization in training with what it is joined with, against the same graph in `f64`,
//! which has other kernels and joins nothing.

use opt_core::autodiff::grad;
use opt_core::ops::{BatchNorm, UnaryOp};
use opt_core::{DType, Graph, GraphBuilder, Result, Tensor, TensorType, ValueId};

use super::fusion::{noise, run, steps};

/// Builds a graph in a dtype, with the batch normalizations' parameters as further inputs.
struct Net {
    b: GraphBuilder,
    dtype: DType,
    inputs: Vec<Tensor>,
    wanted: Vec<ValueId>,
    statistics: Vec<ValueId>,
}

impl Net {
    fn new(dtype: DType) -> Net {
        Net {
            b: GraphBuilder::new("net"),
            dtype,
            inputs: Vec::new(),
            wanted: Vec::new(),
            statistics: Vec::new(),
        }
    }

    fn input(&mut self, shape: &[usize], shift: f32) -> Result<ValueId> {
        let n = self.inputs.len();
        let values = noise(shape, n as u64 + 1).to_f64s();
        let values: Vec<f32> = values.into_iter().map(|v| v as f32 + shift).collect();
        self.inputs
            .push(Tensor::new(shape, values)?.cast(self.dtype));
        let id = self
            .b
            .input(&format!("x{n}"), TensorType::new(self.dtype, shape))?;
        self.wanted.push(id);
        Ok(id)
    }

    /// Of `x`, whose mean is not near 0.
    fn norm(&mut self, x: ValueId) -> Result<ValueId> {
        let c = self.b.type_of(x).shape[1].fixed()?;
        let [scale, bias] = [self.input(&[c], 1.5)?, self.input(&[c], 0.0)?];
        let [mean, var] = [self.input(&[c], 3.0)?, self.input(&[c], 2.0)?];
        self.wanted.truncate(self.wanted.len() - 2);
        let op = BatchNorm {
            epsilon: 1e-5,
            momentum: 0.1,
            training: true,
        };
        let outputs = self.b.node(op, &[x, scale, bias, mean, var])?;
        self.statistics.extend(&outputs[1..]);
        Ok(outputs[0])
    }

    /// The graph of `y`, the statistics and the gradients of a weighted sum of y.
    fn finish(mut self, y: ValueId) -> Result<(Graph, Vec<Tensor>)> {
        let shape = self.b.type_of(y).shape.fixed()?;
        let weights = self.input(&shape, 0.2)?;
        self.wanted.pop();
        let product = self.b.mul(y, weights)?;
        let loss = self.b.sum_all(product)?;
        let gradients = grad(&mut self.b, loss, &self.wanted)?;
        for (i, &v) in self.wanted.iter().enumerate() {
            let g = gradients.of(v)?;
            self.b.output(&format!("g{i}"), g)?;
        }
        self.b.output("y", y)?;
        for (i, &v) in self.statistics.iter().enumerate() {
            self.b.output(&format!("s{i}"), v)?;
        }
        Ok((self.b.finish()?, self.inputs))
    }
}

/// What surrounds the normalizations.
#[derive(Debug, Clone, Copy)]
enum Kind {
    Plain,
    Relu,
    /// A block with a shortcut, after a ReLU.
    Residual,
    /// A block whose shortcut is normalized too.
    Projection,
    /// As a block, with a shortcut that is computed after the normalization.
    Late,
    /// Two blocks, so that gradients are added.
    Blocks,
    /// What the normalization gives is read twice.
    Shared,
}

const KINDS: [Kind; 7] = [
    Kind::Plain,
    Kind::Relu,
    Kind::Residual,
    Kind::Projection,
    Kind::Late,
    Kind::Blocks,
    Kind::Shared,
];

fn graph(kind: Kind, shape: &[usize], dtype: DType) -> Result<(Graph, Vec<Tensor>)> {
    let mut net = Net::new(dtype);
    let x = net.input(shape, 4.0)?;
    let y = net.norm(x)?;
    let y = match kind {
        Kind::Plain => y,
        Kind::Relu => net.b.relu(y)?,
        Kind::Residual => {
            let start = net.b.relu(y)?;
            let y = net.b.mul_scalar(start, 1.5)?;
            let y = net.norm(y)?;
            let y = net.b.add(start, y)?;
            net.b.relu(y)?
        }
        Kind::Projection => {
            let z = net.b.mul(x, x)?;
            let z = net.norm(z)?;
            let y = net.b.add(y, z)?;
            net.b.relu(y)?
        }
        Kind::Late => {
            let start = net.b.relu(y)?;
            let y = net.norm(start)?;
            let shortcut = net.b.unary(UnaryOp::Tanh, start)?;
            let y = net.b.add(shortcut, y)?;
            net.b.relu(y)?
        }
        Kind::Blocks => {
            let mut y = net.b.relu(y)?;
            for _ in 0..2 {
                let z = net.b.mul(y, y)?;
                let z = net.norm(z)?;
                let z = net.b.add(z, y)?;
                y = net.b.relu(z)?;
            }
            y
        }
        Kind::Shared => {
            let z = net.b.relu(y)?;
            net.b.mul(y, z)?
        }
    };
    net.finish(y)
}

#[test]
fn joined_is_what_f64_has() {
    let shapes: [&[usize]; 5] = [
        &[3, 5, 7, 7],
        &[2, 4, 8, 9],
        &[17, 3],
        &[1, 2, 100, 130],
        &[4, 1, 16, 64],
    ];
    for kind in KINDS {
        for shape in shapes {
            let (single, inputs) = graph(kind, shape, DType::F32).unwrap();
            let (double, wide) = graph(kind, shape, DType::F64).unwrap();
            let found = run(&single, &inputs, 1, true);
            let expected = run(&double, &wide, 1, false);
            for (o, (a, b)) in found.iter().zip(&expected).enumerate() {
                let (a, b) = (a.to_f64s(), b.to_f64s());
                let scale = b.iter().fold(1.0f64, |m, x| m.max(x.abs()));
                for (a, b) in a.iter().zip(&b) {
                    let close = (a - b).abs() <= 1e-5 * scale;
                    assert!(close, "{kind:?} {shape:?} output {o}: {a} {b}");
                }
            }
            for threads in [2, 3] {
                let many = run(&single, &inputs, threads, true);
                for (a, b) in found.iter().zip(&many) {
                    assert_eq!(a.bytes().unwrap(), b.bytes().unwrap(), "{kind:?} {threads}");
                }
            }
        }
    }
}

#[test]
fn sums_and_relus_are_joined() {
    let of = |kind| {
        let (graph, _) = graph(kind, &[2, 3, 4, 4], DType::F32).unwrap();
        let mut names = steps(&graph);
        names.retain(|name| name.contains("norm"));
        names
    };
    assert_eq!(of(Kind::Plain), ["batch norm", "batch norm grad"]);
    assert_eq!(
        of(Kind::Relu),
        ["batch norm+relu", "relu grad+batch norm grad"]
    );
    assert_eq!(
        of(Kind::Blocks),
        [
            "batch norm+relu",
            "batch norm+add+relu",
            "batch norm+add+relu",
            "relu grad+batch norm grad",
            "add+relu grad+batch norm grad",
            "add+relu grad+batch norm grad",
        ]
    );
    assert_eq!(
        of(Kind::Projection),
        [
            "batch norm",
            "batch norm+add+relu",
            "relu grad+batch norm grad",
            "batch norm grad",
        ]
    );
    assert_eq!(
        of(Kind::Late)[..2],
        ["batch norm+relu", "batch norm+add+relu"]
    );
    // Read before the ReLU as well, it stays a step of its own.
    assert_eq!(of(Kind::Shared), ["batch norm", "batch norm grad"]);
}

#[test]
fn nan_stays_in_its_channel_and_is_not_lost() {
    let mut net = Net::new(DType::F32);
    let x = net.input(&[2, 2, 5], 0.0).unwrap();
    let y = net.norm(x).unwrap();
    net.b.output("y", y).unwrap();
    for (i, &v) in net.statistics.clone().iter().enumerate() {
        net.b.output(&format!("s{i}"), v).unwrap();
    }
    let graph = net.b.finish().unwrap();
    let mut values = net.inputs[0].to_vec::<f32>().unwrap();
    values[1] = f32::NAN;
    net.inputs[0] = Tensor::new([2, 2, 5], values).unwrap();
    let outputs = run(&graph, &net.inputs, 1, true);
    for (i, y) in outputs[0].to_f64s().iter().enumerate() {
        assert_eq!(y.is_nan(), i / 5 % 2 == 0, "entry {i}");
    }
    for statistic in &outputs[1..] {
        let found: Vec<bool> = statistic.to_f64s().iter().map(|v| v.is_nan()).collect();
        assert_eq!(found, [true, false]);
    }
}
