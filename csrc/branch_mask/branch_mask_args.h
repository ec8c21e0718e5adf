// The checks of arguments that every form of fastdhm::branch_mask makes. S: side branches.
#pragma once

#include <ATen/core/Tensor.h>
#include <c10/util/Exception.h>

namespace fastdhm {

inline void check_branch_mask_args(const at::Tensor& probs_S, const at::Tensor& step) {
  TORCH_CHECK_VALUE(probs_S.dim() == 1 && probs_S.is_floating_point(),
                    "probs must be floating and of one dimension, got ", probs_S.dtype(), " of shape ",
                    probs_S.sizes());
  TORCH_CHECK_VALUE(step.dim() == 0 && step.scalar_type() == at::kLong && step.device() == probs_S.device(),
                    "step must be an int64 tensor without dimensions on ", probs_S.device(), ", got ", step.dtype(),
                    " of shape ", step.sizes(), " on ", step.device());
}

}  // namespace fastdhm
