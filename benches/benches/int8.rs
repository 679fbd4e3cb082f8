//! Integer layers on each of the CPU backend's paths: operations a second, and which share of the
//! peak of the processor's tile unit that is.
//!
//! `cargo bench -p opt-benches --bench int8 -- [FILTER] [--onnxruntime PYTHON]`
//!
//! FILTER picks cases by a part of their name. `--onnxruntime` names a Python that has
//! `onnxruntime`, and times the same cases there, in the same run (`peers/int8_onnxruntime.py`).
//!
//! A case is one layer as it stands in a quantized network: bytes in, weights with a scale for
//! each output, requantization, bytes out; through a session, which copies its output. The best
//! of many runs counts, because other work on the machine only ever adds time.
//!
//! Cases named `weights` are products of floats by weights of 4 and 8 bits (`int8/weights.rs`).

#[path = "int8/weights.rs"]
mod weights;

use std::process::Command;
use std::time::{Duration, Instant};

use opt_core::ops::Window;
use opt_core::random::Philox;
use opt_core::{
    Backend, CompileSpec, DType, Graph, GraphBuilder, Result, Session, Tensor, TensorType, ValueId,
};
use opt_ndarray::{IntPath, NdarrayBackend};

/// How long a case runs.
const TIME: Duration = Duration::from_millis(300);

enum Layer {
    /// `[m, k] x [k, n]`
    Product { m: usize, n: usize, k: usize },
    /// Square kernels and images, as much padding as keeps the size at stride 1.
    Convolution {
        batch: usize,
        inputs: usize,
        outputs: usize,
        size: usize,
        kernel: usize,
        stride: usize,
    },
}

const CASES: [(&str, Layer); 8] = [
    ("matmul 1024x1024x1024", product(1024, 1024, 1024)),
    ("matmul 2048x2048x2048", product(2048, 2048, 2048)),
    ("matmul 1x4096x4096", product(1, 4096, 4096)),
    ("matmul 128x768x3072", product(128, 3072, 768)),
    ("matmul 128x3072x768", product(128, 768, 3072)),
    ("conv 3x3 64->64 56x56", convolution([64, 64, 56, 3, 1])),
    ("conv 3x3 256->256 14x14", convolution([256, 256, 14, 3, 1])),
    ("conv 7x7/2 3->64 224x224", convolution([3, 64, 224, 7, 2])),
];

const fn product(m: usize, n: usize, k: usize) -> Layer {
    Layer::Product { m, n, k }
}

const fn convolution([inputs, outputs, size, kernel, stride]: [usize; 5]) -> Layer {
    Layer::Convolution {
        batch: 1,
        inputs,
        outputs,
        size,
        kernel,
        stride,
    }
}

fn noise(dtype: DType, shape: &[usize], seed: u64) -> Result<Tensor> {
    let stream = Philox::new(seed);
    let (low, high) = dtype.int_range()?;
    let span = f64::from(high - low + 1);
    let len = shape.iter().product::<usize>() as u64;
    let data: Vec<f64> = (0..len)
        .map(|i| (stream.uniform(0, i) * span).floor() + f64::from(low))
        .collect();
    Tensor::from_f64s(dtype, shape, &data)
}

/// A scale and zero point for a whole tensor.
fn grid(b: &mut GraphBuilder, scale: f32, zero: u8) -> (ValueId, ValueId) {
    let scale = b.constant(Tensor::scalar(scale));
    (scale, b.constant(Tensor::scalar(zero)))
}

impl Layer {
    /// Multiplications and additions of a run.
    fn operations(&self) -> f64 {
        2.0 * match *self {
            Layer::Product { m, n, k } => (m * n * k) as f64,
            Layer::Convolution {
                batch,
                inputs,
                outputs,
                size,
                kernel,
                stride,
            } => {
                let pixels = size.div_ceil(stride).pow(2);
                (batch * inputs * outputs * pixels * kernel * kernel) as f64
            }
        }
    }

