// What the CPU forms of fastdhm::conv2d_input_grad share. Legend: conv/shape.h.
//
// A phase is the pixels of x that lie a stride apart. The same taps reach all of them: every stride-th one of a kernel,
// down and across. Their gradient is the sum over these taps of matrix products of pixels of grad_y, [pixels, K], and
// the tap's weights, [K, C]. An image of grad_y is first copied into a border of zeros, for taps that reach beyond it.
#pragma once

#include <cstdint>

#include "conv/shape.h"

namespace fastdhm {

constexpr int kPhasePixels = 8;  // computed together

// Where the pixels of grad_y, in its border, lie that the first tap meets, and where those of x: in numbers from the
// beginning of the image. The last pixel of a phase is repeated where there are fewer.
struct PhasePixels {
  int32_t from[kPhasePixels], to[kPhasePixels];
};

struct ConvPhase {
  int64_t row, column;  // of the first tap
  int64_t row_taps, column_taps;
  int64_t taps_before;  // in the phases before it
  int64_t begin, end;   // of its PhasePixels
};

struct ConvPhases {
  ConvShape shape;
  int64_t top, left, rows, columns;  // the border's, and the sides of a whole image of grad_y with it
  const ConvPhase* phases;
  int64_t count;
  const PhasePixels* pixels;
};

// Code for one type of numbers, of which all tensors are.
struct ConvInputGradCode {
  int64_t width;  // C must be a multiple of it
  int64_t pair;   // K must be
  int64_t size;   // bytes of a number
  // Some pairs of rows of the weights [K, R, S, C], packed as [phase][vectors of C][tap][pair of K][C][pair].
  void (*pack)(const void* weight, const ConvPhases& phases, int64_t begin, int64_t end, void* packed);
  // Images [begin, end) of the gradient, by a bordered image's own memory.
  void (*images)(const void* grad_y, const void* packed, const ConvPhases& phases, int64_t begin, int64_t end,
                 void* bordered, void* grad_x);
};

}  // namespace fastdhm
