// The gradient of a convolution's input in vectors, for products P of an instruction set (Singles shows what P
// gives). Include no header with inline functions here or below: they would be compiled for P's instructions but
// called by all code.

#include "simd/ahead.h"
#include "simd/products.h"

namespace fastdhm {
namespace {

template <class P>
struct ConvInputGrad {
  using F = typename P::F;
  using E = typename P::Element;
  static constexpr int64_t W = P::kWidth, kPair = P::kPair;

  struct Pack {
    const E* weight;
    const ConvShape& shape;
    const ConvPhase& phase;
    int64_t begin, end;  // pairs
    E* packed;           // the phase's

    template <int N>
    void run(int64_t vector) const {
      const int64_t C = shape.C, K = shape.K, taps = shape.R * shape.S;
      E* to = packed + vector * W * phase.row_taps * phase.column_taps * K;
      for (int64_t r = phase.row; r < shape.R; r += shape.row_stride) {
        for (int64_t s = phase.column; s < shape.S; s += shape.column_stride, to += K * N * W) {
          for (int64_t pair = begin; pair < end; ++pair) {
            const E* one = weight + (pair * kPair * taps + r * shape.S + s) * C + vector * W;
            for (int n = 0; n < N; ++n) {
              P::store_both(to + (pair * N + n) * W * kPair, one + n * W, one + (kPair - 1) * taps * C + n * W);
            }
          }
        }
      }
    }
  };

  static void pack(const void* weight, const ConvPhases& all, int64_t begin, int64_t end, void* packed) {
    const ConvShape& shape = all.shape;
    for (int64_t i = 0; i < all.count; ++i) {
      E* to = static_cast<E*>(packed) + all.phases[i].taps_before * shape.K * shape.C;
      for_vector_blocks<P::kVectors>(shape.C / W,
                                     Pack{static_cast<const E*>(weight), shape, all.phases[i], begin, end, to});
    }
  }

  // The gradient of some pixels, in N vectors of channels. It stands alone, or the sums would not stay in registers.
  template <int N>
  __attribute__((noinline)) static void multiply_taps(const E* bordered, const int32_t* from, const E* weights,
                                                      const ConvPhase& phase, int64_t K, int64_t row, E* grad_x,
                                                      const int32_t* to) {
    constexpr int R = kRows<P>(N);
    F sum[R][N];
    const E* a[R];
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r) {
      a[r] = bordered + from[r];
#pragma GCC unroll 8
      for (int n = 0; n < N; ++n) sum[r][n] = P::all(0);
    }
    for (int64_t tap_row = 0; tap_row < phase.row_taps; ++tap_row) {
      for (int64_t tap_column = 0; tap_column < phase.column_taps; ++tap_column) {
        const int64_t first = -tap_row * row - tap_column * K, last = first + K;
        for (int64_t k = first; k < last; k += kPair, weights += N * W * kPair) {
          typename P::Packed w[N];
#pragma GCC unroll 8
          for (int n = 0; n < N; ++n) w[n] = P::load_packed(weights + n * W * kPair);
#pragma GCC unroll 8
          for (int r = 0; r < R; ++r) {
            const typename P::Packed one = P::broadcast(a[r] + k);
#pragma GCC unroll 8
            for (int n = 0; n < N; ++n) sum[r][n] = P::dot(sum[r][n], one, w[n]);
          }
        }
      }
    }
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r) {
#pragma GCC unroll 8
      for (int n = 0; n < N; ++n) P::store_element(grad_x + to[r] + n * W, sum[r][n]);
    }
  }

  struct Image {
    const ConvPhases& all;
    const ConvPhase& phase;
    const E *bordered, *packed;  // packed is the phase's
    E* grad_x;
    Ahead* ahead;

    template <int N>
    void run(int64_t vector) const {
      const int64_t K = all.shape.K;
      const E* weights = packed + vector * W * phase.row_taps * phase.column_taps * K;
      for (int64_t i = phase.begin; i < phase.end; ++i) {
        ahead->call();
        const PhasePixels& pixels = all.pixels[i];
        for (int r = 0; r < kPhasePixels; ++r) __builtin_prefetch(grad_x + pixels.to[r] + vector * W, 1);  // to write
        for (int first = 0; first < kPhasePixels; first += kRows<P>(N)) {
          multiply_taps<N>(bordered, pixels.from + first, weights, phase, K, all.columns * K, grad_x + vector * W,
                           pixels.to + first);
        }
      }
    }
  };

  // Counts the calls that share the work of asking for the next image.
  struct Count {
    int64_t* calls;
    int64_t blocks;

    template <int N>
    void run(int64_t) const {
      *calls += blocks;
    }
  };

  static void images(const void* grad_y, const void* packed, const ConvPhases& all, int64_t begin, int64_t end,
                     void* bordered, void* grad_x) {
    const ConvShape& shape = all.shape;
    const int64_t K = shape.K, C = shape.C, row = shape.columns() * K, image = shape.rows() * row;
    E* near = static_cast<E*>(bordered);
    __builtin_memset(near, 0, all.rows * all.columns * K * sizeof(E));
    int64_t calls = 0;
    for_vector_blocks<P::kVectors>(C / W, Count{&calls, all.phases[all.count - 1].end});
    for (int64_t b = begin; b < end; ++b) {
      const E* from = static_cast<const E*>(grad_y) + b * image;
      for (int64_t i = 0; i < shape.rows(); ++i) {
        __builtin_memcpy(near + ((all.top + i) * all.columns + all.left) * K, from + i * row, row * sizeof(E));
      }
      Ahead ahead;
      if (b + 1 < end) ahead.add(from + image, image * sizeof(E), 0, 1, 1);
      ahead.divide(calls);
      for (int64_t i = 0; i < all.count; ++i) {
        const ConvPhase& phase = all.phases[i];
        for_vector_blocks<P::kVectors>(
            C / W, Image{all, phase, near, static_cast<const E*>(packed) + phase.taps_before * K * C,
                         static_cast<E*>(grad_x) + b * shape.H * shape.W * C, &ahead});
      }
    }
  }

  static constexpr ConvInputGradCode code() { return {W, kPair, sizeof(E), &pack, &images}; }
};

}  // namespace
}  // namespace fastdhm
