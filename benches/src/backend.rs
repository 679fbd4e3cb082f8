//! The backends by name. No other file of the benchmarks names one.

use opt_core::Backend;
use opt_ndarray::NdarrayBackend;

use crate::Failure;

/// A backend on a device (`cpu`, `cuda:0`) with a number of threads.
///
/// # Errors
/// If there is no such backend, it was left out of this build, or it does not know the device.
pub fn open(name: &str, device: &str, threads: usize) -> Result<Box<dyn Backend>, Failure> {
    match name {
        "ndarray" if device == "cpu" => Ok(Box::new(NdarrayBackend::new().threads(threads))),
        "ndarray" => Err(format!("the backend ndarray runs on cpu only, not on {device}").into()),
        #[cfg(feature = "tch")]
        "tch" => {
            let device = device.parse::<opt_tch::Device>()?;
            Ok(Box::new(opt_tch::TchBackend::new(device)?.threads(threads)))
        }
        #[cfg(not(feature = "tch"))]
        "tch" => Err("the backend tch needs a worker that is built with the feature tch".into()),
        _ => Err(format!("no backend {name}; there are ndarray and tch").into()),
    }
}

#[cfg(test)]
mod tests {
    use super::open;

    #[test]
    fn backends_are_found_by_name() {
        assert_eq!(open("ndarray", "cpu", 1).unwrap().name(), "ndarray");
        let fails = |name, device| open(name, device, 1).unwrap_err().to_string();
        assert!(fails("ndarray", "cuda:0").contains("cuda:0"));
        assert!(fails("cudnn", "cpu").contains("no backend cudnn"));
    }
}
