//! The gradient of a convolution by its input where there are strides, or more padding than the kernel
//! reaches: as many convolutions of the output's gradient as there are phases of the input's pixels.

use super::columns::Geometry;
use super::shifted::Shifted;
use crate::kernels::tile::Isa;

/// Entries of results that stay in the second-level cache beside others.
const CACHE: usize = 1 << 16;

/// The gradient of a convolution by its input.
#[derive(Debug, Clone)]
pub(super) struct Backward {
    input: [usize; 2],
    stride: [usize; 2],
    parts: Vec<Part>,
}

/// The input's pixels of one phase.
#[derive(Debug, Clone)]
struct Part {
    /// Which copy all parts have in common.
    shifted: Shifted,
    /// The first row and column, and how many there are.
    first: [usize; 2],
    size: [usize; 2],
    /// Entries of the kernel that reach these pixels.
    taps: Vec<usize>,
}

/// The pixels of a phase, before the layout is known: what it has in common with a [`Part`], and
/// for each entry of the kernel the output pixel that it brings to pixel 0.
struct Phase {
    first: [usize; 2],
    size: [usize; 2],
    taps: Vec<usize>,
    from: Vec<[isize; 2]>,
}

impl Phase {
    fn new(g: &Geometry, phase: [usize; 2]) -> Phase {
        let two = |of: [usize; 3]| [of[1], of[2]];
        let (input, stride, pad) = (two(g.input), two(g.stride), two(g.pad));
        // Pixels y with (y + pad) % stride == phase.
        let first = [0, 1].map(|a| (phase[a] + stride[a] - pad[a] % stride[a]) % stride[a]);
        let (mut taps, mut from) = (Vec::new(), Vec::new());
        for ky in 0..g.kernel[1] {
            for kx in 0..g.kernel[2] {
                let at = [ky * g.dilation[1], kx * g.dilation[2]];
                if (0..2).all(|a| at[a] % stride[a] == phase[a]) {
                    taps.push(ky * g.kernel[2] + kx);
                    from.push([0, 1].map(|a| {
                        (first[a] + pad[a])
                            .cast_signed()
                            .wrapping_sub(at[a].cast_signed())
                            / stride[a].cast_signed()
                    }));
                }
            }
        }
        Phase {
            first,
            size: [0, 1].map(|a| input[a].saturating_sub(first[a]).div_ceil(stride[a])),
            taps,
            from,
        }
    }

    /// How far the phase reads before and after the output's gradient of some size.
    fn reach(&self, output: [usize; 2]) -> [[usize; 2]; 2] {
        let least = [0, 1].map(|a| self.from.iter().map(|f| f[a]).min().unwrap_or(0));
        let most = [0, 1].map(|a| self.from.iter().map(|f| f[a]).max().unwrap_or(0));
        [
            least.map(|f| (-f).max(0).cast_unsigned()),
            [0, 1].map(|a| {
                let end = most[a] + self.size[a].cast_signed() - output[a].cast_signed();
                end.max(0).cast_unsigned()
            }),
        ]
    }
}

impl Backward {
    /// The layout for gradients with that many channels; `None` as [`Shifted::new`] says.
    pub(super) fn new(channels: usize, g: &Geometry) -> Option<Backward> {
        Backward::on(Isa::get(), channels, g)
    }

    /// [`Backward::new`] for instructions that the processor has.
    fn on(isa: Isa, channels: usize, g: &Geometry) -> Option<Backward> {
        Shifted::on(isa, channels, g)?;
        let two = |of: [usize; 3]| [of[1], of[2]];
        let (stride, output) = (two(g.stride), two(g.output));
        let phases = (0..stride[0]).flat_map(|y| (0..stride[1]).map(move |x| [y, x]));
        let phases: Vec<Phase> = phases
            .map(|phase| Phase::new(g, phase))
            // Where nothing reaches the pixels they stay 0.
            .filter(|phase| !phase.taps.is_empty() && !phase.size.contains(&0))
            .collect();
        let mut reach = [[0; 2]; 2];
        for phase in &phases {
            let own = phase.reach(output);
            reach = [0, 1].map(|i| [0, 1].map(|a| reach[i][a].max(own[i][a])));
        }
        let parts = phases.into_iter().map(|phase| {
            let shifts = phase.from.iter();
            let shifts: Vec<[usize; 2]> = shifts
                .map(|f| [0, 1].map(|a| (f[a] + reach[0][a].cast_signed()).cast_unsigned()))
                .collect();
            Some(Part {
                shifted: Shifted::with(isa, channels, output, phase.size, [1; 2], reach, &shifts)?,
                first: phase.first,
                size: phase.size,
                taps: phase.taps,
            })
        });
        Some(Backward {
            input: two(g.input),
            stride,
            parts: parts.collect::<Option<_>>()?,
        })
    }

