//! Philox 4x32-10, the counter-based random number generator of every random op and
//! initialiser (Salmon, Moraes, Dror & Shaw, "Parallel random numbers: as easy as 1, 2, 3",
//! 2011).

/// A stream of random numbers: a function of a key (the seed) and a counter, with no hidden
/// state, so that entry `i` is the same on every backend, thread count and resumed run.
///
/// ```
/// use opt_core::random::Philox;
///
/// let stream = Philox::new(7);
/// assert_eq!(stream.block(3, 0), Philox::new(7).block(3, 0));
/// assert!((0.0..1.0).contains(&stream.uniform(0, 42)));
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Philox {
    key: [u32; 2],
}

impl Philox {
    /// The stream of a seed.
    pub fn new(seed: u64) -> Philox {
        Philox {
            key: [seed as u32, (seed >> 32) as u32],
        }
    }

    /// Four random words from a 128-bit counter, given as a step and a block number.
    pub fn block(&self, step: u64, block: u64) -> [u32; 4] {
        let mut c = [
            block as u32,
            (block >> 32) as u32,
            step as u32,
            (step >> 32) as u32,
        ];
        let mut k = self.key;
        for _ in 0..10 {
            let a = u64::from(c[0]) * 0xD251_1F53;
            let b = u64::from(c[2]) * 0xCD9E_8D57;
            c = [
                (b >> 32) as u32 ^ c[1] ^ k[0],
                b as u32,
                (a >> 32) as u32 ^ c[3] ^ k[1],
                a as u32,
            ];
            k = [
                k[0].wrapping_add(0x9E37_79B9),
                k[1].wrapping_add(0xBB67_AE85),
            ];
        }
        c
    }

    /// The `index`-th uniform number in `[0, 1)` of a step: 24 random bits, exact in `f32`.
    pub fn uniform(&self, step: u64, index: u64) -> f64 {
        let word = self.block(step, index / 4)[(index % 4) as usize];
        f64::from(word >> 8) / f64::from(1u32 << 24)
    }

    /// The `index`-th standard normal number of a step (Box & Muller 1958): entries `2i` and
    /// `2i + 1` are the pair of uniforms `2i` and `2i + 1`.
    pub fn normal(&self, step: u64, index: u64) -> f64 {
        let pair = index & !1;
        let radius = (-2.0 * (1.0 - self.uniform(step, pair)).ln()).sqrt();
        let angle = std::f64::consts::TAU * self.uniform(step, pair + 1);
        radius
            * if index.is_multiple_of(2) {
                angle.cos()
            } else {
                angle.sin()
            }
    }

    /// A random permutation of `0..n` (Fisher & Yates), drawn at a step.
    pub fn permutation(&self, step: u64, n: usize) -> Vec<usize> {
        let mut out: Vec<usize> = (0..n).collect();
        for i in (1..n).rev() {
            let [a, b, ..] = self.block(step, i as u64);
            let word = u64::from(a) << 32 | u64::from(b);
            let j = ((u128::from(word) * (i as u128 + 1)) >> 64) as usize;
            out.swap(i, j);
        }
        out
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Known answers of the authors' test vectors (Random123, `philox4x32 10`).
    #[test]
    fn matches_the_published_vectors() {
        assert_eq!(
            Philox::new(0).block(0, 0),
            [0x6627_e8d5, 0xe169_c58d, 0xbc57_ac4c, 0x9b00_dbd8]
        );
        assert_eq!(
            Philox::new(u64::MAX).block(u64::MAX, u64::MAX),
            [0x408f_276d, 0x41c8_3b0e, 0xa20b_c7c6, 0x6d54_51fd]
        );
    }

    #[test]
    fn normals_have_mean_zero_and_variance_one() {
        let p = Philox::new(1);
        let x: Vec<f64> = (0..10_000).map(|i| p.normal(0, i)).collect();
        let mean = x.iter().sum::<f64>() / 1e4;
        let var = x.iter().map(|v| v * v).sum::<f64>() / 1e4;
        assert!(
            mean.abs() < 0.03 && (var - 1.0).abs() < 0.05,
            "{mean} {var}"
        );
    }

    #[test]
    fn permutations_are_permutations() {
        let mut p = Philox::new(3).permutation(5, 100);
        assert_ne!(p, Philox::new(3).permutation(6, 100));
        p.sort_unstable();
        assert!(p.into_iter().eq(0..100));
    }
}
