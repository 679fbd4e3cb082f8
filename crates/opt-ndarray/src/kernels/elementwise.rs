//! Element-wise ops, alone or fused: a small register program that runs over tiles of the output
//! small enough for the first-level cache.

mod flat;

use std::fmt::Write as _;

use opt_core::ops::{BinaryOp, Op, UnaryOp};
use opt_core::tensor::Dims;
use opt_core::{DType, Error, Result};
use smallvec::SmallVec;

use super::convert::{Cast, Walk, load, store};
use super::lanes::{Lane, Side, has_unary};
use super::{Arg, CompileCx, Kernel, Out, RunCx, SharedMut, parallel};
use flat::{Class, Code, flatten};

/// Elements a tile.
pub(super) const TILE: usize = 512;

/// Elements times instructions from which a second thread is worth its start.
const PARALLEL: usize = 1 << 16;

/// Where a node of a program reads from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Operand {
    /// An input of the kernel.
    Input(usize),
    /// An earlier node.
    Node(usize),
}

/// Element-wise nodes to fuse, in topological order, all of one output shape.
#[derive(Debug, Clone)]
pub(crate) struct Spec {
    pub(crate) shape: Dims,
    /// Dtype and shape of each input; it broadcasts to `shape`.
    pub(crate) inputs: Vec<(DType, Dims)>,
    pub(crate) nodes: Vec<SpecNode>,
    /// The nodes whose values are outputs.
    pub(crate) outputs: Vec<usize>,
}

/// A node of a [`Spec`].
#[derive(Debug, Clone)]
pub(crate) struct SpecNode {
    pub(crate) op: Op,
    pub(crate) operands: SmallVec<[Operand; 3]>,
    /// The dtype of its value.
    pub(crate) dtype: DType,
}

/// Compiles one element-wise node.
pub(crate) fn compile(op: &Op, cx: &CompileCx<'_>) -> Result<Box<dyn Kernel>> {
    if let Op::Cast(_) = op {
        return Ok(Box::new(Cast));
    }
    let inputs = cx
        .inputs
        .iter()
        .map(|ty| Ok((ty.dtype, ty.shape.fixed()?)))
        .collect::<Result<Vec<_>>>()?;
    let spec = Spec {
        shape: cx.outputs[0].shape.fixed()?,
        nodes: vec![SpecNode {
            op: op.clone(),
            operands: (0..inputs.len()).map(Operand::Input).collect(),
            dtype: cx.outputs[0].dtype,
        }],
        inputs,
        outputs: vec![0],
    };
    program(&spec, cx.threads)
}

/// Compiles fused nodes.
pub(crate) fn program(spec: &Spec, threads: usize) -> Result<Box<dyn Kernel>> {
    let mut class = None;
    let dtypes = spec
        .inputs
        .iter()
        .map(|(d, _)| *d)
        .chain(spec.nodes.iter().map(|n| n.dtype));
    for dtype in dtypes {
        match (class, Class::of(dtype)?) {
            (None, found) => class = found,
            (Some(a), Some(b)) if a != b => {
                return Err(Error::dtype("an element-wise kernel mixes number types"));
            }
            _ => {}
        }
    }
    Program::new(spec, class.unwrap_or(Class::F32), threads).map(|p| Box::new(p) as Box<dyn Kernel>)
}

/// Where an instruction reads from.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Src {
    Reg(usize),
    /// An output of the class's own dtype, once it is written.
    Out(usize),
    /// An input of the class's own dtype that lies as the output does.
    Full(usize),
    /// An input that has one element.
    Scalar(usize),
}

/// Where an instruction writes to.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Target {
    Reg(usize),
    /// An output of the class's own dtype.
    Out(usize),
}

#[derive(Debug, Clone)]
struct Instruction {
    code: Code,
    sources: SmallVec<[Src; 3]>,
    target: Target,
}

#[derive(Debug)]
struct Input {
    dtype: DType,
    walk: Walk,
}

#[derive(Debug)]
struct Program {
    name: String,
    class: Class,
    len: usize,
    inputs: Vec<Input>,
    code: Vec<Instruction>,
    outputs: Vec<(Src, DType)>,
    /// The last one is what a scalar is spread into.
    registers: usize,
    in_place: Vec<(usize, usize)>,
    /// The inputs that are given up, each with its output.
    given: Vec<(usize, usize)>,
    threads: usize,
}

/// Hands out the lowest free register.
#[derive(Default)]
struct Registers {
    used: Vec<bool>,
}

impl Registers {
    fn take(&mut self) -> usize {
        let free = self.used.iter().position(|u| !u).unwrap_or(self.used.len());
        if free == self.used.len() {
            self.used.push(true);
        }
        self.used[free] = true;
        free
    }
}

