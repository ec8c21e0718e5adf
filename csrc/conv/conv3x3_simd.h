// Winograd convolutions in vectors, for products P of an instruction set (Singles shows what P gives) and
// activations of type T. Include no header with inline functions here or below: they would be compiled for P's
// instructions but called by all code.

#include "conv/conv3x3_transforms.h"
#include "simd/products.h"

namespace fastdhm {
namespace {

constexpr int64_t kApart = 64;        // bytes between the arrays of two points, lest all begin on one line of the cache
constexpr int64_t kBlockTiles = 64;   // about so many tiles pass through the near cache together
constexpr int64_t kNearInputs = 128;  // channels whose weights stay near while all tiles of a block meet them

template <class P, class T>
struct Conv3x3 {
  using F = typename P::F;
  using S = typename P::S;
  using E = typename P::Element;
  static constexpr int64_t W = P::kWidth, kPair = P::kPair;
  static constexpr int kAtOnce = P::kVectors;  // side by side in a block

  static int64_t round_up(int64_t x, int64_t unit) { return (x + unit - 1) / unit * unit; }
  static int64_t apart(int64_t size) { return size + kApart / sizeof(E); }  // elements from one point to the next

  // The weights, packed as [blocks of N vectors of outputs][point][pairs of inputs][N][W][pair].
  struct Pack {
    const S* weight;  // [K, 3, 3, C]
    int64_t K, C;
    bool turned;         // the outputs are columns c, else rows k
    int64_t begin, end;  // rows
    E* packed;

    template <int N>
    void run(int64_t vector) const {
      turned ? along(vector, N) : across(vector, N);
    }

    // Lanes go across the rows: W of them are transformed, then put side by side.
    void across(int64_t vector, int N) const {
      for (int n = 0; n < N; ++n) {
        const int64_t first = (vector + n) * W;
        for (int64_t c = 0; begin <= first && first < end && c < C; c += W) {
          E lanes[W][kPoints][W];
          for (int64_t i = 0; i < W; ++i) {
            F u[kPoints];
            transform_weights<P>(weight + (first + i) * 9 * C + c, C, false, u);
            for (int point = 0; point < kPoints; ++point) P::store_element(lanes[i][point], u[point]);
          }
          E* to = packed + (vector * kPoints * C + c * N + n * kPair) * W;
          for (int point = 0; point < kPoints; ++point, to += C * N * W) {
            for (int64_t pair = 0; pair < W; pair += kPair) {
              for (int64_t i = 0; i < W; ++i) {
                __builtin_memcpy(to + pair * N * W + i * kPair, lanes[i][point] + pair, kPair * sizeof(E));
              }
            }
          }
        }
      }
    }

    // Lanes go along the rows, pairs across them.
    void along(int64_t vector, int N) const {
      for (int n = 0; n < N; ++n) {
        for (int64_t k = begin; k < end; k += kPair) {
          F u[kPair][kPoints];
          for (int i = 0; i < kPair; ++i) {
            transform_weights<P>(weight + (k + i) * 9 * C + (vector + n) * W, C, true, u[i]);
          }
          E* to = packed + (vector * kPoints * K + k * N + n * kPair) * W;
          for (int point = 0; point < kPoints; ++point, to += K * N * W) {
            P::store_pair(to, u[0][point], u[kPair - 1][point]);
          }
        }
      }
    }
  };

  static void pack(const S* weight, int64_t K, int64_t C, bool turned, int64_t begin, int64_t end, void* packed) {
    for_vector_blocks<kAtOnce>((turned ? C : K) / W, Pack{weight, K, C, turned, begin, end, static_cast<E*>(packed)});
  }

  // Rows of tiles in a block of y.
  static int64_t block_rows(const Conv3x3Shape& shape) {
    return (kBlockTiles + shape.tile_columns() - 1) / shape.tile_columns();
  }
  static int64_t block_tiles(const Conv3x3Shape& shape) {
    return round_up(block_rows(shape) * shape.tile_columns(), kMostRows);
  }
  static int64_t forward_scratch(Conv3x3Shape shape) {
    const int64_t tiles = block_tiles(shape);
    return kPoints * (apart(tiles * shape.C) * sizeof(E) + tiles * kAtOnce * W * sizeof(S) + kApart);
  }

  // A block of y, from inputs [point][tile][C] by products [point][tile][N][W].
  struct Block {
    Conv3x3Shape shape;
    int64_t first_row, last_row;  // of tiles
    const E *inputs, *packed;
    S* products;
    T* y;

    template <int N>
    void run(int64_t vector) const {
      const int64_t C = shape.C, columns = shape.tile_columns();
      const int64_t tiles = round_up((last_row - first_row) * columns, kMostRows);
      const int64_t products_apart = tiles * N * W + kApart / sizeof(S);
      for (int64_t point = 0; point < kPoints; ++point) {
        const E* u = packed + (vector * kPoints + point * N) * W * C;
        const E* v = inputs + point * apart(block_tiles(shape) * C);
        for (int64_t c = 0; c < C; c += kNearInputs) {
          const int64_t pairs = (C - c < kNearInputs ? C - c : kNearInputs) / kPair;
          for (int64_t t = 0; t < tiles; t += kRows<P>(N)) {
            const E *a = v + t * C + c, *b = u + c * N * W;
            multiply<P, N>([=](int r, int64_t pair) { return a + r * C + pair * kPair; },
                           [=](int n, int64_t pair) { return b + (pair * N + n) * kPair * W; }, pairs,
                           products + point * products_apart + t * N * W, N * W, c > 0);
          }
        }
      }
      const S* m = products;
      for (int64_t row = first_row; row < last_row; ++row) {
        for (int64_t tile = 0; tile < columns; ++tile) {
          for (int n = 0; n < N; ++n, m += W) {
            store_outputs<P>(m, products_apart, shape, row, tile, y + (vector + n) * W);
          }
        }
      }
    }
  };

