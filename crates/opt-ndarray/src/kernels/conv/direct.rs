//! Convolutions with one input channel a group (depthwise, and the first layer of grey images):
//! each kernel entry adds a scaled, shifted copy of the input rows to the output rows.

use super::Sizes;
use super::real::Real;

pub(super) fn conv<T: Real>(s: &Sizes, x: &[T], w: &[T], bias: Option<&[T]>, out: &mut [T]) {
    let g = &s.geometry;
    let (taps, input, pixels) = (g.taps(), g.input_len(), g.output_len());
    for (channel, out) in out.chunks_mut(pixels.max(1)).enumerate() {
        let x = &x[channel / s.o * input..][..input];
        let w = &w[channel * taps..][..taps];
        out.fill(bias.map_or(T::default(), |b| b[channel]));
        let mut tap = 0;
        for kz in 0..g.kernel[0] {
            for ky in 0..g.kernel[1] {
                for kx in 0..g.kernel[2] {
                    let weight = w[tap];
                    tap += 1;
                    let xs = g.inside(2, kx);
                    if xs.is_empty() {
                        continue;
                    }
                    for z in g.inside(0, kz) {
                        for y in g.inside(1, ky) {
                            let to = (z * g.output[1] + y) * g.output[2] + xs.start;
                            let from = (g.source(0, z, kz) * g.input[1] + g.source(1, y, ky))
                                * g.input[2]
                                + g.source(2, xs.start, kx);
                            let row = &mut out[to..to + xs.len()];
                            if g.stride[2] == 1 {
                                for (o, &v) in row.iter_mut().zip(&x[from..from + xs.len()]) {
                                    *o = *o + weight * v;
                                }
                            } else {
                                let source = x[from..].iter().step_by(g.stride[2]);
                                for (o, &v) in row.iter_mut().zip(source) {
                                    *o = *o + weight * v;
                                }
                            }
                        }
                    }
                }
            }
        }
    }
}
