//! What is found out about a row and a peer.

use serde_json::{Value, json};

use super::memory::Peak;
use super::options::Options;
use super::peers;
use super::rows::name_of;
use crate::Result;

/// A row against a peer, with a number of threads.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Line {
    pub(crate) name: String,
    pub(crate) group: String,
    pub(crate) peer: String,
    /// Version and settings of the peer, as far as it told them.
    pub(crate) peer_version: String,
    pub(crate) peer_settings: String,
    pub(crate) threads: usize,
    pub(crate) backend: String,
    pub(crate) device: String,
    pub(crate) omp_wait: String,
    /// The day of the measurement, and what of this library was measured.
    pub(crate) date: String,
    pub(crate) version: String,
    pub(crate) found: Found,
    /// Ours and the peer's.
    pub(crate) memory: Option<(Peak, Peak)>,
}

/// Times, or why there are none.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Found {
    Timed(Times),
    Missing(String),
}

/// Microseconds a step: medians of rounds; percentiles of the rounds' ratios.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Times {
    pub(crate) ours_us: f64,
    pub(crate) peer_us: f64,
    pub(crate) p10: f64,
    pub(crate) p90: f64,
    pub(crate) rounds: usize,
}

impl Times {
    /// Below 1 ours is faster.
    pub(crate) fn ratio(&self) -> f64 {
        self.ours_us / self.peer_us
    }
}

impl Line {
    pub(crate) fn times(&self) -> Option<&Times> {
        match &self.found {
            Found::Timed(times) => Some(times),
            Found::Missing(_) => None,
        }
    }

    /// What makes it another line.
    fn key(&self) -> (&str, &str, usize, &str, &str, &str) {
        let Line { name, peer, .. } = self;
        let Line {
            backend,
            device,
            omp_wait,
            ..
        } = self;
        (name, peer, self.threads, backend, device, omp_wait)
    }

    pub(crate) fn to_json(&self) -> Value {
        let mut value = json!({
            "name": self.name,
            "group": self.group,
            "peer": self.peer,
            "peer_version": self.peer_version,
            "peer_settings": self.peer_settings,
            "threads": self.threads,
            "backend": self.backend,
            "device": self.device,
            "omp_wait": self.omp_wait,
            "date": self.date,
            "version": self.version,
        });
        match &self.found {
            Found::Timed(times) => {
                value["ours_us"] = times.ours_us.into();
                value["peer_us"] = times.peer_us.into();
                value["ratio"] = times.ratio().into();
                value["p10"] = times.p10.into();
                value["p90"] = times.p90.into();
                value["rounds"] = times.rounds.into();
            }
            Found::Missing(reason) => value["reason"] = reason.as_str().into(),
        }
        if let Some((ours, peer)) = &self.memory {
            value["ours_running_mib"] = ours.running.into();
            value["peer_running_mib"] = peer.running.into();
            value["ours_loading_mib"] = ours.loading.into();
            value["peer_loading_mib"] = peer.loading.into();
        }
        value
    }

    pub(crate) fn from_json(value: &Value) -> Result<Line> {
        let text = |key: &str| {
            let found = value[key].as_str().map(String::from);
            found.ok_or_else(|| format!("a line has no text {key}: {value}"))
        };
        let number = |key: &str| {
            let found = value[key].as_f64();
            found.ok_or_else(|| format!("a line has no number {key}: {value}"))
        };
        let found = match value["reason"].as_str() {
            Some(reason) => Found::Missing(reason.into()),
            None => Found::Timed(Times {
                ours_us: number("ours_us")?,
                peer_us: number("peer_us")?,
                p10: number("p10")?,
                p90: number("p90")?,
                rounds: number("rounds")? as usize,
            }),
        };
        let memory = match value["ours_running_mib"].is_null() {
            true => None,
            false => {
                let peak = |side: &str| -> Result<Peak> {
                    Ok(Peak {
                        running: number(&format!("{side}_running_mib"))?,
                        loading: number(&format!("{side}_loading_mib"))?,
                    })
                };
                Some((peak("ours")?, peak("peer")?))
            }
        };
        Ok(Line {
            name: text("name")?,
            group: text("group")?,
            peer: text("peer")?,
            peer_version: text("peer_version")?,
            peer_settings: text("peer_settings")?,
            threads: number("threads")? as usize,
            backend: text("backend")?,
            device: text("device")?,
            omp_wait: text("omp_wait")?,
            date: text("date")?,
            version: text("version")?,
            found,
            memory,
        })
    }
}

