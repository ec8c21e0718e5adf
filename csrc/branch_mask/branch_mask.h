// The rule that says whether a branch takes part in a step, for the host and for CUDA devices.
#pragma once

#include <cstdint>

#include "branch_mask/philox.h"

namespace fastdhm {

// True with probability `prob`: the first word of the draw is below prob * 2^32. The word and the product (a shift of
// the exponent) are exact in float64, so every backend decides alike; 0 is never true, 1 always, NaN never.
FASTDHM_HOST_DEVICE inline bool branch_is_in(double prob, uint32_t branch, uint64_t step, uint64_t seed) {
  return static_cast<double>(draw(branch, step, kStreamBranchMask, seed).word[0]) < prob * 4294967296.0;
}

}  // namespace fastdhm
