//! From a file into a graph and back.

use std::collections::{BTreeMap, HashSet};
use std::fmt::Write as _;
use std::io::{BufWriter, Write as _};
use std::path::Path;

use opt_core::file::write_atomically;
use opt_core::{
    Error, ErrorKind, Graph, Result, ResultExt, Tensor, TensorType, ValueId, ValueKind, safetensors,
};

use super::SafeTensors;
use super::names::{NameMap, closest};

/// Which tensors of a graph a file holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Content {
    /// The variables: weights, running statistics, and optimizer state where there is any.
    #[default]
    Variables,
    /// The constants too: the integer weights, scales and zero points of quantized models are
    /// constants.
    VariablesAndConstants,
}

impl Content {
    fn of(self, graph: &Graph) -> impl Iterator<Item = (ValueId, &str, &Tensor)> {
        graph.values().filter_map(move |(id, value)| {
            let wanted = match value.kind() {
                ValueKind::Variable(_) => true,
                ValueKind::Constant(_) => self == Content::VariablesAndConstants,
                _ => false,
            };
            let tensor = value.tensor().filter(|_| wanted)?;
            Some((id, value.name(), tensor))
        })
    }
}

/// What [`load_into`] puts up with. By default every tensor of the graph must be in the file and
/// every tensor of the file in the graph, as in PyTorch's `load_state_dict(strict=True)`.
#[derive(Debug, Clone, Default)]
pub struct LoadOptions {
    content: Content,
    allow_missing: bool,
    allow_unexpected: bool,
    allow_unused_rules: bool,
    cast: bool,
}

impl LoadOptions {
    /// The strict ones: nothing missing, nothing left over, nothing cast.
    pub fn new() -> LoadOptions {
        LoadOptions::default()
    }

    /// Which tensors of the graph are loaded. Default: the variables. A constant can be loaded
    /// only if its new content leaves all types of the graph as they are.
    #[must_use]
    pub fn content(mut self, content: Content) -> LoadOptions {
        self.content = content;
        self
    }

    /// Whether tensors of the graph may keep their content for want of one in the file, such as
    /// those of a new head. Default: false.
    #[must_use]
    pub fn allow_missing(mut self, allow: bool) -> LoadOptions {
        self.allow_missing = allow;
        self
    }

    /// Whether the file may have tensors that the graph has not. Default: false.
    #[must_use]
    pub fn allow_unexpected(mut self, allow: bool) -> LoadOptions {
        self.allow_unexpected = allow;
        self
    }

    /// Whether rules of the name map may match nothing. Default: false.
    #[must_use]
    pub fn allow_unused_rules(mut self, allow: bool) -> LoadOptions {
        self.allow_unused_rules = allow;
        self
    }

    /// Whether tensors of another floating-point type are [cast](Tensor::cast) to the graph's.
    /// Default: false.
    #[must_use]
    pub fn cast(mut self, cast: bool) -> LoadOptions {
        self.cast = cast;
        self
    }
}

/// What [`load_into`] did.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
#[non_exhaustive]
pub struct LoadReport {
    /// The graph's tensors that have new content, in the graph's order.
    pub loaded: Vec<String>,
    /// Those of them that were cast.
    pub cast: Vec<String>,
    /// The graph's tensors that the file has not, in the graph's order.
    pub missing: Vec<String>,
    /// The file's tensors that went nowhere, in the file's order.
    pub unexpected: Vec<String>,
}

/// More hints than this take long to find, and nobody reads them.
const HINTS: usize = 20;

/// Sets the variables of a graph (and its constants, if
/// [asked for](LoadOptions::content)) from a checkpoint.
///
/// # Errors
/// [`ErrorKind::Format`] with all that is missing, left over or of another type at once, and for
/// what is missing the most similar name that is left over; [`ErrorKind::NoEffect`] if nothing
/// would be loaded, or a rule of the map matches nothing; [`ErrorKind::FactViolated`] if the content
/// breaks a fact of the graph, such as the mask of a pruned weight. The graph is unchanged then.
pub fn load_into(
    graph: &mut Graph,
    file: &SafeTensors,
    names: &NameMap,
    options: LoadOptions,
) -> Result<LoadReport> {
    let mut report = LoadReport::default();
    let mut used_rules = vec![false; names.len()];
    let mut used: HashSet<String> = HashSet::new();
    let mut absent: Vec<(String, Vec<String>)> = Vec::new();
    let mut mismatched: Vec<String> = Vec::new();
    let mut found: Vec<(ValueId, Tensor)> = Vec::new();
    for (id, name, old) in options.content.of(graph) {
        let directions = old.shape().first().copied().unwrap_or(1);
        let source = names.source(name, directions, &mut used_rules);
        let wanted = source.names();
        used.extend(wanted.iter().filter(|n| file.contains(n)).cloned());
        let lacking: Vec<String> = wanted
            .iter()
            .filter(|n| !file.contains(n))
            .cloned()
            .collect();
        if !lacking.is_empty() {
            absent.push((name.to_string(), lacking));
            report.missing.push(name.to_string());
            continue;
        }
        let ty = graph.type_of(id);
        let read = || -> Result<(Tensor, bool)> {
            let parts = wanted
                .iter()
                .map(|n| file.get(n))
                .collect::<Result<Vec<_>>>()?;
            fit(ty, &source.to_graph(&parts)?, options.cast)
        };
        match read() {
            Ok((tensor, cast)) => {
                report.loaded.push(name.to_string());
                if cast {
                    report.cast.push(name.to_string());
                }
                found.push((id, tensor));
            }
            Err(e) => mismatched.push(format!("{name}: {e}")),
        }
    }
    let left = file.names().iter().filter(|n| !used.contains(*n));
    report.unexpected = left.cloned().collect();

    let text = problems(&absent, &mismatched, &report.unexpected, &options);
    if !text.is_empty() {
        return Err(Error::new(
            ErrorKind::Format,
            format!(
                "the checkpoint does not fit the graph `{}`:{text}",
                graph.name()
            ),
        ));
    }
    let unused = names.unused(&used_rules);
    if !unused.is_empty() && !options.allow_unused_rules {
        return Err(Error::new(
            ErrorKind::NoEffect,
            format!(
                "these rules of the name map match no tensor of the graph: {}",
                unused.join(", ")
            ),
        ));
    }
    if report.loaded.is_empty() {
        return Err(Error::new(
            ErrorKind::NoEffect,
            "the graph and the checkpoint have no tensor in common",
        ));
    }
    // Checked on a copy: the contents are shared, and the graph stays whole if anything fails.
    let mut loaded = graph.clone();
    for (id, tensor) in found {
        loaded.set_content(id, tensor)?;
    }
    loaded.verify()?;
    *graph = loaded;
    Ok(report)
}

