//! SmoothQuant: outliers of activations move into weights.

use std::collections::{BTreeMap, BTreeSet};

use opt_core::ops::{Op, ReduceOp};
use opt_core::pass::{FoldBatchNorm, Needs, Preserves};
use opt_core::random::Philox;
use opt_core::{
    Context, DType, Error, ErrorKind, FactKind, Graph, GraphBuilder, GraphPatch, Pass, Report,
    Result, ResultExt, Tensor, TensorType, ValueId,
};

use crate::batches::Batches;
use crate::layers::{Layer, Layers};
use crate::layout::Axes;
use crate::params::QParams;
use crate::scales::{FIXED, Scales};
use crate::static_pass::Config;

/// Divides each channel of what matrix products read by a factor, and multiplies the weights by it,
/// so that a few channels with large values do not take the range of all others (Xiao et al.,
/// "SmoothQuant: accurate and efficient post-training quantization for large language models", ICML
/// 2023). The function in float stays the same up to rounding.
///
/// The factor of a channel is `max|x|^alpha / max|w|^(1 - alpha)`, over the calibration examples
/// and over all weights that read the channel. It goes into what makes the channel: scale and
/// offset of the layer normalization, weight and bias of the layer, columns of the table of
/// embeddings. How far factors reach is as [`Equalize`](crate::Equalize) has it. Where they reach
/// nothing that takes them (a normalization whose output is added to something else, too), the
/// products are left alone with a note, or get a [multiplication](SmoothQuant::with_multiplications)
/// of their own.
///
/// ```
/// use opt_core::nn::{LayerNorm, Linear, ModelBuilder};
/// use opt_core::{Context, Pass};
/// use opt_data::TensorDataset;
/// use opt_core::Tensor;
/// use opt_ndarray::NdarrayBackend;
/// use opt_quant::SmoothQuant;
///
/// # fn main() -> opt_core::Result<()> {
/// let mut m = ModelBuilder::new("block", 0);
/// let x = m.batch("x", [4])?;
/// let h = m.layer("norm", LayerNorm::new(), x)?;
/// let y = m.layer("fc", Linear::new(8), h)?;
/// m.output("y", y)?;
///
/// let samples = TensorDataset::new(vec![Tensor::new([2, 4], [1f32, 9., 2., 3., 0., 7., -1., 2.])?])?;
/// let backend = NdarrayBackend::new();
/// let mut cx = Context::new().with_backend(&backend).with_calibration(&samples);
/// let (smooth, report) = SmoothQuant::new().alpha(0.5).apply(m.finish()?, &mut cx)?;
/// assert_eq!(report.changed, 1);
/// # let _ = smooth;
/// # Ok(())
/// # }
/// ```
#[derive(Debug, Clone, Default)]
pub struct SmoothQuant {
    config: Config,
    alpha: Option<f64>,
    multiply: bool,
}

/// The strengths that are tried: 0 to 1 by twentieths.
const TRIALS: usize = 20;
/// Rows that a strength is chosen on.
const ROWS: usize = 512;

impl SmoothQuant {
    /// With the strength chosen for each set of products by the error that quantizing makes in what
    /// they make.
    pub fn new() -> SmoothQuant {
        SmoothQuant::default()
    }

    /// The quantization that strengths are chosen for: its grids of weights and activations, with
    /// the full range of each tensor.
    #[must_use]
    pub fn quantization(mut self, config: Config) -> SmoothQuant {
        self.config = config;
        self
    }

    /// One strength for all, from 0 (activations stay) to 1 (weights take all differences); the
    /// paper's is 0.5.
    #[must_use]
    pub fn alpha(mut self, alpha: f64) -> SmoothQuant {
        self.alpha = Some(alpha);
        self
    }

    /// Multiplies what products read by the factors where nothing before takes them.
    #[must_use]
    pub fn with_multiplications(mut self) -> SmoothQuant {
        self.multiply = true;
        self
    }
}

/// Matrix products that read the same channels.
struct Set<'a> {
    layers: Vec<&'a Layer>,
    /// The numbers of the channels' factors; empty where the factors have to stay 1.
    roots: Vec<u32>,
    width: usize,
}

