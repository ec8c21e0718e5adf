// Batch norm, residual and relu in AVX2; called only where the processor has it.
#include "norm/batch_norm_act.h"
#include "simd/simd.h"

#ifdef FASTDHM_X86

#include "simd/avx2.h"

#include "norm/batch_norm_act_simd.h"

namespace fastdhm {
constexpr BatchNormActSimd kBatchNormActAvx2 = {BatchNormActRows<Avx2, float>::code(),
                                                BatchNormActRows<Avx2, BFloat16>::code()};
}  // namespace fastdhm

#include "simd/vector_end.h"
#endif
