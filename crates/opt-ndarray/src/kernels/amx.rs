//! Advanced Matrix Extensions (AMX): products of 16 x 64 byte tiles, by inline assembly, since
//! stable Rust has no intrinsics for them.
//!
//! Sources: Intel 64 and IA-32 Architectures Software Developer's Manual, volume 1, chapter 18,
//! and volume 2 (the instructions); the Linux kernel's `Documentation/arch/x86/xstate.rst` (the
//! permission).
//!
//! The unit has eight tile registers. [`Block::run`] keeps four tiles of sums, two of the left
//! operand and two of the right one, so that each tile that is loaded is used twice: 4 loads of
//! 8 cycles at least against 4 products of 16 cycles.

#![expect(unsafe_code, reason = "instructions without intrinsics, over raw pointers")]

pub(super) mod layer;

mod image;

use std::arch::asm;
use std::sync::OnceLock;

/// Rows of a tile.
pub(super) const ROWS: usize = 16;

/// Bytes of a tile's row.
pub(super) const ROW: usize = 64;

/// Bytes of a tile.
pub(super) const TILE: usize = ROWS * ROW;

/// Whether the processor multiplies tiles of bytes, the operating system keeps their registers,
/// and this process may use them; also whether it has the vectors that finish a tile.
///
/// The first call asks Linux for the permission, which holds for all threads of the process.
pub(crate) fn available() -> bool {
    static AVAILABLE: OnceLock<bool> = OnceLock::new();
    *AVAILABLE.get_or_init(|| {
        let vectors = is_x86_feature_detected!("avx512f")
            && is_x86_feature_detected!("avx512bw")
            && is_x86_feature_detected!("avx512vl");
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

/// How the bytes of the two operands are read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Signs {
    /// Left unsigned, right signed.
    UnsignedSigned,
    /// Left signed, right unsigned.
    SignedUnsigned,
    /// Both signed.
    Signed,
}

/// Where the tiles of an operand lie: that of step `i` at `base + offsets[i]`, and a second one
/// `second` bytes on; rows are `stride` bytes apart.
#[derive(Clone, Copy)]
pub(super) struct Operand<'a> {
    pub(super) base: *const u8,
    pub(super) offsets: &'a [usize],
    pub(super) second: usize,
    pub(super) stride: usize,
}

/// Four tiles of sums of a pair of operands: `[2, 2]` tiles, row by row.
#[derive(Clone, Copy)]
pub(super) struct Block<'a> {
    /// Tiles of `[16 rows, 64 of k]`.
    pub(super) left: Operand<'a>,
    /// Tiles of `[16 of k, 16 columns, 4 of k]`.
    pub(super) right: Operand<'a>,
    pub(super) signs: Signs,
    /// Whether there is a second tile of rows, and one of columns.
    pub(super) pairs: (bool, bool),
    /// What the sums start with: tiles whose rows are `start_stride` bytes apart.
    pub(super) start: [*const i32; 4],
    pub(super) start_stride: usize,
}

/// What the assembly reads from memory, since it is short of registers.
#[repr(C)]
struct Ends {
    start: [*const i32; 4],
    start_stride: usize,
    out: *mut i32,
}

/// One product, from its instruction and what the second row and column of tiles need.
macro_rules! product {
    ($block:expr, $ends:expr, $dp:literal,
     start: [$($start:literal),*], steps: [$($step:expr),*], end: [$($end:literal),*]) => {
        asm!(
            // Operands that only some of the shapes use.
            "# {a2} {b2}",
            "mov {y}, [{ends} + 32]",
            "mov {x}, [{ends}]",
            "tileloadd tmm0, [{x} + {y}]",
            $($start,)*
            "2:",
            "mov {x}, [{ta}]",
            "mov {y}, [{tb}]",
            "add {x}, {a}",
            "add {y}, {b}",
            "tileloadd tmm4, [{x} + {sa}]",
            "tileloadd tmm6, [{y} + {sb}]",
            concat!($dp, " tmm0, tmm4, tmm6"),
            $($step,)*
            "add {ta}, 8",
            "add {tb}, 8",
            "dec {n}",
            "jnz 2b",
            "mov {x}, [{ends} + 40]",
            "mov {y:e}, 64",
            "tilestored [{x} + {y}], tmm0",
            $($end,)*
            a = in(reg) $block.left.base,
            a2 = in(reg) $block.left.second,
            sa = in(reg) $block.left.stride,
            ta = inout(reg) $block.left.offsets.as_ptr() => _,
            b = in(reg) $block.right.base,
            b2 = in(reg) $block.right.second,
            sb = in(reg) $block.right.stride,
            tb = inout(reg) $block.right.offsets.as_ptr() => _,
            n = inout(reg) $block.left.offsets.len() => _,
            ends = in(reg) $ends,
            x = out(reg) _,
            y = out(reg) _,
            out("tmm0") _, out("tmm1") _, out("tmm2") _, out("tmm3") _,
            out("tmm4") _, out("tmm5") _, out("tmm6") _, out("tmm7") _,
            options(nostack)
        )
    };
}

