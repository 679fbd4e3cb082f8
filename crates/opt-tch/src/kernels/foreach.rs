//! Element-wise functions of lists of tensors.

use opt_core::ops::{BinaryOp, UnaryOp};
use opt_core::{Op, Result};
use tch::Tensor;

use super::Kernel;
use crate::compile::fused::{Foreach, Operand, missing};
use crate::native::{Arg, Operator};

macro_rules! operator {
    ($name:literal) => {{
        static OPERATOR: Operator = Operator::new($name);
        &OPERATOR
    }};
}

pub(crate) fn compile(foreach: &Foreach) -> Result<Kernel> {
    let unknown = || missing(&format!("{} of a list", foreach.op.name()));
    let operator = match (&foreach.op, &foreach.second) {
        (Op::Unary(op), None) => match op.op {
            UnaryOp::Neg => operator!("_foreach_neg"),
            UnaryOp::Abs => operator!("_foreach_abs"),
            UnaryOp::Sqrt => operator!("_foreach_sqrt"),
            UnaryOp::Reciprocal => operator!("_foreach_reciprocal"),
            UnaryOp::Sign => operator!("_foreach_sign"),
            _ => return Err(unknown()),
        },
        (Op::Binary(op), Some(second)) => match (op.op, second) {
            (BinaryOp::Add, Operand::List) => operator!("_foreach_add.List"),
            (BinaryOp::Sub, Operand::List) => operator!("_foreach_sub.List"),
            (BinaryOp::Mul, Operand::List) => operator!("_foreach_mul.List"),
            (BinaryOp::Div, Operand::List) => operator!("_foreach_div.List"),
            (BinaryOp::Max, Operand::List) => operator!("_foreach_maximum.List"),
            (BinaryOp::Min, Operand::List) => operator!("_foreach_minimum.List"),
            (BinaryOp::Add, Operand::Number(_)) => operator!("_foreach_add.Scalar"),
            (BinaryOp::Sub, Operand::Number(_)) => operator!("_foreach_sub.Scalar"),
            (BinaryOp::Mul, Operand::Number(_)) => operator!("_foreach_mul.Scalar"),
            (BinaryOp::Div, Operand::Number(_)) => operator!("_foreach_div.Scalar"),
            (BinaryOp::Max, Operand::Number(_)) => operator!("_foreach_clamp_min.Scalar"),
            (BinaryOp::Min, Operand::Number(_)) => operator!("_foreach_clamp_max.Scalar"),
            (BinaryOp::Add, Operand::One) => operator!("_foreach_add.Tensor"),
            (BinaryOp::Mul, Operand::One) => operator!("_foreach_mul.Tensor"),
            (BinaryOp::Div, Operand::One) => operator!("_foreach_div.Tensor"),
            _ => return Err(unknown()),
        },
        _ => return Err(unknown()),
    };
    let (count, second) = (foreach.count, foreach.second.clone());
    let name = format!("_foreach_{}", foreach.op.name().to_lowercase());
    Ok(Kernel::new(name, move |x: &[&Tensor], _| {
        let (first, rest) = x.split_at(count);
        let mut args = vec![Arg::Tensors(first)];
        match &second {
            None => {}
            Some(Operand::List) => args.push(Arg::Tensors(rest)),
            Some(Operand::Number(number)) => args.push(Arg::Float(*number)),
            Some(Operand::One) => args.push(Arg::Tensor(rest[0])),
        }
        operator.call_list(&args, count)
    }))
}
