//! What became of a file.

use std::fmt;

/// What became of a tensor.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct TensorReport {
    /// Its name in the input.
    pub name: String,
    /// The scheme or GGUF type that it has now; `None` where it was copied.
    pub format: Option<String>,
    /// Its bytes in the input.
    pub bytes_before: u64,
    /// Its bytes in the output, scales and zero points included.
    pub bytes_after: u64,
}

/// What became of a file's tensors.
#[derive(Debug, Clone, PartialEq, Default)]
#[non_exhaustive]
pub struct FileReport {
    /// By name.
    pub tensors: Vec<TensorReport>,
    /// How many tensors an earlier run, which was cut off, had done.
    pub resumed: usize,
}

impl FileReport {
    /// How many tensors are quantized.
    pub fn quantized(&self) -> usize {
        self.tensors.iter().filter(|t| t.format.is_some()).count()
    }

    /// Bytes of all tensors in the input and in the output.
    pub fn bytes(&self) -> (u64, u64) {
        let sum = |of: fn(&TensorReport) -> u64| self.tensors.iter().map(of).sum();
        (sum(|t| t.bytes_before), sum(|t| t.bytes_after))
    }
}

impl fmt::Display for FileReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (before, after) = self.bytes();
        write!(
            f,
            "{} of {} tensors quantized, {before} bytes became {after}",
            self.quantized(),
            self.tensors.len()
        )?;
        match self.resumed {
            0 => Ok(()),
            n => write!(f, " ({n} tensors were done before)"),
        }
    }
}
