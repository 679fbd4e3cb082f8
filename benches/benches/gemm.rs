//! Products of two `f32` matrices on the CPU backend, beside PyTorch's.
//!
//! `cargo bench -p opt-benches --bench gemm -- [FILTER] [--torch PYTHON] [--seconds S]`
//!
//! FILTER picks cases by a part of their name. `--torch` names a Python that has PyTorch, and
//! times the same products there, in turn with this library's (`peers/gemm_torch.py`).
//!
//! A case is one product of two inputs, without the copies that a session makes of its outputs;
//! `^T` marks an operand that lies transposed in memory. A case with a constant right operand,
//! which is packed once, has `weights` in its name; PyTorch has no such thing and gets the plain
//! product. The best of many runs counts, because other work on the machine only ever adds time.

use std::io::{BufRead, BufReader, Write};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use opt_core::random::Philox;
use opt_core::{
    Backend, CompileSpec, DType, Executable, GraphBuilder, ProfileOptions, Result, Tensor,
    TensorType,
};
use opt_ndarray::NdarrayBackend;

/// How often this library and the other one take turns at a case.
const ROUNDS: usize = 3;

#[derive(Clone, Copy)]
struct Case {
    group: &'static str,
    m: usize,
    n: usize,
    k: usize,
    trans_a: bool,
    trans_b: bool,
    weights: bool,
}

impl Case {
    fn name(&self) -> String {
        let Case { m, n, k, .. } = self;
        let mark = |on, mark: &'static str| if on { mark } else { "" };
        format!(
            "{}: {m}x{k}{} * {k}x{n}{}{}",
            self.group,
            mark(self.trans_a, "^T"),
            mark(self.trans_b, "^T"),
            mark(self.weights, " weights")
        )
    }

    fn gflop(&self) -> f64 {
        2e-9 * (self.m * self.n * self.k) as f64
    }

    /// An executable of the product alone, and its inputs.
    fn compile(&self, threads: usize) -> Result<(Arc<dyn Executable>, Vec<Tensor>)> {
        let shape = |rows, cols, trans| if trans { [cols, rows] } else { [rows, cols] };
        let a = noise(&shape(self.m, self.k, self.trans_a), 1)?;
        let b = noise(&shape(self.k, self.n, self.trans_b), 2)?;
        let mut builder = GraphBuilder::new("product");
        let x = builder.input("a", TensorType::new(DType::F32, a.shape()))?;
        let (y, inputs) = if self.weights {
            (builder.constant(b), vec![a])
        } else {
            let ty = TensorType::new(DType::F32, b.shape());
            (builder.input("b", ty)?, vec![a, b])
        };
        let out = builder.matmul_t(x, y, self.trans_a, self.trans_b)?;
        builder.output("out", out)?;
        let backend = NdarrayBackend::new().threads(threads);
        let executable = backend.compile(&builder.finish()?, &CompileSpec::new())?;
        Ok((executable, inputs))
    }
}

/// Products `[m, k] * [k, n]` of what the group's name says, with which operands transposed.
fn cases() -> Vec<Case> {
    let mut all = Vec::new();
    let mut add = |group, m, n, k, trans: &[(bool, bool)], weights| {
        all.extend(trans.iter().map(|&(trans_a, trans_b)| Case {
            group,
            m,
            n,
            k,
            trans_a,
            trans_b,
            weights,
        }));
    };
    let plain = [(false, false)];
    let training = [(false, false), (false, true), (true, false)];
    let every = [(false, false), (false, true), (true, false), (true, true)];
    for (m, n, k) in [(1024, 128, 128), (1024, 512, 128), (1024, 128, 512)] {
        add("encoder", m, n, k, &[(false, false), (false, true)], false);
    }
    for (m, n) in [(128, 128), (128, 512), (512, 128)] {
        add("encoder", m, n, 1024, &[(true, false)], false);
    }
    add("mlp", 32, 128, 784, &training[..2], false);
    add("mlp", 784, 128, 32, &training[2..], false);
    add("mlp", 32, 10, 128, &training, false);
    for (m, n, k) in [
        (64, 3136, 64),
        (256, 3136, 64),
        (512, 196, 1024),
        (512, 49, 2048),
    ] {
        add("resnet50", m, n, k, &plain, false);
    }
    for (m, n, k) in [(128, 384, 384), (128, 1536, 384), (128, 384, 1536)] {
        add("minilm", m, n, k, &plain, true);
    }
    for size in [64, 256, 1024] {
        add("square", size, size, size, &every, false);
    }
    add("square", 2048, 2048, 2048, &plain, false);
    for (n, k) in [(1024, 1024), (4096, 1024)] {
        add("one row", 1, n, k, &training[..2], false);
        add("one row", 1, n, k, &plain, true);
    }
    add("four rows", 4, 1024, 1024, &training[..2], false);
    add(
        "one column",
        4096,
        1,
        1024,
        &[(false, false), (true, false)],
        false,
    );
    add("tall", 65536, 16, 64, &plain, false);
    add("flat", 16, 16, 65536, &every[..3], false);
    all
}

