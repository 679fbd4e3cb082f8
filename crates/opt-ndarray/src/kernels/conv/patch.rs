//! Which pixels of an image the columns of a product with a convolution's weight are: the
//! *patches*, cut into panels of some output pixels each, and their rows into chunks that a vector
//! loads at once.

use std::cell::RefCell;

use super::columns::Geometry;

/// The most chunks that are kept: beyond, the table of them is no small thing beside the image, and
/// those of a panel are laid out when it is copied.
const KEPT: usize = 1 << 18;

/// A part of a vector of a panel: pixels side by side of one output row, as one kernel entry reads
/// them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Chunk {
    /// From the channel's first pixel to what the vector's first lane would read; it may lie outside
    /// the image.
    pub(super) from: i32,
    /// The elements from there on that are read; the others are padding, for which 0 stands, or in
    /// other parts of the vector. With a stride of 1 or 2 these are elements of the image, which the lanes take one or every second
    /// of; with a larger stride they are lanes.
    pub(super) mask: u32,
    /// Whether it is the last of its vector.
    pub(super) last: bool,
}

/// The patches of a convolution in two dimensions.
#[derive(Debug, Clone)]
pub(super) struct Patches {
    geometry: Geometry,
    pub(super) taps: usize,
    /// Elements of a channel of the input.
    pub(super) channel: usize,
    /// Output pixels, and those of a row of them.
    pub(super) pixels: usize,
    row: usize,
    /// Pixels of a panel.
    pub(super) width: usize,
    lanes: usize,
    /// Distance of two pixels of a row in the input.
    pub(super) stride: usize,
    /// Whether output pixels side by side are input pixels side by side, across rows too.
    pub(super) flat: bool,
    /// The chunks of each panel, and where they start, and the end; empty if they are not kept.
    chunks: Vec<Chunk>,
    starts: Vec<usize>,
}

impl Patches {
    /// The patches for panels of `width` pixels and vectors of `lanes`; `None` in three dimensions.
    pub(super) fn new(g: &Geometry, width: usize, lanes: usize) -> Option<Patches> {
        Patches::keeping(KEPT, g, width, lanes)
    }

    /// [`Patches::new`], keeping so many chunks at most.
    pub(super) fn keeping(
        most: usize,
        g: &Geometry,
        width: usize,
        lanes: usize,
    ) -> Option<Patches> {
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
        let mut patches = Patches {
            geometry: g.clone(),
            taps,
            channel: g.input_len(),
            pixels,
            row,
            width,
            lanes,
            stride: g.stride[2],
            flat: g.is_pointwise(),
            chunks: Vec::new(),
            starts: Vec::new(),
        };
        let count = (pixels / lanes + rows + 2 * patches.panels()).saturating_mul(taps);
        if count <= most {
            let (mut chunks, mut starts) = (Vec::new(), vec![0]);
            for panel in 0..patches.panels() {
                patches.lay(panel, &mut chunks);
                starts.push(chunks.len());
            }
            (patches.chunks, patches.starts) = (chunks, starts);
        }
        Some(patches)
    }

    pub(super) fn panels(&self) -> usize {
        self.pixels.div_ceil(self.width)
    }

    /// Appends the chunks of a panel: as many for each kernel entry, entry after entry.
    fn lay(&self, panel: usize, chunks: &mut Vec<Chunk>) {
        let g = &self.geometry;
        let end = self.pixels.min((panel + 1) * self.width);
        for ky in 0..g.kernel[1] {
            for kx in 0..g.kernel[2] {
                let mut at = panel * self.width;
                while at < end {
                    let (y, x) = (at / self.row, at % self.row);
                    let lane = (at - panel * self.width) % self.lanes;
                    let len = (self.lanes - lane).min(self.row - x).min(end - at);
                    let last = lane + len == self.lanes || at + len == end;
                    chunks.push(match g.is_pointwise() {
                        true => Chunk {
                            from: at as i32,
                            mask: ones(0..len),
                            last,
                        },
                        false => chunk(g, [y, x], [ky, kx], [lane, len], last),
                    });
                    at += len;
                }
            }
        }
    }

    /// The chunks of a panel, if they are kept.
    pub(super) fn kept(&self, panel: usize) -> Option<&[Chunk]> {
        let (&start, &end) = (self.starts.get(panel)?, self.starts.get(panel + 1)?);
        Some(&self.chunks[start..end])
    }

    /// Runs with the chunks of a panel.
    pub(super) fn with(&self, panel: usize, run: impl FnOnce(&[Chunk])) {
        if let Some(chunks) = self.kept(panel) {
            return run(chunks);
        }
        thread_local!(static OWN: RefCell<Vec<Chunk>> = const { RefCell::new(Vec::new()) });
        let mut own = OWN.take();
        own.clear();
        self.lay(panel, &mut own);
        run(&own);
        OWN.set(own);
    }
}

fn ones(range: std::ops::Range<usize>) -> u32 {
    let below = |n: usize| ((1u64 << n) - 1) as u32;
    below(range.end) & !below(range.start.min(range.end))
}

/// What `len` output pixels side by side read of their row for a column of the kernel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::kernels) struct Reach {
    /// From the row's first pixel to what the first lane reads; it may lie outside the row.
    pub(in crate::kernels) from: i32,
    /// As [`Chunk::mask`].
    pub(in crate::kernels) mask: u32,
}

/// The reach of the output pixels from column `x` on for the kernel's column `kx`.
pub(in crate::kernels) fn reach(g: &Geometry, x: usize, kx: usize, len: usize) -> Reach {
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

/// The chunk of `len` output pixels from `[y, x]` on for a kernel entry, from a lane on.
fn chunk(
    g: &Geometry,
    [y, x]: [usize; 2],
    [ky, kx]: [usize; 2],
    [lane, len]: [usize; 2],
    last: bool,
) -> Chunk {
    let reach = reach(g, x, kx, len);
    if !g.inside(1, ky).contains(&y) || reach.mask == 0 {
        return Chunk {
            from: 0,
            mask: 0,
            last,
        };
    }
    let row = (g.source(1, y, ky) * g.input[2]) as i32;
    let elements = if g.stride[2] == 2 { 2 * lane } else { lane };
    Chunk {
        from: reach.from + row - (lane * g.stride[2]) as i32,
        mask: reach.mask << elements,
        last,
    }
}