impl Program {
    fn new(spec: &Spec, class: Class, threads: usize) -> Result<Program> {
        let len: usize = spec.shape.iter().product();
        let inputs: Vec<Input> = spec
            .inputs
            .iter()
            .map(|(dtype, shape)| Input {
                dtype: *dtype,
                walk: Walk::new(shape, &spec.shape),
            })
            .collect();
        let own = class.dtype();
        let flat = flatten(spec, class, |input| inputs[input].walk.is_scalar())?;
        // The position after which an operand's register is free.
        let mut last_use: Vec<(Operand, usize)> = Vec::new();
        for (i, node) in flat.iter().enumerate() {
            for &operand in &node.operands {
                match last_use.iter_mut().find(|(o, _)| *o == operand) {
                    Some((_, at)) => *at = i,
                    None => last_use.push((operand, i)),
                }
            }
        }
        for &o in &spec.outputs {
            last_use.retain(|(operand, _)| *operand != Operand::Node(o));
        }
        let mut registers = Registers::default();
        let mut code = Vec::new();
        let mut places: Vec<(Operand, Src)> = Vec::new();
        for (i, node) in flat.iter().enumerate() {
            let mut sources = SmallVec::new();
            for &operand in &node.operands {
                let known = places.iter().find(|(o, _)| *o == operand).map(|(_, s)| *s);
                let source = match (known, operand) {
                    (Some(source), _) => source,
                    (None, Operand::Node(_)) => {
                        return Err(Error::invalid("a fused node reads a later one"));
                    }
                    (None, Operand::Input(input)) => {
                        let Input { dtype, walk } = &inputs[input];
                        let source = if walk.is_scalar() {
                            Src::Scalar(input)
                        } else if walk.is_full() && *dtype == own {
                            Src::Full(input)
                        } else {
                            let target = registers.take();
                            code.push(Instruction {
                                code: Code::Load(input),
                                sources: SmallVec::new(),
                                target: Target::Reg(target),
                            });
                            Src::Reg(target)
                        };
                        places.push((operand, source));
                        source
                    }
                };
                sources.push(source);
            }
            let target = match node.code {
                // Taken before the operands are released: no instruction writes what it reads.
                Some(instruction) => {
                    let target = registers.take();
                    code.push(Instruction {
                        code: instruction,
                        sources,
                        target: Target::Reg(target),
                    });
                    Src::Reg(target)
                }
                None => sources[0],
            };
            places.push((Operand::Node(node.node), target));
            // A register that two operands share is free only after the later one.
            for &(operand, at) in last_use.iter().filter(|(_, at)| *at == i) {
                let Some(Src::Reg(r)) = places.iter().find(|(o, _)| *o == operand).map(|(_, s)| *s)
                else {
                    continue;
                };
                let shared = places.iter().any(|(o, s)| {
                    *s == Src::Reg(r)
                        && *o != operand
                        && (last_use.iter().any(|(p, later)| p == o && *later > at)
                            || matches!(o, Operand::Node(n) if spec.outputs.contains(n) || *n == node.node))
                });
                if !shared {
                    registers.used[r] = false;
                    places.retain(|(_, s)| *s != Src::Reg(r));
                }
            }
        }
        let mut outputs = Vec::new();
        for &o in &spec.outputs {
            let place = places.iter().find(|(p, _)| *p == Operand::Node(o));
            let (_, source) = place.ok_or_else(|| Error::invalid("an output is no node"))?;
            outputs.push((*source, spec.nodes[o].dtype));
        }
        // A tile of an output is written when all that is read of the inputs' tiles has been.
        let mut in_place: Vec<(usize, usize)> = Vec::new();
        for (i, input) in inputs.iter().enumerate() {
            for (o, (_, dtype)) in outputs.iter().enumerate() {
                let copied = outputs.iter().any(|(source, _)| *source == Src::Full(i));
                if input.walk.is_full() && input.dtype == *dtype && !copied {
                    in_place.push((i, o));
                }
            }
        }
        let mut name = String::new();
        for (i, node) in spec.nodes.iter().enumerate() {
            let plus = if i == 0 { "" } else { "+" };
            let _ = write!(name, "{plus}{}", node.op.name().to_lowercase());
        }
        // One more for an output that is a scalar.
        let registers = registers.used.len() + 1;
        Ok(Program {
            name,
            class,
            len,
            inputs,
            code,
            outputs,
            registers,
            in_place,
            given: Vec::new(),
            threads,
        })
    }

