//! Calls of libtorch's operators by their schemas, through the dispatcher.
//!
//! tch binds operators one function each, leaves many out (native backward functions, fused and
//! multi-tensor optimizer steps) and drops the optional scalars of others; here one call takes
//! any operator, and missing last arguments have the schema's defaults.

#![allow(unsafe_code)]

mod pool;

use std::ffi::{CStr, CString, c_char, c_int, c_void};
use std::ptr;
use std::sync::OnceLock;

use opt_core::{Error, ErrorKind, Result};
use smallvec::SmallVec;
use tch::Tensor;
use torch_sys::C_tensor;

use crate::Device;
pub(crate) use pool::Pool;

/// What an operator gives; lists stand one entry after the other.
pub(crate) type Outs = SmallVec<[Tensor; 3]>;

/// Results that a call makes room for; an operator that gives more is an error.
const CAPACITY: usize = 32;

/// An argument of an operator.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Arg<'a> {
    None,
    Tensor(&'a Tensor),
    Int(i64),
    Float(f64),
    Bool(bool),
    Ints(&'a [i64]),
    Bools(&'a [bool]),
    Tensors(&'a [&'a Tensor]),
    Str(&'a str),
    Device(Device),
}

macro_rules! from {
    ($($ty:ty => $variant:ident $(.$as:ident())?;)*) => {$(
        impl<'a> From<$ty> for Arg<'a> {
            fn from(value: $ty) -> Arg<'a> {
                Arg::$variant(value$(.$as())?)
            }
        }
    )*};
}

from! {
    &'a Tensor => Tensor;
    i64 => Int;
    f64 => Float;
    bool => Bool;
    &'a [i64] => Ints;
    &'a Vec<i64> => Ints.as_slice();
    &'a [bool] => Bools;
    &'a [&'a Tensor] => Tensors;
    &'a Vec<&'a Tensor> => Tensors.as_slice();
    &'a str => Str;
    Device => Device;
}

impl<'a, const N: usize> From<&'a [i64; N]> for Arg<'a> {
    fn from(value: &'a [i64; N]) -> Arg<'a> {
        Arg::Ints(value)
    }
}

impl<'a, const N: usize> From<&'a [bool; N]> for Arg<'a> {
    fn from(value: &'a [bool; N]) -> Arg<'a> {
        Arg::Bools(value)
    }
}

impl<'a, T: Into<Arg<'a>>> From<Option<T>> for Arg<'a> {
    fn from(value: Option<T>) -> Arg<'a> {
        value.map_or(Arg::None, Into::into)
    }
}

/// `Arg` as the shim reads it.
#[repr(C)]
struct Raw {
    tag: i32,
    flag: i32,
    integer: i64,
    real: f64,
    data: *const c_void,
    len: usize,
}

unsafe extern "C" {
    fn opt_tch_last_error() -> *const c_char;
    fn opt_tch_version() -> *const c_char;
    fn opt_tch_find(name: *const c_char, overload: *const c_char) -> *const c_void;
    fn opt_tch_call(
        op: *const c_void,
        args: *const Raw,
        len: usize,
        recorded: c_int,
        outs: *mut *mut C_tensor,
        capacity: usize,
    ) -> c_int;
    fn opt_tch_leaf(t: *const C_tensor) -> *mut C_tensor;
    fn opt_tch_grad(
        outputs: *const *const C_tensor,
        gradients: *const *const C_tensor,
        n: usize,
        inputs: *const *const C_tensor,
        m: usize,
        results: *mut *mut C_tensor,
    ) -> c_int;
    fn opt_tch_set_tf32(allowed: c_int);
    fn opt_tch_memory(device: c_int, free: *mut u64, total: *mut u64) -> c_int;
    fn opt_tch_empty_cache(device: c_int) -> c_int;
    fn opt_tch_synchronize(device: c_int) -> c_int;
    fn opt_tch_has_mps() -> c_int;
    fn opt_tch_cudnn_version() -> i64;
}

/// An operator, looked up at its first use.
pub(crate) struct Operator {
    name: &'static str,
    found: OnceLock<Handle>,
}

/// A `c10::OperatorHandle`, or null.
#[derive(Clone, Copy)]
struct Handle(*const c_void);

// SAFETY: the dispatcher's handles are immutable and live as long as the process.
unsafe impl Send for Handle {}
// SAFETY: as above.
unsafe impl Sync for Handle {}

impl Operator {
    /// The operator of a name such as `add.Tensor`, in the namespace `aten` unless it names one.
    pub(crate) const fn new(name: &'static str) -> Operator {
        Operator {
            name,
            found: OnceLock::new(),
        }
    }

    fn handle(&self) -> Result<Handle> {
        let handle = *self.found.get_or_init(|| {
            let (name, overload) = self.name.split_once('.').unwrap_or((self.name, ""));
            let name = match name.contains("::") {
                true => name.to_string(),
                false => format!("aten::{name}"),
            };
            let (Ok(name), Ok(overload)) = (CString::new(name), CString::new(overload)) else {
                return Handle(ptr::null());
            };
            // SAFETY: both are strings that live through the call.
            Handle(unsafe { opt_tch_find(name.as_ptr(), overload.as_ptr()) })
        });
        if handle.0.is_null() {
            return Err(Error::new(
                ErrorKind::Backend,
                format!("libtorch {} has no operator `{}`", version(), self.name),
            ));
        }
        Ok(handle)
    }

