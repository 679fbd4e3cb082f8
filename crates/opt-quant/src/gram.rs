//! Gram matrices `X^T X` of what layers read, from examples.

use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use opt_core::backend::{CompileSpec, bindings_of};
use opt_core::data::Dataset;
use opt_core::graph::Bindings;
use opt_core::ops::{Op, Window};
use opt_core::{
    Backend, DType, Error, ErrorKind, Graph, GraphBuilder, NodeId, Result, ResultExt, Session,
    Tensor, ValueId,
};

use crate::cholesky::{View, add_product, dot};

/// Which calibration examples a method looks at, and which of their rows.
///
/// ```
/// use opt_quant::Samples;
///
/// let samples = Samples::new().batch_size(8).max_examples(512).mask("attention_mask");
/// # let _ = samples;
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Samples {
    batch_size: usize,
    max_examples: usize,
    mask: Option<String>,
}

impl Default for Samples {
    fn default() -> Samples {
        Samples::new()
    }
}

impl Samples {
    /// The first 1024 examples, 32 at a time; all rows count.
    pub fn new() -> Samples {
        Samples {
            batch_size: 32,
            max_examples: 1024,
            mask: None,
        }
    }

    /// Examples at a time.
    #[must_use]
    pub fn batch_size(mut self, examples: usize) -> Samples {
        self.batch_size = examples;
        self
    }

    /// The most examples to look at, from the start of the data set.
    #[must_use]
    pub fn max_examples(mut self, count: usize) -> Samples {
        self.max_examples = count;
        self
    }

    /// The graph input, `[batch, tokens]`, that is 0 where a token is padding: such tokens do not
    /// count where a layer reads rows `[batch, tokens, ..]`. Without a mask they count as others.
    #[must_use]
    pub fn mask(mut self, input: impl Into<String>) -> Samples {
        self.mask = Some(input.into());
        self
    }

    /// Fails if there is a mask that decided about no rows.
    pub(crate) fn check(&self, masked: bool) -> Result<()> {
        match (&self.mask, masked) {
            (Some(name), false) => Err(Error::new(
                ErrorKind::NoEffect,
                format!("no layer reads rows with the axes of the mask `{name}`"),
            )),
            _ => Ok(()),
        }
    }

    /// As keys of TOML's inline tables.
    pub(crate) fn config(&self) -> String {
        let Samples {
            batch_size,
            max_examples,
            mask,
        } = self;
        let mask = mask.as_ref().map(|m| format!(", mask = {m:?}"));
        let mask = mask.unwrap_or_default();
        format!("batch_size = {batch_size}, max_examples = {max_examples}{mask}")
    }
}

/// What is known of a layer's input, over all rows `x` that it was shown: `H = sum x x^T` and the
/// sums of absolute values. A row is a token of a matrix product, or a patch of a convolution in
/// the order of its weight, `[channels / groups, kernel..]`; a convolution with groups has a
/// matrix for each.
#[derive(Debug, Clone)]
pub(crate) struct Gram {
    size: usize,
    rows: u64,
    /// Whether the mask said which rows count.
    masked: bool,
    products: Vec<f64>,
    magnitudes: Vec<f64>,
}

impl Gram {
    fn zeros(groups: usize, size: usize) -> Gram {
        Gram {
            size,
            rows: 0,
            masked: false,
            products: vec![0.0; groups * size * size],
            magnitudes: vec![0.0; groups * size],
        }
    }

    /// Of rows that are there, one group.
    #[cfg(test)]
    pub(crate) fn of_rows(rows: &[f64], size: usize) -> Gram {
        let mut out = Gram::zeros(1, size);
        for row in rows.chunks(size) {
            out.rows += 1;
            add_all(&mut out.magnitudes, row.iter().map(|v| v.abs()));
            let pairs = row.iter().flat_map(|a| row.iter().map(move |b| a * b));
            add_all(&mut out.products, pairs);
        }
        out
    }

    /// Entries of a row.
    pub(crate) fn size(&self) -> usize {
        self.size
    }

