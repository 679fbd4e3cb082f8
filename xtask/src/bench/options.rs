//! The options of `cargo xtask bench`.

use std::path::PathBuf;

use super::peers::{PEERS, Peer};
use crate::Result;

/// What OpenMP threads of a worker do when they have nothing to do.
///
/// Both leave the processors to the other side's turn. Within a worker's own turn `Passive` costs
/// it a wake-up for each parallel region, which eager PyTorch with more than one thread has many
/// of, and this library's own threads do not: the ratio is then too kind to this library.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum OmpWait {
    /// They sleep at once (`OMP_WAIT_POLICY=PASSIVE`).
    Passive,
    /// What a user has: libgomp spins for a few milliseconds, then sleeps.
    Default,
}

impl OmpWait {
    pub(crate) fn name(self) -> &'static str {
        match self {
            OmpWait::Passive => "passive",
            OmpWait::Default => "default",
        }
    }
}

/// What to measure, and how.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Options {
    /// The rows to run; all that suit the device if there is none.
    pub(crate) only: Vec<String>,
    /// Where the table goes as JSON.
    pub(crate) json: Option<PathBuf>,
    pub(crate) threads: usize,
    pub(crate) rounds: usize,
    pub(crate) device: String,
    pub(crate) backend: String,
    pub(crate) peers: Vec<&'static Peer>,
    pub(crate) omp_wait: OmpWait,
}

/// Reads the arguments; `processors` is the number of threads without an option.
pub(crate) fn parse(arguments: &[&str], processors: usize) -> Result<Options> {
    let mut options = Options {
        only: Vec::new(),
        json: None,
        threads: processors,
        rounds: 20,
        device: "cpu".into(),
        backend: "ndarray".into(),
        peers: Vec::new(),
        omp_wait: OmpWait::Default,
    };
    let mut arguments = arguments.iter();
    while let Some(&option) = arguments.next() {
        let known = [
            "--only",
            "--json",
            "--threads",
            "--rounds",
            "--device",
            "--backend",
            "--peer",
            "--omp-wait",
        ];
        if !known.contains(&option) {
            return Err(format!(
                "unknown option {option}; bench takes {}",
                known.join(", ")
            ));
        }
        let value = *arguments
            .next()
            .ok_or_else(|| format!("{option} needs a value"))?;
        match option {
            "--only" => options.only.push(value.into()),
            "--json" => options.json = Some(value.into()),
            "--threads" => options.threads = count(option, value)?,
            "--rounds" => options.rounds = count(option, value)?,
            "--device" => options.device = device(value)?,
            "--omp-wait" => options.omp_wait = omp_wait(value)?,
            "--backend" => options.backend = value.into(),
            _ => options.peers.push(peer(value)?),
        }
    }
    if options.peers.is_empty() {
        options.peers.push(&PEERS[0]);
    }
    Ok(options)
}

fn count(option: &str, value: &str) -> Result<usize> {
    match value.parse() {
        Ok(n) if n > 0 => Ok(n),
        _ => Err(format!("{option} takes a number of 1 or more, not {value}")),
    }
}

fn device(value: &str) -> Result<String> {
    let index = value.strip_prefix("cuda:");
    if value == "cpu" || index.is_some_and(|i| i.parse::<u8>().is_ok()) {
        return Ok(value.into());
    }
    Err(format!("--device takes cpu or cuda:N, not {value}"))
}

fn omp_wait(value: &str) -> Result<OmpWait> {
    let all = [OmpWait::Passive, OmpWait::Default];
    let found = all.into_iter().find(|wait| wait.name() == value);
    found.ok_or_else(|| format!("--omp-wait takes passive or default, not {value}"))
}

fn peer(value: &str) -> Result<&'static Peer> {
    let found = PEERS.iter().find(|p| p.name == value);
    found.ok_or_else(|| {
        let names: Vec<_> = PEERS.iter().map(|p| p.name).collect();
        format!("no peer {value}; there are {}", names.join(", "))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_have_defaults() {
        let options = parse(&[], 3).unwrap();
        assert_eq!((options.threads, options.rounds), (3, 20));
        assert_eq!((&*options.device, &*options.backend), ("cpu", "ndarray"));
        assert_eq!(options.peers, [&PEERS[0]]);
        assert_eq!(options.omp_wait, OmpWait::Default);
        assert!(options.only.is_empty() && options.json.is_none());
    }

    #[test]
    fn options_are_read() {
        let line = "--only a --only b --json o.json --threads 4 --rounds 7 --device cuda:1 \
            --backend tch --peer torch --peer torch-fused --omp-wait passive";
        let options = parse(&line.split_whitespace().collect::<Vec<_>>(), 1).unwrap();
        let expected = Options {
            only: vec!["a".into(), "b".into()],
            json: Some("o.json".into()),
            threads: 4,
            rounds: 7,
            device: "cuda:1".into(),
            backend: "tch".into(),
            peers: vec![&PEERS[0], &PEERS[1]],
            omp_wait: OmpWait::Passive,
        };
        assert_eq!(options, expected);
    }

    #[test]
    fn what_makes_no_sense_is_an_error() {
        for line in [
            "train-mlp",
            "--threads",
            "--threads 0",
            "--rounds many",
            "--device cuda",
            "--device gpu:0",
            "--peer jax",
            "--omp-wait active",
        ] {
            let arguments: Vec<_> = line.split_whitespace().collect();
            assert!(parse(&arguments, 1).is_err(), "{line}");
        }
    }
}
