//! GGUF files: named tensors in floats or in blocks of 4 and 8 bits, as llama.cpp and candle read
//! them.
//!
//! ```
//! use std::sync::Arc;
//! use opt_core::Tensor;
//! use opt_quant::gguf::{Builder, File, GgufType};
//!
//! let weight = Tensor::new([2, 32], (0..64).map(|i| i as f32 / 64.0).collect::<Vec<_>>())?;
//! let mut builder = Builder::new();
//! builder.metadata("general.architecture", "bert")?;
//! builder.tensor("blk.0.attn_q.weight", GgufType::Q8_0, &weight)?;
//! let bytes = builder.encode()?;
//!
//! let file = File::parse(Arc::new(bytes))?;
//! assert_eq!(file.dtype("blk.0.attn_q.weight")?, GgufType::Q8_0);
//! let back = file.get("blk.0.attn_q.weight")?;
//! assert!((back.to_vec::<f32>()?[63] - 63.0 / 64.0).abs() < 0.5 / 127.0);
//! # Ok::<(), opt_quant::Error>(())
//! ```
//!
//! The format is version 3 of
//! <https://github.com/ggml-org/ggml/blob/master/docs/gguf.md>, the blocks are those of ggml, bit
//! for bit. Which names and metadata a program expects of a model is that program's affair.

mod blocks;
mod file;
mod layout;
mod value;

pub use blocks::GgufType;
pub use file::File;
pub use layout::{Builder, Layout};
pub use value::Value;

use opt_core::{Error, ErrorKind};

/// The first bytes of a file.
const MAGIC: &[u8; 4] = b"GGUF";

/// The version of the format.
const VERSION: u32 = 3;

/// The key under which a file has an alignment of its own.
const ALIGNMENT_KEY: &str = "general.alignment";

/// Where tensors begin when a file does not say otherwise: at multiples of it.
const ALIGNMENT: usize = 32;

/// The most dimensions of a tensor.
const MAX_DIMS: usize = 4;

fn damaged(message: impl Into<String>) -> Error {
    let message = message.into();
    Error::new(ErrorKind::Format, format!("not a GGUF file: {message}"))
}
