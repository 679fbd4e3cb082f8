//! Advanced Matrix Extensions (AMX): products of 16 x 64 byte tiles, by inline assembly, since
//! stable Rust has no intrinsics for them.
//!
//! Sources: Intel 64 and IA-32 Architectures Software Developer's Manual, volume 1, chapter 18,
//! and volume 2 (the instructions); the Linux kernel's `Documentation/arch/x86/xstate.rst` (the
//! permission).
//!
//! The unit has eight tile registers. [`Block::run`] keeps four tiles of sums, two of activations
//! and two of weights, so that each tile that is loaded is used twice: 4 loads of 8 cycles at
//! least against 4 products of 16 cycles.

#![expect(
    unsafe_code,
    reason = "instructions without intrinsics, over raw pointers"
)]

pub(super) mod bf16;
pub(super) mod layer;

mod finish;
mod image;
mod source;
mod tasks;

use std::arch::asm;
use std::sync::OnceLock;

/// Rows of a tile.
pub(super) const ROWS: usize = 16;

/// Bytes of a tile's row.
pub(super) const ROW: usize = 64;

/// Bytes of a tile.
pub(super) const TILE: usize = ROWS * ROW;

/// Outputs, and rows or pixels, of a block of sums: two tiles each.
pub(super) const BLOCK: usize = 2 * ROWS;

/// Steps of 64 bytes for which a block of activations (2 KiB a step) stays in the first-level
/// cache while as much of weights passes by; longer sums go to memory in between.
pub(super) const STEPS: usize = 8;

/// Whether the processor multiplies tiles of bytes, the operating system keeps their registers,
/// and this process may use them; also whether it has the vectors that finish a tile.
///
/// The first call asks Linux for the permission, which holds for all threads of the process.
pub(crate) fn available() -> bool {
    static AVAILABLE: OnceLock<bool> = OnceLock::new();
    *AVAILABLE.get_or_init(|| {
        let vectors = is_x86_feature_detected!("avx512f")
            && is_x86_feature_detected!("avx512bw")
            && is_x86_feature_detected!("avx512vl")
            && is_x86_feature_detected!("avx512vbmi2");
        vectors && has_tiles() && permitted()
    })
}

/// What `cpuid` and `xgetbv` say.
fn has_tiles() -> bool {
    use std::arch::x86_64::{__cpuid, __cpuid_count};
    const OSXSAVE: u32 = 1 << 27;
    const AMX_TILE: u32 = 1 << 24;
    const AMX_INT8: u32 = 1 << 25;
    const TILE_STATE: u32 = 0b11 << 17;
    if __cpuid(0).eax < 0x1d || __cpuid(1).ecx & OSXSAVE == 0 {
        return false;
    }
    let features = __cpuid_count(7, 0).edx;
    if features & AMX_TILE == 0 || features & AMX_INT8 == 0 {
        return false;
    }
    let enabled: u32;
    // SAFETY: the operating system has enabled `xgetbv`, which reads a register.
    unsafe {
        asm!("xgetbv", in("ecx") 0, out("eax") enabled, out("edx") _, options(nomem, nostack));
    }
    // Palette 1 as this file configures it: 8 registers of 16 rows of 64 bytes.
    let palette = __cpuid_count(0x1d, 1);
    let (row, registers) = (palette.ebx & 0xffff, palette.ebx >> 16);
    enabled & TILE_STATE == TILE_STATE
        && row as usize == ROW
        && registers == 8
        && (palette.ecx & 0xffff) as usize == ROWS
}

/// Asks the kernel to let this process use the tile registers.
fn permitted() -> bool {
    #[cfg(target_os = "linux")]
    {
        const ARCH_PRCTL: i64 = 158;
        const ARCH_REQ_XCOMP_PERM: u64 = 0x1023;
        const XFEATURE_XTILEDATA: u64 = 18;
        let result: i64;
        // SAFETY: `arch_prctl` takes two numbers and touches no memory of this process; `syscall`
        // itself overwrites `rcx` and `r11`.
        unsafe {
            asm!(
                "syscall",
                inlateout("rax") ARCH_PRCTL => result,
                in("rdi") ARCH_REQ_XCOMP_PERM,
                in("rsi") XFEATURE_XTILEDATA,
                out("rcx") _,
                out("r11") _,
                options(nostack)
            );
        }
        result == 0
    }
    #[cfg(not(target_os = "linux"))]
    {
        false
    }
}