  static void forward(const void* x, const void* packed, void* y, Conv3x3Shape shape, int64_t begin, int64_t end,
                      void* scratch) {
    const int64_t C = shape.C, columns = shape.tile_columns(), rows = block_rows(shape);
    const int64_t inputs_apart = apart(block_tiles(shape) * C);
    E* inputs = static_cast<E*>(scratch);
    S* products = reinterpret_cast<S*>(inputs + kPoints * inputs_apart);
    for (int64_t first = begin; first < end; first += rows) {
      const int64_t last = first + rows < end ? first + rows : end;
      for (int64_t row = first; row < last; ++row) {
        for (int64_t c = 0; c < C; c += W) {
          E* at = inputs + (row - first) * columns * C + c;
          const auto put = [=](int64_t tile, int i, const F(&v)[1][kInputs]) {
            E* to = at + kInputs * i * inputs_apart + tile * C;
            for (int j = 0; j < kInputs; ++j, to += inputs_apart) P::store_element(to, v[0][j]);
          };
          transform_inputs<P, 1>(static_cast<const T*>(x), shape, row, columns, c, put);
        }
      }
      for_vector_blocks<kAtOnce>(
          shape.K / W, Block{shape, first, last, inputs, static_cast<const E*>(packed), products, static_cast<T*>(y)});
    }
  }

  // Pairs lie in one row of tiles, which has an even number of them then: the gradients of the last may all be 0.
  static int64_t pair_columns(Conv3x3Shape shape) { return round_up(shape.tile_columns(), kPair); }
  static int64_t transforms_size(Conv3x3Shape shape, int64_t rows) {
    const int64_t tiles = rows * pair_columns(shape);
    return kPoints * (apart(tiles * shape.C) + apart(tiles * shape.K)) * sizeof(E);
  }

  // Puts the tiles of a row in pairs at to + point * point_stride.
  struct Pairs {
    E* to;
    int64_t point_stride;

    void operator()(int64_t tile, int i, const F (&v)[kPair][kInputs]) const {
      E* at = to + kInputs * i * point_stride + tile * W;
      for (int j = 0; j < kInputs; ++j, at += point_stride) P::store_pair(at, v[0][j], v[kPair - 1][j]);
    }
  };

  static void transform(const void* x, const void* grad_y, Conv3x3Shape shape, int64_t part_begin, int64_t part_end,
                        int64_t begin, int64_t end, void* transforms) {
    const int64_t columns = pair_columns(shape), tiles = (part_end - part_begin) * columns;
    E* inputs = static_cast<E*>(transforms);
    E* gradients = inputs + kPoints * apart(tiles * shape.C);
    for (int64_t row = begin; row < end; ++row) {
      const int64_t tile = (row - part_begin) * columns;
      for (int64_t c = 0; c < shape.C; c += W) {
        transform_inputs<P, kPair>(static_cast<const T*>(x), shape, row, columns, c,
                                   Pairs{inputs + c * tiles + tile * W, apart(tiles * shape.C)});
      }
      for (int64_t k = 0; k < shape.K; k += W) {
        transform_gradients<P, kPair>(static_cast<const T*>(grad_y), shape, row, columns, k,
                                      Pairs{gradients + k * tiles + tile * W, apart(tiles * shape.K)});
      }
    }
  }

  // The gradient, from transforms [point][vectors of C, or of K][pairs of tiles][W][pair].
  struct Products {
    Conv3x3Shape shape;
    int64_t tiles, first_point, last_point;
    bool accumulate;
    const E *inputs, *gradients;
    S* sums;  // [point][K][C]

    template <int N>
    void run(int64_t vector) const {
      const int64_t C = shape.C, K = shape.K, tiles = this->tiles;
      const int64_t next = W < kRows<P>(N) ? tiles * W : kPair;  // single numbers are vectors of their own
      for (int64_t point = first_point; point < last_point; ++point) {
        const E* v = inputs + point * apart(tiles * C) + vector * W * tiles;
        const E* y = gradients + point * apart(tiles * K);
        for (int64_t k = 0; k < K; k += kRows<P>(N)) {
          const E* a = y + k / W * W * tiles + k % W * kPair;
          multiply<P, N>([=](int r, int64_t pair) { return a + r * next + pair * kPair * W; },
                         [=](int n, int64_t pair) { return v + (n * tiles + pair * kPair) * W; }, tiles / kPair,
                         sums + (point * K + k) * C + vector * W, C, accumulate);
        }
      }
    }
  };

  static void add_products(const void* transforms, Conv3x3Shape shape, int64_t rows, int64_t first_point,
                           int64_t last_point, bool accumulate, S* sums) {
    const int64_t tiles = rows * pair_columns(shape);
    const E* inputs = static_cast<const E*>(transforms);
    const E* gradients = inputs + kPoints * apart(tiles * shape.C);
    for_vector_blocks<kAtOnce>(shape.C / W,
                               Products{shape, tiles, first_point, last_point, accumulate, inputs, gradients, sums});
  }

  static constexpr Conv3x3Code<S> code() {
    return {W < kMostRows ? kMostRows : W,
            sizeof(E),
            &pack,
            &forward,
            &forward_scratch,
            &transform,
            &transforms_size,
            &add_products,
            &transform_sums<P>};
  }
};

}  // namespace
}  // namespace fastdhm
