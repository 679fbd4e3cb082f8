//! From a source to an output: what becomes of each tensor, where it goes, and the work itself.

use std::path::Path;

use opt_core::observer::{Event, Observer};
use opt_core::safetensors::Plan;
use opt_core::{DType, Error, ErrorKind, Result, ResultExt};

use super::QuantizeFile;
use super::journal::Partial;
use super::report::{FileReport, TensorReport};
use super::rows::{self, Coded, STEP, Whole};
use super::source::{self, Entry, Source};
use super::stored;
use crate::gguf::{GgufType, Layout, Value};
use crate::rules::Candidate;
use crate::scheme::Scheme;

/// How a GGUF file is made.
pub(super) struct Gguf<'a> {
    pub(super) ty: GgufType,
    pub(super) metadata: &'a [(&'a str, Value)],
    pub(super) rename: &'a dyn Fn(&str) -> String,
}

/// What becomes of a tensor.
#[derive(Debug, Clone, Copy)]
enum Become {
    /// Its bytes, as they are.
    Copied,
    /// The blocks of a GGUF type.
    Blocks(GgufType),
    /// Codes and scales of a scheme.
    Coded(Scheme),
}

/// A tensor and the places of what it becomes.
#[derive(Debug)]
struct Job {
    entry: Entry,
    becomes: Become,
    /// Where codes (or the tensor itself), scales, zero points and the tensor's own scale begin.
    places: [u64; 4],
    bytes_after: u64,
}

pub(super) fn to_safetensors(
    settings: &QuantizeFile,
    input: &Path,
    output: &Path,
    observer: &mut dyn Observer,
) -> Result<FileReport> {
    let source = Source::open(input)?;
    let schemes = decide(settings, &source)?;
    let mut parts = Vec::new();
    let mut metadata: Vec<(String, String)> = source.metadata.clone().into_iter().collect();
    let mut owners = Vec::new();
    for (i, (entry, scheme)) in source.entries.iter().zip(&schemes).enumerate() {
        let mut add = |name: String, dtype: DType, shape: Vec<usize>, place: usize| {
            parts.push((name, dtype, shape));
            owners.push((i, place));
        };
        match scheme {
            None => add(entry.name.clone(), entry.dtype, entry.shape.clone(), 0),
            Some(scheme) => {
                for part in stored::parts(scheme, &entry.shape).at(|| entry.name.clone())? {
                    add(
                        format!("{}{}", entry.name, part.suffix),
                        part.dtype,
                        part.shape,
                        part.place,
                    );
                }
                metadata.extend(stored::notes(&entry.name, scheme, &entry.shape));
            }
        }
    }
    let plan = Plan::new(parts, metadata)?;
    let header = plan.header()?;
    let mut jobs: Vec<Job> = source
        .entries
        .iter()
        .zip(&schemes)
        .map(|(entry, scheme)| Job {
            entry: entry.clone(),
            becomes: scheme.map_or(Become::Copied, Become::Coded),
            places: [0; 4],
            bytes_after: 0,
        })
        .collect();
    for (part, &(job, place)) in owners.iter().enumerate() {
        let range = plan.range(part);
        jobs[job].places[place] = header.len() as u64 + range.start;
        jobs[job].bytes_after += range.end - range.start;
    }
    let len = header.len() as u64 + plan.data_len();
    run(settings, source, &jobs, &header, len, output, observer)
}

