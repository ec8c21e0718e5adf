// The transforms of Winograd's F(2x2, 3x3), in vectors of channels, for products P of an instruction set and
// activations of type T. The points of a tile are numbered row by row. Source: Lavin and Gray, CVPR 2016, whose
// matrices are G = [1 0 0; 1/2 1/2 1/2; 1/2 -1/2 1/2; 0 0 1], B^T = [1 0 -1 0; 0 1 1 0; 0 -1 1 0; 0 1 0 -1] and
// A^T = [1 1 1 0; 0 1 -1 -1]. No include that holds inline functions may stand here or after here: they would be
// compiled for P's instructions and called by all.

namespace fastdhm {
namespace {

// V = B^T d B of the tiles of one row of tiles, for one vector of channels; emit(column of tiles, V as 16 vectors).
template <class P, class T, class Emit>
inline void transform_inputs(const T* x, const Conv3x3Shape& shape, int64_t tile_row, int64_t columns, int64_t c,
                             Emit emit) {
  using F = typename P::F;
  const int64_t image = tile_row / shape.tile_rows(), top = tile_row % shape.tile_rows() * 2 - 1;
  const T zeros[P::kWidth] = {};
  const T* rows[4];
  int64_t steps[4];
  for (int i = 0; i < 4; ++i) {
    const bool inside = top + i >= 0 && top + i < shape.H;
    rows[i] = inside ? x + (image * shape.H + top + i) * shape.W * shape.C + c : zeros;
    steps[i] = inside ? shape.C : 0;
  }
  const auto column = [&](int64_t at, F* out) {
    F d[4];
    for (int i = 0; i < 4; ++i) d[i] = at < 0 || at >= shape.W ? P::all(0) : P::load(rows[i] + at * steps[i]);
    out[0] = d[0] - d[2];
    out[1] = d[1] + d[2];
    out[2] = d[2] - d[1];
    out[3] = d[1] - d[3];
  };
  F a[4], b[4];
  column(-1, a);
  column(0, b);
  for (int64_t tile = 0; tile < columns; ++tile) {
    F e[4], f[4], v[kPoints];
    column(2 * tile + 1, e);
    column(2 * tile + 2, f);
    for (int i = 0; i < 4; ++i) {
      v[4 * i] = a[i] - e[i];
      v[4 * i + 1] = b[i] + e[i];
      v[4 * i + 2] = e[i] - b[i];
      v[4 * i + 3] = b[i] - f[i];
      a[i] = e[i];
      b[i] = f[i];
    }
    emit(tile, v);
  }
}

// A y A^T of the outputs' gradients, likewise.
template <class P, class T, class Emit>
inline void transform_gradients(const T* grad_y, const Conv3x3Shape& shape, int64_t tile_row, int64_t columns,
                                int64_t k, Emit emit) {
  using F = typename P::F;
  const int64_t image = tile_row / shape.tile_rows(), top = tile_row % shape.tile_rows() * 2;
  const T* row = grad_y + (image * shape.H + top) * shape.W * shape.K + k;
  const bool has_lower = top + 1 < shape.H;
  const auto column = [&](int64_t at, F* out) {
    const bool inside = at < shape.W;
    const F upper = inside ? P::load(row + at * shape.K) : P::all(0);
    const F lower = inside && has_lower ? P::load(row + (shape.W + at) * shape.K) : P::all(0);
    out[0] = upper;
    out[1] = upper + lower;
    out[2] = upper - lower;
    out[3] = P::all(0) - lower;
  };
  for (int64_t tile = 0; tile < columns; ++tile) {
    F left[4], right[4], v[kPoints];
    column(2 * tile, left);
    column(2 * tile + 1, right);
    for (int i = 0; i < 4; ++i) {
      v[4 * i] = left[i];
      v[4 * i + 1] = left[i] + right[i];
      v[4 * i + 2] = left[i] - right[i];
      v[4 * i + 3] = P::all(0) - right[i];
    }
    emit(tile, v);
  }
}

// U = G g G^T of the weights [3, 3, C] of one output, for one vector of inputs; turned: rotated by half a turn.
template <class P>
inline void transform_weights(const typename P::S* g, int64_t C, bool turned, typename P::F* u) {
  using F = typename P::F;
  const F half = P::all(0.5);
  F t[4][3];
  for (int j = 0; j < 3; ++j) {
    const auto at = [&](int i) { return P::load(g + (turned ? 8 - 3 * i - j : 3 * i + j) * C); };
    const F sum = at(0) + at(2);
    t[0][j] = at(0);
    t[1][j] = half * (sum + at(1));
    t[2][j] = half * (sum - at(1));
    t[3][j] = at(2);
  }
  for (int i = 0; i < 4; ++i) {
    const F sum = t[i][0] + t[i][2];
    u[4 * i] = t[i][0];
    u[4 * i + 1] = half * (sum + t[i][1]);
    u[4 * i + 2] = half * (sum - t[i][1]);
    u[4 * i + 3] = t[i][2];
  }
}

// y = A^T m A of one tile, for one vector of outputs, put at `to`; m has its points `point_stride` apart.
template <class P, class T>
inline void store_outputs(const typename P::S* m, int64_t point_stride, const Conv3x3Shape& shape, int64_t tile_row,
                          int64_t tile, T* to) {
  using F = typename P::F;
  F a[2][4];
  for (int j = 0; j < 4; ++j) {
    const auto at = [&](int i) { return P::load(m + (4 * i + j) * point_stride); };
    const F middle = at(1), low = at(2);
    a[0][j] = at(0) + middle + low;
    a[1][j] = middle - low - at(3);
  }
  const int64_t image = tile_row / shape.tile_rows(), top = tile_row % shape.tile_rows() * 2;
  to += ((image * shape.H + top) * shape.W + 2 * tile) * shape.K;
  for (int i = 0; i < 2 && top + i < shape.H; ++i, to += shape.W * shape.K) {
    P::store(to, a[i][0] + a[i][1] + a[i][2]);
    if (2 * tile + 1 < shape.W) P::store(to + shape.K, a[i][1] - a[i][2] - a[i][3]);
  }
}

// g = G^T U G: rows [begin, end) of the gradient of the weights [K, 3, 3, C]; U is sums [sets, point, K, C] added up.
template <class P>
inline void transform_sums(const typename P::S* sums, int64_t sets, int64_t K, int64_t C, int64_t begin, int64_t end,
                           typename P::S* grad) {
  using F = typename P::F;
  const F half = P::all(0.5);
  for (int64_t at = begin * C; at < end * C; at += P::kWidth) {
    F t[3][4];
    for (int j = 0; j < 4; ++j) {
      F u[4];
      for (int i = 0; i < 4; ++i) {
        u[i] = P::load(sums + (4 * i + j) * K * C + at);
        for (int64_t set = 1; set < sets; ++set) {
          u[i] = u[i] + P::load(sums + (set * kPoints + 4 * i + j) * K * C + at);
        }
      }
      t[0][j] = u[0] + half * (u[1] + u[2]);
      t[1][j] = half * (u[1] - u[2]);
      t[2][j] = half * (u[1] + u[2]) + u[3];
    }
    typename P::S* to = grad + at / C * 9 * C + at % C;
    for (int i = 0; i < 3; ++i) {
      P::store(to + 3 * i * C, t[i][0] + half * (t[i][1] + t[i][2]));
      P::store(to + (3 * i + 1) * C, half * (t[i][1] - t[i][2]));
      P::store(to + (3 * i + 2) * C, half * (t[i][1] + t[i][2]) + t[i][3]);
    }
  }
}

}  // namespace
}  // namespace fastdhm
