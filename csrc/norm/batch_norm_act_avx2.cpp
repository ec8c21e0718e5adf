// Batch norm, residual and relu in AVX2; called only where the processor has it.
#include "norm/batch_norm_act.h"

#if defined(__x86_64__) && defined(__GNUC__)

#include "simd/avx2.h"
#include "simd/lanes.h"

#include "norm/batch_norm_act_simd.h"

namespace fastdhm {
constexpr BatchNormActSimd kBatchNormActAvx2 = {BatchNormActRows<Avx2, float>::code(),
                                          BatchNormActRows<Avx2, BFloat16>::code()};
}  // namespace fastdhm

#include "simd/vector_end.h"
#endif
