//! BERT (Devlin et al. 2018) and encoders of its shape, such as MiniLM (Wang et al. 2020).
//!
//! ```
//! use opt_onnx::hub::bert::BertConfig;
//!
//! let config = BertConfig::from_json(br#"{
//!     "model_type": "bert", "vocab_size": 100, "hidden_size": 16, "num_hidden_layers": 1,
//!     "num_attention_heads": 2, "intermediate_size": 32, "hidden_act": "gelu",
//!     "max_position_embeddings": 64, "type_vocab_size": 2
//! }"#)?;
//! let graph = config.graph(true, 0)?;
//! let output = graph.output("last_hidden_state")?;
//! assert_eq!(graph.type_of(output).to_string(), "f32[batch,sequence,16]");
//! # Ok::<(), opt_core::Error>(())
//! ```

use std::path::Path;

use opt_core::nn::{Dropout, Embedding, Init, LayerNorm, Linear, ModelBuilder, MultiHeadAttention};
use opt_core::ops::UnaryOp;
use opt_core::{
    DType, Dim, Error, ErrorKind, Graph, Result, ResultExt, Shape, Tensor, TensorType, ValueId,
};
use serde::Deserialize;

use crate::safetensors::{LoadOptions, LoadReport, NameMap, SafeTensors, load_into};

/// What a `config.json` says about the structure of an encoder, under the names that it has there.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[non_exhaustive]
pub struct BertConfig {
    /// Number of tokens.
    pub vocab_size: usize,
    /// Width of the model.
    pub hidden_size: usize,
    /// Number of encoder layers.
    pub num_hidden_layers: usize,
    /// Attention heads, which divide the width.
    pub num_attention_heads: usize,
    /// Width of the feed-forward parts.
    pub intermediate_size: usize,
    /// The activation of the feed-forward parts: `gelu`, `gelu_new`, `relu`, `silu` or `tanh`,
    /// or another name that Hugging Face has for one of these.
    #[serde(default = "gelu")]
    pub hidden_act: String,
    /// The longest sequence.
    pub max_position_embeddings: usize,
    /// Number of token types.
    #[serde(default = "two")]
    pub type_vocab_size: usize,
    /// What is added to the variance in layer normalizations.
    #[serde(default = "tiny")]
    pub layer_norm_eps: f64,
    /// The probability of dropout after the embeddings and in the residual branches. Dropout is
    /// in eval mode until the pass `TrainMode` switches it on. (The attention weights, which the
    /// original drops too, have none.)
    #[serde(default)]
    pub hidden_dropout_prob: f64,
    #[serde(default = "absolute")]
    position_embedding_type: String,
    #[serde(default = "bert")]
    model_type: String,
    #[serde(default)]
    is_decoder: bool,
}

fn gelu() -> String {
    "gelu".into()
}

fn two() -> usize {
    2
}

fn tiny() -> f64 {
    1e-12
}

fn absolute() -> String {
    "absolute".into()
}

fn bert() -> String {
    "bert".into()
}

/// A loaded encoder.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct Bert {
    /// Its configuration.
    pub config: BertConfig,
    /// The graph, as [`BertConfig::graph`] describes it.
    pub graph: Graph,
    /// Which weights were cast, and which of the file's tensors (heads of tasks that the model was
    /// trained for) are not in the graph.
    pub report: LoadReport,
}

/// Loads an encoder from a folder of the Hugging Face Hub: `config.json`, and
/// `model.safetensors` or its index.
///
/// Names in the file may have a prefix (`bert.`), and layer normalizations `gamma` and `beta`
/// instead of `weight` and `bias`. The pooler is built if the file has it. Weights of 16 bits are
/// cast to `f32`. The files stay mapped; see [`SafeTensors`] for what that asks of them.
///
/// # Errors
/// [`ErrorKind::Io`] if a file cannot be read; [`ErrorKind::Format`] if one is damaged, or a weight
/// is missing or of another type; [`ErrorKind::Unsupported`] if the configuration is of another
/// architecture.
pub fn load(folder: impl AsRef<Path>) -> Result<Bert> {
    let folder = folder.as_ref();
    let load = || {
        let text = std::fs::read(folder.join("config.json"))
            .map_err(Error::from)
            .and_then(|text| BertConfig::from_json(&text))
            .at(|| "config.json");
        let file = SafeTensors::open(folder)?;
        text?.load(&file)
    };
    load().at(|| folder.display().to_string())
}

