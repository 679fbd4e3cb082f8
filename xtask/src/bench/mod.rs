//! `cargo xtask bench`: the same steps by this library and by others, in turn.
//!
//! Each side is a process that stays: the program `step-worker` of the package `opt-benches`, and
//! one for each [peer](peers). For a row of `benches/rows.json` all start from the same weights
//! and batch; the losses of the first steps have to agree before anything is timed. Then follow
//! rounds in which every side runs the same number of steps while the others wait.

mod options;
mod peers;
mod stats;
mod worker;

use std::fs;
use std::io::BufRead;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use serde_json::{Value, json};

use crate::{Result, oracle, root};
use options::{OmpWait, Options};
use stats::{agree, median, percentile};
use worker::Worker;

/// How many steps have to agree.
const CHECKED: usize = 5;

/// Learning rate of the steps that have to agree.
const CHECKED_LR: f64 = 1e-3;

/// Learning rate of the steps that are timed. It is small because they all see one batch: learnt
/// by heart, it would leave moments of vanishing gradients, and processors are slow with those.
const TIMED_LR: f64 = 1e-7;

/// Microseconds that a round takes, or one step of each if that is more.
const ROUND_US: f64 = 3e5;

/// How long nobody runs between two turns, so that threads of the one before are asleep.
const PAUSE: Duration = Duration::from_millis(20);

/// A row's numbers against one peer.
struct Measured {
    name: String,
    peer: &'static str,
    ours_us: f64,
    peer_us: f64,
    /// Of each round.
    ratios: Vec<f64>,
}

impl Measured {
    fn ratio(&self) -> f64 {
        self.ours_us / self.peer_us
    }
}

pub(crate) fn bench(arguments: &[&str]) -> Result {
    let processors = std::thread::available_parallelism().map_or(1, usize::from);
    let options = options::parse(arguments, processors)?;
    let rows = select(&rows()?, &options)?;
    oracle::set_up()?;
    let mut program = Command::new(build(&options.backend)?);
    if options.backend == "tch" {
        let (name, folders) = oracle::library_path()?;
        program.env(name, folders);
    }
    let mut ours = Worker::new("ours", program, options.omp_wait);
    let mut others: Vec<Worker> = options
        .peers
        .iter()
        .map(|p| peer(p, options.omp_wait))
        .collect();
    let folder = root().join("target/bench");
    fs::create_dir_all(&folder).map_err(|e| format!("{}: {e}", folder.display()))?;

    println!("{}", heading(&options));
    let mut measured = Vec::new();
    let mut failed = Vec::new();
    for row in &rows {
        let weights = folder.join("start.safetensors");
        let result = measure(row, &options, &weights, &mut ours, &mut others);
        let _ = fs::remove_file(&weights);
        match result {
            Ok(found) => {
                for line in &found {
                    println!("{}", table_line(line, options.threads));
                }
                measured.extend(found);
            }
            Err(message) => {
                let name = name_of(row);
                println!("{name:<22} FAILED: {message}");
                failed.push(format!("{name}: {message}"));
            }
        }
    }
    if let Some(file) = &options.json {
        let list: Vec<Value> = measured.iter().map(|m| entry(m, &options)).collect();
        let text = format!("{:#}\n", Value::from(list));
        fs::write(file, text).map_err(|e| format!("{}: {e}", file.display()))?;
    }
    match failed.is_empty() {
        true => Ok(()),
        false => Err(format!("\nrows failed:\n{}", failed.join("\n"))),
    }
}

/// The committed workloads.
fn rows() -> Result<Vec<Value>> {
    let file = root().join("benches/rows.json");
    let fail = |e: &dyn std::fmt::Display| format!("{}: {e}", file.display());
    let text = fs::read_to_string(&file).map_err(|e| fail(&e))?;
    serde_json::from_str(&text).map_err(|e| fail(&e))
}

fn name_of(row: &Value) -> &str {
    row["name"].as_str().unwrap_or("?")
}

/// The rows that are asked for, or all that suit the device.
fn select(rows: &[Value], options: &Options) -> Result<Vec<Value>> {
    if options.only.is_empty() {
        let small = |row: &&Value| options.device != "cpu" || row["gpu"] != true;
        return Ok(rows.iter().filter(small).cloned().collect());
    }
    let find = |name: &String| {
        let row = rows.iter().find(|row| name_of(row) == name);
        row.cloned().ok_or_else(|| {
            let names: Vec<_> = rows.iter().map(name_of).collect();
            format!("no row {name}; there are {}", names.join(", "))
        })
    };
    options.only.iter().map(find).collect()
}