    /// The number of matrices.
    pub(crate) fn groups(&self) -> usize {
        self.magnitudes.len() / self.size.max(1)
    }

    /// How many rows were added up.
    pub(crate) fn rows(&self) -> u64 {
        self.rows
    }

    /// Whether the mask said which rows count.
    pub(crate) fn masked(&self) -> bool {
        self.masked
    }

    /// The matrix of a group, row-major.
    pub(crate) fn matrix(&self, group: usize) -> &[f64] {
        let area = self.size * self.size;
        &self.products[group * area..][..area]
    }

    /// The mean absolute value of each entry of the rows of a group.
    pub(crate) fn mean_magnitudes(&self, group: usize) -> Vec<f64> {
        let sums = &self.magnitudes[group * self.size..][..self.size];
        sums.iter().map(|s| s / self.rows.max(1) as f64).collect()
    }

    /// Adds what another layer with the same weight reads.
    ///
    /// # Errors
    /// If its rows have another size.
    pub(crate) fn add(&mut self, other: &Gram) -> Result<()> {
        if (self.size, self.groups()) != (other.size, other.groups()) {
            return Err(Error::shape(format!(
                "inputs of {} groups of {} entries and of {} of {}",
                self.groups(),
                self.size,
                other.groups(),
                other.size
            )));
        }
        self.rows += other.rows;
        self.masked |= other.masked;
        add_all(&mut self.products, other.products.iter().copied());
        add_all(&mut self.magnitudes, other.magnitudes.iter().copied());
        Ok(())
    }

    /// The same of a layer input whose entries are divided by numbers; of the first group.
    pub(crate) fn divided(&self, by: &[f64]) -> Gram {
        let n = self.size;
        let area = self.products[..n * n].iter().enumerate();
        let products = area.map(|(i, p)| p / (by[i / n] * by[i % n])).collect();
        let magnitudes = self.magnitudes.iter().zip(by).map(|(m, s)| m / s);
        Gram {
            size: n,
            rows: self.rows,
            masked: self.masked,
            products,
            magnitudes: magnitudes.collect(),
        }
    }

    /// `d H d^T` of each row of `delta`, `[rows, size]`: the squared error of an output whose
    /// weights are wrong by `d`, summed over all that was seen.
    pub(crate) fn errors(&self, group: usize, delta: &[f64]) -> Vec<f64> {
        let n = self.size;
        let mut product = vec![0.0; delta.len()];
        let (d, h) = (View::new(delta, n), View::new(self.matrix(group), n));
        add_product(&mut product, n, 0..n, 1.0, d, h, n);
        let rows = delta.chunks(n.max(1)).zip(product.chunks(n.max(1)));
        rows.map(|(d, p)| dot(d, p).max(0.0)).collect()
    }
}

fn add_all(sums: &mut [f64], values: impl Iterator<Item = f64>) {
    sums.iter_mut().zip(values).for_each(|(s, v)| *s += v);
}

/// What a layer reads; layers that read the same share a Gram matrix.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
enum Source {
    Rows(ValueId),
    Patches {
        input: ValueId,
        window: Window,
        groups: usize,
        kernel: Vec<usize>,
    },
}

impl Source {
    fn of(graph: &Graph, id: NodeId) -> Result<Source> {
        let node = graph.node(id);
        let input = node.inputs()[0];
        match node.op() {
            Op::MatMul(op) if !op.trans_a => Ok(Source::Rows(input)),
            Op::Conv(op) => {
                let weight = graph.type_of(node.inputs()[1]);
                let kernel = weight.shape.dims()[2..].iter().map(|d| d.fixed());
                Ok(Source::Patches {
                    input,
                    window: op.window.clone(),
                    groups: op.groups,
                    kernel: kernel.collect::<Result<_>>()?,
                })
            }
            other => Err(Error::new(
                ErrorKind::Unsupported,
                format!("no rows of inputs are known of {}", other.name()),
            )
            .at(node.name().to_string())),
        }
    }

