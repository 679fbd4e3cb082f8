//! The types of a GGUF file's tensors: blocks of numbers and their bytes, as ggml has them.

use std::fmt;

use half::{bf16, f16};
use opt_core::{DType, Error, ErrorKind, Result, Tensor};

use super::damaged;

/// Entries that one scale is for.
const BLOCK: usize = 32;

/// How the entries of a tensor are stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum GgufType {
    /// Single precision.
    F32,
    /// Half precision.
    F16,
    /// The upper half of single precision.
    Bf16,
    /// Blocks of 32 integers of 4 bits in -8..=7 with one scale: 4.5 bits an entry. The entry of
    /// the greatest magnitude is -8 times the scale.
    Q4_0,
    /// Blocks of 32 integers of 4 bits in 0..=15 with one scale and the smallest entry: 5 bits an
    /// entry.
    Q4_1,
    /// Blocks of 32 integers of 8 bits in -127..=127 with one scale: 8.5 bits an entry.
    Q8_0,
}

impl fmt::Display for GgufType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            GgufType::F32 => "F32",
            GgufType::F16 => "F16",
            GgufType::Bf16 => "BF16",
            GgufType::Q4_0 => "Q4_0",
            GgufType::Q4_1 => "Q4_1",
            GgufType::Q8_0 => "Q8_0",
        })
    }
}

impl GgufType {
    /// Every type.
    pub const ALL: [GgufType; 6] = [
        GgufType::F32,
        GgufType::F16,
        GgufType::Bf16,
        GgufType::Q4_0,
        GgufType::Q4_1,
        GgufType::Q8_0,
    ];

    /// Its number in the format.
    pub(super) fn code(self) -> u32 {
        match self {
            GgufType::F32 => 0,
            GgufType::F16 => 1,
            GgufType::Q4_0 => 2,
            GgufType::Q4_1 => 3,
            GgufType::Q8_0 => 8,
            GgufType::Bf16 => 30,
        }
    }

    pub(super) fn of_code(code: u32) -> Result<GgufType> {
        let found = GgufType::ALL.into_iter().find(|ty| ty.code() == code);
        found.ok_or_else(|| Error::unsupported(format!("tensors of ggml's type {code}")))
    }

    /// How many neighbours along the last axis are stored together; the axis is a multiple of it.
    pub fn block(self) -> usize {
        match self {
            GgufType::F32 | GgufType::F16 | GgufType::Bf16 => 1,
            GgufType::Q4_0 | GgufType::Q4_1 | GgufType::Q8_0 => BLOCK,
        }
    }

    /// The bytes of one block.
    pub fn block_bytes(self) -> usize {
        match self {
            GgufType::F32 => 4,
            GgufType::F16 | GgufType::Bf16 => 2,
            GgufType::Q4_0 => 2 + BLOCK / 2,
            GgufType::Q4_1 => 4 + BLOCK / 2,
            GgufType::Q8_0 => 2 + BLOCK,
        }
    }

    /// The bytes of a number of entries.
    ///
    /// # Errors
    /// [`ErrorKind::Shape`] if that is no whole number of blocks, or more than can be addressed.
    pub fn bytes(self, entries: usize) -> Result<usize> {
        if !entries.is_multiple_of(self.block()) {
            return Err(Error::shape(format!(
                "{entries} entries are no multiple of the {} that a block of {self} has",
                self.block()
            )));
        }
        let bytes = (entries / self.block()).checked_mul(self.block_bytes());
        bytes.ok_or_else(|| Error::shape(format!("{entries} entries of {self}")))
    }

    /// Appends the blocks of entries, which are whole rows of a tensor.
    ///
    /// Scales are found, and entries rounded, as ggml's reference does it.
    ///
    /// # Errors
    /// [`ErrorKind::Shape`] if the entries are no whole blocks; [`ErrorKind::Data`] if one is NaN
    /// or infinite and has to be rounded to an integer, or so great that its block's scale is
    /// beyond half precision.
    pub fn encode(self, entries: &[f32], out: &mut Vec<u8>) -> Result<()> {
        out.reserve(self.bytes(entries.len())?);
        match self {
            GgufType::F32 => out.extend(entries.iter().flat_map(|x| x.to_le_bytes())),
            GgufType::F16 => {
                out.extend(entries.iter().flat_map(|&x| f16::from_f32(x).to_le_bytes()));
            }
            GgufType::Bf16 => {
                out.extend(
                    entries
                        .iter()
                        .flat_map(|&x| bf16::from_f32(x).to_le_bytes()),
                );
            }
            GgufType::Q4_0 | GgufType::Q4_1 | GgufType::Q8_0 => {
                for (i, block) in entries.as_chunks::<BLOCK>().0.iter().enumerate() {
                    let fail = |e: Error| e.at(format!("entries from {}", i * BLOCK));
                    self.encode_block(block, out).map_err(fail)?;
                }
            }
        }
        Ok(())
    }

