//! Matrix products, batched and broadcast, with a bias and functions applied to the result.

use opt_core::ops::{self, UnaryOp};
use opt_core::tensor::Dims;
use opt_core::{DType, Element, Error, Result};

use super::convert::Walk;
use super::elementwise;
use super::gemm::{self, Base, Finish, Gemm, Lhs, Mat, PackedRhs, Rhs};
use super::{Arg, CompileCx, Kernel, Out, RunCx, parallel_chunks};

/// Multiply-adds from which a product of a batch is cut itself.
const LARGE: usize = 1 << 23;

/// Multiply-adds of a batch from which a second thread is worth its start.
const PARALLEL: usize = 1 << 20;

/// Multiply-adds that are worth a task of their own.
const TASK: usize = 1 << 18;

/// The sizes of a product, and where its operands lie.
#[derive(Debug)]
pub(super) struct Shapes {
    pub(super) m: usize,
    pub(super) n: usize,
    pub(super) k: usize,
    /// Strides of rows and columns.
    pub(super) a_strides: (usize, usize),
    pub(super) b_strides: (usize, usize),
    /// Where the operands of each product of the batch start.
    pub(super) a_offsets: Vec<usize>,
    pub(super) b_offsets: Vec<usize>,
    /// Whether all have the same right operand.
    one: bool,
}

impl Shapes {
    pub(super) fn new(op: &ops::MatMul, cx: &CompileCx<'_>) -> Result<Shapes> {
        let (a, b) = (cx.inputs[0].shape.fixed()?, cx.inputs[1].shape.fixed()?);
        let out = cx.outputs[0].shape.fixed()?;
        let (ra, rb, ro) = (a.len(), b.len(), out.len());
        let (mut m, n) = (out[ro - 2], out[ro - 1]);
        let k = if op.trans_a { a[ra - 2] } else { a[ra - 1] };
        let mut batch: Dims = out[..ro - 2].into();
        let (mut a_batch, mut b_batch): (Dims, Dims) = (a[..ra - 2].into(), b[..rb - 2].into());
        if b_batch.iter().all(|&d| d == 1) {
            b_batch.clear();
        }
        // One right matrix for all left ones: their rows make one tall matrix.
        if b_batch.is_empty() && !op.trans_a && a_batch == batch {
            m *= batch.iter().product::<usize>();
            (batch, a_batch) = (Dims::new(), Dims::new());
        }
        let batches: usize = batch.iter().product();
        let offsets = |own: &[usize], size: usize| {
            let mut out = vec![0usize; batches];
            let numbers: Vec<usize> = (0..own.iter().product()).map(|i: usize| i * size).collect();
            if !numbers.is_empty() && batches > 0 {
                Walk::new(own, &batch).load(&numbers, 0, &mut out, |x| x);
            }
            out
        };
        let b_strides = if op.trans_b { (1, k) } else { (n, 1) };
        Ok(Shapes {
            m,
            n,
            k,
            a_strides: if op.trans_a { (1, out[ro - 2]) } else { (k, 1) },
            b_strides,
            a_offsets: offsets(&a_batch, m * k),
            b_offsets: offsets(&b_batch, k * n),
            one: b_batch.is_empty(),
        })
    }
}

pub(crate) fn compile(op: &ops::MatMul, cx: &CompileCx<'_>) -> Result<Box<dyn Kernel>> {
    let shapes = Shapes::new(op, cx)?;
    let Shapes {
        m, n, k, b_strides, ..
    } = shapes;
    let packed = match &cx.constants[1] {
        Some(b) if b.dtype() == DType::F32 && shapes.one => {
            let b = b.contiguous();
            let b = Mat {
                data: b.as_slice::<f32>()?,
                row: b_strides.0,
                col: b_strides.1,
            };
            Some(PackedRhs::new(b, m, n, k))
        }
        _ => None,
    };
    Ok(Box::new(MatMul {
        shapes,
        packed,
        residual: cx.extras.residual,
        epilogue: cx.epilogue.to_vec(),
        name: cx
            .extras
            .name(elementwise::with_epilogue("matmul", cx.epilogue)),
    }))
}

#[derive(Debug)]
struct MatMul {
    shapes: Shapes,
    packed: Option<PackedRhs>,
    /// Whether the last operand is added to the products, before the functions.
    residual: bool,
    epilogue: Vec<UnaryOp>,
    name: String,
}

