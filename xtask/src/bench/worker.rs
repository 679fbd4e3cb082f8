//! A worker process and what is said to it.

use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

use serde_json::{Value, json};

use super::options::OmpWait;
use crate::Result;

/// A process that answers requests, one at a time; it is started when the first one comes, and
/// again if it has died.
pub(crate) struct Worker {
    name: String,
    command: Command,
    running: Option<Running>,
}

struct Running {
    child: Child,
    stdin: ChildStdin,
    stdout: BufReader<ChildStdout>,
}

/// A worker holds nothing that is worth waiting for.
impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// What steps took, and the loss of the last one, where the workload has one.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Ran {
    pub(crate) us: f64,
    pub(crate) loss: Option<f64>,
}

/// What a worker runs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct About {
    pub(crate) version: String,
    pub(crate) settings: String,
}

impl Worker {
    pub(crate) fn new(name: &str, mut command: Command, wait: OmpWait) -> Worker {
        command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .env_remove("OMP_WAIT_POLICY");
        if wait == OmpWait::Passive {
            command.env("OMP_WAIT_POLICY", "PASSIVE");
        }
        Worker {
            name: name.into(),
            command,
            running: None,
        }
    }

    /// What it runs. Once it answers, its libraries are loaded.
    pub(crate) fn about(&mut self) -> Result<About> {
        let reply = self.ask(&json!({"do": "about"}))?;
        match (reply["version"].as_str(), reply["settings"].as_str()) {
            (Some(version), Some(settings)) => Ok(About {
                version: version.into(),
                settings: settings.into(),
            }),
            _ => Err(self.misunderstood(&reply)),
        }
    }

    /// The process, if it runs.
    pub(crate) fn process(&self) -> Option<u32> {
        self.running.as_ref().map(|running| running.child.id())
    }

    /// Ends the process; the next request starts another one.
    pub(crate) fn stop(&mut self) {
        self.running = None;
    }

    /// Makes a workload ready; the number of its parameters.
    pub(crate) fn load(&mut self, request: &Value) -> Result<u64> {
        let reply = self.ask(request)?;
        let count = reply["parameters"].as_u64();
        count.ok_or_else(|| self.misunderstood(&reply))
    }

    /// Runs steps.
    pub(crate) fn run(&mut self, steps: usize, lr: f64) -> Result<Ran> {
        let reply = self.ask(&json!({"do": "run", "steps": steps, "lr": lr}))?;
        match reply["us"].as_f64() {
            Some(us) if us > 0.0 => Ok(Ran {
                us,
                loss: reply["loss"].as_f64(),
            }),
            _ => Err(self.misunderstood(&reply)),
        }
    }

    /// Runs a forward pass, and has its outputs written to a file.
    pub(crate) fn outputs(&mut self, file: &Path) -> Result {
        let reply = self.ask(&json!({"do": "outputs", "file": file}))?;
        match reply["written"].as_u64() {
            Some(_) => Ok(()),
            None => Err(self.misunderstood(&reply)),
        }
    }

    fn misunderstood(&self, reply: &Value) -> String {
        format!("{} answered {reply}", self.name)
    }

    /// Its answer to any request.
    pub(crate) fn ask(&mut self, request: &Value) -> Result<Value> {
        let answered = self.exchange(request);
        let line = answered.map_err(|e| {
            // Where it stands is not known any more.
            self.running = None;
            format!("{} is gone: {e}", self.name)
        })?;
        let reply: Value =
            serde_json::from_str(&line).map_err(|e| format!("{}: {e}: {line}", self.name))?;
        match reply["error"].as_str() {
            Some(error) => Err(format!("{}: {error}", self.name)),
            None => Ok(reply),
        }
    }

    fn exchange(&mut self, request: &Value) -> std::io::Result<String> {
        if self.running.is_none() {
            let mut child = self.command.spawn()?;
            let pipes = child.stdin.take().zip(child.stdout.take());
            let (stdin, stdout) = pipes.ok_or_else(|| std::io::Error::other("it has no pipes"))?;
            self.running = Some(Running {
                child,
                stdin,
                stdout: BufReader::new(stdout),
            });
        }
        let running = self.running.as_mut().expect("it was started above");
        writeln!(running.stdin, "{request}")?;
        let mut line = String::new();
        match running.stdout.read_line(&mut line)? {
            0 => Err(std::io::Error::other("it ended without an answer")),
            _ => Ok(line),
        }
    }
}

#[cfg(all(test, unix))]
mod tests {
    use super::*;

    /// A worker that answers each line with the next of these, and then ends.
    fn scripted(replies: &[&str]) -> Worker {
        let mut command = Command::new("sh");
        let lines: String = replies
            .iter()
            .map(|r| format!("read line; echo '{r}'; "))
            .collect();
        command.args(["-c", &lines]);
        Worker::new("peer", command, OmpWait::Default)
    }

    #[test]
    fn replies_are_read() {
        let mut worker = scripted(&[r#"{"parameters": 12}"#, r#"{"us": 2.5, "loss": 0.5}"#]);
        assert_eq!(worker.load(&json!({"do": "load"})), Ok(12));
        let ran = worker.run(3, 1e-3).unwrap();
        assert_eq!((ran.us, ran.loss), (2.5, Some(0.5)));
    }

    #[test]
    fn what_a_worker_is_and_writes_is_read() {
        let about = r#"{"version": "1.2", "settings": "fast"}"#;
        let mut worker = scripted(&[about, r#"{"written": 4}"#, r#"{"written": null}"#]);
        assert!(worker.process().is_none());
        let about = worker.about().unwrap();
        assert_eq!((&*about.version, &*about.settings), ("1.2", "fast"));
        assert!(worker.process().is_some());
        assert!(worker.outputs(Path::new("o")).is_ok());
        assert!(worker.outputs(Path::new("o")).is_err());
        worker.stop();
        assert!(worker.process().is_none());
    }

    #[test]
    fn errors_say_whose_they_are() {
        let mut worker = scripted(&[r#"{"error": "no memory"}"#, r#"{"us": 0}"#, "Traceback"]);
        assert_eq!(worker.run(1, 0.0), Err("peer: no memory".into()));
        assert!(worker.run(1, 0.0).unwrap_err().contains("answered"));
        assert!(worker.run(1, 0.0).unwrap_err().contains("Traceback"));
    }

    #[test]
    fn a_worker_that_died_is_started_again() {
        let mut worker = scripted(&[r#"{"parameters": 1}"#]);
        assert_eq!(worker.load(&json!({})), Ok(1));
        assert!(worker.load(&json!({})).unwrap_err().contains("gone"));
        assert_eq!(worker.load(&json!({})), Ok(1));
    }
}
