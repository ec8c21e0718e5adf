// The shortcut of a residual block in vectors, for an instruction set V (simd/avx512.h shows what V gives). Include no
// header with inline functions here or below: they would be compiled for V but called by all code.

#include "simd/lanes.h"

namespace fastdhm {
namespace {

template <class V, class T>
struct Shortcut {
  // Call body(offset, lanes) for the channels from first to last.
  template <class Body>
  static void for_channels(int64_t C, const Body& body) {
    for (int64_t c = 0; c < C; c += V::kWidth) body(c, C - c < V::kWidth ? C - c : V::kWidth);
  }

  // A tile of M x N pixels; `line` is from one row of pixels to the next.
  template <int M, int N>
  static void mean(const T* x, T* y, int64_t line, int64_t C, int64_t K) {
    for_channels(C, [&](int64_t c, int64_t lanes) {
      typename V::F sum = load_lanes<V>(x + c, lanes);
      for (int i = 1; i < M * N; ++i) sum = sum + load_lanes<V>(x + i / N * line + i % N * C + c, lanes);
      store_lanes<V>(y + c, sum * V::all(1.0f / (M * N)), lanes);
    });
    for_channels(K - C, [&](int64_t c, int64_t lanes) { store_lanes<V>(y + C + c, V::all(0), lanes); });
  }

  template <int M, int N>
  static void share(const T* grad_y, T* grad_x, int64_t line, int64_t C) {
    for_channels(C, [&](int64_t c, int64_t lanes) {
      const typename V::F part = load_lanes<V>(grad_y + c, lanes) * V::all(1.0f / (M * N));
      for (int i = 0; i < M * N; ++i) store_lanes<V>(grad_x + i / N * line + i % N * C + c, part, lanes);
    });
  }

  template <int M>
  static void forward_row(const T* x, T* y, ShortcutShape shape) {
    const int64_t C = shape.C, K = shape.K, line = shape.W * C, pairs = shape.W / 2;
    for (int64_t j = 0; j < pairs; ++j) mean<M, 2>(x + 2 * j * C, y + j * K, line, C, K);
    if (shape.W % 2) mean<M, 1>(x + 2 * pairs * C, y + pairs * K, line, C, K);
  }

  template <int M>
  static void backward_row(const T* grad_y, T* grad_x, ShortcutShape shape) {
    const int64_t C = shape.C, K = shape.K, line = shape.W * C, pairs = shape.W / 2;
    for (int64_t j = 0; j < pairs; ++j) share<M, 2>(grad_y + j * K, grad_x + 2 * j * C, line, C);
    if (shape.W % 2) share<M, 1>(grad_y + pairs * K, grad_x + 2 * pairs * C, line, C);
  }

  // Call body(offset of its pixels, offset of its outputs, whether there is a second row of pixels) for each row.
  template <class Body>
  static void for_rows(ShortcutShape shape, int64_t begin, int64_t end, const Body& body) {
    for (int64_t row = begin; row < end; ++row) {
      const int64_t image = row / shape.height(), i = row % shape.height();
      body((image * shape.H + 2 * i) * shape.W * shape.C, row * shape.width() * shape.K, 2 * i + 1 < shape.H);
    }
  }

  static void forward(const void* x, void* y, ShortcutShape shape, int64_t begin, int64_t end) {
    for_rows(shape, begin, end, [&](int64_t from, int64_t to, bool two) {
      const auto row = two ? &forward_row<2> : &forward_row<1>;
      row(static_cast<const T*>(x) + from, static_cast<T*>(y) + to, shape);
    });
  }

  static void backward(const void* grad_y, void* grad_x, ShortcutShape shape, int64_t begin, int64_t end) {
    for_rows(shape, begin, end, [&](int64_t to, int64_t from, bool two) {
      const auto row = two ? &backward_row<2> : &backward_row<1>;
      row(static_cast<const T*>(grad_y) + from, static_cast<T*>(grad_x) + to, shape);
    });
  }

  static constexpr ShortcutCode code() { return {&forward, &backward}; }
};

}  // namespace
}  // namespace fastdhm
