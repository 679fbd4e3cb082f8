//! Executables and sessions: a plan, and the buffers that one user runs it with.

use std::fmt;
use std::sync::Arc;

use opt_core::backend::{
    Step as StepInfo, exchange_result, expect_count, expect_type, write_result,
};
use opt_core::profile::Recorder;
use opt_core::tensor::Buffer;
use opt_core::{
    Error, Executable, Profile, ProfileOptions, Result, ResultExt, Session, Tensor, ValueId,
};
use smallvec::SmallVec;

use crate::NAME;
use crate::compile::plan::{Place, Plan, Planned, Port};
use crate::kernels::team::Team;
use crate::kernels::{Arg, Kernel, Out, RunCx, parallel_chunks};

/// Bytes of an output that one thread copies at once.
const COPY: usize = 1 << 17;

/// A plan, with the threads that it runs on.
pub(crate) struct CpuExecutable {
    pub(crate) plan: Arc<Plan>,
    /// None with one thread.
    pub(crate) team: Option<Arc<Team>>,
}

impl fmt::Debug for CpuExecutable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CpuExecutable")
            .field("steps", &self.plan.infos())
            .finish_non_exhaustive()
    }
}

impl CpuExecutable {
    fn start(&self) -> Result<CpuSession> {
        let plan = self.plan.clone();
        let mut variables = Vec::with_capacity(plan.variables.len());
        for variable in &plan.variables {
            variables.push(if variable.assigned {
                State::Owned(Buffer::from_slice(variable.content.bytes()?))
            } else {
                State::Shared(variable.content.clone())
            });
        }
        Ok(CpuSession {
            slots: plan
                .slots
                .iter()
                .map(|&bytes| Buffer::zeroed(bytes))
                .collect(),
            scratch: Buffer::zeroed(plan.scratch),
            replaced: (0..plan.steps.len()).map(|_| None).collect(),
            stale: vec![false; plan.steps.len()],
            any_stale: false,
            variables,
            team: self.team.clone(),
            plan,
        })
    }
}

impl Executable for CpuExecutable {
    fn session(&self) -> Result<Box<dyn Session>> {
        Ok(Box::new(self.start()?))
    }

    fn steps(&self) -> Vec<StepInfo> {
        self.plan.infos()
    }

    fn backend(&self) -> &str {
        NAME
    }

    fn profile(&self, inputs: &[Tensor], options: &ProfileOptions) -> Result<Profile> {
        let steps = self.plan.profiles();
        let mut recorder = Recorder::new(NAME, self.plan.threads, steps, options)?;
        let mut session = self.start()?;
        let mut outputs = Vec::new();
        for _ in 0..options.warmup {
            session.run_into(inputs, &mut outputs)?;
        }
        for _ in 0..options.runs {
            recorder.begin();
            session.run_marked(inputs, &mut outputs, || recorder.mark())?;
            recorder.end();
        }
        Ok(recorder.finish())
    }
}

/// The content of a variable.
enum State {
    /// Nothing assigns to it; shared with the graph.
    Shared(Tensor),
    /// Assigned to by each run.
    Owned(Buffer),
}

struct CpuSession {
    plan: Arc<Plan>,
    team: Option<Arc<Team>>,
    slots: Vec<Buffer>,
    scratch: Buffer,
    variables: Vec<State>,
    /// Kernels that were compiled again for content that `set_variable` gave a variable.
    replaced: Vec<Option<Box<dyn Kernel>>>,
    /// Steps to compile again before the next run.
    stale: Vec<bool>,
    any_stale: bool,
}

impl CpuSession {
    fn variable_index(&self, id: ValueId) -> Result<usize> {
        let found = self.plan.variables.iter().position(|v| v.id == id);
        found.ok_or_else(|| Error::invalid(format!("the compiled graph has no variable {id:?}")))
    }

    /// Compiles the steps again that have packed a variable that was set since.
    fn refresh(&mut self) -> Result<()> {
        let plan = &self.plan;
        for (i, step) in plan.steps.iter().enumerate() {
            if !self.stale[i] {
                continue;
            }
            let constant = |v: usize| {
                let shape = plan.types[v].shape.fixed().ok()?;
                let at = step.step.inputs.iter().position(|&x| x == v)?;
                let tensor = match step.args[at].place {
                    Place::Constant(c) => &plan.constants[c],
                    Place::Variable(x) => match &self.variables[x] {
                        State::Shared(tensor) => tensor,
                        State::Owned(_) => return None,
                    },
                    _ => return None,
                };
                tensor.reshape(shape).ok()
            };
            let mut kernel = step.step.compile(&plan.types, constant, plan.threads)?;
            kernel.give(&step.given);
            // The kernel of another content may want another amount.
            if kernel.scratch() > self.scratch.len() {
                self.scratch = Buffer::zeroed(kernel.scratch());
            }
            self.replaced[i] = Some(kernel);
            self.stale[i] = false;
        }
        self.any_stale = false;
        Ok(())
    }

