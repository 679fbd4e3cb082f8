//! Checks and times a row.

use std::path::Path;
use std::time::Duration;

use serde_json::{Value, json};

use super::line::{Found, Line, Times, blank};
use super::options::Options;
use super::peers::Peer;
use super::rows::model_file;
use super::stats::{agree, median, percentile};
use super::worker::{About, Worker};
use super::{memory, models};
use crate::Result;

/// How many steps have to agree.
pub(crate) const CHECKED: usize = 5;

/// Learning rate of the steps that have to agree.
pub(crate) const CHECKED_LR: f64 = 1e-3;

/// Learning rate of the steps that are timed. It is small because they all see one batch: learnt
/// by heart, it would leave moments of vanishing gradients, and processors are slow with those.
const TIMED_LR: f64 = 1e-7;

/// Microseconds of a side's turn in a round, or one step if that is more.
pub(crate) const TURN_US: f64 = 1.5e5;

/// How long nobody runs between two turns, so that threads of the one before are asleep.
const PAUSE: Duration = Duration::from_millis(20);

/// A peer and its worker, or why there is none.
pub(crate) struct Other {
    pub(crate) peer: &'static Peer,
    pub(crate) worker: Result<Worker>,
    pub(crate) about: Option<About>,
}

/// Why a peer has no times.
enum Refused {
    /// It cannot run the row, or computes something else than was expected of all.
    Cannot(String),
    /// It computes something else than this library does; either may be wrong.
    Disagrees(String),
}

impl From<String> for Refused {
    fn from(reason: String) -> Refused {
        Refused::Cannot(reason)
    }
}

/// The lines of a row, and those of its peers that disagree with this library.
pub(crate) struct Measured {
    pub(crate) lines: Vec<Line>,
    pub(crate) disagree: Vec<String>,
}

/// Checks and times a row against the peers that take it.
///
/// # Errors
/// If this library cannot run it, or computes something else than is expected.
pub(crate) fn measure(
    row: &Value,
    threads: usize,
    options: &Options,
    folder: &Path,
    ours: &mut Worker,
    others: &mut [Other],
) -> Result<Measured> {
    let mut taking: Vec<&mut Other> = others
        .iter_mut()
        .filter(|other| other.peer.takes(row, &options.device))
        .collect();
    if taking.is_empty() {
        let (lines, disagree) = (Vec::new(), Vec::new());
        return Ok(Measured { lines, disagree });
    }
    let request = request(row, threads, options, folder);
    let parameters = ours.load(&request)?;
    let checks = Checks::new(row, folder, ours)?;
    let ours_us = warm_up(ours)?;

    let (mut lines, mut disagree, mut ready) = (Vec::new(), Vec::new(), Vec::new());
    for other in &mut taking {
        let mut line = blank(row, other.peer.name, threads, options);
        let prepared = prepare(other, &request, parameters, &checks);
        if let Some(about) = &other.about {
            line.peer_version = about.version.clone();
            line.peer_settings = about.settings.clone();
        }
        let reason = match prepared {
            Ok(us) => {
                ready.push((lines.len(), us, Vec::new()));
                None
            }
            Err(Refused::Cannot(reason)) => Some(reason),
            Err(Refused::Disagrees(reason)) => {
                disagree.push(reason.clone());
                Some(reason)
            }
        };
        if let Some(reason) = reason {
            // One that holds a model that it cannot run holds memory for nothing.
            if let Ok(worker) = &mut other.worker {
                worker.stop();
            }
            line.found = Found::Missing(one_line(&reason));
        }
        lines.push(line);
    }

    let turn = |worker: &mut Worker, step_us: f64| -> Result<f64> {
        std::thread::sleep(PAUSE);
        let steps = (TURN_US / step_us).round().max(1.0) as usize;
        Ok(worker.run(steps, TIMED_LR)?.us / steps as f64)
    };
    let mut times = Vec::new();
    for _ in 0..options.rounds {
        if ready.is_empty() {
            break;
        }
        times.push(turn(ours, ours_us)?);
        for (at, us, theirs) in &mut ready {
            theirs.push(turn(worker(taking[*at])?, *us)?);
        }
    }
    for (at, _, theirs) in &ready {
        let pairs = times.iter().zip(theirs);
        let ratios: Vec<f64> = pairs.map(|(ours, theirs)| ours / theirs).collect();
        let of = |value: Option<f64>| value.ok_or("no round has run");
        lines[*at].found = Found::Timed(Times {
            ours_us: of(median(&times))?,
            peer_us: of(median(theirs))?,
            p10: of(percentile(&ratios, 10.0))?,
            p90: of(percentile(&ratios, 90.0))?,
            rounds: options.rounds,
        });
    }

    if options.memory && !ready.is_empty() {
        let own = memory::peak(ours, &request)?;
        for (at, ..) in &ready {
            let request = variant(&request, taking[*at].peer);
            let peak = memory::peak(worker(taking[*at])?, &request)?;
            lines[*at].memory = Some((own, peak));
        }
    }
    Ok(Measured { lines, disagree })
}

