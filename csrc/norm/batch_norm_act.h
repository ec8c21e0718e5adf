// What the CPU forms of fastdhm::batch_norm_act share. Legend: R rows (a row is one pixel of one image), C channels.
//
// All tensors of activations are [R, C], channels adjacent; all vectors are [C].
#pragma once

#include <cstdint>

namespace fastdhm {

// Which gradients pass the relu: all without a relu; else those with y above 0. y is read, or (without a residual)
// computed again from x with the same bits.
enum class Mask { none, by_y, by_x };

// The inputs of both passes of the gradient. `y` is only set for Mask::by_y.
template <class S>
struct BatchNormActGradInputs {
  const void *grad_y, *y, *x;
  const S *mean, *scale, *shift;  // y is x * scale + shift, before the residual and the relu
  Mask mask;
};

// Code for activations of one type; S, the type of the sums' inputs and of the vectors, is float, or double for double.
template <class S>
struct BatchNormActCode {
  // Add to sums[0, c] and sums[1, c] the sum and the sum of squares of x - pivot over rows [begin, end).
  void (*moments)(const void* x, const S* pivot, int64_t begin, int64_t end, int64_t C, double* sums);
  // y = x * scale + shift (+ residual) (then relu)
  void (*forward)(const void* x, const void* residual, void* y, const S* scale, const S* shift, bool relu,
                  int64_t begin, int64_t end, int64_t C);
  // Let g be grad_y where the mask is on, else 0. Add to sums the sums of g and of g * (x - mean), and write g to
  // `masked` unless that is null.
  void (*backward_sums)(const BatchNormActGradInputs<S>& inputs, void* masked, int64_t begin, int64_t end, int64_t C,
                        double* sums);
  // grad_x = a * g + b * (x - mean) + c
  void (*backward)(const BatchNormActGradInputs<S>& inputs, const S* a, const S* b, const S* c, void* grad_x,
                   int64_t begin, int64_t end, int64_t C);
};

struct BatchNormActSimd {
  BatchNormActCode<float> float32, bfloat16;
};
extern const BatchNormActSimd kBatchNormActAvx2, kBatchNormActAvx512;

}  // namespace fastdhm
