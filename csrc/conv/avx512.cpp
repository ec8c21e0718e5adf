// Convolutions of float32 in AVX-512; called only where the processor has it.
#include "conv/code.h"
#include "simd/simd.h"

#ifdef FASTDHM_X86

#include "simd/avx512.h"

#include "conv/code_simd.h"

namespace fastdhm {
constexpr ConvCode<float> kConvAvx512 = conv_code<Singles<Avx512, 4>, float>();
}  // namespace fastdhm

#include "simd/vector_end.h"
#endif
