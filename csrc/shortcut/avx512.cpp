// The shortcut of a residual block in AVX-512; called only where the processor has it.
#include "shortcut/shortcut.h"
#include "simd/simd.h"

#ifdef FASTDHM_X86

#include "simd/avx512.h"

#include "shortcut/shortcut_simd.h"

namespace fastdhm {
constexpr ShortcutSimd kShortcutAvx512 = {Shortcut<Avx512, float>::code(), Shortcut<Avx512, BFloat16>::code()};
}  // namespace fastdhm

#include "simd/vector_end.h"
#endif
