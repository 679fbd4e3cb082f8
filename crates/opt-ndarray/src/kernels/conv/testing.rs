//! What the tests of convolutions share: random values, geometries, and the definition.

use opt_core::ops::Window;
use opt_core::random::Philox;

use super::columns::Geometry;
use super::panels::After;
use crate::kernels::tile::Isa;

pub(in crate::kernels) fn values(step: u64, n: usize) -> Vec<f32> {
    let random = Philox::new(7);
    (0..n as u64)
        .map(|i| random.uniform(step, i) as f32 - 0.5)
        .collect()
}

pub(in crate::kernels) fn isas() -> Vec<Isa> {
    #[cfg(target_arch = "x86_64")]
    return match Isa::get() {
        Isa::Avx512 => vec![Isa::Avx512, Isa::Avx2],
        Isa::Avx2 => vec![Isa::Avx2],
        Isa::Portable => vec![],
    };
    #[cfg(not(target_arch = "x86_64"))]
    vec![]
}

/// The geometry of a convolution in two dimensions, if there is an output.
pub(in crate::kernels) fn geometry(
    size: [usize; 2],
    kernel: [usize; 2],
    strides: [usize; 2],
    dilations: [usize; 2],
    begin: [usize; 2],
    end: [usize; 2],
) -> Option<Geometry> {
    let window = Window {
        strides: strides.as_slice().into(),
        dilations: dilations.as_slice().into(),
        pads_begin: begin.as_slice().into(),
        pads_end: end.as_slice().into(),
    };
    let output = [0, 1].map(|a| {
        let span = (kernel[a] - 1) * dilations[a] + 1;
        let padded = size[a] + begin[a] + end[a];
        (padded >= span).then(|| (padded - span) / strides[a] + 1)
    });
    let output = [output[0]?, output[1]?];
    Some(Geometry::new(&size, &output, &kernel, &window))
}

/// Calls `visit(output channel, input channel, entry, output pixel, input pixel)` for every product
/// of a convolution of one group.
pub(super) fn products(
    g: &Geometry,
    [outputs, inputs]: [usize; 2],
    mut visit: impl FnMut(usize, usize, usize, usize, usize),
) {
    let inside = |at: usize, tap: usize, axis: usize| {
        let at = at * g.stride[axis] + tap * g.dilation[axis];
        let at = at.checked_sub(g.pad[axis])?;
        (at < g.input[axis]).then_some(at)
    };
    for (y, x) in (0..g.output[1]).flat_map(|y| (0..g.output[2]).map(move |x| (y, x))) {
        for (ky, kx) in (0..g.kernel[1]).flat_map(|y| (0..g.kernel[2]).map(move |x| (y, x))) {
            let (Some(iy), Some(ix)) = (inside(y, ky, 1), inside(x, kx, 2)) else {
                continue;
            };
            let (entry, from) = (ky * g.kernel[2] + kx, iy * g.input[2] + ix);
            for (o, c) in (0..outputs).flat_map(|o| (0..inputs).map(move |c| (o, c))) {
                visit(o, c, entry, y * g.output[2] + x, from);
            }
        }
    }
}

/// Images convolved, and what follows but functions, in `f64`.
pub(super) fn convolved(
    g: &Geometry,
    [groups, inputs, outputs]: [usize; 3],
    x: &[f32],
    w: &[f32],
    after: &After<'_>,
) -> Vec<f64> {
    let (taps, input, output) = (g.taps(), g.input_len(), g.output_len());
    let (image, result) = (groups * inputs * input, groups * outputs * output);
    let images = x.len() / image;
    let mut out = vec![0f64; images * result];
    for n in 0..images {
        for group in 0..groups {
            let (of, from) = (group * outputs, n * image + group * inputs * input);
            products(g, [outputs, inputs], |o, c, entry, to, at| {
                let w = f64::from(w[((of + o) * inputs + c) * taps + entry]);
                out[n * result + (of + o) * output + to] += w * f64::from(x[from + c * input + at]);
            });
        }
    }
    for (i, v) in out.iter_mut().enumerate() {
        *v += after
            .bias
            .map_or(0.0, |b| f64::from(b[i % result / output]));
        *v += after.residual.map_or(0.0, |r| f64::from(r[i]));
        if let Some([low, high]) = after.clamp {
            *v = v.clamp(f64::from(low), f64::from(high));
        }
    }
    out
}

pub(super) fn close(found: &[f32], expected: &[f64]) {
    assert_eq!(found.len(), expected.len());
    for (i, (&found, &expected)) in found.iter().zip(expected).enumerate() {
        let off = (f64::from(found) - expected).abs();
        assert!(
            off < 1e-4 * (1.0 + expected.abs()),
            "{i}: {found}, {expected}"
        );
    }
}
