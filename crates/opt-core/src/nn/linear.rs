//! Linear layers, embeddings, dropout.

use super::{Init, Layer, ModelBuilder};
use crate::{Error, Result, ValueId};

/// `x weight^T + bias` over the last axis: `[.., I] -> [.., O]`, with `weight` `[O, I]` and
/// `bias` `[O]` as in PyTorch.
#[derive(Debug, Clone)]
pub struct Linear {
    outputs: usize,
    bias: bool,
    init: Init,
    bias_init: Option<Init>,
}

impl Linear {
    /// A linear layer with a bias, both started uniformly within `1 / sqrt(I)`.
    pub fn new(outputs: usize) -> Linear {
        Linear {
            outputs,
            bias: true,
            init: Init::LINEAR,
            bias_init: None,
        }
    }

    /// Whether there is a bias.
    #[must_use]
    pub fn bias(mut self, bias: bool) -> Linear {
        self.bias = bias;
        self
    }

    /// How the weight starts.
    #[must_use]
    pub fn init(mut self, init: Init) -> Linear {
        self.init = init;
        self
    }

    /// How the bias starts.
    #[must_use]
    pub fn bias_init(mut self, init: Init) -> Linear {
        self.bias_init = Some(init);
        self
    }
}

/// PyTorch's start of a bias: uniform within `1 / sqrt(fan in)` of the weight.
pub(super) fn default_bias(weight: &[usize]) -> Result<Init> {
    let (fan_in, _) = Init::fans(weight)?;
    let bound = 1.0 / (fan_in.max(1) as f64).sqrt();
    Ok(Init::Uniform {
        low: -bound,
        high: bound,
    })
}

impl Layer for Linear {
    fn build(&self, m: &mut ModelBuilder, x: ValueId) -> Result<ValueId> {
        let rank = m.type_of(x).rank();
        if rank < 2 {
            return Err(Error::shape(format!(
                "a linear layer takes rank 2 at least, found {}",
                m.type_of(x)
            )));
        }
        let shape = [self.outputs, m.size(x, rank - 1)?];
        let weight = m.parameter("weight", shape, &self.init)?;
        let y = m.matmul_t(x, weight, false, true)?;
        if !self.bias {
            return Ok(y);
        }
        let init = match self.bias_init {
            Some(init) => init,
            None => default_bias(&shape)?,
        };
        let bias = m.parameter("bias", [self.outputs], &init)?;
        m.add(y, bias)
    }
}

/// Rows of a table by index: `[..] -> [.., width]`, with `weight` `[entries, width]`.
#[derive(Debug, Clone)]
pub struct Embedding {
    entries: usize,
    width: usize,
    init: Init,
}

impl Embedding {
    /// A table that starts with standard normal numbers.
    pub fn new(entries: usize, width: usize) -> Embedding {
        Embedding {
            entries,
            width,
            init: Init::Normal {
                mean: 0.0,
                std: 1.0,
            },
        }
    }

    /// How the table starts.
    #[must_use]
    pub fn init(mut self, init: Init) -> Embedding {
        self.init = init;
        self
    }
}

impl Layer for Embedding {
    fn build(&self, m: &mut ModelBuilder, x: ValueId) -> Result<ValueId> {
        let weight = m.parameter("weight", [self.entries, self.width], &self.init)?;
        m.embedding(weight, x)
    }
}

/// Dropout, in eval mode until the pass `TrainMode` switches it on. Its seed comes from the
/// model's seed and the layer's name.
#[derive(Debug, Clone, Copy)]
pub struct Dropout {
    p: f64,
}

impl Dropout {
    /// Dropout with the probability of a zero, in `[0, 1)`.
    pub fn new(p: f64) -> Dropout {
        Dropout { p }
    }
}

impl Layer for Dropout {
    fn build(&self, m: &mut ModelBuilder, x: ValueId) -> Result<ValueId> {
        let seed = m.op_seed("dropout");
        m.dropout(x, self.p, seed)
    }
}