/// Builds this library's worker; the path of the program.
fn build(backend: &str) -> Result<PathBuf> {
    let cargo = std::env::var("CARGO").unwrap_or_else(|_| "cargo".into());
    let mut command = Command::new(cargo);
    command
        .args(["build", "--release", "--package", "opt-benches"])
        .args(["--bin", "step-worker"])
        .arg("--message-format=json-render-diagnostics")
        .current_dir(root())
        .stderr(Stdio::inherit());
    if backend != "ndarray" {
        command.args(["--features", backend]);
        command.envs(oracle::libtorch());
    }
    println!("$ {command:?}");
    let output = command
        .output()
        .map_err(|e| format!("cannot start {command:?}: {e}"))?;
    if !output.status.success() {
        return Err(format!("{command:?} ended with {}", output.status));
    }
    executable(&output.stdout).ok_or_else(|| format!("{command:?} built no program"))
}

/// The program in cargo's messages.
fn executable(messages: &[u8]) -> Option<PathBuf> {
    let messages = messages.lines().map_while(std::io::Result::ok);
    let programs = messages.filter_map(|line| {
        let message: Value = serde_json::from_str(&line).ok()?;
        message["executable"].as_str().map(PathBuf::from)
    });
    programs.last()
}

fn peer(peer: &peers::Peer, wait: OmpWait) -> Worker {
    let mut command = Command::new(oracle::python());
    command.arg(root().join("benches/peers").join(peer.script));
    Worker::new(peer.name, command, wait)
}

/// Checks and times a row.
fn measure(
    row: &Value,
    options: &Options,
    weights: &Path,
    ours: &mut Worker,
    others: &mut [Worker],
) -> Result<Vec<Measured>> {
    let mut request = json!({
        "do": "load",
        "row": row,
        "backend": options.backend,
        "device": options.device,
        "threads": options.threads,
        "weights": weights,
    });
    let parameters = ours.load(&request)?;
    for (worker, peer) in others.iter_mut().zip(&options.peers) {
        request["variant"] = peer.name.into();
        let found = worker.load(&request)?;
        if found != parameters {
            return Err(format!(
                "we train {parameters} parameters, {} {found}",
                peer.name
            ));
        }
    }
    check(row, options, ours, others)?;

    let mut all: Vec<&mut Worker> = std::iter::once(ours).chain(others).collect();
    let mut step_us = 0.0;
    for worker in &mut all {
        step_us += warm_up(worker)?;
    }
    let steps = (ROUND_US / step_us).round().max(1.0) as usize;
    let mut times = vec![Vec::new(); all.len()];
    for _ in 0..options.rounds {
        for (worker, times) in all.iter_mut().zip(&mut times) {
            std::thread::sleep(PAUSE);
            times.push(worker.run(steps, TIMED_LR)?.us / steps as f64);
        }
    }
    let middle = |times: &[f64]| median(times).expect("a round at least");
    let measured = options.peers.iter().zip(&times[1..]).map(|(peer, theirs)| {
        let pairs = times[0].iter().zip(theirs);
        Measured {
            name: name_of(row).into(),
            peer: peer.name,
            ours_us: middle(&times[0]),
            peer_us: middle(theirs),
            ratios: pairs.map(|(ours, theirs)| ours / theirs).collect(),
        }
    });
    Ok(measured.collect())
}

/// Whether the losses of the first steps agree.
fn check(row: &Value, options: &Options, ours: &mut Worker, others: &mut [Worker]) -> Result {
    let tolerance = match row["precision"].as_str() {
        Some("f32") => 1e-3,
        _ => 2e-2,
    };
    let losses = |worker: &mut Worker| -> Result<Vec<f64>> {
        let step = |_| Ok(worker.run(1, CHECKED_LR)?.loss);
        (0..CHECKED).map(step).collect()
    };
    let expected = losses(ours)?;
    for (worker, peer) in others.iter_mut().zip(&options.peers) {
        let found = losses(worker)?;
        let mut pairs = expected.iter().zip(&found);
        // A batch that is learnt by heart has losses near 0, of which rounding is a large part.
        let least = expected[0].abs() / 10.0;
        if !pairs.all(|(&a, &b)| agree(a, b, least, tolerance)) {
            return Err(format!(
                "the losses of the first {CHECKED} steps differ by more than {tolerance} of them, \
                 or of a tenth of the first: ours {expected:?}, {} {found:?}",
                peer.name
            ));
        }
    }
    Ok(())
}