macro_rules! by_shape {
    ($block:expr, $ends:expr, $dp:literal) => {
        match $block.pairs {
            (true, true) => product!($block, $ends, $dp,
                start: [
                    "mov {x}, [{ends} + 8]",
                    "tileloadd tmm1, [{x} + {y}]",
                    "mov {x}, [{ends} + 16]",
                    "tileloadd tmm2, [{x} + {y}]",
                    "mov {x}, [{ends} + 24]",
                    "tileloadd tmm3, [{x} + {y}]"
                ],
                steps: [
                    "add {y}, {b2}",
                    "tileloadd tmm7, [{y} + {sb}]",
                    concat!($dp, " tmm1, tmm4, tmm7"),
                    "add {x}, {a2}",
                    "tileloadd tmm5, [{x} + {sa}]",
                    concat!($dp, " tmm2, tmm5, tmm6"),
                    concat!($dp, " tmm3, tmm5, tmm7")
                ],
                end: [
                    "tilestored [{x} + {y} + 1024], tmm1",
                    "tilestored [{x} + {y} + 2048], tmm2",
                    "tilestored [{x} + {y} + 3072], tmm3"
                ]),
            (true, false) => product!($block, $ends, $dp,
                start: ["mov {x}, [{ends} + 16]", "tileloadd tmm2, [{x} + {y}]"],
                steps: [
                    "add {x}, {a2}",
                    "tileloadd tmm5, [{x} + {sa}]",
                    concat!($dp, " tmm2, tmm5, tmm6")
                ],
                end: ["tilestored [{x} + {y} + 2048], tmm2"]),
            (false, true) => product!($block, $ends, $dp,
                start: ["mov {x}, [{ends} + 8]", "tileloadd tmm1, [{x} + {y}]"],
                steps: [
                    "add {y}, {b2}",
                    "tileloadd tmm7, [{y} + {sb}]",
                    concat!($dp, " tmm1, tmm4, tmm7")
                ],
                end: ["tilestored [{x} + {y} + 1024], tmm1"]),
            (false, false) => product!($block, $ends, $dp, start: [], steps: [], end: []),
        }
    };
}

impl Block<'_> {
    /// Adds the products to the start and writes the tiles to `out`, 256 sums a tile; tiles that
    /// the shape does not have are left as they are.
    ///
    /// Sums wrap around.
    ///
    /// # Safety
    /// This thread's registers are configured ([`Tiles`]); for each offset of the operands the
    /// tiles that the shape has can be read, as can those of `start`; `out` has room for four
    /// tiles.
    pub(super) unsafe fn run(&self, out: *mut i32) {
        assert!(
            !self.left.offsets.is_empty() && self.left.offsets.len() == self.right.offsets.len()
        );
        let ends = Ends {
            start: self.start,
            start_stride: self.start_stride,
            out,
        };
        let ends = &raw const ends;
        // SAFETY: as the caller vouches; the assembly reads and writes what the documentation of
        // this function names, and leaves the stack alone.
        unsafe {
            match self.signs {
                Signs::UnsignedSigned => by_shape!(self, ends, "tdpbusd"),
                Signs::SignedUnsigned => by_shape!(self, ends, "tdpbsud"),
                Signs::Signed => by_shape!(self, ends, "tdpbssd"),
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
/// Takes about `seconds`. `None` where the processor has no AMX.
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
    let operand = |tile| Operand {
        base: at(tile),
        offsets: &offsets,
        second: TILE,
        stride: ROW,
    };
    let block = Block {
        left: operand(0),
        right: operand(2),
        signs: Signs::UnsignedSigned,
        pairs: (true, true),
        start: [at(0).cast(); 4],
        start_stride: ROW,
    };
    let out = sums.bytes_mut().as_mut_ptr().cast();
    let _tiles = Tiles::configure();
    let (start, mut blocks) = (std::time::Instant::now(), 0u64);
    let mut elapsed = 0.0;
    while blocks < 1 || elapsed < seconds {
        for _ in 0..16 {
            // SAFETY: the registers are configured, and all tiles lie in `lines` and `sums`.
            unsafe { block.run(out) };
        }
        blocks += 16;
        elapsed = start.elapsed().as_secs_f64();
    }
    let operations = 2.0 * (4 * ROWS * ROWS * ROW * STEPS) as f64;
    Some(operations * blocks as f64 / elapsed)
}
