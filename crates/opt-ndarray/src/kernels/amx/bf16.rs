//! Products of matrices of `bf16` on tiles, with sums in `f32`.
//!
//! Products of two `bf16` are exact in `f32`. A tile product adds those of 32 entries of `k`, each
//! rounded to nearest, and then adds their sum to the tile; numbers below the normal ones count as
//! 0, in operands and in sums, whatever the processor's modes are. So a sum is within
//! `(k + k / 32 + 1) / 2` units of `f32`'s epsilon of the exact one, relative to the sum of the
//! magnitudes, and `2^-125` for each product.
//!
//! The right operand is packed into tiles of pairs of rows, once if it is constant; the left one is
//! read where it lies or copied into tiles, 32 rows at a time. A sum does not depend on how the
//! outputs are cut into tasks.

use std::cell::RefCell;
use std::ptr::null;
use std::sync::OnceLock;

use opt_core::ops::{self, UnaryOp};
use opt_core::{DType, Result};

use super::super::matmul::Shapes;
use super::super::{Arg, CompileCx, Kernel, Out, RunCx, SharedMut, elementwise, parallel, wide};
use super::source::{copy_row, spread, there_and_back};
use super::tasks::{Task, Tasks, share};
use super::{Activations, BLOCK, Block, Lines, Product, ROW, ROWS, STEPS, TILE, Tiles};

/// Entries of `k` in a step: a tile's row.
const DEPTH: usize = ROW / 2;

/// Multiply-adds below which a product is converted to `f32`: setting up the tiles, of which it
/// fills few, takes longer.
const LEAST: usize = 1 << 16;

/// Whether the processor multiplies tiles of `bf16`, as [`super::available`] says it of bytes.
pub(in super::super) fn available() -> bool {
    static AVAILABLE: OnceLock<bool> = OnceLock::new();
    *AVAILABLE.get_or_init(|| {
        const AMX_BF16: u32 = 1 << 22;
        super::available() && std::arch::x86_64::__cpuid_count(7, 0).edx & AMX_BF16 != 0
    })
}

/// A product of `bf16` matrices, rounded once, after the bias and the functions.
#[derive(Debug)]
struct Bf16MatMul {
    shapes: Shapes,
    /// Steps of 64 bytes of a sum.
    steps: usize,
    /// Offsets of the steps in packed tiles and in rows that are read where they lie.
    packed: Vec<usize>,
    direct: Option<Vec<usize>>,
    /// The right operand's tiles, if it is constant.
    weight: Option<Lines>,
    epilogue: Vec<UnaryOp>,
    name: String,
}

/// What a thread works with.
struct Work {
    /// A block of rows as tiles.
    pack: Lines,
    /// Blocks of sums.
    sums: Lines,
    /// A row of sums.
    row: Vec<f32>,
}

/// The kernel of a product on tiles; `None` where another is to be taken.
pub(in super::super) fn compile(
    op: &ops::MatMul,
    cx: &CompileCx<'_>,
) -> Result<Option<Box<dyn Kernel>>> {
    let bf16 = cx
        .inputs
        .iter()
        .chain(cx.outputs)
        .all(|ty| ty.dtype == DType::BF16);
    if !bf16 || !cx.extras.is_empty() || !available() {
        return Ok(None);
    }
    let shapes = Shapes::new(op, cx)?;
    let Shapes { m, n, k, .. } = shapes;
    // Few rows are a pass over the right operand, which conversion and vectors do as fast.
    if k == 0 || m < ROWS / 2 || m.saturating_mul(n).saturating_mul(k) < LEAST {
        return Ok(None);
    }
    let steps = k.div_ceil(DEPTH);
    let direct = shapes.a_strides.1 == 1 && k.is_multiple_of(DEPTH) && spread(2 * k);
    let mut kernel = Bf16MatMul {
        steps,
        packed: there_and_back((0..steps).map(|s| s * 2 * TILE)),
        direct: direct.then(|| there_and_back((0..steps).map(|s| s * ROW))),
        weight: None,
        epilogue: cx.epilogue.to_vec(),
        name: elementwise::with_epilogue("matmul", cx.epilogue),
        shapes,
    };
    if let Some(b) = &cx.constants[1] {
        let b = b.contiguous();
        let mut weight = Lines::new();
        weight.reserve(kernel.weight_len());
        kernel.pack(bytemuck::cast_slice(b.bytes()?), weight.bytes_mut(), 1);
        kernel.weight = Some(weight);
    }
    Ok(Some(Box::new(kernel)))
}

