// The gradient of a convolution's weights from float32 in AVX-512; called only where the processor has it.
#include "conv/weight_grad.h"

#if defined(__x86_64__) && defined(__GNUC__)

#include "simd/avx512.h"
#include "conv/weight_grad_simd.h"

namespace fastdhm {
constexpr ConvWeightGradCode<float> kConvWeightGradAvx512 = ConvWeightGrad<Singles<Avx512, 4>>::code();
}  // namespace fastdhm

#include "simd/vector_end.h"
#endif
