// The CPU form of fastdhm::conv_weight_grad. Legend: conv/shape.h.
#include "conv/weight_grad.h"

#include <ATen/Parallel.h>
#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <torch/library.h>

#include <algorithm>

#include "check_images.h"
#include "conv/find_code.h"
#include "simd/scratch.h"

namespace fastdhm {
namespace {

constexpr int64_t kSmallSums = 1 << 16;  // so few weights that their sums stay in the near cache
constexpr int64_t kSets = 8;             // of such sums: this many threads can work on one gradient

enum class Use { packed, rows, sums, count };

template <class S>
struct Task {
  const ConvWeightGradCode<S>& code;
  ConvBlocks blocks;
  const void *grad_y, *x;
};

// The products of all images in sets of sums [sets, R, S, K, C]. The number of sets depends only on the shape, so any
// number of threads gives the same bits. One thread computes a set and packs the blocks for it.
template <class S>
void sums_by_images(const Task<S>& task, int64_t sets, S* sums) {
  const ConvShape& shape = task.blocks.shape;
  const int64_t size = shape.R * shape.S * shape.K * shape.C, parts = size / shape.C / task.code.width;
  const int64_t packed_size = task.code.packed_size(task.blocks), rows_size = task.code.rows_size(shape);
  auto* packed = static_cast<char*>(scratch(Use::packed, packed_size * at::get_num_threads()));
  auto* rows = static_cast<char*>(scratch(Use::rows, rows_size * at::get_num_threads()));
  const auto start = [&](int64_t set) { return task.blocks.count() * set / sets; };
  at::parallel_for(0, sets, 1, [&](int64_t first, int64_t last) {
    void* own = packed + packed_size * at::get_thread_num();
    void* own_rows = rows + rows_size * at::get_thread_num();
    for (int64_t set = first; set < last; ++set) {
      for (int64_t number = start(set); number < start(set + 1); ++number) {
        const ConvBlock block = task.blocks.block(number), next = task.blocks.block(number + 1);
        task.code.pack(task.grad_y, task.x, task.blocks, block, 0, block.lines(), own, own_rows);
        task.code.add_products(own, task.blocks, block, 0, parts, number > start(set), sums + set * size, task.grad_y,
                               task.x, number + 1 < start(last) ? &next : nullptr);
      }
    }
  });
}

// The same in one set, if sums are too large: all threads pack each block, then each thread computes some of the sums.
template <class S>
void sums_by_weights(const Task<S>& task, S* sums) {
  const ConvShape& shape = task.blocks.shape;
  const int64_t parts = shape.R * shape.S * shape.K / task.code.width, rows_size = task.code.rows_size(shape);
  void* packed = scratch(Use::packed, task.code.packed_size(task.blocks));
  auto* rows = static_cast<char*>(scratch(Use::rows, rows_size * at::get_num_threads()));
  for (int64_t number = 0; number < task.blocks.count(); ++number) {
    const ConvBlock block = task.blocks.block(number), next = task.blocks.block(number + 1);
    at::parallel_for(0, block.lines(), 1, [&](int64_t begin, int64_t end) {
      task.code.pack(task.grad_y, task.x, task.blocks, block, begin, end, packed,
                     rows + rows_size * at::get_thread_num());
    });
    at::parallel_for(0, parts, 1, [&](int64_t begin, int64_t end) {
      task.code.add_products(packed, task.blocks, block, begin, end, number > 0, sums, task.grad_y, task.x,
                             number + 1 < task.blocks.count() ? &next : nullptr);
    });
  }
}

template <class S>
at::Tensor weight_grad(const ConvWeightGradCode<S>& code, const at::Tensor& grad_y, const at::Tensor& x,
                       const ConvShape& shape) {
  const int64_t K = shape.K, C = shape.C, size = shape.R * shape.S * K * C;
  const auto options = x.options().dtype(c10::CppTypeToScalarType<S>::value);
  at::Tensor grad = at::empty({K, C, shape.R, shape.S}, options, at::MemoryFormat::ChannelsLast);
  check_channels(C, K, code.width);
  const Task<S> task = {code, {shape, code.images}, grad_y.const_data_ptr(), x.const_data_ptr()};
  const int64_t sets = size <= kSmallSums ? std::min(task.blocks.count(), kSets) : 1;
  S* sums = static_cast<S*>(scratch(Use::sums, sets * size * sizeof(S)));
  size <= kSmallSums ? sums_by_images(task, sets, sums) : sums_by_weights(task, sums);
  at::parallel_for(0, K, 1, [&](int64_t begin, int64_t end) {
    code.add_sets(sums, sets, shape, begin, end, grad.mutable_data_ptr<S>());
  });
  return grad;
}

at::Tensor conv_weight_grad_cpu(const at::Tensor& grad_y, const at::Tensor& x, at::IntArrayRef kernel,
                                at::IntArrayRef stride, at::IntArrayRef padding) {
  check_images(grad_y, "grad_y");
  check_images(x, "x");
  TORCH_CHECK_VALUE(
      kernel.size() == 2 && stride.size() == 2 && padding.size() == 2 && kernel[0] > 0 && kernel[1] > 0 &&
          stride[0] > 0 && stride[1] > 0 && padding[0] >= 0 && padding[1] >= 0 && padding[0] < kernel[0] &&
          padding[1] < kernel[1] && fits_int(kernel) && fits_int(stride) && kernel[0] <= x.size(2) + 2 * padding[0] &&
          kernel[1] <= x.size(3) + 2 * padding[1],
      "kernel and stride must be two positive numbers, padding two from 0 that are smaller than the kernel, "
      "which must fit into x, ",
      x.sizes(), ", got ", kernel, ", ", stride, " and ", padding);
  const ConvShape shape = {x.size(0), x.size(1), x.size(2), x.size(3),  grad_y.size(1), kernel[0],
                           kernel[1], stride[0], stride[1], padding[0], padding[1]};
  TORCH_CHECK_VALUE(x.scalar_type() == grad_y.scalar_type() && x.size(0) == grad_y.size(0) &&
                        shape.rows() == grad_y.size(2) && shape.columns() == grad_y.size(3),
                    "grad_y must be ", x.dtype(), " of ", shape.B, " images of ", shape.rows(), " x ", shape.columns(),
                    " pixels, got ", grad_y.dtype(), " ", grad_y.sizes());
  return with_conv_code(x.scalar_type(),
                        [&](const auto& code) { return weight_grad(code.weight_grad, grad_y, x, shape); });
}

}  // namespace

TORCH_LIBRARY_IMPL(fastdhm, CPU, m) { m.impl("conv_weight_grad", &conv_weight_grad_cpu); }

}  // namespace fastdhm
