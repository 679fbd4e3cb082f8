//! What the convolutions need of an element type.

use std::cell::RefCell;

use bytemuck::Pod;
use opt_core::ops::UnaryOp;

use crate::kernels::elementwise;
use crate::kernels::gemm::{Base, Gemm, Lhs, Mat, Number, PackedLhs, Rhs};

/// A prepacked weight, for products of one width.
#[derive(Debug)]
pub(super) struct Packed(PackedLhs);

impl Packed {
    pub(super) fn new(weight: Mat<'_>, m: usize, n: usize, k: usize) -> Packed {
        Packed(PackedLhs::new(weight, m, n, k))
    }
}

/// `f32` or `f64`.
pub(super) trait Real: Number + Pod {
    /// `out[m, n] = a[m, k] * b[k, n]`, plus what `out` held if `accumulate`, else plus a bias an
    /// output row; rows of `out` are `out_row` apart.
    fn product(
        size: (usize, usize, usize),
        a: (Mat<'_, Self>, Option<&Packed>),
        b: Mat<'_, Self>,
        bias: Option<&[Self]>,
        accumulate: bool,
        out: &mut [Self],
        out_row: usize,
        threads: usize,
    );

    /// Runs with a buffer of the thread, of a length at least, content undefined.
    fn buffer<R>(len: usize, run: impl FnOnce(&mut [Self]) -> R) -> R;

    /// Applies element-wise functions; only `f32` graphs fuse any.
    fn apply(epilogue: &[UnaryOp], data: &mut [Self]);
}

macro_rules! buffer {
    ($t:ty) => {
        fn buffer<R>(len: usize, run: impl FnOnce(&mut [$t]) -> R) -> R {
            thread_local!(static BUFFER: RefCell<Vec<$t>> = const { RefCell::new(Vec::new()) });
            // Taken out, since a thread that waits for others may start another task meanwhile.
            let mut buffer = BUFFER.take();
            if buffer.len() < len {
                buffer.resize(len, 0.0);
            }
            let result = run(&mut buffer[..len]);
            BUFFER.set(buffer);
            result
        }
    };
}

impl Real for f32 {
    fn product(
        (m, n, k): (usize, usize, usize),
        (a, packed): (Mat<'_>, Option<&Packed>),
        b: Mat<'_>,
        bias: Option<&[f32]>,
        accumulate: bool,
        out: &mut [f32],
        out_row: usize,
        threads: usize,
    ) {
        let gemm = Gemm {
            m,
            n,
            k,
            a: packed.map_or(Lhs::Plain(a), |p| Lhs::Packed(&p.0)),
            b: Rhs::Plain(b),
            base: match bias {
                _ if accumulate => Base::Out,
                Some(bias) => Base::Column(bias),
                None => Base::Zero,
            },
            threads,
        };
        gemm.run(out, out_row);
    }

    buffer!(f32);

    fn apply(epilogue: &[UnaryOp], data: &mut [f32]) {
        if !epilogue.is_empty() {
            elementwise::apply(epilogue, data);
        }
    }
}

impl Real for f64 {
    fn product(
        (m, n, k): (usize, usize, usize),
        (a, _): (Mat<'_, f64>, Option<&Packed>),
        b: Mat<'_, f64>,
        bias: Option<&[f64]>,
        accumulate: bool,
        out: &mut [f64],
        out_row: usize,
        _: usize,
    ) {
        for i in 0..m {
            let row = &mut out[i * out_row..][..n];
            if !accumulate {
                row.fill(bias.map_or(0.0, |b| b[i]));
            }
            for p in 0..k {
                let x = a.data[i * a.row + p * a.col];
                for (j, sum) in row.iter_mut().enumerate() {
                    *sum += x * b.data[p * b.row + j * b.col];
                }
            }
        }
    }

    buffer!(f64);

    fn apply(epilogue: &[UnaryOp], _: &mut [f64]) {
        debug_assert!(epilogue.is_empty(), "only f32 graphs fuse functions");
    }
}
