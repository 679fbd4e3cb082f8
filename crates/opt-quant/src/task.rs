//! Weights as the methods see them, and back.

use opt_core::ops::Op;
use opt_core::tensor::MiniFloat;
use opt_core::{DType, Graph, NodeId, Result, ResultExt, Tensor, ValueId};

use crate::grid::{Codes, Grid, Levels, Scales, Weight};
use crate::layout::{Axes, Layout};
use crate::params::usable;
use crate::quantized::{NF4, QuantizedTensor};
use crate::scheme::{Format, Granularity, Scheme};
use crate::stored::Stored;

/// A weight to be quantized, and who reads it.
#[derive(Debug)]
pub(crate) struct Task {
    pub(crate) name: String,
    pub(crate) value: ValueId,
    /// The layers that read it, one at least.
    pub(crate) nodes: Vec<NodeId>,
    pub(crate) weight: Weight,
    axes: Axes,
    scheme: Scheme,
    /// Of the codes; a convolution's weight with groups has two axes.
    shape: Vec<usize>,
    half_scales: bool,
}

impl Task {
    /// The weight of some layers, the first of which decides about its scheme; `None` where methods
    /// have nothing to find: embeddings, one scale a tensor, no scale at all.
    ///
    /// # Errors
    /// [`ErrorKind::Data`](opt_core::ErrorKind::Data) if it holds NaN or infinities.
    pub(crate) fn of(graph: &Graph, layers: &[Stored], half_scales: bool) -> Result<Option<Task>> {
        let first = &layers[0];
        let product = |l: &&Stored| {
            let op = graph.node(l.node).op();
            matches!(op, Op::MatMul(_) | Op::Conv(_)) && l.axes == first.axes
        };
        let nodes: Vec<NodeId> = layers.iter().filter(product).map(|l| l.node).collect();
        match nodes.is_empty() {
            true => Ok(None),
            false => Task::new(graph, first, nodes, half_scales),
        }
    }

    /// The codes of an embedding rounded to nearest with scales in 16 bits; `None` where there are
    /// no `f32` scales to shorten.
    pub(crate) fn embedding(graph: &Graph, table: &Stored) -> Result<Option<QuantizedTensor>> {
        let looked_up = matches!(graph.node(table.node).op(), Op::Gather(_));
        if !looked_up || !has_singles(&table.scheme) {
            return Ok(None);
        }
        let Some(task) = Task::new(graph, table, vec![table.node], true)? else {
            return Ok(None);
        };
        let codes = task.weight.nearest(|_, row| task.weight.grid.fit(row));
        task.assemble(&codes).map(Some)
    }

    fn new(
        graph: &Graph,
        first: &Stored,
        nodes: Vec<NodeId>,
        half_scales: bool,
    ) -> Result<Option<Task>> {
        let (scheme, axes) = (first.scheme, first.axes);
        if scheme.granularity() == Granularity::Tensor {
            return Ok(None);
        }
        let value = graph.value(first.weight);
        let content = value.tensor().expect("found as stored");
        if content.is_empty() {
            return Ok(None);
        }
        let name = value.name().to_string();
        let sizes = content.shape();
        let rows = sizes[axes.channel];
        let columns = content.len() / rows.max(1);
        let grouped = scheme.group_size().is_some() && sizes.len() > 2;
        let shape = match grouped {
            true => vec![rows, columns],
            false => sizes.to_vec(),
        };
        let data = match axes.channel {
            0 => content.to_f64s(),
            _ => content.transpose(&[1, 0])?.to_f64s(),
        };
        let half_scales = half_scales && has_singles(&scheme);
        let grid = grid(&scheme, &data, half_scales)?;
        let group = scheme.group_size().unwrap_or(columns);
        Ok(Some(Task {
            weight: Weight::new(columns, data, grid, group).at(|| name.clone())?,
            value: first.weight,
            name,
            nodes,
            axes,
            scheme,
            shape,
            half_scales,
        }))
    }

    /// The input of the first reader.
    pub(crate) fn input(&self, graph: &Graph) -> ValueId {
        graph.node(self.nodes[0]).inputs()[0]
    }

    /// `[rows, columns]` in a shape with the axes of the weight.
    fn placed(&self, rows: &[f64], shape: &[usize], dtype: DType) -> Result<Tensor> {
        match self.axes.channel {
            0 => Tensor::from_f64s(dtype, shape, rows),
            _ => {
                let wide = shape[0];
                let tall = rows.len() / wide.max(1);
                let turned: Vec<f64> = (0..rows.len())
                    .map(|i| rows[i % tall * wide + i / tall])
                    .collect();
                Tensor::from_f64s(dtype, shape, &turned)
            }
        }
    }

