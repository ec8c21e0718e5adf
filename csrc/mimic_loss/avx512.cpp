// The mimicking loss in AVX-512, 16 floats at a time; called only where the processor has it.
#include "mimic_loss/mimic_loss.h"
#include "simd/simd.h"

#ifdef FASTDHM_X86

#include "simd/avx512.h"

#include "mimic_loss/mimic_loss_simd.h"

namespace fastdhm {
const MimicLossSimd kMimicLossAvx512 = {&Scratch<Avx512>::floats, &rows<Avx512, float>, &rows<Avx512, BFloat16>,
                                        &rows<Avx512, Half>};
}  // namespace fastdhm

#include "simd/vector_end.h"
#endif
