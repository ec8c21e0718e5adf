// The shape of a convolution. Legend: B images of H x W pixels, C channels in, K channels out, a kernel of R x S taps;
// rows and columns are those of the output. All tensors of activations are [B, H, W, C], channels adjacent.
#pragma once

#include <cstdint>

namespace fastdhm {

// The number of parts of a whole; the last part may be smaller.
constexpr int64_t parts(int64_t whole, int64_t part) { return (whole + part - 1) / part; }

struct ConvShape {
  int64_t B, C, H, W, K, R, S, row_stride, column_stride, row_padding, column_padding;

  int64_t rows() const { return (H + 2 * row_padding - R) / row_stride + 1; }
  int64_t columns() const { return (W + 2 * column_padding - S) / column_stride + 1; }
};

}  // namespace fastdhm
