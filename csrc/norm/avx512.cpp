// Batch norm, residual and relu in AVX-512; called only where the processor has it.
#include "norm/batch_norm_act.h"
#include "simd/simd.h"

#ifdef FASTDHM_X86

#include "simd/avx512.h"

#include "norm/batch_norm_act_simd.h"

namespace fastdhm {
constexpr BatchNormActSimd kBatchNormActAvx512 = {BatchNormActRows<Avx512, float>::code(),
                                                  BatchNormActRows<Avx512, BFloat16>::code()};
}  // namespace fastdhm

#include "simd/vector_end.h"
#endif