/// The tile registers of this thread, configured as eight full tiles, until it is dropped.
///
/// Released registers need not be saved when the thread is switched.
pub(super) struct Tiles(());

impl Tiles {
    /// Configures the registers.
    ///
    /// # Panics
    /// If they are not [`available`].
    pub(super) fn configure() -> Tiles {
        #[repr(C, align(64))]
        struct Config([u8; 64]);
        assert!(available(), "the processor has no AMX");
        let mut config = Config([0; 64]);
        config.0[0] = 1;
        for tile in 0..8 {
            config.0[16 + 2 * tile] = ROW as u8;
            config.0[48 + tile] = ROWS as u8;
        }
        // SAFETY: the registers are available, and the configuration is one of palette 1.
        unsafe {
            asm!("ldtilecfg [{}]", in(reg) &raw const config, options(nostack, readonly));
        }
        Tiles(())
    }
}

impl Drop for Tiles {
    fn drop(&mut self) {
        // SAFETY: `configure` has found the registers.
        unsafe { asm!("tilerelease", options(nostack, nomem)) };
    }
}

/// Which operand the activations are, and how bytes are read. Weights of bytes are always signed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Product {
    /// Unsigned activations by weights.
    UnsignedLeft,
    /// Signed activations by weights.
    SignedLeft,
    /// Weights by unsigned activations.
    UnsignedRight,
    /// Weights by signed activations.
    SignedRight,
    /// Activations by weights, both of `bf16`; the sums are of `f32`.
    Bf16,
}

/// Tiles of activations: that of step `i` lies at `base + offsets[i]`, a second one `second`
/// bytes on; rows are `stride` bytes apart.
#[derive(Clone, Copy)]
pub(super) struct Activations<'a> {
    pub(super) base: *const u8,
    pub(super) offsets: &'a [usize],
    pub(super) second: usize,
    pub(super) stride: usize,
}

/// Four tiles of sums: of two tiles of activations with two tiles of weights at each step.
///
/// A left operand has tiles of `[16 rows, 64 of k]`, a right one of
/// `[16 of k, 16 columns, 4 of k]`.
#[derive(Clone, Copy)]
pub(super) struct Block<'a> {
    pub(super) product: Product,
    pub(super) activations: Activations<'a>,
    /// The first step's two tiles of weights, one behind the other.
    pub(super) weights: *const u8,
    /// From one step's weights to the next step's.
    pub(super) advance: isize,
    /// Whether there is a second tile of activations, and one of weights.
    pub(super) pairs: (bool, bool),
    /// Sums to add to, in the order of [`Block::run`]'s output; null for none.
    pub(super) start: *const i32,
    /// Two tiles for each step that are fetched into the second-level cache meanwhile, since
    /// they are needed next; null for none. They may lie anywhere.
    pub(super) ahead: *const u8,
    /// From one step's to the next step's.
    pub(super) ahead_advance: isize,
}

