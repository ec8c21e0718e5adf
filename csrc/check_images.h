// What every op on images asks of them.
#pragma once

#include <ATen/core/Tensor.h>

namespace fastdhm {

inline void check_images(const at::Tensor& x, const char* name) {
  TORCH_CHECK_VALUE(x.dim() == 4 && x.numel() > 0 && x.is_contiguous(at::MemoryFormat::ChannelsLast), name,
                    " must be [B, C, H, W] in channels-last order and not empty, got ", x.sizes(), " with strides ",
                    x.strides());
}

}  // namespace fastdhm