pub(super) fn to_gguf(
    settings: &QuantizeFile,
    input: &Path,
    output: &Path,
    target: Gguf<'_>,
    observer: &mut dyn Observer,
) -> Result<FileReport> {
    let source = Source::open(input)?;
    if settings.rules.gives_schemes() {
        return Err(Error::invalid(
            "rules that give schemes do not go with a GGUF file, whose matrices have one type",
        ));
    }
    let schemes = decide(settings, &source)?;
    let mut layout = Layout::new();
    for (key, value) in target.metadata {
        layout.metadata(*key, value.clone())?;
    }
    let mut jobs = Vec::new();
    for (entry, scheme) in source.entries.iter().zip(&schemes) {
        let whole = entry
            .shape
            .last()
            .is_some_and(|n| n.is_multiple_of(target.ty.block()));
        let becomes = match (scheme, entry.dtype) {
            (Some(_), _) if whole => Become::Blocks(target.ty),
            (_, DType::F32 | DType::F64) => Become::Blocks(GgufType::F32),
            (_, DType::F16) => Become::Blocks(GgufType::F16),
            (_, DType::BF16) => Become::Blocks(GgufType::Bf16),
            (_, other) => {
                let message = format!("{other} has no type in a GGUF file");
                return Err(Error::unsupported(message).at(&entry.name));
            }
        };
        let Become::Blocks(ty) = becomes else {
            unreachable!("all tensors of a GGUF file have a type of it")
        };
        layout.tensor((target.rename)(&entry.name), ty, &entry.shape)?;
        jobs.push(Job {
            entry: entry.clone(),
            becomes,
            places: [0; 4],
            bytes_after: 0,
        });
    }
    let header = layout.header()?;
    let mut at = header.len() as u64;
    for (i, job) in jobs.iter_mut().enumerate() {
        let (bytes, padding) = layout.extent(i);
        job.places[0] = at;
        job.bytes_after = bytes;
        at += bytes + padding as u64;
    }
    run(settings, source, &jobs, &header, at, output, observer)
}

/// The scheme of each tensor; `None` where it stays.
fn decide(settings: &QuantizeFile, source: &Source) -> Result<Vec<Option<Scheme>>> {
    let is_matrix = |entry: &&Entry| {
        let float = matches!(
            entry.dtype,
            DType::F32 | DType::F64 | DType::F16 | DType::BF16
        );
        float && entry.shape.len() == 2 && !entry.shape.contains(&0)
    };
    let candidates: Vec<Candidate> = source
        .entries
        .iter()
        .filter(is_matrix)
        .map(|entry| Candidate {
            op: "MatMul".into(),
            node: entry.name.clone(),
            weight: entry.name.clone(),
        })
        .collect();
    let mut decided = settings
        .rules
        .decide(&candidates, &settings.scheme)?
        .into_iter();
    let schemes: Vec<_> = source
        .entries
        .iter()
        .map(|entry| match is_matrix(&entry) {
            true => decided.next().flatten(),
            false => None,
        })
        .collect();
    match schemes.iter().any(Option::is_some) {
        true => Ok(schemes),
        false => Err(Error::new(
            ErrorKind::NoEffect,
            "the file has no matrix of floats that the rules leave to be quantized",
        )),
    }
}

fn run(
    settings: &QuantizeFile,
    mut source: Source,
    jobs: &[Job],
    header: &[u8],
    len: u64,
    output: &Path,
    observer: &mut dyn Observer,
) -> Result<FileReport> {
    // The header has names, formats and places; with the input's identity that is all that the
    // output depends on.
    let identity = format!("{:016x} {}", fingerprint(header), source.identity.trim());
    let mut partial = Partial::open(output, len, &identity)?;
    partial.write(0, header)?;
    let task = "quantize file".to_string();
    let total = jobs.iter().map(|job| job.entry.bytes).sum();
    observer.event(&Event::Started {
        task: task.clone(),
        total,
    });
    let mut report = FileReport::default();
    let mut done = 0;
    for (i, job) in jobs.iter().enumerate() {
        if partial.is_done(i) {
            report.resumed += 1;
        } else {
            work(settings, &mut source, job, &mut partial).at(|| job.entry.name.clone())?;
            partial.finished(i)?;
        }
        done += job.entry.bytes;
        observer.event(&Event::Progress {
            done,
            metrics: Vec::new(),
        });
        report.tensors.push(TensorReport {
            name: job.entry.name.clone(),
            format: match &job.becomes {
                Become::Coded(scheme) => Some(scheme.to_string()),
                Become::Blocks(ty) if ty.block() > 1 => Some(ty.to_string()),
                _ => None,
            },
            bytes_before: job.entry.bytes,
            bytes_after: job.bytes_after,
        });
    }
    partial.commit()?;
    observer.event(&Event::Finished { task });
    Ok(report)
}

