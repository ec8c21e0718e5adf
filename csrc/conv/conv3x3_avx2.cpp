// Winograd convolutions of float32 in AVX2; called only where the processor has it.
#include "conv/conv3x3.h"

#if defined(__x86_64__) && defined(__GNUC__)

#include "simd/avx2.h"
#include "conv/conv3x3_simd.h"

namespace fastdhm {
constexpr Conv3x3Code<float> kConv3x3Avx2 = Conv3x3<Singles<Avx2, 2>, float>::code();
}  // namespace fastdhm

#include "simd/vector_end.h"
#endif
