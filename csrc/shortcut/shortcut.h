// What the CPU forms of fastdhm::shortcut share. Legend: B images of H x W pixels, C channels in, K >= C channels out.
//
// All tensors are [B, H, W, C], channels adjacent. An output is of a tile of 2 x 2 pixels (fewer at an odd border). A
// row is one row of outputs of one image.
#pragma once

#include <cstdint>

namespace fastdhm {

struct ShortcutShape {
  int64_t B, H, W, C, K;

  int64_t height() const { return (H + 1) / 2; }
  int64_t width() const { return (W + 1) / 2; }
};

// Code for activations of one type.
struct ShortcutCode {
  // y of rows [begin, end): the mean of each tile, and 0 in the channels from C on.
  void (*forward)(const void* x, void* y, ShortcutShape shape, int64_t begin, int64_t end);
  // grad_x of the pixels of these rows: their share of the tile's gradient.
  void (*backward)(const void* grad_y, void* grad_x, ShortcutShape shape, int64_t begin, int64_t end);
};

struct ShortcutSimd {
  ShortcutCode float32, bfloat16;
};
extern const ShortcutSimd kShortcutAvx2, kShortcutAvx512;

}  // namespace fastdhm
