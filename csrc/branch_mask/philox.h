// Philox 4x32-10, the same generator as fastdhm/ops/philox.py, for the host and for CUDA devices.
// Source: Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011.
#pragma once

#include <cstdint>

#ifdef __CUDACC__
#define FASTDHM_HOST_DEVICE __host__ __device__
#else
#define FASTDHM_HOST_DEVICE
#endif

namespace fastdhm {

// The last counter word is the purpose of a draw; the values are those of fastdhm/ops/philox.py.
constexpr uint32_t kStreamBranchMask = 0;

struct PhiloxWords {
  uint32_t word[4];
};

// Four words from a 128-bit counter and a 64-bit key.
FASTDHM_HOST_DEVICE inline PhiloxWords philox4x32(PhiloxWords counter, uint32_t key0, uint32_t key1) {
  for (int round = 0; round < 10; ++round) {
    const uint64_t product0 = uint64_t{0xD2511F53} * counter.word[0];
    const uint64_t product1 = uint64_t{0xCD9E8D57} * counter.word[2];
    counter = {{static_cast<uint32_t>(product1 >> 32) ^ counter.word[1] ^ key0, static_cast<uint32_t>(product1),
                static_cast<uint32_t>(product0 >> 32) ^ counter.word[3] ^ key1, static_cast<uint32_t>(product0)}};
    key0 += 0x9E3779B9;
    key1 += 0xBB67AE85;
  }
  return counter;
}

// Four words for item `index` at `step` of the purpose `stream`.
FASTDHM_HOST_DEVICE inline PhiloxWords draw(uint32_t index, uint64_t step, uint32_t stream, uint64_t seed) {
  const PhiloxWords counter = {{index, static_cast<uint32_t>(step), static_cast<uint32_t>(step >> 32), stream}};
  return philox4x32(counter, static_cast<uint32_t>(seed), static_cast<uint32_t>(seed >> 32));
}

}  // namespace fastdhm
