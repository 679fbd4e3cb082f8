//! Muon.

use opt_core::ops::Op;
use opt_core::{DType, Error, Graph, GraphBuilder, Result, ValueId};

use super::{AdamW, Optimizer, Slots, blend, in_range, shrunk};

/// How Muon's learning rate follows the shape of a matrix `[rows, columns]`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum MuonScale {
    /// `sqrt(max(1, rows / columns))` (Jordan et al. 2024).
    #[default]
    Original,
    /// `0.2 * sqrt(max(rows, columns))`: steps as large as AdamW's, so that its learning rate and
    /// weight decay can be kept (Liu et al. 2025, "Muon is scalable for LLM training").
    MatchRmsAdamW,
}

/// Momentum orthogonalised by a Newton-Schulz iteration (Jordan et al. 2024), as PyTorch's `Muon`
/// has it, with decoupled weight decay.
///
/// It is for the matrices of hidden layers. The kernel of a convolution counts as the matrix
/// `[output channels, rest]`. Everything else is left to `others`: biases, normalization,
/// embeddings, recurrent layers. So are parameters that [`Groups`](super::Groups) gives to another
/// optimizer, such as the last layer's.
///
/// ```
/// use opt_train::{AdamW, Groups, Muon, MuonScale};
///
/// let muon = Muon { scale: MuonScale::MatchRmsAdamW, ..Muon::default() };
/// let optimizer = Groups::new(muon).group("head.", 1.0, AdamW::default());
/// # let _ = optimizer;
/// ```
#[derive(Debug, Clone, PartialEq)]
pub struct Muon {
    /// Smoothing of the gradient's running mean, in `[0, 1)`.
    pub momentum: f64,
    /// Whether the last gradient counts once more.
    pub nesterov: bool,
    /// Decoupled weight decay.
    pub weight_decay: f64,
    /// Steps of the iteration, 1 to 99.
    pub steps: usize,
    /// Lower bound of the norm that the momentum is divided by.
    pub eps: f64,
    /// How the learning rate follows the shape.
    pub scale: MuonScale,
    /// The dtype that the iteration is computed in: PyTorch's `bf16`, or, as here at first, the
    /// parameter's own (`None`), which is more exact, and on processors without 16-bit products
    /// faster.
    pub dtype: Option<DType>,
    /// The optimizer of all that is no hidden matrix.
    pub others: AdamW,
}

impl Default for Muon {
    fn default() -> Muon {
        Muon {
            momentum: 0.95,
            nesterov: true,
            weight_decay: 0.1,
            steps: 5,
            eps: 1e-7,
            scale: MuonScale::Original,
            dtype: None,
            others: AdamW::default(),
        }
    }
}

/// The polynomial `a x + b x^3 + c x^5` of the iteration (Jordan et al. 2024): steep at 0, so that
/// few steps bring all singular values near 1.
const COEFFICIENTS: (f64, f64, f64) = (3.4445, -4.7750, 2.0315);

/// Rows and columns of a parameter that is the matrix of a hidden layer.
fn matrix(graph: &Graph, param: ValueId) -> Option<[usize; 2]> {
    let shape = graph.type_of(param).shape.fixed().ok()?;
    let other = |op: &Op| matches!(op, Op::Gather(_) | Op::Lstm(_) | Op::Gru(_));
    let table = graph
        .nodes()
        .any(|(_, node)| other(node.op()) && node.inputs().contains(&param));
    (shape.len() >= 2 && !table).then(|| [shape[0], shape[1..].iter().product()])
}

impl Muon {
    /// The matrix with its singular values near 1.
    fn orthogonalised(
        &self,
        b: &mut GraphBuilder,
        x: ValueId,
        [rows, columns]: [usize; 2],
    ) -> Result<ValueId> {
        let own = b.type_of(x).dtype;
        let tall = rows > columns;
        let x = b.cast(x, self.dtype.unwrap_or(own))?;
        let mut x = if tall { b.transpose(x, &[1, 0])? } else { x };
        let square = b.mul(x, x)?;
        let norm = b.sum_all(square)?;
        let norm = b.sqrt(norm)?;
        let least = b.scalar_like(norm, self.eps)?;
        let norm = b.maximum(norm, least)?;
        x = b.div(x, norm)?;
        let (first, third, fifth) = COEFFICIENTS;
        for _ in 0..self.steps {
            let gram = b.matmul_t(x, x, false, true)?;
            let gram2 = b.matmul(gram, gram)?;
            let update = blend(b, third, gram, fifth, gram2)?;
            let product = b.matmul(update, x)?;
            let kept = b.mul_scalar(x, first)?;
            x = b.add(kept, product)?;
        }
        let x = if tall { b.transpose(x, &[1, 0])? } else { x };
        b.cast(x, own)
    }
}

impl Optimizer for Muon {
    fn update(
        &self,
        b: &mut GraphBuilder,
        param: ValueId,
        grad: ValueId,
        lr: ValueId,
        slots: &mut Slots,
    ) -> Result<ValueId> {
        in_range("momentum", self.momentum, 0.0, 1.0)?;
        in_range("weight decay", self.weight_decay, 0.0, f64::INFINITY)?;
        in_range("eps", self.eps, f64::MIN_POSITIVE, f64::INFINITY)?;
        in_range("number of steps", self.steps as f64, 1.0, 100.0)?;
        if let Some(dtype) = self.dtype.filter(|d| !d.is_float()) {
            return Err(Error::invalid(format!("Muon cannot iterate in {dtype}")));
        }
        let Some(matrix) = matrix(b.graph(), param) else {
            return self.others.update(b, param, grad, lr, slots);
        };
        let shape = b.type_of(param).shape.clone();
        let mean = slots.get(b, param, "momentum_buffer", 0.0)?;
        let new_mean = blend(b, self.momentum, mean, 1.0 - self.momentum, grad)?;
        b.assign(mean, new_mean)?;
        let ahead = match self.nesterov {
            true => blend(b, 1.0 - self.momentum, grad, self.momentum, new_mean)?,
            false => new_mean,
        };
        let flat = b.reshape(ahead, matrix)?;
        let direction = self.orthogonalised(b, flat, matrix)?;
        let direction = b.reshape(direction, shape)?;
        let [rows, columns] = matrix.map(|n| n as f64);
        let ratio = match self.scale {
            MuonScale::Original => (rows / columns).max(1.0).sqrt(),
            MuonScale::MatchRmsAdamW => 0.2 * rows.max(columns).sqrt(),
        };
        let from = shrunk(b, param, lr, self.weight_decay)?;
        let rate = b.mul_scalar(lr, ratio)?;
        let step = b.mul(direction, rate)?;
        b.sub(from, step)
    }
}