/// One product, from its instruction and what the second tiles need. Registers 4 and 5 hold
/// activations, 6 and 7 weights.
///
/// Weights are loaded with the hint that they are not needed in the first-level cache again
/// (`tileloaddt1`): they pass by, and would push the activations out.
macro_rules! product {
    ($block:expr, $out:expr, $first:expr, zero: [$($zero:literal),*],
     start: [$($start:literal),*], steps: [$($step:expr),*], end: [$($end:literal),*]) => {
        asm!(
            // An operand that only some of the shapes use.
            "# {a2}",
            "mov {y:e}, 64",
            "test {start}, {start}",
            "jnz 3f",
            "tilezero tmm0",
            $($zero,)*
            "jmp 2f",
            "3:",
            "tileloadd tmm0, [{start} + {y}]",
            $($start,)*
            "2:",
            "test {p}, {p}",
            "jz 4f",
            ".irp line,0,64,128,192,256,320,384,448,512,576,640,704,768,832,896,960",
            "prefetcht1 [{p} + \\line]",
            "prefetcht1 [{p} + \\line + 1024]",
            ".endr",
            "add {p}, {dp}",
            "4:",
            "mov {x}, [{ta}]",
            "add {x}, {a}",
            "tileloadd tmm4, [{x} + {sa}]",
            "tileloaddt1 tmm6, [{w} + {y}]",
            $first,
            $($step,)*
            "add {ta}, 8",
            "add {w}, {dw}",
            "dec {n}",
            "jnz 2b",
            "tilestored [{out} + {y}], tmm0",
            $($end,)*
            a = in(reg) $block.activations.base,
            a2 = in(reg) $block.activations.second,
            sa = in(reg) $block.activations.stride,
            ta = inout(reg) $block.activations.offsets.as_ptr() => _,
            w = inout(reg) $block.weights => _,
            dw = in(reg) $block.advance,
            n = inout(reg) $block.activations.offsets.len() => _,
            start = in(reg) $block.start,
            p = inout(reg) $block.ahead => _,
            dp = in(reg) $block.ahead_advance,
            out = in(reg) $out,
            x = out(reg) _,
            y = out(reg) _,
            out("tmm0") _, out("tmm1") _, out("tmm2") _, out("tmm3") _,
            out("tmm4") _, out("tmm5") _, out("tmm6") _, out("tmm7") _,
            options(nostack)
        )
    };
}

macro_rules! by_shape {
    ($block:expr, $out:expr, $p00:expr, $p01:expr, $p10:expr, $p11:expr) => {
        match $block.pairs {
            (true, true) => product!($block, $out, $p00,
                zero: ["tilezero tmm1", "tilezero tmm2", "tilezero tmm3"],
                start: [
                    "tileloadd tmm1, [{start} + {y} + 1024]",
                    "tileloadd tmm2, [{start} + {y} + 2048]",
                    "tileloadd tmm3, [{start} + {y} + 3072]"
                ],
                steps: [
                    "tileloaddt1 tmm7, [{w} + {y} + 1024]",
                    $p01,
                    "add {x}, {a2}",
                    "tileloadd tmm5, [{x} + {sa}]",
                    $p10,
                    $p11
                ],
                end: [
                    "tilestored [{out} + {y} + 1024], tmm1",
                    "tilestored [{out} + {y} + 2048], tmm2",
                    "tilestored [{out} + {y} + 3072], tmm3"
                ]),
            (true, false) => product!($block, $out, $p00,
                zero: ["tilezero tmm2"],
                start: ["tileloadd tmm2, [{start} + {y} + 2048]"],
                steps: ["add {x}, {a2}", "tileloadd tmm5, [{x} + {sa}]", $p10],
                end: ["tilestored [{out} + {y} + 2048], tmm2"]),
            (false, true) => product!($block, $out, $p00,
                zero: ["tilezero tmm1"],
                start: ["tileloadd tmm1, [{start} + {y} + 1024]"],
                steps: ["tileloaddt1 tmm7, [{w} + {y} + 1024]", $p01],
                end: ["tilestored [{out} + {y} + 1024], tmm1"]),
            (false, false) => {
                product!($block, $out, $p00, zero: [], start: [], steps: [], end: [])
            }
        }
    };
}

/// The activations as the left operand.
macro_rules! left {
    ($block:expr, $out:expr, $instruction:literal) => {
        by_shape!(
            $block,
            $out,
            concat!($instruction, " tmm0, tmm4, tmm6"),
            concat!($instruction, " tmm1, tmm4, tmm7"),
            concat!($instruction, " tmm2, tmm5, tmm6"),
            concat!($instruction, " tmm3, tmm5, tmm7")
        )
    };
}

