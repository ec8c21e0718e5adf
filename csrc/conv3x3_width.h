// What the module says of the convolutions.
#pragma once

#include <cstdint>
#include <string>

namespace fastdhm {

// What the channels of activations of this type (float64, float32 or bfloat16) must be multiples of; 0 where this
// processor has no instructions for them.
int64_t conv3x3_width(const std::string& dtype);

}  // namespace fastdhm
