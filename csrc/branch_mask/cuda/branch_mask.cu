// The kernel of fastdhm::branch_mask. S: side branches.
#include "branch_mask/cuda/branch_mask.cuh"

#include "branch_mask/branch_mask.h"

namespace fastdhm {
namespace {

constexpr int kThreads = 128;

// The kernel reads the step, not the host: so a captured graph can advance it.
__global__ void branch_mask_kernel(const double* prob_S, uint64_t seed, const int64_t* step, int64_t S, bool* mask_S) {
  const int64_t s = int64_t{blockIdx.x} * kThreads + threadIdx.x;
  if (s < S) mask_S[s] = branch_is_in(prob_S[s], static_cast<uint32_t>(s), static_cast<uint64_t>(*step), seed);
}

}  // namespace

void launch_branch_mask(const double* prob_S, uint64_t seed, const int64_t* step, int64_t S, bool* mask_S,
                        cudaStream_t stream) {
  const auto blocks = static_cast<unsigned>((S + kThreads - 1) / kThreads);
  branch_mask_kernel<<<blocks, kThreads, 0, stream>>>(prob_S, seed, step, S, mask_S);
}

}  // namespace fastdhm
