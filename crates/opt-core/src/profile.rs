//! What a compiled graph spends its time on, step by step.

use std::fmt;
use std::time::Instant;

use serde::{Deserialize, Serialize};

use crate::backend::Step;
use crate::ops::Cost;
use crate::{Error, Result};

mod table;
mod trace;

/// How to profile: [`Executable::profile`](crate::Executable::profile).
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct ProfileOptions {
    /// Runs before the first timed one.
    pub warmup: usize,
    /// Timed runs.
    pub runs: usize,
}

impl Default for ProfileOptions {
    fn default() -> ProfileOptions {
        ProfileOptions {
            warmup: 3,
            runs: 20,
        }
    }
}

impl ProfileOptions {
    /// 3 runs to warm up, then 20 timed ones.
    pub fn new() -> ProfileOptions {
        ProfileOptions::default()
    }

    /// Runs before the first timed one; the first run of a session finds cold caches and memory
    /// that the system has yet to hand out.
    #[must_use]
    pub fn warmup(mut self, runs: usize) -> ProfileOptions {
        self.warmup = runs;
        self
    }

    /// Timed runs, 1 at least; each step's times are kept until the end (8 bytes a step and run).
    #[must_use]
    pub fn runs(mut self, runs: usize) -> ProfileOptions {
        self.runs = runs;
        self
    }
}

/// How long something took in several runs.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Time {
    /// The median over the runs, in nanoseconds; with an even number of runs the mean of the two
    /// in the middle, rounded down.
    pub median_ns: u64,
    /// The shortest, in nanoseconds.
    pub min_ns: u64,
}

impl Time {
    fn of(samples: &mut [u64]) -> Time {
        samples.sort_unstable();
        let middle = samples.len() / 2;
        match samples {
            [] => Time::default(),
            [min, ..] => Time {
                min_ns: *min,
                median_ns: match samples.len() % 2 {
                    1 => samples[middle],
                    _ => samples[middle - 1].midpoint(samples[middle]),
                },
            },
        }
    }

    fn plus(self, other: Time) -> Time {
        Time {
            median_ns: self.median_ns.saturating_add(other.median_ns),
            min_ns: self.min_ns.saturating_add(other.min_ns),
        }
    }
}

/// What a step of an executable costs, and how long it takes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct StepProfile {
    /// What runs, such as `conv+relu`: as in [`Executable::steps`](crate::Executable::steps).
    pub kernel: String,
    /// The names of the graph's nodes that it covers.
    pub nodes: Vec<String>,
    /// How long it took in a run.
    pub time: Time,
    /// Bytes of its operands, each counted once. A kernel that reads an operand several times, or
    /// a few rows of it (`gather`), moves another amount.
    pub read_bytes: u64,
    /// Bytes of its results.
    pub written_bytes: u64,
    /// Multiply-adds of the nodes that it covers, as their ops' rules count them
    /// ([`OpRules::cost`](crate::ops::OpRules::cost)), whatever the kernel does instead.
    pub macs: u64,
    /// Their other arithmetic, in elements processed.
    pub elements: u64,
}

impl StepProfile {
    /// For backends: a step that has not run.
    pub fn new(step: Step) -> StepProfile {
        StepProfile {
            kernel: step.kernel,
            nodes: step.nodes,
            time: Time::default(),
            read_bytes: 0,
            written_bytes: 0,
            macs: 0,
            elements: 0,
        }
    }

    /// For backends: the bytes of operands and results.
    #[must_use]
    pub fn bytes(mut self, read: u64, written: u64) -> StepProfile {
        (self.read_bytes, self.written_bytes) = (read, written);
        self
    }

    /// For backends: the cost of the nodes that it covers.
    #[must_use]
    pub fn cost(mut self, cost: Cost) -> StepProfile {
        (self.macs, self.elements) = (cost.macs, cost.elements);
        self
    }

    /// Floating-point operations a second by the median time, in 10^9, a multiply-add being two;
    /// `None` without multiply-adds or time.
    pub fn gflops(&self) -> Option<f64> {
        rate(2.0 * self.macs as f64, self.time)
    }

    /// Bytes read and written a second by the median time, in 10^9; `None` without bytes or time.
    pub fn gigabytes_per_second(&self) -> Option<f64> {
        let bytes = self.read_bytes as f64 + self.written_bytes as f64;
        rate(bytes, self.time)
    }
}

/// So much a nanosecond.
fn rate(amount: f64, time: Time) -> Option<f64> {
    (amount > 0.0 && time.median_ns > 0).then(|| amount / time.median_ns as f64)
}

/// The steps of one kernel together: [`Profile::by_kernel`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct KernelProfile {
    /// The kernel's name.
    pub kernel: String,
    /// How many steps run it.
    pub steps: usize,
    /// The sums of the steps' medians and of their shortest times.
    pub time: Time,
    /// Bytes of the steps' operands.
    pub read_bytes: u64,
    /// Bytes of the steps' results.
    pub written_bytes: u64,
    /// Multiply-adds.
    pub macs: u64,
    /// Other arithmetic, in elements processed.
    pub elements: u64,
}

/// What an executable spends its time on: [`Executable::profile`](crate::Executable::profile).
///
/// It is shown as a table of its steps, the longest first; [`Profile::by_kernel_table`] is shorter.
/// It is data to serde, so that `serde_json` writes and reads it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Profile {
    /// The name of the backend.
    pub backend: String,
    /// The threads that each step may use.
    pub threads: usize,
    /// The number of timed runs.
    pub runs: usize,
    /// How long a whole run took.
    pub total: Time,
    /// What of it was outside of the steps: checks of the inputs, waking the threads, writing the
    /// outputs, giving variables their new content.
    pub outside: Time,
    /// The steps, in the order in which they run. Medians are taken step by step, so their sum
    /// may differ a little from the median of the whole.
    pub steps: Vec<StepProfile>,
}

