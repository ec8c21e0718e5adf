#include "simd/simd.h"

#include <c10/util/Exception.h>

#include <algorithm>
#include <atomic>

namespace fastdhm {
namespace {

const char* const kNames[] = {"none", "avx2", "avx512"};

// What this processor has, the fastest last.
std::vector<Simd> available() {
  std::vector<Simd> found = {Simd::none};
#ifdef FASTDHM_X86
  __builtin_cpu_init();
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c")) {
    found.push_back(Simd::avx2);
    if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq") &&
        __builtin_cpu_supports("avx512vl")) {
      found.push_back(Simd::avx512);
    }
  }
#endif
  return found;
}

std::atomic<Simd> in_use{available().back()};

}  // namespace

Simd simd() { return in_use; }

std::string simd_name() { return kNames[static_cast<int>(simd())]; }

bool has_bfloat16_products() {
#ifdef FASTDHM_BFLOAT16_PRODUCTS
  return simd() == Simd::avx512 && __builtin_cpu_supports("avx512bf16");
#else
  return false;
#endif
}

std::vector<std::string> simd_names() {
  std::vector<std::string> names;
  for (const Simd each : available()) {
    if (each != Simd::none) names.emplace_back(kNames[static_cast<int>(each)]);
  }
  return names;
}

void set_simd(const std::string& name) {
  const std::vector<Simd> known = available();
  const auto wanted =
      std::find_if(known.begin(), known.end(), [&](Simd each) { return name == kNames[static_cast<int>(each)]; });
  TORCH_CHECK_VALUE(wanted != known.end(), "this processor or build has no '", name, "'");
  in_use = *wanted;
}

}  // namespace fastdhm
