#include "conv/find_code.h"

#include <c10/util/Exception.h>

#include "simd/scalar.h"
#include "simd/simd.h"

#include "conv/code_simd.h"

namespace fastdhm {

constexpr ConvCode<double> kConvExact = conv_code<Singles<One<double>, 4>, double>();

const ConvCode<float>* find_conv_code(at::ScalarType dtype) {
#ifdef FASTDHM_BFLOAT16_PRODUCTS
  if (dtype == at::kBFloat16 && has_bfloat16_products()) return &kConvAvx512BFloat16;
#endif
  return dtype == at::kFloat ? FASTDHM_CODE_IN_USE(kConv) : nullptr;
}

const ConvCode<float>& conv_code_for(at::ScalarType dtype) {
  const ConvCode<float>* code = find_conv_code(dtype);
  TORCH_CHECK_VALUE(code != nullptr, "this processor has no vector code for a convolution of ", dtype);
  return *code;
}

void check_channels(int64_t one, int64_t other, int64_t width) {
  TORCH_CHECK_VALUE(one % width == 0 && other % width == 0, "channels must be multiples of ", width, ", got ", one,
                    " and ", other);
}

}  // namespace fastdhm
