// The gradient of a convolution's weights from float32 in AVX2; called only where the processor has it.
#include "conv/weight_grad.h"

#if defined(__x86_64__) && defined(__GNUC__)

#include "simd/avx2.h"
#include "conv/weight_grad_simd.h"

namespace fastdhm {
constexpr ConvWeightGradCode<float> kConvWeightGradAvx2 = ConvWeightGrad<Singles<Avx2, 2>>::code();
}  // namespace fastdhm

#include "simd/vector_end.h"
#endif
