//! Quantizes whole rows of a weight `[out, in]`, some at a time.

use opt_core::{DType, Error, ErrorKind, Result, Tensor};

use crate::quantized::quantize_rows_of;
use crate::scheme::{Format, Granularity, Scheme};

/// Rows whose codes are whole bytes, whatever their length and format.
pub(super) const STEP: usize = 8;

/// What is known of a whole tensor before its rows are quantized.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Whole {
    pub(super) low: f32,
    pub(super) high: f32,
}

impl Whole {
    /// The range of no entries.
    pub(super) const EMPTY: Whole = Whole {
        low: f32::INFINITY,
        high: f32::NEG_INFINITY,
    };

    /// Widens it to hold entries, none of which may be NaN or infinite.
    pub(super) fn widen(&mut self, entries: &[f32]) -> Result<()> {
        let (low, high) = range(entries)?;
        self.low = self.low.min(low);
        self.high = self.high.max(high);
        Ok(())
    }
}

/// Whether a scheme has a number that depends on all rows.
pub(super) fn needs_whole(scheme: &Scheme) -> bool {
    match scheme.format() {
        Format::NvFp4 => true,
        Format::Half(_) => false,
        _ => scheme.granularity() == Granularity::Tensor,
    }
}

/// The bytes of codes, scales and zero points of some rows, as the tensors have them.
#[derive(Debug, Default, Clone, PartialEq)]
pub(super) struct Coded {
    pub(super) codes: Vec<u8>,
    pub(super) scales: Vec<u8>,
    pub(super) zeros: Vec<u8>,
}

/// Quantizes rows of `cols` entries; the result is that of the whole tensor, cut into rows.
///
/// Codes of less than a byte begin anew, so that all but the last call for a tensor take a multiple
/// of [`STEP`] rows.
pub(super) fn encode(
    scheme: &Scheme,
    rows: &[f32],
    cols: usize,
    whole: Option<Whole>,
) -> Result<Coded> {
    if let (Format::Int(dtype), None) = (scheme.format(), whole) {
        return integers(scheme, dtype, rows, cols);
    }
    let tensor = Tensor::new([rows.len() / cols.max(1), cols], rows)?;
    let whole = whole.map(|w| (f64::from(w.low), f64::from(w.high)));
    let quantized = quantize_rows_of(&tensor, scheme, whole)?;
    let bytes = |tensor: Option<&Tensor>| -> Result<Vec<u8>> {
        tensor.map_or(Ok(Vec::new()), |t| Ok(t.contiguous().bytes()?.to_vec()))
    };
    let mut coded = Coded {
        codes: bytes(Some(quantized.codes()))?,
        ..Coded::default()
    };
    // What the whole tensor shares is written once.
    if scheme.granularity() != Granularity::Tensor {
        coded.scales = bytes(quantized.scales())?;
        coded.zeros = bytes(quantized.zero_points())?;
    }
    Ok(coded)
}

/// Numbers that are looked at side by side, so that vector units can.
const LANES: usize = 16;

/// Lowest and highest of some entries.
fn range(entries: &[f32]) -> Result<(f32, f32)> {
    let (mut low, mut high) = ([f32::INFINITY; LANES], [f32::NEG_INFINITY; LANES]);
    // NaN passes by both comparisons, so that it is looked for apart: 0 times x is 0 for finite x.
    let mut odd = [0f32; LANES];
    let (whole, rest) = entries.as_chunks::<LANES>();
    for entries in whole {
        for (i, &x) in entries.iter().enumerate() {
            low[i] = if x < low[i] { x } else { low[i] };
            high[i] = if x > high[i] { x } else { high[i] };
            odd[i] += x * 0.0;
        }
    }
    for (i, &x) in rest.iter().enumerate() {
        low[i] = if x < low[i] { x } else { low[i] };
        high[i] = if x > high[i] { x } else { high[i] };
        odd[i] += x * 0.0;
    }
    match odd == [0.0; LANES] {
        true => Ok((
            low.into_iter().fold(f32::INFINITY, f32::min),
            high.into_iter().fold(f32::NEG_INFINITY, f32::max),
        )),
        false => {
            let i = entries.iter().position(|x| !x.is_finite()).unwrap_or(0);
            Err(Error::new(
                ErrorKind::Data,
                format!("entry {i} of the rows to quantize is {}", entries[i]),
            ))
        }
    }
}

/// Adding it to a smaller number rounds that to an integer, ties to even, in any vector unit.
const ROUND: f32 = 12_582_912.0;

/// Integers with a scale a channel or group.
fn integers(scheme: &Scheme, dtype: DType, rows: &[f32], cols: usize) -> Result<Coded> {
    let group = match scheme.granularity() {
        Granularity::Group(group) => group,
        _ => cols,
    };
    let (least, most) = scheme.grid()?;
    let (least, most) = (least as f32, most as f32);
    let has_zeros = scheme.has_zero_points();
    let mut out = Coded::default();
    let mut levels = vec![0i8; rows.len()];
    let mut zeros = Vec::new();
    let cols = cols.max(1);
    for (row, levels) in rows.chunks_exact(cols).zip(levels.chunks_exact_mut(cols)) {
        for (group, levels) in row
            .chunks(group.max(1))
            .zip(levels.chunks_mut(group.max(1)))
        {
            let (low, high) = range(group)?;
            let (scale, zero) = scheme.scale(f64::from(low), f64::from(high))?;
            out.scales.extend(scale.to_le_bytes());
            if has_zeros {
                // Through the wrapping cast levels of u8 keep their bits.
                zeros.push(zero as i8);
            }
            let zero = zero as f32;
            for (level, &x) in levels.iter_mut().zip(group) {
                let q = (x / scale + ROUND) - ROUND + zero;
                let q = if q < least { least } else { q };
                let q = if q > most { most } else { q };
                // The lowest bits of the sum are those of the integer.
                *level = (q + ROUND).to_bits() as i8;
            }
        }
    }
    pack(dtype, &levels, &mut out.codes);
    pack(dtype, &zeros, &mut out.zeros);
    Ok(out)
}

/// Appends integers as a tensor of their type has them.
fn pack(dtype: DType, levels: &[i8], out: &mut Vec<u8>) {
    let bits = dtype.bits();
    if bits == 8 {
        out.extend(levels.iter().map(|&q| q as u8));
        return;
    }
    out.extend(levels.chunks(8 / bits).map(|levels| {
        let part = |q: i8| q as u8 & ((1 << bits) - 1);
        let places = levels.iter().zip((0..8).step_by(bits));
        places.fold(0, |byte, (&q, at)| byte | part(q) << at)
    }));
}
