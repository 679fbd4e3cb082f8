//! What cannot be read or written, all of it at once.

use std::fmt;

use opt_core::{Error, ErrorKind};

/// A node or value that is not supported.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Refused {
    /// The path of the node, or the name of the value.
    pub place: String,
    /// The operator; empty for a value.
    pub op: String,
    /// The domain of the operator; empty for ONNX's own.
    pub domain: String,
    /// The version of the operator set, if the model says one.
    pub version: Option<i64>,
    /// Why.
    pub reason: String,
}

impl Refused {
    pub(crate) fn value(name: &str, reason: &str) -> Refused {
        Refused {
            place: name.to_string(),
            op: String::new(),
            domain: String::new(),
            version: None,
            reason: reason.to_string(),
        }
    }
}

impl fmt::Display for Refused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.op.is_empty() {
            return write!(f, "value `{}`: {}", self.place, self.reason);
        }
        let domain = if self.domain.is_empty() {
            "ai.onnx"
        } else {
            &self.domain
        };
        write!(f, "node `{}` ({domain}.{}", self.place, self.op)?;
        if let Some(version) = self.version {
            write!(f, ", opset {version}")?;
        }
        write!(f, "): {}", self.reason)
    }
}

/// Everything in a model that is not supported; the source of the error that
/// [`Importer`](crate::Importer) fails with.
///
/// ```
/// use std::error::Error as _;
///
/// // A model with one node, whose operator nobody knows.
/// let unknown = b"\x08\x0a:9\x0a\x12\x0a\x01x\x12\x01y\x22\x0aFrobnicate\x12\x01gZ\x0f\x0a\x01x\x12\x0a\x0a\x08\x08\x01\x12\x04\x0a\x02\x08\x01b\x0f\x0a\x01y\x12\x0a\x0a\x08\x08\x01\x12\x04\x0a\x02\x08\x01B\x04\x0a\x00\x10\x15";
/// let error = opt_onnx::Importer::new().read(unknown.to_vec()).unwrap_err();
/// let all = error.source().unwrap().downcast_ref::<opt_onnx::Unsupported>().unwrap();
/// assert_eq!(all.list()[0].op, "Frobnicate");
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unsupported(Vec<Refused>);

impl Unsupported {
    /// The nodes and values, in the model's order.
    pub fn list(&self) -> &[Refused] {
        &self.0
    }

    pub(crate) fn error(list: Vec<Refused>) -> Error {
        let all = Unsupported(list);
        Error::new(ErrorKind::Unsupported, all.to_string()).with_source(all)
    }
}

impl fmt::Display for Unsupported {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const SHOWN: usize = 50;
        write!(f, "{} unsupported:", self.0.len())?;
        for one in self.0.iter().take(SHOWN) {
            write!(f, "\n  {one}")?;
        }
        if self.0.len() > SHOWN {
            write!(f, "\n  and {} more", self.0.len() - SHOWN)?;
        }
        Ok(())
    }
}

impl std::error::Error for Unsupported {}
