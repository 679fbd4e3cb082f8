//! Symbolic dimensions and the types of values.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use smallvec::SmallVec;

use crate::tensor::Dims;
use crate::{DType, Error, Result};

/// The name of a dimension that is known only when a graph is compiled, such as `"batch"`.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Symbol(Arc<str>);

impl Symbol {
    /// The symbol of a name; equal names are the same symbol.
    pub fn new(name: impl AsRef<str>) -> Symbol {
        Symbol(name.as_ref().into())
    }

    /// Its name.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Symbol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// The size of one dimension.
///
/// ```
/// use opt_core::Dim;
///
/// let n = Dim::from("batch");
/// assert_eq!(n.mul(3)?.add(1)?.to_string(), "3*batch+1");
/// assert_eq!(Dim::from(8).fixed()?, 8);
/// # Ok::<(), opt_core::Error>(())
/// ```
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[non_exhaustive]
pub enum Dim {
    /// A size known now.
    Fixed(usize),
    /// A size bound when the graph is compiled.
    Symbol(Symbol),
    /// `mul * symbol + add`, with `mul` at least 1 and not the plain symbol.
    Affine {
        /// The symbol.
        symbol: Symbol,
        /// Its factor.
        mul: usize,
        /// What is added.
        add: isize,
    },
}

/// The sizes that symbols are bound to.
pub type Bindings = BTreeMap<Symbol, usize>;

impl Dim {
    fn affine(symbol: Symbol, mul: usize, add: isize) -> Dim {
        match (mul, add) {
            (0, add) => Dim::Fixed(add.max(0) as usize),
            (1, 0) => Dim::Symbol(symbol),
            _ => Dim::Affine { symbol, mul, add },
        }
    }

    fn parts(&self) -> (Option<&Symbol>, usize, isize) {
        match self {
            Dim::Fixed(n) => (None, 0, *n as isize),
            Dim::Symbol(s) => (Some(s), 1, 0),
            Dim::Affine { symbol, mul, add } => (Some(symbol), *mul, *add),
        }
    }

    /// The size, or an error that says which symbol has to be bound.
    ///
    /// # Errors
    /// [`ErrorKind::Shape`](crate::ErrorKind::Shape) for a symbolic dimension.
    pub fn fixed(&self) -> Result<usize> {
        match self {
            Dim::Fixed(n) => Ok(*n),
            _ => Err(Error::shape(format!(
                "the dimension `{self}` is symbolic here; bind it to a size first"
            ))),
        }
    }

    /// The size if it is known now.
    pub fn as_fixed(&self) -> Option<usize> {
        match self {
            Dim::Fixed(n) => Some(*n),
            _ => None,
        }
    }

    /// This dimension times a factor.
    ///
    /// # Errors
    /// On overflow.
    pub fn mul(&self, factor: usize) -> Result<Dim> {
        let overflow = || Error::shape(format!("{self} times {factor} overflows"));
        let (symbol, mul, add) = self.parts();
        let add = isize::try_from(factor)
            .ok()
            .and_then(|f| add.checked_mul(f))
            .ok_or_else(overflow)?;
        Ok(match symbol {
            None => Dim::Fixed(add as usize),
            Some(s) => Dim::affine(
                s.clone(),
                mul.checked_mul(factor).ok_or_else(overflow)?,
                add,
            ),
        })
    }

    /// This dimension plus an offset.
    ///
    /// # Errors
    /// If a fixed size would become negative, or on overflow.
    pub fn add(&self, offset: isize) -> Result<Dim> {
        let bad = || Error::shape(format!("{self} plus {offset} is no size"));
        let (symbol, mul, add) = self.parts();
        let add = add.checked_add(offset).ok_or_else(bad)?;
        match symbol {
            None => usize::try_from(add).map(Dim::Fixed).map_err(|_| bad()),
            Some(s) => Ok(Dim::affine(s.clone(), mul, add)),
        }
    }

