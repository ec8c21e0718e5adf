// AVX-512, 16 floats at a time: what vector code asks of an instruction set.
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
#pragma clang attribute push(__attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c"))), \
                             apply_to = function)
#else
#pragma GCC diagnostic ignored \
    "-Wuninitialized"  // GCC 12 warns of its own header: an operand that a mask leaves unread
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#pragma GCC push_options
#pragma GCC target("avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c")
#endif

namespace fastdhm {
namespace {

using c10::BFloat16;
using c10::Half;

struct Avx512 {
  using S = float;
  using F = __m512;
  static constexpr int64_t kWidth = 16;

  static F all(float x) { return _mm512_set1_ps(x); }
  static F fma(F a, F b, F c) { return _mm512_fmadd_ps(a, b, c); }
  static F fms(F a, F b, F c) { return _mm512_fmsub_ps(a, b, c); }
  static F fnma(F a, F b, F c) { return _mm512_fnmadd_ps(a, b, c); }  // c - a b
  static F max(F a, F b) { return _mm512_max_ps(a, b); }
  // x where y exceeds the limit or is NaN, else 0
  static F where_above(F y, float limit, F x) {
    return _mm512_maskz_mov_ps(_mm512_cmp_ps_mask(y, all(limit), _CMP_NLE_UQ), x);
  }
  static F round(F x) { return _mm512_roundscale_ps(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }
  static F scale(F x, F n) { return _mm512_scalef_ps(x, n); }  // x 2^n
  static float sum_lanes(F x) { return _mm512_reduce_add_ps(x); }
  static float max_lane(F x) { return _mm512_reduce_max_ps(x); }

  static __mmask16 first(int64_t lanes) { return static_cast<__mmask16>((1u << lanes) - 1); }
  static F keep_first(F x, int64_t lanes) { return _mm512_maskz_mov_ps(first(lanes), x); }  // the others 0

  static F load(const float* p) { return _mm512_loadu_ps(p); }
  static F load(const BFloat16* p) { return widen_bfloat16(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p))); }
  static F load(const Half* p) { return _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p))); }
  // The first `lanes`, the others `rest`.
  static F load_first(const float* p, int64_t lanes, float rest) {
    return _mm512_mask_loadu_ps(all(rest), first(lanes), p);
  }
  static F load_first(const BFloat16* p, int64_t lanes, float rest) {
    return _mm512_mask_mov_ps(all(rest), first(lanes), widen_bfloat16(_mm256_maskz_loadu_epi16(first(lanes), p)));
  }
  static F load_first(const Half* p, int64_t lanes, float rest) {
    return _mm512_mask_cvtph_ps(all(rest), first(lanes), _mm256_maskz_loadu_epi16(first(lanes), p));
  }

  static void store(float* p, F x) { _mm512_storeu_ps(p, x); }
  static void store(BFloat16* p, F x) { _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), narrow_bfloat16(x)); }
  static void store_first(float* p, F x, int64_t lanes) { _mm512_mask_storeu_ps(p, first(lanes), x); }
  static void store_first(BFloat16* p, F x, int64_t lanes) {
    _mm256_mask_storeu_epi16(p, first(lanes), narrow_bfloat16(x));
  }

  static F widen_bfloat16(__m256i x) { return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(x), 16)); }
  // To nearest, ties to even. A NaN with only low bits set may become infinity: mimic_loss computes such rows again.
  static __m256i narrow_bfloat16(F x) {
    const __m512i bits = _mm512_castps_si512(x);
    const __m512i odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
    const __m512i rounded = _mm512_add_epi32(bits, _mm512_add_epi32(odd, _mm512_set1_epi32(0x7FFF)));
    return _mm512_cvtepi32_epi16(_mm512_srli_epi32(rounded, 16));
  }
};

}  // namespace
}  // namespace fastdhm
