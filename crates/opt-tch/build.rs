//! Compiles the shim against the headers of the libtorch that `torch-sys` found, and lets
//! `cargo run` and `cargo test` find its shared libraries.

use std::path::{Path, PathBuf};
use std::{env, fs};

fn main() {
    println!("cargo:rerun-if-changed=src/native/shim.cpp");
    println!("cargo:rerun-if-changed=src/native/pool.cpp");
    println!("cargo:rerun-if-changed=build.rs");
    if env::var_os("CARGO_FEATURE_DOC_ONLY").is_some() {
        return;
    }
    let lib = library_folder();
    let root = lib.parent().map_or_else(|| lib.clone(), Path::to_path_buf);
    let headers = env::var_os("LIBTORCH_INCLUDE").map_or(root, PathBuf::from);
    println!("cargo:rerun-if-env-changed=LIBTORCH_INCLUDE");
    println!("cargo:rerun-if-env-changed=LIBTORCH_CXX11_ABI");
    let abi = env::var("LIBTORCH_CXX11_ABI").unwrap_or_else(|_| "1".into());
    let mut shim = cc::Build::new();
    shim.cpp(true)
        .std("c++17")
        .warnings(false)
        .include(headers.join("include"))
        .include(headers.join("include/torch/csrc/api/include"))
        .define("_GLIBCXX_USE_CXX11_ABI", &*abi)
        .file("src/native/pool.cpp")
        .file("src/native/shim.cpp");
    shim.compile("opt_tch_shim");
    for name in ["torch_cpu", "c10"] {
        println!("cargo:rustc-link-lib={name}");
    }
    link_within_target(&lib);
}

fn library_folder() -> PathBuf {
    if let Some(found) = env::var_os("DEP_TCH_LIBTORCH_LIB") {
        return found.into();
    }
    // torch-sys tells on Linux and macOS only.
    match env::var_os("LIBTORCH_LIB").or_else(|| env::var_os("LIBTORCH")) {
        Some(root) => PathBuf::from(root).join("lib"),
        None => panic!(
            "opt-tch does not know where libtorch is: set LIBTORCH to its folder (the one that \
             holds include and lib)"
        ),
    }
}

/// Cargo puts search paths below the target folder, and no others, on the library path of what it
/// runs; a link there makes `cargo run`, `cargo test` and doc tests start without one set by hand.
fn link_within_target(lib: &Path) {
    let Some(out) = env::var_os("OUT_DIR") else {
        return;
    };
    let link = Path::new(&out).join("libtorch");
    let _ = fs::remove_file(&link);
    #[cfg(unix)]
    if std::os::unix::fs::symlink(lib, &link).is_ok() {
        println!("cargo:rustc-link-search=native={}", link.display());
    }
    println!("cargo:rustc-link-search=native={}", lib.display());
}
