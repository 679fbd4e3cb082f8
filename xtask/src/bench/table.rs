//! The table on the terminal.

use super::line::{Found, Line};
use super::options::Options;

pub(crate) fn heading(options: &Options) -> String {
    let memory = match options.memory {
        true => format!("  {:>17}", "MiB ours, peer's"),
        false => String::new(),
    };
    format!(
        "\nmicroseconds a step: medians of {} rounds; ratio: ours / peer, below 1 ours is faster; \
         backend {}, device {}, OpenMP threads wait: {}\n\n\
         {:<22} {:>7} {:>11}  {:<13} {:>11} {:>7}  {:>13}{memory}",
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

pub(crate) fn table_line(line: &Line) -> String {
    let Line {
        name,
        peer,
        threads,
        ..
    } = line;
    let times = match &line.found {
        Found::Missing(reason) => {
            return format!("{name:<22} {threads:>7} {:>11}  {peer:<13} -: {reason}", "");
        }
        Found::Timed(times) => times,
    };
    let spread = format!("{:.2}..{:.2}", times.p10, times.p90);
    let memory = line.memory.map_or(String::new(), |(ours, peer)| {
        let both = format!("{:.1}, {:.1}", ours.running, peer.running);
        format!("  {both:>17}")
    });
    format!(
        "{name:<22} {threads:>7} {:>11.1}  {peer:<13} {:>11.1} {:>7.2}  {spread:>13}{memory}",
        times.ours_us,
        times.peer_us,
        times.ratio(),
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bench::line::tests::line;
    use crate::bench::memory::Peak;

    #[test]
    fn lines_have_the_ratio_or_the_reason() {
        let mut timed = line("r", "torch", 2, Some([30.0, 20.0]));
        let text = table_line(&timed);
        assert!(
            text.contains(" 1.50 ") && text.ends_with("1.35..1.65"),
            "{text}"
        );
        let peak = |running| Peak {
            running,
            loading: running,
        };
        timed.memory = Some((peak(1.0), peak(2.5)));
        assert!(table_line(&timed).ends_with("1.0, 2.5"));
        let missing = table_line(&line("r", "burn", 2, None));
        assert!(missing.ends_with("-: no such operator"), "{missing}");
    }
}
