//! Grids of levels that weights are laid on, a scale and a zero point at a time.

use std::num::NonZero;
use std::thread;

use opt_core::tensor::MiniFloat;
use opt_core::{DType, Error, ErrorKind, Result};

use crate::cholesky::PARALLEL;

/// How a group's scale is stored.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum Scales {
    /// As it is.
    F32,
    /// The power of two of the group's largest magnitude, less this exponent.
    PowerOfTwo(i32),
    /// A number of a smaller format, times `whole`, which all groups share.
    Shared { whole: f32, dtype: DType },
}

/// What values of a group may become: `scale * (level - zero)`.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Levels {
    /// The integers from `low` to `high`; symmetric ones have the middle for a zero point.
    Integers {
        low: i32,
        high: i32,
        symmetric: bool,
    },
    /// Ascending numbers, which their places stand for; there are no zero points.
    Table(Vec<f32>),
}

/// Levels, and how scales are stored.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Grid {
    pub(crate) levels: Levels,
    pub(crate) scales: Scales,
}

/// The scale and the zero point of a group.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Step {
    pub(crate) scale: f32,
    pub(crate) zero: f32,
}

/// Shares of a range: from 1 down to 0.2 by hundredths, as GPTQ's reference
/// code has them, for [`Grid::search`].
const SHARES: usize = 80;

impl Grid {
    /// Integers with scales in `f32`.
    pub(crate) fn integers(low: i32, high: i32, symmetric: bool) -> Grid {
        Grid {
            levels: Levels::Integers {
                low,
                high,
                symmetric,
            },
            scales: Scales::F32,
        }
    }

    /// The largest magnitude of a level at scale 1; of a grid with zero points the width.
    fn reach(&self) -> f64 {
        match &self.levels {
            Levels::Integers {
                low,
                high,
                symmetric: true,
            } => f64::from(high - middle(*low, *high)),
            Levels::Integers { low, high, .. } => f64::from(high - low),
            Levels::Table(table) => {
                let ends = [table.first(), table.last()];
                let sizes = ends.into_iter().flatten().map(|l| f64::from(l.abs()));
                sizes.fold(0.0, f64::max)
            }
        }
    }

    /// The step of values from `low` to `high`.
    pub(crate) fn of_range(&self, low: f64, high: f64) -> Step {
        if let Levels::Integers {
            low: least,
            high: most,
            symmetric: false,
        } = self.levels
        {
            let (low, high) = (low.min(0.0), high.max(0.0));
            let scale = self.scale((high - low) / self.reach());
            let zero = f64::from(least) - low / f64::from(scale);
            let zero = zero.round_ties_even() as f32;
            return match high > low {
                true => Step {
                    scale,
                    zero: zero.clamp(least as f32, most as f32),
                },
                false => Step {
                    scale: 1.0,
                    zero: least.max(0) as f32,
                },
            };
        }
        let zero = match self.levels {
            Levels::Integers { low, high, .. } => middle(low, high) as f32,
            Levels::Table(_) => 0.0,
        };
        let size = low.abs().max(high.abs());
        let scale = match self.scales {
            Scales::PowerOfTwo(exponent) if size > 0.0 => {
                let power = size.log2().floor() as i32 - exponent;
                f64::from(power.clamp(-126, 127)).exp2() as f32
            }
            _ => self.scale(size / self.reach()),
        };
        Step { scale, zero }
    }

    /// A scale as it is stored. Zeros have a scale of 1, others none that is subnormal: its inverse
    /// may be infinite.
    pub(crate) fn scale(&self, wanted: f64) -> f32 {
        let (whole, stored) = match self.scales {
            Scales::Shared { whole, dtype } => {
                let share = rounded(dtype, (wanted / f64::from(whole)) as f32);
                (whole, share * whole)
            }
            Scales::F32 | Scales::PowerOfTwo(_) => (1.0, wanted as f32),
        };
        match wanted > 0.0 {
            true => stored.max(f32::MIN_POSITIVE),
            false => whole,
        }
    }

    /// The step that covers the values.
    pub(crate) fn fit(&self, values: &[f64]) -> Step {
        let (low, high) = range(values);
        self.of_range(low, high)
    }

