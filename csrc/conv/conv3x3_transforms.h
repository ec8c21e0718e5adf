// Winograd's transforms, in vectors of channels, for products P of an instruction set and activations of type T. The
// points of a tile are numbered row by row. Source: Lavin and Gray, CVPR 2016; Tile holds its one-dimensional matrices.
// Include no header with inline functions here or below: they would be compiled for P's instructions but called by all
// code.

namespace fastdhm {
namespace {

// One dimension of a tile, by the values of polynomials at 0, a, -a, b, -b and infinity. Points +-5/8 and +-3/2
// minimise the bfloat16 rounding error: 0.44 of that with the usual +-1, +-2.
template <class P>
struct Tile {
  using F = typename P::F;
  static constexpr double a = 0.625, b = 1.5, a2 = a * a, b2 = b * b;
  static constexpr double kAtZero = 1 / (a2 * b2), kAtA = 1 / (2 * a2 * (a2 - b2)), kAtB = 1 / (2 * b2 * (b2 - a2));

  static F times(double factor, F x) { return P::all(static_cast<typename P::S>(factor)) * x; }
  static F add_times(F sum, double factor, F x) { return P::fma(P::all(static_cast<typename P::S>(factor)), x, sum); }

  static void inputs(const F* d, F* v) {
    v[0] = add_times(add_times(d[4], -a2 - b2, d[2]), a2 * b2, d[0]);
    const F even_a = add_times(d[4], -b2, d[2]), odd_a = times(a, add_times(d[3], -b2, d[1]));
    v[1] = even_a + odd_a;
    v[2] = even_a - odd_a;
    const F even_b = add_times(d[4], -a2, d[2]), odd_b = times(b, add_times(d[3], -a2, d[1]));
    v[3] = even_b + odd_b;
    v[4] = even_b - odd_b;
    v[5] = add_times(add_times(d[5], -a2 - b2, d[3]), a2 * b2, d[1]);
  }
  static void weights(const F* g, F* u) {
    u[0] = times(kAtZero, g[0]);
    const F even_a = times(kAtA, add_times(g[0], a2, g[2])), odd_a = times(kAtA * a, g[1]);
    u[1] = even_a + odd_a;
    u[2] = even_a - odd_a;
    const F even_b = times(kAtB, add_times(g[0], b2, g[2])), odd_b = times(kAtB * b, g[1]);
    u[3] = even_b + odd_b;
    u[4] = even_b - odd_b;
    u[5] = g[2];
  }
  static void outputs(const F* m, F* y) {
    const F even_a = m[1] + m[2], odd_a = m[1] - m[2], even_b = m[3] + m[4], odd_b = m[3] - m[4];
    y[0] = m[0] + even_a + even_b;
    y[1] = add_times(times(a, odd_a), b, odd_b);
    y[2] = add_times(times(a2, even_a), b2, even_b);
    y[3] = add_times(add_times(m[5], a * a2, odd_a), b * b2, odd_b);
  }
  static void gradients(const F* y, F* v) {
    v[0] = y[0];
    const F even_a = add_times(y[0], a2, y[2]), odd_a = times(a, add_times(y[1], a2, y[3]));
    v[1] = even_a + odd_a;
    v[2] = even_a - odd_a;
    const F even_b = add_times(y[0], b2, y[2]), odd_b = times(b, add_times(y[1], b2, y[3]));
    v[3] = even_b + odd_b;
    v[4] = even_b - odd_b;
    v[5] = y[3];
  }
  static void sums(const F* u, F* g) {
    const F even_a = times(kAtA, u[1] + u[2]), odd_a = u[1] - u[2];
    const F even_b = times(kAtB, u[3] + u[4]), odd_b = u[3] - u[4];
    g[0] = add_times(even_a + even_b, kAtZero, u[0]);
    g[1] = add_times(times(kAtA * a, odd_a), kAtB * b, odd_b);
    g[2] = add_times(add_times(u[5], a2, even_a), b2, even_b);
  }
};

// Have memory bring what lies `ahead`, to be read or (kWrite) written soon: the next row of tiles, which processors do
// not foresee. Without this the transforms wait for memory most of their time. It need not be there: nothing is
// touched.
template <int kWrite = 0, class T>
inline void ask_for(const T* from, int64_t ahead) {
  __builtin_prefetch(reinterpret_cast<const void*>(reinterpret_cast<uintptr_t>(from) + ahead * sizeof(T)), kWrite);
}

// The second dimension: row i of what `from` holds the columns of, made into `made` by `one`.
template <int kFrom, int kRows, class F>
__attribute__((always_inline)) inline void along_row(const F (*from)[kRows], int i, void one(const F*, F*), F* made) {
  F line[kFrom];
#pragma GCC unroll 8
  for (int j = 0; j < kFrom; ++j) line[j] = from[j][i];
  one(line, made);
}

// V = B^T d B of the tiles of one row of tiles, for one vector of channels, kTiles at a time, which must divide the
// columns; emit(first tile, row of V, its vectors for each of them).
template <class P, int kTiles, class T, class Emit>
inline void transform_inputs(const T* x, const Conv3x3Shape& shape, int64_t tile_row, int64_t columns, int64_t c,
                             Emit emit) {
  using F = typename P::F;
  const int64_t image = tile_row / shape.tile_rows(), top = tile_row % shape.tile_rows() * kOutputs - 1;
  const T zeros[P::kWidth] = {};
  const T* rows[kInputs];
  int64_t steps[kInputs];
  for (int i = 0; i < kInputs; ++i) {
    const bool inside = top + i >= 0 && top + i < shape.H;
    rows[i] = inside ? x + (image * shape.H + top + i) * shape.W * shape.C + c : zeros;
    steps[i] = inside ? shape.C : 0;
  }
  const int64_t below = kOutputs * shape.W * shape.C;  // from here to the next row of tiles
  const auto column = [&](int64_t at, F* out) {
    F d[kInputs];
#pragma GCC unroll 8
    for (int i = 0; i < kInputs; ++i) {
      d[i] = at < 0 || at >= shape.W ? P::all(0) : P::load(rows[i] + at * steps[i]);
      if (i >= kInputs - kOutputs) ask_for(rows[i] + at * steps[i], below);
    }
    Tile<P>::inputs(d, out);
  };
  constexpr int kNew = kTiles * kOutputs;
  F seen[2 + kNew][kInputs];  // columns, transformed; the first two are the last of the tiles before
  column(-1, seen[kNew]);
  column(0, seen[kNew + 1]);
  for (int64_t tile = 0; tile < columns; tile += kTiles) {
#pragma GCC unroll 8
    for (int i = 0; i < kInputs; ++i) {
      seen[0][i] = seen[kNew][i];
      seen[1][i] = seen[kNew + 1][i];
    }
#pragma GCC unroll 8
    for (int j = 0; j < kNew; ++j) column(kOutputs * tile + 1 + j, seen[2 + j]);
#pragma GCC unroll 8
    for (int i = 0; i < kInputs; ++i) {
      F v[kTiles][kInputs];
#pragma GCC unroll 8
      for (int t = 0; t < kTiles; ++t) along_row<kInputs>(seen + kOutputs * t, i, &Tile<P>::inputs, v[t]);
      emit(tile, i, v);
    }
  }
}

// A y A^T of the outputs' gradients, likewise.
template <class P, int kTiles, class T, class Emit>
inline void transform_gradients(const T* grad_y, const Conv3x3Shape& shape, int64_t tile_row, int64_t columns,
                                int64_t k, Emit emit) {
  using F = typename P::F;
  const int64_t image = tile_row / shape.tile_rows(), top = tile_row % shape.tile_rows() * kOutputs;
  const T* row = grad_y + (image * shape.H + top) * shape.W * shape.K + k;
  for (int64_t tile = 0; tile < columns; tile += kTiles) {
    F seen[kTiles * kOutputs][kInputs];
#pragma GCC unroll 8
    for (int j = 0; j < kTiles * kOutputs; ++j) {
      const int64_t at = kOutputs * tile + j;
      F y[kOutputs];
#pragma GCC unroll 8
      for (int i = 0; i < kOutputs; ++i) {
        const bool inside = at < shape.W && top + i < shape.H;
        y[i] = inside ? P::load(row + (i * shape.W + at) * shape.K) : P::all(0);
        ask_for(row + (i * shape.W + at) * shape.K, kOutputs * shape.W * shape.K);
      }
      Tile<P>::gradients(y, seen[j]);
    }
#pragma GCC unroll 8
    for (int i = 0; i < kInputs; ++i) {
      F v[kTiles][kInputs];
#pragma GCC unroll 8
      for (int t = 0; t < kTiles; ++t) along_row<kOutputs>(seen + kOutputs * t, i, &Tile<P>::gradients, v[t]);
      emit(tile, i, v);
    }
  }
}

// U = G g G^T of the weights [3, 3, C] of one output, for one vector of inputs; turned: rotated by half a turn.
template <class P>
inline void transform_weights(const typename P::S* g, int64_t C, bool turned, typename P::F* u) {
  using F = typename P::F;
  F seen[3][kInputs];
  for (int j = 0; j < 3; ++j) {
    F column[3];
    for (int i = 0; i < 3; ++i) column[i] = P::load(g + (turned ? 8 - 3 * i - j : 3 * i + j) * C);
    Tile<P>::weights(column, seen[j]);
  }
  for (int i = 0; i < kInputs; ++i) along_row<3>(seen, i, &Tile<P>::weights, u + kInputs * i);
}

// y = A^T m A of one tile, for one vector of outputs, put at `to`; m has its points `point_stride` apart.
template <class P, class T>
inline void store_outputs(const typename P::S* m, int64_t point_stride, const Conv3x3Shape& shape, int64_t tile_row,
                          int64_t tile, T* to) {
  using F = typename P::F;
  F seen[kInputs][kOutputs];
#pragma GCC unroll 8
  for (int j = 0; j < kInputs; ++j) {
    F column[kInputs];
#pragma GCC unroll 8
    for (int i = 0; i < kInputs; ++i) column[i] = P::load(m + (kInputs * i + j) * point_stride);
    Tile<P>::outputs(column, seen[j]);
  }
  const int64_t image = tile_row / shape.tile_rows(), top = tile_row % shape.tile_rows() * kOutputs;
  to += ((image * shape.H + top) * shape.W + kOutputs * tile) * shape.K;
#pragma GCC unroll 8
  for (int i = 0; i < kOutputs; ++i) {
    F y[kOutputs];
    along_row<kInputs>(seen, i, &Tile<P>::outputs, y);
    for (int j = 0; j < kOutputs; ++j) {
      T* const at = to + (i * shape.W + j) * shape.K;
      if (top + i < shape.H && kOutputs * tile + j < shape.W) P::store(at, y[j]);
      ask_for<1>(at, kOutputs * shape.W * shape.K);
    }
  }
}

// g = G^T U G: rows [begin, end) of the gradient of the weights [K, 3, 3, C]; U is sums [sets, point, K, C] added up.
template <class P>
inline void transform_sums(const typename P::S* sums, int64_t sets, int64_t K, int64_t C, int64_t begin, int64_t end,
                           typename P::S* grad) {
  using F = typename P::F;
  for (int64_t at = begin * C; at < end * C; at += P::kWidth) {
    F seen[kInputs][3];
    for (int j = 0; j < kInputs; ++j) {
      F u[kInputs];
      for (int i = 0; i < kInputs; ++i) {
        u[i] = P::load(sums + (kInputs * i + j) * K * C + at);
        for (int64_t set = 1; set < sets; ++set) {
          u[i] = u[i] + P::load(sums + (set * kPoints + kInputs * i + j) * K * C + at);
        }
      }
      Tile<P>::sums(u, seen[j]);
    }
    typename P::S* to = grad + at / C * 9 * C + at % C;
    for (int i = 0; i < 3; ++i) {
      F g[3];
      along_row<kInputs>(seen, i, &Tile<P>::sums, g);
      for (int j = 0; j < 3; ++j) P::store(to + (3 * i + j) * C, g[j]);
    }
  }
}

}  // namespace
}  // namespace fastdhm
