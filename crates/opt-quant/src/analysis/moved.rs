//! How far values have moved.

use std::fmt;

use opt_core::{Error, ErrorKind, Result, Tensor};

/// How far a value is from what it was in float, over all examples.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct LayerError {
    /// The value's name, or the layer's.
    pub name: String,
    /// Signal-to-quantization-noise ratio in dB: `10 log10(sum x^2 / sum (x - q)^2)`; infinite if
    /// nothing has moved.
    pub sqnr: f64,
    /// The cosine between all entries before and after; 1 if both are all zero, 0 if one is.
    pub cosine: f64,
    /// The mean of the squared differences.
    pub mse: f64,
    /// The mean of the differences, after less before: what bias correction takes away.
    pub shift: f64,
    /// The largest difference.
    pub max: f64,
}

/// [`LayerError`]s, in the order in which the graph computes the values. Prints as a table.
#[derive(Debug, Clone, PartialEq, Default)]
#[non_exhaustive]
pub struct LayerErrors {
    /// One a layer.
    pub layers: Vec<LayerError>,
}

impl LayerErrors {
    /// The layer of a name.
    pub fn get(&self, name: &str) -> Option<&LayerError> {
        self.layers.iter().find(|layer| layer.name == name)
    }

    /// The layers from the worst signal-to-noise ratio to the best; equal ones keep their order.
    pub fn worst_first(&self) -> Vec<&LayerError> {
        let mut layers: Vec<_> = self.layers.iter().collect();
        layers.sort_by(|a, b| a.sqnr.total_cmp(&b.sqnr));
        layers
    }
}

impl fmt::Display for LayerErrors {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names = self.layers.iter().map(|l| l.name.chars().count());
        let width = names.max().unwrap_or(0).max("layer".len());
        write!(
            f,
            "{:<width$}  {:>8}  {:>9}  {:>10}  {:>10}  {:>10}",
            "layer", "SQNR dB", "cosine", "MSE", "shift", "largest"
        )?;
        for l in &self.layers {
            write!(
                f,
                "\n{:<width$}  {:>8.2}  {:>9.6}  {:>10.3e}  {:>10.2e}  {:>10.3e}",
                l.name, l.sqnr, l.cosine, l.mse, l.shift, l.max
            )?;
        }
        Ok(())
    }
}

/// Sums over pairs of entries, in `f64`.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Moved {
    count: f64,
    exact: f64,
    now: f64,
    product: f64,
    square: f64,
    difference: f64,
    max: f64,
}

impl Moved {
    /// Adds the entries of a tensor before and after.
    pub(super) fn add(&mut self, exact: &Tensor, now: &Tensor) -> Result<()> {
        if exact.shape() != now.shape() {
            return Err(Error::shape(format!(
                "{:?} became {:?}",
                exact.shape(),
                now.shape()
            )));
        }
        for (x, q) in exact.to_f64s().into_iter().zip(now.to_f64s()) {
            let d = q - x;
            self.exact += x * x;
            self.now += q * q;
            self.product += x * q;
            self.square += d * d;
            self.difference += d;
            self.max = self.max.max(d.abs());
        }
        self.count += exact.len() as f64;
        match (self.exact + self.now).is_finite() {
            true => Ok(()),
            false => Err(Error::new(ErrorKind::Data, "an entry is NaN or infinite")),
        }
    }

    /// The sums of both.
    pub(super) fn plus(self, other: Moved) -> Moved {
        Moved {
            count: self.count + other.count,
            exact: self.exact + other.exact,
            now: self.now + other.now,
            product: self.product + other.product,
            square: self.square + other.square,
            difference: self.difference + other.difference,
            max: self.max.max(other.max),
        }
    }

    /// The sum of squared differences over that of squares; 0 if nothing has moved.
    pub(super) fn relative(&self) -> f64 {
        match self.square == 0.0 {
            true => 0.0,
            false => self.square / self.exact,
        }
    }

    pub(super) fn finish(&self, name: impl Into<String>) -> LayerError {
        let norms = (self.exact * self.now).sqrt();
        LayerError {
            name: name.into(),
            sqnr: match self.square == 0.0 {
                true => f64::INFINITY,
                false => 10.0 * (self.exact / self.square).log10(),
            },
            cosine: match (norms > 0.0, self.square == 0.0) {
                (true, _) => (self.product / norms).clamp(-1.0, 1.0),
                (false, same) => f64::from(u8::from(same)),
            },
            mse: self.square / self.count.max(1.0),
            shift: self.difference / self.count.max(1.0),
            max: self.max,
        }
    }
}