    /// The step with the least weighted squared error among those of ranges that are shrunk
    /// towards 0.
    pub(crate) fn search(&self, values: &[f64], weights: &[f64]) -> Step {
        let error = |step: &Step| -> f64 {
            let pairs = values.iter().zip(weights);
            pairs
                .map(|(&v, w)| w * (v - self.round(step, v)).powi(2))
                .sum()
        };
        let shares = (1..SHARES).map(|i| 1.0 - i as f64 / 100.0);
        self.least(values, shares, error)
    }

    /// The step with the least error among those of the whole range and of shares of it.
    pub(crate) fn least(
        &self,
        values: &[f64],
        shares: impl Iterator<Item = f64>,
        error: impl Fn(&Step) -> f64,
    ) -> Step {
        let (low, high) = range(values);
        let mut best = self.of_range(low, high);
        let mut least = error(&best);
        for share in shares {
            let step = self.of_range(low * share, high * share);
            // Powers of two are the same over a range of shares.
            if step == best {
                continue;
            }
            let found = error(&step);
            if found < least {
                (best, least) = (step, found);
            }
        }
        best
    }

    /// The code of the level nearest to a value.
    pub(crate) fn code(&self, step: &Step, value: f64) -> i16 {
        let x = value as f32 / step.scale;
        match &self.levels {
            Levels::Integers { low, high, .. } => {
                (x.round_ties_even() + step.zero).clamp(*low as f32, *high as f32) as i16
            }
            Levels::Table(table) => {
                let above = table.partition_point(|&level| level < x);
                let below = above.saturating_sub(1);
                let above = above.min(table.len() - 1);
                let nearer = x - table[below] <= table[above] - x;
                (if nearer { below } else { above }) as i16
            }
        }
    }

    /// What a code stands for.
    pub(crate) fn value(&self, step: &Step, code: i16) -> f64 {
        let level = match &self.levels {
            Levels::Integers { .. } => f32::from(code) - step.zero,
            Levels::Table(table) => table[code as usize],
        };
        f64::from(level * step.scale)
    }

    /// The nearest value of the grid.
    pub(crate) fn round(&self, step: &Step, value: f64) -> f64 {
        match &self.levels {
            Levels::Integers { low, high, .. } => {
                let level = (value as f32 / step.scale).round_ties_even() + step.zero;
                let level = level.clamp(*low as f32, *high as f32);
                f64::from((level - step.zero) * step.scale)
            }
            Levels::Table(_) => self.value(step, self.code(step, value)),
        }
    }
}

/// A positive scale as a type stores it: never 0, never infinite.
fn rounded(dtype: DType, x: f32) -> f32 {
    let (least, most) = match MiniFloat::of(dtype) {
        Some(format) => (format.min_positive(), format.max()),
        // Normal numbers of half precision: subnormal ones have too few bits.
        None => (6.103_515_6e-5, 65_504.0),
    };
    let x = x.clamp(least, most);
    match MiniFloat::of(dtype) {
        Some(format) => format.decode(format.encode(f64::from(x))),
        // 10 bits of fraction, ties to even.
        None => {
            let bits = x.to_bits();
            f32::from_bits((bits + 0xFFF + (bits >> 13 & 1)) & !0x1FFF)
        }
    }
}

fn middle(low: i32, high: i32) -> i32 {
    if low < 0 { 0 } else { (high + 1) / 2 }
}

fn range(values: &[f64]) -> (f64, f64) {
    let low = values.iter().copied().fold(f64::INFINITY, f64::min);
    let high = values.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    if low > high { (0.0, 0.0) } else { (low, high) }
}

/// A weight `[rows, columns]`, output channels first, and what it is laid on.
#[derive(Debug, Clone)]
pub(crate) struct Weight {
    pub(crate) columns: usize,
    pub(crate) data: Vec<f64>,
    pub(crate) grid: Grid,
    /// Entries of a row that share a step.
    pub(crate) group: usize,
}

/// A weight on its grid: a code for each entry, a step for each group of a row.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Codes {
    pub(crate) codes: Vec<i16>,
    pub(crate) steps: Vec<Step>,
}

impl Weight {
    /// # Errors
    /// [`ErrorKind::Data`] if an entry is NaN or infinite.
    pub(crate) fn new(columns: usize, data: Vec<f64>, grid: Grid, group: usize) -> Result<Weight> {
        if let Some(bad) = data.iter().find(|v| !v.is_finite()) {
            return Err(Error::new(ErrorKind::Data, format!("an entry is {bad}")));
        }
        Ok(Weight {
            columns,
            data,
            grid,
            group: group.clamp(1, columns.max(1)),
        })
    }

