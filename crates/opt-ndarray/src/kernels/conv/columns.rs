//! Patches of an image as the columns of a matrix, and back.

use std::ops::Range;

use opt_core::ops::Window;

/// How a window lies on an image; one to three spatial axes, padded to three by axes of size 1.
#[derive(Debug, Clone)]
pub(crate) struct Geometry {
    pub(crate) input: [usize; 3],
    pub(crate) output: [usize; 3],
    pub(crate) kernel: [usize; 3],
    pub(crate) stride: [usize; 3],
    pub(crate) pad: [usize; 3],
    pub(crate) dilation: [usize; 3],
    end_pads: bool,
}

impl Geometry {
    pub(crate) fn new(
        input: &[usize],
        output: &[usize],
        kernel: &[usize],
        window: &Window,
    ) -> Geometry {
        let padded = |values: &[usize], with: usize| {
            let mut out = [with; 3];
            out[3 - values.len()..].copy_from_slice(values);
            out
        };
        Geometry {
            input: padded(input, 1),
            output: padded(output, 1),
            kernel: padded(kernel, 1),
            stride: padded(&window.strides, 1),
            pad: padded(&window.pads_begin, 0),
            dilation: padded(&window.dilations, 1),
            end_pads: window.pads_end.iter().any(|&p| p > 0),
        }
    }

    /// The convolution with the turned kernel that brings the output's gradient back to the input;
    /// only for strides of 1, and where the padding is not wider than the kernel.
    pub(crate) fn turned(&self) -> Option<Geometry> {
        let mut pad = [0; 3];
        for (axis, pad) in pad.iter_mut().enumerate() {
            let reach = self.kernel[axis].checked_sub(1)? * self.dilation[axis];
            *pad = reach.checked_sub(self.pad[axis])?;
        }
        (self.stride == [1; 3]).then(|| Geometry {
            input: self.output,
            output: self.input,
            pad,
            end_pads: self.input != self.output,
            ..self.clone()
        })
    }

    /// Whether every kernel entry of every output pixel reads the image.
    pub(crate) fn is_unpadded(&self) -> bool {
        (0..3).all(|axis| {
            (0..self.kernel[axis]).all(|tap| self.inside(axis, tap) == (0..self.output[axis]))
        })
    }

    /// Entries of the kernel.
    pub(crate) fn taps(&self) -> usize {
        self.kernel.iter().product()
    }

    /// Pixels of a channel of the input.
    pub(crate) fn input_len(&self) -> usize {
        self.input.iter().product()
    }

    /// Pixels of a channel of the output.
    pub(crate) fn output_len(&self) -> usize {
        self.output.iter().product()
    }

    /// Pixels of a row of the output.
    pub(crate) fn row_len(&self) -> usize {
        self.output[2]
    }

    /// Whether each output pixel is the input pixel at its place.
    pub(crate) fn is_pointwise(&self) -> bool {
        self.kernel == [1; 3] && self.stride == [1; 3] && self.pad == [0; 3] && !self.end_pads
    }

    /// The output indices on an axis whose input index for a kernel entry is inside the image.
    pub(crate) fn inside(&self, axis: usize, tap: usize) -> Range<usize> {
        let shift = tap * self.dilation[axis];
        let (pad, stride) = (self.pad[axis], self.stride[axis]);
        let start = pad.saturating_sub(shift).div_ceil(stride);
        let end = (self.input[axis] + pad)
            .saturating_sub(shift)
            .div_ceil(stride)
            .min(self.output[axis]);
        start.min(end)..end
    }

    /// The input index of an output index that is [inside](Geometry::inside).
    pub(crate) fn source(&self, axis: usize, out: usize, tap: usize) -> usize {
        out * self.stride[axis] + tap * self.dilation[axis] - self.pad[axis]
    }

    /// Visits the column matrix of `channels` channels for the output pixels `pixels` (whole
    /// rows): for each of its rows and each output row calls
    /// `visit(start in the row of the matrix, outside before, inside, outside after, input start)`.
    fn visit(
        &self,
        channels: usize,
        pixels: &Range<usize>,
        mut visit: impl FnMut(usize, [usize; 3], usize),
    ) {
        let width = self.output[2];
        let len = pixels.len();
        let rows = pixels.start / width.max(1)..pixels.end / width.max(1);
        let mut at = 0;
        for c in 0..channels {
            for kz in 0..self.kernel[0] {
                let zs = self.inside(0, kz);
                for ky in 0..self.kernel[1] {
                    let ys = self.inside(1, ky);
                    for kx in 0..self.kernel[2] {
                        let xs = self.inside(2, kx);
                        for (i, row) in rows.clone().enumerate() {
                            let (z, y) = (row / self.output[1], row % self.output[1]);
                            let start = at * len + i * width;
                            if xs.is_empty() || !zs.contains(&z) || !ys.contains(&y) {
                                visit(start, [width, 0, 0], 0);
                                continue;
                            }
                            let source = ((c * self.input[0] + self.source(0, z, kz))
                                * self.input[1]
                                + self.source(1, y, ky))
                                * self.input[2]
                                + self.source(2, xs.start, kx);
                            visit(start, [xs.start, xs.len(), width - xs.end], source);
                        }
                        at += 1;
                    }
                }
            }
        }
    }

    /// Lays out the columns: row `(channel, kernel entry)`, column an output pixel.
    pub(crate) fn gather<T: Copy + Default>(
        &self,
        x: &[T],
        channels: usize,
        pixels: Range<usize>,
        columns: &mut [T],
    ) {
        let stride = self.stride[2];
        self.visit(
            channels,
            &pixels,
            |start, [before, inside, after], source| {
                let row = &mut columns[start..start + before + inside + after];
                row[..before].fill(T::default());
                row[before + inside..].fill(T::default());
                let target = &mut row[before..before + inside];
                if stride == 1 {
                    target.copy_from_slice(&x[source..source + inside]);
                } else {
                    for (t, &v) in target.iter_mut().zip(x[source..].iter().step_by(stride)) {
                        *t = v;
                    }
                }
            },
        );
    }

    /// Adds the columns to the pixels that [`Geometry::gather`] would take them from.
    pub(crate) fn scatter<T: Copy + std::ops::Add<Output = T>>(
        &self,
        columns: &[T],
        channels: usize,
        pixels: Range<usize>,
        x: &mut [T],
    ) {
        let stride = self.stride[2];
        self.visit(channels, &pixels, |start, [before, inside, _], source| {
            let row = &columns[start + before..][..inside];
            if stride == 1 {
                for (t, &v) in x[source..source + inside].iter_mut().zip(row) {
                    *t = *t + v;
                }
            } else if inside > 0 {
                for (t, &v) in x[source..].iter_mut().step_by(stride).zip(row) {
                    *t = *t + v;
                }
            }
        });
    }
}