    /// Entries of all packed weights of so many input channels.
    pub(super) fn packed_len(&self, inputs: usize) -> usize {
        let parts = self.parts.iter();
        parts.map(|p| p.shifted.packed_len(inputs)).sum()
    }

    /// Lays out the weight `[outputs, inputs, taps]`.
    pub(super) fn pack(&self, inputs: usize, taps: usize, weight: &[f32], packed: &mut [f32]) {
        let mut packed = packed;
        for part in &self.parts {
            let (now, rest) = packed.split_at_mut(part.shifted.packed_len(inputs));
            let own = part.taps.len();
            part.shifted.pack(
                inputs,
                |c, entry| {
                    let (o, tap) = (entry / own, part.taps[entry % own]);
                    weight[(o * inputs + c) * taps + tap]
                },
                now,
            );
            packed = rest;
        }
    }

    /// Rows of each part that are computed at a time.
    fn block_rows(&self, inputs: usize) -> usize {
        let most = CACHE / (inputs * self.input[1] * self.stride[0]).max(1);
        most.clamp(1, self.input[0].div_ceil(self.stride[0]).max(1))
    }

    /// Entries of a padded gradient and of a block of a part.
    fn lens(&self, inputs: usize) -> (usize, usize) {
        let rows = self.block_rows(inputs);
        let parts = || self.parts.iter().map(|p| &p.shifted);
        let image = parts().map(Shifted::readable_len).max().unwrap_or(0);
        let block = parts().map(|s| s.block_len(inputs, rows)).max();
        (image, block.unwrap_or(0))
    }

    /// Entries of the buffer of [`Backward::run`].
    pub(super) fn buffer_len(&self, inputs: usize) -> usize {
        let (image, block) = self.lens(inputs);
        image + self.parts.len() * block
    }

