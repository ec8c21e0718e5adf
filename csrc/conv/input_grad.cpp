// The CPU form of fastdhm::conv2d_input_grad: our own products if they are faster, else torch's. Legend:
// conv/shape.h.
#include "conv/input_grad.h"

#include <ATen/Parallel.h>
#include <ATen/core/Tensor.h>
#include <ATen/ops/convolution_backward.h>
#include <ATen/ops/empty.h>
#include <c10/core/impl/LocalDispatchKeySet.h>
#include <torch/library.h>

#include <algorithm>
#include <limits>
#include <tuple>
#include <vector>

#include "check_images.h"
#include "conv/find_code.h"
#include "simd/scratch.h"

namespace fastdhm {
namespace {

constexpr int64_t kNearWeights = 1 << 20;  // bytes of weights that stay in the near cache for all images

// The code that is faster for these, as far as it was measured, or null for torch's. torch is as fast without strides,
// for a kernel of one pixel (matrix products), and for many weights. Strides that skip pixels are not supported. Both
// are exact for double.
const ConvInputGradCode* find_code(const ConvShape& shape, at::ScalarType dtype) {
  if (shape.row_stride == 1 && shape.column_stride == 1) return nullptr;
  if (shape.row_stride > shape.R || shape.column_stride > shape.S) return nullptr;
  if (dtype == at::kDouble) return &kConvExact.input_grad;
  const int64_t weights = shape.K * shape.R * shape.S * shape.C;
  if (weights * static_cast<int64_t>(c10::elementSize(dtype)) > kNearWeights) return nullptr;
  const ConvCode<float>* code = find_conv_code(dtype);
  return code == nullptr ? nullptr : &code->input_grad;
}

enum class Use { packed, bordered, count };

// The rows, or columns, of x in a phase: from `first` on, a stride apart. The first one's first tap meets `meets`.
struct Side {
  int64_t taps, first, count, meets;

  Side(int64_t phase, int64_t taps_in_all, int64_t side, int64_t stride, int64_t padding)
      : taps(parts(taps_in_all - phase, stride)),
        first(((phase - padding) % stride + stride) % stride),
        count(first < side ? parts(side - first, stride) : 0),
        meets((first + padding) / stride) {}
};

// The phases of a shape, and their pixels.
struct Plan {
  std::vector<ConvPhase> phases;
  std::vector<PhasePixels> pixels;
  ConvPhases all;

  explicit Plan(const ConvShape& shape) {
    all.shape = shape;
    all.top = (shape.R - 1) / shape.row_stride;
    all.left = (shape.S - 1) / shape.column_stride;
    all.rows = all.top + std::max(shape.rows(), (shape.H - 1 + shape.row_padding) / shape.row_stride + 1);
    all.columns = all.left + std::max(shape.columns(), (shape.W - 1 + shape.column_padding) / shape.column_stride + 1);
    int64_t taps = 0;
    for (int64_t row = 0; row < shape.row_stride; ++row) {
      const Side rows(row, shape.R, shape.H, shape.row_stride, shape.row_padding);
      for (int64_t column = 0; column < shape.column_stride; ++column) {
        const Side columns(column, shape.S, shape.W, shape.column_stride, shape.column_padding);
        const int64_t begin = pixels.size();
        add_pixels(rows, columns);
        phases.push_back({row, column, rows.taps, columns.taps, taps, begin, static_cast<int64_t>(pixels.size())});
        taps += rows.taps * columns.taps;
      }
    }
    all.phases = phases.data();
    all.count = phases.size();
    all.pixels = pixels.data();
  }

