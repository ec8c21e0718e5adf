// The gradient of a convolution's input from float32 in AVX2; called only where the processor has it.
#include "conv/input_grad.h"

#if defined(__x86_64__) && defined(__GNUC__)

#include "simd/avx2.h"
#include "conv/input_grad_simd.h"

namespace fastdhm {
constexpr ConvInputGradCode kConvInputGradAvx2 = ConvInputGrad<Singles<Avx2, 2>>::code();
}  // namespace fastdhm

#include "simd/vector_end.h"
#endif
