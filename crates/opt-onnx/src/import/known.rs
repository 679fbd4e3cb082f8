//! Values whose content is known while a model is imported.
//!
//! ONNX computes shapes with tensors; this library has them as attributes. So the importer
//! carries the content of small tensors along, with symbols where a size is not bound yet.

use opt_core::tensor::Dims;
use opt_core::{DType, Dim, Error, Result, Shape, SizeExpr, Tensor};

/// Content larger than this is left to the backend's constant folding.
pub(crate) const MAX_ITEMS: usize = 1 << 14;

/// One number.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Item {
    /// An integer or boolean, perhaps symbolic.
    Int(SizeExpr),
    /// A floating-point number.
    Num(f64),
}

impl Item {
    pub(crate) fn int(value: i64) -> Item {
        Item::Int(value.into())
    }

    pub(crate) fn as_i64(&self) -> Option<i64> {
        match self {
            Item::Int(e) => e.as_constant(),
            Item::Num(_) => None,
        }
    }

    pub(crate) fn as_f64(&self) -> Option<f64> {
        match self {
            Item::Int(e) => e.as_constant().map(|v| v as f64),
            Item::Num(v) => Some(*v),
        }
    }
}

/// A small array of known content, row-major.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Items {
    pub(crate) dtype: DType,
    pub(crate) shape: Dims,
    pub(crate) items: Vec<Item>,
}

impl Items {
    pub(crate) fn new(dtype: DType, shape: &[usize], items: Vec<Item>) -> Items {
        debug_assert_eq!(shape.iter().product::<usize>(), items.len());
        Items {
            dtype,
            shape: shape.into(),
            items,
        }
    }

    /// The content of a tensor; `None` if it is too large, or of a type without exact items.
    pub(crate) fn of(tensor: &Tensor) -> Option<Items> {
        if tensor.len() > MAX_ITEMS {
            return None;
        }
        let dtype = tensor.dtype();
        let items = if dtype == DType::I64 {
            let values = tensor.to_vec::<i64>().ok()?;
            values.into_iter().map(Item::int).collect()
        } else if dtype.is_float() {
            tensor.to_f64s().into_iter().map(Item::Num).collect()
        } else if !(dtype.is_int() || dtype == DType::Bool) {
            // Floats that only store numbers are not computed with.
            return None;
        } else if dtype.bits() == 64 {
            // Unsigned numbers may not fit.
            return None;
        } else {
            let values = tensor.to_f64s();
            values.into_iter().map(|v| Item::int(v as i64)).collect()
        };
        Some(Items::new(dtype, tensor.shape(), items))
    }

    /// The shape of a value as content.
    pub(crate) fn of_dims(dims: &[Dim]) -> Items {
        let items = dims.iter().map(|d| Item::Int(d.expr())).collect();
        Items::new(DType::I64, &[dims.len()], items)
    }

    /// The content as a tensor, unless a symbol is in it.
    pub(crate) fn tensor(&self) -> Option<Tensor> {
        if self.dtype.is_float() {
            let values: Option<Vec<f64>> = self.items.iter().map(Item::as_f64).collect();
            return Tensor::from_f64s(self.dtype, &self.shape, &values?).ok();
        }
        let values: Vec<i64> = self.items.iter().map(Item::as_i64).collect::<Option<_>>()?;
        if self.dtype == DType::I64 {
            return Tensor::new(&self.shape, values).ok();
        }
        let values: Vec<f64> = values.into_iter().map(|v| v as f64).collect();
        Tensor::from_f64s(self.dtype, &self.shape, &values).ok()
    }

    /// The content as sizes of dimensions.
    pub(crate) fn dims(&self) -> Result<Shape> {
        self.items
            .iter()
            .map(|item| match item {
                Item::Int(e) => e.clone().dim(),
                Item::Num(v) => Err(Error::dtype(format!("{v} is no size"))),
            })
            .collect()
    }

    /// The same items in another shape.
    pub(crate) fn reshaped(&self, shape: &[usize]) -> Items {
        Items::new(self.dtype, shape, self.items.clone())
    }

    /// The items at the numbers that a tensor of row-major positions has.
    pub(crate) fn pick(&self, positions: &Tensor) -> Option<Items> {
        let at = positions.to_vec::<i64>().ok()?;
        let items: Option<Vec<Item>> = at
            .iter()
            .map(|&i| self.items.get(usize::try_from(i).ok()?).cloned())
            .collect();
        Some(Items::new(self.dtype, positions.shape(), items?))
    }

    /// The row-major positions of the items, as a tensor to move around.
    pub(crate) fn positions(&self) -> Option<Tensor> {
        let all: Vec<i64> = (0..self.items.len() as i64).collect();
        Tensor::new(&self.shape, all).ok()
    }
}

/// What is known of a value's content.
#[derive(Debug, Clone)]
pub(crate) enum Known {
    /// All of it.
    Tensor(Tensor),
    /// All of it, but for symbols.
    Items(Items),
}

impl Known {
    pub(crate) fn items(&self) -> Option<Items> {
        match self {
            Known::Tensor(t) => Items::of(t),
            Known::Items(i) => Some(i.clone()),
        }
    }

    pub(crate) fn tensor(&self) -> Option<Tensor> {
        match self {
            Known::Tensor(t) => Some(t.clone()),
            Known::Items(i) => i.tensor(),
        }
    }
}
