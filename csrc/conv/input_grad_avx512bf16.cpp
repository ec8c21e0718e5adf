// The gradient of a convolution's input from bfloat16 by AVX-512's products of pairs of them; called only where the
// processor has those.
#include "conv/input_grad.h"
#include "simd/simd.h"

#ifdef FASTDHM_BFLOAT16_PRODUCTS

#include "simd/avx512bf16.h"
#include "conv/input_grad_simd.h"

namespace fastdhm {
constexpr ConvInputGradCode kConvInputGradAvx512BFloat16 = ConvInputGrad<Avx512BFloat16s>::code();
}  // namespace fastdhm

#include "simd/vector_end.h"
#endif
