// Batch norm, residual and relu in vectors, for an instruction set V (simd/avx512.h shows what V gives). Include no
// header with inline functions here or below: they would be compiled for V but called by all code.

#include "simd/lanes.h"

namespace fastdhm {
namespace {

constexpr int64_t kCachedElements = 8192;  // of an activation, for several passes over its channels

// Call body(offset, lanes, vectors as a constant) for the channels from first to last, in runs of whole vectors.
template <class V, class Body>
inline void for_channels(int64_t C, const Body& body) {
  constexpr int64_t W = V::kWidth;
  int64_t c = 0;
  for (; c + 4 * W <= C; c += 4 * W) body.template run<4>(c, W);
  for (; c + 2 * W <= C; c += 2 * W) body.template run<2>(c, W);
  for (; c < C; c += W) body.template run<1>(c, C - c < W ? C - c : W);
}

// Sums over rows stay in registers: four rows of one vector, two of two or one of four at a time, so that no sum waits
// for its own previous addition.
template <class V, class T>
struct Moments {
  const T* x;
  const typename V::S* pivot;
  int64_t rows, C;
  double* sums;

  template <int N>
  void run(int64_t c, int64_t lanes) const {
    constexpr int U = 4 / N;
    typename V::F at[N], sum[U][N], square[U][N];
    for (int n = 0; n < N; ++n) {
      at[n] = load_lanes<V>(pivot + c + n * V::kWidth, lanes);
      for (int u = 0; u < U; ++u) sum[u][n] = square[u][n] = V::all(0);
    }
    auto add = [&](int64_t row, int u) {
      for (int n = 0; n < N; ++n) {
        const typename V::F d = load_lanes<V>(x + row * C + c + n * V::kWidth, lanes) - at[n];
        sum[u][n] = sum[u][n] + d;
        square[u][n] = V::fma(d, d, square[u][n]);
      }
    };
    int64_t row = 0;
    for (; row + U <= rows; row += U) {
      for (int u = 0; u < U; ++u) add(row + u, u);
    }
    for (; row < rows; ++row) add(row, 0);
    flush<N>(sum, sums + c, lanes);
    flush<N>(square, sums + C + c, lanes);
  }

  template <int N, int U>
  static void flush(typename V::F (&part)[U][N], double* to, int64_t lanes) {
    typename V::S values[V::kWidth];
    for (int n = 0; n < N; ++n) {
      for (int u = 1; u < U; ++u) part[0][n] = part[0][n] + part[u][n];
      V::store(values, part[0][n]);
      for (int64_t i = 0; i < lanes; ++i) to[n * V::kWidth + i] += values[i];
    }
  }
};

// y before the relu, by an expression that forward and backward share.
template <class V, class T>
inline typename V::F normalized(const T* x, int64_t lanes, typename V::F scale, typename V::F shift) {
  return V::fma(load_lanes<V>(x, lanes), scale, shift);
}

// A number above this is above 0 after rounding to T.
template <class T>
constexpr float kRoundsTo0 = 0;
template <>
constexpr float kRoundsTo0<c10::BFloat16> = 0x1p-134f;

// The gradient that passes the relu, for N vectors of channels from the first on.
template <class V, class T, Mask M, int N>
struct Masked {
  const T *grad_y, *y, *x;
  typename V::F scale[N], shift[N];

  Masked(const BatchNormActGradInputs<typename V::S>& from, int64_t offset, int64_t c, int64_t lanes)
      : grad_y(static_cast<const T*>(from.grad_y) + offset),
        y(M == Mask::by_y ? static_cast<const T*>(from.y) + offset : nullptr),
        x(static_cast<const T*>(from.x) + offset) {
    for (int n = 0; n < N && M == Mask::by_x; ++n) {
      scale[n] = load_lanes<V>(from.scale + c + n * V::kWidth, lanes);
      shift[n] = load_lanes<V>(from.shift + c + n * V::kWidth, lanes);
    }
  }

