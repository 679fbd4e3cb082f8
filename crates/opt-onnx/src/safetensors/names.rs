//! What a graph's tensors are called and how they are laid out in a file.

use opt_core::{Error, Result, Tensor};
use regex::Regex;

/// A kind of recurrent layer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Recurrent {
    /// [`Lstm`](opt_core::nn::Lstm); PyTorch's gates are input, forget, cell, output.
    Lstm,
    /// [`Gru`](opt_core::nn::Gru); PyTorch's gates are reset, update, new.
    Gru,
}

impl Recurrent {
    /// Which of PyTorch's gates stands at each place of the graph's layout (ONNX's).
    fn gates(self) -> &'static [usize] {
        match self {
            Recurrent::Lstm => &[0, 3, 1, 2],
            Recurrent::Gru => &[1, 0, 2],
        }
    }
}

/// The names and layouts that a graph's tensors have in a file.
///
/// Rules go from the graph to the file, in the order in which they were added. A
/// [`pair`](NameMap::pair) settles a name; the others change it one after another. Patterns are
/// [regular expressions](https://docs.rs/regex/latest/regex/#syntax), matched against the graph's
/// name anywhere in it.
///
/// ```
/// use opt_onnx::safetensors::NameMap;
///
/// let names = NameMap::new()
///     .pair("head.weight", "lm_head.weight")
///     .strip_prefix("encoder.")
///     .replace(r"^layers\.(\d+)\.", "layer.$1.")?
///     .add_prefix("bert.");
/// assert_eq!(names.file_name("head.weight"), "lm_head.weight");
/// assert_eq!(names.file_name("encoder.layers.3.bias"), "bert.layer.3.bias");
/// # Ok::<(), opt_core::Error>(())
/// ```
#[derive(Debug, Clone, Default)]
pub struct NameMap {
    rules: Vec<Rule>,
}

#[derive(Debug, Clone)]
enum Rule {
    Pair(String, String),
    StripPrefix(String),
    AddPrefix(String),
    Replace(Regex, String),
    Transpose(Regex),
    Permute(Regex, Vec<usize>),
    Recurrent {
        kind: Recurrent,
        graph: String,
        file: String,
        layer: usize,
    },
}

impl Rule {
    fn describe(&self) -> String {
        match self {
            Rule::Pair(graph, _) => format!("pair(`{graph}`)"),
            Rule::StripPrefix(prefix) => format!("strip_prefix(`{prefix}`)"),
            Rule::AddPrefix(prefix) => format!("add_prefix(`{prefix}`)"),
            Rule::Replace(pattern, _) => format!("replace(`{pattern}`)"),
            Rule::Transpose(pattern) => format!("transpose(`{pattern}`)"),
            Rule::Permute(pattern, _) => format!("permute(`{pattern}`)"),
            Rule::Recurrent { graph, .. } => format!("recurrent(`{graph}`)"),
        }
    }
}

/// Where the content of a graph's tensor is in a file.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Source {
    /// A tensor, with the changes of its axes from the graph to the file.
    One(String, Vec<Axes>),
    /// The parts of a recurrent layer's tensor.
    Recurrent {
        kind: Recurrent,
        /// `weight_ih_l0`, for each direction; for biases the input's and the state's in turn.
        parts: Vec<String>,
        /// Whether each part is a vector, two of which lie one after another.
        bias: bool,
    },
}

/// A change of axes.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Axes {
    SwapLast,
    Permute(Vec<usize>),
}

impl Axes {
    fn order(&self, rank: usize) -> Result<Vec<usize>> {
        match self {
            Axes::SwapLast if rank < 2 => Err(Error::shape(format!(
                "`NameMap::transpose` takes rank 2 at least, the tensor has {rank}"
            ))),
            Axes::SwapLast => {
                let mut order: Vec<usize> = (0..rank).collect();
                order.swap(rank - 1, rank - 2);
                Ok(order)
            }
            Axes::Permute(order) => Ok(order.clone()),
        }
    }

    fn to_file(&self, tensor: &Tensor) -> Result<Tensor> {
        tensor.transpose(&self.order(tensor.rank())?)
    }

    fn to_graph(&self, tensor: &Tensor) -> Result<Tensor> {
        let order = self.order(tensor.rank())?;
        let mut back = vec![usize::MAX; order.len()];
        for (to, &from) in order.iter().enumerate() {
            if let Some(at) = back.get_mut(from) {
                *at = to;
            }
        }
        // What is no permutation is refused here.
        tensor.transpose(&back)
    }
}

impl NameMap {
    /// The map of files that have the graph's own names and layouts.
    pub fn new() -> NameMap {
        NameMap::default()
    }

    fn with(mut self, rule: Rule) -> NameMap {
        self.rules.push(rule);
        self
    }

    /// A tensor of the graph and its name in the file; no other rule changes that name.
    #[must_use]
    pub fn pair(self, graph: impl Into<String>, file: impl Into<String>) -> NameMap {
        self.with(Rule::Pair(graph.into(), file.into()))
    }

