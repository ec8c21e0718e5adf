// The gradient of a convolution's weights from bfloat16 by AVX-512's products of pairs of them; called only where the
// processor has those.
#include "conv/weight_grad.h"
#include "simd/simd.h"

#ifdef FASTDHM_BFLOAT16_PRODUCTS

#include "simd/avx512bf16.h"
#include "conv/weight_grad_simd.h"

namespace fastdhm {
constexpr ConvWeightGradCode<float> kConvWeightGradAvx512BFloat16 = ConvWeightGrad<Avx512BFloat16s>::code();
}  // namespace fastdhm

#include "simd/vector_end.h"
#endif
