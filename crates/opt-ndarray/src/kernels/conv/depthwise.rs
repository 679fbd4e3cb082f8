//! Depthwise convolutions: each output channel reads one input channel, row by row.

use super::columns::Geometry;
use super::flat::Flat;
use super::panels::{After, finish_row};
use super::patch::{Reach, reach};
use super::slide::{Slide, slide};
use crate::kernels::parallel_chunks;
use crate::kernels::tile::Isa;

/// Elements of an output that make a task.
const TASK: usize = 1 << 13;

/// A depthwise convolution in two dimensions.
#[derive(Debug, Clone)]
pub(super) struct Depthwise {
    isa: Isa,
    /// Input channels of an image, and output channels of each.
    channels: usize,
    each: usize,
    geometry: Geometry,
    /// What each vector of an output row reads for each column of the kernel.
    reaches: Vec<Reach>,
    /// Where rows of the output are as long as those of the input.
    flat: Option<Flat>,
}

impl Depthwise {
    /// The layout for images of `channels` to `channels * each`; `None` in three dimensions, and on
    /// processors without vectors for it.
    pub(super) fn new(channels: usize, each: usize, g: &Geometry) -> Option<Depthwise> {
        Depthwise::on(Isa::get(), channels, each, g)
    }

    /// [`Depthwise::new`] for instructions that the processor has.
    fn on(isa: Isa, channels: usize, each: usize, g: &Geometry) -> Option<Depthwise> {
        let flat = g.input[0] == 1 && g.output[0] == 1 && g.kernel[0] == 1 && g.pad[0] == 0;
        let sizes = [channels, each, g.taps(), g.output_len(), g.input_len()];
        if isa == Isa::Portable || !flat || sizes.contains(&0) {
            return None;
        }
        i32::try_from(g.input_len()).ok()?;
        let (width, lanes) = (g.output[2], isa.lanes());
        let starts = (0..width).step_by(lanes);
        let reaches = starts.flat_map(|x| {
            let len = lanes.min(width - x);
            (0..g.kernel[2]).map(move |kx| reach(g, x, kx, len))
        });
        Some(Depthwise {
            isa,
            channels,
            each,
            reaches: reaches.collect(),
            flat: Flat::new(isa, g),
            geometry: g.clone(),
        })
    }

    /// Convolves images with a weight `[channels * each, 1, height, width]`.
    pub(super) fn run(
        &self,
        x: &[f32],
        weight: &[f32],
        after: &After<'_>,
        out: &mut [f32],
        threads: usize,
    ) {
        let g = &self.geometry;
        let (input, output, taps) = (g.input_len(), g.output_len(), g.taps());
        let outputs = self.channels * self.each;
        assert!(weight.len() == outputs * taps);
        assert!(x.len() * output * self.each == out.len() * input);
        let bounded = after
            .clamp
            .filter(|_| after.residual.is_none() && after.functions.is_empty());
        let planes = (TASK / output).max(1);
        parallel_chunks(threads, out, planes * output, |task, out| {
            for (i, out) in out.chunks_exact_mut(output).enumerate() {
                let plane = task * planes + i;
                let channel = plane % outputs;
                let image = plane / outputs * self.channels + channel / self.each;
                let image = &x[image * input..][..input];
                let weight = &weight[channel * taps..][..taps];
                let bias = after.bias.map_or(0.0, |b| b[channel]);
                let clamp = bounded.unwrap_or([f32::NEG_INFINITY, f32::INFINITY]);
                match &self.flat {
                    Some(flat) => flat.run(self.isa, image, weight, bias, clamp, out),
                    None => slide(
                        self.isa,
                        Slide {
                            image,
                            geometry: g,
                            weight,
                            bias,
                            clamp,
                            reaches: &self.reaches,
                            out: &mut *out,
                        },
                    ),
                }
                if let Some(residual) = after.residual {
                    for (o, &r) in out.iter_mut().zip(&residual[plane * output..]) {
                        *o += r;
                    }
                }
                if bounded.is_none() {
                    finish_row(after, out);
                }
            }
        });
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::testing::{close, convolved, geometry, isas, values};
    use super::*;

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(100))]

        #[test]
        fn it_agrees_with_the_definition(
            size in [1usize..24, 1usize..70], kernel in [1usize..6, 1usize..6],
            strides in [1usize..4, 1usize..4], dilations in [1usize..3, 1usize..3],
            begin in [0usize..4, 0usize..4], end in [0usize..4, 0usize..4],
            channels in 1usize..4, each in 1usize..3,
        ) {
            let found = geometry(size, kernel, strides, dilations, begin, end);
            prop_assume!(found.is_some());
            let g = found.unwrap();
            let outputs = channels * each;
            let x = values(1, 2 * channels * g.input_len());
            let w = values(2, outputs * g.taps());
            let (bias, residual) = (values(3, outputs), values(4, 2 * outputs * g.output_len()));
            for isa in isas() {
                for residual in [None, Some(&residual[..])] {
                    let after = After {
                        bias: Some(&bias),
                        residual,
                        clamp: Some([-0.4, 0.6]),
                        ..After::default()
                    };
                    let mut out = vec![f32::NAN; 2 * outputs * g.output_len()];
                    let layer = Depthwise::on(isa, channels, each, &g).unwrap();
                    layer.run(&x, &w, &after, &mut out, 1);
                    close(&out, &convolved(&g, [channels, 1, each], &x, &w, &after));
                }
            }
        }
    }
}