    /// The weight before it is quantized, as the content of this shape.
    pub(crate) fn float(&self, shape: &[usize]) -> Result<Tensor> {
        self.placed(&self.weight.data, shape, DType::F32)
    }

    /// What the codes stand for, as the content of the weight of this shape.
    pub(crate) fn content(&self, codes: &Codes, shape: &[usize]) -> Result<Tensor> {
        self.placed(&self.weight.values(codes), shape, DType::F32)
    }

    /// The codes as a tensor of the scheme.
    pub(crate) fn assemble(&self, codes: &Codes) -> Result<QuantizedTensor> {
        let layout = Layout::of(&self.scheme, &self.shape, self.axes)?;
        let scale_shape = layout.scale_shape(&self.shape);
        let integers = matches!(self.scheme.format(), Format::Int(_));
        let levels: Vec<f64> = codes.codes.iter().map(|&c| f64::from(c)).collect();
        let dtype = self.scheme.dtype();
        let stored = match integers {
            true => self.placed(&levels, &self.shape, dtype)?,
            false => {
                let table = table(&self.scheme);
                let places = self.placed(&levels, &self.shape, DType::U8)?;
                let places = places.to_f64s().into_iter();
                let found: Vec<u8> = places.map(|p| table[p as usize].1).collect();
                Tensor::from_codes(dtype, &self.shape, &found)?
            }
        };
        let (whole, scale_dtype) = match (self.scheme.format(), self.weight.grid.scales) {
            (Format::NvFp4, Scales::Shared { whole, .. }) => (whole, DType::F8E4M3),
            (Format::Mx(_), _) => (1.0, DType::F8E8M0),
            _ if self.half_scales => (1.0, DType::F16),
            _ => (1.0, DType::F32),
        };
        let nvfp4 = self.scheme.format() == Format::NvFp4;
        let steps = codes.steps.iter();
        let scales: Vec<f64> = steps.clone().map(|s| f64::from(s.scale / whole)).collect();
        let zeros: Vec<f64> = steps.map(|s| f64::from(s.zero)).collect();
        let kept = integers && (!self.scheme.is_symmetric() || zeros.iter().any(|&z| z != 0.0));
        let zeros = kept.then(|| self.placed(&zeros, &scale_shape, dtype));
        // A scale a channel has no other axis.
        let scales = self.placed(&scales, &scale_shape, scale_dtype)?;
        Ok(QuantizedTensor {
            scheme: self.scheme,
            codes: stored,
            scales: Some(scales),
            zero_points: zeros.transpose()?,
            tensor_scale: nvfp4.then(|| Tensor::scalar(whole)),
            axis: layout.axis,
            block: layout.block,
        })
    }
}

/// Whether the scales of a format are `f32`.
fn has_singles(scheme: &Scheme) -> bool {
    matches!(
        scheme.format(),
        Format::Int(_) | Format::Float(_) | Format::Nf4
    )
}

/// The levels of a format that is none of integers, ascending, with their codes.
fn table(scheme: &Scheme) -> Vec<(f32, u8)> {
    let Some(format) = scheme.minifloat() else {
        return NF4.into_iter().zip(0..).collect();
    };
    let codes = 0..=u8::MAX >> (8 - scheme.dtype().bits());
    let levels = codes.map(|code| (format.decode(code), code));
    let mut levels: Vec<(f32, u8)> = levels.filter(|l| l.0.is_finite()).collect();
    // Stable: of the two zeros the positive one comes first.
    levels.sort_by(|a, b| a.0.partial_cmp(&b.0).expect("finite"));
    levels.dedup_by(|a, b| a.0 == b.0);
    levels
}

fn grid(scheme: &Scheme, data: &[f64], half_scales: bool) -> Result<Grid> {
    let levels = match scheme.format() {
        Format::Int(_) => {
            let (low, high) = scheme.grid()?;
            Grid::integers(low, high, scheme.is_symmetric()).levels
        }
        _ => Levels::Table(table(scheme).into_iter().map(|l| l.0).collect()),
    };
    let scales = match scheme.format() {
        Format::Mx(dtype) => {
            Scales::PowerOfTwo(MiniFloat::of(dtype).map_or(0, MiniFloat::max_exponent))
        }
        Format::NvFp4 => {
            let largest = data.iter().fold(0f64, |m, v| m.max(v.abs()));
            let scale = MiniFloat::of(DType::F8E4M3).map_or(1.0, MiniFloat::max);
            let element = scheme.minifloat().map_or(1.0, MiniFloat::max);
            Scales::Shared {
                whole: usable(largest / (f64::from(scale) * f64::from(element))),
                dtype: DType::F8E4M3,
            }
        }
        _ if half_scales => Scales::Shared {
            whole: 1.0,
            dtype: DType::F16,
        },
        _ => Scales::F32,
    };
    Ok(Grid { levels, scales })
}
