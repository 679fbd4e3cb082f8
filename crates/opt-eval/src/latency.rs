//! Latency, measured so that a ratio of two models is fair.

use std::time::{Duration, Instant};

use hdrhistogram::Histogram;
use opt_core::backend::bindings_of;
use opt_core::{Backend, CompileSpec, Error, Graph, Result, ResultExt, Session, Tensor};

/// Measures how long one run of a graph takes.
///
/// Several models are measured in one go and take turns (A B A B ..), so that a change of the
/// machine's load or clock during the measurement hits all of them alike. Each turn is a few runs
/// one after the other, and each run is timed by itself; buffers for outputs are reused.
///
/// ```
/// use opt_core::{DType, GraphBuilder, Tensor, TensorType};
/// use opt_eval::{Candidate, LatencyBench};
/// use opt_ndarray::NdarrayBackend;
///
/// let layer = |width: usize| {
///     let mut b = GraphBuilder::new("layer");
///     let x = b.input("x", TensorType::new(DType::F32, [1, 64]))?;
///     let w = b.variable("w", Tensor::full(DType::F32, [64, width], 0.5)?)?;
///     let y = b.matmul(x, w)?;
///     b.output("y", y)?;
///     b.finish()
/// };
/// let (wide, narrow) = (layer(256)?, layer(8)?);
/// let inputs = [Tensor::zeros(DType::F32, [1, 64])?];
/// let candidate = |name, graph| Candidate { name, graph, inputs: &inputs };
/// let measured = LatencyBench::new().runs(50).measure(
///     &NdarrayBackend::new().threads(1),
///     &[candidate("wide", &wide), candidate("narrow", &narrow)],
/// )?;
/// println!("{}", measured[0]);
/// assert_eq!(measured[1].runs(), 50);
/// # Ok::<(), opt_core::Error>(())
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LatencyBench {
    warmup: usize,
    runs: usize,
    turn: usize,
    time_limit: Option<Duration>,
}

impl Default for LatencyBench {
    fn default() -> LatencyBench {
        LatencyBench {
            warmup: 20,
            runs: 300,
            turn: 10,
            time_limit: None,
        }
    }
}

/// A graph to measure and what to run it on.
#[derive(Debug, Clone, Copy)]
pub struct Candidate<'a> {
    /// Its name, for errors.
    pub name: &'a str,
    /// The graph.
    pub graph: &'a Graph,
    /// Its inputs, in order; they bind its symbolic dimensions.
    pub inputs: &'a [Tensor],
}

impl LatencyBench {
    /// 20 runs to warm up, then 300 timed runs in turns of 10, without a time limit.
    pub fn new() -> LatencyBench {
        LatencyBench::default()
    }

    /// Runs of each model before the first timed one.
    #[must_use]
    pub fn warmup(mut self, runs: usize) -> LatencyBench {
        self.warmup = runs;
        self
    }

    /// Timed runs of each model; at least 1.
    #[must_use]
    pub fn runs(mut self, runs: usize) -> LatencyBench {
        self.runs = runs.max(1);
        self
    }

    /// Timed runs of a model before the next takes its turn; at least 1. The first run of a turn
    /// finds caches that the other models have used.
    #[must_use]
    pub fn turn(mut self, runs: usize) -> LatencyBench {
        self.turn = runs.max(1);
        self
    }

    /// Stops after the turns of all models in which this time is over, with fewer runs.
    #[must_use]
    pub fn time_limit(mut self, limit: Duration) -> LatencyBench {
        self.time_limit = Some(limit);
        self
    }