    fn input(&self) -> ValueId {
        match self {
            Source::Rows(input) | Source::Patches { input, .. } => *input,
        }
    }

    /// Groups, and entries of a row.
    fn sizes(&self, graph: &Graph) -> Result<(usize, usize)> {
        let shape = &graph.type_of(self.input()).shape;
        match self {
            Source::Rows(_) => Ok((1, shape.dims().last().map_or(Ok(1), |d| d.fixed())?)),
            Source::Patches { groups, kernel, .. } => {
                let channels = shape[1].fixed()?;
                Ok((
                    *groups,
                    channels / groups * kernel.iter().product::<usize>(),
                ))
            }
        }
    }

    /// Adds the nodes that compute the Gram matrix `[groups, size, size]` (without the first axis
    /// for a matrix product) and the sums of magnitudes. Every size is bound.
    fn emit(&self, b: &mut GraphBuilder, mask: Option<ValueId>) -> Result<Emitted> {
        let dims = fixed(b, self.input())?;
        let (groups, size) = self.sizes(b.graph())?;
        match self {
            Source::Rows(input) => {
                let rows: usize = dims[..dims.len() - 1].iter().product();
                let mut x = b.reshape(*input, [rows, size])?;
                let mut masked = false;
                if let Some(mask) = mask {
                    let of = fixed(b, mask)?;
                    let flat = dims.len() == 2 && of.iter().product::<usize>() == rows;
                    masked = flat || of == dims[..dims.len() - 1];
                    if masked {
                        let dtype = b.type_of(x).dtype;
                        let keep = b.cast(mask, DType::Bool)?;
                        let keep = b.cast(keep, dtype)?;
                        let keep = b.reshape(keep, [rows, 1])?;
                        x = b.mul(x, keep)?;
                    }
                }
                let magnitudes = b.abs(x)?;
                Ok(Emitted {
                    products: b.matmul_t(x, x, true, false)?,
                    magnitudes: b.sum(magnitudes, &[0], false)?,
                    rows: if masked { None } else { Some(rows) },
                })
            }
            Source::Patches {
                input,
                window,
                kernel,
                ..
            } => {
                // A kernel with a single one picks the entry at its place: all places, as channels.
                let (channels, area) = (dims[1], kernel.iter().product::<usize>());
                let mut shape = vec![channels * area, 1];
                shape.extend(kernel);
                let ones: Vec<f32> = (0..channels * area * area)
                    .map(|i| f32::from(u8::from(i / area % area == i % area)))
                    .collect();
                let dtype = b.type_of(*input).dtype;
                let ones = b.constant(Tensor::new(shape, ones)?.cast(dtype));
                let patches = b.conv(*input, ones, None, window.clone(), channels)?;
                let out = fixed(b, patches)?;
                let places: usize = out[2..].iter().product();
                let x = b.reshape(patches, [out[0], groups, size, places])?;
                let x = b.transpose(x, &[1, 2, 0, 3])?;
                let x = b.reshape(x, [groups, size, out[0] * places])?;
                let magnitudes = b.abs(x)?;
                Ok(Emitted {
                    products: b.matmul_t(x, x, false, true)?,
                    magnitudes: b.sum(magnitudes, &[2], false)?,
                    rows: Some(out[0] * places),
                })
            }
        }
    }
}

fn fixed(b: &GraphBuilder, v: ValueId) -> Result<Vec<usize>> {
    let dims = b.type_of(v).shape.dims();
    dims.iter().map(|d| d.fixed()).collect()
}

/// Nodes of a Gram matrix. `rows` is none where the mask says how many there are.
struct Emitted {
    products: ValueId,
    magnitudes: ValueId,
    rows: Option<usize>,
}

/// A graph with sums for outputs, compiled for the sizes of a batch.
struct Compiled {
    session: Box<dyn Session>,
    rows: Vec<Option<usize>>,
}

