//! Weight-only quantization of files that are larger than memory.
//!
//! ```
//! use opt_core::observer::Silent;
//! use opt_core::{Tensor, safetensors};
//! use opt_quant::stream::QuantizeFile;
//! use opt_quant::{Rules, Scheme, Select};
//!
//! # let folder = std::env::temp_dir().join(format!("opt-stream-doc-{}", std::process::id()));
//! # std::fs::create_dir_all(&folder)?;
//! let (input, output) = (folder.join("model.safetensors"), folder.join("int4.safetensors"));
//! # let weight = Tensor::new([8, 64], (0..512).map(|i| (i as f32).sin()).collect::<Vec<_>>())?;
//! # let norm = Tensor::new([8], [1f32; 8])?;
//! # std::fs::write(&input, safetensors::encode([("fc.weight", &weight), ("norm.weight", &norm)], &[])?)?;
//! let rules = Rules::new().keep(Select::contains("embed")).allow_unused();
//! let report = QuantizeFile::new(Scheme::int4().group(32)).rules(rules).to_safetensors(&input, &output, &mut Silent)?;
//! assert_eq!(report.quantized(), 1);
//! println!("{report}");
//! # std::fs::remove_dir_all(&folder)?;
//! # Ok::<(), opt_quant::Error>(())
//! ```
//!
//! Matrices (`[out, in]`, floats) are quantized, some rows at a time; every other tensor is copied.
//! No more than a few rows are in memory, however large the file is. A run that is cut off leaves
//! `OUTPUT.partial` and `OUTPUT.journal`; the next run with the same input and settings goes on
//! where it ended. The output gets its name when it is whole.
//!
//! In safetensors files a weight `NAME` becomes `NAME.q` (codes; those of less than 8 bits as bytes,
//! the first in the lowest bits), `NAME.s` (scales), `NAME.z` (zero points, if the scheme has them)
//! and `NAME.t` (the tensor's own scale of NVFP4); the file's metadata has the scheme under
//! `scheme:NAME` and the shape under `shape:NAME`. [`read`] makes tensors of them again.

mod journal;
mod report;
mod rows;
mod run;
mod source;
mod stored;

use std::path::Path;

use opt_core::{Observer, Result};

use crate::gguf::{GgufType, Value};
use crate::rules::Rules;
use crate::scheme::Scheme;

pub use report::{FileReport, TensorReport};
pub use stored::read;

/// Quantizes the matrices of safetensors files; see [the module](self).
#[derive(Debug, Clone)]
pub struct QuantizeFile {
    scheme: Scheme,
    rules: Rules,
    chunk: usize,
}

/// Bytes of `f32` that are in memory at once, about.
const CHUNK: usize = 8 << 20;

impl QuantizeFile {
    /// Matrices get this scheme.
    pub fn new(scheme: Scheme) -> QuantizeFile {
        QuantizeFile {
            scheme,
            rules: Rules::new(),
            chunk: CHUNK,
        }
    }

    /// Other schemes for some matrices, or none; a tensor's name is what rules see, as node and as
    /// weight, and `MatMul` as its op.
    #[must_use]
    pub fn rules(mut self, rules: Rules) -> QuantizeFile {
        self.rules = rules;
        self
    }

    /// How many bytes of `f32` are in memory at once, about; 32 MiB at first. At least a row is.
    #[must_use]
    pub fn chunk(mut self, bytes: usize) -> QuantizeFile {
        self.chunk = bytes.max(1);
        self
    }

    /// Writes a safetensors file.
    ///
    /// `input` is a safetensors file, or the index of several
    /// (`model.safetensors.index.json`), which become one.
    ///
    /// # Errors
    /// [`Io`](opt_core::ErrorKind::Io) and [`Format`](opt_core::ErrorKind::Format) with the file's
    /// path; [`Data`](opt_core::ErrorKind::Data) with the tensor's name for NaN and infinities;
    /// [`NoEffect`](opt_core::ErrorKind::NoEffect) if there is no matrix to quantize. The output is
    /// what it was before.
    pub fn to_safetensors(
        &self,
        input: impl AsRef<Path>,
        output: impl AsRef<Path>,
        observer: &mut dyn Observer,
    ) -> Result<FileReport> {
        run::to_safetensors(self, input.as_ref(), output.as_ref(), observer)
    }

    /// Writes a GGUF file: matrices as blocks of a type, the rest as it is (`f64` as `f32`), under
    /// the names of the input.
    ///
    /// The scheme is not used; rules may keep matrices as they are. Matrices whose rows are no
    /// whole blocks stay as they are too. Programs such as llama.cpp expect metadata and names that
    /// depend on the architecture: both are the caller's, `rename` for the names.
    ///
    /// # Errors
    /// As [`to_safetensors`](QuantizeFile::to_safetensors); if a rule gives a scheme; if two names
    /// become one.
    pub fn to_gguf(
        &self,
        input: impl AsRef<Path>,
        output: impl AsRef<Path>,
        ty: GgufType,
        metadata: &[(&str, Value)],
        rename: impl Fn(&str) -> String,
        observer: &mut dyn Observer,
    ) -> Result<FileReport> {
        let target = run::Gguf {
            ty,
            metadata,
            rename: &rename,
        };
        run::to_gguf(self, input.as_ref(), output.as_ref(), target, observer)
    }
}
