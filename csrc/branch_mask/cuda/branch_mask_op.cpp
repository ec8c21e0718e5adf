// The CUDA form of fastdhm::branch_mask: on the current stream, nothing waits. S: side branches.
#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <c10/cuda/CUDAException.h>
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>
#include <torch/library.h>

#include "branch_mask/branch_mask_args.h"
#include "branch_mask/cuda/branch_mask.cuh"

namespace fastdhm {
namespace {

at::Tensor branch_mask_cuda(const at::Tensor& probs_S, int64_t seed, const at::Tensor& step) {
  check_branch_mask_args(probs_S, step);
  const c10::cuda::CUDAGuard guard(probs_S.device());
  const at::Tensor probs = probs_S.to(at::kDouble).contiguous();
  at::Tensor mask_S = at::empty(probs_S.sizes(), probs_S.options().dtype(at::kBool));
  if (probs.numel() > 0) {
    launch_branch_mask(probs.const_data_ptr<double>(), static_cast<uint64_t>(seed), step.const_data_ptr<int64_t>(),
                       probs.numel(), mask_S.mutable_data_ptr<bool>(), c10::cuda::getCurrentCUDAStream());
    C10_CUDA_KERNEL_LAUNCH_CHECK();
  }
  return mask_S;
}

}  // namespace

TORCH_LIBRARY_IMPL(fastdhm, CUDA, m) { m.impl("branch_mask", &branch_mask_cuda); }

}  // namespace fastdhm