fn compile(
    graph: &Graph,
    bindings: &Bindings,
    sources: &[Source],
    mask: Option<ValueId>,
    backend: &dyn Backend,
) -> Result<Compiled> {
    let bound = graph.bind(bindings)?;
    let names: Vec<String> = sources
        .iter()
        .map(|s| graph.value(s.input()).name().to_string())
        .collect();
    let mut b = GraphBuilder::extend(bound);
    let mut emitted = Vec::new();
    for (source, name) in sources.iter().zip(&names) {
        emitted.push(source.emit(&mut b, mask).at(|| name.clone())?);
    }
    b.clear_outputs();
    for (i, e) in emitted.iter().enumerate() {
        b.output(&format!("products {i}"), e.products)?;
        b.output(&format!("magnitudes {i}"), e.magnitudes)?;
    }
    let session = backend
        .compile(&b.finish()?, &CompileSpec::new())?
        .session()?;
    Ok(Compiled {
        session,
        rows: emitted.iter().map(|e| e.rows).collect(),
    })
}

/// The Gram matrix of what each layer reads. A batch's sums are made by the backend, in the
/// input's dtype; they are added up in `f64`, so that memory does not grow with the examples.
///
/// With a mask, rows of matrix products whose axes are the mask's count where the mask is not 0;
/// others count all.
///
/// Examples may have more fields (targets) after the graph's inputs.
///
/// # Errors
/// [`ErrorKind::Data`] if there are no examples, or a layer's input is NaN or infinite, at the
/// input's name.
pub(crate) fn gather(
    graph: &Graph,
    layers: &[NodeId],
    data: &dyn Dataset,
    backend: &dyn Backend,
    options: &Samples,
) -> Result<Vec<Arc<Gram>>> {
    let count = data.len().min(options.max_examples);
    if count == 0 || options.batch_size == 0 {
        return Err(Error::new(ErrorKind::Data, "no examples to calibrate on"));
    }
    let mut sources: Vec<Source> = Vec::new();
    let mut known: HashMap<Source, usize> = HashMap::new();
    let mut places = Vec::new();
    for &layer in layers {
        let source = Source::of(graph, layer)?;
        let next = sources.len();
        let place = *known.entry(source.clone()).or_insert(next);
        if place == next {
            sources.push(source);
        }
        places.push(place);
    }
    let mut grams = Vec::new();
    for source in &sources {
        let (groups, size) = source.sizes(graph)?;
        grams.push(Gram::zeros(groups, size));
    }
    let outputs: Vec<(String, ValueId)> = sources
        .iter()
        .enumerate()
        .map(|(i, s)| (i.to_string(), s.input()))
        .collect();
    let watched = graph.extract(&outputs, false)?;
    let mask = options.mask.as_deref().map(|name| mask_of(&watched, name));
    let mask = mask.transpose()?;
    let mut compiled: BTreeMap<Bindings, Compiled> = BTreeMap::new();
    let indices: Vec<usize> = (0..count).collect();
    for batch in indices.chunks(options.batch_size) {
        let mut fields = data.batch(batch)?;
        fields.truncate(watched.inputs().len());
        let bindings = bindings_of(&watched, &fields)?;
        let kept = mask.map(|(place, _)| {
            let entries = fields[place].to_f64s();
            entries.into_iter().filter(|&v| v != 0.0).count()
        });
        let found = match compiled.entry(bindings) {
            Entry::Occupied(e) => e.into_mut(),
            Entry::Vacant(e) => {
                let value = mask.map(|(_, value)| value);
                let new = compile(&watched, e.key(), &sources, value, backend)?;
                e.insert(new)
            }
        };
        let results = found.session.run(&fields)?;
        for (i, (gram, parts)) in grams.iter_mut().zip(results.chunks(2)).enumerate() {
            if !parts.iter().all(Tensor::is_finite) {
                let error = Error::new(ErrorKind::Data, "a layer's input holds NaN or infinity");
                return Err(error.at(graph.value(sources[i].input()).name().to_string()));
            }
            gram.masked |= found.rows[i].is_none();
            gram.rows += found.rows[i].or(kept).unwrap_or(0) as u64;
            add_all(&mut gram.products, parts[0].to_f64s().into_iter());
            add_all(&mut gram.magnitudes, parts[1].to_f64s().into_iter());
        }
    }
    let grams: Vec<Arc<Gram>> = grams.into_iter().map(Arc::new).collect();
    Ok(places.into_iter().map(|i| grams[i].clone()).collect())
}

