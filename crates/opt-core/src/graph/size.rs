//! Arithmetic of symbolic sizes.

use std::fmt;
use std::sync::Arc;

use smallvec::{SmallVec, smallvec};

use super::dim::{Bindings, Dim, Symbol};
use crate::{Error, Result};

/// More terms than any network's shapes need; beyond it an expression is refused.
const MAX_TERMS: usize = 64;
/// More nested rounded divisions than the strided layers of any network.
const MAX_DEPTH: usize = 256;

/// A factor of a term.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
enum Atom {
    Symbol(Symbol),
    /// A division rounded down that does not come out even.
    Quotient {
        of: Arc<SizeExpr>,
        by: i64,
        depth: usize,
    },
}

/// A factor of a term of a [`SizeExpr`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SizeFactor {
    /// A symbol.
    Symbol(Symbol),
    /// An expression divided by a positive number, rounded down.
    Quotient(SizeExpr, i64),
}

type Term = (SmallVec<[Atom; 2]>, i64);

/// An integer made of symbols by sums, products and divisions rounded down, in a normal form in
/// which expressions that are equal as polynomials are equal as values.
///
/// Intermediate results may be negative; a [`Dim`] may not.
///
/// ```
/// use opt_core::{Dim, SizeExpr};
///
/// let (batch, seq) = (Dim::from("batch").expr(), Dim::from("seq").expr());
/// let rows = batch.mul(&seq)?;
/// assert_eq!(rows.mul(&8.into())?.div_exact(&rows), Some(8.into()));
/// assert_eq!(seq.add(&1.into())?.div_floor(2)?.to_string(), "floor((seq+1)/2)");
/// # Ok::<(), opt_core::Error>(())
/// ```
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct SizeExpr {
    /// Ascending in the factors, none with a coefficient of 0.
    terms: Vec<Term>,
}

impl From<i64> for SizeExpr {
    fn from(value: i64) -> SizeExpr {
        SizeExpr {
            terms: if value == 0 {
                Vec::new()
            } else {
                vec![(smallvec![], value)]
            },
        }
    }
}

impl From<Symbol> for SizeExpr {
    fn from(symbol: Symbol) -> SizeExpr {
        SizeExpr {
            terms: vec![(smallvec![Atom::Symbol(symbol)], 1)],
        }
    }
}

fn overflow() -> Error {
    Error::shape("a symbolic size overflows or grows too long; bind its symbols first")
}

impl SizeExpr {
    fn collect(mut terms: Vec<Term>) -> Result<SizeExpr> {
        terms.sort_by(|a, b| a.0.cmp(&b.0));
        let mut out: Vec<Term> = Vec::with_capacity(terms.len());
        for (atoms, k) in terms {
            match out.last_mut() {
                Some((last, sum)) if *last == atoms => {
                    *sum = sum.checked_add(k).ok_or_else(overflow)?;
                }
                _ => out.push((atoms, k)),
            }
        }
        out.retain(|t| t.1 != 0);
        if out.len() > MAX_TERMS || out.iter().any(|t| t.0.len() > MAX_TERMS) {
            return Err(overflow());
        }
        Ok(SizeExpr { terms: out })
    }

