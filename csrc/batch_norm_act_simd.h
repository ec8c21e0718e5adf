// Batch norm, residual and relu in vectors, for an instruction set V (avx512.h shows what V gives). No include that holds
// inline functions may stand here or after here: they would be compiled for V and called by all.

namespace fastdhm {
namespace {

constexpr int64_t kCachedElements = 8192;  // of an activation: what several passes over its channels share

// Up to four vectors side by side, of which the last may be cut to `lanes`.
template <class V, class T>
inline typename V::F load_lanes(const T* p, int64_t lanes) {
  return lanes == V::kWidth ? V::load(p) : V::load_first(p, lanes, 0);
}
template <class V, class T>
inline void store_lanes(T* p, typename V::F x, int64_t lanes) {
  if (lanes == V::kWidth) {
    V::store(p, x);
  } else {
    V::store_first(p, x, lanes);
  }
}

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
// for itself.
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

template <class V, class T>
struct BackwardSums {
  const T *grad_y, *y, *x;
  const typename V::S* mean;
  T* masked;
  int64_t rows, C;
  double* sums;

  template <int N>
  void run(int64_t c, int64_t lanes) const {
    if (y == nullptr) {
      run_as<N, false, false>(c, lanes);
    } else if (masked == nullptr) {
      run_as<N, true, false>(c, lanes);
    } else {
      run_as<N, true, true>(c, lanes);
    }
  }

  template <int N, bool Relu, bool Write>
  void run_as(int64_t c, int64_t lanes) const {
    constexpr int U = 4 / N;
    typename V::F at[N], sum[U][N], product[U][N];
    for (int n = 0; n < N; ++n) {
      at[n] = load_lanes<V>(mean + c + n * V::kWidth, lanes);
      for (int u = 0; u < U; ++u) sum[u][n] = product[u][n] = V::all(0);
    }
    auto add = [&](int64_t row, int u) {
      for (int n = 0; n < N; ++n) {
        const int64_t i = row * C + c + n * V::kWidth;
        typename V::F g = load_lanes<V>(grad_y + i, lanes);
        if (Relu) g = V::where_above_0(load_lanes<V>(y + i, lanes), g);
        if (Write) store_lanes<V>(masked + i, g, lanes);
        sum[u][n] = sum[u][n] + g;
        product[u][n] = V::fma(g, load_lanes<V>(x + i, lanes) - at[n], product[u][n]);
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
        typename V::F value = V::fma(load_lanes<V>(x + i, lanes), a[n], b[n]);
        if (Residual) value = value + load_lanes<V>(residual + i, lanes);
        if (Relu) value = V::max(V::all(0), value);  // in this order a NaN stays one
        store_lanes<V>(y + i, value, lanes);
      }
    }
  }
};

template <class V, class T, bool Relu>
struct Backward {
  const T *grad_y, *y, *x;
  const typename V::S *mean, *a, *b, *c;
  T* grad_x;
  int64_t rows, C;

  template <int N>
  void run(int64_t first, int64_t lanes) const {
    typename V::F at[N], va[N], vb[N], vc[N];
    for (int n = 0; n < N; ++n) {
      at[n] = load_lanes<V>(mean + first + n * V::kWidth, lanes);
      va[n] = load_lanes<V>(a + first + n * V::kWidth, lanes);
      vb[n] = load_lanes<V>(b + first + n * V::kWidth, lanes);
      vc[n] = load_lanes<V>(c + first + n * V::kWidth, lanes);
    }
    for (int64_t row = 0; row < rows; ++row) {
      for (int n = 0; n < N; ++n) {
        const int64_t i = row * C + first + n * V::kWidth;
        typename V::F g = load_lanes<V>(grad_y + i, lanes);
        if (Relu) g = V::where_above_0(load_lanes<V>(y + i, lanes), g);
        const typename V::F rest = V::fma(load_lanes<V>(x + i, lanes) - at[n], vb[n], vc[n]);
        store_lanes<V>(grad_x + i, V::fma(g, va[n], rest), lanes);
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

  static void backward_sums(const void* grad_y, const void* y, const void* x, const S* mean, void* masked,
                            int64_t begin, int64_t end, int64_t C, double* sums) {
    for_parts(begin, end, C, [&](int64_t row, int64_t rows) {
      const int64_t i = row * C;
      for_channels<V>(
          C, BackwardSums<V, T>{static_cast<const T*>(grad_y) + i,
                                y == nullptr ? nullptr : static_cast<const T*>(y) + i, static_cast<const T*>(x) + i,
                                mean, masked == nullptr ? nullptr : static_cast<T*>(masked) + i, rows, C, sums});
    });
  }

  static void backward(const void* grad_y, const void* y, const void* x, const S* mean, const S* a, const S* b, const S* c,
                       void* grad_x, int64_t begin, int64_t end, int64_t C) {
    y == nullptr ? backward_as<false>(grad_y, y, x, mean, a, b, c, grad_x, begin, end, C)
                 : backward_as<true>(grad_y, y, x, mean, a, b, c, grad_x, begin, end, C);
  }

  template <bool Relu>
  static void backward_as(const void* grad_y, const void* y, const void* x, const S* mean, const S* a, const S* b, const S* c,
                          void* grad_x, int64_t begin, int64_t end, int64_t C) {
    for_parts(begin, end, C, [&](int64_t row, int64_t rows) {
      const int64_t i = row * C;
      for_channels<V>(C, Backward<V, T, Relu>{static_cast<const T*>(grad_y) + i,
                                              static_cast<const T*>(y) + (Relu ? i : 0), static_cast<const T*>(x) + i,
                                              mean, a, b, c, static_cast<T*>(grad_x) + i, rows, C});
    });
  }

  static constexpr BatchNormActCode<S> code() { return {&moments, &forward, &backward_sums, &backward}; }
};

}  // namespace
}  // namespace fastdhm
