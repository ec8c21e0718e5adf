// What the CPU forms of fastdhm::conv_weight_grad share. Legend: conv/shape.h; the output is grad_y.
//
// The gradient of a tap's weights, [K, C], is the matrix product of grad_y, [K, pixels], and x, [pixels, C], moved by
// the tap. Both are packed, a block of pixels at a time, for such products in near memory; where the instructions take
// pairs of numbers, these are a pixel of one image and the same pixel of the next, so that a moved x needs no packing
// of its own.
#pragma once

#include <algorithm>
#include <cstdint>

#include "conv/shape.h"

namespace fastdhm {

constexpr int64_t kBlockPixels = 256;  // about so many in a block, or pairs: packed, they fit in the near cache

// Pixels of grad_y that are packed together: some rows of a pair of images, or some pairs of whole ones. A pair is one
// image where the instructions take single numbers.
struct ConvBlock {
  int64_t first_pair, pairs, first_row, rows;

  int64_t lines() const { return pairs * rows; }
};

// How a gradient is cut into blocks.
struct ConvBlocks {
  ConvShape shape;
  int64_t images, pairs, rows;  // in a pair; in a block at most

  ConvBlocks(const ConvShape& shape, int64_t images) : shape(shape), images(images) {
    const int64_t pixels = shape.rows() * shape.columns();
    pairs = even(all_pairs(), kBlockPixels / pixels);
    rows = even(shape.rows(), kBlockPixels / shape.columns());
  }

  int64_t all_pairs() const { return parts(shape.B, images); }
  int64_t count() const { return parts(all_pairs(), pairs) * parts(shape.rows(), rows); }
  ConvBlock block(int64_t number) const {
    const int64_t across = parts(shape.rows(), rows), pair = number / across * pairs, row = number % across * rows;
    return {pair, std::min(pairs, all_pairs() - pair), row, std::min(rows, shape.rows() - row)};
  }

  // The size of parts of a whole that are as even as can be and no larger than `most`, or 1.
  static int64_t even(int64_t whole, int64_t most) {
    return parts(whole, parts(whole, std::clamp<int64_t>(most, 1, whole)));
  }
};

// Code for activations of one type, Real being what the gradient is: float, or double for double.
template <class Real>
struct ConvWeightGradCode {
  int64_t width;                                     // C and K must be multiples of it
  int64_t images;                                    // in a pair
  int64_t (*packed_size)(const ConvBlocks& blocks);  // bytes of a block
  int64_t (*rows_size)(const ConvShape& shape);      // bytes in which `pack` keeps rows
  // Of a block, the lines [begin, end).
  void (*pack)(const void* grad_y, const void* x, const ConvBlocks& blocks, const ConvBlock& block, int64_t begin,
               int64_t end, void* packed, void* rows);
  // The products of a packed block are put into sums [R, S, K, C], or added to them: of the parts [begin, end) of
  // R * S * K / width. Meanwhile the same share of what the next block is packed from, if any, is called near.
  void (*add_products)(const void* packed, const ConvBlocks& blocks, const ConvBlock& block, int64_t begin, int64_t end,
                       bool accumulate, Real* sums, const void* grad_y, const void* x, const ConvBlock* next);
  // Rows [begin, end) of the gradient [K, R, S, C], from sums [sets, R, S, K, C].
  void (*add_sets)(const Real* sums, int64_t sets, const ConvShape& shape, int64_t begin, int64_t end, Real* grad);
};

}  // namespace fastdhm