impl MatMul {
    fn f32(&self, args: &[Arg<'_>], out: &mut [f32], threads: usize) {
        let (residual, args) = match args.split_last() {
            Some((last, rest)) if self.residual => (Some(last.typed::<f32>()), rest),
            _ => (None, args),
        };
        let (a, b) = (args[0].typed::<f32>(), args[1].typed::<f32>());
        let bias = args.get(2).map(|bias| bias.typed());
        let size = self.shapes.m * self.shapes.n;
        let one = |batch: usize, out: &mut [f32], threads: usize| {
            let gemm = Gemm {
                m: self.shapes.m,
                n: self.shapes.n,
                k: self.shapes.k,
                a: Lhs::Plain(Mat {
                    data: &a[self.shapes.a_offsets[batch]..],
                    row: self.shapes.a_strides.0,
                    col: self.shapes.a_strides.1,
                }),
                b: match &self.packed {
                    Some(packed) => Rhs::Packed(packed),
                    None => Rhs::Plain(Mat {
                        data: &b[self.shapes.b_offsets[batch]..],
                        row: self.shapes.b_strides.0,
                        col: self.shapes.b_strides.1,
                    }),
                },
                base: bias.map_or(Base::Zero, Base::Row),
                threads,
            };
            let finish = Finish {
                residual: residual.map(|r| &r[batch * size..][..size]),
                functions: &self.epilogue,
            };
            gemm.run_with(finish, out, self.shapes.n);
        };
        let batches = self.shapes.a_offsets.len();
        let each = size.saturating_mul(self.shapes.k);
        // Few large products are each cut into parts, many small ones shared out.
        let few = batches < 4 * threads && each >= LARGE;
        if batches > 1 && !few && gemm::on_tiles(self.shapes.m, self.shapes.n, self.shapes.k) {
            let threads = if each.saturating_mul(batches) < PARALLEL {
                1
            } else {
                threads
            };
            let together = (TASK / each.max(1)).clamp(1, batches);
            parallel_chunks(threads, out, together * size, |chunk, out| {
                for (i, out) in out.chunks_mut(size.max(1)).enumerate() {
                    one(chunk * together + i, out, 1);
                }
            });
        } else {
            for (batch, out) in out.chunks_mut(size.max(1)).enumerate() {
                one(batch, out, threads);
            }
        }
    }

    fn f64(&self, a: &[f64], b: &[f64], out: &mut [f64]) {
        for (batch, out) in out
            .chunks_mut((self.shapes.m * self.shapes.n).max(1))
            .enumerate()
        {
            let a = Mat {
                data: &a[self.shapes.a_offsets[batch]..],
                row: self.shapes.a_strides.0,
                col: self.shapes.a_strides.1,
            };
            let b = Mat {
                data: &b[self.shapes.b_offsets[batch]..],
                row: self.shapes.b_strides.0,
                col: self.shapes.b_strides.1,
            };
            gemm::plain(
                self.shapes.m,
                self.shapes.n,
                self.shapes.k,
                a,
                b,
                false,
                out,
            );
        }
    }

    fn integers<A: Element + Into<i32>, B: Element + Into<i32>>(
        &self,
        args: &[Arg<'_>],
        out: &mut [i32],
        threads: usize,
    ) {
        let (a, b): (&[A], &[B]) = (args[0].typed(), args[1].typed());
        let rows = self.shapes.m;
        parallel_chunks(threads, out, self.shapes.n.max(1), |row, out| {
            let (batch, i) = (row / rows, row % rows);
            let (a, b) = (
                &a[self.shapes.a_offsets[batch]..],
                &b[self.shapes.b_offsets[batch]..],
            );
            out.fill(0);
            for p in 0..self.shapes.k {
                let x: i32 = a[i * self.shapes.a_strides.0 + p * self.shapes.a_strides.1].into();
                for (j, sum) in out.iter_mut().enumerate() {
                    let y: i32 =
                        b[p * self.shapes.b_strides.0 + j * self.shapes.b_strides.1].into();
                    *sum = sum.wrapping_add(x * y);
                }
            }
        });
    }
}

impl Kernel for MatMul {
    fn name(&self) -> String {
        self.name.clone()
    }

    fn run(&self, args: &[Arg<'_>], outs: &mut [Out<'_>], cx: &mut RunCx<'_>) -> Result<()> {
        let out = &mut outs[0];
        match (args[0].dtype, args[1].dtype) {
            (DType::F32, _) => {
                self.f32(args, out.typed(), cx.threads);
            }
            (DType::F64, _) => self.f64(args[0].typed(), args[1].typed(), out.typed()),
            (DType::I8, DType::I8) => self.integers::<i8, i8>(args, out.typed(), cx.threads),
            (DType::I8, DType::U8) => self.integers::<i8, u8>(args, out.typed(), cx.threads),
            (DType::U8, DType::I8) => self.integers::<u8, i8>(args, out.typed(), cx.threads),
            (DType::U8, DType::U8) => self.integers::<u8, u8>(args, out.typed(), cx.threads),
            (a, b) => {
                return Err(Error::unsupported(format!(
                    "a matrix product of {a} and {b}"
                )));
            }
        }
        Ok(())
    }
}