  typename V::F load(int64_t i, int n, int64_t lanes) const {
    const typename V::F g = load_lanes<V>(grad_y + i, lanes);
    if (M == Mask::by_y) return V::where_above(load_lanes<V>(y + i, lanes), 0, g);
    if (M == Mask::by_x) return V::where_above(normalized<V>(x + i, lanes, scale[n], shift[n]), kRoundsTo0<T>, g);
    return g;
  }
};

template <class V, class T, Mask M, bool Write>
struct BackwardSums {
  const BatchNormActGradInputs<typename V::S>& from;
  T* masked;
  int64_t offset, rows, C;
  double* sums;

  template <int N>
  void run(int64_t c, int64_t lanes) const {
    constexpr int U = 4 / N;
    const Masked<V, T, M, N> gradient(from, offset, c, lanes);
    T* const to = Write ? masked + offset : nullptr;
    const int64_t stride = C;  // local, so that no store can change it
    typename V::F at[N], sum[U][N], product[U][N];
    for (int n = 0; n < N; ++n) {
      at[n] = load_lanes<V>(from.mean + c + n * V::kWidth, lanes);
      for (int u = 0; u < U; ++u) sum[u][n] = product[u][n] = V::all(0);
    }
    auto add = [&](int64_t row, int u) {
      for (int n = 0; n < N; ++n) {
        const int64_t i = row * stride + c + n * V::kWidth;
        const typename V::F g = gradient.load(i, n, lanes);
        if (Write) store_lanes<V>(to + i, g, lanes);
        sum[u][n] = sum[u][n] + g;
        product[u][n] = V::fma(g, load_lanes<V>(gradient.x + i, lanes) - at[n], product[u][n]);
      }
    };
    int64_t row = 0;
    for (; row + U <= rows; row += U) {
      for (int u = 0; u < U; ++u) add(row + u, u);
    }
    for (; row < rows; ++row) add(row, 0);
    Moments<V, T>::template flush<N>(sum, sums + c, lanes);
    Moments<V, T>::template flush<N>(product, sums + C + c, lanes);
  }
};

template <class V, class T, bool Residual, bool Relu>
struct Forward {
  const T *x, *residual;
  T* y;
  const typename V::S *scale, *shift;
  int64_t rows, C;

  template <int N>
  void run(int64_t c, int64_t lanes) const {
    typename V::F a[N], b[N];
    for (int n = 0; n < N; ++n) {
      a[n] = load_lanes<V>(scale + c + n * V::kWidth, lanes);
      b[n] = load_lanes<V>(shift + c + n * V::kWidth, lanes);
    }
    for (int64_t row = 0; row < rows; ++row) {
      for (int n = 0; n < N; ++n) {
        const int64_t i = row * C + c + n * V::kWidth;
        typename V::F value = normalized<V>(x + i, lanes, a[n], b[n]);
        if (Residual) value = value + load_lanes<V>(residual + i, lanes);
        if (Relu) value = V::max(V::all(0), value);  // in this order a NaN stays a NaN
        store_lanes<V>(y + i, value, lanes);
      }
    }
  }
};

template <class V, class T, Mask M>
struct Backward {
  const BatchNormActGradInputs<typename V::S>& from;
  const typename V::S *a, *b, *c;
  T* grad_x;
  int64_t offset, rows, C;

  template <int N>
  void run(int64_t first, int64_t lanes) const {
    const Masked<V, T, M, N> gradient(from, offset, first, lanes);
    T* const to = grad_x + offset;
    typename V::F at[N], va[N], vb[N], vc[N];
    for (int n = 0; n < N; ++n) {
      at[n] = load_lanes<V>(from.mean + first + n * V::kWidth, lanes);
      va[n] = load_lanes<V>(a + first + n * V::kWidth, lanes);
      vb[n] = load_lanes<V>(b + first + n * V::kWidth, lanes);
      vc[n] = load_lanes<V>(c + first + n * V::kWidth, lanes);
    }
    for (int64_t row = 0; row < rows; ++row) {
      for (int n = 0; n < N; ++n) {
        const int64_t i = row * C + first + n * V::kWidth;
        const typename V::F g = gradient.load(i, n, lanes);
        const typename V::F rest = V::fma(load_lanes<V>(gradient.x + i, lanes) - at[n], vb[n], vc[n]);
        store_lanes<V>(to + i, V::fma(g, va[n], rest), lanes);
      }
    }
  }
};

// Rows [begin, end) in parts that stay in the first-level cache while all their channels go through.
template <class Part>
inline void for_parts(int64_t begin, int64_t end, int64_t C, const Part& part) {
  const int64_t step = C < kCachedElements / 16 ? kCachedElements / C : 16;
  for (int64_t row = begin; row < end; row += step) part(row, row + step < end ? step : end - row);
}

template <class V, class T>
struct BatchNormActRows {
  using S = typename V::S;