    /// The terms of the sum: a coefficient and its factors.
    pub fn terms(&self) -> impl Iterator<Item = (i64, Vec<SizeFactor>)> + '_ {
        self.terms.iter().map(|(atoms, k)| {
            let factor = |a: &Atom| match a {
                Atom::Symbol(s) => SizeFactor::Symbol(s.clone()),
                Atom::Quotient { of, by, .. } => SizeFactor::Quotient((**of).clone(), *by),
            };
            (*k, atoms.iter().map(factor).collect())
        })
    }

    /// The number, if there are no symbols.
    pub fn as_constant(&self) -> Option<i64> {
        match &self.terms[..] {
            [] => Some(0),
            [(atoms, k)] if atoms.is_empty() => Some(*k),
            _ => None,
        }
    }

    /// The sum.
    ///
    /// # Errors
    /// On overflow, or if the expression becomes very long.
    pub fn add(&self, other: &SizeExpr) -> Result<SizeExpr> {
        let terms = self.terms.iter().chain(&other.terms).cloned().collect();
        SizeExpr::collect(terms)
    }

    /// The difference.
    ///
    /// # Errors
    /// As [`SizeExpr::add`].
    pub fn sub(&self, other: &SizeExpr) -> Result<SizeExpr> {
        self.add(&other.mul(&SizeExpr::from(-1))?)
    }

    /// The product.
    ///
    /// # Errors
    /// As [`SizeExpr::add`].
    pub fn mul(&self, other: &SizeExpr) -> Result<SizeExpr> {
        let mut terms = Vec::with_capacity(self.terms.len() * other.terms.len());
        for (a, k) in &self.terms {
            for (b, l) in &other.terms {
                let mut atoms: SmallVec<[Atom; 2]> = a.iter().chain(b).cloned().collect();
                atoms.sort();
                terms.push((atoms, k.checked_mul(*l).ok_or_else(overflow)?));
            }
        }
        SizeExpr::collect(terms)
    }

    /// The quotient if the division comes out even, whatever the symbols are.
    pub fn div_exact(&self, other: &SizeExpr) -> Option<SizeExpr> {
        // Division by the leading term, in graded order, until nothing is left.
        let leading = |e: &SizeExpr| -> Option<Term> {
            let key = |t: &&Term| (t.0.len(), t.0.clone());
            e.terms.iter().max_by_key(key).cloned()
        };
        let divisor = leading(other)?;
        let (mut rest, mut quotient) = (self.clone(), SizeExpr::default());
        for _ in 0..MAX_TERMS {
            let Some((mut atoms, k)) = leading(&rest) else {
                return Some(quotient);
            };
            for factor in &divisor.0 {
                let at = atoms.iter().position(|a| a == factor)?;
                atoms.remove(at);
            }
            let k = (k % divisor.1 == 0).then(|| k / divisor.1)?;
            let part = SizeExpr {
                terms: vec![(atoms, k)],
            };
            rest = rest.sub(&part.mul(other).ok()?).ok()?;
            quotient = quotient.add(&part).ok()?;
        }
        None
    }

    /// The quotient by a positive number, rounded down.
    ///
    /// # Errors
    /// If the divisor is not positive, or as [`SizeExpr::add`].
    pub fn div_floor(&self, by: i64) -> Result<SizeExpr> {
        if by < 1 {
            return Err(Error::shape(format!("a size divided by {by}")));
        }
        // floor((by * q + r) / by) = q + floor(r / by), term by term.
        let (mut even, mut odd) = (Vec::new(), Vec::new());
        for (atoms, k) in &self.terms {
            even.push((atoms.clone(), k.div_euclid(by)));
            odd.push((atoms.clone(), k.rem_euclid(by)));
        }
        let (even, odd) = (SizeExpr::collect(even)?, SizeExpr::collect(odd)?);
        if let Some(rest) = odd.as_constant() {
            return even.add(&rest.div_euclid(by).into());
        }
        let depth = 1 + odd.depth();
        if depth > MAX_DEPTH {
            return Err(overflow());
        }
        let quotient = Atom::Quotient {
            of: Arc::new(odd),
            by,
            depth,
        };
        even.add(&SizeExpr {
            terms: vec![(smallvec![quotient], 1)],
        })
    }

    fn depth(&self) -> usize {
        let atoms = self.terms.iter().flat_map(|t| &t.0);
        atoms
            .map(|a| match a {
                Atom::Symbol(_) => 0,
                Atom::Quotient { depth, .. } => *depth,
            })
            .max()
            .unwrap_or(0)
    }

    /// The symbols in it, in order of appearance.
    pub fn symbols(&self) -> Vec<Symbol> {
        let mut found = Vec::new();
        for atom in self.terms.iter().flat_map(|t| &t.0) {
            match atom {
                Atom::Symbol(s) if !found.contains(s) => found.push(s.clone()),
                Atom::Symbol(_) => {}
                Atom::Quotient { of, .. } => {
                    let inner = of.symbols();
                    found.extend(
                        inner
                            .into_iter()
                            .filter(|s| !found.contains(s))
                            .collect::<Vec<_>>(),
                    );
                }
            }
        }
        found
    }

    /// The least value it can have if every symbol is at least `least`, as far as that is seen
    /// term by term; `None` if a term is negative.
    pub fn lower_bound(&self, least: i64) -> Option<i64> {
        let mut bound = 0i64;
        for (atoms, k) in &self.terms {
            let mut term = *k;
            for atom in atoms {
                let at_least = match atom {
                    Atom::Symbol(_) => least,
                    Atom::Quotient { of, by, .. } => of.lower_bound(least)?.div_euclid(*by),
                };
                term = term.checked_mul(at_least)?;
            }
            if *k < 0 && !atoms.is_empty() {
                return None;
            }
            bound = bound.checked_add(term)?;
        }
        Some(bound)
    }

    /// The expression under bindings; unbound symbols stay.
    ///
    /// # Errors
    /// On overflow.
    pub fn bind(&self, bindings: &Bindings) -> Result<SizeExpr> {
        let mut sum = SizeExpr::default();
        for (atoms, k) in &self.terms {
            let mut term = SizeExpr::from(*k);
            for atom in atoms {
                let factor = match atom {
                    Atom::Symbol(s) => match bindings.get(s) {
                        Some(&n) => i64::try_from(n).map_err(|_| overflow())?.into(),
                        None => s.clone().into(),
                    },
                    Atom::Quotient { of, by, .. } => of.bind(bindings)?.div_floor(*by)?,
                };
                term = term.mul(&factor)?;
            }
            sum = sum.add(&term)?;
        }
        Ok(sum)
    }

    /// The expression as the size of a dimension.
    ///
    /// # Errors
    /// If it is a negative number.
    pub fn dim(self) -> Result<Dim> {
        if let Some(value) = self.as_constant() {
            return usize::try_from(value)
                .map(Dim::Fixed)
                .map_err(|_| Error::shape(format!("{value} is no size")));
        }
        if let [(atoms, 1)] = &self.terms[..]
            && let [Atom::Symbol(s)] = &atoms[..]
        {
            return Ok(Dim::Symbol(s.clone()));
        }
        Ok(Dim::Expr(Arc::new(self)))
    }
}