/// The activations as the right operand.
macro_rules! right {
    ($block:expr, $out:expr, $instruction:literal) => {
        by_shape!(
            $block,
            $out,
            concat!($instruction, " tmm0, tmm6, tmm4"),
            concat!($instruction, " tmm1, tmm7, tmm4"),
            concat!($instruction, " tmm2, tmm6, tmm5"),
            concat!($instruction, " tmm3, tmm7, tmm5")
        )
    };
}

impl Block<'_> {
    /// Adds the products to the start and writes the tiles to `out`, 256 sums a tile: first those
    /// of the first tile of activations with the first and second of weights. Tiles that the
    /// shape does not have are left as they are.
    ///
    /// Sums of integers wrap around.
    ///
    /// # Safety
    /// This thread's registers are configured ([`Tiles`]); for each offset of the activations,
    /// and each step of the weights, the tiles that the shape has can be read, as can those of
    /// `start` unless it is null; `out` has room for four tiles.
    pub(super) unsafe fn run(&self, out: *mut i32) {
        assert!(!self.activations.offsets.is_empty());
        // SAFETY: as the caller vouches; the assembly reads and writes what the documentation of
        // this function names, and leaves the stack alone.
        unsafe {
            match self.product {
                Product::UnsignedLeft => left!(self, out, "tdpbusd"),
                Product::SignedLeft => left!(self, out, "tdpbssd"),
                Product::UnsignedRight => right!(self, out, "tdpbsud"),
                Product::SignedRight => right!(self, out, "tdpbssd"),
                Product::Bf16 => left!(self, out, "tdpbf16ps"),
            }
        }
    }
}

/// Bytes in whole cache lines, which keep their memory between runs.
#[derive(Debug, Clone, Default)]
pub(super) struct Lines(Vec<Line>);

#[derive(Debug, Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
#[repr(C, align(64))]
struct Line([u8; ROW]);

impl Lines {
    pub(super) const fn new() -> Lines {
        Lines(Vec::new())
    }

    /// Makes them at least as many bytes as `len`; what they hold is undefined, but initialised.
    pub(super) fn reserve(&mut self, len: usize) {
        if self.0.len() * ROW < len {
            self.0.resize(len.div_ceil(ROW), Line([0; ROW]));
        }
    }

    pub(super) fn bytes(&self) -> &[u8] {
        bytemuck::cast_slice(&self.0)
    }

    pub(super) fn bytes_mut(&mut self) -> &mut [u8] {
        bytemuck::cast_slice_mut(&mut self.0)
    }
}

/// How many 8-bit operations (a multiplication and an addition are two) one core does a second
/// when the operands never leave its first-level cache: what the integer kernels are measured
/// against.
///
/// The best of what it measures in `seconds`. `None` where the processor has no AMX.
pub fn amx_peak(seconds: f64) -> Option<f64> {
    if !available() {
        return None;
    }
    const STEPS: usize = 1024;
    let mut lines = Lines::new();
    lines.reserve(4 * TILE);
    let mut sums = Lines::new();
    sums.reserve(4 * TILE);
    // The same four tiles at every step.
    let offsets = [0; STEPS];
    let at = |tile: usize| lines.bytes()[tile * TILE..].as_ptr();
    let block = Block {
        product: Product::UnsignedLeft,
        activations: Activations {
            base: at(0),
            offsets: &offsets,
            second: TILE,
            stride: ROW,
        },
        weights: at(2),
        advance: 0,
        pairs: (true, true),
        start: std::ptr::null(),
        ahead: std::ptr::null(),
        ahead_advance: 0,
    };
    let out: *mut i32 = sums.bytes_mut().as_mut_ptr().cast();
    let _tiles = Tiles::configure();
    let begin = std::time::Instant::now();
    let mut best = f64::INFINITY;
    while best.is_infinite() || begin.elapsed().as_secs_f64() < seconds {
        let start = std::time::Instant::now();
        // SAFETY: the registers are configured, and all tiles lie in `lines` and `sums`.
        unsafe { block.run(out) };
        best = best.min(start.elapsed().as_secs_f64());
    }
    let operations = 2.0 * (4 * ROWS * ROWS * ROW * STEPS) as f64;
    Some(operations / best)
}
