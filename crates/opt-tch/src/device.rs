//! Where tensors live.

use std::fmt;
use std::str::FromStr;

use opt_core::{Error, ErrorKind, Result};

use crate::load;

/// A device of libtorch.
///
/// ```
/// use opt_tch::Device;
///
/// assert_eq!("cuda:1".parse::<Device>()?, Device::Cuda(1));
/// assert_eq!("cuda".parse::<Device>()?, Device::Cuda(0));
/// assert_eq!(Device::Cpu.to_string(), "cpu");
/// # Ok::<(), opt_core::Error>(())
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
#[non_exhaustive]
pub enum Device {
    /// The processor.
    #[default]
    Cpu,
    /// An NVIDIA GPU, by its index; AMD's too, where libtorch was built for ROCm.
    Cuda(usize),
    /// Apple's GPU.
    Mps,
}

impl Device {
    /// The first CUDA device if there is one, else MPS, else the processor.
    ///
    /// ```
    /// let device = opt_tch::Device::best();
    /// println!("running on {device}");
    /// ```
    pub fn best() -> Device {
        if load::cuda_devices() > 0 {
            Device::Cuda(0)
        } else if crate::native::has_mps() {
            Device::Mps
        } else {
            Device::Cpu
        }
    }

    /// The number that stands for the device at the border to C.
    pub(crate) fn index(self) -> i32 {
        match self {
            Device::Cpu => -1,
            Device::Mps => -2,
            Device::Cuda(i) => i32::try_from(i).unwrap_or(i32::MAX),
        }
    }

    /// Fails unless libtorch can use the device.
    pub(crate) fn check(self) -> Result<()> {
        let missing = |what: String| {
            Err(Error::new(
                ErrorKind::Backend,
                format!("{what}; opt_tch::doctor() says what was found and how to mend it"),
            ))
        };
        match self {
            Device::Cpu => Ok(()),
            Device::Cuda(i) => match load::cuda_devices() {
                0 => missing(format!("there is no CUDA device for `{self}`")),
                n if i >= n => missing(format!(
                    "there is no CUDA device `{self}`: {n} were found, counted from 0"
                )),
                _ => Ok(()),
            },
            Device::Mps if crate::native::has_mps() => Ok(()),
            Device::Mps => missing("this libtorch has no MPS device".to_string()),
        }
    }
}

impl fmt::Display for Device {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Device::Cpu => write!(f, "cpu"),
            Device::Cuda(i) => write!(f, "cuda:{i}"),
            Device::Mps => write!(f, "mps"),
        }
    }
}

impl FromStr for Device {
    type Err = Error;

    /// Reads `cpu`, `cuda`, `cuda:1`, `mps`, as PyTorch writes them.
    fn from_str(text: &str) -> Result<Device> {
        let index = |digits: &str| digits.parse().ok().filter(|&i: &usize| i < 256);
        let device = match text.split_once(':') {
            None if text == "cpu" => Some(Device::Cpu),
            None if text == "cuda" => Some(Device::Cuda(0)),
            None if text == "mps" => Some(Device::Mps),
            Some(("cuda", digits)) => index(digits).map(Device::Cuda),
            _ => None,
        };
        device.ok_or_else(|| {
            Error::invalid(format!(
                "`{text}` is no device; write cpu, cuda, cuda:0 (an index) or mps"
            ))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_pytorchs() {
        for (text, device) in [
            ("cpu", Device::Cpu),
            ("cuda", Device::Cuda(0)),
            ("cuda:3", Device::Cuda(3)),
            ("mps", Device::Mps),
        ] {
            assert_eq!(text.parse::<Device>().unwrap(), device);
            assert_eq!(device.to_string().parse::<Device>().unwrap(), device);
        }
        for text in ["", "gpu", "cuda:", "cuda:-1", "cuda:999", "cpu:0", "CUDA"] {
            let error = text.parse::<Device>().unwrap_err();
            assert!(error.to_string().contains("cuda:0"), "{text}: {error}");
        }
    }
}
