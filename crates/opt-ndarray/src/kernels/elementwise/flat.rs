//! What the nodes of a program are as instructions.

use opt_core::ops::{BinaryOp, Op, UnaryOp};
use opt_core::{DType, Error, Result};
use smallvec::SmallVec;

use super::super::lanes::{Product, has_binary, has_unary};
use super::{Operand, Spec, SpecNode};

/// The type that values have in registers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Class {
    F32,
    F64,
    I64,
}

impl Class {
    /// The class of a dtype; booleans are 0 and 1 in each.
    pub(super) fn of(dtype: DType) -> Result<Option<Class>> {
        Ok(match dtype {
            DType::F32 | DType::F16 | DType::BF16 => Some(Class::F32),
            DType::F64 => Some(Class::F64),
            DType::I64 | DType::I32 | DType::I8 | DType::U8 => Some(Class::I64),
            DType::Bool => None,
            other => {
                return Err(Error::unsupported(format!(
                    "element-wise ops on {other}; cast or dequantize first"
                )));
            }
        })
    }

    /// The dtype whose elements are registers' entries as they are.
    pub(super) fn dtype(self) -> DType {
        match self {
            Class::F32 => DType::F32,
            Class::F64 => DType::F64,
            Class::I64 => DType::I64,
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Code {
    /// Brings an input into a register: broadcast, converted, or about to be overwritten.
    Load(usize),
    Unary(UnaryOp),
    Binary(BinaryOp),
    /// A product, and what becomes of it and a third operand.
    Product(Product),
    Select,
    /// 1 where not 0.
    NonZero,
}

/// A node, or a product with the sum or difference that it is part of.
pub(super) struct Flat {
    pub(super) code: Option<Code>,
    pub(super) operands: SmallVec<[Operand; 3]>,
    /// The node whose value it computes.
    pub(super) node: usize,
}

/// The instruction of a node; none if its value is its operand's.
fn code(node: &SpecNode, class: Class) -> Result<Option<Code>> {
    Ok(match &node.op {
        Op::Unary(unary) if has_unary(unary.op, class != Class::I64) => Some(Code::Unary(unary.op)),
        Op::Binary(binary) if has_binary(binary.op) => Some(Code::Binary(binary.op)),
        Op::Where(_) => Some(Code::Select),
        Op::Cast(_) if node.dtype == DType::Bool => Some(Code::NonZero),
        // Booleans are numbers already.
        Op::Cast(_) => None,
        other => {
            let dtype = node.dtype;
            return Err(Error::unsupported(format!("{} on {dtype}", other.name())));
        }
    })
}

/// The nodes with their instructions; products of `f32` that one sum or difference reads, and
/// nothing else, become part of it.
pub(super) fn flatten(
    spec: &Spec,
    class: Class,
    is_scalar: impl Fn(usize) -> bool,
) -> Result<Vec<Flat>> {
    let mut flat: Vec<Option<Flat>> = Vec::with_capacity(spec.nodes.len());
    for (node, own) in spec.nodes.iter().enumerate() {
        flat.push(Some(Flat {
            code: code(own, class)?,
            operands: own.operands.clone(),
            node,
        }));
    }
    if class != Class::F32 {
        return Ok(flat.into_iter().flatten().collect());
    }
    let uses = |node: usize| {
        let operands = spec.nodes.iter().flat_map(|n| &n.operands);
        let reads = operands.filter(|&&o| o == Operand::Node(node)).count();
        reads + usize::from(spec.outputs.contains(&node))
    };
    let scalar = |operand: Operand| match operand {
        Operand::Input(input) => is_scalar(input),
        Operand::Node(_) => false,
    };
    for at in 0..flat.len() {
        let Some(sum) = &flat[at] else { continue };
        let &[x, y] = &sum.operands[..] else { continue };
        // The second operand first: what a difference is taken of is the rarer product.
        let kinds = match sum.code {
            Some(Code::Binary(BinaryOp::Add)) => [(y, x, Product::Plus), (x, y, Product::Plus)],
            Some(Code::Binary(BinaryOp::Sub)) => [(y, x, Product::From), (x, y, Product::Minus)],
            _ => continue,
        };
        for (product, other, kind) in kinds {
            let Operand::Node(from) = product else {
                continue;
            };
            let found = flat[from].as_ref();
            let Some(Code::Binary(BinaryOp::Mul)) = found.and_then(|f| f.code) else {
                continue;
            };
            let &[mut a, mut b] = &spec.nodes[from].operands[..] else {
                continue;
            };
            if scalar(a) {
                (a, b) = (b, a);
            }
            if scalar(a) || uses(from) != 1 {
                continue;
            }
            flat[from] = None;
            flat[at] = Some(Flat {
                code: Some(Code::Product(kind)),
                operands: SmallVec::from_slice(&[a, b, other]),
                node: at,
            });
            break;
        }
    }
    Ok(flat.into_iter().flatten().collect())
}