/// Runs steps until a run takes a third of a round; the time of a step in it.
fn warm_up(worker: &mut Worker) -> Result<f64> {
    let mut steps = 1;
    loop {
        let us = worker.run(steps, TIMED_LR)?.us;
        if us >= ROUND_US / 3.0 {
            return Ok(us / steps as f64);
        }
        let wanted = ROUND_US / 2.0 / us * steps as f64;
        steps = (wanted as usize).clamp(steps + 1, 10 * steps);
    }
}

fn heading(options: &Options) -> String {
    format!(
        "\nmicroseconds a step: medians of {} rounds; ratio: ours / peer, below 1 ours is faster; \
         backend {}, device {}, OpenMP threads wait: {}\n\n{:<22} {:>7} {:>11}  {:<12} {:>11} {:>7}  {:>13}",
        options.rounds,
        options.backend,
        options.device,
        options.omp_wait.name(),
        "row",
        "threads",
        "ours",
        "peer",
        "peer's",
        "ratio",
        "p10..p90"
    )
}

fn table_line(m: &Measured, threads: usize) -> String {
    let at = |q| percentile(&m.ratios, q).unwrap_or(f64::NAN);
    let spread = format!("{:.2}..{:.2}", at(10.0), at(90.0));
    format!(
        "{:<22} {threads:>7} {:>11.1}  {:<12} {:>11.1} {:>7.2}  {spread:>13}",
        m.name,
        m.ours_us,
        m.peer,
        m.peer_us,
        m.ratio()
    )
}

fn entry(m: &Measured, options: &Options) -> Value {
    json!({
        "name": m.name,
        "peer": m.peer,
        "backend": options.backend,
        "device": options.device,
        "threads": options.threads,
        "omp_wait": options.omp_wait.name(),
        "ours_us": m.ours_us,
        "peer_us": m.peer_us,
        "ratio": m.ratio(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(arguments: &[&str]) -> Result<Vec<String>> {
        let options = options::parse(arguments, 1)?;
        let rows = select(&rows()?, &options)?;
        Ok(rows.iter().map(|row| name_of(row).to_string()).collect())
    }

    #[test]
    fn large_rows_run_on_other_devices_or_by_name() {
        let large = "train-resnet50-bf16";
        let cpu = names(&[]).unwrap();
        assert!(cpu.contains(&"train-mlp".to_string()) && !cpu.contains(&large.to_string()));
        let cuda = names(&["--device", "cuda:0"]).unwrap();
        assert!(cuda.contains(&large.to_string()) && cuda.len() > cpu.len());
        let two = ["--only", large, "--only", "train-mlp"];
        assert_eq!(names(&two).unwrap(), [large, "train-mlp"]);
        assert!(names(&["--only", "train"]).unwrap_err().contains(large));
    }

    #[test]
    fn the_program_is_found_in_cargos_messages() {
        let messages = b"{\"reason\":\"compiler-artifact\",\"executable\":null}\n\
            not json\n\
            {\"reason\":\"compiler-artifact\",\"executable\":\"/t/step-worker\"}\n\
            {\"reason\":\"build-finished\",\"success\":true}\n";
        assert_eq!(executable(messages), Some("/t/step-worker".into()));
        assert_eq!(executable(b""), None);
    }

    #[test]
    fn entries_have_the_medians_ratio() {
        let measured = Measured {
            name: "r".into(),
            peer: "torch",
            ours_us: 30.0,
            peer_us: 20.0,
            ratios: vec![1.0, 1.5, 2.0],
        };
        let options = options::parse(&["--threads", "2"], 1).unwrap();
        let expected = json!({
            "name": "r", "peer": "torch", "backend": "ndarray", "device": "cpu", "threads": 2,
            "omp_wait": "default", "ours_us": 30.0, "peer_us": 20.0, "ratio": 1.5,
        });
        assert_eq!(entry(&measured, &options), expected);
        assert!(table_line(&measured, 2).contains("1.10..1.90"));
    }
}
