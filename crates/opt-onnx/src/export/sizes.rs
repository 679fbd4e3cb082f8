//! Sizes that are known only when the model runs.

use opt_core::{Dim, Error, Result, Shape, SizeExpr, SizeFactor, Symbol, Tensor};

use super::Cx;
use super::attributes::int;

impl Cx<'_> {
    /// The name of an `i64[n]` value with the sizes of a shape.
    pub(super) fn shape(&mut self, base: &str, shape: &Shape) -> Result<String> {
        if let Ok(fixed) = shape.fixed() {
            return self.ints(base, &super::attributes::signed(&fixed));
        }
        let mut parts = Vec::with_capacity(shape.rank());
        for dim in shape.dims() {
            parts.push(self.size(base, &dim.expr())?);
        }
        Ok(match parts.len() {
            1 => parts.remove(0),
            _ => self.helper("Concat", base, parts, vec![int("axis", 0)]),
        })
    }

    /// The shape to write for a `Reshape`: 0 where a size is copied, -1 for one that follows.
    pub(super) fn reshape_target(
        &mut self,
        base: &str,
        from: &Shape,
        to: &Shape,
    ) -> Result<String> {
        if to.fixed().is_ok() {
            return self.shape(base, to);
        }
        let zero = to.dims().iter().any(|d| d.as_fixed() == Some(0));
        let mut open = false;
        let mut target = Vec::with_capacity(to.rank());
        for (i, dim) in to.dims().iter().enumerate() {
            match dim {
                Dim::Fixed(n) => target.push(*n as i64),
                d if from.dims().get(i) == Some(d) => target.push(0),
                _ if !open && !zero => {
                    open = true;
                    target.push(-1);
                }
                _ => return self.shape(base, to),
            }
        }
        self.ints(base, &target)
    }

    /// The name of an `i64[1]` value with a size.
    pub(super) fn size(&mut self, base: &str, size: &SizeExpr) -> Result<String> {
        let key = size.to_string();
        if let Some(name) = self.sizes.get(&key) {
            return Ok(name.clone());
        }
        let mut sum: Option<String> = None;
        for (k, factors) in size.terms() {
            let mut term: Option<String> = None;
            for factor in factors {
                let part = match factor {
                    SizeFactor::Symbol(s) => self.symbol(base, &s)?,
                    SizeFactor::Quotient(of, by) => {
                        let of = self.size(base, &of)?;
                        let by = self.number(base, by)?;
                        self.helper("Div", base, vec![of, by], vec![])
                    }
                };
                term = Some(match term {
                    Some(t) => self.helper("Mul", base, vec![t, part], vec![]),
                    None => part,
                });
            }
            let term = match (term, k) {
                (None, k) => self.number(base, k)?,
                (Some(t), 1) => t,
                (Some(t), k) => {
                    let k = self.number(base, k)?;
                    self.helper("Mul", base, vec![t, k], vec![])
                }
            };
            sum = Some(match sum {
                Some(s) => self.helper("Add", base, vec![s, term], vec![]),
                None => term,
            });
        }
        let name = match sum {
            Some(name) => name,
            None => self.number(base, 0)?,
        };
        self.sizes.insert(key, name.clone());
        Ok(name)
    }

    fn number(&mut self, base: &str, value: i64) -> Result<String> {
        Ok(self.constant(&format!("{base}/size"), Tensor::new([1], [value])?))
    }

    /// A symbol, read from the input that has it.
    fn symbol(&mut self, base: &str, symbol: &Symbol) -> Result<String> {
        let key = symbol.as_str().to_string();
        if let Some(name) = self.sizes.get(&key) {
            return Ok(name.clone());
        }
        let found = self.graph.inputs().iter().find_map(|&id| {
            let dims = self.ty(id).shape.dims();
            let axis = dims
                .iter()
                .position(|d| *d == Dim::Symbol(symbol.clone()))?;
            Some((id, axis as i64))
        });
        let Some((input, axis)) = found else {
            return Err(Error::unsupported(format!(
                "no input of the graph has the size `{}`",
                symbol.as_str()
            )));
        };
        let input = self.read(input);
        let name = if self.opset >= 15 {
            let window = vec![int("start", axis), int("end", axis + 1)];
            self.helper("Shape", base, vec![input], window)
        } else {
            let all = self.helper("Shape", base, vec![input], vec![]);
            let index = self.number(base, axis)?;
            self.helper("Gather", base, vec![all, index], vec![int("axis", 0)])
        };
        self.sizes.insert(key, name.clone());
        Ok(name)
    }
}
