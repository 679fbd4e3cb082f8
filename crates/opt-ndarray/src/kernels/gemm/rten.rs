//! Products by `rten-gemm`, on processors that there are no register tiles for.

use std::cell::RefCell;
use std::sync::OnceLock;

use rten_gemm::{
    BiasVector, GemmExecutor, GemmInputA, GemmInputB, GemmOptions, PackedAMatrix, PackedBMatrix,
};
use rten_tensor::NdTensorView;

use super::pack::{PackedLhsKind, PackedRhsKind};
use super::{Base, Gemm, Lhs, Mat, Rhs};

pub(super) type PackedLhs = PackedAMatrix<f32>;
pub(super) type PackedRhs = PackedBMatrix<f32>;

/// An executor holds no state but which instructions the processor has.
fn executor() -> GemmExecutor<f32> {
    GemmExecutor::new()
}

fn view(a: Mat<'_>, rows: usize, cols: usize) -> NdTensorView<'_, f32, 2> {
    NdTensorView::from_slice_with_strides([rows, cols], a.data, [a.row, a.col])
        .expect("the operand covers its shape")
}

pub(super) fn pack_lhs(a: Mat<'_>, m: usize, k: usize) -> PackedLhs {
    executor().prepack_a(view(a, m, k))
}

pub(super) fn pack_rhs(b: Mat<'_>, k: usize, n: usize) -> PackedRhs {
    executor().prepack_b(view(b, k, n))
}

impl Gemm<'_> {
    pub(super) fn rten(&self, out: &mut [f32], out_row: usize) {
        let Gemm { m, n, k, .. } = *self;
        let a = match self.a {
            Lhs::Plain(a) => GemmInputA::Unpacked(view(a, m, k)),
            Lhs::Packed(a) => match &a.0 {
                PackedLhsKind::Rten(a) => GemmInputA::Packed(a),
                PackedLhsKind::Tiles(_) => panic!("the left operand was packed for other sizes"),
            },
        };
        let b = match self.b {
            Rhs::Plain(b) => GemmInputB::Unpacked(view(b, k, n)),
            Rhs::Packed(b) => match &b.0 {
                PackedRhsKind::Rten(b) => GemmInputB::Packed(b),
                PackedRhsKind::Tiles(_) => panic!("the right operand was packed for other sizes"),
            },
        };
        if out_row == n {
            return self.rten_dense(a, b, &mut out[..m * n]);
        }
        thread_local!(static DENSE: RefCell<Vec<f32>> = const { RefCell::new(Vec::new()) });
        // Taken out, since a thread that waits for others may start another task meanwhile.
        let mut dense = DENSE.take();
        dense.resize(m * n, 0.0);
        if matches!(self.base, Base::Out) {
            for (to, from) in dense.chunks_exact_mut(n).zip(out.chunks(out_row)) {
                to.copy_from_slice(&from[..n]);
            }
        }
        self.rten_dense(a, b, &mut dense);
        for (from, to) in dense.chunks_exact(n).zip(out.chunks_mut(out_row)) {
            to[..n].copy_from_slice(from);
        }
        DENSE.set(dense);
    }

    fn rten_dense(&self, a: GemmInputA<'_, f32>, b: GemmInputB<'_, f32>, out: &mut [f32]) {
        let bias = match self.base {
            Base::Row(bias) => Some(BiasVector::Row(bias)),
            Base::Column(bias) => Some(BiasVector::Column(bias)),
            Base::Zero | Base::Out => None,
        };
        let options = GemmOptions {
            beta: if matches!(self.base, Base::Out) {
                1.0
            } else {
                0.0
            },
            bias,
            ..GemmOptions::default()
        };
        // It splits its work over the pool that it is called in: with one thread, a pool of one,
        // entered only for products that take far longer than that.
        let result = if self.threads <= 1 {
            one_thread(|| executor().gemm(out, a, b, options))
        } else {
            executor().gemm(out, a, b, options)
        };
        result.expect("sizes were checked and operands packed for them");
    }
}

fn one_thread<R: Send>(f: impl FnOnce() -> R + Send) -> R {
    static POOL: OnceLock<Option<rayon::ThreadPool>> = OnceLock::new();
    let pool = POOL.get_or_init(|| rayon::ThreadPoolBuilder::new().num_threads(1).build().ok());
    match pool {
        Some(pool) => pool.install(f),
        // Without a thread to be had the caller's pool has to do.
        None => f(),
    }
}
