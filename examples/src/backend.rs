//! The choice of what computes, which the examples share.

use clap::Args;
#[cfg(not(feature = "tch"))]
use opt_core::ErrorKind;
use opt_core::{Backend, Error, Result};
use opt_ndarray::NdarrayBackend;

/// What computes.
#[derive(Debug, Clone, Args)]
pub struct BackendArgs {
    /// What computes: `ndarray`, or `tch` (libtorch) where it was built in with `--features tch`.
    #[arg(long, default_value = "ndarray", value_name = "NAME")]
    pub backend: String,
    /// The device of `tch`: `cpu`, `cuda`, `cuda:1`, `mps`; the best there is if not given.
    #[arg(long)]
    pub device: Option<String>,
    /// Threads to compute with; all if not given.
    #[arg(long)]
    pub threads: Option<usize>,
}

impl BackendArgs {
    /// The backend.
    ///
    /// # Errors
    /// If there is none of that name, or it has no such device.
    pub fn build(&self) -> Result<Box<dyn Backend>> {
        match self.backend.as_str() {
            "ndarray" if self.device.as_deref().is_none_or(|d| d == "cpu") => {
                let backend = NdarrayBackend::new();
                Ok(Box::new(match self.threads {
                    Some(threads) => backend.threads(threads),
                    None => backend,
                }))
            }
            "ndarray" => Err(Error::invalid(
                "the backend `ndarray` runs on the processor; use `--backend tch --device ..`",
            )),
            "tch" => self.tch(),
            other => Err(Error::invalid(format!(
                "there is no backend `{other}`; use `ndarray` or `tch`"
            ))),
        }
    }

    /// The same backend with one thread, for the latency of one request.
    ///
    /// # Errors
    /// As [`BackendArgs::build`].
    pub fn single(&self) -> Result<Box<dyn Backend>> {
        let single = BackendArgs {
            threads: Some(1),
            ..self.clone()
        };
        single.build()
    }

    #[cfg(feature = "tch")]
    fn tch(&self) -> Result<Box<dyn Backend>> {
        let device = match &self.device {
            Some(device) => device.parse()?,
            None => opt_tch::Device::best(),
        };
        let backend = opt_tch::TchBackend::new(device)?;
        Ok(Box::new(match self.threads {
            Some(threads) => backend.threads(threads),
            None => backend,
        }))
    }

    #[cfg(not(feature = "tch"))]
    fn tch(&self) -> Result<Box<dyn Backend>> {
        Err(Error::new(
            ErrorKind::Backend,
            "this program was built without libtorch; build it with `--features tch` \
             (see the page of opt-tch for what that needs)",
        ))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn args(backend: &str, device: Option<&str>) -> BackendArgs {
        BackendArgs {
            backend: backend.into(),
            device: device.map(Into::into),
            threads: Some(1),
        }
    }

    #[test]
    fn backends_are_had_by_name() {
        assert_eq!(args("ndarray", None).build().unwrap().name(), "ndarray");
        assert!(args("ndarray", Some("cpu")).build().is_ok());
        for (backend, device, text) in [
            ("ndarray", Some("cuda:0"), "--backend tch"),
            ("torch", None, "`ndarray` or `tch`"),
        ] {
            let error = args(backend, device).build().unwrap_err().to_string();
            assert!(error.contains(text), "{error}");
        }
        let tch = args("tch", Some("cpu")).build();
        match cfg!(feature = "tch") {
            true => assert_eq!(tch.unwrap().name(), "tch"),
            false => assert!(tch.unwrap_err().to_string().contains("--features tch")),
        }
    }
}
