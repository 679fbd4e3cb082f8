//! LSTM and GRU, through libtorch's own (cuDNN's on a GPU). Gradients are those of a recorded
//! call.

use opt_core::ops::{Direction, Gru, GruGrad, Lstm, LstmGrad};
use opt_core::{Error, Result};
use tch::Tensor;

use super::{CompileCx, Kernel};
use crate::native::{self, Arg, Operator, Outs, aten};

static LSTM: Operator = Operator::new("lstm.input");
static GRU: Operator = Operator::new("gru.input");

/// An LSTM, or a GRU with the reset gate after the recurrent product.
#[derive(Debug, Clone)]
struct Network {
    hidden: i64,
    direction: Direction,
    initial: bool,
    /// Where libtorch's gates stand in ONNX' order.
    gates: &'static [i64],
}

impl Network {
    fn lstm(op: &Lstm) -> Network {
        Network {
            hidden: op.hidden as i64,
            direction: op.direction,
            initial: op.initial,
            // Input, forget, cell, output from input, output, forget, cell.
            gates: &[0, 2, 3, 1],
        }
    }

    fn gru(op: &Gru) -> Result<Network> {
        if !op.linear_before_reset {
            return Err(Error::unsupported(
                "a GRU whose reset gate applies before the recurrent product; libtorch has \
                 linear_before_reset = true only",
            ));
        }
        Ok(Network {
            hidden: op.hidden as i64,
            direction: op.direction,
            initial: op.initial,
            // Reset, update, new from update, reset, hidden.
            gates: &[1, 0, 2],
        })
    }

    fn is_lstm(&self) -> bool {
        self.gates.len() == 4
    }

    /// How many inputs there are: x, weight, recurrent weight, bias and the initial states.
    fn inputs(&self) -> usize {
        match (self.initial, self.is_lstm()) {
            (false, _) => 4,
            (true, true) => 6,
            (true, false) => 5,
        }
    }

    /// Rows in libtorch's order of gates.
    fn ordered(&self, rows: &Tensor, r: &Recorder) -> Result<Tensor> {
        let parts: Vec<Tensor> = self
            .gates
            .iter()
            .map(|&g| r.narrow(rows, 0, g * self.hidden, self.hidden))
            .collect::<Result<_>>()?;
        r.cat(&parts.iter().collect::<Vec<_>>())
    }

    /// The outputs as the op has them.
    fn run(&self, x: &[&Tensor], recorded: bool) -> Result<Vec<Tensor>> {
        let r = Recorder(recorded);
        let count = self.direction.count() as i64;
        let rows = self.hidden * self.gates.len() as i64;
        let mut weights = Vec::new();
        for d in 0..count {
            let one = |t: &Tensor| r.select(t, d);
            let bias = one(x[3])?;
            weights.push(self.ordered(&one(x[1])?, &r)?);
            weights.push(self.ordered(&one(x[2])?, &r)?);
            weights.push(self.ordered(&r.narrow(&bias, 0, 0, rows)?, &r)?);
            weights.push(self.ordered(&r.narrow(&bias, 0, rows, rows)?, &r)?);
        }
        let backwards = self.direction == Direction::Reverse;
        let input = match backwards {
            true => r.flip(x[0])?,
            false => x[0].shallow_clone(),
        };
        let size = input.size();
        let zeros;
        let states: Vec<&Tensor> = if self.initial {
            x[4..self.inputs()].to_vec()
        } else {
            zeros = aten!("new_zeros", x[0], &[count, size[1], self.hidden])?;
            vec![&zeros; if self.is_lstm() { 2 } else { 1 }]
        };
        let params: Vec<&Tensor> = weights.iter().collect();
        let both = self.direction == Direction::Bidirectional;
        let (lstm, gru) = (&LSTM, &GRU);
        let rest = [
            Arg::Tensors(&params),
            Arg::Bool(true),
            Arg::Int(1),
            Arg::Float(0.0),
            Arg::Bool(recorded),
            Arg::Bool(both),
            Arg::Bool(false),
        ];
        let mut outs = match self.is_lstm() {
            true => {
                let args = [&[Arg::Tensor(&input), Arg::Tensors(&states)], &rest[..]].concat();
                r.call(lstm, &args)?
            }
            false => {
                let args = [&[Arg::Tensor(&input), Arg::Tensor(states[0])], &rest[..]].concat();
                r.call(gru, &args)?
            }
        }
        .into_vec();
        // [T, N, D H] to [T, D, N, H].
        let mut y = r.reshape(&outs[0], &[size[0], size[1], count, self.hidden])?;
        y = r.transpose(&y, 1, 2)?;
        if backwards {
            y = r.flip(&y)?;
        }
        outs[0] = y;
        Ok(outs)
    }

    fn forward(self, name: &'static str) -> Kernel {
        Kernel::new(name, move |x, _| Ok(Outs::from_vec(self.run(x, false)?)))
    }