    fn check(&self, inputs: &[Tensor]) -> Result<()> {
        expect_count(self.plan.inputs.len(), inputs.len())?;
        for (tensor, (name, port)) in inputs.iter().zip(&self.plan.inputs) {
            expect_type(name, port.dtype, &port.shape, tensor)?;
        }
        Ok(())
    }

    /// Runs the steps; calls `mark` before the first and after each.
    fn execute(&mut self, inputs: &[Tensor], mut mark: impl FnMut()) -> Result<()> {
        let plan = &*self.plan;
        mark();
        for (step, replaced) in plan.steps.iter().zip(&self.replaced) {
            let kernel = replaced.as_deref().unwrap_or(&*step.kernel);
            let scratch = if replaced.is_some() {
                kernel.scratch()
            } else {
                step.scratch
            };
            // The buffers to fill leave the table, so that the others can be read meanwhile.
            let mut buffers: SmallVec<[Buffer; 8]> = SmallVec::new();
            for out in &step.outs {
                let buffer = out_buffer(out.place, &mut self.slots, &mut self.variables);
                buffers.push(std::mem::replace(buffer, Buffer::zeroed(0)));
            }
            let memory = Memory {
                plan,
                inputs,
                slots: &self.slots,
                variables: &self.variables,
            };
            let result = memory.run(
                step,
                kernel,
                &mut buffers,
                &mut self.scratch.bytes_mut()[..scratch],
            );
            for (out, buffer) in step.outs.iter().zip(buffers) {
                *out_buffer(out.place, &mut self.slots, &mut self.variables) = buffer;
            }
            result.at(|| step.step.nodes.first().cloned().unwrap_or_default())?;
            mark();
        }
        Ok(())
    }

    /// A run, with marks as [`CpuSession::execute`] makes them.
    fn run_marked(
        &mut self,
        inputs: &[Tensor],
        outputs: &mut Vec<Tensor>,
        mark: impl FnMut(),
    ) -> Result<()> {
        self.check(inputs)?;
        if self.any_stale {
            self.refresh()?;
        }
        let strided: Vec<Tensor>;
        let inputs = if inputs.iter().all(Tensor::is_contiguous) {
            inputs
        } else {
            strided = inputs.iter().map(Tensor::contiguous).collect();
            &strided
        };
        match self.team.clone() {
            Some(team) if self.plan.threads > 1 => team.enter(|| {
                self.execute(inputs, mark)?;
                self.deliver(inputs, outputs)
            })?,
            _ => {
                self.execute(inputs, mark)?;
                self.deliver(inputs, outputs)?;
            }
        }
        self.assign();
        Ok(())
    }

    /// Hands out what the steps have computed.
    fn deliver(&mut self, inputs: &[Tensor], outputs: &mut Vec<Tensor>) -> Result<()> {
        outputs.truncate(self.plan.outputs.len());
        let ports = self.plan.outputs.iter().zip(&self.plan.handed);
        for (i, (port, handed)) in ports.enumerate() {
            let (dtype, shape) = (port.dtype, &port.shape[..]);
            if let Some(slot) = *handed {
                let slot = &mut self.slots[slot];
                let exchanged = match outputs.get_mut(i) {
                    Some(target) => exchange_result(target, dtype, shape, slot),
                    None => false,
                };
                if exchanged {
                    continue;
                }
                if i >= outputs.len() {
                    let new = Buffer::zeroed(slot.len());
                    let result = std::mem::replace(slot, new);
                    outputs.push(Tensor::from_buffer(dtype, shape, result)?);
                    continue;
                }
            }
            let memory = Memory {
                plan: &self.plan,
                inputs,
                slots: &self.slots,
                variables: &self.variables,
            };
            let bytes = memory.bytes(port)?;
            let threads = self.plan.threads;
            let fill = |out: &mut [u8]| {
                parallel_chunks(threads, out, COPY, |n, out| {
                    out.copy_from_slice(&bytes[n * COPY..][..out.len()]);
                });
            };
            match outputs.get_mut(i) {
                Some(target) => write_result(target, dtype, shape, |out| {
                    fill(out);
                    Ok(())
                })?,
                None => {
                    let mut buffer = Buffer::zeroed(bytes.len());
                    fill(buffer.bytes_mut());
                    outputs.push(Tensor::from_buffer(dtype, shape, buffer)?);
                }
            }
        }
        Ok(())
    }

