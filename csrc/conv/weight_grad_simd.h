// The gradient of a convolution's weights in vectors, for products P of an instruction set (Singles shows what P
// gives). Include no header with inline functions here or below: they would be compiled for P's instructions but
// called by all code.

#include "simd/ahead.h"
#include "simd/products.h"

namespace fastdhm {
namespace {

template <class P>
struct ConvWeightGrad {
  using F = typename P::F;
  using S = typename P::S;
  using E = typename P::Element;
  static constexpr int64_t W = P::kWidth, kPair = P::kPair;
  static constexpr int64_t kWidth = W < kMostRows ? kMostRows : W;
  static constexpr int64_t kApart = 64 / sizeof(E);  // between vectors, lest all begin on one line of the cache

  // A packed block: grad_y as [vectors of K][row, pair of images, column][W][pair], and x likewise for each phase, the
  // rows and columns that taps a stride apart share, with as many more as the taps reach beyond the first.
  struct Layout {
    ConvShape shape;
    int64_t row_phases, column_phases, columns;  // of x
    int64_t grad_vector, vector;                 // elements of a vector of grad_y, and of x in a phase

    explicit Layout(const ConvBlocks& blocks) : shape(blocks.shape) {
      row_phases = shape.R < shape.row_stride ? shape.R : shape.row_stride;
      column_phases = shape.S < shape.column_stride ? shape.S : shape.column_stride;
      columns = shape.columns() + (shape.S - 1) / shape.column_stride;
      const int64_t rows = blocks.rows + (shape.R - 1) / shape.row_stride;
      grad_vector = blocks.rows * blocks.pairs * shape.columns() * W * kPair + kApart;
      vector = rows * blocks.pairs * columns * W * kPair + kApart;
    }

    int64_t size() const { return phase(row_phases, 0); }
    int64_t phase(int64_t row, int64_t column) const {
      return shape.K / W * grad_vector + (row * column_phases + column) * (shape.C / W) * vector;
    }
  };

  static int64_t packed_size(const ConvBlocks& blocks) { return Layout(blocks).size() * sizeof(E); }

  static int64_t row_elements(const ConvShape& shape) {
    const int64_t x = (shape.W + 2 * shape.column_padding) * shape.C, grad_y = shape.columns() * shape.K;
    return x > grad_y ? x : grad_y;
  }
  static int64_t rows_size(const ConvShape& shape) { return kPair * row_elements(shape) * sizeof(E); }

  // Rows of images [B, H, columns, channels], each with its padding.
  struct Rows {
    const E* images;
    int64_t B, H, columns, channels, padding;

    const E* find(int64_t image, int64_t row, E* kept) const {
      const int64_t size = columns * channels, border = padding * channels;
      if (image >= B || row < 0 || row >= H) {
        __builtin_memset(kept, 0, (size + 2 * border) * sizeof(E));
        return kept;
      }
      const E* at = images + (image * H + row) * size;
      if (border == 0) return at;
      __builtin_memset(kept, 0, border * sizeof(E));
      __builtin_memcpy(kept + border, at, size * sizeof(E));
      __builtin_memset(kept + border + size, 0, border * sizeof(E));
      return kept;
    }
  };

  // Every step-th pixel of two rows, in pairs, at to + vector * next.
  static void pack_line(const E* one, const E* other, int64_t step, int64_t columns, int64_t vectors, E* to,
                        int64_t next) {
    for (int64_t column = 0; column < columns; ++column, one += step, other += step, to += W * kPair) {
      for (int64_t v = 0; v < vectors; ++v) P::store_both(to + v * next, one + v * W, other + v * W);
    }
  }

  static void pack(const void* grad_y, const void* x, const ConvBlocks& blocks, const ConvBlock& block, int64_t begin,
                   int64_t end, void* packed, void* kept) {
    const Layout layout(blocks);
    const ConvShape& shape = layout.shape;
    const int64_t C = shape.C, K = shape.K, B = shape.B, stride = shape.column_stride, columns = shape.columns();
    const Rows gradients = {static_cast<const E*>(grad_y), B, shape.rows(), columns, K, 0};
    const Rows inputs = {static_cast<const E*>(x), B, shape.H, shape.W, C, shape.column_padding};
    E *to = static_cast<E*>(packed), *one = static_cast<E*>(kept), *other = one + (kPair - 1) * row_elements(shape);
    for (int64_t line = begin; line < end; ++line) {
      const int64_t pair = line / block.rows, row = line % block.rows, image = (block.first_pair + pair) * kPair;
      pack_line(gradients.find(image, block.first_row + row, one),
                gradients.find(image + kPair - 1, block.first_row + row, other), K, columns, K / W,
                to + (row * block.pairs + pair) * columns * W * kPair, layout.grad_vector);
      const int64_t rows = row + 1 < block.rows ? shape.row_stride : shape.R;  // of x, up to those of the next line
      for (int64_t i = 0; i < rows; ++i) {
        const int64_t phase = i % shape.row_stride, x_line = (row + i / shape.row_stride) * block.pairs + pair;
        if (phase >= layout.row_phases) continue;
        const int64_t x_row = (block.first_row + row) * shape.row_stride + i - shape.row_padding;
        const E *a = inputs.find(image, x_row, one), *b = inputs.find(image + kPair - 1, x_row, other);
        for (int64_t j = 0; j < layout.column_phases; ++j) {
          pack_line(a + j * C, b + j * C, stride * C, columns + (shape.S - 1 - j) / stride, C / W,
                    to + layout.phase(phase, j) + x_line * layout.columns * W * kPair, layout.vector);
        }
      }
    }
  }

