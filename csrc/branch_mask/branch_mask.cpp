// The CPU form of fastdhm::branch_mask. S: side branches.
#include "branch_mask/branch_mask.h"

#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <torch/library.h>

#include "branch_mask/branch_mask_args.h"

namespace fastdhm {
namespace {

at::Tensor branch_mask_cpu(const at::Tensor& probs_S, int64_t seed, const at::Tensor& step) {
  check_branch_mask_args(probs_S, step);
  const at::Tensor probs = probs_S.to(at::kDouble).contiguous();
  at::Tensor mask_S = at::empty(probs_S.sizes(), probs_S.options().dtype(at::kBool));
  const double* prob = probs.const_data_ptr<double>();
  bool* mask = mask_S.mutable_data_ptr<bool>();
  const auto step_bits = static_cast<uint64_t>(*step.const_data_ptr<int64_t>());
  for (int64_t s = 0; s < probs.numel(); ++s) {
    mask[s] = branch_is_in(prob[s], static_cast<uint32_t>(s), step_bits, static_cast<uint64_t>(seed));
  }
  return mask_S;
}

}  // namespace

TORCH_LIBRARY_IMPL(fastdhm, CPU, m) { m.impl("branch_mask", &branch_mask_cpu); }

}  // namespace fastdhm
