// The shortcut of a residual block in AVX-512; called only where the processor has it.
#include "shortcut/shortcut.h"

#if defined(__x86_64__) && defined(__GNUC__)

#include "simd/avx512.h"
#include "simd/lanes.h"

#include "shortcut/shortcut_simd.h"

namespace fastdhm {
constexpr ShortcutSimd kShortcutAvx512 = {Shortcut<Avx512, float>::code(), Shortcut<Avx512, BFloat16>::code()};
}  // namespace fastdhm

#include "simd/vector_end.h"
#endif
