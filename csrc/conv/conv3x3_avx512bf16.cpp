// Winograd convolutions of bfloat16 by AVX-512's products of pairs of them; called only where the processor has those.
#include "conv/conv3x3.h"
#include "simd/simd.h"

#ifdef FASTDHM_BFLOAT16_PRODUCTS

#include "simd/avx512bf16.h"
#include "conv/conv3x3_simd.h"

namespace fastdhm {
constexpr Conv3x3Code<float> kConv3x3Avx512BFloat16 = Conv3x3<Avx512BFloat16s, BFloat16>::code();
}  // namespace fastdhm

#include "simd/vector_end.h"
#endif
