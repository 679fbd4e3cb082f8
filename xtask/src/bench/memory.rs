//! Peaks of memory.
//!
//! They are read from outside, so that every side is measured in the same way: the operating
//! system's mark of the most memory that was resident (`VmHWM`), less what was resident before
//! the workload came (the program and its libraries, a Python interpreter among them). Each is
//! measured in a new process, because allocators keep what they once had.

use std::fs;

use serde_json::Value;

use super::worker::Worker;
use crate::Result;

/// How many steps run before the mark is reset, and after.
const STEPS: usize = 3;

const LR: f64 = 1e-7;

/// In MiB, above the idle process.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Peak {
    /// While steps run, after the first few.
    pub(crate) running: f64,
    /// From the load to there: reading and preparing the model, and first steps.
    pub(crate) loading: f64,
}

/// Whether this system can tell.
pub(crate) fn available() -> Result {
    let process = std::process::id();
    resident(process, "VmHWM").and_then(|_| reset(process))
}

/// Loads a workload in a new process, and runs steps of it.
pub(crate) fn peak(worker: &mut Worker, request: &Value) -> Result<Peak> {
    worker.stop();
    worker.about()?;
    let process = worker.process().ok_or("the worker has ended")?;
    let idle = resident(process, "VmRSS")?;
    reset(process)?;
    worker.load(request)?;
    worker.run(STEPS, LR)?;
    let loading = resident(process, "VmHWM")?;
    reset(process)?;
    worker.run(STEPS, LR)?;
    let running = resident(process, "VmHWM")?;
    worker.stop();
    Ok(Peak {
        running: running - idle,
        loading: loading - idle,
    })
}

/// A figure of a process, in MiB.
pub(crate) fn resident(process: u32, name: &str) -> Result<f64> {
    let file = format!("/proc/{process}/status");
    let text = fs::read_to_string(&file)
        .map_err(|e| format!("peaks of memory need Linux: {file}: {e}"))?;
    figure(&text, name).ok_or_else(|| format!("{file} has no {name}"))
}

fn figure(status: &str, name: &str) -> Option<f64> {
    let mut lines = status.lines();
    let rest = lines.find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))?;
    let number = rest.trim().strip_suffix("kB")?.trim();
    Some(number.parse::<f64>().ok()? / 1024.0)
}

/// Sets the mark to what is resident now.
pub(super) fn reset(process: u32) -> Result {
    let file = format!("/proc/{process}/clear_refs");
    fs::write(&file, "5").map_err(|e| format!("peaks of memory cannot be reset: {file}: {e}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_are_in_mebibytes() {
        let status = "Name:\tw\nVmHWM:\t    3072 kB\nVmRSS:\t     512 kB\n";
        assert_eq!(figure(status, "VmHWM"), Some(3.0));
        assert_eq!(figure(status, "VmRSS"), Some(0.5));
        assert_eq!(figure(status, "VmSwap"), None);
        assert_eq!(figure(status, "Name"), None);
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn the_mark_can_be_reset() {
        let process = std::process::id();
        let size = 64 << 20;
        let before = resident(process, "VmRSS").unwrap();
        drop(std::hint::black_box(vec![1u8; size]));
        assert!(resident(process, "VmHWM").unwrap() >= before + 60.0);
        reset(process).unwrap();
        assert!(resident(process, "VmHWM").unwrap() < before + 60.0);
    }
}