    /// The sum of two dimensions.
    ///
    /// # Errors
    /// If they have different symbols: only one symbol a dimension can be expressed.
    pub fn plus(&self, other: &Dim) -> Result<Dim> {
        let ((s, m, a), (t, n, b)) = (self.parts(), other.parts());
        match (s, t) {
            (_, None) => self.add(b),
            (None, _) => other.add(a),
            (Some(s), Some(t)) if s == t => Ok(Dim::affine(s.clone(), m + n, a + b)),
            _ => Err(Error::shape(format!(
                "cannot express {self} + {other}; bind one of them first"
            ))),
        }
    }

    /// The size under bindings; unbound symbols stay.
    ///
    /// # Errors
    /// If the size would be negative.
    pub fn bind(&self, bindings: &Bindings) -> Result<Dim> {
        let (symbol, mul, add) = self.parts();
        match symbol.and_then(|s| bindings.get(s)) {
            None => Ok(self.clone()),
            Some(&size) => Dim::Fixed(size).mul(mul)?.add(add),
        }
    }
}

impl From<usize> for Dim {
    fn from(size: usize) -> Dim {
        Dim::Fixed(size)
    }
}

impl From<&str> for Dim {
    fn from(name: &str) -> Dim {
        Dim::Symbol(Symbol::new(name))
    }
}

impl fmt::Display for Dim {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Dim::Fixed(n) => write!(f, "{n}"),
            Dim::Symbol(s) => write!(f, "{}", s.as_str()),
            Dim::Affine { symbol, mul, add } => {
                if *mul != 1 {
                    write!(f, "{mul}*")?;
                }
                f.write_str(symbol.as_str())?;
                if *add != 0 {
                    write!(f, "{add:+}")?;
                }
                Ok(())
            }
        }
    }
}

impl fmt::Debug for Dim {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// A shape whose dimensions may be symbolic.
#[derive(Clone, PartialEq, Eq, Hash, Default)]
pub struct Shape(SmallVec<[Dim; 4]>);

#[expect(
    clippy::len_without_is_empty,
    reason = "emptiness is not known of symbolic shapes"
)]
impl Shape {
    /// A shape from its dimensions.
    pub fn new(dims: impl IntoIterator<Item = impl Into<Dim>>) -> Shape {
        Shape(dims.into_iter().map(Into::into).collect())
    }

    /// The number of dimensions.
    pub fn rank(&self) -> usize {
        self.0.len()
    }

    /// The dimensions.
    pub fn dims(&self) -> &[Dim] {
        &self.0
    }

    /// The dimensions, to change.
    pub fn dims_mut(&mut self) -> &mut SmallVec<[Dim; 4]> {
        &mut self.0
    }

    /// The sizes of a shape without symbols.
    ///
    /// # Errors
    /// If a dimension is symbolic.
    pub fn fixed(&self) -> Result<Dims> {
        self.0.iter().map(Dim::fixed).collect()
    }

    /// The number of elements.
    ///
    /// # Errors
    /// If a dimension is symbolic, or the number is too large to address.
    pub fn len(&self) -> Result<usize> {
        crate::tensor::checked_len(&self.fixed()?)
    }

    /// The number of elements as one dimension (at most one symbolic dimension).
    ///
    /// # Errors
    /// If more than one dimension is symbolic, or on overflow.
    pub fn size(&self) -> Result<Dim> {
        let mut size = Dim::Fixed(1);
        for d in &self.0 {
            size = match (size.as_fixed(), d.as_fixed()) {
                (_, Some(n)) => size.mul(n)?,
                (Some(n), None) => d.mul(n)?,
                _ => {
                    return Err(Error::shape(format!(
                        "the size of {self} has two symbols; bind one of them first"
                    )));
                }
            };
        }
        Ok(size)
    }

    /// This shape under bindings; unbound symbols stay.
    ///
    /// # Errors
    /// If a size would be negative.
    pub fn bind(&self, bindings: &Bindings) -> Result<Shape> {
        Ok(Shape(
            self.0
                .iter()
                .map(|d| d.bind(bindings))
                .collect::<Result<_>>()?,
        ))
    }