/// A tensor as a value of a type takes it, and whether that took a cast.
fn fit(ty: &TensorType, tensor: &Tensor, cast: bool) -> Result<(Tensor, bool)> {
    let tensor = safetensors::unpacked(ty, tensor)?;
    let found = TensorType::new(tensor.dtype(), tensor.shape());
    if found == *ty {
        return Ok((tensor, false));
    }
    let same_shape = found.shape == ty.shape;
    let floats = ty.dtype.is_float() && found.dtype.is_float();
    if same_shape && floats && cast {
        return Ok((tensor.cast(ty.dtype), true));
    }
    let mut reversed = tensor.shape().to_vec();
    reversed.reverse();
    let hint = if same_shape && floats {
        "; `LoadOptions::cast` converts it"
    } else if tensor.rank() == 2 && ty.shape == TensorType::new(ty.dtype, &reversed[..]).shape {
        "; `NameMap::transpose` turns it"
    } else {
        ""
    };
    Err(Error::shape(format!(
        "the graph has {ty}, the checkpoint {found}{hint}"
    )))
}

/// All that stands against loading, as lines; empty if nothing does.
fn problems(
    absent: &[(String, Vec<String>)],
    mismatched: &[String],
    unexpected: &[String],
    options: &LoadOptions,
) -> String {
    let mut text = String::new();
    if !absent.is_empty() && !options.allow_missing {
        _ = write!(text, "\n  missing in the checkpoint ({}):", absent.len());
        for (i, (name, lacking)) in absent.iter().enumerate() {
            _ = write!(text, "\n    {name}");
            if lacking[..] != [name.as_str()] {
                _ = write!(text, " (looked for `{}`)", lacking.join("`, `"));
            }
            let among = unexpected.iter().map(String::as_str);
            let hint = (i < HINTS).then(|| closest(&lacking[0], among)).flatten();
            if let Some(hint) = hint {
                _ = write!(text, "; similar: `{hint}`");
            }
        }
    }
    if !unexpected.is_empty() && !options.allow_unexpected {
        _ = write!(text, "\n  not in the graph ({}):", unexpected.len());
        for name in unexpected {
            _ = write!(text, "\n    {name}");
        }
    }
    if !mismatched.is_empty() {
        _ = write!(text, "\n  of another type ({}):", mismatched.len());
        for line in mismatched {
            _ = write!(text, "\n    {line}");
        }
    }
    text
}

/// Writes the tensors of a graph as a safetensors file, atomically, under the names and in the
/// layouts of a map.
///
/// Tensors that the map gives the same name (tied weights) are stored once.
///
/// # Errors
/// [`ErrorKind::InvalidArgument`] if two tensors that differ have the same name in the file;
/// [`ErrorKind::Shape`] if a tensor has not the rank that a rule takes; [`ErrorKind::NoEffect`]
/// if a rule matches nothing; [`ErrorKind::Io`] if the file cannot be written.
pub fn save(
    path: impl AsRef<Path>,
    graph: &Graph,
    names: &NameMap,
    content: Content,
) -> Result<()> {
    let mut used = vec![false; names.len()];
    let mut tensors: BTreeMap<String, Tensor> = BTreeMap::new();
    for (_, name, tensor) in content.of(graph) {
        let directions = tensor.shape().first().copied().unwrap_or(1);
        let source = names.source(name, directions, &mut used);
        let parts = source.to_file(tensor).at(|| name)?;
        for (file_name, part) in source.names().iter().zip(parts) {
            match tensors.get(file_name) {
                Some(other) if !same(other, &part)? => {
                    return Err(Error::invalid(format!(
                        "`{file_name}` is the name of another tensor too, of other content"
                    ))
                    .at(name));
                }
                _ => _ = tensors.insert(file_name.clone(), part),
            }
        }
    }
    let unused = names.unused(&used);
    if !unused.is_empty() {
        return Err(Error::new(
            ErrorKind::NoEffect,
            format!(
                "these rules of the name map match no tensor of the graph: {}",
                unused.join(", ")
            ),
        ));
    }
    let list = tensors.iter().map(|(name, tensor)| (name.as_str(), tensor));
    write_atomically(path, |file| {
        let mut to = BufWriter::new(file);
        // The note that PyTorch's libraries look for.
        safetensors::write(&mut to, list, &[("format", "pt")])?;
        Ok(to.flush()?)
    })
}

fn same(a: &Tensor, b: &Tensor) -> Result<bool> {
    Ok(a.dtype() == b.dtype() && a.shape() == b.shape() && a.bytes()? == b.bytes()?)
}
