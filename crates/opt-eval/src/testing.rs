//! A backend for this crate's tests that needs no kernels.

use std::sync::Arc;

use opt_core::backend::Step;
use opt_core::data::Dataset;
use opt_core::{
    Backend, CompileSpec, DType, Dim, Error, Executable, Graph, GraphBuilder, Result, Session,
    Tensor, TensorType, ValueId,
};

/// A graph whose output is its input, scores `[batch, 3]`.
pub(crate) fn echo() -> Graph {
    let mut b = GraphBuilder::new("echo");
    let shape: [Dim; 2] = ["batch".into(), 3.into()];
    let x = b.input("x", TensorType::new(DType::F32, shape)).unwrap();
    b.output("scores", x).unwrap();
    b.finish().unwrap()
}

/// Runs every graph as if it were [`echo`].
#[derive(Debug)]
pub(crate) struct Echo;

impl Backend for Echo {
    fn name(&self) -> &str {
        "echo"
    }

    fn compile(&self, _: &Graph, _: &CompileSpec) -> Result<Arc<dyn Executable>> {
        Ok(Arc::new(Echo))
    }
}

impl Executable for Echo {
    fn session(&self) -> Result<Box<dyn Session>> {
        Ok(Box::new(Echo))
    }

    fn steps(&self) -> Vec<Step> {
        Vec::new()
    }
}

impl Session for Echo {
    fn run_into(&mut self, inputs: &[Tensor], outputs: &mut Vec<Tensor>) -> Result<()> {
        outputs.clear();
        outputs.extend(inputs.first().cloned());
        Ok(())
    }

    fn variable(&self, id: ValueId) -> Result<Tensor> {
        Err(Error::invalid(format!("no variable {id:?}")))
    }

    fn set_variable(&mut self, id: ValueId, _: &Tensor) -> Result<()> {
        Err(Error::invalid(format!("no variable {id:?}")))
    }
}

/// A data set of fields in memory.
#[derive(Debug)]
pub(crate) struct Fields(pub(crate) Vec<Tensor>);

impl Dataset for Fields {
    fn len(&self) -> usize {
        self.0[0].shape()[0]
    }

    fn get(&self, index: usize) -> Result<Vec<Tensor>> {
        let one = |f: &Tensor| f.slice(0, index, index + 1)?.reshape(&f.shape()[1..]);
        self.0.iter().map(one).collect()
    }
}
