//! Executables and sessions: a plan, and the variables of one user of it.

use std::fmt;
use std::sync::Arc;

use opt_core::Tensor as Host;
use opt_core::backend::{Step as StepInfo, expect_count, expect_type};
use opt_core::{Error, ErrorKind, Executable, Result, ResultExt, Session, ValueId};
use smallvec::SmallVec;
use tch::Tensor;

use crate::compile::plan::{Place, Plan, Planned};
use crate::convert::{from_host, kind, send, to_host, write};
use crate::kernels::RunCx;
use crate::native::{self, Pool, aten};
use crate::{Device, NAME};

pub(crate) struct TchExecutable {
    pub(crate) plan: Arc<Plan>,
}

impl fmt::Debug for TchExecutable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TchExecutable")
            .field("device", &self.plan.options.device)
            .field("steps", &self.plan.infos())
            .finish_non_exhaustive()
    }
}

impl Executable for TchExecutable {
    fn session(&self) -> Result<Box<dyn Session>> {
        Ok(Box::new(TchSession {
            constants: self.plan.constants(),
            variables: self.plan.initial()?,
            slots: (0..self.plan.slots).map(|_| None).collect(),
            pool: (self.plan.options.device == Device::Cpu).then(Pool::new),
            plan: self.plan.clone(),
        }))
    }

    fn steps(&self) -> Vec<StepInfo> {
        self.plan.infos()
    }

    fn backend(&self) -> &str {
        NAME
    }
}

struct TchSession {
    plan: Arc<Plan>,
    constants: Vec<Tensor>,
    variables: Vec<Tensor>,
    slots: Vec<Option<Tensor>>,
    /// Memory of the processor for the values of a run; devices have allocators that cache.
    pool: Option<Pool>,
}

impl TchSession {
    fn check(&self, inputs: &[Host]) -> Result<()> {
        expect_count(self.plan.inputs.len(), inputs.len())?;
        for (tensor, input) in inputs.iter().zip(&self.plan.inputs) {
            expect_type(&input.name, input.dtype, &input.shape, tensor)?;
        }
        Ok(())
    }

    fn get<'a>(&'a self, place: Place, inputs: &'a [Tensor]) -> Result<&'a Tensor> {
        match place {
            Place::Input(i) => Ok(&inputs[i]),
            Place::Constant(i) => Ok(&self.constants[i]),
            Place::Variable(i) => Ok(&self.variables[i]),
            Place::Slot(i) => self.slots[i]
                .as_ref()
                .ok_or_else(|| Error::new(ErrorKind::Backend, format!("value {i} is not there"))),
        }
    }

    fn execute(&mut self, steps: &[Planned], inputs: &[Tensor], cx: &RunCx) -> Result<()> {
        for step in steps {
            let outs = {
                let mut args: SmallVec<[&Tensor; 8]> = SmallVec::new();
                for &place in &step.args {
                    args.push(self.get(place, inputs)?);
                }
                let outs = match step.over {
                    Some(input) => step.kernel.run_over(&args, input, cx),
                    None => step.kernel.run(&args, cx),
                };
                outs.at(|| step.nodes.first().cloned().unwrap_or_default())?
            };
            for (slot, out) in step.outs.iter().zip(outs) {
                if let Some(slot) = slot {
                    self.slots[*slot] = Some(out);
                }
            }
            for &slot in &step.done {
                self.slots[slot] = None;
            }
        }
        Ok(())
    }

    fn run_all(&mut self, inputs: &[Host], outputs: &mut Vec<Host>) -> Result<()> {
        let plan = self.plan.clone();
        let cx = RunCx::new(plan.options.device);
        let names = plan.inputs.iter();
        let inputs: Vec<Tensor> = inputs
            .iter()
            .zip(names)
            .map(|(x, input)| given(x, plan.options.device).at(|| input.name.clone()))
            .collect::<Result<_>>()?;
        let (pure, effects) = plan.steps.split_at(plan.effects);
        self.execute(pure, &inputs, &cx)?;
        outputs.truncate(plan.outputs.len());
        for (i, &(place, dtype)) in plan.outputs.iter().enumerate() {
            let content = self.get(place, &inputs)?;
            match outputs.get_mut(i) {
                Some(target) => write(content, dtype, target)?,
                None => outputs.push(to_host(content, dtype)?),
            }
        }
        // Before anything is assigned: after a fault the variables are as before.
        cx.check()?;
        let mut new = Vec::with_capacity(plan.assignments.len());
        for assignment in &plan.assignments {
            let value = self.get(assignment.from, &inputs)?;
            new.push(match assignment.copy {
                // `at::MemoryFormat::Contiguous`
                true => aten!("clone", value, 0i64)?,
                false => aten!("contiguous", value)?,
            });
        }
        self.execute(effects, &inputs, &cx)?;
        for (assignment, value) in plan.assignments.iter().zip(new) {
            self.variables[assignment.variable] = value;
        }
        Ok(())
    }
}

/// An input for a run: on the processor its own memory, else a copy on the device.
#[allow(unsafe_code)]
fn given(x: &Host, device: Device) -> Result<Tensor> {
    if device != Device::Cpu || !x.is_contiguous() || x.dtype().is_storage() || x.is_empty() {
        return send(x, device);
    }
    let shape: SmallVec<[i64; 6]> = x.shape().iter().map(|&n| n as i64).collect();
    // SAFETY: inputs are borrowed for the whole run, at whose end all slots are emptied; what
    // variables are assigned is copied unless it has memory of its own; kernels write over
    // results of the run and over variables only.
    unsafe { native::borrowed(x.bytes()?, &shape, kind(x.dtype())?) }
}

impl Session for TchSession {
    #[tracing::instrument(level = "trace", name = "run", skip_all)]
    fn run_into(&mut self, inputs: &[Host], outputs: &mut Vec<Host>) -> Result<()> {
        self.check(inputs)?;
        if matches!(self.plan.options.device, Device::Cuda(_)) {
            native::set_tf32(self.plan.options.tf32);
        }
        if let Some(threads) = self.plan.options.threads
            && tch::get_num_threads() != threads
        {
            tch::set_num_threads(threads);
        }
        // Entered without a borrow of the session, which runs meanwhile.
        let pool = self.pool.take();
        let entered = pool.as_ref().map(Pool::enter);
        let result = self.run_all(inputs, outputs);
        drop(entered);
        self.pool = pool;
        for slot in &mut self.slots {
            *slot = None;
        }
        if let Err(e) = &result
            && native::is_out_of_memory(e.message())
        {
            native::empty_cache(self.plan.options.device);
        }
        result
    }

    fn variable(&self, id: ValueId) -> Result<Host> {
        let index = self.plan.variable(id).ok_or_else(|| unknown(id))?;
        let dtype = self.plan.variables[index].content.dtype();
        to_host(&self.variables[index], dtype)
    }

    fn set_variable(&mut self, id: ValueId, content: &Host) -> Result<()> {
        let index = self.plan.variable(id).ok_or_else(|| unknown(id))?;
        let variable = &self.plan.variables[index];
        let old = &variable.content;
        expect_type(&variable.name, old.dtype(), old.shape(), content)?;
        self.variables[index] = from_host(content, self.plan.options.device)?;
        Ok(())
    }
}

fn unknown(id: ValueId) -> Error {
    Error::invalid(format!("the compiled graph has no variable {id:?}"))
}
