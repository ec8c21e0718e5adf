// AVX2, 8 floats at a time: what vector code asks of an instruction set.
//
// Including this header opens a region that is compiled for this instruction set; vector_end.h closes it. Code in the
// region may be called only if the processor has the instruction set. Include no header with inline functions in there:
// they would be compiled for it but called by all code.
#pragma once

#include <c10/util/BFloat16.h>
#include <c10/util/Half.h>
#include <immintrin.h>

#include <cmath>

#ifdef __clang__
#pragma clang attribute push(__attribute__((target("avx2,fma,f16c"))), apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("avx2,fma,f16c")
#endif

namespace fastdhm {
namespace {

using c10::BFloat16;
using c10::Half;

struct Avx2 {
  using S = float;
  using F = __m256;
  static constexpr int64_t kWidth = 8;

  static F all(float x) { return _mm256_set1_ps(x); }
  static F fma(F a, F b, F c) { return _mm256_fmadd_ps(a, b, c); }
  static F fms(F a, F b, F c) { return _mm256_fmsub_ps(a, b, c); }
  static F fnma(F a, F b, F c) { return _mm256_fnmadd_ps(a, b, c); }  // c - a b
  static F max(F a, F b) { return _mm256_max_ps(a, b); }
  // x where y exceeds the limit or is NaN, else 0
  static F where_above(F y, float limit, F x) { return _mm256_and_ps(x, _mm256_cmp_ps(y, all(limit), _CMP_NLE_UQ)); }
  static F round(F x) { return _mm256_round_ps(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }
  // x 2^n for n <= 0; 0 below the normal numbers
  static F scale(F x, F n) {
    const __m256i shift = _mm256_slli_epi32(_mm256_cvtps_epi32(n), 23);
    const F product = _mm256_castsi256_ps(_mm256_add_epi32(_mm256_castps_si256(x), shift));
    return _mm256_andnot_ps(_mm256_cmp_ps(n, all(-126), _CMP_LT_OQ), _mm256_or_ps(product, nan_of(x)));
  }
  static F nan_of(F x) { return _mm256_cmp_ps(x, x, _CMP_UNORD_Q); }  // all bits where x is NaN, which is a NaN
  static float sum_lanes(F x) {
    __m128 half = _mm_add_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps(x, 1));
    half = _mm_add_ps(half, _mm_movehl_ps(half, half));
    return _mm_cvtss_f32(_mm_add_ss(half, _mm_movehdup_ps(half)));
  }
  static float max_lane(F x) {
    __m128 half = _mm_max_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps(x, 1));
    half = _mm_max_ps(half, _mm_movehl_ps(half, half));
    return _mm_cvtss_f32(_mm_max_ss(half, _mm_movehdup_ps(half)));
  }

  static __m256i first(int64_t lanes) {
    return _mm256_cmpgt_epi32(_mm256_set1_epi32(static_cast<int>(lanes)), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
  }
  // The others 0.
  static F keep_first(F x, int64_t lanes) { return _mm256_and_ps(x, _mm256_castsi256_ps(first(lanes))); }

  static F load(const float* p) { return _mm256_loadu_ps(p); }
  static F load(const BFloat16* p) { return widen_bfloat16(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p))); }
  static F load(const Half* p) { return _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p))); }
  // The first `lanes`, the others `rest`.
  static F load_first(const float* p, int64_t lanes, float rest) {
    return _mm256_blendv_ps(all(rest), _mm256_maskload_ps(p, first(lanes)), _mm256_castsi256_ps(first(lanes)));
  }
  template <class T>
  static F load_first(const T* p, int64_t lanes, float rest) {
    T whole[kWidth] = {};
    for (int64_t i = 0; i < lanes; ++i) whole[i] = p[i];
    return _mm256_blendv_ps(all(rest), load(whole), _mm256_castsi256_ps(first(lanes)));
  }

  static void store(float* p, F x) { _mm256_storeu_ps(p, x); }
  static void store(BFloat16* p, F x) { _mm_storeu_si128(reinterpret_cast<__m128i*>(p), narrow_bfloat16(x)); }
  static void store_first(float* p, F x, int64_t lanes) { _mm256_maskstore_ps(p, first(lanes), x); }
  template <class T>
  static void store_first(T* p, F x, int64_t lanes) {
    T whole[kWidth];
    store(whole, x);
    for (int64_t i = 0; i < lanes; ++i) p[i] = whole[i];
  }

  static F widen_bfloat16(__m128i x) { return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(x), 16)); }
  // To nearest, ties to even. A NaN with only low bits set may become infinity: mimic_loss computes such rows again.
  static __m128i narrow_bfloat16(F x) {
    const __m256i bits = _mm256_castps_si256(x);
    const __m256i odd = _mm256_and_si256(_mm256_srli_epi32(bits, 16), _mm256_set1_epi32(1));
    const __m256i rounded = _mm256_add_epi32(bits, _mm256_add_epi32(odd, _mm256_set1_epi32(0x7FFF)));
    const __m256i words = _mm256_srli_epi32(rounded, 16);
    return _mm_packus_epi32(_mm256_castsi256_si128(words), _mm256_extracti128_si256(words, 1));
  }
};

}  // namespace
}  // namespace fastdhm
