// The CPU form of fastdhm::conv3x3 and its gradients. Legend: conv/conv3x3.h.
#include "conv/conv3x3.h"

#include <ATen/Parallel.h>
#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <c10/util/BFloat16.h>
#include <torch/csrc/autograd/custom_function.h>
#include <torch/library.h>

#include <algorithm>

#include "check_images.h"
#include "conv/find_code.h"
#include "find_op.h"
#include "simd/scratch.h"

namespace fastdhm {
namespace {

constexpr int64_t kNear = 1 << 19;       // bytes of transformed numbers that fit in a core's near cache
constexpr int64_t kShared = 1 << 22;     // and in the cache that the cores share
constexpr int64_t kSmallSums = 32 * 32;  // so few weights that their sums stay in the near cache
constexpr int64_t kSets = 8;             // of such sums: this many threads can work on one gradient
constexpr int64_t kLeastTiles = 256;     // enough for products to outweigh moving their sums to memory and back

enum class Use { weights, blocks, transforms, sums, count };

// The convolution of x with the weight, or (turned) the input's gradient from the output's.
template <class S>
at::Tensor convolve(const Conv3x3Code<S>& code, const at::Tensor& x, const at::Tensor& weight, bool turned) {
  const int64_t rows = weight.size(0), columns = weight.size(1), outputs = turned ? columns : rows;
  const Conv3x3Shape shape = {x.size(0), x.size(2), x.size(3), x.size(1), outputs};
  check_channels(rows, columns, code.width);
  at::Tensor y = at::empty({shape.B, outputs, shape.H, shape.W}, x.options(), at::MemoryFormat::ChannelsLast);
  void* packed = scratch(Use::weights, kPoints * rows * columns * code.element_size);
  at::parallel_for(0, rows / code.width, 1, [&](int64_t begin, int64_t end) {
    code.pack(weight.const_data_ptr<S>(), rows, columns, turned, begin * code.width, end * code.width, packed);
  });
  const int64_t bytes = code.forward_scratch(shape);
  auto* own = static_cast<char*>(scratch(Use::blocks, bytes * at::get_num_threads()));
  at::parallel_for(0, shape.B * shape.tile_rows(), 1, [&](int64_t begin, int64_t end) {
    code.forward(x.const_data_ptr(), packed, y.mutable_data_ptr(), shape, begin, end,
                 own + bytes * at::get_thread_num());
  });
  return y;
}

// The products of all images in sets of sums [sets, point, K, C]. The number of sets depends only on the shape, so any
// number of threads gives the same bits. One thread computes a set, in its own memory.
template <class S>
void sums_by_images(const Conv3x3Code<S>& code, const void* grad_y, const void* x, const Conv3x3Shape& shape,
                    int64_t sets, S* sums) {
  const int64_t rows = shape.B * shape.tile_rows(), size = kPoints * shape.K * shape.C;
  const int64_t most = std::max<int64_t>(1, kNear / code.transforms_size(shape, 1));
  const int64_t bytes = code.transforms_size(shape, most);
  auto* transforms = static_cast<char*>(scratch(Use::transforms, bytes * at::get_num_threads()));
  at::parallel_for(0, sets, 1, [&](int64_t first, int64_t last) {
    void* own = transforms + bytes * at::get_thread_num();
    for (int64_t set = first; set < last; ++set) {
      const int64_t start = rows * set / sets, stop = rows * (set + 1) / sets;
      for (int64_t begin = start; begin < stop; begin += most) {
        const int64_t end = std::min(stop, begin + most);
        code.transform(x, grad_y, shape, begin, end, begin, end, own);
        code.add_products(own, shape, end - begin, 0, kPoints, begin > start, sums + set * size);
      }
    }
  });
}

// The same in one set, if sums are too large: all threads transform a part of the images, then each thread computes
// some of the points. At most 36 threads work on the products.
template <class S>
void sums_by_points(const Conv3x3Code<S>& code, const void* grad_y, const void* x, const Conv3x3Shape& shape, S* sums) {
  const int64_t rows = shape.B * shape.tile_rows();
  const int64_t near = kShared / code.transforms_size(shape, 1), least = kLeastTiles / shape.tile_columns() + 1;
  const int64_t most = std::min(rows, std::max(near, least));
  void* transforms = scratch(Use::transforms, code.transforms_size(shape, most));
  for (int64_t begin = 0; begin < rows; begin += most) {
    const int64_t end = std::min(rows, begin + most);
    at::parallel_for(begin, end, 1, [&](int64_t first, int64_t last) {
      code.transform(x, grad_y, shape, begin, end, first, last, transforms);
    });
    at::parallel_for(0, kPoints, 1, [&](int64_t first, int64_t last) {
      code.add_products(transforms, shape, end - begin, first, last, begin > 0, sums);
    });
  }
}

template <class S>
at::Tensor weight_grad(const Conv3x3Code<S>& code, const at::Tensor& grad_y, const at::Tensor& x) {
  const Conv3x3Shape shape = {x.size(0), x.size(2), x.size(3), x.size(1), grad_y.size(1)};
  const int64_t C = shape.C, K = shape.K, rows = shape.B * shape.tile_rows();
  check_channels(C, K, code.width);
  const int64_t sets = C * K <= kSmallSums ? std::min(rows, kSets) : 1;
  S* sums = static_cast<S*>(scratch(Use::sums, sets * kPoints * K * C * sizeof(S)));
  if (C * K <= kSmallSums) {
    sums_by_images(code, grad_y.const_data_ptr(), x.const_data_ptr(), shape, sets, sums);
  } else {
    sums_by_points(code, grad_y.const_data_ptr(), x.const_data_ptr(), shape, sums);
  }
  const auto options = x.options().dtype(c10::CppTypeToScalarType<S>::value);
  at::Tensor grad = at::empty({K, C, 3, 3}, options, at::MemoryFormat::ChannelsLast);
  at::parallel_for(0, K, 1, [&](int64_t begin, int64_t end) {
    code.weight_grad(sums, sets, K, C, begin, end, grad.mutable_data_ptr<S>());
  });
  return grad;
}

void check_weight(const at::Tensor& weight, const at::Tensor& x, int64_t channels) {
  const at::ScalarType own = x.scalar_type() == at::kDouble ? at::kDouble : at::kFloat;
  TORCH_CHECK_VALUE(weight.dim() == 4 && weight.size(2) == 3 && weight.size(3) == 3 && weight.scalar_type() == own &&
                        weight.is_contiguous(at::MemoryFormat::ChannelsLast) && channels == x.size(1) &&
                        weight.numel() > 0,
                    "weight must be ", own, " [K, C, 3, 3] in channels-last order for ", x.size(1),
                    " channels and not empty, got ", weight.dtype(), " ", weight.sizes());
}

at::Tensor conv3x3_cpu(const at::Tensor& x, const at::Tensor& weight) {
  check_images(x, "x");
  check_weight(weight, x, weight.size(1));
  return with_conv_code(x.scalar_type(), [&](const auto& code) { return convolve(code.conv3x3, x, weight, false); });
}

at::Tensor conv3x3_input_grad_cpu(const at::Tensor& grad_y, const at::Tensor& weight) {
  check_images(grad_y, "grad_y");
  check_weight(weight, grad_y, weight.size(0));
  return with_conv_code(grad_y.scalar_type(),
                        [&](const auto& code) { return convolve(code.conv3x3, grad_y, weight, true); });
}

at::Tensor conv3x3_weight_grad_cpu(const at::Tensor& grad_y, const at::Tensor& x) {
  check_images(grad_y, "grad_y");
  check_images(x, "x");
  TORCH_CHECK_VALUE(x.scalar_type() == grad_y.scalar_type() && x.size(0) == grad_y.size(0) &&
                        x.size(2) == grad_y.size(2) && x.size(3) == grad_y.size(3),
                    "grad_y must be ", x.dtype(), " of the images of x, ", x.sizes(), ", got ", grad_y.dtype(), " ",
                    grad_y.sizes());
  return with_conv_code(x.scalar_type(), [&](const auto& code) { return weight_grad(code.conv3x3, grad_y, x); });
}

// In C++, because in Python a call and its gradient cost as much as a small convolution.
struct Conv3x3Autograd : torch::autograd::Function<Conv3x3Autograd> {
  using Op = at::Tensor(const at::Tensor&, const at::Tensor&);

