//! `cargo xtask bench`: the same steps by this library and by others, in turn.
//!
//! Each side is a process that stays: the program `step-worker` of the package `opt-benches`, and
//! one for each [peer](peers). For a row of `benches/rows.json` all start from the same weights
//! and batch, or read the same file; losses or outputs have to agree before anything is timed.
//! Then follow rounds in which every side runs for the same time while the others wait.

mod build;
pub(crate) mod calibration;
mod line;
mod machine;
mod measure;
pub(crate) mod memory;
mod models;
mod options;
mod peers;
mod report;
mod rows;
mod stats;
mod table;
mod worker;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;

use crate::{Result, oracle, root};
use line::Line;
use measure::Other;
use options::Options;
use peers::{Peer, Program};
use rows::name_of;
use worker::Worker;

pub(crate) fn bench(arguments: &[&str]) -> Result {
    let processors = std::thread::available_parallelism().map_or(1, usize::from);
    let options = options::parse(arguments, processors)?;
    if options.memory {
        memory::available()?;
    }
    let all_rows = rows::rows()?;
    let rows = rows::select(&all_rows, &options)?;
    let before = match (&options.json, options.update) {
        (Some(file), true) if file.exists() => read(file)?,
        _ => Vec::new(),
    };
    oracle::set_up()?;
    models::make(&rows)?;
    let program = build::ours("step-worker", &options.backend)?;
    let programs = programs(&rows, &options);
    let folder = root().join("target/bench");
    fs::create_dir_all(&folder).map_err(|e| format!("{}: {e}", folder.display()))?;

    let (date, version) = (machine::today(), machine::version());
    let (mut lines, mut failed) = (before, Vec::new());
    println!("{}", table::heading(&options));
    for &threads in &options.threads {
        let mut ours = ours(&program, &options)?;
        let mut others: Vec<Other> = programs
            .iter()
            .map(|(peer, program)| other(peer, program, threads, &options))
            .collect();
        for row in &rows {
            let result = measure::measure(row, threads, &options, &folder, &mut ours, &mut others);
            let _ = fs::remove_file(folder.join("start.safetensors"));
            match result {
                Ok(mut measured) => {
                    for line in &mut measured.lines {
                        println!("{}", table::table_line(line));
                        line.date = date.clone();
                        line.version = version.clone();
                    }
                    lines = line::merge(lines, measured.lines, &all_rows);
                    // After each row: who ends a long run keeps what it has found.
                    save(&lines, &options)?;
                    let disagree = measured.disagree.into_iter();
                    failed.extend(disagree.map(|why| format!("{}: {why}", name_of(row))));
                }
                Err(message) => {
                    let name = name_of(row);
                    println!("{name:<22} {threads:>7} FAILED: {message}");
                    failed.push(format!("{name}: {message}"));
                }
            }
        }
    }
    save(&lines, &options)?;
    if let Some(file) = &options.markdown {
        write(file, &report::page(&lines, &options))?;
        println!("\nwrote {}", machine::shown(file));
    }
    match failed.is_empty() {
        true => Ok(()),
        false => Err(format!("\nrows failed:\n{}", failed.join("\n"))),
    }
}

/// The lines of an earlier run.
fn read(file: &Path) -> Result<Vec<Line>> {
    let fail = |e: &dyn std::fmt::Display| format!("{}: {e}", file.display());
    let text = fs::read_to_string(file).map_err(|e| fail(&e))?;
    let list: Vec<Value> = serde_json::from_str(&text).map_err(|e| fail(&e))?;
    list.iter().map(Line::from_json).collect()
}

/// Writes the lines where `--json` says.
fn save(lines: &[Line], options: &Options) -> Result {
    let Some(file) = &options.json else {
        return Ok(());
    };
    let list: Vec<Value> = lines.iter().map(Line::to_json).collect();
    write(file, &format!("{:#}\n", Value::from(list)))
}

fn write(file: &Path, text: &str) -> Result {
    fs::write(file, text).map_err(|e| format!("{}: {e}", file.display()))
}

/// The peers that a row is for, with the programs to start; those of other Rust libraries are
/// built here.
fn programs(rows: &[Value], options: &Options) -> Vec<(&'static Peer, Result<PathBuf>)> {
    let needed = |peer: &&&'static Peer| rows.iter().any(|r| peer.takes(r, &options.device));
    let peers = options.peers.iter().filter(needed);
    peers
        .map(|&peer| {
            let program = match &peer.program {
                Program::Python(script) => Ok(root().join("benches/peers").join(script)),
                Program::Rust { feature, flags } => build::rust(feature, *flags)
                    .map_err(|e| format!("it was not built (cargo's messages say why): {e}")),
            };
            (peer, program)
        })
        .collect()
}

fn ours(program: &Path, options: &Options) -> Result<Worker> {
    let mut command = Command::new(program);
    if options.backend == "tch" {
        let (name, folders) = oracle::library_path()?;
        command.env(name, folders);
    }
    Ok(Worker::new("ours", command, options.omp_wait))
}

fn other(
    peer: &'static Peer,
    program: &Result<PathBuf>,
    threads: usize,
    options: &Options,
) -> Other {
    let worker = program.clone().map(|program| {
        let mut command = match &peer.program {
            Program::Python(_) => {
                let mut python = Command::new(oracle::python());
                python.arg(program);
                // What torch.compile builds is kept between runs.
                let cache = root().join("target/bench/inductor");
                python.env("TORCHINDUCTOR_CACHE_DIR", cache);
                python
            }
            Program::Rust { .. } => Command::new(program),
        };
        // Where the library takes the number of threads from the environment.
        command.env("RAYON_NUM_THREADS", threads.to_string());
        Worker::new(peer.name, command, options.omp_wait)
    });
    let about = None;
    Other {
        peer,
        worker,
        about,
    }
}
