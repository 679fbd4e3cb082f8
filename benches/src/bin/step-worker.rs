//! This library's worker of `cargo xtask bench`; [`opt_benches::protocol`] says what it reads and
//! writes.

use std::io::{BufRead, Write};

use opt_benches::protocol::{Load, Reply, Request};
use opt_benches::work::{Start, Step, Work};
use opt_benches::{Failure, backend};
use opt_core::file::write_atomically;

fn main() -> Result<(), Failure> {
    let mut work = None;
    for line in std::io::stdin().lock().lines() {
        let reply = answer(&line?, &mut work).unwrap_or_else(|e| Reply::Failed {
            error: e.to_string(),
        });
        let mut stdout = std::io::stdout().lock();
        writeln!(stdout, "{}", serde_json::to_string(&reply)?)?;
        stdout.flush()?;
    }
    Ok(())
}

fn answer(line: &str, work: &mut Option<Work>) -> Result<Reply, Failure> {
    match serde_json::from_str(line)? {
        Request::About => Ok(Reply::About {
            version: env!("CARGO_PKG_VERSION").into(),
            settings: String::new(),
        }),
        Request::Load(request) => {
            // The memory of the one before is needed.
            *work = None;
            let loaded = work.insert(load(&request)?);
            Ok(Reply::Loaded {
                parameters: loaded.parameters,
            })
        }
        Request::Run(request) => {
            let work = work.as_mut().ok_or("nothing is loaded")?;
            let (took, loss) = work.run(request.steps, request.lr)?;
            let us = took.as_secs_f64() * 1e6;
            Ok(Reply::Ran { us, loss })
        }
        Request::Outputs(request) => {
            let work = work.as_mut().ok_or("nothing is loaded")?;
            let outputs = work.outputs()?;
            let bytes: Vec<u8> = outputs.iter().flat_map(|x| x.to_le_bytes()).collect();
            std::fs::write(request.file, bytes)?;
            let written = outputs.len();
            Ok(Reply::Written { written })
        }
    }
}

fn load(request: &Load) -> Result<Work, Failure> {
    let backend = backend::open(&request.backend, &request.device, request.threads)?;
    if let Some(model) = &request.onnx {
        return Ok(Step::onnx(model, &request.weights, &*backend)?.start()?);
    }
    let start = Start::new(&request.row)?;
    write_atomically(&request.weights, |file| {
        let mut file = std::io::BufWriter::new(file);
        start.write(&mut file)?;
        Ok(file.flush()?)
    })?;
    Ok(start.compile(&request.row, &*backend)?)
}