    /// A graph of the layer alone, and its input.
    fn graph(&self) -> Result<(Graph, Tensor)> {
        let (shape, weight, channel) = match *self {
            Layer::Product { m, n, k } => (vec![m, k], vec![k, n], 1),
            Layer::Convolution {
                batch,
                inputs,
                outputs,
                size,
                kernel,
                ..
            } => (
                vec![batch, inputs, size, size],
                vec![outputs, inputs, kernel, kernel],
                0,
            ),
        };
        let mut b = GraphBuilder::new("layer");
        let x = b.input("x", TensorType::new(DType::U8, shape.as_slice()))?;
        let (scale, zero) = grid(&mut b, 0.02, 128);
        let x = b.dequantize(x, scale, zero, None)?;
        let outputs = weight[channel];
        let w = b.constant(noise(DType::I8, &weight, 1)?);
        let scales: Vec<f32> = (0..outputs).map(|o| 0.01 + o as f32 * 1e-6).collect();
        let scales = b.constant(Tensor::new([outputs], scales)?);
        let zeros = b.constant(Tensor::zeros(DType::I8, [outputs])?);
        let w = b.dequantize(w, scales, zeros, Some(channel))?;
        let y = match *self {
            Layer::Product { .. } => b.matmul(x, w)?,
            Layer::Convolution { kernel, stride, .. } => {
                let window = Window::new(2).pad(kernel / 2).stride(stride);
                b.conv(x, w, None, window, 1)?
            }
        };
        let (scale, zero) = grid(&mut b, 1.0, 120);
        let y = b.quantize(y, scale, zero, None)?;
        b.output("y", y)?;
        Ok((b.finish()?, noise(DType::U8, &shape, 2)?))
    }
}

/// The best time of a run.
fn best(session: &mut dyn Session, inputs: &[Tensor]) -> Result<f64> {
    let mut outputs = Vec::new();
    let (start, mut best) = (Instant::now(), f64::INFINITY);
    while start.elapsed() < TIME {
        let run = Instant::now();
        session.run_into(inputs, &mut outputs)?;
        best = best.min(run.elapsed().as_secs_f64());
    }
    Ok(best)
}

/// Billions of operations that one core's tile unit does a second.
#[cfg(target_arch = "x86_64")]
fn peak() -> Option<f64> {
    opt_ndarray::amx_peak(0.2).map(|p| p / 1e9)
}

#[cfg(not(target_arch = "x86_64"))]
fn peak() -> Option<f64> {
    None
}

fn main() -> std::result::Result<(), Box<dyn std::error::Error>> {
    let (mut filter, mut python) = (String::new(), None);
    let mut arguments = std::env::args().skip(1);
    while let Some(argument) = arguments.next() {
        match argument.as_str() {
            "--onnxruntime" => python = arguments.next(),
            // What `cargo bench` adds.
            "--bench" => {}
            name => filter = name.to_string(),
        }
    }
    let peak = peak();
    match peak {
        Some(peak) => println!("peak of the tile unit of one core: {peak:.0} GOP/s"),
        None => println!("the processor has no tile unit"),
    }
    for (name, layer) in CASES.iter().filter(|(name, _)| name.contains(&filter)) {
        println!("{name}: {:.3} Gop", layer.operations() / 1e9);
        let (graph, x) = layer.graph()?;
        for path in [IntPath::Amx, IntPath::Vnni, IntPath::Portable] {
            if !path.is_available() {
                continue;
            }
            for threads in [1, 2] {
                // A minute for nothing.
                if path == IntPath::Portable && layer.operations() > 3e9 {
                    continue;
                }
                let backend = NdarrayBackend::new().threads(threads).int_path(path);
                let executable = backend.compile(&graph, &CompileSpec::new())?;
                let mut session = executable.session()?;
                let time = best(&mut *session, std::slice::from_ref(&x))?;
                let speed = layer.operations() / time / 1e9;
                let share = peak
                    .map(|p| format!(", {:4.1} % of the peak", 100.0 * speed / p / threads as f64))
                    .unwrap_or_default();
                let label = format!("{path:?}, {threads} threads");
                println!(
                    "  {label:22} {:9.3} ms {speed:7.0} GOP/s{share}",
                    time * 1e3
                );
            }
        }
    }
    weights::run(&filter)?;
    if let Some(python) = python {
        let script = concat!(env!("CARGO_MANIFEST_DIR"), "/peers/int8_onnxruntime.py");
        let status = Command::new(&python).args([script, &filter]).status()?;
        if !status.success() {
            return Err(format!("{python} {script} failed: {status}").into());
        }
    }
    Ok(())
}