    /// After the outputs, those recorded and the inputs to differentiate by.
    fn recorded(self, name: &'static str) -> Kernel {
        Kernel::new(name, move |x, _| {
            let leaves: Vec<Tensor> = x.iter().map(|t| native::leaf(t)).collect::<Result<_>>()?;
            let outs = self.run(&leaves.iter().collect::<Vec<_>>(), true)?;
            let mut all = Outs::new();
            for y in &outs {
                all.push(aten!("detach", y)?);
            }
            all.extend(outs);
            all.extend(leaves);
            Ok(all)
        })
    }

    /// The gradients from the outputs' gradients, the recorded outputs and the leaves.
    fn backward(self, name: &'static str) -> Kernel {
        let outputs = if self.is_lstm() { 3 } else { 2 };
        Kernel::new(name, move |x, _| {
            let (grads, rest) = x.split_at(outputs);
            let (recorded, leaves) = rest.split_at(outputs);
            differentiate(recorded, grads, leaves)
        })
    }

    /// The gradients from the op's inputs and its outputs' gradients: the network runs again.
    fn again(self, name: &'static str) -> Kernel {
        Kernel::new(name, move |x, _| {
            let (inputs, grads) = x.split_at(self.inputs());
            let leaves: Vec<Tensor> = inputs
                .iter()
                .map(|t| native::leaf(t))
                .collect::<Result<_>>()?;
            let leaves: Vec<&Tensor> = leaves.iter().collect();
            let outs = self.run(&leaves, true)?;
            differentiate(&outs.iter().collect::<Vec<_>>(), grads, &leaves)
        })
    }
}

fn differentiate(recorded: &[&Tensor], grads: &[&Tensor], leaves: &[&Tensor]) -> Result<Outs> {
    let found = native::gradients(recorded, grads, leaves)?;
    let pairs = found.into_iter().zip(leaves);
    pairs
        .map(|(g, leaf)| match g.defined() {
            true => Ok(g),
            false => aten!("zeros_like", &aten!("detach", *leaf)?),
        })
        .collect()
}

/// Calls that are recorded, or not.
struct Recorder(bool);

macro_rules! recorder {
    ($self:ident, $name:literal $(, $arg:expr)*) => {{
        static OPERATOR: Operator = Operator::new($name);
        native::first($self.call(&OPERATOR, &[$(Arg::from($arg)),*]))
    }};
}

impl Recorder {
    fn call(&self, op: &Operator, args: &[Arg<'_>]) -> Result<Outs> {
        match self.0 {
            true => op.record(args),
            false => op.call(args),
        }
    }

    fn narrow(&self, x: &Tensor, axis: i64, start: i64, len: i64) -> Result<Tensor> {
        recorder!(self, "narrow", x, axis, start, len)
    }

    fn select(&self, x: &Tensor, index: i64) -> Result<Tensor> {
        recorder!(self, "select.int", x, 0i64, index)
    }

    fn cat(&self, parts: &[&Tensor]) -> Result<Tensor> {
        recorder!(self, "cat", parts, 0i64)
    }

    fn flip(&self, x: &Tensor) -> Result<Tensor> {
        recorder!(self, "flip", x, &[0])
    }

    fn reshape(&self, x: &Tensor, shape: &[i64]) -> Result<Tensor> {
        recorder!(self, "reshape", x, shape)
    }

    fn transpose(&self, x: &Tensor, a: i64, b: i64) -> Result<Tensor> {
        recorder!(self, "transpose.int", x, a, b)
    }
}

pub(super) fn compile_lstm(op: &Lstm) -> Result<Kernel> {
    Ok(Network::lstm(op).forward("lstm"))
}

pub(super) fn compile_gru(op: &Gru) -> Result<Kernel> {
    Ok(Network::gru(op)?.forward("gru"))
}

pub(super) fn compile_lstm_grad(op: &LstmGrad, _: &CompileCx<'_>) -> Result<Kernel> {
    Ok(Network::lstm(&op.lstm).again("lstm_backward"))
}

pub(super) fn compile_gru_grad(op: &GruGrad, _: &CompileCx<'_>) -> Result<Kernel> {
    Ok(Network::gru(&op.gru)?.again("gru_backward"))
}

/// An LSTM that is recorded for [`compile_lstm_backward`].
pub(crate) fn compile_lstm_recorded(op: &Lstm) -> Kernel {
    Network::lstm(op).recorded("lstm")
}

/// The gradients of a recorded LSTM.
pub(crate) fn compile_lstm_backward(op: &Lstm) -> Kernel {
    Network::lstm(op).backward("lstm_backward")
}

/// A GRU that is recorded for [`compile_gru_backward`].
pub(crate) fn compile_gru_recorded(op: &Gru) -> Result<Kernel> {
    Ok(Network::gru(op)?.recorded("gru"))
}

/// The gradients of a recorded GRU.
pub(crate) fn compile_gru_backward(op: &Gru) -> Result<Kernel> {
    Ok(Network::gru(op)?.backward("gru_backward"))
}