impl Bf16MatMul {
    /// Blocks of columns.
    fn blocks(&self) -> usize {
        self.shapes.n.div_ceil(BLOCK)
    }

    /// Right matrices: those of a batch may be the same.
    fn matrices(&self) -> usize {
        let size = self.shapes.k * self.shapes.n;
        let last = self.shapes.b_offsets.iter().max();
        last.map_or(0, |&last| last / size.max(1) + 1)
    }

    /// Bytes of the right matrices as tiles.
    fn weight_len(&self) -> usize {
        self.matrices() * self.blocks() * self.steps * 2 * TILE
    }

    /// Packs the right matrices: for each, and each block of 32 columns, and each step, two tiles.
    fn pack(&self, b: &[u16], out: &mut [u8], threads: usize) {
        let Shapes { n, k, .. } = self.shapes;
        let (blocks, len) = (self.blocks(), self.steps * 2 * TILE);
        let out = SharedMut::new(&mut out[..self.weight_len()]);
        parallel(threads, self.matrices() * blocks, |i| {
            // SAFETY: each block has a part of its own.
            let tiles: &mut [u32] =
                bytemuck::cast_slice_mut(unsafe { out.part(i * len..(i + 1) * len) });
            let b = &b[i / blocks * k * n..][..k * n];
            for (t, tile) in tiles.chunks_exact_mut(TILE / 4).enumerate() {
                let first = i % blocks * BLOCK + t % 2 * ROWS;
                let columns = first.min(n)..(first + ROWS).min(n);
                let rows = t / 2 * DEPTH..k.min((t / 2 + 1) * DEPTH);
                tile.fill(0);
                if self.shapes.b_strides.1 == 1 {
                    for (pair, to) in rows.step_by(2).zip(tile.chunks_exact_mut(ROWS)) {
                        let low = &b[pair * n..][columns.clone()];
                        match pair + 1 < k {
                            true => pairs(low, &b[(pair + 1) * n..][columns.clone()], to),
                            false => pairs(low, &[0; ROWS], to),
                        }
                    }
                    continue;
                }
                for (lane, column) in columns.enumerate() {
                    let from = b[column * k..][rows.clone()].chunks(2);
                    for (pair, to) in from.zip(tile[lane..].iter_mut().step_by(ROWS)) {
                        *to = u32::from(pair[0]) | u32::from(*pair.get(1).unwrap_or(&0)) << 16;
                    }
                }
            }
        });
    }