    /// The shape that numpy's broadcasting gives for two shapes.
    ///
    /// # Errors
    /// If they do not broadcast. A symbolic dimension broadcasts with itself and with 1 only.
    pub fn broadcast(&self, other: &Shape) -> Result<Shape> {
        let rank = self.rank().max(other.rank());
        let one = Dim::Fixed(1);
        let at = |s: &Shape, i: usize| {
            (i + s.rank())
                .checked_sub(rank)
                .map_or(one.clone(), |j| s.0[j].clone())
        };
        let mut out = SmallVec::new();
        for i in 0..rank {
            let (a, b) = (at(self, i), at(other, i));
            out.push(if a == b || b == one {
                a
            } else if a == one {
                b
            } else {
                return Err(Error::shape(format!(
                    "shapes {self} and {other} do not broadcast: {a} against {b}"
                )));
            });
        }
        Ok(Shape(out))
    }
}

impl std::ops::Index<usize> for Shape {
    type Output = Dim;
    fn index(&self, axis: usize) -> &Dim {
        &self.0[axis]
    }
}

impl<D: Into<Dim>, const N: usize> From<[D; N]> for Shape {
    fn from(dims: [D; N]) -> Shape {
        Shape::new(dims)
    }
}

impl From<&[usize]> for Shape {
    fn from(dims: &[usize]) -> Shape {
        Shape::new(dims.iter().copied())
    }
}

impl From<Vec<Dim>> for Shape {
    fn from(dims: Vec<Dim>) -> Shape {
        Shape(dims.into())
    }
}

impl FromIterator<Dim> for Shape {
    fn from_iter<I: IntoIterator<Item = Dim>>(dims: I) -> Shape {
        Shape(dims.into_iter().collect())
    }
}

impl fmt::Display for Shape {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("[")?;
        for (i, d) in self.0.iter().enumerate() {
            if i > 0 {
                f.write_str(",")?;
            }
            write!(f, "{d}")?;
        }
        f.write_str("]")
    }
}

impl fmt::Debug for Shape {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// The dtype and shape of a value in a graph.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct TensorType {
    /// The element type.
    pub dtype: DType,
    /// The shape.
    pub shape: Shape,
}

impl TensorType {
    /// A type from its dtype and shape.
    pub fn new(dtype: DType, shape: impl Into<Shape>) -> TensorType {
        TensorType {
            dtype,
            shape: shape.into(),
        }
    }

    /// The number of dimensions.
    pub fn rank(&self) -> usize {
        self.shape.rank()
    }

    /// The same shape with another dtype.
    #[must_use]
    pub fn with_dtype(&self, dtype: DType) -> TensorType {
        TensorType {
            dtype,
            shape: self.shape.clone(),
        }
    }

    /// The same dtype with another shape.
    #[must_use]
    pub fn with_shape(&self, shape: impl Into<Shape>) -> TensorType {
        TensorType::new(self.dtype, shape)
    }
}

impl fmt::Display for TensorType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}{}", self.dtype, self.shape)
    }
}

impl fmt::Debug for TensorType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn broadcasting_follows_numpy_and_refuses_symbol_against_size() {
        let a = Shape::new([Dim::from("n"), 1.into(), 3.into()]);
        let b = Shape::from([4, 1]);
        assert_eq!(a.broadcast(&b).unwrap().to_string(), "[n,4,3]");
        assert!(a.broadcast(&Shape::from([2, 4, 3])).is_err());
        assert!(Shape::from([2]).broadcast(&Shape::from([3])).is_err());
    }

    #[test]
    fn sizes_bind() {
        let s = Shape::new([Dim::from("n"), 4.into()]);
        assert_eq!(s.size().unwrap().to_string(), "4*n");
        let bound = s.bind(&[(Symbol::new("n"), 5)].into()).unwrap();
        assert_eq!(bound.len().unwrap(), 20);
        assert!(s.len().is_err());
    }
}