/// The place of the mask among the graph's inputs, and its value.
fn mask_of(graph: &Graph, name: &str) -> Result<(usize, ValueId)> {
    let mut inputs = graph.inputs().iter().enumerate();
    match inputs.find(|&(_, &v)| graph.value(v).name() == name) {
        Some((i, &v)) => Ok((i, v)),
        None => Err(Error::invalid(format!(
            "the mask `{name}` is none of the graph's inputs {:?}",
            graph
                .inputs()
                .iter()
                .map(|&v| graph.value(v).name())
                .collect::<Vec<_>>()
        ))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use opt_core::random::Philox;
    use opt_core::{Dim, Shape, TensorType};
    use opt_data::TensorDataset;
    use opt_ndarray::NdarrayBackend;

    fn random(shape: &[usize], seed: u64) -> Tensor {
        let random = Philox::new(seed);
        let count = shape.iter().product::<usize>() as u64;
        let data: Vec<f32> = (0..count).map(|i| random.normal(0, i) as f32).collect();
        Tensor::new(shape, data).unwrap()
    }

    fn options(batch_size: usize) -> Samples {
        Samples::new().batch_size(batch_size)
    }

    /// Sums over rows, one after the other.
    fn naive(rows: &[Vec<f64>]) -> (Vec<f64>, Vec<f64>) {
        let n = rows[0].len();
        let (mut products, mut magnitudes) = (vec![0.0; n * n], vec![0.0; n]);
        for row in rows {
            for i in 0..n {
                magnitudes[i] += row[i].abs();
                for j in 0..n {
                    products[i * n + j] += row[i] * row[j];
                }
            }
        }
        (products, magnitudes)
    }

    fn close(a: &[f64], b: &[f64]) {
        assert_eq!(a.len(), b.len());
        for (x, y) in a.iter().zip(b) {
            assert!((x - y).abs() <= 1e-5 * (1.0 + y.abs()), "{x} {y}");
        }
    }

    fn layers(graph: &Graph) -> Vec<NodeId> {
        let wanted = |op: &Op| matches!(op, Op::Conv(_) | Op::MatMul(_));
        graph
            .nodes()
            .filter(|(_, n)| wanted(n.op()))
            .map(|(id, _)| id)
            .collect()
    }

    #[test]
    fn tokens_that_the_mask_hides_do_not_count() {
        let mut b = GraphBuilder::new("net");
        let lead = |n: &[Dim]| n.iter().cloned().collect::<Shape>();
        let (batch, time) = (Dim::from("batch"), Dim::from("time"));
        let mask = lead(&[batch.clone(), time.clone()]);
        let mask = b.input("mask", TensorType::new(DType::I64, mask)).unwrap();
        let x = lead(&[batch, time, 3.into()]);
        let x = b.input("x", TensorType::new(DType::F32, x)).unwrap();
        for (i, width) in [2, 4].into_iter().enumerate() {
            let w = b
                .variable(&format!("w{i}"), random(&[3, width], 5))
                .unwrap();
            let y = b.matmul(x, w).unwrap();
            b.output(&format!("y{i}"), y).unwrap();
        }
        let _ = mask;
        let graph = b.finish().unwrap();
        let content = random(&[5, 4, 3], 1);
        let keep: Vec<i64> = (0..20).map(|i| i64::from(i % 4 < 2 + i / 10)).collect();
        let masks = Tensor::new([5, 4], keep.clone()).unwrap();
        let data = TensorDataset::new(vec![masks, content.clone()]).unwrap();
        let backend = NdarrayBackend::new();
        let rows: Vec<Vec<f64>> = content.to_f64s().chunks(3).map(<[f64]>::to_vec).collect();
        let run = |options: &Samples| gather(&graph, &layers(&graph), &data, &backend, options);

        let all = run(&options(2)).unwrap();
        assert!(Arc::ptr_eq(&all[0], &all[1]), "one input, one matrix");
        let (products, magnitudes) = naive(&rows);
        close(all[0].matrix(0), &products);
        close(
            &all[0].mean_magnitudes(0),
            &magnitudes.iter().map(|m| m / 20.0).collect::<Vec<_>>(),
        );
        assert_eq!((all[0].rows(), all[0].size(), all[0].groups()), (20, 3, 1));

        let kept: Vec<Vec<f64>> = rows
            .into_iter()
            .zip(&keep)
            .filter(|(_, k)| **k != 0)
            .map(|(r, _)| r)
            .collect();
        let some = run(&options(2).mask("mask")).unwrap();
        close(some[0].matrix(0), &naive(&kept).0);
        assert_eq!(some[0].rows(), kept.len() as u64);

        let error = run(&options(2).mask("no")).unwrap_err();
        assert!(error.to_string().contains("[\"mask\", \"x\"]"), "{error}");
    }

    #[test]
    fn patches_are_those_that_the_convolution_multiplies() {
        for groups in [1, 2, 4] {
            let mut b = GraphBuilder::new("net");
            let shape: Shape = [Dim::from("batch"), 4.into(), 6.into(), 5.into()]
                .into_iter()
                .collect();
            let x = b.input("x", TensorType::new(DType::F32, shape)).unwrap();
            let weight = random(&[8, 4 / groups, 3, 2], 7);
            let w = b.variable("w", weight.clone()).unwrap();
            let mut window = Window::new(2).stride(2).pad(1);
            window.dilations[0] = 2;
            let y = b.conv(x, w, None, window, groups).unwrap();
            b.output("y", y).unwrap();
            let graph = b.finish().unwrap();
            let content = random(&[3, 4, 6, 5], 2);
            let data = TensorDataset::new(vec![content.clone()]).unwrap();
            let backend = NdarrayBackend::new();
            let grams = gather(&graph, &layers(&graph), &data, &backend, &options(2)).unwrap();
            let size = 4 / groups * 6;
            assert_eq!((grams[0].size(), grams[0].groups()), (size, groups));
            // The squares of the outputs are those of the weights against the matrix.
            let out = backend.run_once(&graph, &[content]).unwrap().remove(0);
            let [_, _, h, wd] = *out.shape() else {
                panic!()
            };
            assert_eq!(grams[0].rows(), (3 * h * wd) as u64);
            let channels = out.transpose(&[1, 0, 2, 3]).unwrap().to_f64s();
            let weights = weight.to_f64s();
            for (c, values) in channels.chunks(3 * h * wd).enumerate() {
                let row = &weights[c * size..(c + 1) * size];
                let found = grams[0].errors(c / (8 / groups), row)[0];
                close(&[found], &[values.iter().map(|v| v * v).sum()]);
            }
        }
    }

    #[test]
    fn bad_examples_are_named() {
        let mut b = GraphBuilder::new("net");
        let shape: Shape = [Dim::from("batch"), 2.into()].into_iter().collect();
        let x = b.input("x", TensorType::new(DType::F32, shape)).unwrap();
        let w = b.variable("w", random(&[2, 2], 7)).unwrap();
        let x = b.mul(x, x).unwrap();
        let name = b.graph().value(x).name().to_string();
        let y = b.matmul(x, w).unwrap();
        b.output("y", y).unwrap();
        let graph = b.finish().unwrap();
        let data =
            TensorDataset::new(vec![Tensor::full(DType::F32, [3, 2], 1e30).unwrap()]).unwrap();
        let backend = NdarrayBackend::new();
        let run = |o: &Samples| gather(&graph, &layers(&graph), &data, &backend, o).unwrap_err();
        let error = run(&options(2));
        assert_eq!(error.kind(), ErrorKind::Data);
        assert!(error.to_string().contains(&name), "{error}");
        assert_eq!(run(&options(0)).kind(), ErrorKind::Data);
    }
}
