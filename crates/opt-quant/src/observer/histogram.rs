//! A histogram of bounded size over an unbounded range.

use opt_core::{Error, ErrorKind, Result, Tensor};
use serde::{Deserialize, Serialize};

use super::{extremes, in_order, singles};

/// Bins on each side of zero.
const HALF: usize = 1024;

/// The exponents of the smallest width, and of one that holds every finite number.
const EXPONENTS: (i32, i32) = (-60, 1014);

/// Counts of values in `2 * 1024` equal bins around zero. When a value falls outside, the width
/// doubles and neighbouring bins are added. Widths are powers of two, so that the order of the values
/// does not matter, and two histograms merge into exactly what one would have counted.
///
/// The largest magnitude lies in the outer half of the bins, so that a bin is at most 1/512 of it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(try_from = "Stored", into = "Stored")]
pub struct Histogram {
    /// The width is `2^exponent`.
    exponent: i32,
    /// Bin `HALF + i` counts `[i * width, (i + 1) * width)`.
    bins: Vec<u64>,
    low: f64,
    high: f64,
    zeros: u64,
}

impl Default for Histogram {
    fn default() -> Histogram {
        Histogram {
            exponent: EXPONENTS.0,
            bins: vec![0; 2 * HALF],
            low: f64::INFINITY,
            high: f64::NEG_INFINITY,
            zeros: 0,
        }
    }
}

impl Histogram {
    /// Counts the values of a tensor, or none of them and an error if one is not finite.
    pub(super) fn add_all(&mut self, tensor: &Tensor) -> Result<()> {
        let Some(range) = extremes(tensor)? else {
            return Ok(());
        };
        self.make_room(range);
        match singles(tensor) {
            Some(values) => values.iter().for_each(|&v| self.count_in(f64::from(v))),
            None => tensor.to_f64s().into_iter().for_each(|v| self.count_in(v)),
        }
        Ok(())
    }

    /// Counts a finite value.
    pub fn add(&mut self, value: f64) {
        self.make_room((value, value));
        self.count_in(value);
    }

    /// Widens the bins until they hold a range.
    fn make_room(&mut self, (low, high): (f64, f64)) {
        self.low = self.low.min(low);
        self.high = self.high.max(high);
        let all = 0..2 * HALF as i64;
        while !all.contains(&self.bin(low)) || !all.contains(&self.bin(high)) {
            self.double();
        }
    }

    fn bin(&self, value: f64) -> i64 {
        let place = (value * f64::from(-self.exponent).exp2()).floor();
        // Of numbers so small that they vanish against the width, too, the sign decides.
        let place = if value < 0.0 { place.min(-1.0) } else { place };
        (place as i64).saturating_add(HALF as i64)
    }

    /// Counts a value that there is a bin for.
    fn count_in(&mut self, value: f64) {
        if value == 0.0 {
            self.zeros = self.zeros.saturating_add(1);
        } else {
            let bin = self.bin(value) as usize;
            self.bins[bin] = self.bins[bin].saturating_add(1);
        }
    }

    fn double(&mut self) {
        let mut bins = vec![0u64; 2 * HALF];
        for (i, &count) in self.bins.iter().enumerate() {
            // floor(i / 2) of the signed bin number.
            let bin = &mut bins[(i + HALF) / 2];
            *bin = bin.saturating_add(count);
        }
        self.bins = bins;
        self.exponent += 1;
    }

    /// Adds what another has counted.
    pub fn merge(&mut self, other: &Histogram) {
        let mut other = other.clone();
        while self.exponent < other.exponent {
            self.double();
        }
        while other.exponent < self.exponent {
            other.double();
        }
        for (a, b) in self.bins.iter_mut().zip(&other.bins) {
            *a = a.saturating_add(*b);
        }
        self.low = self.low.min(other.low);
        self.high = self.high.max(other.high);
        self.zeros = self.zeros.saturating_add(other.zeros);
    }

    /// The width of a bin.
    pub fn width(&self) -> f64 {
        f64::from(self.exponent).exp2()
    }

    /// The smallest and largest value; `None` if nothing was counted.
    pub fn range(&self) -> Option<(f64, f64)> {
        (self.low <= self.high).then_some((self.low, self.high))
    }

    /// The number of values.
    pub fn count(&self) -> u64 {
        let counts = self.bins.iter();
        counts.fold(self.zeros, |sum, &count| sum.saturating_add(count))
    }

    /// The bins that hold values, as (middle, count), ascending; exact zeros are a bin of their
    /// own.
    pub fn bins(&self) -> Vec<(f64, u64)> {
        let width = self.width();
        let mut out = Vec::new();
        for (i, &count) in self.bins.iter().enumerate() {
            if i == HALF && self.zeros > 0 {
                out.push((0.0, self.zeros));
            }
            if count > 0 {
                out.push(((i as f64 - HALF as f64 + 0.5) * width, count));
            }
        }
        out
    }
}

/// As it is written: the bins that hold values, by their number.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Stored {
    exponent: i32,
    range: Option<(f64, f64)>,
    zeros: u64,
    bins: Vec<(u32, u64)>,
}

impl From<Histogram> for Stored {
    fn from(histogram: Histogram) -> Stored {
        let bins = (0u32..).zip(histogram.bins.iter().copied());
        Stored {
            exponent: histogram.exponent,
            range: histogram.range(),
            zeros: histogram.zeros,
            bins: bins.filter(|bin| bin.1 > 0).collect(),
        }
    }
}

