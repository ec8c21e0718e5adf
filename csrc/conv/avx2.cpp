// Convolutions of float32 in AVX2; called only where the processor has it.
#include "conv/code.h"
#include "simd/simd.h"

#ifdef FASTDHM_X86

#include "simd/avx2.h"

#include "conv/code_simd.h"

namespace fastdhm {
constexpr ConvCode<float> kConvAvx2 = conv_code<Singles<Avx2, 2>, float>();
}  // namespace fastdhm

#include "simd/vector_end.h"
#endif