    /// Takes a prefix away from the names that have it.
    #[must_use]
    pub fn strip_prefix(self, prefix: impl Into<String>) -> NameMap {
        self.with(Rule::StripPrefix(prefix.into()))
    }

    /// Puts a prefix before all names.
    #[must_use]
    pub fn add_prefix(self, prefix: impl Into<String>) -> NameMap {
        self.with(Rule::AddPrefix(prefix.into()))
    }

    /// Replaces every match of a pattern in a name, as the rules before have left it; `$1` and
    /// `${name}` in the replacement are what groups matched.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidArgument`](opt_core::ErrorKind::InvalidArgument) if the pattern is no
    /// regular expression.
    pub fn replace(self, pattern: &str, with: impl Into<String>) -> Result<NameMap> {
        let pattern = compile(pattern)?;
        Ok(self.with(Rule::Replace(pattern, with.into())))
    }

    /// Tensors whose last two axes are swapped in the file: linear layers as `[in, out]`, such as
    /// those of TensorFlow and of GPT-2.
    ///
    /// # Errors
    /// As [`NameMap::replace`].
    pub fn transpose(self, pattern: &str) -> Result<NameMap> {
        let pattern = compile(pattern)?;
        Ok(self.with(Rule::Transpose(pattern)))
    }

    /// Tensors whose axes are in another order in the file: axis `i` there is axis `axes[i]` of
    /// the graph's. TensorFlow's convolutions `[h, w, in, out]` of the graph's
    /// `[out, in, h, w]` are `[2, 3, 1, 0]`.
    ///
    /// # Errors
    /// As [`NameMap::replace`].
    pub fn permute(self, pattern: &str, axes: &[usize]) -> Result<NameMap> {
        let pattern = compile(pattern)?;
        Ok(self.with(Rule::Permute(pattern, axes.to_vec())))
    }

    /// A recurrent layer as PyTorch stores it: the graph's `{graph}.weight`, `{graph}.recurrent`
    /// and `{graph}.bias` ([`nn::Lstm`](opt_core::nn::Lstm), [`nn::Gru`](opt_core::nn::Gru)) come
    /// from `{file}.weight_ih_l{layer}`, `{file}.weight_hh_l{layer}`, `{file}.bias_ih_l{layer}` and
    /// `{file}.bias_hh_l{layer}`, with `_reverse` after them for the second direction, and with
    /// the gates in another order. No other rule changes these names.
    #[must_use]
    pub fn recurrent(
        self,
        kind: Recurrent,
        graph: impl Into<String>,
        file: impl Into<String>,
        layer: usize,
    ) -> NameMap {
        self.with(Rule::Recurrent {
            kind,
            graph: graph.into(),
            file: file.into(),
            layer,
        })
    }

    /// The name in the file of a tensor of the graph; the first where there are several.
    pub fn file_name(&self, graph: &str) -> String {
        let mut used = vec![false; self.rules.len()];
        match self.source(graph, 1, &mut used) {
            Source::One(name, _) => name,
            Source::Recurrent { parts, .. } => parts.into_iter().next().unwrap_or_default(),
        }
    }

    /// Where a tensor of the graph is in the file; notes which rules had a say in it.
    pub(super) fn source(&self, graph: &str, directions: usize, used: &mut [bool]) -> Source {
        let mut name = graph.to_string();
        let mut axes = Vec::new();
        let mut settled = false;
        for (rule, used) in self.rules.iter().zip(used) {
            let matched = match rule {
                Rule::Pair(from, to) if from == graph => {
                    name.clone_from(to);
                    settled = true;
                    true
                }
                Rule::StripPrefix(prefix) if !settled => match name.strip_prefix(prefix.as_str()) {
                    Some(rest) => {
                        name = rest.to_string();
                        true
                    }
                    None => false,
                },
                Rule::AddPrefix(prefix) if !settled => {
                    name.insert_str(0, prefix);
                    true
                }
                Rule::Replace(pattern, with) if !settled && pattern.is_match(&name) => {
                    name = pattern.replace_all(&name, with).into_owned();
                    true
                }
                Rule::Transpose(pattern) if pattern.is_match(graph) => {
                    axes.push(Axes::SwapLast);
                    true
                }
                Rule::Permute(pattern, order) if pattern.is_match(graph) => {
                    axes.push(Axes::Permute(order.clone()));
                    true
                }
                Rule::Recurrent {
                    kind,
                    graph: scope,
                    file,
                    layer,
                } => {
                    let part = graph.strip_prefix(scope.as_str());
                    let stems: &[&str] = match part.and_then(|p| p.strip_prefix('.')) {
                        Some("weight") => &["weight_ih"],
                        Some("recurrent") => &["weight_hh"],
                        Some("bias") => &["bias_ih", "bias_hh"],
                        _ => continue,
                    };
                    *used = true;
                    let ends = ["", "_reverse"];
                    let ends = ends.iter().take(directions.clamp(1, 2));
                    let parts = ends.flat_map(|end| {
                        let name = move |stem: &&str| format!("{file}.{stem}_l{layer}{end}");
                        stems.iter().map(name)
                    });
                    return Source::Recurrent {
                        kind: *kind,
                        parts: parts.collect(),
                        bias: stems.len() == 2,
                    };
                }
                _ => false,
            };
            *used |= matched;
        }
        Source::One(name, axes)
    }

