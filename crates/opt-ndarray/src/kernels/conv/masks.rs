//! Vectors of which some lanes are read: at the edges of images, and of every so many elements.

#![expect(unsafe_code, reason = "vector intrinsics over raw pointers")]

#[cfg(target_arch = "x86_64")]
pub(in crate::kernels) mod x86 {
    use std::arch::x86_64::*;

    #[target_feature(enable = "avx512f")]
    pub(in crate::kernels) fn mask512(n: usize) -> __mmask16 {
        ((1u32 << n) - 1) as __mmask16
    }

    #[target_feature(enable = "avx512f")]
    pub(in crate::kernels) fn bits512(mask: u32) -> __mmask16 {
        mask as __mmask16
    }

    #[target_feature(enable = "avx512f")]
    pub(in crate::kernels) unsafe fn load_mask512(p: *const f32, mask: __mmask16) -> __m512 {
        // SAFETY: only masked entries are read.
        unsafe { _mm512_maskz_loadu_ps(mask, p) }
    }

    /// Every second entry of two vectors.
    #[target_feature(enable = "avx512f")]
    pub(in crate::kernels) fn even512(low: __m512, high: __m512) -> __m512 {
        let even = _mm512_setr_epi32(0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30);
        _mm512_permutex2var_ps(low, even, high)
    }

    /// Every second of the masked 32 entries.
    #[target_feature(enable = "avx512f")]
    pub(in crate::kernels) unsafe fn halve512(p: *const f32, mask: u32) -> __m512 {
        // SAFETY: only masked entries are read.
        unsafe {
            let low = _mm512_maskz_loadu_ps(mask as __mmask16, p);
            let high = _mm512_maskz_loadu_ps((mask >> 16) as __mmask16, p.wrapping_add(16));
            even512(low, high)
        }
    }

    #[target_feature(enable = "avx512f")]
    pub(in crate::kernels) unsafe fn gather512(
        p: *const f32,
        mask: __mmask16,
        stride: usize,
    ) -> __m512 {
        let lanes = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
        let at = _mm512_mullo_epi32(lanes, _mm512_set1_epi32(stride as i32));
        // SAFETY: only masked entries are read.
        unsafe { _mm512_mask_i32gather_ps::<4>(_mm512_setzero_ps(), mask, at, p) }
    }

    #[target_feature(enable = "avx2,fma")]
    pub(in crate::kernels) fn mask256(n: usize) -> __m256i {
        let lanes = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
        _mm256_cmpgt_epi32(_mm256_set1_epi32(n as i32), lanes)
    }

    #[target_feature(enable = "avx2,fma")]
    pub(in crate::kernels) fn bits256(mask: u32) -> __m256i {
        let lanes = _mm256_setr_epi32(1, 2, 4, 8, 16, 32, 64, 128);
        let own = _mm256_and_si256(_mm256_set1_epi32(mask as i32), lanes);
        _mm256_cmpeq_epi32(own, lanes)
    }

    #[target_feature(enable = "avx2,fma")]
    pub(in crate::kernels) unsafe fn load_mask256(p: *const f32, mask: __m256i) -> __m256 {
        // SAFETY: only masked entries are read.
        unsafe { _mm256_maskload_ps(p, mask) }
    }

    /// Every second entry of two vectors.
    #[target_feature(enable = "avx2,fma")]
    pub(in crate::kernels) fn even256(low: __m256, high: __m256) -> __m256 {
        let even = _mm256_shuffle_ps::<0b10_00_10_00>(low, high);
        _mm256_castpd_ps(_mm256_permute4x64_pd::<0b11_01_10_00>(_mm256_castps_pd(
            even,
        )))
    }

    /// Every second of the masked 16 entries.
    #[target_feature(enable = "avx2,fma")]
    pub(in crate::kernels) unsafe fn halve256(p: *const f32, mask: u32) -> __m256 {
        // SAFETY: only masked entries are read.
        unsafe {
            let low = _mm256_maskload_ps(p, bits256(mask));
            let high = _mm256_maskload_ps(p.wrapping_add(8), bits256(mask >> 8));
            even256(low, high)
        }
    }

    #[target_feature(enable = "avx2,fma")]
    pub(in crate::kernels) unsafe fn gather256(
        p: *const f32,
        mask: __m256i,
        stride: usize,
    ) -> __m256 {
        let lanes = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
        let at = _mm256_mullo_epi32(lanes, _mm256_set1_epi32(stride as i32));
        let mask = _mm256_castsi256_ps(mask);
        // SAFETY: only masked entries are read.
        unsafe { _mm256_mask_i32gather_ps::<4>(_mm256_setzero_ps(), p, at, mask) }
    }
}
