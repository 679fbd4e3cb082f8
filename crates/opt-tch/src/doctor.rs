//! What this program finds of libtorch, and how to mend what is missing.

use std::fmt;
use std::path::PathBuf;

use crate::load::{self, Loaded};
use crate::{Device, native};

/// The libtorch version that the bindings are for.
const WANTED: &str = "2.11.0";

/// What was found: [`doctor`] makes it, and it prints as a report.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct Diagnosis {
    /// The version of the libtorch that this program was compiled against.
    pub compiled: String,
    /// The version of the libtorch that it runs with, where its folder says.
    pub running: Option<String>,
    /// The folder that libtorch was loaded from.
    pub folder: Option<PathBuf>,
    /// Whether libtorch's CUDA half is there and loaded.
    pub cuda: bool,
    /// cuDNN's version, as 9.19.0.
    pub cudnn: Option<String>,
    /// Threads of one operator on the processor.
    pub threads: usize,
    /// The devices that can be used.
    pub devices: Vec<DeviceInfo>,
    /// What is missing or wrong.
    pub problems: Vec<Problem>,
}

/// A device that can be used.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct DeviceInfo {
    /// The device.
    pub device: Device,
    /// Its memory in bytes: free and total, where libtorch says.
    pub memory: Option<(u64, u64)>,
}

/// Something that is missing or wrong, and what mends it.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Problem {
    /// What was found.
    pub what: String,
    /// A command, or what to do.
    pub mend: String,
}

impl Diagnosis {
    /// Whether nothing is missing or wrong.
    pub fn is_well(&self) -> bool {
        self.problems.is_empty()
    }
}

/// Looks at what this program has of libtorch: version, devices, cuDNN, and whether a GPU of the
/// machine is out of reach.
///
/// ```
/// let found = opt_tch::doctor();
/// println!("{found}");
/// assert_eq!(found.compiled, "2.11.0");
/// ```
pub fn doctor() -> Diagnosis {
    let loaded = load::cuda();
    let folder = load::folder();
    let running = folder.as_deref().and_then(version_in);
    let count = load::cuda_devices();
    let mut devices = vec![Device::Cpu];
    devices.extend((0..count).map(Device::Cuda));
    if native::has_mps() {
        devices.push(Device::Mps);
    }
    let info = |device| DeviceInfo {
        device,
        memory: native::memory(device),
    };
    let mut diagnosis = Diagnosis {
        compiled: native::version(),
        running,
        cuda: matches!(loaded, Loaded::Yes),
        cudnn: match native::cudnn_version() {
            0 => None,
            v => Some(format!("{}.{}.{}", v / 10_000, v / 100 % 100, v % 100)),
        },
        threads: usize::try_from(tch::get_num_threads()).unwrap_or(1),
        devices: devices.into_iter().map(info).collect(),
        folder,
        problems: Vec::new(),
    };
    diagnosis.problems = problems(&diagnosis, loaded, load::has_gpu());
    diagnosis
}

/// The version that a libtorch's folder says: in `build-version`, or in the `version.py` of a
/// Python package.
fn version_in(lib: &std::path::Path) -> Option<String> {
    let root = lib.parent()?;
    if let Ok(text) = std::fs::read_to_string(root.join("build-version")) {
        return Some(text.trim().to_string());
    }
    let text = std::fs::read_to_string(root.join("version.py")).ok()?;
    let line = text.lines().find(|l| l.starts_with("__version__"))?;
    let version = line.split(['\'', '"']).nth(1)?;
    Some(version.to_string())
}

