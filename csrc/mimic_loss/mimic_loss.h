// What the CPU forms of fastdhm::mimic_loss share: one call's work, and the two ways to do a range of its rows.
// Legend: M branches, A of them used, B batch, K classes, T temperature; p teacher, q student, both in [0, A).
#pragma once

#include <c10/util/Half.h>

#include <cstdint>
#include <type_traits>

namespace fastdhm {

// A gradient has the logits' dtype, but float32 for float16, whose range is too small before loss scaling.
template <class T>
using GradOf = std::conditional_t<std::is_same_v<T, c10::Half>, float, T>;

struct MimicLossWork {
  int64_t used, batch, classes;  // A, B, K
  const int64_t* branch;         // [A] the index of each used branch among the M
  const void* logits;            // [M, B, K], classes adjacent
  int64_t stride_branch, stride_row;
  const int64_t *target, *second;  // [B]; `second` is null if labels are not mixed
  const double *share, *weight;    // [B] of the first label; of the row. Null: 1
  int64_t ignore_index;
  double temperature, smoothing;
  const double* factor;  // [A, A] of the gradient: W_qq / weight of all labels on the diagonal, T W_pq / B off it
  // Whether factor[p, q] = teacher[p] * student[q] off the diagonal: then all students use the same sum over the
  // teachers.
  bool separable;
  const double *teacher, *student;  // [A]
  void* grad;                       // [M, B, K] contiguous, of type GradOf, or null
};

// The label of a row: `share` of class `first`, the rest of `second`. A weight of 0 means that it has none.
struct MimicLossLabel {
  int64_t first, second;
  double share, weight;
};

inline MimicLossLabel label_of(const MimicLossWork& work, int64_t b) {
  const int64_t first = work.target[b], second = work.second == nullptr ? first : work.second[b];
  const bool labelled = first != work.ignore_index && second != work.ignore_index;
  return {first, second, first == second ? 1 : work.share[b],
          !labelled                ? 0
          : work.weight == nullptr ? 1
                                   : work.weight[b]};
}

// Compute rows [begin, end): write their gradient, and add to sum[A * A] their cross-entropies (on the diagonal) and
// KL(P_p || P_q) (off it). `scratch` belongs to the thread, on a 64-byte boundary.
using MimicLossRows = void (*)(const MimicLossWork& work, int64_t begin, int64_t end, float* scratch, double* sum);

// Float code of one instruction set, for finite logits. If a sum is NaN or infinite, these rows must be computed again
// by `mimic_loss_rows_exact`, which gives the reference's result for any logits.
struct MimicLossSimd {
  int64_t (*scratch_floats)(const MimicLossWork& work);  // that a thread needs
  MimicLossRows float32, bfloat16, float16;
};
extern const MimicLossSimd kMimicLossAvx2, kMimicLossAvx512;

}  // namespace fastdhm
