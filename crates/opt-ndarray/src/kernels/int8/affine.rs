//! What a layer's sums are shifted and scaled by, where outputs lie in blocks.

use opt_core::DType;

use super::super::Arg;
use super::Layer;

/// One entry an output channel, each group's outputs padded to whole blocks.
#[derive(Debug)]
pub(crate) struct Affine {
    /// `bias - zero * sum(weight)`; the bias alone if the zero point comes with each run.
    start: Vec<i32>,
    multiplier: Vec<f32>,
    /// Empty if nothing is added in float.
    offset: Vec<f32>,
    /// The sums of the weights if the zero point comes with each run, else empty.
    sums: Vec<i32>,
    /// What the kernel has added to each activation.
    shift: i32,
}

/// [`Affine`] for one run.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Scales<'a> {
    /// What is added to the sums.
    pub(crate) start: &'a [i32],
    /// What they are multiplied by then.
    pub(crate) multiplier: &'a [f32],
    /// What is added then, if anything.
    pub(crate) offset: Option<&'a [f32]>,
    /// The activation's zero point.
    pub(crate) zero: i32,
}

impl Affine {
    /// For blocks of `block` outputs, and activations that are read with `shift` added.
    pub(crate) fn new(layer: &Layer, block: usize, shift: i32) -> Affine {
        let blocks = layer.outputs.div_ceil(block);
        let slots = layer.groups * blocks * block;
        let depth = layer.inputs * layer.taps();
        let mut affine = Affine {
            start: vec![0; slots],
            multiplier: vec![0.0; slots],
            offset: vec![0.0; if layer.offset.is_empty() { 0 } else { slots }],
            sums: vec![0; if layer.zero.is_none() { slots } else { 0 }],
            shift,
        };
        for channel in 0..layer.groups * layer.outputs {
            let (group, o) = (channel / layer.outputs, channel % layer.outputs);
            let slot = group * blocks * block + o;
            let weights = &layer.weight[channel * depth..][..depth];
            let sum = weights
                .iter()
                .fold(0i32, |s, &w| s.wrapping_add(i32::from(w)));
            let zero = layer.zero.unwrap_or(0).wrapping_add(shift);
            affine.start[slot] = layer.bias[channel];
            match affine.sums.get_mut(slot) {
                Some(place) => *place = sum,
                None => affine.start[slot] = shifted(layer.bias[channel], zero, sum),
            }
            affine.multiplier[slot] = layer.multiplier[channel];
            if let Some(place) = affine.offset.get_mut(slot) {
                *place = layer.offset[channel];
            }
        }
        affine
    }

    /// Bytes of memory that [`Affine::at`] needs.
    pub(crate) fn scratch(&self) -> usize {
        8 * self.sums.len()
    }

    /// Shift and scale for a run: where the zero point comes with it, the arguments after the
    /// activation are a scale and a zero point.
    pub(crate) fn at<'a>(
        &'a self,
        layer: &Layer,
        args: &[Arg<'_>],
        scratch: &'a mut [u8],
    ) -> Scales<'a> {
        let offset = (!self.offset.is_empty()).then_some(&self.offset[..]);
        if let Some(zero) = layer.zero {
            return Scales {
                start: &self.start,
                multiplier: &self.multiplier,
                offset,
                zero,
            };
        }
        let scale = args[1].typed::<f32>()[0];
        let zero = match args[2].dtype {
            DType::I8 => i32::from(args[2].typed::<i8>()[0]),
            _ => i32::from(args[2].bytes[0]),
        };
        let slots = self.sums.len();
        let (start, multiplier) = scratch[..8 * slots].split_at_mut(4 * slots);
        let start: &mut [i32] = bytemuck::cast_slice_mut(start);
        let multiplier: &mut [f32] = bytemuck::cast_slice_mut(multiplier);
        let point = zero.wrapping_add(self.shift);
        for ((to, &bias), &sum) in start.iter_mut().zip(&self.start).zip(&self.sums) {
            *to = shifted(bias, point, sum);
        }
        for (to, &own) in multiplier.iter_mut().zip(&self.multiplier) {
            *to = scale * own;
        }
        Scales {
            start,
            multiplier,
            offset,
            zero,
        }
    }
}

fn shifted(bias: i32, zero: i32, sum: i32) -> i32 {
    bias.wrapping_sub(zero.wrapping_mul(sum))
}
