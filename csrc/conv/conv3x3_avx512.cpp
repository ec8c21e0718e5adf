// Winograd convolutions of float32 in AVX-512; called only where the processor has it.
#include "conv/conv3x3.h"

#if defined(__x86_64__) && defined(__GNUC__)

#include "simd/avx512.h"
#include "conv/conv3x3_simd.h"

namespace fastdhm {
constexpr Conv3x3Code<float> kConv3x3Avx512 = Conv3x3<Singles<Avx512, 4>, float>::code();
}  // namespace fastdhm

#include "simd/vector_end.h"
#endif
