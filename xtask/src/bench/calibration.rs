//! `cargo xtask bench-calibration`: the memory that calibration takes, by the number of samples.
//!
//! Each line of the table is two processes, one a library, that calibrate the same network on the same
//! samples, which are made as they are asked for. Memory is the most that was resident, less what was
//! when the libraries were loaded.

use std::fs;
use std::path::Path;
use std::process::Command;

use serde_json::{Value, json};

use super::options::OmpWait;
use super::worker::Worker;
use super::{build, machine, memory};
use crate::{Result, oracle, root};

const METHODS: [&str; 3] = ["minmax", "percentile", "entropy"];

/// How many samples run at a time; a divisor of the usual numbers of samples, because ONNX Runtime's
/// histograms need batches of one size.
const BATCH: usize = 50;

#[derive(Debug, PartialEq)]
struct Options {
    samples: Vec<usize>,
    methods: Vec<String>,
    layers: usize,
    width: usize,
    /// Of a peer's address space, in GB.
    limit: usize,
    write: bool,
}

fn parse(arguments: &[&str]) -> Result<Options> {
    let mut options = Options {
        samples: vec![100, 1000, 10_000],
        methods: METHODS.map(String::from).to_vec(),
        layers: 100,
        width: 512,
        limit: 12,
        write: false,
    };
    let count = |text: &str| match text.parse::<usize>() {
        Ok(n) if n > 0 => Ok(n),
        _ => Err(format!("a positive number is expected, not {text}")),
    };
    let mut arguments = arguments.iter();
    while let Some(&option) = arguments.next() {
        if option == "--write" {
            options.write = true;
            continue;
        }
        let value = arguments
            .next()
            .ok_or_else(|| format!("{option} needs a value; see `cargo xtask help`"))?;
        match option {
            "--samples" => options.samples = value.split(',').map(count).collect::<Result<_>>()?,
            "--method" => {
                options.methods = value.split(',').map(String::from).collect();
                if let Some(other) = options.methods.iter().find(|m| !METHODS.contains(&&***m)) {
                    return Err(format!("no method {other}; there are {METHODS:?}"));
                }
            }
            "--layers" => options.layers = count(value)?,
            "--width" => options.width = count(value)?,
            "--limit" => options.limit = count(value)?,
            _ => return Err(format!("unknown option {option}; see `cargo xtask help`")),
        }
    }
    Ok(options)
}

/// What a side took.
#[derive(Debug, Clone, PartialEq)]
struct Took {
    mib: f64,
    seconds: f64,
    ranges: Value,
}

/// A line of the table.
struct Row {
    method: String,
    samples: usize,
    ours: Took,
    peer: Result<Took>,
}

pub(crate) fn run(arguments: &[&str]) -> Result {
    let options = parse(arguments)?;
    memory::available()?;
    oracle::set_up()?;
    let program = build::ours("calibration-worker", "ndarray")?;
    let folder = root().join("target/bench");
    fs::create_dir_all(&folder).map_err(|e| format!("{}: {e}", folder.display()))?;
    let model = folder.join("calibration.onnx");
    let ours = || Worker::new("ours", Command::new(&program), OmpWait::Default);
    ours().ask(&json!({
        "do": "write", "model": model, "layers": options.layers, "width": options.width,
    }))?;
    let script = root().join("benches/peers/calibration_onnxruntime.py");
    let limit = options.limit * 1_000_000;
    let peer = || {
        let mut command = Command::new("sh");
        let line = format!("ulimit -v {limit}; exec \"$0\" \"$1\"");
        command
            .arg("-c")
            .arg(line)
            .arg(oracle::python())
            .arg(&script);
        Worker::new("onnxruntime", command, OmpWait::Default)
    };
    let peer_version = peer().about()?.version;
    println!("{HEADING}");
    let mut rows = Vec::new();
    for method in &options.methods {
        for &samples in &options.samples {
            let request = request(&model, method, samples, &options);
            let row = Row {
                method: method.clone(),
                samples,
                ours: took(&mut ours(), &request)?,
                peer: took(&mut peer(), &request),
            };
            println!("{}", line(&row, options.limit));
            if let (Ok(peer), "minmax") = (&row.peer, &**method) {
                agree(&row.ours.ranges, &peer.ranges)?;
            }
            rows.push(row);
        }
    }
    let _ = fs::remove_file(&model);
    if options.write {
        let file = root().join("docs/CALIBRATION.md");
        super::write(&file, &page(&rows, &options, &peer_version))?;
        println!("\nwrote {}", machine::shown(&file));
    }
    Ok(())
}

fn request(model: &Path, method: &str, samples: usize, options: &Options) -> Value {
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    json!({
        "do": "calibrate", "model": model, "method": method, "samples": samples,
        "batch": BATCH, "threads": threads, "width": options.width,
    })
}

/// Calibrates in a new process.
fn took(worker: &mut Worker, request: &Value) -> Result<Took> {
    worker.about()?;
    let process = worker.process().ok_or("the worker has ended")?;
    let idle = memory::resident(process, "VmRSS")?;
    memory::reset(process)?;
    let reply = worker.ask(request)?;
    let peak = memory::resident(process, "VmHWM")?;
    Ok(Took {
        mib: peak - idle,
        seconds: reply["seconds"].as_f64().ok_or("no time was answered")?,
        ranges: reply["ranges"].clone(),
    })
}

