// Draws the mask of S side branches on a CUDA device. Without torch headers, so that nvcc has little to read.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

namespace fastdhm {

// Launches on `stream`, waits for nothing; all pointers are of device memory. S > 0.
void launch_branch_mask(const double* prob_S, uint64_t seed, const int64_t* step, int64_t S, bool* mask_S,
                        cudaStream_t stream);

}  // namespace fastdhm