impl Profile {
    /// The kernels, those that take longest first (by the sum of their steps' medians).
    pub fn by_kernel(&self) -> Vec<KernelProfile> {
        let mut kernels: Vec<KernelProfile> = Vec::new();
        let mut index = std::collections::HashMap::new();
        for step in &self.steps {
            let at = *index.entry(&step.kernel).or_insert_with(|| {
                kernels.push(KernelProfile {
                    kernel: step.kernel.clone(),
                    steps: 0,
                    time: Time::default(),
                    read_bytes: 0,
                    written_bytes: 0,
                    macs: 0,
                    elements: 0,
                });
                kernels.len() - 1
            });
            let kernel = &mut kernels[at];
            kernel.steps += 1;
            kernel.time = kernel.time.plus(step.time);
            kernel.read_bytes = kernel.read_bytes.saturating_add(step.read_bytes);
            kernel.written_bytes = kernel.written_bytes.saturating_add(step.written_bytes);
            kernel.macs = kernel.macs.saturating_add(step.macs);
            kernel.elements = kernel.elements.saturating_add(step.elements);
        }
        kernels.sort_by_key(|k| std::cmp::Reverse(k.time.median_ns));
        kernels
    }

    /// The table of the steps, the longest first, with at most so many rows; a last line says what
    /// share of the time the others took.
    ///
    /// Columns: the median time of a run and its share of the whole run's, the shortest time,
    /// 10^9 floating-point operations a second (two a multiply-add), 10^9 bytes a second, the
    /// kernel, and the first node that it covers with the number of others.
    pub fn by_step_table(&self, rows: usize) -> String {
        table::steps(self, rows)
    }

    /// The table of the kernels, as [`Profile::by_step_table`], with the number of steps in place
    /// of the nodes.
    pub fn by_kernel_table(&self, rows: usize) -> String {
        table::kernels(self, rows)
    }

    /// The steps as trace events, in the JSON that Perfetto and `chrome://tracing` open (Trace
    /// Event Format): one complete event (`"ph": "X"`) a step, in microseconds, with nodes, bytes
    /// and multiply-adds as arguments.
    ///
    /// Each step lasts its median time and starts where the one before ends: a typical run, not
    /// one that has happened.
    pub fn to_chrome_trace(&self) -> String {
        trace::events(self)
    }
}

impl fmt::Display for Profile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.by_step_table(usize::MAX))
    }
}

/// For backends: takes the times of the runs of a profile.
///
/// A run is [`begin`](Recorder::begin), one [`mark`](Recorder::mark) before the first step and one
/// after each, and [`end`](Recorder::end). A mark reads the clock once.
#[derive(Debug)]
pub struct Recorder {
    backend: String,
    threads: usize,
    steps: Vec<StepProfile>,
    /// The times of each step.
    samples: Vec<Vec<u64>>,
    total: Vec<u64>,
    outside: Vec<u64>,
    begun: Instant,
    last: Instant,
    /// Marks of this run.
    marks: usize,
    /// Nanoseconds in the steps of this run.
    inside: u64,
}

impl Recorder {
    /// For the steps of an executable, which run with so many threads.
    ///
    /// # Errors
    /// If no run is to be timed.
    pub fn new(
        backend: impl Into<String>,
        threads: usize,
        steps: Vec<StepProfile>,
        options: &ProfileOptions,
    ) -> Result<Recorder> {
        if options.runs == 0 {
            return Err(Error::invalid(
                "a profile needs at least 1 timed run, `ProfileOptions::runs` is 0",
            ));
        }
        let now = Instant::now();
        Ok(Recorder {
            backend: backend.into(),
            threads,
            samples: vec![Vec::new(); steps.len()],
            steps,
            total: Vec::new(),
            outside: Vec::new(),
            begun: now,
            last: now,
            marks: 0,
            inside: 0,
        })
    }

    /// A run begins.
    pub fn begin(&mut self) {
        (self.marks, self.inside) = (0, 0);
        self.begun = Instant::now();
    }

    /// The first step begins; or a step has ended and the next begins.
    pub fn mark(&mut self) {
        let now = Instant::now();
        let step = self.marks.checked_sub(1);
        if let Some(samples) = step.and_then(|step| self.samples.get_mut(step)) {
            let took = nanoseconds(self.last, now);
            samples.push(took);
            self.inside += took;
        }
        self.marks += 1;
        self.last = now;
    }

    /// The run has ended.
    pub fn end(&mut self) {
        let took = nanoseconds(self.begun, Instant::now());
        self.total.push(took);
        self.outside.push(took.saturating_sub(self.inside));
    }

    /// The profile.
    pub fn finish(mut self) -> Profile {
        for (step, samples) in self.steps.iter_mut().zip(&mut self.samples) {
            step.time = Time::of(samples);
        }
        Profile {
            backend: self.backend,
            threads: self.threads,
            runs: self.total.len(),
            total: Time::of(&mut self.total),
            outside: Time::of(&mut self.outside),
            steps: self.steps,
        }
    }
}

fn nanoseconds(from: Instant, to: Instant) -> u64 {
    u64::try_from((to - from).as_nanos()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests;
