// Memory that a thread takes up again in its next call, and that is near then.
#pragma once

#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>

#include <array>
#include <cstdint>

namespace fastdhm {

// At least so many bytes for a use, of an enum that each op has for itself and that ends with `count`.
template <class Use>
void* scratch(Use use, int64_t bytes) {
  thread_local std::array<at::Tensor, static_cast<size_t>(Use::count)> kept;
  at::Tensor& memory = kept[static_cast<size_t>(use)];
  if (!memory.defined() || memory.numel() < bytes) memory = at::empty({bytes}, at::kByte);
  return memory.mutable_data_ptr();
}

}  // namespace fastdhm
