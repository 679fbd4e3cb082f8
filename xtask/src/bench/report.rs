//! `docs/BENCHMARKS.md`: the lines as tables, how they came about, and where this library is
//! behind.

use std::collections::BTreeSet;
use std::fmt::Write as _;

use super::line::{Found, Line};
use super::options::Options;
use super::peers::{PEERS, Program};
use super::rows::GROUPS;
use super::{machine, measure};

/// A ratio up to this counts as neither ahead nor behind.
const EVEN: f64 = 1.02;

const READING: &str = "\
## How to read

Times are microseconds a step: a training step (forward, loss, backward, the optimizer's update)
or a forward pass. *ours* and *peer's* are medians over the rounds of a run; *ratio* is ours divided
by the peer's, so below 1 this library is faster; *p10–p90* are percentiles of the ratios of single
rounds, which say how far to trust it. A ratio whose range holds 1 says nothing about who is faster.

*Memory* is the most that was resident in the process, less what was resident before the model came
(the program and its libraries, a Python interpreter among them): while steps run, and while the
model is loaded and prepared until the first steps have run. It is read from the operating system
in the same way for every side, each in a process of its own. What a library loads or compiles only
when it is first used is in it; compilers that it starts as other processes are not.

## How it is measured

Each side is a process that stays, with one model and one batch of inputs, and is told how many
steps to run; the time is taken inside, around the steps. The sides take turns: in a round each runs
for about TURN seconds (or one step, if that takes longer) while the others sleep, so that a slow
moment of the machine falls on all of them. Everybody gets the same number of threads.

Nothing is timed before the sides agree. Training and forward rows start from the same weights and
the same batch, and the losses of the first CHECKED steps have to be the same within 0.1 % (2 % where
products are bfloat16). Models that are files have to give what ONNX Runtime gave when the file was
made, within the bound that `benches/rows.json` states for the row: relative to the largest output,
1e-5 for f32 and nothing for an integer product. For whole 8-bit networks it is 2.5e-2 and 3.5e-2: a
value between two steps of the grid rounds to either, and ONNX Runtime differs from itself by
1.4e-2 and 1.8e-2 when its optimisations are switched off. A peer that fails or disagrees is in the
list below the tables with its own message.

What the workloads are: `benches/rows.json`. Models that are built have the same layers everywhere
(`benches/src/models.rs`, `benches/peers/torch_models.py`). Files come from
`benches/peers/onnx_models.py`: torchvision's networks and an encoder of MiniLM's size, with random
weights and batch-norm statistics, exported by PyTorch, batch 1; 8-bit files from ONNX Runtime's own
quantization tools. Both sides read the same file.
";

/// The whole page.
pub(crate) fn page(lines: &[Line], options: &Options) -> String {
    let mut text = String::from(
        "# Benchmarks\n\n\
         This page is written by `cargo xtask bench`; the figures are of one machine and one day.\n\n",
    );
    text += &setup(lines, options);
    let reading = READING
        .replace("TURN", &format!("{}", measure::TURN_US / 1e6))
        .replace("CHECKED", &measure::CHECKED.to_string());
    text += "\n";
    text += &reading;
    for (group, title) in GROUPS {
        let lines: Vec<&Line> = lines.iter().filter(|line| line.group == group).collect();
        text += &times(title, &lines);
    }
    text += &memory(lines);
    text += &behind(lines);
    text += &missing(lines);
    text
}

fn setup(lines: &[Line], options: &Options) -> String {
    let distinct = |of: fn(&Line) -> &String| {
        let all: BTreeSet<&str> = lines.iter().map(|line| of(line).as_str()).collect();
        all.into_iter().collect::<Vec<_>>().join(", ")
    };
    let mut text = String::from("| | |\n| --- | --- |\n");
    let mut add = |name: &str, value: &str| {
        let _ = writeln!(text, "| {name} | {} |", cell(value));
    };
    add("measured on", &distinct(|line| &line.date));
    add("processor", &machine::processor());
    add("this library", &distinct(|line| &line.version));
    add("compiler", &machine::rustc());
    add("backend", &distinct(|line| &line.backend));
    add("device", &distinct(|line| &line.device));
    let waits = distinct(|line| &line.omp_wait);
    add("idle OpenMP threads", &waits);
    for peer in &PEERS {
        let mut of = lines.iter().filter(|line| line.peer == peer.name);
        let Some(line) = of.find(|line| !line.peer_version.is_empty()) else {
            continue;
        };
        let settings = match (&peer.program, line.peer_settings.as_str()) {
            // One worker has the settings of three peers; they are in `about`.
            (Program::Python("torch_worker.py"), _) | (_, "") => String::new(),
            (_, settings) => format!("; {settings}"),
        };
        let value = format!("{} {}{settings}", peer.about, line.peer_version);
        add(&format!("`{}`", peer.name), &value);
    }
    let threads: BTreeSet<usize> = lines.iter().map(|line| line.threads).collect();
    let threads: Vec<String> = threads.iter().map(ToString::to_string).collect();
    let memory = match lines.iter().any(|line| line.memory.is_some()) {
        true => " --memory",
        false => "",
    };
    let _ = write!(
        text,
        "\nTo repeat it:\n\n```sh\ncargo xtask bench --peer all --threads {}{memory} --rounds {} \
         --json target/bench/all.json --write\n```\n",
        threads.join(","),
        options.rounds,
    );
    text
}

fn times(title: &str, lines: &[&Line]) -> String {
    let mut timed = lines
        .iter()
        .filter_map(|line| Some((line, line.times()?)))
        .peekable();
    if timed.peek().is_none() {
        return String::new();
    }
    let mut text = format!(
        "\n## {title}\n\n\
         | row | threads | ours, us | peer | peer's, us | ratio | p10–p90 |\n\
         | --- | ---: | ---: | --- | ---: | ---: | --- |\n"
    );
    for (line, times) in timed {
        let _ = writeln!(
            text,
            "| {} | {} | {} | {} | {} | {:.2} | {:.2}–{:.2} |",
            line.name,
            line.threads,
            digits(times.ours_us),
            line.peer,
            digits(times.peer_us),
            times.ratio(),
            times.p10,
            times.p90,
        );
    }
    text
}

fn memory(lines: &[Line]) -> String {
    let measured: Vec<_> = lines
        .iter()
        .filter_map(|line| Some((line, line.memory?)))
        .collect();
    if measured.is_empty() {
        return String::new();
    }
    let mut text = String::from(
        "\n## Memory\n\n\
         MiB above the idle process: while steps run, and from the load to the first steps.\n\n\
         | row | threads | ours | peer | peer's | ratio | ours, loading | peer's, loading |\n\
         | --- | ---: | ---: | --- | ---: | ---: | ---: | ---: |\n",
    );
    for (line, (ours, peer)) in measured {
        let _ = writeln!(
            text,
            "| {} | {} | {} | {} | {} | {:.2} | {} | {} |",
            line.name,
            line.threads,
            digits(ours.running),
            line.peer,
            digits(peer.running),
            ours.running / peer.running,
            digits(ours.loading),
            digits(peer.loading),
        );
    }
    text
}

fn behind(lines: &[Line]) -> String {
    let mut text = String::from("\n## Where this library is behind\n\n");
    let mut none = true;
    for line in lines {
        let Some(times) = line.times().filter(|times| times.ratio() > EVEN) else {
            continue;
        };
        none = false;
        let _ = writeln!(
            text,
            "- {}, {}: {:.2} times as long as {} ({:.2}–{:.2})",
            line.name,
            threads(line.threads),
            times.ratio(),
            line.peer,
            times.p10,
            times.p90,
        );
    }
    for line in lines {
        let Some((ours, peer)) = line.memory.filter(|(o, p)| o.running > EVEN * p.running) else {
            continue;
        };
        none = false;
        let _ = writeln!(
            text,
            "- {}, {}: {} MiB of memory, {} {}",
            line.name,
            threads(line.threads),
            digits(ours.running),
            line.peer,
            digits(peer.running),
        );
    }
    if none {
        text += "In none of these rows.\n";
    }
    text
}

/// What could not be compared: one line a row and a peer, whatever the number of threads.
fn missing(lines: &[Line]) -> String {
    let mut text = String::new();
    let mut seen = BTreeSet::new();
    for line in lines {
        let Found::Missing(reason) = &line.found else {
            continue;
        };
        if seen.insert((&line.name, &line.peer, reason)) {
            let _ = writeln!(text, "| {} | {} | {} |", line.name, line.peer, cell(reason));
        }
    }
    match text.is_empty() {
        true => text,
        false => format!(
            "\n## Not compared\n\n\
             Peers that a row was given to and that have no times, with what they say.\n\n\
             | row | peer | reason |\n| --- | --- | --- |\n{text}"
        ),
    }
}

fn threads(count: usize) -> String {
    match count {
        1 => "1 thread".into(),
        _ => format!("{count} threads"),
    }
}

/// Three digits or more, as many before the point as there are.
fn digits(value: f64) -> String {
    match value.abs() {
        x if x >= 100.0 => format!("{value:.0}"),
        x if x >= 10.0 => format!("{value:.1}"),
        _ => format!("{value:.2}"),
    }
}

/// Text that stays in its cell of a table.
fn cell(text: &str) -> String {
    text.replace('|', "\\|")
        .replace('\n', " ")
        .replace('<', "&lt;")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bench::line::tests::line;
    use crate::bench::memory::Peak;
    use crate::bench::options;

    fn lines() -> Vec<Line> {
        let peak = |running| Peak {
            running,
            loading: 2.0 * running,
        };
        let mut first = line("train-a", "torch", 1, Some([5.0, 10.0]));
        first.memory = Some((peak(30.0), peak(20.0)));
        vec![
            first,
            line("train-a", "burn", 1, None),
            line("train-a", "torch", 2, Some([1234.5, 1000.0])),
            line("train-a", "burn", 2, None),
        ]
    }

    #[test]
    fn the_page_has_what_was_found_and_where_we_are_behind() {
        let options = options::parse(&[], 1).unwrap();
        let page = page(&lines(), &options);
        for part in [
            "| train-a | 1 | 5.00 | torch | 10.0 | 0.50 | 0.45–0.55 |",
            "| train-a | 2 | 1234 | torch | 1000 | 1.23 | 1.11–1.36 |",
            "| train-a | 1 | 30.0 | torch | 20.0 | 1.50 | 60.0 | 40.0 |",
            "- train-a, 2 threads: 1.23 times as long as torch",
            "- train-a, 1 thread: 30.0 MiB of memory, torch 20.0",
            "| train-a | burn | no such operator |",
            "| measured on | 2026-01-02 |",
            "| `torch` | eager PyTorch 1.2 |",
            "--threads 1,2 --memory --rounds 20",
            "about 0.15 seconds",
            "of the first 5 steps",
        ] {
            assert!(page.contains(part), "no {part:?} in\n{page}");
        }
        assert_eq!(page.matches("no such operator").count(), 1);
        assert!(!page.contains("## Inference"));
    }

    #[test]
    fn what_is_not_behind_is_not_said_to_be() {
        let even = line("train-a", "torch", 1, Some([10.1, 10.0]));
        let page = page(&[even], &options::parse(&[], 1).unwrap());
        assert!(page.contains("In none of these rows."));
        assert!(!page.contains("## Memory") && !page.contains("## Not compared"));
    }

    #[test]
    fn reasons_stay_in_their_cell() {
        assert_eq!(cell("a|b\nc <d>"), "a\\|b c &lt;d>");
    }
}
