//! Codes to floats: a code in the lowest bits of the number 2^23 is that number plus the code,
//! and subtracting 2^23 and the zero point is exact.

use super::super::lanes::by_isa;
use super::{Codes, LANES, Packed, ROWS};

/// Up to [`ROWS`] rows of sums of a block of outputs.
type Sums = [[f32; LANES]; ROWS];

/// `2^23`, whose last bit is 1.
const BASE: f32 = 8_388_608.0;

#[inline(always)]
fn level(code: u32, zero: f32) -> f32 {
    f32::from_bits(code | BASE.to_bits()) - zero
}

#[inline(always)]
fn multiply_add<const FMA: bool>(a: f32, b: f32, c: f32) -> f32 {
    if FMA { a.mul_add(b, c) } else { a * b + c }
}

/// The sums of `count` rows of `x`, each `padded` entries, with a block of outputs.
pub(super) fn sums(packed: &Packed, block: usize, x: &[f32], count: usize) -> Sums {
    let mut out = [[0.0; LANES]; ROWS];
    match &packed.codes {
        Codes::Four(words) => {
            let size = packed.padded / 8 * LANES;
            let words = words[block * size..][..size].as_chunks::<LANES>().0;
            match count {
                1 => four_1(packed, block, words, x, &mut out),
                2 => four_2(packed, block, words, x, &mut out),
                3 => four_3(packed, block, words, x, &mut out),
                _ => four_4(packed, block, words, x, &mut out),
            }
        }
        Codes::Eight(bytes) => {
            let size = packed.padded * LANES;
            let bytes = bytes[block * size..][..size].as_chunks::<LANES>().0;
            match count {
                1 => eight_1(packed, block, bytes, x, &mut out),
                2 => eight_2(packed, block, bytes, x, &mut out),
                3 => eight_3(packed, block, bytes, x, &mut out),
                _ => eight_4(packed, block, bytes, x, &mut out),
            }
        }
    }
    out
}

/// The sums of a group as [`sums`] adds them: `parts` independent ones a row, which hide the
/// latency of the multiply-add.
struct Group<const R: usize, const P: usize> {
    sums: [[[f32; LANES]; P]; R],
}

impl<const R: usize, const P: usize> Group<R, P> {
    #[inline(always)]
    fn new() -> Self {
        Group {
            sums: [[[0.0; LANES]; P]; R],
        }
    }

    #[inline(always)]
    fn add<const FMA: bool>(&mut self, part: usize, levels: &[f32; LANES], x: [f32; R]) {
        for r in 0..R {
            let sum = &mut self.sums[r][part];
            for l in 0..LANES {
                sum[l] = multiply_add::<FMA>(levels[l], x[r], sum[l]);
            }
        }
    }

    #[inline(always)]
    fn end<const FMA: bool>(&self, scale: &[f32; LANES], out: &mut Sums) {
        for (sums, out) in self.sums.iter().zip(out) {
            let mut sum = sums[0];
            for part in &sums[1..] {
                for l in 0..LANES {
                    sum[l] += part[l];
                }
            }
            for l in 0..LANES {
                out[l] = multiply_add::<FMA>(sum[l], scale[l], out[l]);
            }
        }
    }
}

/// The zero points of a group as [`level`] takes them.
#[inline(always)]
fn raised(zeros: &[f32; LANES]) -> [f32; LANES] {
    zeros.map(|z| z + BASE)
}

#[inline(always)]
fn four<const R: usize, const P: usize, const FMA: bool>(
    packed: &Packed,
    block: usize,
    words: &[[u32; LANES]],
    x: &[f32],
    out: &mut Sums,
) {
    let rows: [&[f32]; R] = std::array::from_fn(|r| &x[r * packed.padded..][..packed.padded]);
    let groups = packed.groups();
    let each = packed.group / 8;
    for (g, words) in words.chunks(each.max(1)).enumerate() {
        let zero = raised(&packed.zeros[block * groups + g]);
        let mut group = Group::<R, P>::new();
        for (w, words) in words.iter().enumerate() {
            let x: [&[f32; 8]; R] = std::array::from_fn(|r| {
                let at = g * packed.group + w * 8;
                rows[r][at..at + 8].try_into().expect("eight inputs a word")
            });
            for i in 0..8 {
                let mut levels = [0.0; LANES];
                for l in 0..LANES {
                    levels[l] = level(words[l] >> (4 * i) & 0xF, zero[l]);
                }
                group.add::<FMA>(i % P, &levels, std::array::from_fn(|r| x[r][i]));
            }
        }
        group.end::<FMA>(&packed.scales[block * groups + g], out);
    }
}

