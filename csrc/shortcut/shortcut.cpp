// The CPU form of fastdhm::shortcut and its gradient. Legend: shortcut.h.
#include "shortcut/shortcut.h"

#include <ATen/Parallel.h>
#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>
#include <c10/util/BFloat16.h>
#include <torch/csrc/autograd/custom_function.h>
#include <torch/library.h>

#include <algorithm>
#include <array>

#include "check_images.h"
#include "find_op.h"
#include "simd/scalar.h"
#include "simd/simd.h"

#include "shortcut/shortcut_simd.h"

namespace fastdhm {
namespace {

ShortcutCode code_for(at::ScalarType dtype) {
  if (dtype == at::kDouble) return Shortcut<One<double>, double>::code();
  const bool narrow = dtype == at::kBFloat16;
  if (const ShortcutSimd* code = FASTDHM_CODE_IN_USE(kShortcut)) return narrow ? code->bfloat16 : code->float32;
  return narrow ? Shortcut<One<float>, c10::BFloat16>::code() : Shortcut<One<float>, float>::code();
}

void check(const at::Tensor& tensor, const char* name) {
  const at::ScalarType dtype = tensor.scalar_type();
  TORCH_CHECK_VALUE(dtype == at::kFloat || dtype == at::kBFloat16 || dtype == at::kDouble, name,
                    " must be float32, bfloat16 or float64, got ", tensor.dtype());
  check_images(tensor, name);
}

template <class Body>
void for_rows(ShortcutShape shape, const Body& body) {
  const int64_t pixels = shape.width() * shape.C * 4;
  at::parallel_for(0, shape.B * shape.height(), std::max<int64_t>(1, 32768 / pixels), body);
}

ShortcutShape shape_of(const at::Tensor& x, int64_t channels) {
  return {x.size(0), x.size(2), x.size(3), x.size(1), channels};
}

at::Tensor shortcut_cpu(const at::Tensor& x, int64_t channels) {
  check(x, "x");
  TORCH_CHECK_VALUE(channels >= x.size(1), "channels must be at least the ", x.size(1), " of x, got ", channels);
  const ShortcutShape shape = shape_of(x, channels);
  at::Tensor y =
      at::empty({shape.B, channels, shape.height(), shape.width()}, x.options(), at::MemoryFormat::ChannelsLast);
  const ShortcutCode code = code_for(x.scalar_type());
  for_rows(shape, [&](int64_t begin, int64_t end) {
    code.forward(x.const_data_ptr(), y.mutable_data_ptr(), shape, begin, end);
  });
  return y;
}

at::Tensor shortcut_backward_cpu(const at::Tensor& grad_y, const at::Tensor& x) {
  check(grad_y, "grad_y");
  check(x, "x");
  const ShortcutShape shape = shape_of(x, grad_y.size(1));
  const std::array<int64_t, 4> expected = {shape.B, std::max(shape.K, shape.C), shape.height(), shape.width()};
  TORCH_CHECK_VALUE(grad_y.sizes() == at::IntArrayRef(expected) && grad_y.scalar_type() == x.scalar_type(),
                    "grad_y must be ", x.dtype(), " ", at::IntArrayRef(expected), ", got ", grad_y.dtype(), " ",
                    grad_y.sizes());
  at::Tensor grad_x = at::empty_like(x);
  const ShortcutCode code = code_for(x.scalar_type());
  for_rows(shape, [&](int64_t begin, int64_t end) {
    code.backward(grad_y.const_data_ptr(), grad_x.mutable_data_ptr(), shape, begin, end);
  });
  return grad_x;
}

struct ShortcutAutograd : torch::autograd::Function<ShortcutAutograd> {
  static at::Tensor forward(torch::autograd::AutogradContext* context, const at::Tensor& x, int64_t channels) {
    const at::AutoDispatchBelowADInplaceOrView below;
    context->save_for_backward({x});  // for its shape: a residual block keeps it for its convolution anyway
    static const auto op = find_op<decltype(shortcut_cpu)>("fastdhm::shortcut");
    return op.call(x, channels);
  }

  static torch::autograd::variable_list backward(torch::autograd::AutogradContext* context,
                                                 torch::autograd::variable_list grads) {
    if (!grads[0].defined()) return {at::Tensor(), at::Tensor()};
    static const auto op = find_op<decltype(shortcut_backward_cpu)>("fastdhm::shortcut_backward");
    const at::Tensor grad_y = grads[0].contiguous(at::MemoryFormat::ChannelsLast);
    return {op.call(grad_y, context->get_saved_variables()[0]), at::Tensor()};
  }
};

at::Tensor shortcut_autograd(const at::Tensor& x, int64_t channels) { return ShortcutAutograd::apply(x, channels); }

}  // namespace

TORCH_LIBRARY_IMPL(fastdhm, CPU, m) {
  m.impl("shortcut", &shortcut_cpu);
  m.impl("shortcut_backward", &shortcut_backward_cpu);
}

TORCH_LIBRARY_IMPL(fastdhm, Autograd, m) { m.impl("shortcut", &shortcut_autograd); }

}  // namespace fastdhm