/// All lines: the new ones, and those of `before` that were not measured again; a line that was
/// keeps its memory if that was not. Rows are in the order of `rows`, then come threads and peers.
pub(crate) fn merge(before: Vec<Line>, new: Vec<Line>, rows: &[Value]) -> Vec<Line> {
    let mut all = before;
    for mut line in new {
        if let Some(at) = all.iter().position(|old| old.key() == line.key()) {
            let old = all.remove(at);
            line.memory = line.memory.or(old.memory);
        }
        all.push(line);
    }
    let place = |line: &Line| {
        let row = rows.iter().position(|row| name_of(row) == line.name);
        (
            row.unwrap_or(rows.len()),
            line.backend.clone(),
            line.device.clone(),
            line.threads,
            peers::place(&line.peer),
            line.omp_wait.clone(),
        )
    };
    all.sort_by_key(place);
    all
}

/// A line without results: where it stands.
pub(crate) fn blank(row: &Value, peer: &str, threads: usize, options: &Options) -> Line {
    Line {
        name: name_of(row).into(),
        group: super::rows::group_of(row).into(),
        peer: peer.into(),
        peer_version: String::new(),
        peer_settings: String::new(),
        threads,
        backend: options.backend.clone(),
        device: options.device.clone(),
        omp_wait: options.omp_wait.name().into(),
        date: String::new(),
        version: String::new(),
        found: Found::Missing("not measured".into()),
        memory: None,
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::bench::options;

    /// A line of these times, with memory if they are not of the peer `burn`.
    pub(crate) fn line(name: &str, peer: &str, threads: usize, us: Option<[f64; 2]>) -> Line {
        let options = options::parse(&[], 1).unwrap();
        let row = json!({"name": name, "mode": "train"});
        let mut line = blank(&row, peer, threads, &options);
        line.peer_version = "1.2".into();
        line.date = "2026-01-02".into();
        line.version = "0.1.0".into();
        line.found = match us {
            Some([ours_us, peer_us]) => Found::Timed(Times {
                ours_us,
                peer_us,
                p10: 0.9 * ours_us / peer_us,
                p90: 1.1 * ours_us / peer_us,
                rounds: 20,
            }),
            None => Found::Missing("no such operator".into()),
        };
        line
    }

    fn peak(running: f64) -> Peak {
        let loading = 2.0 * running;
        Peak { running, loading }
    }

    #[test]
    fn lines_survive_json() {
        let mut timed = line("a", "torch", 2, Some([30.0, 20.0]));
        timed.memory = Some((peak(4.0), peak(8.5)));
        for line in [timed.clone(), line("b", "burn", 1, None)] {
            let value = line.to_json();
            assert_eq!(Line::from_json(&value), Ok(line));
        }
        let value = timed.to_json();
        assert_eq!(value["ratio"], 1.5);
        assert_eq!(value["peer_loading_mib"], 17.0);
        for key in ["name", "p90", "peer_loading_mib"] {
            let mut broken = value.clone();
            broken[key] = Value::Null;
            assert!(Line::from_json(&broken).unwrap_err().contains(key), "{key}");
        }
    }

    #[test]
    fn new_lines_replace_old_ones_in_the_order_of_the_rows() {
        let rows = [json!({"name": "b"}), json!({"name": "a"})];
        let mut old = line("a", "torch", 1, Some([1.0, 2.0]));
        old.memory = Some((peak(4.0), peak(8.0)));
        let before = vec![old, line("a", "torch", 2, None)];
        let new = vec![
            line("a", "torch", 1, Some([3.0, 2.0])),
            line("b", "burn", 1, Some([1.0, 1.0])),
            line("b", "torch", 1, Some([1.0, 1.0])),
        ];
        let all = merge(before, new, &rows);
        let found: Vec<_> = all
            .iter()
            .map(|l| (&*l.name, &*l.peer, l.threads))
            .collect();
        let expected = [
            ("b", "torch", 1),
            ("b", "burn", 1),
            ("a", "torch", 1),
            ("a", "torch", 2),
        ];
        assert_eq!(found, expected);
        assert_eq!(all[2].times().unwrap().ratio(), 1.5);
        assert_eq!(all[2].memory, Some((peak(4.0), peak(8.0))));
    }
}