    /// Groups of a row.
    pub(crate) fn groups(&self) -> usize {
        self.columns.div_ceil(self.group)
    }

    /// The rows.
    pub(crate) fn rows(&self) -> impl Iterator<Item = &[f64]> {
        self.data.chunks(self.columns.max(1))
    }

    /// Each column times a number.
    pub(crate) fn scaled(&self, factors: &[f64]) -> Weight {
        let mut out = self.clone();
        for row in out.data.chunks_mut(self.columns.max(1)) {
            row.iter_mut().zip(factors).for_each(|(v, f)| *v *= f);
        }
        out
    }

    /// Multiplies rows, and the steps of their codes.
    pub(crate) fn scale_rows(&mut self, codes: &mut Codes, factors: &[f64]) {
        let groups = self.groups();
        let rows = self.data.chunks_mut(self.columns.max(1));
        let steps = codes.steps.chunks_mut(groups.max(1));
        for ((row, steps), factor) in rows.zip(steps).zip(factors) {
            row.iter_mut().for_each(|v| *v *= factor);
            for step in steps {
                step.scale = (step.scale * *factor as f32).max(f32::MIN_POSITIVE);
            }
        }
    }

    /// Rows at even distances, at most this many.
    pub(crate) fn sample(&self, most: usize) -> Weight {
        let stride = self.rows().count().div_ceil(most.max(1)).max(1);
        Weight {
            data: self.rows().step_by(stride).flatten().copied().collect(),
            grid: self.grid.clone(),
            ..*self
        }
    }

    /// A part of the rows.
    pub(crate) fn part(&self, rows: std::ops::Range<usize>) -> Weight {
        Weight {
            data: self.data[rows.start * self.columns..rows.end * self.columns].to_vec(),
            grid: self.grid.clone(),
            ..*self
        }
    }

    /// Every entry at the nearest level, with the steps that `fit` finds for the first column and
    /// the entries of a group.
    pub(crate) fn nearest(&self, fit: impl Fn(usize, &[f64]) -> Step) -> Codes {
        let mut out = Codes {
            codes: Vec::with_capacity(self.data.len()),
            steps: Vec::new(),
        };
        for row in self.rows() {
            for (g, values) in row.chunks(self.group).enumerate() {
                let step = fit(g * self.group, values);
                out.steps.push(step);
                out.codes
                    .extend(values.iter().map(|&v| self.grid.code(&step, v)));
            }
        }
        out
    }

    /// Works on parts of the rows, with their codes and steps, on threads if `each` multiplications
    /// an entry are worth it. Rows must not depend on each other.
    pub(crate) fn by_rows(
        &self,
        codes: &mut Codes,
        each: usize,
        work: impl Fn(&[f64], &mut [i16], &mut [Step]) + Sync,
    ) {
        let (n, groups) = (self.columns.max(1), self.groups().max(1));
        let threads = match self.data.len() * each < PARALLEL {
            true => 1,
            false => thread::available_parallelism().map_or(1, NonZero::get),
        };
        let share = (self.data.len() / n).div_ceil(threads).max(1);
        let parts = self.data.chunks(share * n);
        let parts = parts.zip(codes.codes.chunks_mut(share * n));
        let parts = parts.zip(codes.steps.chunks_mut(share * groups));
        let work = &work;
        thread::scope(|scope| {
            for ((data, codes), steps) in parts {
                match threads {
                    1 => work(data, codes, steps),
                    _ => drop(scope.spawn(move || work(data, codes, steps))),
                }
            }
        });
    }

    /// What codes stand for.
    pub(crate) fn values(&self, codes: &Codes) -> Vec<f64> {
        let groups = self.groups();
        let entry = |(i, &code): (usize, &i16)| {
            let (row, column) = (i / self.columns, i % self.columns);
            let step = &codes.steps[row * groups + column / self.group];
            self.grid.value(step, code)
        };
        codes.codes.iter().enumerate().map(entry).collect()
    }

    /// How far codes are from the weight.
    pub(crate) fn delta(&self, codes: &Codes) -> Vec<f64> {
        let values = self.values(codes);
        let pairs = self.data.iter().zip(values);
        pairs.map(|(w, q)| w - q).collect()
    }
}