    /// The tiles of a block of rows of a left matrix, and whether there are two a step.
    fn activation<'a>(
        &'a self,
        a: &[u16],
        block: usize,
        pack: &mut Lines,
    ) -> (Activations<'a>, bool) {
        let Shapes { m, k, .. } = self.shapes;
        let rows = block * BLOCK..m.min((block + 1) * BLOCK);
        let pair = rows.len() > ROWS;
        if let (Some(direct), true) = (&self.direct, rows.len() == BLOCK) {
            let operand = Activations {
                base: a[rows.start * k..rows.end * k].as_ptr().cast(),
                offsets: direct,
                second: ROWS * 2 * k,
                stride: 2 * k,
            };
            return (operand, true);
        }
        if self.shapes.a_strides.1 == 1 {
            for (r, row) in rows.enumerate() {
                let row = bytemuck::cast_slice(&a[row * k..][..k]);
                let to = &mut pack.bytes_mut()[r * ROW..];
                copy_row(row, to);
                // What lies beyond `k` is multiplied by 0, which a NaN would outlive.
                let tail = 2 * k % ROW;
                if tail > 0 {
                    to[(self.steps - 1) * 2 * TILE..][tail..ROW].fill(0);
                }
            }
        } else {
            let tiles: &mut [u32] = bytemuck::cast_slice_mut(pack.bytes_mut());
            let mut wide = [0u32; BLOCK];
            for lane in 0..self.steps * ROWS {
                let (step, p) = (lane / ROWS, 2 * lane);
                let wide = &mut wide[..rows.len()];
                match p {
                    p if p + 1 < k => pairs(
                        &a[p * m..][rows.clone()],
                        &a[(p + 1) * m..][rows.clone()],
                        wide,
                    ),
                    p if p < k => pairs(&a[p * m..][rows.clone()], &[0; BLOCK], wide),
                    _ => wide.fill(0),
                }
                let to = &mut tiles[step * 2 * TILE / 4 + lane % ROWS..];
                for (to, &v) in to.iter_mut().step_by(ROWS).zip(&*wide) {
                    *to = v;
                }
            }
        }
        let operand = Activations {
            base: pack.bytes().as_ptr(),
            offsets: &self.packed,
            second: TILE,
            stride: ROW,
        };
        (operand, pair)
    }

    /// Where the tiles of a part of a block of columns start, and how they go on: there and back,
    /// so that the rows that were read last are the first again.
    fn weights<'a>(
        &self,
        weight: &'a [u8],
        task: &Task,
        part: usize,
        parts: usize,
        outputs: usize,
    ) -> (&'a [u8], isize) {
        let steps = share(self.steps, parts, part);
        let matrix = self.shapes.b_offsets[task.group] / (self.shapes.k * self.shapes.n);
        let block = matrix * self.blocks() + outputs;
        let back = (outputs - task.outputs.start) % 2 == 1;
        let first = if back { steps.end - 1 } else { steps.start };
        let advance = 2 * TILE as isize;
        let advance = if back { -advance } else { advance };
        (&weight[(block * self.steps + first) * 2 * TILE..], advance)
    }

    fn task(
        &self,
        (a, weight, bias): (&[u16], &[u8], Option<&[u16]>),
        out: &SharedMut<'_, u16>,
        task: &Task,
        work: &mut Work,
    ) {
        let Shapes { m, n, .. } = self.shapes;
        let parts = self.steps.div_ceil(STEPS);
        let a = &a[self.shapes.a_offsets[task.group]..];
        let columns = task.outputs.start * BLOCK..n.min(task.outputs.end * BLOCK);
        work.pack.reserve(self.steps * 2 * TILE);
        work.sums.reserve(task.outputs.len() * 4 * TILE);
        work.row.resize(task.outputs.len() * BLOCK, 0.0);
        for block in task.activations.clone() {
            let tiles = Tiles::configure();
            let (activation, pair) = self.activation(a, block, &mut work.pack);
            let sums = work.sums.bytes_mut().as_mut_ptr();
            for part in 0..parts {
                let steps = share(self.steps, parts, part);
                for o in task.outputs.clone() {
                    let (weights, advance) = self.weights(weight, task, part, parts, o);
                    let offsets = if advance < 0 {
                        2 * self.steps - steps.end..2 * self.steps - steps.start
                    } else {
                        steps.clone()
                    };
                    let sums = sums.wrapping_add((o - task.outputs.start) * 4 * TILE);
                    let block = Block {
                        product: Product::Bf16,
                        activations: Activations {
                            offsets: &activation.offsets[offsets],
                            ..activation
                        },
                        weights: weights.as_ptr(),
                        advance,
                        pairs: (pair, n - o * BLOCK > ROWS),
                        start: match part {
                            0 => null(),
                            _ => sums.cast_const().cast(),
                        },
                        ahead: null(),
                        ahead_advance: 0,
                    };
                    // SAFETY: the registers are configured; the weights have two tiles a step,
                    // the activations those that `activation` says; `sums` has four tiles.
                    unsafe { block.run(sums.cast()) };
                }
            }
            drop(tiles);
            let sums: &[f32] = bytemuck::cast_slice(work.sums.bytes());
            for r in 0..BLOCK.min(m - block * BLOCK) {
                let blocks = work.row.chunks_exact_mut(BLOCK);
                for (to, sums) in blocks.zip(sums.chunks_exact(4 * TILE / 4)) {
                    for (side, to) in to.chunks_exact_mut(ROWS).enumerate() {
                        let tile = r / ROWS * 2 + side;
                        let at = tile * (TILE / 4) + r % ROWS * ROWS;
                        to.copy_from_slice(&sums[at..at + ROWS]);
                    }
                }
                let row = &mut work.row[..columns.len()];
                if let Some(bias) = bias {
                    for (sum, &b) in row.iter_mut().zip(&bias[columns.clone()]) {
                        *sum += f32::from_bits(u32::from(b) << 16);
                    }
                }
                elementwise::apply(&self.epilogue, row);
                let at = (task.group * m + block * BLOCK + r) * n;
                // SAFETY: tasks have rows and columns of their own.
                let out = unsafe { out.part(at + columns.start..at + columns.end) };
                wide::narrow_bf16(row, out);
            }
        }
    }
}

