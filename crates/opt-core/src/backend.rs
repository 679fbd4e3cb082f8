//! What a backend does: compile graphs and run them.

use std::sync::Arc;

use crate::graph::{Bindings, Symbol};
use crate::profile::{Profile, ProfileOptions};
use crate::tensor::{Buffer, checked_len};
use crate::{DType, Error, Graph, Result, Tensor, ValueId};

/// How to compile a graph.
#[derive(Debug, Clone, Default)]
#[non_exhaustive]
pub struct CompileSpec {
    /// The sizes of symbolic dimensions; all have to be bound.
    pub bindings: Bindings,
}

impl CompileSpec {
    /// A spec that binds nothing.
    pub fn new() -> CompileSpec {
        CompileSpec::default()
    }

    /// Binds a symbolic dimension to a size.
    #[must_use]
    pub fn bind(mut self, symbol: impl AsRef<str>, size: usize) -> CompileSpec {
        self.bindings.insert(Symbol::new(symbol), size);
        self
    }
}

/// Compiles graphs for a processor.
pub trait Backend: Send + Sync + std::fmt::Debug {
    /// Its name.
    fn name(&self) -> &str;

    /// Compiles a graph for bound shapes: all that does not depend on the inputs' content is
    /// done here, once.
    ///
    /// # Errors
    /// If a dimension is unbound or an op is not supported; the path names the node.
    fn compile(&self, graph: &Graph, spec: &CompileSpec) -> Result<Arc<dyn Executable>>;

    /// Compiles, runs once and drops everything; for tests and one-off work.
    ///
    /// # Errors
    /// Those of compiling and running.
    fn run_once(&self, graph: &Graph, inputs: &[Tensor]) -> Result<Vec<Tensor>> {
        let spec = CompileSpec {
            bindings: bindings_of(graph, inputs)?,
        };
        self.compile(graph, &spec)?.session()?.run(inputs)
    }
}

/// The bindings under which a graph takes these inputs.
///
/// # Errors
/// If the number, a rank, a dtype or a fixed size of the inputs is not the graph's, or a symbol
/// would need two sizes.
pub fn bindings_of(graph: &Graph, inputs: &[Tensor]) -> Result<Bindings> {
    use crate::Dim;
    if inputs.len() != graph.inputs().len() {
        return Err(Error::invalid(format!(
            "the graph `{}` takes {} inputs, {} were given",
            graph.name(),
            graph.inputs().len(),
            inputs.len()
        )));
    }
    let mut bindings = Bindings::new();
    for (&id, tensor) in graph.inputs().iter().zip(inputs) {
        let value = graph.value(id);
        let fail = || {
            Error::shape(format!(
                "expected {}, found {}{:?}",
                value.ty(),
                tensor.dtype(),
                tensor.shape()
            ))
            .at(value.name().to_string())
        };
        if value.ty().dtype != tensor.dtype() || value.ty().rank() != tensor.rank() {
            return Err(fail());
        }
        for (dim, &size) in value.ty().shape.dims().iter().zip(tensor.shape()) {
            match dim {
                Dim::Symbol(s) if *bindings.entry(s.clone()).or_insert(size) != size => {
                    return Err(fail());
                }
                Dim::Fixed(n) if *n != size => return Err(fail()),
                _ => {}
            }
        }
    }
    // Sizes computed from a symbol say what it is where no input has it plainly.
    for (&id, tensor) in graph.inputs().iter().zip(inputs) {
        let value = graph.value(id);
        for (dim, &size) in value.ty().shape.dims().iter().zip(tensor.shape()) {
            let Dim::Expr(expr) = dim else { continue };
            if let Some((symbol, n)) = solve(&expr.bind(&bindings)?, size) {
                bindings.insert(symbol, n);
            }
            if dim.bind(&bindings)?.as_fixed() != Some(size) {
                return Err(Error::shape(format!(
                    "expected {}, found {}{:?}",
                    value.ty(),
                    tensor.dtype(),
                    tensor.shape()
                ))
                .at(value.name().to_string()));
            }
        }
    }
    Ok(bindings)
}

