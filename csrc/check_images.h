// The checks that every op on images makes.
#pragma once

#include <ATen/core/Tensor.h>

#include <algorithm>
#include <cstdint>

namespace fastdhm {

inline void check_images(const at::Tensor& x, const char* name) {
  TORCH_CHECK_VALUE(x.dim() == 4 && x.numel() > 0 && x.is_contiguous(at::MemoryFormat::ChannelsLast), name,
                    " must be [B, C, H, W] in channels-last order and not empty, got ", x.sizes(), " with strides ",
                    x.strides());
}

// Whether sums of a few of these, such as a padded side, cannot overflow.
inline bool fits_int(at::IntArrayRef values) {
  return std::all_of(values.begin(), values.end(), [](int64_t value) { return value <= (int64_t{1} << 31); });
}

}  // namespace fastdhm
