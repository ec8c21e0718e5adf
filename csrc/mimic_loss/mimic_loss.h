// What the CPU forms of fastdhm::mimic_loss share: one call's work, and the two ways to do a range of its rows.
// Legend: M branches, A of them used, B batch, K classes, T temperature; p teacher, q student, both in [0, A).
#pragma once

#include <c10/util/Half.h>

#include <cstdint>
#include <type_traits>

namespace fastdhm {

// A gradient has the logits' dtype, but float32 for float16: before the loss scaling it can be too small for that.
template <class T>
using GradOf = std::conditional_t<std::is_same_v<T, c10::Half>, float, T>;

struct MimicLossWork {
  int64_t used, batch, classes;  // A, B, K
  const int64_t* branch;         // [A] the place of each used branch among the M
  const void* logits;            // [M, B, K], classes adjacent
  int64_t stride_branch, stride_row;
  const int64_t* target;  // [B]
  int64_t ignore_index;
  double temperature, smoothing;
  const double* factor;  // [A, A] of the gradient: W_qq / labelled rows on the diagonal, T W_pq / B off it
  // Whether off the diagonal factor[p, q] = teacher[p] * student[q]: then one sum over the teachers serves all
  // students.
  bool separable;
  const double *teacher, *student;  // [A]
  void* grad;                       // [M, B, K] contiguous, of type GradOf, or null
};

// Do rows [begin, end): write their gradient, and add to sum[A * A] their cross-entropies (on the diagonal) and
// KL(P_p || P_q) (off it). `scratch` is a thread's own, on a 64-byte boundary.
using MimicLossRows = void (*)(const MimicLossWork& work, int64_t begin, int64_t end, float* scratch, double* sum);

// Float code of one instruction set. Exact for finite logits; where a sum comes out as NaN or infinite, these rows are
// to be done again by `mimic_loss_rows_exact`, which means the reference's result for any logits.
struct MimicLossSimd {
  int64_t (*scratch_floats)(const MimicLossWork& work);  // that a thread needs
  MimicLossRows float32, bfloat16, float16;
};
extern const MimicLossSimd kMimicLossAvx2, kMimicLossAvx512;

}  // namespace fastdhm