    /// Compiles and measures models; one result each, in order.
    ///
    /// # Errors
    /// Those of compiling and running, with the model's name in the path.
    pub fn measure(
        &self,
        backend: &dyn Backend,
        candidates: &[Candidate<'_>],
    ) -> Result<Vec<Latency>> {
        let mut sessions: Vec<Box<dyn Session>> = Vec::with_capacity(candidates.len());
        for c in candidates {
            let place = || c.name.to_string();
            let mut spec = CompileSpec::new();
            spec.bindings = bindings_of(c.graph, c.inputs).at(place)?;
            let executable = backend.compile(c.graph, &spec).at(place)?;
            sessions.push(executable.session().at(place)?);
        }
        let mut rows: Vec<(&str, &mut dyn Session, &[Tensor])> = sessions
            .iter_mut()
            .zip(candidates)
            .map(|(s, c)| (c.name, s.as_mut() as &mut dyn Session, c.inputs))
            .collect();
        self.measure_sessions(&mut rows)
    }

    /// Measures sessions, given with a name and inputs; one result each, in order.
    ///
    /// # Errors
    /// Those of running, with the name in the path.
    pub fn measure_sessions(
        &self,
        rows: &mut [(&str, &mut dyn Session, &[Tensor])],
    ) -> Result<Vec<Latency>> {
        let mut outputs: Vec<Vec<Tensor>> = rows.iter().map(|_| Vec::new()).collect();
        let mut results: Vec<Latency> = rows.iter().map(|_| Latency::default()).collect();
        for ((name, session, inputs), out) in rows.iter_mut().zip(&mut outputs) {
            for _ in 0..self.warmup {
                session.run_into(inputs, out).at(|| *name)?;
            }
        }
        let start = Instant::now();
        let mut done = 0;
        while done < self.runs {
            let turn = self.turn.min(self.runs - done);
            for (i, (name, session, inputs)) in rows.iter_mut().enumerate() {
                for _ in 0..turn {
                    let before = Instant::now();
                    session.run_into(inputs, &mut outputs[i]).at(|| *name)?;
                    results[i].record(before.elapsed());
                }
            }
            done += turn;
            if self
                .time_limit
                .is_some_and(|limit| start.elapsed() >= limit)
            {
                break;
            }
        }
        Ok(results)
    }
}

/// The longest time that is told apart, in nanoseconds: an hour.
const LONGEST: u64 = 3_600_000_000_000;

/// The times of a model's runs, each kept to within 0.1 %; runs over an hour count as an hour.
#[derive(Debug, Clone)]
pub struct Latency {
    nanoseconds: Histogram<u64>,
}

impl Default for Latency {
    /// No runs.
    fn default() -> Latency {
        Latency {
            nanoseconds: Histogram::new_with_max(LONGEST, 3)
                .expect("3 significant digits up to an hour are valid"),
        }
    }
}

impl Latency {
    /// Adds the time of a run.
    pub fn record(&mut self, time: Duration) {
        let nanoseconds = u64::try_from(time.as_nanos()).unwrap_or(u64::MAX);
        self.nanoseconds.saturating_record(nanoseconds);
    }

    /// The number of runs.
    pub fn runs(&self) -> u64 {
        self.nanoseconds.len()
    }

    /// The time within which a share of the runs stayed, in microseconds: 0.5 is the median, 0.99
    /// the 99th percentile. 0 where there were no runs.
    ///
    /// # Errors
    /// If the share is not in [0, 1].
    pub fn quantile_us(&self, share: f64) -> Result<f64> {
        if !(0.0..=1.0).contains(&share) {
            return Err(Error::invalid(format!(
                "expected a share in [0, 1], found {share}"
            )));
        }
        Ok(self.nanoseconds.value_at_quantile(share) as f64 / 1e3)
    }

    /// The median, in microseconds.
    pub fn median_us(&self) -> f64 {
        self.nanoseconds.value_at_quantile(0.5) as f64 / 1e3
    }

    /// The time within which 90 % of the runs stayed, in microseconds.
    pub fn p90_us(&self) -> f64 {
        self.nanoseconds.value_at_quantile(0.9) as f64 / 1e3
    }

    /// The time within which 99 % of the runs stayed, in microseconds.
    pub fn p99_us(&self) -> f64 {
        self.nanoseconds.value_at_quantile(0.99) as f64 / 1e3
    }

    /// Examples a second, where each run computes a batch of so many one after the other: the
    /// batch over the mean time. `None` where there were no runs or they took no measurable time.
    pub fn throughput(&self, batch: usize) -> Option<f64> {
        let seconds = self.mean_us() / 1e6;
        (seconds > 0.0).then(|| batch as f64 / seconds)
    }

