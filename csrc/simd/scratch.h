// Memory that a thread uses again in its next call, when it is still in the near cache.
#pragma once

#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>

#include <array>
#include <cstdint>

namespace fastdhm {

// At least this many bytes for a use. Each op has its own enum of uses, which ends with `count`.
template <class Use>
void* scratch(Use use, int64_t bytes) {
  thread_local std::array<at::Tensor, static_cast<size_t>(Use::count)> kept;
  at::Tensor& memory = kept[static_cast<size_t>(use)];
  if (!memory.defined() || memory.numel() < bytes) memory = at::empty({bytes}, at::kByte);
  return memory.mutable_data_ptr();
}

}  // namespace fastdhm
