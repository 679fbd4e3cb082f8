//! How weights are packed.

use super::LANES;

/// Packed codes, unsigned; 16 outputs side by side.
#[derive(Debug, Clone)]
pub(crate) enum Codes {
    /// For each block of outputs and eight inputs a word an output, the first input lowest.
    Four(Vec<u32>),
    /// For each block of outputs and input a byte an output.
    Eight(Vec<u8>),
}

/// Weights `[inputs, outputs]` of 4 or 8 bits. `group` entries along the inputs share a scale and
/// a zero point.
#[derive(Debug, Clone)]
pub(crate) struct Packed {
    pub(crate) inputs: usize,
    pub(crate) outputs: usize,
    /// The inputs with what fills the last word.
    pub(crate) padded: usize,
    pub(crate) group: usize,
    pub(crate) codes: Codes,
    /// For each block of outputs and group 16 numbers.
    pub(crate) scales: Vec<[f32; LANES]>,
    /// The same for zero points, in the unsigned codes.
    pub(crate) zeros: Vec<[f32; LANES]>,
}

/// Inputs of a word of 4-bit codes.
const WORD: usize = 8;

impl Packed {
    /// Packs weights from functions of input and output, or of group and output: unsigned codes
    /// of `bits` (4 or 8), scales and zero points. `None` if groups are not whole words.
    pub(crate) fn new(
        (inputs, outputs): (usize, usize),
        group: usize,
        bits: usize,
        code: impl Fn(usize, usize) -> u8,
        scale: impl Fn(usize, usize) -> f32,
        zero: impl Fn(usize, usize) -> u8,
    ) -> Option<Packed> {
        let group = group.min(inputs).max(1);
        let groups = inputs.div_ceil(group);
        let unit = if bits == 4 { WORD } else { 1 };
        if groups > 1 && !group.is_multiple_of(unit) {
            return None;
        }
        let blocks = outputs.div_ceil(LANES);
        let padded = inputs.next_multiple_of(unit);
        let codes = if bits == 4 {
            let mut words = vec![0u32; blocks * padded / WORD * LANES];
            for o in 0..outputs {
                let block = o / LANES * (padded / WORD) * LANES;
                for i in 0..inputs {
                    let word = &mut words[block + i / WORD * LANES + o % LANES];
                    *word |= u32::from(code(i, o) & 0xF) << (4 * (i % WORD));
                }
            }
            Codes::Four(words)
        } else {
            let mut bytes = vec![0u8; blocks * inputs * LANES];
            for o in 0..outputs {
                let block = o / LANES * inputs * LANES;
                for i in 0..inputs {
                    bytes[block + i * LANES + o % LANES] = code(i, o);
                }
            }
            Codes::Eight(bytes)
        };
        let mut scales = vec![[0.0; LANES]; blocks * groups];
        let mut zeros = scales.clone();
        for o in 0..outputs {
            for g in 0..groups {
                let at = o / LANES * groups + g;
                scales[at][o % LANES] = scale(g, o);
                zeros[at][o % LANES] = f32::from(zero(g, o));
            }
        }
        Some(Packed {
            inputs,
            outputs,
            padded,
            // A single group takes what fills the last word, too.
            group: if groups == 1 { padded.max(1) } else { group },
            codes,
            scales,
            zeros,
        })
    }

    pub(crate) fn bits(&self) -> usize {
        match self.codes {
            Codes::Four(_) => 4,
            Codes::Eight(_) => 8,
        }
    }

    pub(super) fn groups(&self) -> usize {
        self.padded.div_ceil(self.group)
    }

    /// Bytes of the codes of a block of outputs.
    pub(super) fn block_bytes(&self) -> usize {
        self.padded * LANES * self.bits() / 8
    }

    /// Bytes of all.
    pub(crate) fn bytes(&self) -> usize {
        let codes = match &self.codes {
            Codes::Four(words) => size_of_val(&words[..]),
            Codes::Eight(bytes) => bytes.len(),
        };
        codes + size_of_val(&self.scales[..]) + size_of_val(&self.zeros[..])
    }
}