/// For backends: fails unless a tensor that a session is given has the type of the input or
/// variable that it is for.
///
/// # Errors
/// If the dtype or the shape differs, at the name; says what was expected and found.
pub fn expect_type(name: &str, dtype: DType, shape: &[usize], found: &Tensor) -> Result<()> {
    let text = || {
        let (other, sizes) = (found.dtype(), found.shape());
        format!("compiled for {dtype}{shape:?}, found {other}{sizes:?}")
    };
    if found.dtype() != dtype {
        return Err(Error::dtype(text()).at(name));
    }
    if found.shape() != shape {
        return Err(Error::shape(text()).at(name));
    }
    Ok(())
}

/// For backends: fails unless there are as many inputs as a graph takes.
///
/// # Errors
/// If there are not.
pub fn expect_count(expected: usize, found: usize) -> Result<()> {
    if expected == found {
        return Ok(());
    }
    Err(Error::invalid(format!(
        "the graph takes {expected} inputs, {found} were given"
    )))
}

/// For backends: writes a result of a run into a tensor, in its own memory where that has the type
/// and nobody else holds it, else in new memory. `fill` is given the bytes (packed dtypes as
/// stored), whose content is anything, and writes all of them.
///
/// # Errors
/// Those of `fill`, after which the tensor's content is anything; if the shape is too large, or
/// new memory holds no tensor of the dtype ([`Tensor::from_buffer`]).
pub fn write_result(
    target: &mut Tensor,
    dtype: DType,
    shape: &[usize],
    fill: impl FnOnce(&mut [u8]) -> Result<()>,
) -> Result<()> {
    if target.dtype() == dtype
        && target.shape() == shape
        && let Some(bytes) = target.own_bytes_mut()
    {
        return fill(bytes);
    }
    let mut buffer = Buffer::zeroed(dtype.bytes(checked_len(shape)?));
    fill(buffer.bytes_mut())?;
    *target = Tensor::from_buffer(dtype, shape, buffer)?;
    Ok(())
}

/// For backends: hands a result of a run over without a copy. The memory of a tensor of this type
/// that nobody else holds changes places with `result`, which has exactly the bytes of one; returns
/// whether it did.
pub fn exchange_result(
    target: &mut Tensor,
    dtype: DType,
    shape: &[usize],
    result: &mut Buffer,
) -> bool {
    if target.dtype() != dtype || target.shape() != shape {
        return false;
    }
    match target.own_buffer_mut() {
        Some(buffer) if buffer.len() == result.len() && result.is_owned() => {
            std::mem::swap(buffer, result);
            true
        }
        _ => false,
    }
}

/// The symbol of `k * symbol + c`, and its value where that is `size`.
fn solve(expr: &crate::SizeExpr, size: usize) -> Option<(Symbol, usize)> {
    let [symbol] = &expr.symbols()[..] else {
        return None;
    };
    let at = |n: usize| -> Option<i64> {
        let bound = expr.bind(&[(symbol.clone(), n)].into()).ok()?;
        bound.as_constant()
    };
    let (zero, one) = (at(0)?, at(1)?);
    let slope = one.checked_sub(zero).filter(|&k| k > 0)?;
    let gap = i64::try_from(size).ok()?.checked_sub(zero)?;
    let n = usize::try_from(gap / slope)
        .ok()
        .filter(|_| gap % slope == 0)?;
    (at(n)? == size as i64).then(|| (symbol.clone(), n))
}

/// A compiled graph: the plan and packed weights, shared between threads.
pub trait Executable: Send + Sync + std::fmt::Debug {
    /// Starts a session: the buffers and variables of one user of the executable.
    ///
    /// # Errors
    /// If memory cannot be had.
    fn session(&self) -> Result<Box<dyn Session>>;

    /// What was compiled: one row a step.
    fn steps(&self) -> Vec<Step>;

    /// The name of the backend that compiled it, for profiles and errors; the name of the type
    /// where a backend does not say.
    fn backend(&self) -> &str {
        std::any::type_name::<Self>()
    }

