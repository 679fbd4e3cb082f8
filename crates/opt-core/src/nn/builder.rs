//! The builder that layers are applied with.

use std::ops::{Deref, DerefMut};

use super::Init;
use crate::ops::UnaryOp;
use crate::{
    DType, Dim, Error, Graph, GraphBuilder, Result, ResultExt, Shape, TensorType, ValueId,
};

/// A [`GraphBuilder`] with the dtype of the parameters and the seed of their initial content.
///
/// The initial content of a parameter depends on the seed and the parameter's full name only:
/// adding a layer changes no other.
#[derive(Debug)]
pub struct ModelBuilder {
    builder: GraphBuilder,
    seed: u64,
    dtype: DType,
}

/// Something that adds its parameters and nodes to a model: see [`ModelBuilder::layer`].
///
/// ```
/// use opt_core::nn::{Layer, Linear, ModelBuilder};
/// use opt_core::{Result, ValueId};
///
/// /// `x + linear(relu(x))`
/// struct Residual;
///
/// impl Layer for Residual {
///     fn build(&self, m: &mut ModelBuilder, x: ValueId) -> Result<ValueId> {
///         let width = m.size(x, 1)?;
///         let y = m.relu(x)?;
///         let y = m.layer("linear", Linear::new(width), y)?;
///         m.add(x, y)
///     }
/// }
///
/// let mut m = ModelBuilder::new("residual", 0);
/// let x = m.batch("x", [16])?;
/// let y = m.layer("block", Residual, x)?;
/// m.output("y", y)?;
/// assert!(m.finish()?.find("block.linear.weight").is_ok());
/// # Ok::<(), opt_core::Error>(())
/// ```
pub trait Layer {
    /// Applies the layer to a value, within the scope that the caller has opened.
    ///
    /// # Errors
    /// If the value's type does not fit, or a size that the parameters depend on is symbolic.
    fn build(&self, m: &mut ModelBuilder, x: ValueId) -> Result<ValueId>;
}

impl<L: Layer + ?Sized> Layer for &L {
    fn build(&self, m: &mut ModelBuilder, x: ValueId) -> Result<ValueId> {
        (**self).build(m, x)
    }
}

/// An activation function is a layer without parameters.
impl Layer for UnaryOp {
    fn build(&self, m: &mut ModelBuilder, x: ValueId) -> Result<ValueId> {
        m.unary(*self, x)
    }
}

impl ModelBuilder {
    /// Starts an empty model with `f32` parameters.
    pub fn new(name: impl Into<String>, seed: u64) -> ModelBuilder {
        ModelBuilder::extend(GraphBuilder::new(name), seed)
    }

    /// Goes on with a graph, such as to add a head to a loaded backbone.
    pub fn extend(builder: GraphBuilder, seed: u64) -> ModelBuilder {
        ModelBuilder {
            builder,
            seed,
            dtype: DType::F32,
        }
    }

    /// Parameters and [`batch`](ModelBuilder::batch) inputs of another floating-point dtype from
    /// here on.
    #[must_use]
    pub fn with_dtype(mut self, dtype: DType) -> ModelBuilder {
        self.dtype = dtype;
        self
    }

    /// The dtype of parameters.
    pub fn dtype(&self) -> DType {
        self.dtype
    }

    /// Adds an input `[batch, dims..]` of the model's dtype; the first dimension is the symbol
    /// `batch`.
    ///
    /// # Errors
    /// If the name is taken.
    pub fn batch(&mut self, name: &str, dims: impl AsRef<[usize]>) -> Result<ValueId> {
        self.batch_of(self.dtype, name, dims)
    }

    /// Adds an input `[batch, dims..]` of a dtype, such as `i64` for indices.
    ///
    /// # Errors
    /// If the name is taken.
    pub fn batch_of(
        &mut self,
        dtype: DType,
        name: &str,
        dims: impl AsRef<[usize]>,
    ) -> Result<ValueId> {
        let dims = dims.as_ref().iter().map(|&d| Dim::from(d));
        let shape: Shape = std::iter::once(Dim::from("batch")).chain(dims).collect();
        self.input(name, TensorType::new(dtype, shape))
    }