/// Fails unless every range of ours is the peer's, but for the rounding of sums.
fn agree(ours: &Value, peer: &Value) -> Result {
    let ends = |range: &Value| range[0].as_f64().zip(range[1].as_f64());
    let all = ours.as_object().ok_or("no ranges were answered")?;
    for (name, range) in all {
        let (Some((low, high)), Some((peer_low, peer_high))) = (ends(range), ends(&peer[name]))
        else {
            return Err(format!("{name}: {range} and {}", peer[name]));
        };
        let far = (low - peer_low).abs().max((high - peer_high).abs());
        if far > 1e-4 * (high - low).abs() {
            return Err(format!(
                "{name}: ours is {low}..{high}, the peer's {peer_low}..{peer_high}"
            ));
        }
    }
    match all.is_empty() {
        true => Err("nothing was observed".into()),
        false => Ok(()),
    }
}

const HEADING: &str = "\
| method | samples | ours MiB | ours s | ONNX Runtime MiB | ONNX Runtime s |
| --- | ---: | ---: | ---: | ---: | ---: |";

fn line(row: &Row, limit: usize) -> String {
    let peer = match &row.peer {
        Ok(took) => format!("{:.0} | {:.1}", took.mib, took.seconds),
        Err(why) if why.contains("Memory") || why.contains("alloc") || why.contains("gone") => {
            format!("fails with {limit} GB | -")
        }
        Err(why) => format!("{} | -", why.replace(['|', '\n'], " ")),
    };
    format!(
        "| {} | {} | {:.0} | {:.1} | {peer} |",
        row.method, row.samples, row.ours.mib, row.ours.seconds
    )
}

fn page(rows: &[Row], options: &Options, peer: &str) -> String {
    let table: Vec<String> = rows.iter().map(|row| line(row, options.limit)).collect();
    format!(
        "\
# Calibration: memory by the number of samples

This page is written by `cargo xtask bench-calibration --write`; the figures are of one machine and
one day.

| | |
| --- | --- |
| measured on | {date} |
| processor | {processor} |
| this library | {version} |
| peer | ONNX Runtime {peer}, `onnxruntime.quantization` |
| network | {layers} fully connected layers of {width}, each with a ReLU |
| samples at a time | {BATCH} |

{HEADING}
{table}

*MiB* is the most that was resident in the process while it read the model, ran it over the samples
and found the ranges, less what was resident with its libraries loaded. *s* is the time of that. Each
figure is a process of its own. Samples are made as they are asked for and take no memory. A peer's
process has {limit} GB of address space.

This library observes what the layers read, ONNX Runtime what they read and write, as its
`quantize_static` has it. The ranges of `minmax` are compared, and are the same but for rounding.
`percentile` keeps 99.999 % of the values; `entropy` is `ObserverKind::Kl` here.

Observers here take in a batch and keep a range or a histogram of 2048 bins, whose width doubles when
a value falls outside. ONNX Runtime's `percentile` and `entropy` keep the values of all samples until
the last has run, and fail where the last batch is smaller than the others. Whoever calls
`collect_data` with a part of the samples at a time keeps those of a part.
",
        date = machine::today(),
        processor = machine::processor(),
        version = machine::version(),
        layers = options.layers,
        width = options.width,
        limit = options.limit,
        table = table.join("\n"),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn took(mib: f64) -> Took {
        Took {
            mib,
            seconds: 1.25,
            ranges: json!({"a": [0.0, 2.0]}),
        }
    }

    #[test]
    fn options_are_read() {
        let all = parse(&[]).unwrap();
        assert_eq!((all.layers, all.samples.len()), (100, 3));
        let line = "--samples 5,6 --method entropy --layers 3 --width 4 --limit 2 --write";
        let options = parse(&line.split(' ').collect::<Vec<_>>()).unwrap();
        let expected = Options {
            samples: vec![5, 6],
            methods: vec!["entropy".into()],
            layers: 3,
            width: 4,
            limit: 2,
            write: true,
        };
        assert_eq!(options, expected);
        for line in [
            "--samples",
            "--samples 0",
            "--method mse",
            "--layers x",
            "more 1",
        ] {
            assert!(
                parse(&line.split(' ').collect::<Vec<_>>()).is_err(),
                "{line}"
            );
        }
    }

    #[test]
    fn lines_say_what_fails() {
        let mut row = Row {
            method: "minmax".into(),
            samples: 10,
            ours: took(7.0),
            peer: Ok(took(9.0)),
        };
        assert_eq!(line(&row, 4), "| minmax | 10 | 7 | 1.2 | 9 | 1.2 |");
        row.peer = Err("onnxruntime: MemoryError: Unable to allocate".into());
        assert!(line(&row, 4).ends_with("| fails with 4 GB | - |"));
        row.peer = Err("no such file".into());
        assert!(line(&row, 4).ends_with("| no such file | - |"));
    }

    #[test]
    fn ranges_have_to_agree() {
        let ours = json!({"a": [0.0, 2.0]});
        assert!(agree(&ours, &json!({"a": [0.0, 2.0001], "b": [0, 1]})).is_ok());
        assert!(agree(&ours, &json!({"a": [0.0, 2.1]})).is_err());
        assert!(agree(&ours, &json!({"b": [0.0, 2.0]})).is_err());
        assert!(agree(&json!({}), &ours).is_err());
    }
}