  static at::Tensor forward(torch::autograd::AutogradContext* context, const at::Tensor& x, const at::Tensor& weight) {
    const at::AutoDispatchBelowADInplaceOrView below;
    context->save_for_backward({x, weight});
    static const auto op = find_op<Op>("fastdhm::conv3x3");
    return op.call(x, weight);
  }

  static torch::autograd::variable_list backward(torch::autograd::AutogradContext* context,
                                                 torch::autograd::variable_list grads) {
    if (!grads[0].defined()) return {at::Tensor(), at::Tensor()};
    static const auto input_grad = find_op<Op>("fastdhm::conv3x3_input_grad");
    static const auto weight_grad = find_op<Op>("fastdhm::conv3x3_weight_grad");
    const auto saved = context->get_saved_variables();
    const at::Tensor grad_y = grads[0].contiguous(at::MemoryFormat::ChannelsLast);
    return {context->needs_input_grad(0) ? input_grad.call(grad_y, saved[1]) : at::Tensor(),
            context->needs_input_grad(1) ? weight_grad.call(grad_y, saved[0]) : at::Tensor()};
  }
};

at::Tensor conv3x3_autograd(const at::Tensor& x, const at::Tensor& weight) { return Conv3x3Autograd::apply(x, weight); }

}  // namespace

int64_t conv3x3_width(const std::string& dtype) {
  if (dtype == "float64") return kConvExact.conv3x3.width;
  TORCH_CHECK_VALUE(dtype == "float32" || dtype == "bfloat16", "dtype is ", dtype,
                    ", must be float64, float32 or bfloat16");
  const ConvCode<float>* code = find_conv_code(dtype == "bfloat16" ? at::kBFloat16 : at::kFloat);
  return code == nullptr ? 0 : code->conv3x3.width;
}

TORCH_LIBRARY_IMPL(fastdhm, CPU, m) {
  m.impl("conv3x3", &conv3x3_cpu);
  m.impl("conv3x3_input_grad", &conv3x3_input_grad_cpu);
  m.impl("conv3x3_weight_grad", &conv3x3_weight_grad_cpu);
}

TORCH_LIBRARY_IMPL(fastdhm, Autograd, m) { m.impl("conv3x3", &conv3x3_autograd); }

}  // namespace fastdhm