impl fmt::Display for SizeExpr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.terms.is_empty() {
            return f.write_str("0");
        }
        // The constant term sorts first and reads better last.
        let split = usize::from(self.terms[0].0.is_empty());
        let ordered = self.terms[split..].iter().chain(&self.terms[..split]);
        for (i, (atoms, k)) in ordered.enumerate() {
            if *k < 0 {
                f.write_str("-")?;
            } else if i > 0 {
                f.write_str("+")?;
            }
            let mut first = true;
            if *k != 1 && *k != -1 || atoms.is_empty() {
                write!(f, "{}", k.unsigned_abs())?;
                first = false;
            }
            for atom in atoms {
                if !first {
                    f.write_str("*")?;
                }
                first = false;
                match atom {
                    Atom::Symbol(s) => f.write_str(s.as_str())?,
                    Atom::Quotient { of, by, .. } => write!(f, "floor(({of})/{by})")?,
                }
            }
        }
        Ok(())
    }
}

impl fmt::Debug for SizeExpr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn s(name: &str) -> SizeExpr {
        Symbol::new(name).into()
    }

    #[test]
    fn equal_polynomials_are_equal_values() {
        let (a, b) = (s("a"), s("b"));
        let left = a.add(&b).unwrap().mul(&a.sub(&b).unwrap()).unwrap();
        let right = a.mul(&a).unwrap().sub(&b.mul(&b).unwrap()).unwrap();
        assert_eq!(left, right);
        assert_eq!(
            left.div_exact(&a.add(&b).unwrap()),
            Some(a.sub(&b).unwrap())
        );
        assert_eq!(left.div_exact(&s("c")), None);
        assert_eq!(a.sub(&a).unwrap().as_constant(), Some(0));
    }

    #[test]
    fn division_takes_out_what_is_even() {
        let e = s("n").mul(&4.into()).unwrap().add(&7.into()).unwrap();
        assert_eq!(e.div_floor(2).unwrap().to_string(), "2*n+3");
        let odd = e.div_floor(8).unwrap();
        assert_eq!(odd.to_string(), "floor((4*n+7)/8)");
        for n in 0..20usize {
            let bound = odd.bind(&[(Symbol::new("n"), n)].into()).unwrap();
            assert_eq!(bound.as_constant(), Some((4 * n as i64 + 7) / 8));
        }
        assert!(e.div_floor(0).is_err());
    }

    #[test]
    fn growth_and_overflow_are_errors() {
        let mut e = s("x0");
        let mut grown = Ok(());
        for i in 1..100 {
            match e.add(&s(&format!("x{i}"))) {
                Ok(next) => e = next,
                Err(error) => grown = Err(error),
            }
        }
        assert!(grown.is_err());
        let big = SizeExpr::from(i64::MAX);
        assert!(big.add(&big).is_err() && big.mul(&big).is_err());
    }
}