/// Says what to load.
fn request(row: &Value, threads: usize, options: &Options, folder: &Path) -> Value {
    let mut request = json!({
        "do": "load",
        "row": row,
        "backend": options.backend,
        "device": options.device,
        "threads": threads,
        "weights": folder.join("start.safetensors"),
    });
    if let Some(name) = model_file(row) {
        request["weights"] = json!(models::file(name, "safetensors"));
        request["onnx"] = json!(models::file(name, "onnx"));
    }
    request
}

fn variant(request: &Value, peer: &Peer) -> Value {
    let mut request = request.clone();
    request["variant"] = peer.name.into();
    request
}

fn worker(other: &mut Other) -> Result<&mut Worker> {
    other.worker.as_mut().map_err(|reason| reason.clone())
}

/// Has a peer load a row, checks it, and warms it up; the microseconds of a step.
fn prepare(
    other: &mut Other,
    request: &Value,
    parameters: u64,
    checks: &Checks,
) -> std::result::Result<f64, Refused> {
    let peer = other.peer;
    let worker = other.worker.as_mut().map_err(|reason| reason.clone())?;
    if other.about.is_none() {
        other.about = Some(worker.about()?);
    }
    let found = worker.load(&variant(request, peer))?;
    if found != parameters {
        let (ours, name) = (parameters, peer.name);
        let reason = format!("we train {ours} parameters, {name} {found}");
        return Err(Refused::Disagrees(reason));
    }
    checks.peer(worker, peer.name)?;
    Ok(warm_up(worker)?)
}

/// What a side has to compute.
enum Checks<'a> {
    /// The losses of the first steps, as this library computes them.
    Losses { expected: Vec<f64>, tolerance: f64 },
    /// The outputs of a model file.
    Outputs {
        name: &'a str,
        tolerance: f64,
        folder: &'a Path,
    },
}

impl<'a> Checks<'a> {
    /// Checks this library, as far as it is not what others are compared with.
    fn new(row: &'a Value, folder: &'a Path, ours: &mut Worker) -> Result<Checks<'a>> {
        let Some(name) = model_file(row) else {
            let tolerance = match row["precision"].as_str() {
                Some("f32") => 1e-3,
                _ => 2e-2,
            };
            return Ok(Checks::Losses {
                expected: losses(ours)?,
                tolerance,
            });
        };
        let tolerance = row["tolerance"].as_f64();
        let checks = Checks::Outputs {
            name,
            tolerance: tolerance.ok_or("the row has no tolerance")?,
            folder,
        };
        match checks.peer(ours, "this library") {
            Ok(()) => Ok(checks),
            Err(Refused::Cannot(reason) | Refused::Disagrees(reason)) => Err(reason),
        }
    }

    fn peer(&self, worker: &mut Worker, who: &str) -> std::result::Result<(), Refused> {
        match self {
            Checks::Losses {
                expected,
                tolerance,
            } => {
                let found = losses(worker)?;
                let mut pairs = expected.iter().zip(&found);
                // A batch that is learnt by heart has losses near 0, of which rounding is a large
                // part.
                let least = expected[0].abs() / 10.0;
                match pairs.all(|(&a, &b)| agree(a, b, least, *tolerance)) {
                    true => Ok(()),
                    false => Err(Refused::Disagrees(format!(
                        "the losses of the first {CHECKED} steps differ by more than {tolerance} \
                         of them, or of a tenth of the first: ours {expected:?}, {who} {found:?}"
                    ))),
                }
            }
            Checks::Outputs {
                name,
                tolerance,
                folder,
            } => {
                let file = folder.join("outputs");
                worker.outputs(&file)?;
                let difference = models::difference(&file, &models::file(name, "expected"));
                let _ = std::fs::remove_file(&file);
                let difference = difference.map_err(|e| format!("{who}: {e}"))?;
                match difference <= *tolerance {
                    true => Ok(()),
                    false => Err(Refused::Cannot(format!(
                        "outputs of {who} differ from ONNX Runtime's by {difference:.2e} of the \
                         largest, more than {tolerance}"
                    ))),
                }
            }
        }
    }
}

/// The losses of the first steps.
fn losses(worker: &mut Worker) -> Result<Vec<f64>> {
    let step = |_| {
        let loss = worker.run(1, CHECKED_LR)?.loss;
        loss.ok_or_else(|| "a step has no loss".to_string())
    };
    (0..CHECKED).map(step).collect()
}

/// Runs steps until a run takes two thirds of a turn; the microseconds of a step in it.
fn warm_up(worker: &mut Worker) -> Result<f64> {
    let mut steps = 1;
    loop {
        let us = worker.run(steps, TIMED_LR)?.us;
        if us >= TURN_US * 2.0 / 3.0 {
            return Ok(us / steps as f64);
        }
        let wanted = TURN_US / us * steps as f64;
        steps = (wanted as usize).clamp(steps + 1, 10 * steps);
    }
}

/// The first line of a message, for a table.
fn one_line(message: &str) -> String {
    let line = message.lines().map(str::trim).find(|line| !line.is_empty());
    let line = line.unwrap_or("no reason was given");
    match line.char_indices().nth(300) {
        Some((at, _)) => format!("{}..", &line[..at]),
        None => line.into(),
    }
}
