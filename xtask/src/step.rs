//! Steps with headings, times and the command that repeats one.

use std::process::Command;
use std::time::{Duration, Instant};

use crate::{Result, root};

/// A command with what is needed to print it.
pub(crate) struct Step {
    program: String,
    args: Vec<String>,
    /// Name, value, and the value as it is printed.
    env: Vec<[String; 3]>,
}

/// A call of the cargo that runs this program.
pub(crate) fn cargo<const N: usize>(args: [&str; N]) -> Step {
    Step {
        program: std::env::var("CARGO").unwrap_or_else(|_| "cargo".into()),
        args: args.iter().map(ToString::to_string).collect(),
        env: Vec::new(),
    }
}

impl Step {
    /// Sets an environment variable.
    pub(crate) fn env(self, name: &str, value: &str) -> Step {
        self.env_shown(name, value, value)
    }

    /// Sets an environment variable that is printed in another way.
    pub(crate) fn env_shown(mut self, name: &str, value: &str, shown: &str) -> Step {
        self.env.push([name, value, shown].map(String::from));
        self
    }

    /// Adds an argument.
    pub(crate) fn arg(mut self, argument: &str) -> Step {
        self.args.push(argument.into());
        self
    }

    /// As one would type it in the root of the workspace.
    fn typed(&self) -> String {
        let env = self
            .env
            .iter()
            .map(|[name, _, shown]| format!("{name}={shown:?} "));
        let program = std::path::Path::new(&self.program).file_stem();
        let program = program.map_or_else(|| self.program.clone(), |p| p.to_string_lossy().into());
        format!(
            "{}{program} {}",
            env.collect::<String>(),
            self.args.join(" ")
        )
    }
}

/// Runs steps in order; the first that fails ends the run.
pub(crate) struct Runner {
    done: Vec<(String, Duration)>,
}

impl Runner {
    pub(crate) fn new() -> Runner {
        Runner { done: Vec::new() }
    }

    /// Runs a command as a step.
    pub(crate) fn run(&mut self, name: &str, step: Step) -> Result {
        let typed = step.typed();
        self.call(name, &typed.clone(), || {
            println!("$ {typed}");
            let status = Command::new(&step.program)
                .args(&step.args)
                .envs(step.env.into_iter().map(|[name, value, _]| (name, value)))
                .current_dir(root())
                .status()
                .map_err(|e| format!("cannot start {}: {e}", step.program))?;
            if status.success() {
                Ok(())
            } else {
                Err(format!("ended with {status}"))
            }
        })
    }

    /// Runs a function as a step; `again` is the command that repeats it.
    pub(crate) fn call(
        &mut self,
        name: &str,
        again: &str,
        work: impl FnOnce() -> Result,
    ) -> Result {
        println!("\n=== {name} ===");
        let start = Instant::now();
        let result = work();
        let took = start.elapsed();
        if let Err(message) = result {
            return Err(format!(
                "\n=== {name}: FAILED after {} ===\n{message}\nrun it again with: {again}",
                seconds(took)
            ));
        }
        println!("=== {name}: passed in {} ===", seconds(took));
        self.done.push((name.to_string(), took));
        Ok(())
    }

    /// Prints the times of all steps.
    pub(crate) fn summary(&self) {
        println!("\n=== all passed ===");
        for (name, took) in &self.done {
            println!("{:>8}  {name}", seconds(*took));
        }
        let total: Duration = self.done.iter().map(|(_, took)| *took).sum();
        println!("{:>8}  in all", seconds(total));
    }
}

fn seconds(time: Duration) -> String {
    format!("{:.1} s", time.as_secs_f64())
}
