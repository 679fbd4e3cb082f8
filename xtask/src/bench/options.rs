//! The options of `cargo xtask bench`.

use std::path::PathBuf;

use super::peers::{DEFAULT, PEERS, Peer};
use crate::{Result, root};

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
    /// The rows or groups to run; all that suit the device if there is none.
    pub(crate) only: Vec<String>,
    /// Where the table goes as JSON.
    pub(crate) json: Option<PathBuf>,
    /// Whether that file's other lines stay.
    pub(crate) update: bool,
    /// Where the table goes as Markdown.
    pub(crate) markdown: Option<PathBuf>,
    /// Whether peaks of memory are measured too.
    pub(crate) memory: bool,
    /// Each row runs with each number of threads.
    pub(crate) threads: Vec<usize>,
    pub(crate) rounds: usize,
    pub(crate) device: String,
    pub(crate) backend: String,
    pub(crate) peers: Vec<&'static Peer>,
    pub(crate) omp_wait: OmpWait,
}

/// The options with a value, and those without.
const VALUED: [&str; 9] = [
    "--only",
    "--peer",
    "--threads",
    "--rounds",
    "--json",
    "--markdown",
    "--device",
    "--backend",
    "--omp-wait",
];
const FLAGS: [&str; 3] = ["--memory", "--update", "--write"];

/// Reads the arguments; `processors` is the number of threads without an option.
pub(crate) fn parse(arguments: &[&str], processors: usize) -> Result<Options> {
    let mut options = Options {
        only: Vec::new(),
        json: None,
        update: false,
        markdown: None,
        memory: false,
        threads: vec![processors],
        rounds: 20,
        device: "cpu".into(),
        backend: "ndarray".into(),
        peers: Vec::new(),
        omp_wait: OmpWait::Default,
    };
    let mut names: Vec<&str> = Vec::new();
    let mut arguments = arguments.iter();
    while let Some(&option) = arguments.next() {
        match option {
            "--memory" => options.memory = true,
            "--update" => options.update = true,
            "--write" => options.markdown = Some(root().join("docs/BENCHMARKS.md")),
            _ if !VALUED.contains(&option) => {
                return Err(format!(
                    "unknown option {option}; bench takes {}, {}",
                    VALUED.join(", "),
                    FLAGS.join(", ")
                ));
            }
            _ => {
                let value = *arguments
                    .next()
                    .ok_or_else(|| format!("{option} needs a value"))?;
                match option {
                    "--only" => options.only.push(value.into()),
                    "--peer" => names.push(value),
                    "--threads" => options.threads = threads(value)?,
                    "--rounds" => options.rounds = count(option, value)?,
                    "--json" => options.json = Some(value.into()),
                    "--markdown" => options.markdown = Some(value.into()),
                    "--device" => options.device = device(value)?,
                    "--backend" => options.backend = value.into(),
                    _ => options.omp_wait = omp_wait(value)?,
                }
            }
        }
    }
    if options.update && options.json.is_none() {
        return Err("--update needs --json FILE, whose lines stay".into());
    }
    options.peers = match names.as_slice() {
        [] => peers(&DEFAULT)?,
        ["all"] => PEERS.iter().collect(),
        names => peers(names)?,
    };
    Ok(options)
}

/// `1,2`
fn threads(value: &str) -> Result<Vec<usize>> {
    let mut all: Vec<usize> = Vec::new();
    for part in value.split(',') {
        let number = count("--threads", part)?;
        if !all.contains(&number) {
            all.push(number);
        }
    }
    Ok(all)
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

/// The peers of these names, in their own order.
fn peers(names: &[&str]) -> Result<Vec<&'static Peer>> {
    if let Some(unknown) = names
        .iter()
        .find(|name| !PEERS.iter().any(|p| p.name == **name))
    {
        let known: Vec<_> = PEERS.iter().map(|p| p.name).collect();
        let known = known.join(", ");
        return Err(format!("no peer {unknown}; there are {known}, and all"));
    }
    Ok(PEERS.iter().filter(|p| names.contains(&p.name)).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(options: &Options) -> Vec<&str> {
        options.peers.iter().map(|p| p.name).collect()
    }

    #[test]
    fn options_have_defaults() {
        let options = parse(&[], 3).unwrap();
        assert_eq!((&options.threads[..], options.rounds), (&[3][..], 20));
        assert_eq!((&*options.device, &*options.backend), ("cpu", "ndarray"));
        assert_eq!(names(&options), DEFAULT);
        assert_eq!(options.omp_wait, OmpWait::Default);
        assert!(options.only.is_empty() && options.json.is_none());
        assert!(!options.memory && !options.update && options.markdown.is_none());
    }

    #[test]
    fn options_are_read() {
        let line = "--only a --only b --json o.json --threads 1,4,1 --rounds 7 --device cuda:1 \
            --memory --backend tch --peer torch-fused --peer torch --omp-wait passive --update \
            --markdown t.md";
        let options = parse(&line.split_whitespace().collect::<Vec<_>>(), 1).unwrap();
        let expected = Options {
            only: vec!["a".into(), "b".into()],
            json: Some("o.json".into()),
            update: true,
            markdown: Some("t.md".into()),
            memory: true,
            threads: vec![1, 4],
            rounds: 7,
            device: "cuda:1".into(),
            backend: "tch".into(),
            peers: vec![&PEERS[0], &PEERS[1]],
            omp_wait: OmpWait::Passive,
        };
        assert_eq!(options, expected);
        let all = parse(&["--peer", "all", "--write"], 1).unwrap();
        assert_eq!(all.peers.len(), PEERS.len());
        assert!(all.markdown.unwrap().ends_with("docs/BENCHMARKS.md"));
    }

    #[test]
    fn what_makes_no_sense_is_an_error() {
        for line in [
            "train-mlp",
            "--threads",
            "--threads 0",
            "--threads 1,,2",
            "--rounds many",
            "--device cuda",
            "--device gpu:0",
            "--peer jax",
            "--peer all --peer torch",
            "--omp-wait active",
            "--update",
        ] {
            let arguments: Vec<_> = line.split_whitespace().collect();
            assert!(parse(&arguments, 1).is_err(), "{line}");
        }
    }
}
