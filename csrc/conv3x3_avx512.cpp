// Winograd convolutions of float32 in AVX-512; called only where the processor has it.
#include "conv3x3.h"

#if defined(__x86_64__) && defined(__GNUC__)

#include "avx512.h"
#include "conv3x3_simd.h"

namespace fastdhm {
namespace {

struct Avx512Floats : Avx512 {
  using Element = float;
  using Packed = F;
  static constexpr int64_t kPair = 1;
  static constexpr int kVectors = 4;

  static Packed load_packed(const float* p) { return load(p); }
  static Packed broadcast(const float* p) { return all(*p); }
  static F dot(F sum, Packed a, Packed b) { return fma(a, b, sum); }
  static void store_element(float* p, F x) { store(p, x); }
  static void store_pair(float* p, F, F x) { store(p, x); }
};

}  // namespace

constexpr Conv3x3Code<float> kConv3x3Avx512 = Conv3x3<Avx512Floats, float>::code();

}  // namespace fastdhm

#include "vector_end.h"
#endif
