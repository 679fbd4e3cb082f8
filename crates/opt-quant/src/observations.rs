//! What observers have seen of a graph's values.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::io::Write;
use std::path::Path;

use opt_core::file::write_atomically;
use opt_core::{Error, ErrorKind, Result, ResultExt, Tensor};
use serde::{Deserialize, Serialize};

use crate::observer::{AnyObserver, ObserverKind, RangeObserver};
use crate::scheme::Scheme;

/// What a calibration has seen: an observer for each value that is to be quantized, by the value's
/// name, and the number of examples. It takes the same memory however many examples there were.
///
/// Calibrations of parts of the examples, in other threads, processes or machines, can be
/// [written](Observations::save), [read](Observations::load) and [merged](Observations::merge).
/// Of all observers but the moving average the merged state equals that of one pass over all examples
/// bit for bit, in whatever order. A moving average depends on the order of batches; its merge is what
/// one pass over the first part and then the second would have found, but for rounding.
///
/// ```
/// use opt_core::nn::{Linear, ModelBuilder};
/// use opt_core::{Context, Pass};
/// use opt_data::digits;
/// use opt_ndarray::NdarrayBackend;
/// use opt_quant::{Config, Observations, ObserverKind, QuantizeStatic};
///
/// # fn main() -> opt_core::Result<()> {
/// let mut m = ModelBuilder::new("perceptron", 0);
/// let x = m.batch("image", [1, 8, 8])?;
/// let h = m.flatten(x, 1)?;
/// let h = m.layer("fc1", Linear::new(32), h)?;
/// let h = m.relu(h)?;
/// let y = m.layer("fc2", Linear::new(10), h)?;
/// m.output("logits", y)?;
/// let graph = m.finish()?;
///
/// let config = Config::default().observer(ObserverKind::Percentile(0.9999));
/// let backend = NdarrayBackend::new();
/// let digits = digits()?;
/// // Each part may be another process, that saves what it has seen.
/// let folder = std::env::temp_dir();
/// let parts = [&digits.train, &digits.test];
/// for (i, part) in parts.into_iter().enumerate() {
///     let cx = Context::new().with_backend(&backend).with_calibration(part);
///     config.observe(&graph, &cx)?.save(folder.join(format!("part-{i}.json")))?;
/// }
///
/// let mut all = Observations::load(folder.join("part-0.json"))?;
/// all.merge(&Observations::load(folder.join("part-1.json"))?)?;
/// let (int8, report) = QuantizeStatic::with(config.observations(all)).apply(graph, &mut Context::new())?;
/// assert_eq!(report.changed, 2);
/// # let _ = int8;
/// # Ok(())
/// # }
/// ```
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Observations {
    version: Version,
    examples: u64,
    values: BTreeMap<String, AnyObserver>,
}

/// The version of the file format; other numbers cannot be read.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(try_from = "u32", into = "u32")]
struct Version;

impl From<Version> for u32 {
    fn from(_: Version) -> u32 {
        1
    }
}

impl TryFrom<u32> for Version {
    type Error = Error;

    fn try_from(number: u32) -> Result<Version> {
        match number {
            1 => Ok(Version),
            _ => Err(Error::unsupported(format!(
                "observations of version {number}; this is version 1"
            ))),
        }
    }
}

impl Observations {
    /// Observers of these values, which have seen nothing.
    ///
    /// # Errors
    /// If the observer's settings are out of range, or a name comes twice.
    pub fn new(
        kind: ObserverKind,
        names: impl IntoIterator<Item = String>,
    ) -> Result<Observations> {
        let mut values = BTreeMap::new();
        for name in names {
            match values.entry(name) {
                Entry::Vacant(e) => e.insert(kind.observer()?),
                Entry::Occupied(e) => {
                    return Err(Error::invalid("the name comes twice").at(e.key().clone()));
                }
            };
        }
        Ok(Observations {
            version: Version,
            examples: 0,
            values,
        })
    }

    /// Takes in what some values are for a batch of examples.
    ///
    /// # Errors
    /// [`ErrorKind::Data`] if one is NaN or infinite, or a name is not among the values, at the name.
    pub fn update<'a>(
        &mut self,
        examples: usize,
        values: impl IntoIterator<Item = (&'a str, &'a Tensor)>,
    ) -> Result<()> {
        for (name, tensor) in values {
            let observer = self.values.get_mut(name);
            let observer = observer.ok_or_else(|| unknown(name))?;
            observer.update(tensor).at(|| name.to_string())?;
        }
        self.examples = self.examples.saturating_add(examples as u64);
        Ok(())
    }

    /// Takes in what another calibration of the same values has seen.
    ///
    /// # Errors
    /// Without change, if the values are others, or observers are of another kind or have other
    /// settings, at the first such name.
    pub fn merge(&mut self, other: &Observations) -> Result<()> {
        let mut names = self.values.keys().zip(other.values.keys());
        if let Some((a, b)) = names.find(|(a, b)| a != b) {
            return Err(unknown(a.min(b)));
        }
        if self.values.len() != other.values.len() {
            return Err(Error::invalid(format!(
                "cannot merge observations of {} values and of {}",
                self.values.len(),
                other.values.len()
            )));
        }
        let mut merged = self.values.clone();
        for ((name, observer), more) in merged.iter_mut().zip(other.values.values()) {
            observer.merge(more).at(|| name.clone())?;
        }
        self.values = merged;
        self.examples = self.examples.saturating_add(other.examples);
        Ok(())
    }

    /// How many examples were seen.
    pub fn examples(&self) -> u64 {
        self.examples
    }

    /// The observers, by the names of their values.
    pub fn values(&self) -> impl ExactSizeIterator<Item = (&str, &AnyObserver)> {
        self.values.iter().map(|(name, o)| (name.as_str(), o))
    }

    /// The range of a value for a scheme.
    ///
    /// # Errors
    /// [`ErrorKind::Data`] if the value is not among those observed, or nothing was seen of it.
    pub fn range(&self, name: &str, scheme: &Scheme) -> Result<(f64, f64)> {
        let observer = self.values.get(name).ok_or_else(|| unknown(name))?;
        observer.range(scheme).at(|| name.to_string())
    }

    /// Writes a JSON file.
    ///
    /// # Errors
    /// If it cannot be written; a file that was there is kept then.
    pub fn save(&self, path: impl AsRef<Path>) -> Result<()> {
        let text = serde_json::to_string(self).map_err(|e| Error::invalid(e.to_string()))?;
        write_atomically(path, |file| Ok(file.write_all(text.as_bytes())?))
    }

    /// Reads a file that [`Observations::save`] wrote.
    ///
    /// # Errors
    /// At the file's path if it cannot be read, or is none.
    pub fn load(path: impl AsRef<Path>) -> Result<Observations> {
        let path = path.as_ref();
        let read = || -> Result<Observations> {
            let text = std::fs::read_to_string(path)?;
            serde_json::from_str(&text).map_err(|e| {
                let what = format!("no observations of a calibration: {e}");
                Error::new(ErrorKind::Data, what)
            })
        };
        read().at(|| path.display().to_string())
    }
}

fn unknown(name: &str) -> Error {
    Error::new(ErrorKind::Data, "this value was not observed").at(name.to_string())
}