    pub(super) fn len(&self) -> usize {
        self.rules.len()
    }

    /// The rules that had no say in anything.
    pub(super) fn unused(&self, used: &[bool]) -> Vec<String> {
        let rules = self.rules.iter().zip(used);
        rules
            .filter(|(_, used)| !**used)
            .map(|(rule, _)| rule.describe())
            .collect()
    }
}

fn compile(pattern: &str) -> Result<Regex> {
    Regex::new(pattern).map_err(|e| {
        Error::invalid(format!("`{pattern}` is no regular expression: {e}")).with_source(e)
    })
}

/// The blocks of a tensor's axis 0 in another order.
fn blocks(tensor: &Tensor, order: &[usize]) -> Result<Tensor> {
    let rows = tensor.shape().first().copied().unwrap_or(0);
    if rows % order.len() != 0 {
        return Err(Error::shape(format!(
            "{} gates do not divide the {rows} rows of {:?}",
            order.len(),
            tensor.shape()
        )));
    }
    let size = rows / order.len();
    let parts: Vec<Tensor> = order
        .iter()
        .map(|&g| tensor.slice(0, g * size, (g + 1) * size))
        .collect::<Result<_>>()?;
    Tensor::concat(&parts, 0)
}

impl Source {
    /// The names in the file.
    pub(super) fn names(&self) -> &[String] {
        match self {
            Source::One(name, _) => std::slice::from_ref(name),
            Source::Recurrent { parts, .. } => parts,
        }
    }

    /// The graph's tensor, from those of the file in the order of [`Source::names`].
    pub(super) fn to_graph(&self, file: &[Tensor]) -> Result<Tensor> {
        match self {
            Source::One(_, axes) => {
                let mut tensor = file[0].clone();
                for change in axes.iter().rev() {
                    tensor = change.to_graph(&tensor)?;
                }
                Ok(tensor.contiguous())
            }
            Source::Recurrent { kind, bias, .. } => {
                let parts: Vec<Tensor> = file
                    .iter()
                    .map(|part| blocks(part, kind.gates()))
                    .collect::<Result<_>>()?;
                let per_direction = if *bias { 2 } else { 1 };
                let directions: Vec<Tensor> = parts
                    .chunks(per_direction)
                    .map(|parts| {
                        let one = Tensor::concat(parts, 0)?;
                        let shape = [&[1], one.shape()].concat();
                        one.reshape(shape)
                    })
                    .collect::<Result<_>>()?;
                Tensor::concat(&directions, 0)
            }
        }
    }

    /// The file's tensors, in the order of [`Source::names`].
    pub(super) fn to_file(&self, graph: &Tensor) -> Result<Vec<Tensor>> {
        match self {
            Source::One(_, axes) => {
                let mut tensor = graph.clone();
                for change in axes {
                    tensor = change.to_file(&tensor)?;
                }
                Ok(vec![tensor.contiguous()])
            }
            Source::Recurrent { kind, parts, bias } => {
                let gates = kind.gates();
                let mut order = vec![0; gates.len()];
                for (at, &gate) in gates.iter().enumerate() {
                    order[gate] = at;
                }
                let halves = if *bias { 2 } else { 1 };
                let mut out = Vec::new();
                for i in 0..parts.len() {
                    let direction = graph.slice(0, i / halves, i / halves + 1)?;
                    let one = direction.reshape(&graph.shape()[1..])?;
                    let rows = one.shape().first().copied().unwrap_or(0) / halves;
                    let half = i % halves;
                    let part = one.slice(0, half * rows, (half + 1) * rows)?;
                    out.push(blocks(&part.contiguous(), &order)?.contiguous());
                }
                Ok(out)
            }
        }
    }
}

/// The most similar of some names: the one with the fewest letters to insert, remove and replace,
/// if these are not more than a third of it.
pub(super) fn closest<'a>(name: &str, among: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    let name: Vec<char> = name.chars().collect();
    let mut best: Option<(usize, &str)> = None;
    for other in among {
        let letters: Vec<char> = other.chars().collect();
        let limit = (name.len().max(letters.len()) / 3).max(1);
        let limit = best.map_or(limit, |(d, _)| limit.min(d.saturating_sub(1)));
        if name.len().abs_diff(letters.len()) > limit {
            continue;
        }
        let mut row: Vec<usize> = (0..=letters.len()).collect();
        for (i, a) in name.iter().enumerate() {
            let mut diagonal = row[0];
            row[0] = i + 1;
            for (j, b) in letters.iter().enumerate() {
                let change = diagonal + usize::from(a != b);
                diagonal = row[j + 1];
                row[j + 1] = change.min(row[j] + 1).min(diagonal + 1);
            }
        }
        if row[letters.len()] <= limit {
            best = Some((row[letters.len()], other));
        }
    }
    best.map(|(_, name)| name)
}