/// The sets of a graph's matrix products.
fn sets<'a>(graph: &Graph, layers: &'a Layers, scales: &Scales) -> Vec<Set<'a>> {
    let mut found: Vec<Set<'_>> = Vec::new();
    for layer in layers.iter() {
        if !matches!(graph.node(layer.node).op(), Op::MatMul(_)) {
            continue;
        }
        let rank = graph.type_of(layer.input).rank();
        let Some(width) = graph.type_of(layer.weight).shape[1 - layer.axis].as_fixed() else {
            continue;
        };
        let roots = scales
            .along(layer.input, rank - 1, width)
            .unwrap_or_default();
        let roots = if roots.contains(&FIXED) {
            Vec::new()
        } else {
            roots
        };
        let same = found.iter_mut().find(|set| match roots.is_empty() {
            true => set.roots.is_empty() && set.layers[0].input == layer.input,
            false => set.roots == roots,
        });
        match same {
            Some(set) => set.layers.push(layer),
            None => found.push(Set {
                layers: vec![layer],
                roots,
                width,
            }),
        }
    }
    found
}

/// The numbers of factors that other weights than those of matrix products divide by.
fn read_otherwise(graph: &Graph, layers: &Layers, scales: &Scales) -> BTreeSet<u32> {
    let products: BTreeSet<ValueId> = layers
        .iter()
        .filter(|l| matches!(graph.node(l.node).op(), Op::MatMul(_)))
        .map(|l| l.weight)
        .collect();
    let mut out = BTreeSet::new();
    for (weight, _) in &scales.readers {
        if products.contains(weight) {
            continue;
        }
        let stored = &scales.stored[weight];
        let over = stored.over.iter().flat_map(|field| &field.labels);
        out.extend(over.map(|&label| scales.root(label)));
    }
    out
}

/// What products read: the largest magnitude of each channel, and some rows.
struct Inputs {
    most: Vec<f64>,
    rows: Vec<f32>,
}

/// The inputs of sets, over the calibration examples.
fn inputs(
    graph: &Graph,
    sets: &[Set<'_>],
    batches: &Batches<'_>,
    seed: u64,
) -> Result<Vec<Inputs>> {
    let mut b = GraphBuilder::extend(graph.clone());
    let mut wanted = Vec::new();
    for (i, set) in sets.iter().enumerate() {
        let x = set.layers[0].input;
        let size = b.abs(x)?;
        let axes: Vec<usize> = (0..b.type_of(x).rank() - 1).collect();
        let most = b.reduce(ReduceOp::Max, size, &axes, false)?;
        wanted.push((format!("most {i}"), most));
        wanted.push((format!("rows {i}"), x));
    }
    let watched = b.into_graph().extract(&wanted, false)?;
    let none = |set: &Set<'_>| Inputs {
        most: vec![0.0; set.width],
        rows: Vec::new(),
    };
    let mut out: Vec<Inputs> = sets.iter().map(none).collect();
    let (quota, stream) = (ROWS.div_ceil(batches.len()), Philox::new(seed));
    let mut batch = 0;
    batches.run(&watched, |_, tensors| {
        for ((pair, set), found) in tensors.chunks(2).zip(sets).zip(&mut out) {
            for (most, v) in found.most.iter_mut().zip(pair[0].to_f64s()) {
                if !v.is_finite() {
                    let what = "a value at calibration is NaN or infinite";
                    let name = graph.value(set.layers[0].input).name().to_string();
                    return Err(Error::new(ErrorKind::Data, what).at(name));
                }
                *most = most.max(v);
            }
            let rows = pair[1].contiguous();
            let rows = rows.as_slice::<f32>()?;
            let count = rows.len() / set.width.max(1);
            let mut chosen = stream.permutation(batch, count);
            chosen.truncate(quota);
            for r in chosen {
                let row = r * set.width..(r + 1) * set.width;
                found.rows.extend(&rows[row]);
            }
        }
        batch += 1;
        Ok(())
    })?;
    Ok(out)
}

/// A tensor with each channel of an axis times a factor.
fn times(tensor: &Tensor, axis: usize, factors: &[f64]) -> Result<Tensor> {
    let inner: usize = tensor.shape()[axis + 1..].iter().product();
    let data = tensor.to_f64s().into_iter().enumerate();
    let data: Vec<f64> = data
        .map(|(i, v)| v * factors[i / inner.max(1) % factors.len()])
        .collect();
    Tensor::from_f64s(tensor.dtype(), tensor.shape(), &data)
}