  void add_pixels(const Side& rows, const Side& columns) {
    const ConvShape& shape = all.shape;
    const int64_t count = rows.count * columns.count;
    for (int64_t first = 0; first < count; first += kPhasePixels) {
      PhasePixels some;
      for (int i = 0; i < kPhasePixels; ++i) {
        const int64_t pixel = std::min(first + i, count - 1);
        const int64_t row = pixel / columns.count, column = pixel % columns.count;
        const int64_t y = (all.top + rows.meets + row) * all.columns + all.left + columns.meets + column;
        const int64_t x_row = rows.first + row * shape.row_stride;
        const int64_t x = x_row * shape.W + columns.first + column * shape.column_stride;
        some.from[i] = static_cast<int32_t>(y * shape.K);
        some.to[i] = static_cast<int32_t>(x * shape.C);
      }
      pixels.push_back(some);
    }
  }
};

at::Tensor by_products(const ConvInputGradCode& code, const at::Tensor& grad_y, const at::Tensor& x,
                       const at::Tensor& weight, const ConvShape& shape) {
  const Plan plan(shape);
  const ConvPhases& all = plan.all;
  at::Tensor grad_x = at::empty(x.sizes(), x.options(), at::MemoryFormat::ChannelsLast);
  const int64_t bordered_size = parts(all.rows * all.columns * shape.K * code.size, 64) * 64;
  void* packed = scratch(Use::packed, weight.numel() * code.size);
  auto* bordered = static_cast<char*>(scratch(Use::bordered, bordered_size * at::get_num_threads()));
  const void *from = grad_y.const_data_ptr(), *weights = weight.const_data_ptr();
  void* to = grad_x.mutable_data_ptr();
  at::parallel_for(0, shape.K / code.pair, parts(1 << 14, shape.R * shape.S * shape.C),
                   [&](int64_t begin, int64_t end) { code.pack(weights, all, begin, end, packed); });
  at::parallel_for(0, shape.B, 1, [&](int64_t begin, int64_t end) {
    code.images(from, packed, all, begin, end, bordered + bordered_size * at::get_thread_num(), to);
  });
  return grad_x;
}

void check(const at::Tensor& grad_y, const at::Tensor& x, const at::Tensor& weight, at::IntArrayRef stride,
           at::IntArrayRef padding) {
  TORCH_CHECK_VALUE(x.dim() == 4 && weight.dim() == 4 && weight.size(1) == x.size(1), "x and weight must be ",
                    "[B, C, H, W] and [K, C, R, S], got ", x.sizes(), " and ", weight.sizes());
  bool fits = stride.size() == 2 && padding.size() == 2 && grad_y.dim() == 4 && grad_y.size(0) == x.size(0) &&
              grad_y.size(1) == weight.size(0) && grad_y.scalar_type() == x.scalar_type() &&
              weight.scalar_type() == x.scalar_type() && fits_int(stride) && fits_int(padding);
  for (int64_t i = 0; fits && i < 2; ++i) {
    const int64_t reach = x.size(i + 2) + 2 * padding[i] - weight.size(i + 2);
    fits = stride[i] > 0 && padding[i] >= 0 && weight.size(i + 2) > 0 && reach >= 0 &&
           grad_y.size(i + 2) == reach / stride[i] + 1;
  }
  TORCH_CHECK_VALUE(fits, "grad_y must be that of x, ", x.dtype(), " ", x.sizes(), ", and weight, ", weight.dtype(),
                    " ", weight.sizes(), ", with stride ", stride, " and padding ", padding, ", got ", grad_y.dtype(),
                    " ", grad_y.sizes());
}

bool takes(const ConvInputGradCode& code, const at::Tensor& grad_y, const at::Tensor& weight, const ConvShape& shape) {
  constexpr int64_t kMost = std::numeric_limits<int32_t>::max();
  const int64_t rows = shape.H + 2 * shape.row_padding + shape.R;  // at least as many as with the border
  const int64_t columns = shape.W + 2 * shape.column_padding + shape.S;
  return grad_y.is_contiguous(at::MemoryFormat::ChannelsLast) && weight.is_contiguous(at::MemoryFormat::ChannelsLast) &&
         grad_y.numel() > 0 && shape.B * shape.C * shape.H * shape.W > 0 && shape.C % code.width == 0 &&
         shape.K % code.pair == 0 && rows < kMost / columns / std::max(shape.C, shape.K);
}

at::Tensor conv2d_input_grad_cpu(const at::Tensor& grad_y, const at::Tensor& x, const at::Tensor& weight,
                                 at::IntArrayRef stride, at::IntArrayRef padding) {
  check(grad_y, x, weight, stride, padding);
  const ConvShape shape = {x.size(0),      x.size(1), x.size(2), x.size(3),  weight.size(0), weight.size(2),
                           weight.size(3), stride[0], stride[1], padding[0], padding[1]};
  const ConvInputGradCode* code = find_code(shape, x.scalar_type());
  if (code != nullptr && takes(*code, grad_y, weight, shape)) return by_products(*code, grad_y, x, weight, shape);
  const c10::impl::ExcludeDispatchKeyGuard no_autocast(c10::autocast_dispatch_keyset);
  const auto grads = at::convolution_backward(grad_y, x, weight, c10::nullopt, stride, padding, {1, 1}, false, {0, 0},
                                              1, {true, false, false});
  return std::get<0>(grads).contiguous(at::MemoryFormat::ChannelsLast);
}

}  // namespace

TORCH_LIBRARY_IMPL(fastdhm, CPU, m) { m.impl("conv2d_input_grad", &conv2d_input_grad_cpu); }

}  // namespace fastdhm