    /// Lets the instructions that compute outputs write there, and not to a register that is
    /// copied, where no input that was given up for the output is read then or later.
    fn write_directly(&mut self) {
        for o in 0..self.outputs.len() {
            let (Src::Reg(register), dtype) = self.outputs[o] else {
                continue;
            };
            let writes = |i: &Instruction| i.target == Target::Reg(register);
            let Some(at) = self.code.iter().rposition(writes) else {
                continue;
            };
            let reads_given = self.code[at..].iter().any(|instruction| {
                self.given.iter().any(|&(input, output)| {
                    let loads = instruction.code == Code::Load(input);
                    output == o && (loads || instruction.sources.contains(&Src::Full(input)))
                })
            });
            if dtype != self.class.dtype() || reads_given {
                continue;
            }
            self.code[at].target = Target::Out(o);
            let later = self.code[at + 1..].iter_mut();
            let sources = later.flat_map(|instruction| &mut instruction.sources);
            let outputs = self.outputs.iter_mut().map(|(source, _)| source);
            for source in sources.chain(outputs) {
                if *source == Src::Reg(register) {
                    *source = Src::Out(o);
                }
            }
        }
    }

    fn tasks(&self, threads: usize) -> usize {
        let work = self.len * self.code.len().max(1);
        if threads <= 1 || work < PARALLEL {
            1
        } else {
            threads.min(self.len.div_ceil(TILE))
        }
    }

    fn run_as<R: Lane>(&self, args: &[Arg<'_>], outs: &mut [Out<'_>], cx: &mut RunCx<'_>) {
        // A scalar may meet an empty tensor, whose walk has no entry to stand at.
        if self.len == 0 {
            return;
        }
        let scalars: SmallVec<[R; 8]> = self
            .inputs
            .iter()
            .zip(args)
            .map(|(input, arg)| {
                let mut value = [R::default()];
                if input.walk.is_scalar() && !arg.bytes.is_empty() {
                    load(input.dtype, arg.bytes, &input.walk, 0, &mut value);
                }
                value[0]
            })
            .collect();
        let outs: SmallVec<[SharedMut<'_, u8>; 4]> = outs
            .iter_mut()
            .map(|out| SharedMut::new(out.bytes))
            .collect();
        let tasks = self.tasks(cx.threads);
        let registers: &mut [R] = bytemuck::cast_slice_mut(&mut *cx.scratch);
        let registers = SharedMut::new(registers);
        let size = self.registers * TILE;
        let tiles = self.len.div_ceil(TILE);
        parallel(cx.threads, tasks, |task| {
            #[expect(unsafe_code, reason = "each task has its own registers")]
            // SAFETY: the ranges of two tasks do not overlap.
            let registers = unsafe { registers.part(task * size..(task + 1) * size) };
            for tile in task * tiles / tasks..(task + 1) * tiles / tasks {
                let start = tile * TILE;
                self.tile(
                    args,
                    &scalars,
                    &outs,
                    registers,
                    start,
                    TILE.min(self.len - start),
                );
            }
        });
    }

    /// Computes the output entries `start..start + len`.
    fn tile<R: Lane>(
        &self,
        args: &[Arg<'_>],
        scalars: &[R],
        outs: &[SharedMut<'_, u8>],
        registers: &mut [R],
        start: usize,
        len: usize,
    ) {
        let registers = SharedMut::new(registers);
        #[expect(
            unsafe_code,
            reason = "registers and outputs are used by one instruction a time"
        )]
        // SAFETY: this holds for all parts taken below: this task alone has these registers and
        // this range of the outputs; the target of an instruction is none of its sources, and an
        // output is written once nothing reads the input given up for it (the program is built
        // so), and read only by those that come after.
        unsafe {
            let read = |source: Src| -> Side<'_, R> {
                match source {
                    Src::Reg(r) => Side::Slice(registers.part(r * TILE..r * TILE + len)),
                    Src::Out(o) => {
                        let size = size_of::<R>();
                        let bytes = outs[o].part(start * size..(start + len) * size);
                        Side::Slice(bytemuck::cast_slice(bytes))
                    }
                    Src::Scalar(input) => Side::Scalar(scalars[input]),
                    Src::Full(input) => {
                        let bytes = self.source(args, outs, input, start, len);
                        Side::Slice(bytemuck::cast_slice(bytes))
                    }
                }
            };
            for instruction in &self.code {
                let out = match instruction.target {
                    Target::Reg(r) => registers.part(r * TILE..r * TILE + len),
                    Target::Out(o) => {
                        let size = size_of::<R>();
                        let bytes = outs[o].part(start * size..(start + len) * size);
                        bytemuck::cast_slice_mut(bytes)
                    }
                };
                match instruction.code {
                    Code::Load(input) => {
                        let Input { dtype, walk } = &self.inputs[input];
                        if walk.is_full() {
                            let bytes = self.source(args, outs, input, start, len);
                            load(*dtype, bytes, walk, 0, out);
                        } else {
                            load(*dtype, args[input].bytes, walk, start, out);
                        }
                    }
                    Code::Unary(op) => match read(instruction.sources[0]) {
                        Side::Slice(x) => R::unary(op, x, out),
                        Side::Scalar(x) => {
                            let mut y = [R::default()];
                            R::unary(op, &[x], &mut y);
                            out.fill(y[0]);
                        }
                    },
                    Code::Binary(op) => {
                        R::binary(
                            op,
                            read(instruction.sources[0]),
                            read(instruction.sources[1]),
                            out,
                        );
                    }
                    Code::Product(kind) => {
                        let [a, b, c] = [0, 1, 2].map(|i| read(instruction.sources[i]));
                        let Side::Slice(a) = a else {
                            unreachable!("a scalar is the second factor");
                        };
                        R::product(kind, a, b, c, out);
                    }
                    Code::NonZero => R::binary(
                        BinaryOp::NotEqual,
                        read(instruction.sources[0]),
                        Side::Scalar(R::default()),
                        out,
                    ),
                    Code::Select => {
                        let [c, a, b] = [0, 1, 2].map(|i| read(instruction.sources[i]));
                        match c {
                            Side::Slice(c) => R::select(c, a, b, out),
                            Side::Scalar(c) => {
                                let only = if c == R::default() { b } else { a };
                                match only {
                                    Side::Slice(x) => out.copy_from_slice(x),
                                    Side::Scalar(x) => out.fill(x),
                                }
                            }
                        }
                    }
                }
            }
            for (o, &(source, dtype)) in self.outputs.iter().enumerate() {
                if source == Src::Out(o) {
                    continue;
                }
                let size = dtype.bits() / 8;
                let target = outs[o].part(start * size..(start + len) * size);
                match read(source) {
                    Side::Slice(x) => store(dtype, x, target),
                    Side::Scalar(x) => {
                        let at = (self.registers - 1) * TILE;
                        let spread = registers.part(at..at + len);
                        spread.fill(x);
                        store(dtype, spread, target);
                    }
                }
            }
        }
    }

