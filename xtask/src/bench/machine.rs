//! What was measured, where and when, for the reader of the tables.

use std::path::Path;
use std::process::Command;
use std::time::{SystemTime, UNIX_EPOCH};

use crate::root;

/// The processor's name, as far as the system tells it.
pub(crate) fn processor() -> String {
    let text = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let name = text.lines().find_map(|line| {
        let (key, value) = line.split_once(':')?;
        (key.trim() == "model name").then(|| value.trim().to_string())
    });
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    let name = name.unwrap_or_else(|| std::env::consts::ARCH.into());
    format!("{name}, {threads} hardware threads")
}

/// The compiler's version.
pub(crate) fn rustc() -> String {
    let rustc = std::env::var("RUSTC").unwrap_or_else(|_| "rustc".into());
    first_line(Command::new(rustc).arg("--version"))
}

/// This library's version, and its commit.
pub(crate) fn version() -> String {
    let manifest = std::fs::read_to_string(root().join("Cargo.toml")).unwrap_or_default();
    let package = package_version(&manifest).unwrap_or("unknown");
    let commit = ["rev-parse", "--short", "HEAD"];
    let commit = first_line(Command::new("git").args(commit).current_dir(root()));
    format!("{package} ({commit})")
}

/// The version that the packages of a workspace have.
fn package_version(manifest: &str) -> Option<&str> {
    let section = manifest.split("[workspace.package]").nth(1)?;
    let lines = section.lines().skip(1);
    let mut lines = lines.take_while(|line| !line.starts_with('['));
    let value = lines.find_map(|line| line.strip_prefix("version = "))?;
    Some(value.trim_matches('"'))
}

fn first_line(command: &mut Command) -> String {
    let output = command.output().ok().filter(|out| out.status.success());
    let text = output.map(|out| String::from_utf8_lossy(&out.stdout).into_owned());
    let line = text.as_ref().and_then(|text| text.lines().next());
    line.unwrap_or("unknown").trim().into()
}

/// Today in UTC, as `2026-01-31`.
pub(crate) fn today() -> String {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    date(since.map_or(0, |time| time.as_secs() / 86400))
}

/// The date so many days after 1970-01-01, in the Gregorian calendar.
fn date(days: u64) -> String {
    let leap = |year: u64| {
        year.is_multiple_of(4) && (!year.is_multiple_of(100) || year.is_multiple_of(400))
    };
    let (mut year, mut left) = (1970, days);
    loop {
        let length = 365 + u64::from(leap(year));
        if left < length {
            break;
        }
        left -= length;
        year += 1;
    }
    let february = 28 + u64::from(leap(year));
    let mut month = 1;
    for length in [31, february, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31] {
        if left < length {
            break;
        }
        left -= length;
        month += 1;
    }
    format!("{year:04}-{month:02}-{:02}", left + 1)
}

/// A path as it is typed in the root of the repository.
pub(crate) fn shown(path: &Path) -> String {
    path.strip_prefix(root())
        .unwrap_or(path)
        .display()
        .to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates_are_gregorian() {
        // date -u -d @$((DAYS * 86400)) +%F
        for (days, expected) in [
            (0, "1970-01-01"),
            (58, "1970-02-28"),
            (59, "1970-03-01"),
            (11_016, "2000-02-29"),
            (11_322, "2000-12-31"),
            (20_454, "2026-01-01"),
            (47_540, "2100-02-28"),
            (47_541, "2100-03-01"),
        ] {
            assert_eq!(date(days), expected, "{days}");
        }
    }

    #[test]
    fn versions_name_the_package() {
        let manifest = "[workspace]\nversion = \"9\"\n\n[workspace.package]\nedition = \"2024\"\n\
            version = \"0.3.1\"\n[workspace.dependencies]\n";
        assert_eq!(package_version(manifest), Some("0.3.1"));
        assert_eq!(package_version("[package]\nversion = \"1\"\n"), None);
        assert!(!version().starts_with("unknown"));
        assert!(rustc().starts_with("rustc "));
        assert!(!processor().is_empty());
    }
}
