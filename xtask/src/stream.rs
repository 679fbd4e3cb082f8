//! `cargo xtask bench-stream`: weights of a file larger than memory should be, quantized as a stream.

use std::fs::{self, File};
use std::io::{Read, Write};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use crate::bench::memory::resident;
use crate::{Result, oracle, root};

/// Rows and columns of a matrix of bf16, 64 MiB.
const SHAPE: [usize; 2] = [8192, 4096];
const MATRIX: usize = SHAPE[0] * SHAPE[1] * 2;
/// What is quantized to, and the ending of the file.
const SCHEMES: [(&str, &[&str]); 3] = [
    ("int8", &["out.safetensors", "--scheme", "int8"]),
    (
        "int4, group 32",
        &["out.safetensors", "--scheme", "int4, group 32"],
    ),
    ("GGUF Q4_0", &["out.gguf", "--gguf", "Q4_0"]),
];

/// Prints how fast a file of matrices is copied and quantized, and the most memory that it took.
pub(crate) fn bench(arguments: &[&str]) -> Result {
    let gigabytes: usize = match arguments {
        [] => 8,
        ["--gigabytes", n] => n.parse().map_err(|_| format!("{n} is no number"))?,
        _ => return Err(format!("--gigabytes N is expected, not {arguments:?}")),
    };
    let folder = root().join("target/bench-stream");
    fs::create_dir_all(&folder).map_err(|e| format!("{}: {e}", folder.display()))?;
    let measured = measure(&folder, (gigabytes << 30) / MATRIX);
    let removed = fs::remove_dir_all(&folder);
    measured?;
    removed.map_err(|e| format!("{}: {e}", folder.display()))
}

fn measure(folder: &Path, matrices: usize) -> Result {
    let cargo = std::env::var("CARGO").unwrap_or_else(|_| "cargo".into());
    let build = [
        "build",
        "--release",
        "--quiet",
        "--example",
        "quantize_file",
    ];
    oracle::run(Command::new(cargo).current_dir(root()).args(build))?;
    let input = folder.join("model.safetensors");
    let io = |e: std::io::Error| format!("{}: {e}", folder.display());
    write_model(&input, matrices).map_err(io)?;
    let bytes = fs::metadata(&input).map_err(io)?.len() as f64;
    println!("{} matrices of bf16, {:.2} GB", matrices, bytes / 1e9);
    println!("| work | seconds | MB/s of the input | share of the copy's | most memory, MiB |");
    println!("| --- | ---: | ---: | ---: | ---: |");
    let seconds = copy(&input, &folder.join("copy")).map_err(io)?;
    println!("| copy | {seconds:.1} | {:.0} | | |", bytes / 1e6 / seconds);
    for (name, arguments) in SCHEMES {
        let (taken, memory) = quantize(folder, &input, arguments)?;
        let (rate, share) = (bytes / 1e6 / taken, seconds / taken);
        println!("| {name} | {taken:.1} | {rate:.0} | {share:.2} | {memory:.0} |");
    }
    Ok(())
}

/// A safetensors file of matrices with entries of about a hundredth.
fn write_model(path: &Path, matrices: usize) -> std::io::Result<()> {
    let entry = |i: usize| {
        let (start, end) = (i * MATRIX, (i + 1) * MATRIX);
        format!(
            r#""layers.{i}.weight":{{"dtype":"BF16","shape":{SHAPE:?},"data_offsets":[{start},{end}]}}"#
        )
    };
    let entries: Vec<String> = (0..matrices).map(entry).collect();
    let header = format!("{{{}}}", entries.join(","));
    let mut file = File::create(path)?;
    file.write_all(&(header.len() as u64).to_le_bytes())?;
    file.write_all(header.as_bytes())?;
    let mut state = 0x9E37_79B9_7F4A_7C15u64;
    let mut matrix = Vec::with_capacity(MATRIX);
    for _ in 0..matrices {
        matrix.clear();
        while matrix.len() < MATRIX {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            // Four numbers with random signs and mantissas, from 2^-8 to 2^-7.
            let numbers = (state & 0x80FF_80FF_80FF_80FF) | 0x3B80_3B80_3B80_3B80;
            matrix.extend(numbers.to_le_bytes());
        }
        file.write_all(&matrix)?;
    }
    file.sync_all()
}

/// Seconds for reading a file and writing it to another, until it is on the disk.
fn copy(from: &Path, to: &Path) -> std::io::Result<f64> {
    let start = Instant::now();
    let (mut input, mut output) = (File::open(from)?, File::create(to)?);
    let mut block = vec![0; 8 << 20];
    loop {
        match input.read(&mut block)? {
            0 => break,
            n => output.write_all(&block[..n])?,
        }
    }
    output.sync_all()?;
    let seconds = start.elapsed().as_secs_f64();
    fs::remove_file(to)?;
    Ok(seconds)
}

/// Seconds, and the most memory in MiB that was resident, mapped files included.
fn quantize(folder: &Path, input: &Path, arguments: &[&str]) -> Result<(f64, f64)> {
    let output = folder.join(arguments[0]);
    let start = Instant::now();
    let mut child = Command::new(root().join("target/release/examples/quantize_file"))
        .args([input, &output])
        .args(&arguments[1..])
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .map_err(|e| format!("cannot start the example: {e}"))?;
    let mut most = 0.0f64;
    let status = loop {
        if let Some(status) = child.try_wait().map_err(|e| e.to_string())? {
            break status;
        }
        // Ends between the question and the answer are none of interest.
        most = most.max(resident(child.id(), "VmHWM").unwrap_or(0.0));
        std::thread::sleep(Duration::from_millis(20));
    };
    let taken = start.elapsed().as_secs_f64();
    if !status.success() {
        return Err(format!("the example ended with {status}"));
    }
    fs::remove_file(&output).map_err(|e| format!("{}: {e}", output.display()))?;
    Ok((taken, most))
}
