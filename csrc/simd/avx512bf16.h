// AVX-512 with its products of pairs of bfloat16 numbers. As avx512.h, this opens a region that is compiled for it, and
// vector_end.h closes it.
#pragma once

#include "simd/avx512.h"
#include "simd/vector_end.h"

#ifdef __clang__
#pragma clang attribute push(__attribute__((target("avx512bf16,avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c"))), \
                             apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("avx512bf16,avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c")
#endif

namespace fastdhm {
namespace {

struct Avx512BFloat16s : Avx512 {
  using Element = BFloat16;
  using Packed = __m512bh;
  static constexpr int64_t kPair = 2;
  static constexpr int kVectors = 4;

  using Avx512::store;
  static void store(BFloat16* p, F x) { store_element(p, x); }
  static Packed load_packed(const BFloat16* p) { return reinterpret_cast<__m512bh>(_mm512_loadu_si512(p)); }
  static Packed broadcast(const BFloat16* p) {
    int32_t pair;
    __builtin_memcpy(&pair, p, sizeof(pair));
    return reinterpret_cast<__m512bh>(_mm512_set1_epi32(pair));
  }
  static F dot(F sum, Packed a, Packed b) { return _mm512_dpbf16_ps(sum, a, b); }
  static void store_element(BFloat16* p, F x) {
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), reinterpret_cast<__m256i>(_mm512_cvtneps_pbh(x)));
  }
  static void store_pair(BFloat16* p, F first, F second) {
    interleave(p, reinterpret_cast<__m512i>(_mm512_cvtne2ps_pbh(second, first)));
  }
  static void store_both(BFloat16* p, const BFloat16* one, const BFloat16* other) {
    const __m512i first = _mm512_castsi256_si512(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(one)));
    interleave(p, _mm512_inserti64x4(first, _mm256_loadu_si256(reinterpret_cast<const __m256i*>(other)), 1));
  }

  // The numbers of the lower half and of the upper in pairs.
  static void interleave(BFloat16* p, __m512i both) {
    const __m512i order = _mm512_set_epi16(31, 15, 30, 14, 29, 13, 28, 12, 27, 11, 26, 10, 25, 9, 24, 8,  //
                                           23, 7, 22, 6, 21, 5, 20, 4, 19, 3, 18, 2, 17, 1, 16, 0);
    _mm512_storeu_si512(p, _mm512_permutexvar_epi16(order, both));
  }
};

}  // namespace
}  // namespace fastdhm