/// The weights of a set, and the largest magnitude of each channel in them.
fn weights_of(graph: &Graph, set: &Set<'_>) -> Result<(Vec<Tensor>, Vec<f64>)> {
    let mut most = vec![0.0f64; set.width];
    let mut weights = Vec::new();
    for layer in &set.layers {
        let value = graph.value(layer.weight);
        let weight = value.tensor().ok_or_else(|| {
            Error::invalid("a layer's weight is not stored").at(value.name().to_string())
        })?;
        let columns = weight.shape()[1];
        for (i, v) in weight.to_f64s().into_iter().enumerate() {
            let index = [i / columns, i % columns];
            let most = &mut most[index[1 - layer.axis]];
            *most = most.max(v.abs());
        }
        weights.push(weight.clone());
    }
    Ok((weights, most))
}

/// What activations are multiplied by: the inverse of the paper's factor.
fn factors(inputs: &[f64], weights: &[f64], alpha: f64) -> Vec<f64> {
    let channels = inputs.iter().zip(weights);
    channels
        .map(|(x, w)| {
            let factor = w.powf(1.0 - alpha) / x.powf(alpha);
            let usable = *x > 0.0 && *w > 0.0 && factor.is_finite();
            if usable { factor.clamp(1e-5, 1e5) } else { 1.0 }
        })
        .collect()
}

/// The squared error that quantizing makes in what a set makes of rows, as a function of factors.
struct Trial<'a> {
    config: &'a Config,
    layers: Vec<&'a Layer>,
    weights: Vec<Tensor>,
    rows: Tensor,
    sessions: Vec<Box<dyn opt_core::Session>>,
}

impl<'a> Trial<'a> {
    fn new(
        config: &'a Config,
        set: &Set<'a>,
        weights: Vec<Tensor>,
        rows: &[f32],
        batches: &Batches<'_>,
    ) -> Result<Trial<'a>> {
        let rows = Tensor::new([rows.len() / set.width, set.width], rows)?;
        let mut sessions = Vec::new();
        for (layer, weight) in set.layers.iter().zip(&weights) {
            let mut b = GraphBuilder::new("smooth");
            let ty = |t: &Tensor| TensorType::new(DType::F32, t.shape());
            let x = b.constant(rows.clone());
            let w = b.constant(weight.clone());
            let transposed = layer.axis == 0;
            let exact = b.matmul_t(x, w, false, transposed)?;
            let x = b.input("x", ty(&rows))?;
            let w = b.input("w", ty(weight))?;
            let y = b.matmul_t(x, w, false, transposed)?;
            let apart = b.sub(y, exact)?;
            let square = b.mul(apart, apart)?;
            let error = b.sum_all(square)?;
            b.output("error", error)?;
            let spec = opt_core::CompileSpec::new();
            sessions.push(batches.backend.compile(&b.finish()?, &spec)?.session()?);
        }
        Ok(Trial {
            config,
            layers: set.layers.clone(),
            weights,
            rows,
            sessions,
        })
    }

    fn error(&mut self, factors: &[f64]) -> Result<f64> {
        let rounded = |t: &Tensor, params: &QParams| params.dequantize(&params.quantize(t)?);
        let x = times(&self.rows, 1, factors)?;
        let axes = Axes { channel: 0, sum: 1 };
        let x = rounded(&x, &self.config.activations.of_tensor(&x, axes)?)?;
        let inverse: Vec<f64> = factors.iter().map(|f| 1.0 / f).collect();
        let mut sum = 0.0;
        let each = self.layers.iter().zip(&self.weights);
        for ((layer, weight), session) in each.zip(&mut self.sessions) {
            let w = times(weight, 1 - layer.axis, &inverse)?;
            let axes = Axes {
                channel: layer.axis,
                sum: 1 - layer.axis,
            };
            let w = rounded(&w, &self.config.weights.of_tensor(&w, axes)?)?;
            sum += session.run(&[x.clone(), w])?[0].item()?;
        }
        Ok(sum)
    }
}

impl Pass for SmoothQuant {
    fn name(&self) -> &str {
        "smooth_quant"
    }

    fn config(&self) -> String {
        let alpha = self
            .alpha
            .map_or(String::new(), |a| format!("alpha = {a}\n"));
        format!(
            "{alpha}with_multiplications = {}\n{}",
            self.multiply,
            self.config.to_toml()
        )
    }

    fn needs(&self) -> Needs {
        Needs::CALIBRATION
    }

    fn preserves(&self) -> Preserves {
        Preserves::AllBut(vec![FactKind::Grid, FactKind::Codebook])
    }