impl BertConfig {
    /// Reads a `config.json`.
    ///
    /// # Errors
    /// [`ErrorKind::Format`] if it is no such file; [`ErrorKind::Unsupported`] if it is of another
    /// architecture than BERT, of a decoder, or has other than absolute positions.
    pub fn from_json(text: &[u8]) -> Result<BertConfig> {
        let config: BertConfig = serde_json::from_slice(text).map_err(|e| {
            Error::new(ErrorKind::Format, format!("not BERT's configuration: {e}")).with_source(e)
        })?;
        let unsupported = |what: &str, found: &str| {
            Err(Error::unsupported(format!(
                "a model with the {what} `{found}`; BERT's encoders are known"
            )))
        };
        if config.model_type != "bert" {
            // RoBERTa's positions begin at 2, ALBERT shares its layers: the names are alike.
            return unsupported("type", &config.model_type);
        }
        if config.is_decoder {
            return unsupported("setting", "is_decoder");
        }
        if config.position_embedding_type != "absolute" {
            return unsupported("positions", &config.position_embedding_type);
        }
        config.activation()?;
        Ok(config)
    }

    fn activation(&self) -> Result<UnaryOp> {
        Ok(match self.hidden_act.as_str() {
            "gelu" | "gelu_python" => UnaryOp::Gelu { tanh: false },
            "gelu_new" | "gelu_fast" | "gelu_pytorch_tanh" => UnaryOp::Gelu { tanh: true },
            "relu" => UnaryOp::Relu,
            "silu" | "swish" => UnaryOp::Silu,
            "tanh" => UnaryOp::Tanh,
            other => {
                return Err(Error::unsupported(format!(
                    "the activation `{other}`; gelu, gelu_new, relu, silu and tanh are known"
                )));
            }
        })
    }

    /// The encoder with new weights.
    ///
    /// Inputs, all `i64` `[batch, sequence]`: `input_ids` below
    /// [`vocab_size`](Self::vocab_size); `attention_mask`, 0 where a position is padding and not
    /// to be seen; `token_type_ids` below [`type_vocab_size`](Self::type_vocab_size). Outputs:
    /// `last_hidden_state` `f32` `[batch, sequence, hidden_size]` and, with a pooler,
    /// `pooler_output` `f32` `[batch, hidden_size]`. A sequence is at most
    /// [`max_position_embeddings`](Self::max_position_embeddings) long.
    ///
    /// Parameters have the names of Hugging Face's `BertModel`, but for those of
    /// [`MultiHeadAttention`].
    ///
    /// # Errors
    /// If the heads do not divide the width, or the activation is unknown.
    pub fn graph(&self, pooler: bool, seed: u64) -> Result<Graph> {
        let small = Init::Normal {
            mean: 0.0,
            std: 0.02,
        };
        self.build(pooler, seed, small)
    }

    fn build(&self, pooler: bool, seed: u64, tables: Init) -> Result<Graph> {
        let activation = self.activation()?;
        let mut m = ModelBuilder::new("bert", seed);
        let sequence = Dim::from("sequence");
        let shape = Shape::new([Dim::from("batch"), sequence.clone()]);
        let ty = TensorType::new(DType::I64, shape);
        let ids = m.input("input_ids", ty.clone())?;
        let mask = m.input("attention_mask", ty.clone())?;
        let types = m.input("token_type_ids", ty)?;

        let mask = m.cast(mask, DType::Bool)?;
        let mask = m.unsqueeze(mask, &[1, 2])?;
        let mut x = m.scope("embeddings", |m| {
            let table = |entries| Embedding::new(entries, self.hidden_size).init(tables);
            let positions = m.iota(sequence)?;
            let words = m.layer("word_embeddings", table(self.vocab_size), ids)?;
            let places = table(self.max_position_embeddings);
            let places = m.layer("position_embeddings", places, positions)?;
            let kinds = m.layer("token_type_embeddings", table(self.type_vocab_size), types)?;
            let x = m.add(words, kinds)?;
            let x = m.add(x, places)?;
            let x = m.layer("LayerNorm", self.norm(), x)?;
            self.dropped(m, x)
        })?;
        for index in 0..self.num_hidden_layers {
            x = m.scope(&format!("encoder.layer.{index}"), |m| {
                self.layer(m, activation, x, mask)
            })?;
        }
        m.output("last_hidden_state", x)?;
        if pooler {
            let first = m.constant(Tensor::scalar(0i64));
            let first = m.gather(x, first, 1)?;
            let pooled = m.layer("pooler.dense", Linear::new(self.hidden_size), first)?;
            let pooled = m.tanh(pooled)?;
            m.output("pooler_output", pooled)?;
        }
        m.finish()
    }

