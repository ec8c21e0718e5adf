// Convolutions of bfloat16 by AVX-512's products of pairs of them; called only where the processor has those.
#include "conv/code.h"
#include "simd/simd.h"

#ifdef FASTDHM_BFLOAT16_PRODUCTS

#include "simd/avx512bf16.h"

#include "conv/code_simd.h"

namespace fastdhm {
constexpr ConvCode<float> kConvAvx512BFloat16 = conv_code<Avx512BFloat16s, BFloat16>();
}  // namespace fastdhm

#include "simd/vector_end.h"
#endif
