//! Builds the programs that are compared.

use std::io::BufRead;
use std::path::PathBuf;
use std::process::{Command, Stdio};

use serde_json::Value;

use crate::{Result, oracle, root};

fn cargo() -> Command {
    Command::new(std::env::var("CARGO").unwrap_or_else(|_| "cargo".into()))
}

/// Builds a worker of this library; the path of the program.
pub(crate) fn ours(program: &str, backend: &str) -> Result<PathBuf> {
    let mut command = cargo();
    command
        .args(["build", "--release", "--package", "opt-benches"])
        .args(["--bin", program]);
    if backend != "ndarray" {
        command.args(["--features", backend]);
        command.envs(oracle::libtorch());
    }
    build(command)
}

/// Builds the worker of another Rust library; the path of the program.
///
/// Each is built alone, so that none gets features of a dependency that another asks for.
pub(crate) fn rust(feature: &str, flags: Option<&str>) -> Result<PathBuf> {
    let mut command = cargo();
    command
        .args(["build", "--release", "--locked"])
        .args(["--manifest-path", "benches/peers/rust/Cargo.toml"])
        .args(["--target-dir", "target/bench-peers"])
        .args(["--features", feature])
        .args(["--bin", &format!("{feature}-worker")]);
    if let Some(flags) = flags {
        command.env("RUSTFLAGS", flags);
    }
    build(command)
}

fn build(mut command: Command) -> Result<PathBuf> {
    command
        .arg("--message-format=json-render-diagnostics")
        .current_dir(root())
        .stderr(Stdio::inherit());
    println!("$ {command:?}");
    let output = command
        .output()
        .map_err(|e| format!("cannot start {command:?}: {e}"))?;
    if !output.status.success() {
        return Err(format!("{command:?} ended with {}", output.status));
    }
    executable(&output.stdout).ok_or_else(|| format!("{command:?} built no program"))
}

/// The program in cargo's messages.
fn executable(messages: &[u8]) -> Option<PathBuf> {
    let messages = messages.lines().map_while(std::io::Result::ok);
    let programs = messages.filter_map(|line| {
        let message: Value = serde_json::from_str(&line).ok()?;
        message["executable"].as_str().map(PathBuf::from)
    });
    programs.last()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_program_is_found_in_cargos_messages() {
        let messages = b"{\"reason\":\"compiler-artifact\",\"executable\":null}\n\
            not json\n\
            {\"reason\":\"compiler-artifact\",\"executable\":\"/t/step-worker\"}\n\
            {\"reason\":\"build-finished\",\"success\":true}\n";
        assert_eq!(executable(messages), Some("/t/step-worker".into()));
        assert_eq!(executable(b""), None);
    }
}