    fn layer(
        &self,
        m: &mut ModelBuilder,
        activation: UnaryOp,
        x: ValueId,
        mask: ValueId,
    ) -> Result<ValueId> {
        let attention = MultiHeadAttention::new(self.num_attention_heads);
        let seen = m.scope("attention", |m| attention.attend(m, x, x, x, Some(mask)))?;
        let seen = m.scope("attention.output", |m| self.dropped(m, seen))?;
        let x = m.add(x, seen)?;
        let x = m.layer("attention.output.LayerNorm", self.norm(), x)?;
        let inner = Linear::new(self.intermediate_size);
        let y = m.layer("intermediate.dense", inner, x)?;
        let y = m.unary(activation, y)?;
        let y = m.layer("output.dense", Linear::new(self.hidden_size), y)?;
        let y = m.scope("output", |m| self.dropped(m, y))?;
        let y = m.add(x, y)?;
        m.layer("output.LayerNorm", self.norm(), y)
    }

    fn norm(&self) -> LayerNorm {
        LayerNorm::new().epsilon(self.layer_norm_eps)
    }

    fn dropped(&self, m: &mut ModelBuilder, x: ValueId) -> Result<ValueId> {
        match self.hidden_dropout_prob == 0.0 {
            true => Ok(x),
            false => m.layer("dropout", Dropout::new(self.hidden_dropout_prob), x),
        }
    }

    /// The encoder with the weights of a checkpoint.
    ///
    /// # Errors
    /// [`ErrorKind::Format`] if a weight is missing or of another type.
    pub fn load(self, file: &SafeTensors) -> Result<Bert> {
        let prefix = prefix(file)?;
        let there = |name: &str| file.contains(&format!("{prefix}{name}"));
        self.compare(file, &prefix)?;
        // Random numbers for a whole vocabulary, to be overwritten, would take most of the time.
        let mut graph = self.build(there("pooler.dense.weight"), 0, Init::ZEROS)?;
        let old_names = there("embeddings.LayerNorm.gamma");
        let names = name_map(&prefix, old_names)?;
        // Checkpoints have heads that are no part of the encoder, and old ones the positions as
        // a tensor.
        let options = LoadOptions::new().allow_unexpected(true).cast(true);
        // Without layers the rules for them match nothing.
        let options = options.allow_unused_rules(true);
        let report = load_into(&mut graph, file, &names, options)?;
        Ok(Bert {
            config: self,
            graph,
            report,
        })
    }

    /// Compares the sizes with those of the file's tensors, so that a configuration cannot ask for
    /// more memory than a few times what the file has.
    fn compare(&self, file: &SafeTensors, prefix: &str) -> Result<()> {
        let width = self.hidden_size;
        let expect = |name: &str, shape: [usize; 2]| {
            let name = format!("{prefix}{name}.weight");
            let found = file.get(&name)?;
            match found.shape() == shape {
                true => Ok(()),
                false => Err(Error::new(
                    ErrorKind::Format,
                    format!(
                        "it has the shape {:?}, which config.json says is {shape:?}",
                        found.shape()
                    ),
                )
                .at(name)),
            }
        };
        expect("embeddings.word_embeddings", [self.vocab_size, width])?;
        let positions = [self.max_position_embeddings, width];
        expect("embeddings.position_embeddings", positions)?;
        let types = [self.type_vocab_size, width];
        expect("embeddings.token_type_embeddings", types)?;
        for index in 0..self.num_hidden_layers {
            let layer = format!("encoder.layer.{index}");
            expect(&format!("{layer}.attention.self.query"), [width, width])?;
            let inner = [self.intermediate_size, width];
            expect(&format!("{layer}.intermediate.dense"), inner)?;
        }
        Ok(())
    }
}

/// What stands before the names of a file.
fn prefix(file: &SafeTensors) -> Result<String> {
    const FIRST: &str = "embeddings.word_embeddings.weight";
    let bad = |message: &str| {
        Error::new(
            ErrorKind::Format,
            format!("{message} `{FIRST}`, with or without a prefix: no checkpoint of BERT"),
        )
    };
    let found = file.names().iter().filter_map(|n| n.strip_suffix(FIRST));
    let mut found = found.filter(|prefix| prefix.is_empty() || prefix.ends_with('.'));
    let prefix = found.next().ok_or_else(|| bad("the file has no"))?;
    match found.next() {
        None => Ok(prefix.to_string()),
        Some(_) => Err(bad("the file has more than one")),
    }
}

/// Hugging Face's names of the graph's parameters.
fn name_map(prefix: &str, old_names: bool) -> Result<NameMap> {
    let mut names = NameMap::new()
        .replace(r"\.attention\.q_proj\.", ".attention.self.query.")?
        .replace(r"\.attention\.k_proj\.", ".attention.self.key.")?
        .replace(r"\.attention\.v_proj\.", ".attention.self.value.")?
        .replace(r"\.attention\.out_proj\.", ".attention.output.dense.")?;
    if old_names {
        names = names
            .replace(r"LayerNorm\.weight$", "LayerNorm.gamma")?
            .replace(r"LayerNorm\.bias$", "LayerNorm.beta")?;
    }
    Ok(names.add_prefix(prefix))
}