  struct Products {
    const Layout& layout;
    const ConvBlock& block;
    const E* packed;
    int64_t begin, end;
    bool accumulate;
    S* sums;
    Ahead* ahead;

    template <int N>
    void run(int64_t vector) const {
      const ConvShape& shape = layout.shape;
      const int64_t parts = shape.K / kWidth;
      for (int64_t part = begin; part < end; ++part) {
        const int64_t tap = part / parts, first = part % parts * kWidth;
        for (int64_t k = first; k < first + kWidth; k += kRows<P>(N)) {
          ahead->call();
          multiply_tap<N>(vector, tap / shape.S, tap % shape.S, k, sums + (tap * shape.K + k) * shape.C + vector * W);
        }
      }
    }

    template <int N>
    void multiply_tap(int64_t vector, int64_t r, int64_t s, int64_t k, S* to) const {
      const ConvShape& shape = layout.shape;
      const int64_t phase = layout.phase(r % shape.row_stride, s % shape.column_stride), next = layout.vector;
      const int64_t moved = r / shape.row_stride * block.pairs * layout.columns + s / shape.column_stride;
      const E* x = packed + phase + vector * next + moved * W * kPair;
      const E* y = packed + k / W * layout.grad_vector + k % W * kPair;
      const int64_t next_k = W < kRows<P>(N) ? layout.grad_vector : kPair;  // single numbers are vectors of their own
      const bool all_in_one = layout.columns == shape.columns();
      const int64_t lines = all_in_one ? 1 : block.lines(), pairs = block.lines() / lines * shape.columns();
      const int64_t y_line = shape.columns() * W * kPair, x_line = layout.columns * W * kPair;
      multiply<P, N>(
          [=](int i, int64_t line, int64_t pair) { return y + i * next_k + line * y_line + pair * W * kPair; },
          [=](int n, int64_t line, int64_t pair) { return x + n * next + line * x_line + pair * W * kPair; }, lines,
          pairs, to, shape.C, accumulate);
    }
  };

  // Counts the products that share the work of calling the next block.
  struct Count {
    int64_t* products;

    template <int N>
    void run(int64_t) const {
      *products += kWidth / kRows<P>(N);
    }
  };

  static Ahead ahead(const void* grad_y, const void* x, const ConvShape& shape, const ConvBlock& next, int64_t begin,
                     int64_t end) {
    Ahead ahead;
    const int64_t parts = shape.R * shape.S * (shape.K / kWidth);
    const int64_t start = next.first_pair * kPair, left = shape.B - start;
    const int64_t images = left < next.pairs * kPair ? left : next.pairs * kPair;
    const bool whole = next.rows == shape.rows();
    const int64_t top = next.first_row * shape.row_stride - shape.row_padding;
    const int64_t bottom = top + (next.rows - 1) * shape.row_stride + shape.R;
    const int64_t first = whole || top < 0 ? 0 : top, last = whole || bottom > shape.H ? shape.H : bottom;
    const int64_t x_row = shape.W * shape.C * sizeof(E), y_row = shape.columns() * shape.K * sizeof(E);
    const int64_t at_once = whole ? images : 1;  // whole images follow each other
    for (int64_t image = start; image < start + images; image += at_once) {
      ahead.add(static_cast<const char*>(x) + (image * shape.H + first) * x_row, at_once * (last - first) * x_row,
                begin, end, parts);
      ahead.add(static_cast<const char*>(grad_y) + (image * shape.rows() + next.first_row) * y_row,
                at_once * next.rows * y_row, begin, end, parts);
    }
    int64_t products = 0;
    for_vector_blocks<P::kVectors>(shape.C / W, Count{&products});
    ahead.divide(products * (end - begin));
    return ahead;
  }

  static void add_products(const void* packed, const ConvBlocks& blocks, const ConvBlock& block, int64_t begin,
                           int64_t end, bool accumulate, S* sums, const void* grad_y, const void* x,
                           const ConvBlock* next) {
    const Layout layout(blocks);
    Ahead near = next == nullptr ? Ahead{} : ahead(grad_y, x, blocks.shape, *next, begin, end);
    for_vector_blocks<P::kVectors>(blocks.shape.C / W, Products{layout, block, static_cast<const E*>(packed), begin,
                                                                end, accumulate, sums, &near});
  }

  static void add_sets(const S* sums, int64_t sets, const ConvShape& shape, int64_t begin, int64_t end, S* grad) {
    const int64_t K = shape.K, C = shape.C, taps = shape.R * shape.S;
    for (int64_t k = begin; k < end; ++k) {
      for (int64_t tap = 0; tap < taps; ++tap) {
        const S* from = sums + (tap * K + k) * C;
        for (int64_t c = 0; c < C; c += W) {
          F sum = P::load(from + c);
          for (int64_t set = 1; set < sets; ++set) sum = sum + P::load(from + c + set * taps * K * C);
          P::store(grad + (k * taps + tap) * C + c, sum);
        }
      }
    }
  }

  static constexpr ConvWeightGradCode<S> code() {
    return {kWidth, kPair, &packed_size, &rows_size, &pack, &add_products, &add_sets};
  }
};

}  // namespace
}  // namespace fastdhm