#[inline(always)]
fn eight<const R: usize, const P: usize, const FMA: bool>(
    packed: &Packed,
    block: usize,
    bytes: &[[u8; LANES]],
    x: &[f32],
    out: &mut Sums,
) {
    let rows: [&[f32]; R] = std::array::from_fn(|r| &x[r * packed.padded..][..packed.padded]);
    let groups = packed.groups();
    for (g, bytes) in bytes.chunks(packed.group).enumerate() {
        let zero = raised(&packed.zeros[block * groups + g]);
        let x: [&[f32]; R] = std::array::from_fn(|r| &rows[r][g * packed.group..][..bytes.len()]);
        let mut group = Group::<R, P>::new();
        let whole = bytes.len() / P * P;
        for at in (0..whole).step_by(P) {
            for part in 0..P {
                let mut levels = [0.0; LANES];
                for l in 0..LANES {
                    levels[l] = level(u32::from(bytes[at + part][l]), zero[l]);
                }
                let x = std::array::from_fn(|r| x[r][at + part]);
                group.add::<FMA>(part, &levels, x);
            }
        }
        for at in whole..bytes.len() {
            let mut levels = [0.0; LANES];
            for l in 0..LANES {
                levels[l] = level(u32::from(bytes[at][l]), zero[l]);
            }
            group.add::<FMA>(0, &levels, std::array::from_fn(|r| x[r][at]));
        }
        group.end::<FMA>(&packed.scales[block * groups + g], out);
    }
}

by_isa! {
    fn four_1(p: &Packed, block: usize, words: &[[u32; LANES]], x: &[f32], out: &mut Sums) = |FMA| four::<1, 4, FMA>(p, block, words, x, out)
}
by_isa! {
    fn four_2(p: &Packed, block: usize, words: &[[u32; LANES]], x: &[f32], out: &mut Sums) = |FMA| four::<2, 2, FMA>(p, block, words, x, out)
}
by_isa! {
    fn four_3(p: &Packed, block: usize, words: &[[u32; LANES]], x: &[f32], out: &mut Sums) = |FMA| four::<3, 2, FMA>(p, block, words, x, out)
}
by_isa! {
    fn four_4(p: &Packed, block: usize, words: &[[u32; LANES]], x: &[f32], out: &mut Sums) = |FMA| four::<4, 1, FMA>(p, block, words, x, out)
}
by_isa! {
    fn eight_1(p: &Packed, block: usize, bytes: &[[u8; LANES]], x: &[f32], out: &mut Sums) = |FMA| eight::<1, 4, FMA>(p, block, bytes, x, out)
}
by_isa! {
    fn eight_2(p: &Packed, block: usize, bytes: &[[u8; LANES]], x: &[f32], out: &mut Sums) = |FMA| eight::<2, 2, FMA>(p, block, bytes, x, out)
}
by_isa! {
    fn eight_3(p: &Packed, block: usize, bytes: &[[u8; LANES]], x: &[f32], out: &mut Sums) = |FMA| eight::<3, 2, FMA>(p, block, bytes, x, out)
}
by_isa! {
    fn eight_4(p: &Packed, block: usize, bytes: &[[u8; LANES]], x: &[f32], out: &mut Sums) = |FMA| eight::<4, 1, FMA>(p, block, bytes, x, out)
}

by_isa! {
    /// The weights of a block of outputs as floats: rows of inputs, `pitch` apart.
    pub(super) fn weights(packed: &Packed, block: usize, out: &mut [f32], pitch: usize) = |_FMA| {
        let groups = packed.groups();
        for input in 0..packed.inputs {
            let group = block * groups + input / packed.group;
            let (scale, zero) = (&packed.scales[group], raised(&packed.zeros[group]));
            let out: &mut [f32; LANES] = (&mut out[input * pitch..][..LANES])
                .try_into()
                .expect("a block of outputs");
            match &packed.codes {
                Codes::Four(words) => {
                    let at = block * packed.padded / 8 + input / 8;
                    let words: &[u32; LANES] = &words.as_chunks().0[at];
                    for l in 0..LANES {
                        let code = words[l] >> (4 * (input % 8)) & 0xF;
                        out[l] = level(code, zero[l]) * scale[l];
                    }
                }
                Codes::Eight(bytes) => {
                    let at = block * packed.padded + input;
                    let bytes: &[u8; LANES] = &bytes.as_chunks().0[at];
                    for l in 0..LANES {
                        out[l] = level(u32::from(bytes[l]), zero[l]) * scale[l];
                    }
                }
            }
        }
    }
}