    /// The bytes of a tile of an input that lies as the output does; of one that was given up
    /// for an output, the bytes of that output.
    ///
    /// # Safety
    /// That range of the outputs is not written meanwhile.
    #[expect(unsafe_code, reason = "reads an output in place")]
    unsafe fn source<'a>(
        &self,
        args: &[Arg<'a>],
        outs: &'a [SharedMut<'_, u8>],
        input: usize,
        start: usize,
        len: usize,
    ) -> &'a [u8] {
        let size = self.inputs[input].dtype.bits() / 8;
        let range = start * size..(start + len) * size;
        if !args[input].bytes.is_empty() {
            return &args[input].bytes[range];
        }
        let pair = self.given.iter().find(|(i, _)| *i == input);
        let (_, output) = *pair.expect("it was given up for an output");
        // SAFETY: passed on.
        unsafe { outs[output].part(range) }
    }
}

impl Kernel for Program {
    fn name(&self) -> String {
        self.name.clone()
    }

    fn scratch(&self) -> usize {
        let size = match self.class {
            Class::F32 => size_of::<f32>(),
            Class::F64 | Class::I64 => size_of::<f64>(),
        };
        self.tasks(self.threads) * self.registers * TILE * size
    }

    fn in_place(&self) -> &[(usize, usize)] {
        &self.in_place
    }

    fn give(&mut self, pairs: &[(usize, usize)]) {
        self.given = pairs.to_vec();
        self.write_directly();
    }

    fn run(&self, args: &[Arg<'_>], outs: &mut [Out<'_>], cx: &mut RunCx<'_>) -> Result<()> {
        match self.class {
            Class::F32 => self.run_as::<f32>(args, outs, cx),
            Class::F64 => self.run_as::<f64>(args, outs, cx),
            Class::I64 => self.run_as::<i64>(args, outs, cx),
        }
        Ok(())
    }
}

/// Whether [`apply`] has a function.
pub(crate) fn applies(op: UnaryOp) -> bool {
    has_unary(op, true)
}

/// Applies functions to a slice, in order; what `matmul` and `conv` do to their outputs.
pub(crate) fn apply(ops: &[UnaryOp], data: &mut [f32]) {
    if ops.is_empty() {
        return;
    }
    let mut tile = [0f32; TILE];
    for chunk in data.chunks_mut(TILE) {
        for &op in ops {
            let copy = &mut tile[..chunk.len()];
            copy.copy_from_slice(chunk);
            f32::unary(op, copy, chunk);
        }
    }
}

/// The name of a kernel that applies functions to its result: `conv+relu`.
pub(crate) fn with_epilogue(name: &str, epilogue: &[UnaryOp]) -> String {
    epilogue.iter().fold(name.to_string(), |name, op| {
        format!("{name}+{}", op.name().to_lowercase())
    })
}