/// FNV-1a: tells apart what is not made to collide.
fn fingerprint(bytes: &[u8]) -> u64 {
    let step = |hash: u64, &byte: &u8| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, step)
}

/// Reads a tensor, and writes what it becomes.
fn work(
    settings: &QuantizeFile,
    source: &mut Source,
    job: &Job,
    partial: &mut Partial,
) -> Result<()> {
    let entry = &job.entry;
    if let Become::Copied = job.becomes {
        let mut buffer = vec![0u8; settings.chunk];
        let mut at = 0;
        while at < entry.bytes {
            let len = (entry.bytes - at).min(buffer.len() as u64) as usize;
            source.bytes(entry, at, &mut buffer[..len])?;
            partial.write(job.places[0] + at, &buffer[..len])?;
            at += len as u64;
        }
        return Ok(());
    }
    let cols = entry.shape.last().copied().unwrap_or(1);
    let count: usize = entry.shape.iter().product();
    let rows = count.checked_div(cols).unwrap_or(0);
    // A multiple of the step for each of the threads.
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    let at_once = (settings.chunk / (cols.max(1) * size_of::<f32>())).max(1);
    let at_once = at_once.div_ceil(STEP * threads) * STEP * threads;
    let chunks = || {
        (0..rows)
            .step_by(at_once)
            .map(|row| row..rows.min(row + at_once))
    };
    let (mut bytes, mut floats) = (Vec::new(), vec![0f32; at_once.min(rows) * cols]);
    let mut whole = None;
    if let Become::Coded(scheme) = &job.becomes
        && rows::needs_whole(scheme)
    {
        let mut range = Whole::EMPTY;
        for chunk in chunks() {
            source.entries(entry, chunk.start * cols, chunk.len() * cols, &mut bytes)?;
            let floats = &mut floats[..chunk.len() * cols];
            source::floats(entry.dtype, &bytes, floats)?;
            range.widen(floats)?;
        }
        whole = Some(range);
    }
    let mut places = job.places;
    for chunk in chunks() {
        source.entries(entry, chunk.start * cols, chunk.len() * cols, &mut bytes)?;
        let floats = &mut floats[..chunk.len() * cols];
        let share = (at_once / threads * cols).max(1);
        let parts = std::thread::scope(|scope| {
            let encode = |bytes: &[u8], rows: &mut [f32]| {
                source::floats(entry.dtype, bytes, rows)?;
                encode(&job.becomes, rows, cols, whole)
            };
            let shares = bytes.chunks(entry.dtype.bytes(share));
            let handles: Vec<_> = shares
                .zip(floats.chunks_mut(share))
                .map(|(bytes, rows)| scope.spawn(move || encode(bytes, rows)))
                .collect();
            let join = |handle: std::thread::ScopedJoinHandle<'_, Result<Coded>>| {
                let result = handle.join();
                result.unwrap_or_else(|panic| std::panic::resume_unwind(panic))
            };
            handles.into_iter().map(join).collect::<Result<Vec<_>>>()
        })
        .at(|| format!("rows {} to {}", chunk.start, chunk.end - 1))?;
        for part in parts {
            for (place, bytes) in places.iter_mut().zip([part.codes, part.scales, part.zeros]) {
                partial.write(*place, &bytes)?;
                *place += bytes.len() as u64;
            }
        }
    }
    if let (Become::Coded(scheme), Some(whole)) = (&job.becomes, whole) {
        for (place, bytes) in stored::of_whole(scheme, whole)? {
            partial.write(job.places[place], &bytes)?;
        }
    }
    Ok(())
}

/// What some rows become.
fn encode(becomes: &Become, rows: &[f32], cols: usize, whole: Option<Whole>) -> Result<Coded> {
    match becomes {
        Become::Coded(scheme) => rows::encode(scheme, rows, cols, whole),
        Become::Blocks(ty) => {
            let mut codes = Vec::new();
            ty.encode(rows, &mut codes)?;
            Ok(Coded {
                codes,
                ..Coded::default()
            })
        }
        Become::Copied => unreachable!("copied without being read as floats"),
    }
}