    fn apply(&self, graph: Graph, cx: &mut Context<'_>) -> Result<(Graph, Report)> {
        if let Some(alpha) = self.alpha.filter(|a| !(0.0..=1.0).contains(a)) {
            return Err(Error::invalid(format!(
                "a strength of {alpha}; it is from 0 to 1"
            )));
        }
        let (graph, _) = FoldBatchNorm::fold(graph)?;
        let data = cx.calibration().or_else(|e| cx.training().map_err(|_| e))?;
        let batches = Batches::new(data, cx.backend()?, &self.config.calibration)?;
        let (layers, scales) = (Layers::of(&graph), Scales::of(&graph));
        let others = read_otherwise(&graph, &layers, &scales);
        let mut report = Report::default();
        let mut kept = Vec::new();
        for set in sets(&graph, &layers, &scales) {
            let folds = !set.roots.is_empty() && set.roots.iter().all(|r| !others.contains(r));
            if folds || (self.multiply && set.roots.is_empty()) {
                kept.push(set);
            } else {
                for layer in &set.layers {
                    let name = graph.value(layer.weight).name();
                    report = report.note(format!("{name}: nothing before it takes factors"));
                }
            }
        }
        if kept.is_empty() {
            return Err(Error::new(
                ErrorKind::NoEffect,
                "nothing before a matrix product takes factors; see `with_multiplications`",
            ));
        }
        let found = inputs(&graph, &kept, &batches, cx.seed())?;
        let mut moved = vec![1.0; scales.bound()];
        let mut multiplied: BTreeMap<ValueId, Vec<f64>> = BTreeMap::new();
        for (set, inputs) in kept.iter().zip(found) {
            let place = || graph.value(set.layers[0].weight).name().to_string();
            let (weights, most) = weights_of(&graph, set).at(place)?;
            let alpha = match self.alpha {
                Some(alpha) => alpha,
                None => {
                    let mut trial =
                        Trial::new(&self.config, set, weights, &inputs.rows, &batches).at(place)?;
                    let mut best = (f64::INFINITY, 0.0);
                    for k in 0..=TRIALS {
                        let alpha = k as f64 / TRIALS as f64;
                        let error = trial
                            .error(&factors(&inputs.most, &most, alpha))
                            .at(place)?;
                        if error < best.0 {
                            best = (error, alpha);
                        }
                    }
                    // Leaving everything as it is has to be beaten.
                    let plain = trial.error(&vec![1.0; set.width]).at(place)?;
                    if plain <= best.0 {
                        report = report.note(format!("{}: best as it is", place()));
                        continue;
                    }
                    best.1
                }
            };
            report = report.figure(format!("alpha of {}", place()), alpha);
            report.changed += set.layers.len();
            let factors = factors(&inputs.most, &most, alpha);
            if set.roots.is_empty() {
                multiplied.insert(set.layers[0].input, factors);
                continue;
            }
            // Channels with one factor between them get the geometric mean of theirs.
            let mut shared: BTreeMap<u32, (f64, usize)> = BTreeMap::new();
            for (&root, factor) in set.roots.iter().zip(&factors) {
                let entry = shared.entry(root).or_default();
                *entry = (entry.0 + factor.ln(), entry.1 + 1);
            }
            for (root, (sum, count)) in shared {
                moved[root as usize] = (sum / count as f64).exp();
            }
        }
        if report.changed == 0 && self.alpha.is_some() {
            return Err(Error::new(ErrorKind::NoEffect, "no product was smoothed"));
        }
        let smooth = scales.apply(graph.clone(), &moved)?;
        let mut patch = GraphPatch::new(smooth);
        for set in kept.iter().filter(|set| set.roots.is_empty()) {
            let Some(factors) = multiplied.get(&set.layers[0].input) else {
                continue;
            };
            let by = Tensor::from_f64s(DType::F32, [set.width], factors)?;
            let inverse: Vec<f64> = by.to_f64s().iter().map(|f| 1.0 / f).collect();
            let by = patch.named_constant("smooth", by);
            let x = patch.mul(set.layers[0].input, by)?;
            for layer in &set.layers {
                patch.rewire(layer.node, 0, x)?;
                let weight = patch.graph().value(layer.weight).tensor().cloned();
                let weight = weight.ok_or_else(|| Error::invalid("a weight is not stored"))?;
                let weight = times(&weight, 1 - layer.axis, &inverse)?;
                patch.graph_mut().set_content(layer.weight, weight)?;
            }
        }
        Ok((patch.finish()?, report))
    }
}
