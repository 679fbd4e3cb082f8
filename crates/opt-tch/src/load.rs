//! Loading of libtorch's CUDA half.
//!
//! Linkers drop `libtorch_cuda` from a program that names none of its symbols, and a library
//! cannot keep them from it; CUDA is then missing without a word. Loaded before its first use,
//! it registers itself all the same.

#![allow(unsafe_code)]

use std::path::PathBuf;
use std::sync::OnceLock;

/// What came of loading.
#[derive(Debug, Clone)]
pub(crate) enum Loaded {
    /// It is there.
    Yes,
    /// libtorch was built without it.
    NotBuilt,
    /// It is there and cannot be loaded.
    Failed(PathBuf, String),
}

/// Names of the libraries that bring GPUs.
const NAMES: [&str; 3] = ["libtorch_cuda.so", "libtorch_hip.so", "torch_cuda.dll"];

/// The folder from which libtorch was loaded.
pub(crate) fn folder() -> Option<PathBuf> {
    let maps = std::fs::read_to_string("/proc/self/maps").ok();
    let mapped = maps.and_then(|maps| {
        let path = maps
            .lines()
            .filter_map(|line| line.find('/').map(|at| &line[at..]))
            .find(|path| path.ends_with("/libtorch_cpu.so"))?;
        PathBuf::from(path).parent().map(PathBuf::from)
    });
    mapped.or_else(|| {
        let root = std::env::var_os("LIBTORCH_LIB").or_else(|| std::env::var_os("LIBTORCH"))?;
        Some(PathBuf::from(root).join("lib"))
    })
}

/// Loads the CUDA half, once.
pub(crate) fn cuda() -> &'static Loaded {
    static LOADED: OnceLock<Loaded> = OnceLock::new();
    LOADED.get_or_init(|| {
        let Some(folder) = folder() else {
            return Loaded::NotBuilt;
        };
        for name in NAMES {
            let path = folder.join(name);
            if !path.exists() {
                continue;
            }
            // SAFETY: the library is libtorch's own, of the folder that the program runs
            // libtorch from; its initialisers register kernels and do nothing else.
            return match unsafe { libloading::Library::new(&path) } {
                Ok(library) => {
                    // It has to stay: the kernels are code in it.
                    std::mem::forget(library);
                    Loaded::Yes
                }
                Err(e) => Loaded::Failed(path, e.to_string()),
            };
        }
        Loaded::NotBuilt
    })
}

/// The number of CUDA devices.
pub(crate) fn cuda_devices() -> usize {
    match cuda() {
        Loaded::Yes => usize::try_from(tch::Cuda::device_count()).unwrap_or(0),
        Loaded::NotBuilt | Loaded::Failed(..) => 0,
    }
}

/// Whether the machine has an NVIDIA GPU with a driver.
pub(crate) fn has_gpu() -> bool {
    let cards = std::fs::read_dir("/proc/driver/nvidia/gpus");
    cards.is_ok_and(|mut cards| cards.next().is_some())
}
