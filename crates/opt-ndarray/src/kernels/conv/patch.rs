//! Which pixels of an image the columns of a product with a convolution's weight are: the
//! *patches*, cut into panels of some output pixels each, and their rows into chunks that a vector
//! loads at once.

use super::columns::Geometry;

/// The most chunks of a convolution: beyond, the table of them is no small thing beside the image.
const CHUNKS: usize = 1 << 19;

/// Pixels side by side of one output row, as one kernel entry reads them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Chunk {
    /// From the channel's first pixel to what the first lane reads; it may lie outside the image.
    pub(super) from: i32,
    /// The elements from there on that are read; 0 stands for the others, which are padding. With a
    /// stride of 1 or 2 these are elements of the image, which the lanes take one or every second
    /// of; with a larger stride they are lanes.
    pub(super) mask: u32,
    /// The lane of the panel where it starts.
    pub(super) to: u32,
}

/// The patches of a convolution in two dimensions.
#[derive(Debug, Clone)]
pub(super) struct Patches {
    pub(super) taps: usize,
    /// Elements of a channel of the input.
    pub(super) channel: usize,
    /// Output pixels.
    pub(super) pixels: usize,
    /// Pixels of a panel.
    pub(super) width: usize,
    /// Distance of two pixels of a row in the input.
    pub(super) stride: usize,
    /// The chunks of each panel: as many for each kernel entry, entry after entry.
    chunks: Vec<Chunk>,
    /// Where the chunks of each panel start, and the end.
    starts: Vec<usize>,
}

impl Patches {
    /// The patches for panels of `width` pixels and vectors of `lanes`; `None` in three dimensions
    /// or if there are too many.
    pub(super) fn new(g: &Geometry, width: usize, lanes: usize) -> Option<Patches> {
        let flat = g.input[0] == 1 && g.output[0] == 1 && g.kernel[0] == 1 && g.pad[0] == 0;
        let (taps, pixels) = (g.taps(), g.output_len());
        if !flat || taps == 0 || pixels == 0 || i32::try_from(g.input_len()).is_err() {
            return None;
        }
        // Pixels side by side make one row where each is read where it is.
        let (rows, row) = match g.is_pointwise() {
            true => (1, pixels),
            false => (g.output[1], g.output[2]),
        };
        let panels = pixels.div_ceil(width);
        let most = (pixels / lanes + rows + panels).saturating_mul(taps);
        if most > CHUNKS {
            return None;
        }
        let mut chunks = Vec::new();
        let mut starts = vec![0];
        for panel in 0..panels {
            let end = pixels.min((panel + 1) * width);
            for ky in 0..g.kernel[1] {
                for kx in 0..g.kernel[2] {
                    let mut at = panel * width;
                    while at < end {
                        let (y, x) = (at / row, at % row);
                        let len = lanes.min(row - x).min(end - at);
                        let to = (at - panel * width) as u32;
                        chunks.push(match g.is_pointwise() {
                            true => Chunk {
                                from: at as i32,
                                mask: ones(0..len),
                                to,
                            },
                            false => chunk(g, [y, x], [ky, kx], len, to),
                        });
                        at += len;
                    }
                }
            }
            starts.push(chunks.len());
        }
        Some(Patches {
            taps,
            channel: g.input_len(),
            pixels,
            width,
            stride: g.stride[2],
            chunks,
            starts,
        })
    }

    pub(super) fn panels(&self) -> usize {
        self.starts.len() - 1
    }

    /// The chunks of a panel, entry after entry.
    pub(super) fn of(&self, panel: usize) -> &[Chunk] {
        &self.chunks[self.starts[panel]..self.starts[panel + 1]]
    }
}

fn ones(range: std::ops::Range<usize>) -> u32 {
    let below = |n: usize| ((1u64 << n) - 1) as u32;
    below(range.end) & !below(range.start.min(range.end))
}

/// What `len` output pixels side by side read of their row for a column of the kernel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Reach {
    /// From the row's first pixel to what the first lane reads; it may lie outside the row.
    pub(super) from: i32,
    /// As [`Chunk::mask`].
    pub(super) mask: u32,
}

/// The reach of the output pixels from column `x` on for the kernel's column `kx`.
pub(super) fn reach(g: &Geometry, x: usize, kx: usize, len: usize) -> Reach {
    let xs = g.inside(2, kx);
    let lanes = xs.start.max(x).min(x + len) - x..xs.end.min(x + len).max(x) - x;
    if lanes.is_empty() {
        return Reach { from: 0, mask: 0 };
    }
    let stride = g.stride[2];
    let first = g.source(2, x + lanes.start, kx);
    Reach {
        from: first as i32 - (lanes.start * stride) as i32,
        mask: match stride {
            2 => ones(2 * lanes.start..2 * lanes.end - 1),
            _ => ones(lanes),
        },
    }
}

/// The chunk of `len` output pixels from `[y, x]` on for a kernel entry.
fn chunk(g: &Geometry, [y, x]: [usize; 2], [ky, kx]: [usize; 2], len: usize, to: u32) -> Chunk {
    let reach = reach(g, x, kx, len);
    if !g.inside(1, ky).contains(&y) || reach.mask == 0 {
        return Chunk {
            from: 0,
            mask: 0,
            to,
        };
    }
    Chunk {
        from: reach.from + (g.source(1, y, ky) * g.input[2]) as i32,
        mask: reach.mask,
        to,
    }
}