    /// Adds a variable of the model's dtype with initial content.
    ///
    /// # Errors
    /// If the name is taken, or the shape does not suit the initialiser.
    pub fn parameter(
        &mut self,
        name: &str,
        shape: impl AsRef<[usize]>,
        init: &Init,
    ) -> Result<ValueId> {
        let stream = self.stream(name);
        let content = init
            .tensor(self.dtype, shape, self.seed, stream)
            .at(|| name)?;
        self.variable(name, content)
    }

    /// Applies a layer under a name: its parameters become `name.weight` and so on.
    ///
    /// # Errors
    /// Those of the layer, at its name.
    pub fn layer(&mut self, name: &str, layer: impl Layer, x: ValueId) -> Result<ValueId> {
        self.scope(name, |m| layer.build(m, x))
    }

    /// Runs `build` with a name put before the names of all that it adds: `name.other`.
    ///
    /// # Errors
    /// Those of `build`, at the name.
    pub fn scope<T>(
        &mut self,
        name: &str,
        build: impl FnOnce(&mut ModelBuilder) -> Result<T>,
    ) -> Result<T> {
        self.builder.enter(name);
        let result = build(self);
        self.builder.leave();
        result.at(|| name)
    }

    /// The size of an axis of a value, which parameters depend on.
    ///
    /// # Errors
    /// If the value has no such axis or its size is symbolic.
    pub fn size(&self, x: ValueId, axis: usize) -> Result<usize> {
        let ty = self.type_of(x);
        let dim = ty.shape.dims().get(axis).ok_or_else(|| {
            Error::shape(format!("expected rank {} at least, found {ty}", axis + 1))
        })?;
        dim.fixed()
    }

    /// A number that depends on the name and the open scopes, for the seeds of random ops and
    /// the streams of initialisers (64-bit FNV-1a).
    pub(crate) fn stream(&self, name: &str) -> u64 {
        let start = 0xcbf2_9ce4_8422_2325_u64;
        let mix = |hash: u64, byte: u8| (hash ^ u64::from(byte)).wrapping_mul(0x100_0000_01b3);
        self.scoped(name).bytes().fold(start, mix)
    }

    /// The seed of a random op of this name.
    pub(crate) fn op_seed(&self, name: &str) -> u64 {
        self.seed ^ self.stream(name)
    }

    /// Verifies the graph and hands it out.
    ///
    /// # Errors
    /// If the graph is not valid; see [`Graph::verify`].
    pub fn finish(self) -> Result<Graph> {
        self.builder.finish()
    }

    /// The builder without dtype and seed.
    pub fn into_builder(self) -> GraphBuilder {
        self.builder
    }
}

impl Deref for ModelBuilder {
    type Target = GraphBuilder;
    fn deref(&self) -> &GraphBuilder {
        &self.builder
    }
}

impl DerefMut for ModelBuilder {
    fn deref_mut(&mut self) -> &mut GraphBuilder {
        &mut self.builder
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::nn::Linear;

    fn weight(seed: u64, more: bool) -> Vec<f64> {
        let mut m = ModelBuilder::new("m", seed);
        let mut x = m.batch("x", [4]).unwrap();
        if more {
            x = m.layer("first", Linear::new(4), x).unwrap();
        }
        x = m.layer("fc", Linear::new(3), x).unwrap();
        m.output("y", x).unwrap();
        let graph = m.finish().unwrap();
        let id = graph.find("fc.weight").unwrap();
        graph.value(id).tensor().unwrap().to_f64s()
    }

    #[test]
    fn initial_content_depends_on_seed_and_name_only() {
        assert_eq!(weight(1, false), weight(1, true));
        assert_ne!(weight(1, false), weight(2, false));
    }

    #[test]
    fn errors_name_the_scopes() {
        let mut m = ModelBuilder::new("m", 0);
        let x = m.batch("x", []).unwrap();
        let error = m
            .scope("block", |m| m.layer("fc", Linear::new(2), x))
            .unwrap_err();
        assert!(error.to_string().starts_with("block: fc: "), "{error}");
        let again = m.batch("x", []).unwrap_err();
        assert!(again.to_string().contains("taken"), "{again}");
    }

    #[test]
    fn dtypes_carry_through() {
        let mut m = ModelBuilder::new("m", 0).with_dtype(DType::F64);
        let x = m.batch("x", [4]).unwrap();
        let y = m.layer("fc", Linear::new(2), x).unwrap();
        let y = m.layer("act", UnaryOp::Tanh, y).unwrap();
        assert_eq!(m.type_of(y).to_string(), "f64[batch,2]");
    }
}