impl TryFrom<Stored> for Histogram {
    type Error = Error;

    fn try_from(stored: Stored) -> Result<Histogram> {
        let fail = |what: &str| Err(Error::new(ErrorKind::Data, format!("a histogram {what}")));
        let (least, most) = EXPONENTS;
        if !(least..=most).contains(&stored.exponent) {
            return fail("with bins of a width that none has");
        }
        let mut histogram = Histogram {
            exponent: stored.exponent,
            zeros: stored.zeros,
            ..Histogram::default()
        };
        for &(bin, count) in &stored.bins {
            match histogram.bins.get_mut(bin as usize) {
                Some(place) if *place == 0 => *place = count,
                _ => return fail("with a bin twice, or one that there is not"),
            }
        }
        match stored.range {
            None if histogram.count() > 0 => return fail("of values without a range"),
            None => {}
            Some(range) => {
                in_order(range)?;
                (histogram.low, histogram.high) = range;
                let ends = histogram.bin(range.0)..=histogram.bin(range.1);
                let whole = *ends.start() >= 0 && *ends.end() < 2 * HALF as i64;
                let held = |bin: &(u32, u64)| bin.1 == 0 || ends.contains(&i64::from(bin.0));
                let zero = histogram.zeros == 0 || (range.0 <= 0.0 && range.1 >= 0.0);
                if !whole || !zero || histogram.count() == 0 || !stored.bins.iter().all(held) {
                    return fail("whose bins are not those of its range");
                }
            }
        }
        Ok(histogram)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Numbers of all magnitudes, zeros and numbers that are no normal ones.
    fn number() -> impl Strategy<Value = f64> {
        prop_oneof![
            Just(0.0),
            -4.0..4.0f64,
            (-300..300i32, -1.0..1.0f64).prop_map(|(e, m)| m * 10f64.powi(e)),
            Just(-5e-324),
            Just(f64::MAX),
            Just(f64::MIN),
        ]
    }

    proptest! {
        #[test]
        fn merging_equals_one_pass(
            numbers in proptest::collection::vec(number(), 0..60),
            cut in 0usize..60,
        ) {
            let all = |numbers: &[f64]| {
                let mut out = Histogram::default();
                numbers.iter().for_each(|&v| out.add(v));
                out
            };
            let cut = cut.min(numbers.len());
            let (one, two) = (all(&numbers[..cut]), all(&numbers[cut..]));
            let whole = all(&numbers);
            prop_assert_eq!(whole.count(), numbers.len() as u64);
            for (a, b) in [(&one, &two), (&two, &one)] {
                let mut merged = a.clone();
                merged.merge(b);
                prop_assert_eq!(&merged, &whole);
            }
            // As one tensor.
            let mut tensor = Histogram::default();
            let values = Tensor::from_f64s(opt_core::DType::F64, [numbers.len()], &numbers).unwrap();
            tensor.add_all(&values).unwrap();
            prop_assert_eq!(&tensor, &whole);
            // There and back.
            let text = serde_json::to_string(&whole).unwrap();
            prop_assert_eq!(&serde_json::from_str::<Histogram>(&text).unwrap(), &whole);
        }

        #[test]
        fn every_value_lies_in_its_bin(numbers in proptest::collection::vec(-9.0..9.0f64, 1..60)) {
            let mut histogram = Histogram::default();
            numbers.iter().for_each(|&v| histogram.add(v));
            let half = histogram.width() / 2.0;
            let largest = numbers.iter().fold(0f64, |m, v| m.max(v.abs()));
            prop_assert!(histogram.width() <= largest / 512.0);
            for &v in &numbers {
                let near = |(middle, _): &(f64, u64)| (middle - v).abs() <= half || v == 0.0;
                prop_assert!(histogram.bins().iter().any(near));
            }
        }
    }

    #[test]
    fn what_no_histogram_is_cannot_be_read() {
        let good = r#"{"exponent":0,"range":[0.5,3.5],"zeros":0,"bins":[[1024,1],[1027,2]]}"#;
        let histogram: Histogram = serde_json::from_str(good).unwrap();
        assert_eq!(histogram.bins(), [(0.5, 1), (3.5, 2)]);
        for (from, to) in [
            ("\"exponent\":0", "\"exponent\":2000"),
            ("\"exponent\":0", "\"exponent\":-61"),
            ("[1024,1]", "[1027,1]"),
            ("[1024,1]", "[2048,1]"),
            ("[1024,1]", "[4294967295,1]"),
            ("[1024,1]", "[1023,1]"),
            ("[0.5,3.5]", "[3.5,0.5]"),
            ("[0.5,3.5]", "null"),
            ("[0.5,3.5]", "[0.5,5000]"),
            ("[0.5,3.5]", "[0.5,2.5]"),
            ("\"zeros\":0", "\"zeros\":1"),
            ("\"zeros\":0", "\"zeros\":-1"),
            ("[[1024,1],[1027,2]]", "[]"),
        ] {
            let text = good.replace(from, to);
            assert_ne!(text, good);
            assert!(serde_json::from_str::<Histogram>(&text).is_err(), "{text}");
        }
    }
}
