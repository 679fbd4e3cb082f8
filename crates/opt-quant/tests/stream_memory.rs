//! The memory that quantizing a file takes. In a file of its own: the allocator counts for the whole
//! process.

use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::Path;

use opt_core::observer::Silent;
use opt_core::{DType, safetensors};
use opt_quant::Scheme;
use opt_quant::gguf::GgufType;
use opt_quant::stream::QuantizeFile;
use peak_alloc::PeakAlloc;

#[global_allocator]
static ALLOCATOR: PeakAlloc = PeakAlloc;

/// A file with a matrix of `rows` rows, written without ever being in memory.
fn write(path: &Path, rows: usize) {
    let cols = 1024;
    let part = ("w".to_string(), DType::F16, vec![rows, cols]);
    let plan = safetensors::Plan::new([part], []).unwrap();
    let mut file = BufWriter::new(File::create(path).unwrap());
    file.write_all(&plan.header().unwrap()).unwrap();
    // 0x3C00 is 1; the bits below make other numbers of it.
    let row: Vec<u8> = (0..cols as u16)
        .flat_map(|i| (0x3800 + i).to_le_bytes())
        .collect();
    for _ in 0..rows {
        file.write_all(&row).unwrap();
    }
    file.flush().unwrap();
}

#[test]
fn memory_does_not_grow_with_the_file() {
    let folder = std::env::temp_dir().join(format!("opt-stream-memory-{}", std::process::id()));
    std::fs::create_dir_all(&folder).unwrap();
    let (input, output) = (folder.join("in"), folder.join("out"));
    let chunk = 1 << 20;
    let run = QuantizeFile::new(Scheme::int4()).chunk(chunk);
    let mut peaks = Vec::new();
    for rows in [4_000, 16_000] {
        write(&input, rows);
        let base = ALLOCATOR.current_usage();
        for gguf in [false, true] {
            ALLOCATOR.reset_peak_usage();
            match gguf {
                false => run.to_safetensors(&input, &output, &mut Silent),
                true => {
                    let same = |name: &str| name.to_string();
                    run.to_gguf(&input, &output, GgufType::Q4_0, &[], same, &mut Silent)
                }
            }
            .unwrap();
            peaks.push(ALLOCATOR.peak_usage() - base);
        }
    }
    std::fs::remove_dir_all(&folder).unwrap();
    // Half and single precision, codes and scales of a chunk, which threads may make larger.
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    let bound = 6 * (chunk + 8 * threads * 4096);
    for peak in peaks {
        assert!(
            peak < bound,
            "{peak} bytes at once, at most {bound} are expected"
        );
    }
}
