//! Symbolic dimensions and the types of values.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use smallvec::SmallVec;

use super::size::SizeExpr;
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
/// assert_eq!(n.times(&"seq".into())?.to_string(), "batch*seq");
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
    /// A size computed from symbols; never a constant and never a plain symbol, so that equal
    /// sizes are equal values.
    Expr(Arc<SizeExpr>),
}

/// The sizes that symbols are bound to.
pub type Bindings = BTreeMap<Symbol, usize>;

impl Dim {
    /// The size as an expression, to compute with.
    pub fn expr(&self) -> SizeExpr {
        match self {
            // A tensor with more than 2^63 entries is refused long before.
            Dim::Fixed(n) => i64::try_from(*n).unwrap_or(i64::MAX).into(),
            Dim::Symbol(s) => s.clone().into(),
            Dim::Expr(e) => (**e).clone(),
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
        self.times(&Dim::Fixed(factor))
    }

    /// The product of two dimensions.
    ///
    /// # Errors
    /// On overflow, or if the expression becomes very long.
    pub fn times(&self, other: &Dim) -> Result<Dim> {
        match (self, other) {
            (Dim::Fixed(a), Dim::Fixed(b)) => a
                .checked_mul(*b)
                .map(Dim::Fixed)
                .ok_or_else(|| Error::shape(format!("{a} times {b} overflows"))),
            _ => self.expr().mul(&other.expr())?.dim(),
        }
    }

    /// This dimension plus an offset.
    ///
    /// # Errors
    /// If a fixed size would become negative, or on overflow.
    pub fn add(&self, offset: isize) -> Result<Dim> {
        match self {
            Dim::Fixed(n) => n
                .checked_add_signed(offset)
                .map(Dim::Fixed)
                .ok_or_else(|| Error::shape(format!("{self} plus {offset} is no size"))),
            _ => self.expr().add(&(offset as i64).into())?.dim(),
        }
    }

    /// The sum of two dimensions.
    ///
    /// # Errors
    /// On overflow, or if the expression becomes very long.
    pub fn plus(&self, other: &Dim) -> Result<Dim> {
        match (self, other) {
            (Dim::Fixed(a), Dim::Fixed(b)) => a
                .checked_add(*b)
                .map(Dim::Fixed)
                .ok_or_else(|| Error::shape(format!("{a} plus {b} overflows"))),
            _ => self.expr().add(&other.expr())?.dim(),
        }
    }

    /// This dimension divided by a number, rounded down.
    ///
    /// # Errors
    /// If the divisor is 0.
    pub fn div_floor(&self, by: usize) -> Result<Dim> {
        match self {
            Dim::Fixed(n) => n
                .checked_div(by)
                .map(Dim::Fixed)
                .ok_or_else(|| Error::shape("a size divided by 0")),
            _ => self.expr().div_floor(i64::try_from(by).unwrap_or(0))?.dim(),
        }
    }

    /// The size under bindings; unbound symbols stay.
    ///
    /// # Errors
    /// If the size would be negative.
    pub fn bind(&self, bindings: &Bindings) -> Result<Dim> {
        match self {
            Dim::Fixed(_) => Ok(self.clone()),
            Dim::Symbol(s) => Ok(bindings.get(s).map_or_else(|| self.clone(), |&n| n.into())),
            Dim::Expr(e) => e.bind(bindings)?.dim(),
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
            Dim::Expr(e) => write!(f, "{e}"),
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

    /// The number of elements as one dimension.
    ///
    /// # Errors
    /// On overflow.
    pub fn size(&self) -> Result<Dim> {
        let mut size = Dim::Fixed(1);
        for d in &self.0 {
            size = size.times(d)?;
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