    /// Gives the variables their new content.
    fn assign(&mut self) {
        for assignment in &self.plan.assignments {
            let slot = &mut self.slots[assignment.slot];
            if let State::Owned(variable) = &mut self.variables[assignment.variable] {
                if assignment.swap {
                    std::mem::swap(variable, slot);
                } else {
                    let len = variable.len();
                    variable.bytes_mut().copy_from_slice(&slot.bytes()[..len]);
                }
            }
        }
    }
}

/// Where an output goes: into a slot, or over the variable that it is assigned to.
fn out_buffer<'a>(
    place: Place,
    slots: &'a mut [Buffer],
    variables: &'a mut [State],
) -> &'a mut Buffer {
    match place {
        Place::Slot(slot) => &mut slots[slot],
        Place::Variable(x) => match &mut variables[x] {
            State::Owned(buffer) => buffer,
            State::Shared(_) => unreachable!("something assigns to it"),
        },
        _ => unreachable!("outputs are planned into slots and variables"),
    }
}

/// What operands are read from.
struct Memory<'a> {
    plan: &'a Plan,
    inputs: &'a [Tensor],
    slots: &'a [Buffer],
    variables: &'a [State],
}

impl<'a> Memory<'a> {
    fn bytes(&self, port: &Port) -> Result<&'a [u8]> {
        let bytes = match port.place {
            Place::Input(i) => self.inputs[i].bytes()?,
            Place::Constant(i) => self.plan.constants[i].bytes()?,
            Place::Variable(i) => match &self.variables[i] {
                State::Shared(tensor) => tensor.bytes()?,
                State::Owned(buffer) => buffer.bytes(),
            },
            Place::Slot(i) => self.slots[i].bytes(),
            Place::Given => return Ok(&[]),
        };
        Ok(&bytes[..port.bytes])
    }

    fn run(
        &self,
        step: &'a Planned,
        kernel: &dyn Kernel,
        buffers: &mut [Buffer],
        scratch: &mut [u8],
    ) -> Result<()> {
        let mut args: SmallVec<[Arg<'_>; 12]> = SmallVec::new();
        for port in &step.args {
            args.push(Arg {
                dtype: port.dtype,
                shape: &port.shape,
                bytes: self.bytes(port)?,
            });
        }
        let mut outs: SmallVec<[Out<'_>; 8]> = SmallVec::new();
        for (port, buffer) in step.outs.iter().zip(buffers) {
            outs.push(Out {
                dtype: port.dtype,
                shape: &port.shape,
                bytes: &mut buffer.bytes_mut()[port.offset..][..port.bytes],
            });
        }
        let mut cx = RunCx {
            threads: self.plan.threads,
            scratch,
        };
        kernel.run(&args, &mut outs, &mut cx)
    }
}

impl Session for CpuSession {
    #[tracing::instrument(level = "trace", name = "run", skip_all)]
    fn run_into(&mut self, inputs: &[Tensor], outputs: &mut Vec<Tensor>) -> Result<()> {
        self.run_marked(inputs, outputs, || ())
    }

    fn variable(&self, id: ValueId) -> Result<Tensor> {
        let index = self.variable_index(id)?;
        match &self.variables[index] {
            State::Shared(tensor) => Ok(tensor.clone()),
            State::Owned(buffer) => {
                let content = &self.plan.variables[index].content;
                Tensor::from_buffer(content.dtype(), content.shape(), buffer.clone())
            }
        }
    }

    fn set_variable(&mut self, id: ValueId, content: &Tensor) -> Result<()> {
        let index = self.variable_index(id)?;
        let variable = &self.plan.variables[index];
        let old = &variable.content;
        expect_type(&variable.name, old.dtype(), old.shape(), content)?;
        let content = content.contiguous();
        match &mut self.variables[index] {
            State::Owned(buffer) => buffer.bytes_mut().copy_from_slice(content.bytes()?),
            State::Shared(tensor) => {
                *tensor = content;
                for (stale, step) in self.stale.iter_mut().zip(&self.plan.steps) {
                    if step.packs.contains(&index) {
                        *stale = true;
                        self.any_stale = true;
                    }
                }
            }
        }
        Ok(())
    }
}