    /// The mean, in microseconds.
    pub fn mean_us(&self) -> f64 {
        self.nanoseconds.mean() / 1e3
    }

    /// The shortest run, in microseconds.
    pub fn min_us(&self) -> f64 {
        self.nanoseconds.min() as f64 / 1e3
    }

    /// The longest run, in microseconds.
    pub fn max_us(&self) -> f64 {
        self.nanoseconds.max() as f64 / 1e3
    }
}

impl std::fmt::Display for Latency {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            f,
            "median {:.1} us, p90 {:.1} us, p99 {:.1} us over {} runs",
            self.median_us(),
            self.p90_us(),
            self.p99_us(),
            self.runs()
        )
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use super::*;
    use opt_core::ValueId;

    /// Takes its time and notes who ran.
    struct Slow {
        name: char,
        time: Duration,
        log: Arc<Mutex<String>>,
    }

    impl Session for Slow {
        fn run_into(&mut self, _: &[Tensor], _: &mut Vec<Tensor>) -> Result<()> {
            self.log.lock().unwrap().push(self.name);
            let start = Instant::now();
            while start.elapsed() < self.time {}
            Ok(())
        }
        fn variable(&self, _: ValueId) -> Result<Tensor> {
            Err(Error::unsupported("no variables"))
        }
        fn set_variable(&mut self, _: ValueId, _: &Tensor) -> Result<()> {
            Err(Error::unsupported("no variables"))
        }
    }

    #[test]
    fn models_take_turns_after_the_warm_up() {
        let log = Arc::new(Mutex::new(String::new()));
        let slow = |name, us| Slow {
            name,
            time: Duration::from_micros(us),
            log: log.clone(),
        };
        let (mut a, mut b) = (slow('a', 0), slow('b', 300));
        let bench = LatencyBench::new().warmup(1).runs(5).turn(2);
        let results = bench
            .measure_sessions(&mut [("a", &mut a, &[]), ("b", &mut b, &[])])
            .unwrap();
        assert_eq!(*log.lock().unwrap(), "abaabbaabbab");
        assert_eq!((results[0].runs(), results[1].runs()), (5, 5));
        assert!(results[1].min_us() >= 299.0);
        assert!(results[1].median_us() > results[0].min_us());
    }

    #[test]
    fn a_time_limit_ends_it_with_equal_numbers_of_runs() {
        let log = Arc::new(Mutex::new(String::new()));
        let mut a = Slow {
            name: 'a',
            time: Duration::from_millis(2),
            log,
        };
        let bench = LatencyBench::new()
            .warmup(0)
            .runs(1_000_000)
            .turn(1)
            .time_limit(Duration::from_millis(10));
        let results = bench.measure_sessions(&mut [("a", &mut a, &[])]).unwrap();
        assert!((1..=6).contains(&results[0].runs()));
    }

    #[test]
    fn quantiles_are_exact_to_a_thousandth() {
        let mut latency = Latency::default();
        for us in 1..=1000 {
            latency.record(Duration::from_micros(us));
        }
        for (share, us) in [(0.5, 500.0), (0.9, 900.0), (0.99, 990.0), (1.0, 1000.0)] {
            let found = latency.quantile_us(share).unwrap();
            assert!((found - us).abs() <= us * 1e-3, "{found} {us}");
        }
        assert!((latency.mean_us() - 500.5).abs() < 1.0);
        assert_eq!(latency.p90_us(), latency.quantile_us(0.9).unwrap());
        assert_eq!(latency.p99_us(), latency.quantile_us(0.99).unwrap());
        // 500.5 us a batch of 4.
        let throughput = latency.throughput(4).unwrap();
        assert!((throughput - 4e6 / 500.5).abs() < 20.0, "{throughput}");
        assert_eq!(Latency::default().throughput(4), None);
        assert!(latency.quantile_us(1.1).is_err());
        assert!(latency.quantile_us(f64::NAN).is_err());
    }
}
