//! Products of floats by weights that stay packed, beside the same product in `f32` and the
//! memory bandwidth that bounds a single row.

use std::time::{Duration, Instant};

use opt_core::{
    Backend, CompileSpec, Context, DType, Graph, GraphBuilder, Pass, Result, Tensor, TensorType,
};
use opt_ndarray::NdarrayBackend;
use opt_quant::QuantizeWeights;

use super::{best, noise};

/// Inputs and outputs of the layer.
const SIZE: usize = 4096;

/// How a weight is stored, and bits of a weight with scales and zero points.
fn formats() -> [(&'static str, Option<QuantizeWeights>, f64); 5] {
    [
        ("f32", None, 32.0),
        ("int8, a channel", Some(QuantizeWeights::int8()), 8.0),
        (
            "int4, groups of 128",
            Some(QuantizeWeights::int4(128)),
            4.0 + 64.0 / 128.0,
        ),
        (
            "int4, groups of 32",
            Some(QuantizeWeights::int4(32)),
            4.0 + 64.0 / 32.0,
        ),
        (
            "uint4, groups of 32",
            Some(QuantizeWeights::int4(32).asymmetric()),
            4.0 + 64.0 / 32.0,
        ),
    ]
}

fn graph(rows: usize) -> Result<(Graph, Tensor)> {
    let mut b = GraphBuilder::new("layer");
    let x = b.input("x", TensorType::new(DType::F32, [rows, SIZE]))?;
    let content = noise(DType::I8, &[SIZE, SIZE], 1)?.cast(DType::F32);
    let w = b.variable("w", content)?;
    let y = b.matmul(x, w)?;
    b.output("y", y)?;
    let x = noise(DType::I8, &[rows, SIZE], 2)?.cast(DType::F32);
    Ok((b.finish()?, x))
}

/// Bytes a second that threads read when they copy memory, each its own.
fn copy_bandwidth(threads: usize) -> f64 {
    const BYTES: usize = 64 << 20;
    std::thread::scope(|scope| {
        let copies: Vec<_> = (0..threads)
            .map(|_| {
                scope.spawn(|| {
                    // Not zeros, whose pages come only when they are written.
                    let (from, mut to) = (vec![1u8; BYTES], vec![2u8; BYTES]);
                    let (start, mut best) = (Instant::now(), f64::INFINITY);
                    let mut runs = 0;
                    while runs < 5 || start.elapsed() < Duration::from_millis(300) {
                        runs += 1;
                        let run = Instant::now();
                        to.copy_from_slice(std::hint::black_box(&from));
                        std::hint::black_box(&mut to);
                        best = best.min(run.elapsed().as_secs_f64());
                    }
                    BYTES as f64 / best
                })
            })
            .collect();
        let each = copies.into_iter().map(|c| c.join().unwrap_or(0.0));
        each.sum()
    })
}

/// Prints the cases whose name contains a text.
pub(super) fn run(filter: &str) -> Result<()> {
    for rows in [1, 4, 128] {
        let name = format!("weights {rows}x{SIZE}x{SIZE}");
        if !name.contains(filter) {
            continue;
        }
        println!("{name}:");
        for threads in [1, 2] {
            let copy = copy_bandwidth(threads);
            println!("  {threads} threads: a copy reads {:.1} GB/s", copy / 1e9);
            for (format, pass, bits) in formats() {
                let (mut graph, x) = graph(rows)?;
                if let Some(pass) = pass {
                    graph = pass.apply(graph, &mut Context::new())?.0;
                }
                let backend = NdarrayBackend::new().threads(threads);
                let executable = backend.compile(&graph, &CompileSpec::new())?;
                let mut session = executable.session()?;
                let time = best(&mut *session, std::slice::from_ref(&x))?;
                let read = (SIZE * SIZE) as f64 * bits / 8.0 / time;
                println!(
                    "    {format:20} {:9.3} ms {:5.1} GB/s, {:3.0} % of a copy",
                    time * 1e3,
                    read / 1e9,
                    100.0 * read / copy
                );
            }
        }
    }
    Ok(())
}