    /// Calls the operator outside autograd.
    pub(crate) fn call(&self, args: &[Arg<'_>]) -> Result<Outs> {
        self.invoke(args, false, &mut [ptr::null_mut(); CAPACITY])
    }

    /// Calls an operator that gives a list of a length.
    pub(crate) fn call_list(&self, args: &[Arg<'_>], len: usize) -> Result<Outs> {
        self.invoke(args, false, &mut vec![ptr::null_mut(); len])
    }

    /// Calls the operator and records it for [`gradients`].
    pub(crate) fn record(&self, args: &[Arg<'_>]) -> Result<Outs> {
        self.invoke(args, true, &mut [ptr::null_mut(); CAPACITY])
    }

    fn invoke(&self, args: &[Arg<'_>], recorded: bool, outs: &mut [*mut C_tensor]) -> Result<Outs> {
        let handle = self.handle()?;
        // The shim reads lists of tensors as pointers.
        let lists: SmallVec<[Vec<*const C_tensor>; 2]> = args
            .iter()
            .filter_map(|arg| match arg {
                Arg::Tensors(list) => Some(list.iter().map(|t| t.as_ptr()).collect()),
                _ => None,
            })
            .collect();
        let mut next = lists.iter();
        let raw: SmallVec<[Raw; 12]> = args
            .iter()
            .map(|arg| match arg {
                Arg::Tensors(_) => {
                    let list: &[*const C_tensor] = next.next().map_or(&[], Vec::as_slice);
                    Raw::list(7, list)
                }
                other => Raw::of(other),
            })
            .collect();
        // SAFETY: the handle is an operator's; the arguments, and what they point to, live
        // through the call; there is room for as many results as is said.
        let count = unsafe {
            opt_tch_call(
                handle.0,
                raw.as_ptr(),
                raw.len(),
                c_int::from(recorded),
                outs.as_mut_ptr(),
                outs.len(),
            )
        };
        let Ok(count) = usize::try_from(count) else {
            return Err(failure());
        };
        Ok(outs[..count].iter().map(|&out| own(out)).collect())
    }
}

impl Raw {
    fn new(tag: i32) -> Raw {
        Raw {
            tag,
            flag: 0,
            integer: 0,
            real: 0.0,
            data: ptr::null(),
            len: 0,
        }
    }

    fn list<T>(tag: i32, list: &[T]) -> Raw {
        Raw {
            data: list.as_ptr().cast(),
            len: list.len(),
            ..Raw::new(tag)
        }
    }

    fn of(arg: &Arg<'_>) -> Raw {
        match *arg {
            Arg::None | Arg::Tensors(_) => Raw::new(0),
            Arg::Tensor(t) => Raw {
                data: t.as_ptr().cast(),
                ..Raw::new(1)
            },
            Arg::Int(integer) => Raw {
                integer,
                ..Raw::new(2)
            },
            Arg::Float(real) => Raw {
                real,
                ..Raw::new(3)
            },
            Arg::Bool(flag) => Raw {
                flag: i32::from(flag),
                ..Raw::new(4)
            },
            Arg::Ints(list) => Raw::list(5, list),
            Arg::Bools(list) => Raw::list(6, list),
            Arg::Str(text) => Raw::list(9, text.as_bytes()),
            Arg::Device(device) => Raw {
                integer: i64::from(device.index()),
                ..Raw::new(10)
            },
        }
    }
}

/// A result of the shim; null, which stands for what is no tensor, gives an undefined one.
fn own(result: *mut C_tensor) -> Tensor {
    if result.is_null() {
        return Tensor::new();
    }
    // SAFETY: the shim gives a tensor of its own allocation, which tch frees when it is dropped.
    unsafe { Tensor::from_ptr(result) }
}

/// The error that the last call on this thread left.
fn failure() -> Error {
    // SAFETY: the string lives until the next failure on this thread.
    let text = unsafe { CStr::from_ptr(opt_tch_last_error()) }.to_string_lossy();
    let text = text.trim();
    let short = text
        .split("\nException raised from")
        .next()
        .unwrap_or_default();
    let mut message = format!("libtorch: {}", short.trim());
    if is_out_of_memory(text) {
        if let Some(free) = host_memory().filter(|_| text.contains("DefaultCPUAllocator")) {
            message.push_str(&format!(" ({free} bytes of memory are free)"));
        }
        message.push_str("; use a smaller batch, or end what else holds memory of the device");
    }
    Error::new(ErrorKind::Backend, message)
}

/// Whether a message of libtorch says that memory could not be had.
pub(crate) fn is_out_of_memory(message: &str) -> bool {
    message.contains("out of memory") || message.contains("can't allocate memory")
}

/// Bytes of memory that the system could give, where it says so.
fn host_memory() -> Option<u64> {
    let info = std::fs::read_to_string("/proc/meminfo").ok()?;
    let line = info.lines().find(|l| l.starts_with("MemAvailable:"))?;
    let kibibytes: u64 = line.split_whitespace().nth(1)?.parse().ok()?;
    kibibytes.checked_mul(1024)
}

/// A tensor of the same content by which recorded calls can be differentiated.
pub(crate) fn leaf(t: &Tensor) -> Result<Tensor> {
    // SAFETY: the tensor lives through the call.
    let leaf = unsafe { opt_tch_leaf(t.as_ptr()) };
    if leaf.is_null() {
        return Err(failure());
    }
    Ok(own(leaf))
}

/// The gradients by leaves of what recorded calls gave, from the gradients by that; undefined
/// where a leaf had no part in it. What was recorded is gone afterwards.
pub(crate) fn gradients(
    outputs: &[&Tensor],
    grads: &[&Tensor],
    leaves: &[&Tensor],
) -> Result<Outs> {
    let pointers = |list: &[&Tensor]| -> SmallVec<[*const C_tensor; 8]> {
        list.iter().map(|t| t.as_ptr()).collect()
    };
    let (outs, gs, ins) = (pointers(outputs), pointers(grads), pointers(leaves));
    let mut results = vec![ptr::null_mut::<C_tensor>(); leaves.len()];
    // SAFETY: the lists hold tensors that live through the call, and as many as is said.
    let status = unsafe {
        opt_tch_grad(
            outs.as_ptr(),
            gs.as_ptr(),
            outs.len().min(gs.len()),
            ins.as_ptr(),
            ins.len(),
            results.as_mut_ptr(),
        )
    };
    if status != 0 {
        return Err(failure());
    }
    Ok(results.into_iter().map(own).collect())
}

/// Memory of the program as a tensor of the processor, without a copy.
///
/// # Safety
/// The memory outlives the tensor and all that shares its memory, nothing writes to it meanwhile,
/// and it holds as many elements as the shape has.
pub(crate) unsafe fn borrowed(bytes: &[u8], shape: &[i64], kind: tch::Kind) -> Result<Tensor> {
    // SAFETY: as the caller vouches.
    let tensor = unsafe { Tensor::f_from_blob(bytes.as_ptr(), shape, &[], kind, tch::Device::Cpu) };
    tensor.map_err(crate::convert::failed)
}

/// The version of the libtorch that this was compiled against, such as `2.11.0`.
pub(crate) fn version() -> String {
    // SAFETY: a string constant.
    unsafe { CStr::from_ptr(opt_tch_version()) }
        .to_string_lossy()
        .into_owned()
}

/// Whether f32 products on CUDA may round their factors to TF32, in the whole process.
pub(crate) fn set_tf32(allowed: bool) {
    // SAFETY: takes a number.
    unsafe { opt_tch_set_tf32(c_int::from(allowed)) }
}

/// Free and total bytes of a device; `None` for the processor, and where libtorch does not say.
pub(crate) fn memory(device: Device) -> Option<(u64, u64)> {
    if device == Device::Cpu {
        return None;
    }
    let (mut free, mut total) = (0, 0);
    // SAFETY: both places live through the call.
    let status = unsafe { opt_tch_memory(device.index(), &raw mut free, &raw mut total) };
    (status == 0).then_some((free, total))
}

/// Gives cached blocks back to a device.
pub(crate) fn empty_cache(device: Device) {
    if device != Device::Cpu {
        // SAFETY: takes a number; a failure is of no consequence here.
        unsafe { opt_tch_empty_cache(device.index()) };
    }
}

/// Waits until a device has done all it was given.
pub(crate) fn synchronize(device: Device) -> Result<()> {
    // SAFETY: takes a number.
    match unsafe { opt_tch_synchronize(device.index()) } {
        0 => Ok(()),
        _ => Err(failure()),
    }
}

pub(crate) fn has_mps() -> bool {
    // SAFETY: takes nothing.
    unsafe { opt_tch_has_mps() != 0 }
}

/// cuDNN's version as a number, such as 91900; 0 without it.
pub(crate) fn cudnn_version() -> i64 {
    // SAFETY: takes nothing.
    unsafe { opt_tch_cudnn_version() }
}

/// Calls an operator of libtorch by its schema; gives all its results.
macro_rules! atens {
    ($name:literal $(, $arg:expr)* $(,)?) => {{
        static OPERATOR: $crate::native::Operator = $crate::native::Operator::new($name);
        OPERATOR.call(&[$($crate::native::Arg::from($arg)),*])
    }};
}

/// Calls an operator of libtorch by its schema; gives its first result.
macro_rules! aten {
    ($name:literal $(, $arg:expr)* $(,)?) => {
        $crate::native::first($crate::native::atens!($name $(, $arg)*))
    };
}

/// The first result of a call.
pub(crate) fn first(outs: Result<Outs>) -> Result<Tensor> {
    let first = outs?.into_iter().next();
    first.ok_or_else(|| Error::new(ErrorKind::Backend, "libtorch gave no result"))
}

pub(crate) use {aten, atens};