    fn encode_block(self, x: &[f32; BLOCK], out: &mut Vec<u8>) -> Result<()> {
        if let Some(bad) = x.iter().find(|x| !x.is_finite()) {
            return Err(Error::new(
                ErrorKind::Data,
                format!("{bad} cannot be stored as {self}"),
            ));
        }
        let mut half = |x: f32| {
            let y = f16::from_f32(x);
            if y.is_infinite() {
                return Err(Error::new(
                    ErrorKind::Data,
                    format!("{x:e} is beyond the half precision that a block of {self} has"),
                ));
            }
            out.extend(y.to_le_bytes());
            Ok(())
        };
        let inverse = |d: f32| if d == 0.0 { 0.0 } else { 1.0 / d };
        match self {
            GgufType::Q8_0 => {
                let d = x.iter().fold(0f32, |m, x| m.max(x.abs())) / 127.0;
                half(d)?;
                let inverse = inverse(d);
                // The cast saturates: the inverse of a subnormal scale is infinite.
                out.extend(x.iter().map(|x| (x * inverse).round() as i8 as u8));
            }
            GgufType::Q4_0 => {
                // The first of equal magnitudes.
                let greatest = |m: f32, &x: &f32| if x.abs() > m.abs() { x } else { m };
                let d = x.iter().fold(0f32, greatest) / -8.0;
                half(d)?;
                let inverse = inverse(d);
                nibbles(x, |x| x * inverse + 8.5, out);
            }
            _ => {
                let low = x.iter().copied().fold(f32::INFINITY, f32::min);
                let high = x.iter().copied().fold(f32::NEG_INFINITY, f32::max);
                let d = (high - low) / 15.0;
                half(d)?;
                half(low)?;
                let inverse = inverse(d);
                nibbles(x, |x| (x - low) * inverse + 0.5, out);
            }
        }
        Ok(())
    }

    /// The entries of blocks.
    ///
    /// # Errors
    /// [`ErrorKind::Format`] if the bytes are no whole blocks.
    pub fn decode(self, bytes: &[u8]) -> Result<Vec<f32>> {
        if !bytes.len().is_multiple_of(self.block_bytes()) {
            return Err(damaged(format!(
                "{} bytes are no whole blocks of {self}",
                bytes.len()
            )));
        }
        let mut out = Vec::with_capacity(bytes.len() / self.block_bytes() * self.block());
        let half = |bytes: &[u8]| f16::from_le_bytes([bytes[0], bytes[1]]).to_f32();
        for block in bytes.chunks_exact(self.block_bytes()) {
            match self {
                GgufType::F32 => {
                    out.push(f32::from_le_bytes([block[0], block[1], block[2], block[3]]));
                }
                GgufType::F16 => out.push(half(block)),
                GgufType::Bf16 => out.push(bf16::from_le_bytes([block[0], block[1]]).to_f32()),
                GgufType::Q8_0 => {
                    let d = half(block);
                    out.extend(block[2..].iter().map(|&q| f32::from(q as i8) * d));
                }
                GgufType::Q4_0 => {
                    let (d, q) = (half(block), &block[2..]);
                    out.extend(q.iter().map(|&q| f32::from((q & 15) as i8 - 8) * d));
                    out.extend(q.iter().map(|&q| f32::from((q >> 4) as i8 - 8) * d));
                }
                GgufType::Q4_1 => {
                    let (d, low, q) = (half(block), half(&block[2..]), &block[4..]);
                    out.extend(q.iter().map(|&q| f32::from(q & 15) * d + low));
                    out.extend(q.iter().map(|&q| f32::from(q >> 4) * d + low));
                }
            }
        }
        Ok(out)
    }
}

/// Appends 4-bit integers, the first half of a block in the low bits.
fn nibbles(x: &[f32; BLOCK], place: impl Fn(f32) -> f32, out: &mut Vec<u8>) {
    let q = |x: f32| (place(x) as u8).min(15);
    let (low, high) = x.split_at(BLOCK / 2);
    out.extend(low.iter().zip(high).map(|(&a, &b)| q(a) | q(b) << 4));
}

/// A tensor's entries as single precision.
pub(super) fn floats(tensor: &Tensor) -> Result<Tensor> {
    match tensor.dtype() {
        DType::F32 => Ok(tensor.contiguous()),
        DType::F64 | DType::F16 | DType::BF16 => Ok(tensor.cast(DType::F32).contiguous()),
        other => Err(Error::new(
            ErrorKind::DType,
            format!("a GGUF file is made from floats, not {other}"),
        )),
    }
}
