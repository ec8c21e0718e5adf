// The shortcut of a residual block in AVX2; called only where the processor has it.
#include "shortcut/shortcut.h"
#include "simd/simd.h"

#ifdef FASTDHM_X86

#include "simd/avx2.h"

#include "shortcut/shortcut_simd.h"

namespace fastdhm {
constexpr ShortcutSimd kShortcutAvx2 = {Shortcut<Avx2, float>::code(), Shortcut<Avx2, BFloat16>::code()};
}  // namespace fastdhm

#include "simd/vector_end.h"
#endif
