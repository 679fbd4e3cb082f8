//! A profile as a table.

use std::fmt::Write as _;

use super::{Profile, StepProfile, Time, rate};

/// Characters of a name that are shown; fused kernels are named after all that they do.
const NAME: usize = 40;

/// A row: what its columns are made from.
struct Row {
    time: Time,
    macs: u64,
    bytes: u64,
    kernel: String,
    last: String,
}

pub(super) fn steps(profile: &Profile, rows: usize) -> String {
    let mut steps: Vec<&StepProfile> = profile.steps.iter().collect();
    steps.sort_by_key(|s| std::cmp::Reverse(s.time.median_ns));
    let all = steps.into_iter().map(|step| Row {
        time: step.time,
        macs: step.macs,
        bytes: step.read_bytes.saturating_add(step.written_bytes),
        kernel: short(&step.kernel),
        last: match &step.nodes[..] {
            [] => String::new(),
            [only] => short(only),
            [first, others @ ..] => format!("{} +{}", short(first), others.len()),
        },
    });
    render(profile, all.collect(), rows, "nodes")
}

pub(super) fn kernels(profile: &Profile, rows: usize) -> String {
    let all = profile.by_kernel().into_iter().map(|kernel| Row {
        time: kernel.time,
        macs: kernel.macs,
        bytes: kernel.read_bytes.saturating_add(kernel.written_bytes),
        kernel: short(&kernel.kernel),
        last: kernel.steps.to_string(),
    });
    render(profile, all.collect(), rows, "steps")
}

/// The beginning of a name, without what would break a line.
fn short(name: &str) -> String {
    let mut chars = name
        .chars()
        .map(|c| if c.is_control() { '\u{fffd}' } else { c });
    let mut out: String = chars.by_ref().take(NAME).collect();
    if chars.next().is_some() {
        out.pop();
        out.push('…');
    }
    out
}

fn render(profile: &Profile, all: Vec<Row>, rows: usize, last: &str) -> String {
    let total = profile.total.median_ns;
    let us = |ns: u64| format!("{:.1}", ns as f64 / 1e3);
    let share = |ns: u64| match total {
        0 => "-".to_string(),
        _ => format!("{:.1} %", 100.0 * ns as f64 / total as f64),
    };
    let number = |x: Option<f64>| x.map_or_else(|| "-".to_string(), |x| format!("{x:.1}"));

    let plural = |n: usize| if n == 1 { "" } else { "s" };
    let mut out = format!(
        "{}, {} thread{}: {} us a run (median of {}, shortest {}), {} step{}\n",
        profile.backend,
        profile.threads,
        plural(profile.threads),
        us(total),
        profile.runs,
        us(profile.total.min_ns),
        profile.steps.len(),
        plural(profile.steps.len()),
    );
    let head = ["us", "share", "min us", "GFLOP/s", "GB/s", "kernel", last];
    let mut cells: Vec<[String; 7]> = vec![head.map(str::to_string)];
    for row in all.iter().take(rows) {
        cells.push([
            us(row.time.median_ns),
            share(row.time.median_ns),
            us(row.time.min_ns),
            number(rate(2.0 * row.macs as f64, row.time)),
            number(rate(row.bytes as f64, row.time)),
            row.kernel.clone(),
            row.last.clone(),
        ]);
    }
    let mut rest = |time: Time, what: String| {
        let [a, b, c] = [us(time.median_ns), share(time.median_ns), us(time.min_ns)];
        let none = || "-".to_string();
        cells.push([a, b, c, none(), none(), what, String::new()]);
    };
    if let Some(others @ [_, ..]) = all.get(rows..) {
        let time = others.iter().fold(Time::default(), |t, r| t.plus(r.time));
        rest(time, format!("({} more)", others.len()));
    }
    rest(profile.outside, "(outside of the steps)".to_string());

    let width = |column: usize| {
        let widths = cells.iter().map(|row| row[column].chars().count());
        widths.max().unwrap_or(0)
    };
    let widths: [usize; 7] = std::array::from_fn(width);
    for row in &cells {
        let mut line = String::new();
        for (i, (cell, &width)) in row.iter().zip(&widths).enumerate() {
            // Numbers to the right, names to the left. Writing to a string does not fail.
            let _ = match i {
                0..5 => write!(line, "{cell:>width$}  "),
                _ => write!(line, "{cell:<width$}  "),
            };
        }
        out.push_str(line.trim_end());
        out.push('\n');
    }
    out
}