super::super::lanes::by_isa! {
    /// Pairs of entries of two rows.
    fn pairs(low: &[u16], high: &[u16], out: &mut [u32]) = |_FMA| {
        for ((to, &a), &b) in out.iter_mut().zip(low).zip(high) {
            *to = u32::from(a) | u32::from(b) << 16;
        }
    }
}

impl Kernel for Bf16MatMul {
    fn name(&self) -> String {
        self.name.clone()
    }

    fn scratch(&self) -> usize {
        match self.weight {
            Some(_) => 0,
            None => self.weight_len(),
        }
    }

    fn run(&self, args: &[Arg<'_>], outs: &mut [Out<'_>], cx: &mut RunCx<'_>) -> Result<()> {
        thread_local!(static WORK: RefCell<Work> = const {
            RefCell::new(Work { pack: Lines::new(), sums: Lines::new(), row: Vec::new() })
        });
        let Shapes { m, .. } = self.shapes;
        let weight = match &self.weight {
            Some(weight) => weight.bytes(),
            None => {
                self.pack(args[1].typed(), cx.scratch, cx.threads);
                &*cx.scratch
            }
        };
        let operands = (args[0].typed(), weight, args.get(2).map(Arg::typed));
        let out = SharedMut::new(outs[0].typed::<u16>());
        let batches = self.shapes.a_offsets.len();
        let (rows, columns) = (m.div_ceil(BLOCK), self.blocks());
        let tasks = Tasks::new(batches, rows, columns, self.steps, cx.threads);
        parallel(cx.threads, tasks.count(), |i| {
            WORK.with_borrow_mut(|work| self.task(operands, &out, &tasks.at(i), work));
        });
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use half::bf16;
    use opt_core::ops::{MatMul, Unary};
    use opt_core::random::Philox;
    use opt_core::{Backend, CompileSpec, GraphBuilder, Tensor, TensorType};
    use proptest::prelude::*;

    use super::*;
    use crate::NdarrayBackend;

    fn noise(shape: &[usize], seed: u64) -> Tensor {
        let stream = Philox::new(seed);
        let len: usize = shape.iter().product();
        let data: Vec<f64> = (0..len as u64)
            .map(|i| stream.uniform(0, i) * 4.0 - 2.0)
            .collect();
        Tensor::from_f64s(DType::BF16, shape, &data).unwrap()
    }

    /// `a[batch, m, k] * b[batches, k, n] (+ bias)` and the sums of magnitudes.
    fn reference(
        [batch, m, n, k]: [usize; 4],
        (a, b): (&[f64], &[f64]),
        one: bool,
        trans: [bool; 2],
    ) -> Vec<(f64, f64)> {
        let mut out = Vec::new();
        for (g, i, j) in (0..batch * m * n).map(|x| (x / (m * n), x / n % m, x % n)) {
            let (a, b) = (&a[g * m * k..], &b[if one { 0 } else { g * k * n }..]);
            let product = |p: usize| {
                a[if trans[0] { p * m + i } else { i * k + p }]
                    * b[if trans[1] { j * k + p } else { p * n + j }]
            };
            let sum = (0..k).map(product).sum();
            out.push((sum, (0..k).map(|p| product(p).abs()).sum()));
        }
        out
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        #[test]
        fn products_are_within_the_bound_of_the_exact_ones(
            batch in 1usize..4, m in 8usize..80, n in 1usize..100, k in 1usize..400,
            trans: [bool; 2], one: bool, constant: bool, bias: bool, relu: bool,
            seed in 0u64..1 << 40,
        ) {
            // Enough of them for the tiles.
            let n = n.max(LEAST.div_ceil(m * k));
            let shape = |rows, columns, trans| if trans { [columns, rows] } else { [rows, columns] };
            let a_shape = [&[batch][..], &shape(m, k, trans[0])].concat();
            let mut b_shape = shape(k, n, trans[1]).to_vec();
            if !one {
                b_shape.insert(0, batch);
            }
            let (a, b) = (noise(&a_shape, seed), noise(&b_shape, seed + 1));
            let c = noise(&[n], seed + 2);
            let mut g = GraphBuilder::new("product");
            let ty = |t: &Tensor| TensorType::new(DType::BF16, t.shape());
            let x = g.input("a", ty(&a)).unwrap();
            let mut inputs = vec![a.clone()];
            let w = if constant {
                g.constant(b.clone())
            } else {
                inputs.push(b.clone());
                g.input("b", ty(&b)).unwrap()
            };
            let op = MatMul { trans_a: trans[0], trans_b: trans[1] };
            let mut y = g.op(op, &[x, w]).unwrap();
            if bias {
                let v = g.constant(c.clone());
                y = g.add(y, v).unwrap();
            }
            if relu {
                y = g.op(Unary { op: UnaryOp::Relu }, &[y]).unwrap();
            }
            g.output("y", y).unwrap();
            let graph = g.finish().unwrap();
            let run = |threads: usize| {
                let backend = NdarrayBackend::new().threads(threads);
                let exe = backend.compile(&graph, &CompileSpec::new()).unwrap();
                let mut session = exe.session().unwrap();
                // The second run finds what the first has left in the buffers.
                session.run(&inputs).unwrap();
                session.run(&inputs).unwrap().remove(0)
            };
            let found = run(1);
            prop_assert_eq!(&run(3), &found);
            let exact = reference(
                [batch, m, n, k], (&a.to_f64s(), &b.to_f64s()), one, trans,
            );
            let (found, c) = (found.to_f64s(), c.to_f64s());
            for (i, ((sum, size), found)) in exact.into_iter().zip(found).enumerate() {
                let (mut sum, mut size) = (sum, size);
                if bias {
                    (sum, size) = (sum + c[i % n], size + c[i % n].abs());
                }
                if relu {
                    sum = sum.max(0.0);
                }
                let unit = f64::from(f32::EPSILON) / 2.0;
                let bound = (k + k / 32 + 3) as f64 * unit * size + k as f64 * 2f64.powi(-125);
                // Half a unit of 8 bits.
                let rounding = (sum.abs() + bound) * 2f64.powi(-8);
                prop_assert!((found - sum).abs() <= bound + rounding, "{}: {} {}", i, found, sum);
            }
        }
    }

    /// What no tail, no border and no unused lane may bring in or take out.
    #[test]
    fn infinities_and_nan_reach_their_rows_and_columns_only() {
        let (m, n, k) = (33, 70, 45);
        let mut a = vec![bf16::ONE; m * k];
        let b = vec![bf16::ONE; k * n];
        a[2 * k + 44] = bf16::INFINITY;
        a[32 * k] = bf16::NAN;
        let mut g = GraphBuilder::new("product");
        let x = g.input("a", TensorType::new(DType::BF16, [m, k])).unwrap();
        let w = g.input("b", TensorType::new(DType::BF16, [k, n])).unwrap();
        let y = g.matmul(x, w).unwrap();
        g.output("y", y).unwrap();
        let inputs = [
            Tensor::new([m, k], a).unwrap(),
            Tensor::new([k, n], b).unwrap(),
        ];
        let backend = NdarrayBackend::new().threads(1);
        let found = backend.run_once(&g.finish().unwrap(), &inputs).unwrap();
        for (i, v) in found[0].to_f64s().into_iter().enumerate() {
            match i / n {
                2 => assert_eq!(v, f64::INFINITY),
                32 => assert!(v.is_nan()),
                _ => assert_eq!(v, 45.0),
            }
        }
    }
}
