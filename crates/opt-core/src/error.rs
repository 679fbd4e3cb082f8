//! The error type of `opt-core`.

use std::fmt;

/// A result whose error is an [`Error`].
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What kind of thing went wrong; match on this to react to an [`Error`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum ErrorKind {
    /// A shape, or the number of dimensions, is not what the operation needs.
    Shape,
    /// An element type is not what the operation needs, or not supported by it.
    DType,
    /// An argument or attribute is outside its documented range.
    InvalidArgument,
    /// A graph is not well formed (an unknown value, a cycle, a duplicate name).
    InvalidGraph,
    /// The operation is valid, but not implemented for this case.
    Unsupported,
    /// An op has no gradient, or the loss does not depend on a requested value.
    NoGradient,
    /// A pass would break, or has broken, a fact recorded on the graph.
    FactViolated,
    /// A pass or a rule matched nothing and changed nothing.
    NoEffect,
    /// A pipeline is not in a valid order, or lacks what a pass needs.
    Pipeline,
    /// Data holds a NaN, an infinity, a label out of range or nothing at all.
    Data,
    /// A file could not be read or written.
    Io,
    /// A file's content is not what its format says.
    Format,
    /// The backend failed while compiling or running.
    Backend,
}

/// An error: its [kind](Error::kind), what was expected and found, and the path of the node or
/// field where it happened.
///
/// ```
/// use opt_core::{Error, ErrorKind};
///
/// let error = Error::new(ErrorKind::Shape, "expected rank 4, found rank 2").at("conv1");
/// assert_eq!(error.kind(), ErrorKind::Shape);
/// assert_eq!(error.to_string(), "conv1: expected rank 4, found rank 2");
/// ```
pub struct Error(Box<Inner>);

struct Inner {
    kind: ErrorKind,
    message: String,
    path: Vec<String>,
    source: Option<Box<dyn std::error::Error + Send + Sync>>,
}

impl Error {
    /// Creates an error of a kind with a message that says what was expected and what was found.
    pub fn new(kind: ErrorKind, message: impl Into<String>) -> Error {
        Error(Box::new(Inner {
            kind,
            message: message.into(),
            path: Vec::new(),
            source: None,
        }))
    }

    /// An [`ErrorKind::Shape`] error.
    pub fn shape(message: impl Into<String>) -> Error {
        Error::new(ErrorKind::Shape, message)
    }

    /// An [`ErrorKind::DType`] error.
    pub fn dtype(message: impl Into<String>) -> Error {
        Error::new(ErrorKind::DType, message)
    }

    /// An [`ErrorKind::InvalidArgument`] error.
    pub fn invalid(message: impl Into<String>) -> Error {
        Error::new(ErrorKind::InvalidArgument, message)
    }

    /// An [`ErrorKind::Unsupported`] error.
    pub fn unsupported(message: impl Into<String>) -> Error {
        Error::new(ErrorKind::Unsupported, message)
    }

    /// Adds the place (node name, field, file) where the error happened, outside the places
    /// already recorded.
    #[must_use]
    pub fn at(mut self, place: impl Into<String>) -> Error {
        self.0.path.push(place.into());
        self
    }

    /// Adds the error that caused this one.
    #[must_use]
    pub fn with_source(
        mut self,
        source: impl Into<Box<dyn std::error::Error + Send + Sync>>,
    ) -> Error {
        self.0.source = Some(source.into());
        self
    }

    /// What kind of thing went wrong.
    pub fn kind(&self) -> ErrorKind {
        self.0.kind
    }

    /// The message without its path.
    pub fn message(&self) -> &str {
        &self.0.message
    }

    /// Where it happened, from the outermost place to the innermost.
    pub fn path(&self) -> impl Iterator<Item = &str> {
        self.0.path.iter().rev().map(String::as_str)
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for place in self.path() {
            write!(f, "{place}: ")?;
        }
        f.write_str(&self.0.message)
    }
}

impl fmt::Debug for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}({self})", self.0.kind)?;
        if let Some(source) = &self.0.source {
            write!(f, " caused by {source:?}")?;
        }
        Ok(())
    }
}

impl std::error::Error for Error {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        self.0.source.as_deref().map(|s| s as _)
    }
}

impl From<std::io::Error> for Error {
    fn from(source: std::io::Error) -> Error {
        Error::new(ErrorKind::Io, source.to_string()).with_source(source)
    }
}

/// Adds a place to the error of a result.
pub trait ResultExt<T> {
    /// Adds the place where the error happened; the closure runs only on an error.
    ///
    /// # Errors
    /// The error it is called on, with the place added.
    fn at<S: Into<String>>(self, place: impl FnOnce() -> S) -> Result<T>;
}

impl<T> ResultExt<T> for Result<T> {
    fn at<S: Into<String>>(self, place: impl FnOnce() -> S) -> Result<T> {
        self.map_err(|e| e.at(place()))
    }
}
