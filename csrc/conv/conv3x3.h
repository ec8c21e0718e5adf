// What the CPU forms of fastdhm::conv3x3 share. Legend: B images of H x W pixels, C channels in, K channels out.
//
// Winograd's F(4x4, 3x3): the image is cut into tiles of 6 x 6 pixels, four apart, that make 4 x 4 outputs each.
// Transformed, a tile is 36 numbers, and a convolution 36 matrix products, one for each "point" of the tile:
// 36 multiplications for 16 outputs instead of 144. All tensors of activations are [B, H, W, C], channels adjacent.
#pragma once

#include <cstdint>
#include <string>

namespace fastdhm {

constexpr int kOutputs = 4, kInputs = 6;  // along a side of a tile
constexpr int kPoints = kInputs * kInputs;

struct Conv3x3Shape {
  int64_t B, H, W, C, K;

  int64_t tile_rows() const { return (H + kOutputs - 1) / kOutputs; }
  int64_t tile_columns() const { return (W + kOutputs - 1) / kOutputs; }
};

// Code for activations of one type, Real being what weights and sums are: float, or double for double.
template <class Real>
struct Conv3x3Code {
  int64_t width;         // C and K must be multiples of it
  int64_t element_size;  // bytes of a transformed number
  // Weights [K, 3, 3, C] of rows k in [begin, end), transformed, in the order in which `forward` reads them: for a
  // convolution with them, or (turned) for one of K channels to C with the weight turned round, which is its gradient.
  void (*pack)(const Real* weight, int64_t K, int64_t C, bool turned, int64_t begin, int64_t end, void* packed);
  // y of rows of tiles [begin, end); scratch holds forward_scratch(shape) bytes.
  void (*forward)(const void* x, const void* packed, void* y, Conv3x3Shape shape, int64_t begin, int64_t end,
                  void* scratch);
  int64_t (*forward_scratch)(Conv3x3Shape shape);
  // The gradient of the weights. First inputs and gradients are transformed: of the rows of tiles [part_begin,
  // part_end), whose transforms lie in memory together, those of [begin, end).
  void (*transform)(const void* x, const void* grad_y, Conv3x3Shape shape, int64_t part_begin, int64_t part_end,
                    int64_t begin, int64_t end, void* transforms);
  int64_t (*transforms_size)(Conv3x3Shape shape, int64_t rows);  // bytes for a part of so many rows
  // Then their products, for some of the points, are put into sums [point, K, C], or added to them.
  void (*add_products)(const void* transforms, Conv3x3Shape shape, int64_t rows, int64_t first_point,
                       int64_t last_point, bool accumulate, Real* sums);
  // Rows [begin, end) of the gradient [K, 3, 3, C], from sums [sets, point, K, C].
  void (*weight_grad)(const Real* sums, int64_t sets, int64_t K, int64_t C, int64_t begin, int64_t end, Real* grad);
};

// Channels of activations of this type (float64, float32 or bfloat16) must be multiples of this; 0 if this processor
// has no instructions for the type.
int64_t conv3x3_width(const std::string& dtype);

}  // namespace fastdhm