    /// Writes the gradient by an input image `[inputs, height, width]`, and a bias to each channel.
    pub(super) fn run(
        &self,
        g: &[f32],
        packed: &[f32],
        bias: Option<&[f32]>,
        out: &mut [f32],
        buffer: &mut [f32],
    ) {
        let [height, width] = self.input;
        let inputs = out.len() / (height * width).max(1);
        let (image_len, block_len) = self.lens(inputs);
        let (image, runs) = buffer.split_at_mut(image_len);
        if let Some(part) = self.parts.first() {
            part.shifted.pad(g, image);
        }
        let step = self.block_rows(inputs);
        // Rows of all phases.
        let rows = height.div_ceil(self.stride[0]);
        for start in (0..rows).step_by(step) {
            let now = |part: &Part| {
                let size = part.size[0];
                start.min(size)..size.min(start + step)
            };
            let mut packed = packed;
            for (part, run) in self.parts.iter().zip(runs.chunks_mut(block_len.max(1))) {
                let (own, rest) = packed.split_at(part.shifted.packed_len(inputs));
                packed = rest;
                if !now(part).is_empty() {
                    part.shifted.convolve(image, own, inputs, now(part), run);
                }
            }
            for channel in 0..inputs {
                let bias = bias.map_or(0.0, |b| b[channel]);
                for y in start * self.stride[0]..height.min((start + step) * self.stride[0]) {
                    let out = &mut out[(channel * height + y) * width..][..width];
                    let runs = runs.chunks(block_len.max(1));
                    let here = self.parts.iter().zip(runs);
                    let mut here = here.filter_map(|(part, run)| {
                        let rows = now(part);
                        let i = y.checked_sub(part.first[0])?;
                        let row = i / self.stride[0];
                        let own = i % self.stride[0] == 0 && rows.contains(&row);
                        let pixels =
                            || part.shifted.row(run, channel, rows.len(), row - rows.start);
                        own.then(|| (part.first[1], pixels()))
                    });
                    match (self.stride[1], here.next(), here.next()) {
                        (1, Some((0, pixels)), None) => {
                            out.iter_mut().zip(pixels).for_each(|(o, &v)| *o = v + bias);
                        }
                        (2, Some((first, a)), Some((_, b))) => {
                            let (even, odd) = if first == 0 { (a, b) } else { (b, a) };
                            let pairs = out.chunks_exact_mut(2).zip(even.iter().zip(odd));
                            pairs.for_each(|(o, (&even, &odd))| {
                                o[0] = even + bias;
                                o[1] = odd + bias;
                            });
                            if let (1, Some(last)) = (width % 2, out.last_mut()) {
                                *last = even[width / 2] + bias;
                            }
                        }
                        (step, a, b) => {
                            out.fill(bias);
                            for (first, pixels) in [a, b].into_iter().flatten().chain(here) {
                                let out = out[first..].iter_mut().step_by(step);
                                out.zip(pixels).for_each(|(o, &v)| *o = v + bias);
                            }
                        }
                    }
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::testing::{close, geometry, isas, products, values};
    use super::*;

    fn check(isa: Isa, g: &Geometry, [outputs, inputs]: [usize; 2]) -> Option<()> {
        let (taps, input, output) = (g.taps(), g.input_len(), g.output_len());
        let w = values(1, outputs * inputs * taps);
        let (gradient, bias) = (values(3, outputs * output), values(4, inputs));
        let backward = Backward::on(isa, outputs, g)?;
        let mut packed = vec![0.0; backward.packed_len(inputs)];
        backward.pack(inputs, taps, &w, &mut packed);
        // What a buffer held before must not matter.
        let mut found = vec![f32::NAN; inputs * input];
        let mut buffer = vec![f32::NAN; backward.buffer_len(inputs)];
        backward.run(&gradient, &packed, Some(&bias), &mut found, &mut buffer);
        let bias = bias
            .iter()
            .flat_map(|&b| std::iter::repeat_n(f64::from(b), input));
        let mut expected: Vec<f64> = bias.collect();
        products(g, [outputs, inputs], |o, c, entry, to, from| {
            let w = w[(o * inputs + c) * taps + entry];
            expected[c * input + from] += f64::from(w * gradient[o * output + to]);
        });
        close(&found, &expected);
        Some(())
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(200))]

        #[test]
        fn the_gradient_agrees_with_the_definition(
            size in [1usize..14, 1usize..40], kernel in [1usize..6, 1usize..6],
            strides in [1usize..4, 1usize..4], dilations in [1usize..3, 1usize..3],
            begin in [0usize..4, 0usize..4], end in [0usize..4, 0usize..4],
            channels in [1usize..20, 1usize..6],
        ) {
            let found = geometry(size, kernel, strides, dilations, begin, end);
            prop_assume!(found.is_some());
            for isa in isas() {
                check(isa, found.as_ref().unwrap(), channels);
            }
        }
    }

    #[test]
    fn blocks_make_no_difference() {
        // So many pixels and channels that they are computed in several blocks.
        for stride in 1..4 {
            let g = geometry([61, 90], [3; 2], [stride; 2], [1; 2], [1; 2], [1; 2]);
            for isa in isas() {
                assert!(check(isa, g.as_ref().unwrap(), [2, 24]).is_some());
            }
        }
    }

    #[test]
    fn the_usual_convolutions_are_served() {
        for (size, kernel, stride, pad) in [(16, 3, 2, 1), (28, 5, 1, 0), (8, 1, 2, 0)] {
            let g = geometry(
                [size; 2],
                [kernel; 2],
                [stride; 2],
                [1; 2],
                [pad; 2],
                [pad; 2],
            );
            for isa in isas() {
                let served = check(isa, g.as_ref().unwrap(), [20, 3]);
                assert!(served.is_some(), "{size} {kernel}");
            }
        }
    }
}
