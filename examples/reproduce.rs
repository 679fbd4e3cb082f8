//! Measures what papers claim about pruning, distillation and quantization on handwritten digits,
//! and writes `docs/REPRODUCTION.md`: `cargo run --release --example reproduce`.

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Instant;

use clap::Parser;
use opt_core::file::write_atomically;
use opt_core::{Error, Result};
use opt_examples::ledger::{Claim, claims, document, measure};
use opt_examples::{print, run};
use opt_train::ProgressBar;

/// Measures the claims of papers on random divisions of the embedded digits.
#[derive(Debug, Parser)]
struct Options {
    /// How many divisions; at least 2.
    #[arg(long, default_value_t = 10)]
    divisions: u64,
    /// The number of the first division.
    #[arg(long, default_value_t = 0)]
    first: u64,
    /// Only the claims of these names, separated by commas.
    #[arg(long, value_delimiter = ',')]
    only: Vec<String>,
    /// Multiplies the epochs of all training, for a quick look.
    #[arg(long, default_value_t = 1.0)]
    effort: f64,
    /// Divisions measured at once.
    #[arg(long)]
    threads: Option<usize>,
    /// Where to write the document; `docs/REPRODUCTION.md` of the project if left out.
    #[arg(long)]
    out: Option<PathBuf>,
}

fn main() -> ExitCode {
    let options = Options::parse();
    run(|| command(&options))
}

fn command(options: &Options) -> Result<()> {
    if !(options.effort.is_finite() && options.effort > 0.0) {
        return Err(Error::invalid(format!("an effort of {}", options.effort)));
    }
    let all = claims();
    let chosen = chosen(&all, &options.only)?;
    let threads = options
        .threads
        .unwrap_or_else(|| std::thread::available_parallelism().map_or(1, usize::from));
    let start = Instant::now();
    let mut progress = ProgressBar::new();
    let entries = measure(
        &chosen,
        options.first..options.first.saturating_add(options.divisions),
        options.effort,
        threads,
        &mut progress,
    )?;
    let text = document(&entries, options.divisions);
    let path = match &options.out {
        Some(path) => path.clone(),
        None => Path::new(env!("CARGO_MANIFEST_DIR")).with_file_name("docs/REPRODUCTION.md"),
    };
    write_atomically(&path, |file| {
        Ok(std::io::Write::write_all(file, text.as_bytes())?)
    })?;
    for entry in &entries {
        print(&format!(
            "{:>14}: {} ({})\n",
            entry.claim.name(),
            entry.judgement.headline,
            entry.judgement.verdict.text().replace('*', "")
        ))?;
    }
    print(&format!(
        "written to {} after {:.0} s\n",
        path.display(),
        start.elapsed().as_secs_f64()
    ))
}

/// The claims of the given names; all if there are none.
fn chosen<'a>(all: &'a [Box<dyn Claim>], only: &[String]) -> Result<Vec<&'a dyn Claim>> {
    if only.is_empty() {
        return Ok(all.iter().map(AsRef::as_ref).collect());
    }
    only.iter()
        .map(|name| {
            let found = all.iter().find(|claim| claim.name() == name);
            found.map(AsRef::as_ref).ok_or_else(|| {
                let names: Vec<&str> = all.iter().map(|claim| claim.name()).collect();
                Error::invalid(format!("there is no claim `{name}`; there are {names:?}"))
            })
        })
        .collect()
}
