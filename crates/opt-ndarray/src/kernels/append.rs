//! Concatenation that grows: pieces written behind what is there.

use opt_core::Result;

use super::{Arg, Kernel, Out, RunCx};

/// Writes pieces behind the first bytes of a tensor that has room for them.
#[derive(Debug)]
pub(crate) struct Append {
    /// Whether the first operand is the tensor so far, of the output's type; it is given up where
    /// nothing else reads it.
    pub(crate) grows: bool,
    /// Bytes of it that are in use.
    pub(crate) used: usize,
}

impl Kernel for Append {
    fn name(&self) -> String {
        "concat".to_string()
    }

    fn in_place(&self) -> &[(usize, usize)] {
        if self.grows { &[(0, 0)] } else { &[] }
    }

    fn run(&self, args: &[Arg<'_>], outs: &mut [Out<'_>], _: &mut RunCx<'_>) -> Result<()> {
        let out = &mut *outs[0].bytes;
        let (so_far, pieces) = args.split_at(usize::from(self.grows));
        if let Some(so_far) = so_far.first()
            && !so_far.bytes.is_empty()
        {
            out[..self.used].copy_from_slice(&so_far.bytes[..self.used]);
        }
        let mut at = self.used;
        for piece in pieces {
            out[at..at + piece.bytes.len()].copy_from_slice(piece.bytes);
            at += piece.bytes.len();
        }
        Ok(())
    }
}
