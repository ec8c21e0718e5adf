// Finds the convolution code for this processor, and what it requires.
#pragma once

#include <c10/core/ScalarType.h>

#include <cstdint>

#include "conv/code.h"

namespace fastdhm {

// The vector code for activations of this type, or null if this processor has none.
const ConvCode<float>* find_conv_code(at::ScalarType dtype);
// The same, or an error.
const ConvCode<float>& conv_code_for(at::ScalarType dtype);

// What body(code) returns for the code for activations of this type.
template <class Body>
auto with_conv_code(at::ScalarType dtype, const Body& body) {
  return dtype == at::kDouble ? body(kConvExact) : body(conv_code_for(dtype));
}

void check_channels(int64_t one, int64_t other, int64_t width);

}  // namespace fastdhm