    /// Runs the graph several times on these inputs, and says how long each step took, how many
    /// bytes and multiply-adds it has.
    ///
    /// The runs are those of a session of its own, which starts from the variables that the graph
    /// was compiled with: no other session's variables change. A training step trains meanwhile,
    /// in that session.
    ///
    /// ```
    /// use opt_core::{Backend, DType, GraphBuilder, ProfileOptions, Tensor, TensorType};
    /// # fn example(backend: &dyn Backend) -> opt_core::Result<()> {
    /// let mut b = GraphBuilder::new("layer");
    /// let x = b.input("x", TensorType::new(DType::F32, [32, 784]))?;
    /// let w = b.variable("w", Tensor::full(DType::F32, [784, 128], 0.1)?)?;
    /// let y = b.matmul(x, w)?;
    /// let y = b.relu(y)?;
    /// b.output("y", y)?;
    /// let executable = backend.compile(&b.finish()?, &Default::default())?;
    ///
    /// let x = Tensor::full(DType::F32, [32, 784], 1.0)?;
    /// let profile = executable.profile(&[x], &ProfileOptions::new().runs(20))?;
    /// println!("{profile}");
    /// for kernel in profile.by_kernel() {
    ///     println!("{}: {} ns", kernel.kernel, kernel.time.median_ns);
    /// }
    /// std::fs::write("trace.json", profile.to_chrome_trace())?; // for ui.perfetto.dev
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// Those of [`Session::run`]; if `options` asks for no run; [`ErrorKind::Unsupported`] where
    /// the backend has no profiles.
    ///
    /// [`ErrorKind::Unsupported`]: crate::ErrorKind::Unsupported
    fn profile(&self, inputs: &[Tensor], options: &ProfileOptions) -> Result<Profile> {
        let _ = (inputs, options);
        Err(Error::unsupported(format!(
            "the backend `{}` has no profiles of its steps; time whole runs of a session instead",
            self.backend()
        )))
    }
}

/// A step of an executable; [`Executable::profile`] says how long it takes.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct Step {
    /// What runs, such as `conv+relu` or `qconv`.
    pub kernel: String,
    /// The names of the graph's nodes that it covers.
    pub nodes: Vec<String>,
}

impl Step {
    /// A step from the kernel's name and the nodes it covers.
    pub fn new(kernel: impl Into<String>, nodes: Vec<String>) -> Step {
        Step {
            kernel: kernel.into(),
            nodes,
        }
    }
}

/// One user of an executable: its buffers and the current content of its variables.
pub trait Session: Send {
    /// Runs the graph: inputs in the graph's order, outputs likewise. Assignments take effect at
    /// the end; after an error the variables are as before.
    ///
    /// # Errors
    /// If an input's type is not what was compiled, or an index in the data is out of range.
    fn run(&mut self, inputs: &[Tensor]) -> Result<Vec<Tensor>> {
        let mut outputs = Vec::new();
        self.run_into(inputs, &mut outputs)?;
        Ok(outputs)
    }

    /// As [`Session::run`], reusing the buffers of the tensors in `outputs`, which it replaces:
    /// a loop that passes the same vector again does not allocate.
    ///
    /// # Errors
    /// As [`Session::run`].
    fn run_into(&mut self, inputs: &[Tensor], outputs: &mut Vec<Tensor>) -> Result<()>;

    /// The current content of a variable.
    ///
    /// # Errors
    /// If the compiled graph has no such variable.
    fn variable(&self, id: ValueId) -> Result<Tensor>;

    /// Replaces the content of a variable.
    ///
    /// # Errors
    /// If there is no such variable, or the type differs.
    fn set_variable(&mut self, id: ValueId, content: &Tensor) -> Result<()>;
}

#[cfg(test)]
mod tests {
    use super::*;

    fn write(target: &mut Tensor, dtype: DType, shape: &[usize], content: &[u8]) -> Result<()> {
        write_result(target, dtype, shape, |bytes| {
            bytes.copy_from_slice(content);
            Ok(())
        })
    }

