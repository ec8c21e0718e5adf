// The mimicking loss in AVX2, 8 floats at a time; called only where the processor has it.
#include "mimic_loss/mimic_loss.h"
#include "simd/simd.h"

#ifdef FASTDHM_X86

#include "simd/avx2.h"

#include "mimic_loss/mimic_loss_simd.h"

namespace fastdhm {
const MimicLossSimd kMimicLossAvx2 = {&Scratch<Avx2>::floats, &rows<Avx2, float>, &rows<Avx2, BFloat16>,
                                      &rows<Avx2, Half>};
}  // namespace fastdhm

#include "simd/vector_end.h"
#endif