fn noise(shape: &[usize], seed: u64) -> Result<Tensor> {
    let stream = Philox::new(seed);
    let len = shape.iter().product::<usize>() as u64;
    let data: Vec<f32> = (0..len).map(|i| stream.uniform(0, i) as f32).collect();
    Tensor::new(shape, data)
}

/// The best time of the product in seconds.
fn best(executable: &dyn Executable, inputs: &[Tensor], time: Duration) -> Result<f64> {
    let run = |runs| -> Result<f64> {
        let profile = executable.profile(inputs, &ProfileOptions::new().warmup(2).runs(runs))?;
        let nanoseconds: u64 = profile.steps.iter().map(|s| s.time.min_ns).sum();
        Ok(nanoseconds as f64 * 1e-9)
    };
    let once = run(3)?;
    Ok(run((time.as_secs_f64() / once).clamp(3.0, 1e5) as usize)?.min(once))
}

/// The other library's program.
struct Peer {
    child: Child,
    to: ChildStdin,
    from: BufReader<ChildStdout>,
}

type Failure = Box<dyn std::error::Error>;

impl Peer {
    fn start(python: &str) -> std::result::Result<Peer, Failure> {
        let script = concat!(env!("CARGO_MANIFEST_DIR"), "/peers/gemm_torch.py");
        let mut child = Command::new(python)
            .arg(script)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()?;
        let to = child.stdin.take().ok_or("the program has no input")?;
        let from = child.stdout.take().ok_or("the program has no output")?;
        let mut peer = Peer {
            child,
            to,
            from: BufReader::new(from),
        };
        println!("beside {}", peer.line()?);
        Ok(peer)
    }

    fn line(&mut self) -> std::result::Result<String, Failure> {
        let mut line = String::new();
        if self.from.read_line(&mut line)? == 0 {
            return Err(
                format!("the other library's program ended: {}", self.child.wait()?).into(),
            );
        }
        Ok(line.trim().to_string())
    }

    fn best(
        &mut self,
        case: &Case,
        threads: usize,
        time: Duration,
    ) -> std::result::Result<f64, Failure> {
        let Case { m, n, k, .. } = case;
        let (ta, tb) = (u8::from(case.trans_a), u8::from(case.trans_b));
        let seconds = time.as_secs_f64();
        writeln!(self.to, "{m} {n} {k} {ta} {tb} {threads} {seconds}")?;
        self.to.flush()?;
        Ok(self.line()?.parse()?)
    }
}

fn main() -> std::result::Result<(), Failure> {
    let (mut filter, mut peer, mut seconds) = (String::new(), None, 0.1);
    let mut arguments = std::env::args().skip(1);
    while let Some(argument) = arguments.next() {
        let mut value = || arguments.next().ok_or(format!("{argument} needs a value"));
        match argument.as_str() {
            "--torch" => peer = Some(Peer::start(&value()?)?),
            "--seconds" => seconds = value()?.parse()?,
            // What `cargo bench` adds.
            "--bench" => {}
            name => filter = name.to_string(),
        }
    }
    let time = Duration::from_secs_f64(seconds / ROUNDS as f64);
    for case in cases().iter().filter(|case| case.name().contains(&filter)) {
        print!("{:42}", case.name());
        for threads in [1, 2] {
            let (executable, inputs) = case.compile(threads)?;
            let (mut own, mut other) = (f64::INFINITY, f64::INFINITY);
            for _ in 0..ROUNDS {
                own = own.min(best(&*executable, &inputs, time)?);
                if let Some(peer) = &mut peer {
                    other = other.min(peer.best(case, threads, time)?);
                }
            }
            print!(
                " | {threads} threads {:8.1} us {:5.0} GFLOP/s",
                own * 1e6,
                case.gflop() / own
            );
            if peer.is_some() {
                print!(", other {:8.1} us, ratio {:4.2}", other * 1e6, own / other);
            }
        }
        println!();
    }
    Ok(())
}