fn problems(found: &Diagnosis, loaded: &Loaded, gpu: bool) -> Vec<Problem> {
    let mut problems = Vec::new();
    let plain = |version: &str| version.split('+').next().unwrap_or(version).to_string();
    let versions = [Some(&found.compiled), found.running.as_ref()];
    for version in versions.into_iter().flatten() {
        if plain(version) != WANTED {
            problems.push(Problem {
                what: format!(
                    "opt-tch is made for libtorch {WANTED}, and this one is {version}: calls \
                     between the two can fail in any way"
                ),
                mend: format!("pip install torch=={WANTED} && cargo clean -p torch-sys -p opt-tch"),
            });
            break;
        }
    }
    match loaded {
        Loaded::Failed(path, why) => problems.push(Problem {
            what: format!("{} cannot be loaded: {why}", path.display()),
            mend: "pip install --force-reinstall torch==2.11.0   # brings the CUDA libraries that \
                   libtorch needs"
                .to_string(),
        }),
        Loaded::NotBuilt if gpu => problems.push(Problem {
            what: "this machine has an NVIDIA GPU, and this libtorch was built without CUDA"
                .to_string(),
            mend: "pip install --force-reinstall torch==2.11.0   # PyPI's wheel for Linux has CUDA"
                .to_string(),
        }),
        Loaded::Yes if gpu && found.devices.len() == 1 => problems.push(Problem {
            what: "libtorch's CUDA half is loaded and finds no device, though the machine has one"
                .to_string(),
            mend: "nvidia-smi   # says whether the driver works and is new enough; unset \
                   CUDA_VISIBLE_DEVICES"
                .to_string(),
        }),
        _ => {}
    }
    if found.folder.is_none() {
        problems.push(Problem {
            what: "the folder of libtorch is not known, so that its CUDA half cannot be loaded"
                .to_string(),
            mend: "export LIBTORCH=/path/to/libtorch   # the folder that holds lib and include"
                .to_string(),
        });
    }
    problems
}

impl fmt::Display for Diagnosis {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let unknown = || "unknown".to_string();
        let running = self.running.clone().unwrap_or_else(unknown);
        writeln!(
            f,
            "libtorch   {running} (compiled against {})",
            self.compiled
        )?;
        let folder = self.folder.as_ref();
        let folder = folder.map_or_else(unknown, |p| p.display().to_string());
        writeln!(f, "folder     {folder}")?;
        let cuda = if self.cuda { "loaded" } else { "not there" };
        writeln!(f, "CUDA half  {cuda}")?;
        let cudnn = self.cudnn.as_deref().unwrap_or("not there");
        writeln!(f, "cuDNN      {cudnn}")?;
        writeln!(f, "threads    {}", self.threads)?;
        for info in &self.devices {
            write!(f, "device     {}", info.device)?;
            match info.memory {
                Some((free, total)) => {
                    let gib = |bytes: u64| bytes as f64 / (1u64 << 30) as f64;
                    writeln!(f, ", {:.1} of {:.1} GiB free", gib(free), gib(total))?;
                }
                None => writeln!(f)?,
            }
        }
        if self.problems.is_empty() {
            return write!(f, "nothing is missing");
        }
        for (i, problem) in self.problems.iter().enumerate() {
            if i > 0 {
                writeln!(f)?;
            }
            writeln!(f, "problem    {}", problem.what)?;
            write!(f, "mend       {}", problem.mend)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn healthy() -> Diagnosis {
        Diagnosis {
            compiled: WANTED.into(),
            running: Some("2.11.0+cu130".into()),
            folder: Some("/opt/torch/lib".into()),
            cuda: true,
            cudnn: None,
            threads: 2,
            devices: vec![DeviceInfo {
                device: Device::Cpu,
                memory: None,
            }],
            problems: Vec::new(),
        }
    }

    #[test]
    fn each_problem_names_its_cure() {
        let yes = Loaded::Yes;
        let failed = Loaded::Failed("/opt/libtorch_cuda.so".into(), "libcudnn.so.9".into());
        let mut old = healthy();
        old.running = Some("2.9.1".into());
        let mut lost = healthy();
        lost.folder = None;
        for (found, loaded, gpu, expected) in [
            (healthy(), &yes, false, None),
            (healthy(), &Loaded::NotBuilt, false, None),
            (healthy(), &yes, true, Some("nvidia-smi")),
            (healthy(), &Loaded::NotBuilt, true, Some("torch==2.11.0")),
            (healthy(), &failed, true, Some("torch==2.11.0")),
            (old, &yes, false, Some("cargo clean")),
            (lost, &yes, false, Some("LIBTORCH")),
        ] {
            let problems = problems(&found, loaded, gpu);
            match expected {
                None => assert_eq!(problems, []),
                Some(text) => assert!(problems[0].mend.contains(text), "{problems:?}"),
            }
        }
        let mut old = healthy();
        old.running = Some("2.9.1".into());
        let what = &problems(&old, &yes, false)[0].what;
        assert!(what.contains("2.9.1") && what.contains("2.11.0"), "{what}");
    }
}