  static void moments(const void* x, const S* pivot, int64_t begin, int64_t end, int64_t C, double* sums) {
    for_parts(begin, end, C, [&](int64_t row, int64_t rows) {
      for_channels<V>(C, Moments<V, T>{static_cast<const T*>(x) + row * C, pivot, rows, C, sums});
    });
  }

  static void forward(const void* x, const void* residual, void* y, const S* scale, const S* shift, bool relu,
                      int64_t begin, int64_t end, int64_t C) {
    if (residual != nullptr) {
      relu ? forward_as<true, true>(x, residual, y, scale, shift, begin, end, C)
           : forward_as<true, false>(x, residual, y, scale, shift, begin, end, C);
    } else {
      relu ? forward_as<false, true>(x, residual, y, scale, shift, begin, end, C)
           : forward_as<false, false>(x, residual, y, scale, shift, begin, end, C);
    }
  }

  template <bool Residual, bool Relu>
  static void forward_as(const void* x, const void* residual, void* y, const S* scale, const S* shift, int64_t begin,
                         int64_t end, int64_t C) {
    for_parts(begin, end, C, [&](int64_t row, int64_t rows) {
      const int64_t i = row * C;
      for_channels<V>(C, Forward<V, T, Residual, Relu>{static_cast<const T*>(x) + i,
                                                       static_cast<const T*>(residual) + (Residual ? i : 0),
                                                       static_cast<T*>(y) + i, scale, shift, rows, C});
    });
  }

  static void backward_sums(const BatchNormActGradInputs<S>& inputs, void* masked, int64_t begin, int64_t end,
                            int64_t C, double* sums) {
    if (inputs.mask == Mask::none) return sums_as<Mask::none, false>(inputs, masked, begin, end, C, sums);
    if (inputs.mask == Mask::by_x) return sums_as<Mask::by_x, false>(inputs, masked, begin, end, C, sums);
    masked == nullptr ? sums_as<Mask::by_y, false>(inputs, masked, begin, end, C, sums)
                      : sums_as<Mask::by_y, true>(inputs, masked, begin, end, C, sums);
  }

  template <Mask M, bool Write>
  static void sums_as(const BatchNormActGradInputs<S>& inputs, void* masked, int64_t begin, int64_t end, int64_t C,
                      double* sums) {
    for_parts(begin, end, C, [&](int64_t row, int64_t rows) {
      for_channels<V>(C, BackwardSums<V, T, M, Write>{inputs, static_cast<T*>(masked), row * C, rows, C, sums});
    });
  }

  static void backward(const BatchNormActGradInputs<S>& inputs, const S* a, const S* b, const S* c, void* grad_x,
                       int64_t begin, int64_t end, int64_t C) {
    const auto as = inputs.mask == Mask::none   ? &backward_as<Mask::none>
                    : inputs.mask == Mask::by_x ? &backward_as<Mask::by_x>
                                                : &backward_as<Mask::by_y>;
    as(inputs, a, b, c, grad_x, begin, end, C);
  }

  template <Mask M>
  static void backward_as(const BatchNormActGradInputs<S>& inputs, const S* a, const S* b, const S* c, void* grad_x,
                          int64_t begin, int64_t end, int64_t C) {
    for_parts(begin, end, C, [&](int64_t row, int64_t rows) {
      for_channels<V>(C, Backward<V, T, M>{inputs, a, b, c, static_cast<T*>(grad_x), row * C, rows, C});
    });
  }

  static constexpr BatchNormActCode<S> code() { return {&moments, &forward, &backward_sums, &backward}; }
};

}  // namespace
}  // namespace fastdhm
