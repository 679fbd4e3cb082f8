//! The Python libraries that golden files come from.
//!
//! A script `xtask/oracle/NAME.py` takes a folder and writes files into it, possibly in folders of
//! its own; the committed copy of each lies in `tests/golden` of the crate that reads it, under the
//! same path. JSON files are compared as numbers; of others (models and arrays, whose bytes depend
//! on the processor and the versions of libraries) only the presence is.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::golden::difference;
use crate::step::Step;
use crate::{Result, root};

/// How far a number may be from the committed one, relative to `1 + |number|`.
const TOLERANCE: f64 = 1e-6;

/// Scripts that make no golden files.
const TOOLS: [&str; 2] = ["onnx_cases", "onnx_check"];

fn venv() -> PathBuf {
    root().join(".venv")
}

/// The interpreter of `.venv`.
pub(crate) fn python() -> PathBuf {
    let folder = if cfg!(windows) {
        "Scripts/python.exe"
    } else {
        "bin/python"
    };
    venv().join(folder)
}

/// What separates the entries of a search path.
const SEPARATOR: char = if cfg!(windows) { ';' } else { ':' };

/// The environment in which `opt-tch` is built against the libtorch of `.venv`.
pub(crate) fn libtorch() -> [(&'static str, String); 3] {
    let bin = python().parent().map(PathBuf::from).unwrap_or_default();
    let path = std::env::var("PATH").unwrap_or_default();
    [
        ("LIBTORCH_USE_PYTORCH", "1".into()),
        ("VIRTUAL_ENV", venv().display().to_string()),
        ("PATH", format!("{}{SEPARATOR}{path}", bin.display())),
    ]
}

/// The variable that names the folders of shared libraries, and its value for a program that is
/// not started by cargo and uses the libtorch of `.venv`.
pub(crate) fn library_path() -> Result<(&'static str, String)> {
    let name = match std::env::consts::OS {
        "windows" => "PATH",
        "macos" => "DYLD_LIBRARY_PATH",
        _ => "LD_LIBRARY_PATH",
    };
    let query = "import importlib.util as u; print(u.find_spec('torch').origin)";
    let output = Command::new(python())
        .args(["-c", query])
        .output()
        .map_err(|e| format!("cannot start {}: {e}", python().display()))?;
    let origin = String::from_utf8_lossy(&output.stdout).trim().to_string();
    let folder = Path::new(&origin).with_file_name("lib");
    let old = std::env::var(name).unwrap_or_default();
    Ok((name, format!("{}{SEPARATOR}{old}", folder.display())))
}

/// A command with the libtorch of `.venv`.
pub(crate) fn with_libtorch(step: Step) -> Step {
    let bin = python().parent().map(PathBuf::from).unwrap_or_default();
    let shown = bin
        .strip_prefix(root())
        .unwrap_or(&bin)
        .display()
        .to_string();
    libtorch().into_iter().fold(step, |step, (name, value)| {
        let shown = match name {
            "VIRTUAL_ENV" => ".venv".to_string(),
            "PATH" => format!("$PWD/{shown}{SEPARATOR}$PATH"),
            _ => value.clone(),
        };
        step.env_shown(name, &value, &shown)
    })
}

/// What the scripts need.
pub(crate) fn requirements() -> PathBuf {
    root().join("xtask/oracle/requirements.txt")
}

/// Makes `.venv` and installs what the scripts need, unless it is there already.
pub(crate) fn set_up() -> Result {
    let file = requirements();
    let wanted = read(&file)?;
    let stamp = venv().join("installed.txt");
    if fs::read_to_string(&stamp).is_ok_and(|installed| installed == wanted) {
        println!("{} is up to date", venv().display());
        return Ok(());
    }
    let base = std::env::var("PYTHON").unwrap_or_else(|_| "python3".into());
    run(Command::new(&base).args(["-m", "venv"]).arg(venv())).map_err(|e| {
        format!("{e}\nPython 3.10 or newer with its venv module is needed; PYTHON can name it")
    })?;
    let (torch, rest): (Vec<&str>, Vec<&str>) =
        packages(&wanted).partition(|line| line.starts_with("torch=="));
    pip(&rest, &[])?;
    pip(&torch, &["--no-deps"])?;
    // PyPI's wheel for Linux is linked against CUDA, and does not load without it; a CPU wheel
    // (from another index, or on other systems) needs nothing more.
    if !import_torch()
        .output()
        .is_ok_and(|out| out.status.success())
    {
        println!("this torch needs the CUDA libraries that its wheel names");
        let query = "from importlib.metadata import requires\n\
             for r in requires('torch'):\n\
             \x20   if r.startswith(('nvidia-', 'cuda-toolkit')) and 'extra' not in r: print(r)";
        let output = Command::new(python())
            .args(["-c", query])
            .output()
            .map_err(|e| format!("cannot start {}: {e}", python().display()))?;
        let needs = String::from_utf8_lossy(&output.stdout).into_owned();
        pip(&needs.lines().collect::<Vec<_>>(), &[])?;
        run(&mut import_torch())?;
    }
    fs::write(&stamp, wanted).map_err(|e| format!("{}: {e}", stamp.display()))
}

/// The packages that a file of requirements names.
fn packages(requirements: &str) -> impl Iterator<Item = &str> {
    let lines = requirements.lines().map(str::trim);
    lines.filter(|line| !line.is_empty() && !line.starts_with('#'))
}

/// Installs the packages of another file, without what they depend on, unless it was done already.
pub(crate) fn install(file: &Path) -> Result {
    let wanted = read(file)?;
    let folder = file.parent().and_then(Path::file_name).unwrap_or_default();
    let stamp = venv().join(format!("installed-{}.txt", folder.to_string_lossy()));
    if fs::read_to_string(&stamp).is_ok_and(|installed| installed == wanted) {
        return Ok(());
    }
    pip(&packages(&wanted).collect::<Vec<_>>(), &["--no-deps"])?;
    fs::write(&stamp, wanted).map_err(|e| format!("{}: {e}", stamp.display()))
}

fn import_torch() -> Command {
    let mut command = Command::new(python());
    command.args(["-c", "import torch; print('torch', torch.__version__)"]);
    command
}

/// Installs packages into `.venv`.
pub(crate) fn pip(packages: &[&str], options: &[&str]) -> Result {
    if packages.is_empty() {
        return Ok(());
    }
    let mut command = Command::new(python());
    command.args(["-m", "pip", "install", "--quiet"]);
    // Triton is left out on purpose, which pip would warn of.
    command.args(["--disable-pip-version-check", "--no-warn-conflicts"]);
    run(command.args(options).args(packages))
}

/// Runs a script that makes no golden files.
pub(crate) fn tool(name: &str, arguments: &[&str]) -> Result {
    script(&format!("xtask/oracle/{name}.py"), arguments)
}

/// Runs a script of the repository.
pub(crate) fn script(path: &str, arguments: &[&str]) -> Result {
    run(Command::new(python())
        .arg(root().join(path))
        .args(arguments))
}

/// Runs the scripts and compares what they write with the committed files.
pub(crate) fn verify() -> Result {
    let mut made = Vec::new();
    let mut differences = Vec::new();
    for script in scripts()? {
        for (name, file) in outputs_of(&script)? {
            let Some(committed) = committed(&name)? else {
                differences.push(format!(
                    "{}: no crate has it; commit it with `cargo xtask golden --into CRATE`",
                    name.display()
                ));
                continue;
            };
            if is_json(&name) {
                let found = json(&script, &read(&file)?)?;
                let expected = json(&committed, &read(&committed)?)?;
                match difference(&found, &expected, TOLERANCE) {
                    None => println!("{}: reproduced", name.display()),
                    Some(place) => differences.push(format!("{}: {place}", committed.display())),
                }
            } else {
                println!("{}: there", name.display());
            }
            made.push(committed);
        }
    }
    for (_, file) in all_golden()? {
        if !made.contains(&file) {
            differences.push(format!("{}: no script makes it", file.display()));
        }
    }
    if differences.is_empty() {
        return Ok(());
    }
    Err(differences.join("\n"))
}

/// Runs scripts (all where `names` is empty) and writes their files over the committed ones; a
/// new file goes to the crate `into`.
pub(crate) fn rewrite(names: &[&str], into: Option<&str>) -> Result {
    let all = scripts()?;
    let stem = |path: &Path| path.file_stem().map(|s| s.to_string_lossy().into_owned());
    for name in names {
        if !all
            .iter()
            .any(|script| stem(script).as_deref() == Some(name))
        {
            return Err(format!("no script xtask/oracle/{name}.py"));
        }
    }
    for script in all {
        let name = stem(&script).unwrap_or_default();
        if !names.is_empty() && !names.contains(&name.as_str()) {
            continue;
        }
        for (name, file) in outputs_of(&script)? {
            let target = match (committed(&name)?, into) {
                (Some(target), _) => target,
                (None, Some(into)) => {
                    let crate_folder = root().join("crates").join(into);
                    if !crate_folder.is_dir() {
                        return Err(format!("no crate {into}"));
                    }
                    let target = crate_folder.join("tests/golden").join(&name);
                    if let Some(folder) = target.parent() {
                        fs::create_dir_all(folder)
                            .map_err(|e| format!("{}: {e}", folder.display()))?;
                    }
                    target
                }
                (None, None) => {
                    return Err(format!(
                        "{} is new: say `--into CRATE` where it goes",
                        name.display()
                    ));
                }
            };
            fs::copy(&file, &target).map_err(|e| format!("{}: {e}", target.display()))?;
            println!("wrote {}", target.display());
        }
    }
    Ok(())
}

/// The files that a script writes: the path below its output folder, and where the file is.
fn outputs_of(script: &Path) -> Result<Vec<(PathBuf, PathBuf)>> {
    let name = script.file_stem().unwrap_or_default();
    let folder = root().join("target/oracle").join(name);
    if folder.exists() {
        fs::remove_dir_all(&folder).map_err(|e| format!("{}: {e}", folder.display()))?;
    }
    fs::create_dir_all(&folder).map_err(|e| format!("{}: {e}", folder.display()))?;
    run(Command::new(python()).arg(script).arg(&folder))?;
    let files = tree(&folder)?;
    if !files.iter().any(|(name, _)| is_json(name)) {
        return Err(format!("{} wrote no JSON file", script.display()));
    }
    Ok(files)
}

/// The scripts that make golden files.
fn scripts() -> Result<Vec<PathBuf>> {
    let mut files = list(&root().join("xtask/oracle"), "py")?;
    files.retain(|file| {
        !TOOLS
            .iter()
            .any(|tool| file.ends_with(format!("{tool}.py")))
    });
    Ok(files)
}

/// The committed files: the path below `tests/golden`, and where the file is.
fn all_golden() -> Result<Vec<(PathBuf, PathBuf)>> {
    let mut files = Vec::new();
    for entry in entries(&root().join("crates"))? {
        let folder = entry.join("tests/golden");
        if folder.is_dir() {
            files.extend(tree(&folder)?);
        }
    }
    Ok(files)
}

/// The committed file of a name.
fn committed(name: &Path) -> Result<Option<PathBuf>> {
    let mut found = all_golden()?;
    found.retain(|(other, _)| other == name);
    match found.len() {
        0 | 1 => Ok(found.pop().map(|(_, file)| file)),
        _ => Err(format!(
            "two crates have a golden file {}: {found:?}",
            name.display()
        )),
    }
}

fn is_json(file: &Path) -> bool {
    file.extension().is_some_and(|e| e == "json")
}

/// The files below a folder, at any depth, with their paths from it.
fn tree(folder: &Path) -> Result<Vec<(PathBuf, PathBuf)>> {
    let mut files = Vec::new();
    let mut open = entries(folder)?;
    while let Some(path) = open.pop() {
        if path.is_dir() {
            open.extend(entries(&path)?);
        } else if let Ok(name) = path.strip_prefix(folder) {
            files.push((name.to_path_buf(), path));
        }
    }
    files.sort();
    Ok(files)
}

/// The files of an extension in a folder, sorted.
fn list(folder: &Path, extension: &str) -> Result<Vec<PathBuf>> {
    let mut files = entries(folder)?;
    files.retain(|file| file.extension().is_some_and(|e| e == extension));
    Ok(files)
}

fn entries(folder: &Path) -> Result<Vec<PathBuf>> {
    let fail = |e: std::io::Error| format!("{}: {e}", folder.display());
    let mut paths = Vec::new();
    for entry in fs::read_dir(folder).map_err(fail)? {
        paths.push(entry.map_err(fail)?.path());
    }
    paths.sort();
    Ok(paths)
}

fn read(file: &Path) -> Result<String> {
    fs::read_to_string(file).map_err(|e| format!("{}: {e}", file.display()))
}

fn json(file: &Path, text: &str) -> Result<serde_json::Value> {
    serde_json::from_str(text).map_err(|e| format!("{}: {e}", file.display()))
}

pub(crate) fn run(command: &mut Command) -> Result {
    println!("$ {command:?}");
    match command.status() {
        Ok(status) if status.success() => Ok(()),
        Ok(status) => Err(format!("{command:?} ended with {status}")),
        Err(e) => Err(format!("cannot start {command:?}: {e}")),
    }
}