    #[derive(Debug)]
    struct Plain(Option<&'static str>);

    impl Executable for Plain {
        fn session(&self) -> Result<Box<dyn Session>> {
            Err(Error::unsupported("there is nothing to run"))
        }

        fn steps(&self) -> Vec<Step> {
            Vec::new()
        }

        fn backend(&self) -> &str {
            self.0.unwrap_or(std::any::type_name::<Self>())
        }
    }

    #[test]
    fn backends_without_profiles_are_named() {
        for (executable, name) in [(Plain(Some("plain")), "`plain`"), (Plain(None), "::Plain`")] {
            let error = executable.profile(&[], &ProfileOptions::new()).unwrap_err();
            assert_eq!(error.kind(), crate::ErrorKind::Unsupported);
            assert!(error.message().contains(name), "{error}");
        }
    }

    #[test]
    fn results_take_the_memory_that_nobody_else_holds() {
        for dtype in [DType::F16, DType::I32, DType::U8, DType::Bool, DType::I4] {
            let len = dtype.bytes(6);
            let mut target = Tensor::zeros(dtype, [2, 3]).unwrap();
            let at = target.bytes().unwrap().as_ptr();
            write(&mut target, dtype, &[2, 3], &vec![1; len]).unwrap();
            assert_eq!(target.bytes().unwrap().as_ptr(), at, "{dtype}");
            assert_eq!(target.bytes().unwrap(), vec![1; len], "{dtype}");
            let held = target.clone();
            write(&mut target, dtype, &[2, 3], &vec![0; len]).unwrap();
            assert_eq!(held.bytes().unwrap(), vec![1; len], "{dtype}");
            assert_eq!(target.bytes().unwrap(), vec![0; len], "{dtype}");
        }
    }

    #[test]
    fn results_change_places_with_memory_that_nobody_else_holds() {
        let mut target = Tensor::new([2], [1i32, 2]).unwrap();
        let mut result = Buffer::from_slice(&[3i32, 4]);
        let at = result.bytes().as_ptr();
        assert!(exchange_result(&mut target, DType::I32, &[2], &mut result));
        assert_eq!(target.bytes().unwrap().as_ptr(), at);
        assert_eq!(target, Tensor::new([2], [3i32, 4]).unwrap());
        assert_eq!(result.typed::<i32>(), [1, 2]);
        let held = target.clone();
        assert!(!exchange_result(&mut target, DType::I32, &[2], &mut result));
        drop(held);
        assert!(!exchange_result(
            &mut target,
            DType::I32,
            &[1, 2],
            &mut result
        ));
        assert!(!exchange_result(&mut target, DType::F32, &[2], &mut result));
        let mut longer = Buffer::zeroed(12);
        assert!(!exchange_result(&mut target, DType::I32, &[2], &mut longer));
        // Part of a longer tensor keeps its memory.
        let mut part = Tensor::new([4], [1u8, 2, 3, 4])
            .unwrap()
            .slice(0, 0, 2)
            .unwrap();
        let mut short = Buffer::zeroed(2);
        assert!(!exchange_result(&mut part, DType::U8, &[2], &mut short));
        assert_eq!(part.to_vec::<u8>().unwrap(), [1, 2]);
    }

    #[test]
    fn results_of_another_type_replace_the_tensor() {
        let whole = Tensor::new([2, 2], [1u8, 2, 3, 4]).unwrap();
        let mut target = whole.transpose(&[1, 0]).unwrap();
        drop(whole);
        write(&mut target, DType::U8, &[2, 2], &[5, 6, 7, 8]).unwrap();
        assert_eq!(target.to_vec::<u8>().unwrap(), [5, 6, 7, 8]);
        write(&mut target, DType::I8, &[3], &[1, 2, 255]).unwrap();
        assert_eq!(target, Tensor::new([3], [1i8, 2, -1]).unwrap());
        // Part of a longer tensor: the rest stays.
        let mut part = Tensor::new([4], [1u8, 2, 3, 4])
            .unwrap()
            .slice(0, 1, 3)
            .unwrap();
        write(&mut part, DType::U8, &[2], &[8, 9]).unwrap();
        assert_eq!(part.to_vec::<u8>().unwrap(), [8, 9]);
        let huge = [usize::MAX, 2];
        assert!(write(&mut target, DType::U8, &huge, &[]).is_err());
        assert!(write(&mut target, DType::Bool, &[1], &[2]).is_err());
        assert_eq!(target, Tensor::new([3], [1i8, 2, -1]).unwrap());
    }
}
