//! Quantizes the matrices of safetensors files that may be larger than memory:
//! `cargo run --release --example quantize_file -- model.safetensors int4.safetensors --scheme "int4, group 32"`
//! or `.. -- model.safetensors.index.json model.gguf --gguf Q4_0 --keep embed`.

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Instant;

use clap::Parser;
use opt_core::{Error, Result};
use opt_examples::run;
use opt_quant::gguf::GgufType;
use opt_quant::stream::QuantizeFile;
use opt_quant::{Rules, Scheme, Select};
use opt_train::ProgressBar;

/// Quantizes the matrices of safetensors files, tensor by tensor. A run that is cut off goes on
/// where it ended when it is started again.
#[derive(Debug, Parser)]
struct Args {
    /// A safetensors file, or the index (.json) of several.
    input: PathBuf,
    /// Where to write the result.
    output: PathBuf,
    /// The scheme, such as `int8`, `int4, group 32, asymmetric`, `nf4`, `mxfp4`.
    #[arg(long, default_value = "int8")]
    scheme: Scheme,
    /// Writes a GGUF file with matrices of this type: F16, BF16, Q4_0, Q4_1 or Q8_0.
    #[arg(long, value_name = "TYPE")]
    gguf: Option<String>,
    /// Matrices whose names match stay as they are.
    #[arg(long, value_name = "REGEX")]
    keep: Vec<String>,
}

fn main() -> ExitCode {
    let args = Args::parse();
    run(|| command(&args))
}

fn command(args: &Args) -> Result<()> {
    let mut rules = Rules::new();
    for pattern in &args.keep {
        rules = rules.keep(Select::regex(pattern)?);
    }
    let quantize = QuantizeFile::new(args.scheme).rules(rules);
    let mut bar = ProgressBar::new();
    let start = Instant::now();
    let report = match &args.gguf {
        None => quantize.to_safetensors(&args.input, &args.output, &mut bar)?,
        Some(name) => {
            let ty = GgufType::ALL.into_iter().find(|ty| ty.to_string() == *name);
            let ty = ty.ok_or_else(|| {
                Error::invalid(format!("no type {name}; there are {:?}", GgufType::ALL))
            })?;
            let same = |name: &str| name.to_string();
            quantize.to_gguf(&args.input, &args.output, ty, &[], same, &mut bar)?
        }
    };
    let seconds = start.elapsed().as_secs_f64();
    let rate = report.bytes().0 as f64 / seconds / 1e6;
    println!("{report}\n{seconds:.1} s, {rate:.0} MB/s of the input");
    Ok(())
}
