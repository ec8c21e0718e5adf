// fastdhm::conv2d: a convolution by torch, its gradients by conv2d_input_grad and conv_weight_grad.
#include <ATen/core/Tensor.h>
#include <ATen/ops/conv2d.h>
#include <c10/core/impl/LocalDispatchKeySet.h>
#include <torch/csrc/autograd/custom_function.h>
#include <torch/library.h>

#include <vector>

#include "find_op.h"

namespace fastdhm {
namespace {

// Like `contiguous` and `to`. Those may return their input itself, which tools that trace op by op do not allow.
at::Tensor in_order(const at::Tensor& x) {
  return x.is_contiguous(at::MemoryFormat::ChannelsLast) ? x : x.contiguous(at::MemoryFormat::ChannelsLast);
}
at::Tensor of_type(const at::Tensor& weight, const at::Tensor& x) {
  return weight.scalar_type() == x.scalar_type() ? weight : weight.to(x.scalar_type());
}

at::Tensor conv2d_cpu(const at::Tensor& x, const at::Tensor& weight, at::IntArrayRef stride, at::IntArrayRef padding) {
  const c10::impl::ExcludeDispatchKeyGuard no_autocast(c10::autocast_dispatch_keyset);
  return in_order(at::conv2d(x, of_type(weight, x), {}, stride, padding));
}

using Tensor = at::Tensor;
using Pair = at::IntArrayRef;

// The weight has its own type. Its gradient has that type too and is never rounded to the type of x.
struct Conv2dAutograd : torch::autograd::Function<Conv2dAutograd> {
  static Tensor forward(torch::autograd::AutogradContext* context, const Tensor& x, const Tensor& weight,
                        std::vector<int64_t> stride, std::vector<int64_t> padding) {
    const at::AutoDispatchBelowADInplaceOrView below;
    const Tensor narrow = of_type(weight, x);
    context->save_for_backward({x, narrow});
    context->saved_data["stride"] = stride;
    context->saved_data["padding"] = padding;
    static const auto op = find_op<Tensor(const Tensor&, const Tensor&, Pair, Pair)>("fastdhm::conv2d");
    return op.call(x, narrow, stride, padding);
  }

  static torch::autograd::variable_list backward(torch::autograd::AutogradContext* context,
                                                 torch::autograd::variable_list grads) {
    if (!grads[0].defined()) return {Tensor(), Tensor(), Tensor(), Tensor()};
    static const auto input_grad =
        find_op<Tensor(const Tensor&, const Tensor&, const Tensor&, Pair, Pair)>("fastdhm::conv2d_input_grad");
    static const auto weight_grad =
        find_op<Tensor(const Tensor&, const Tensor&, Pair, Pair, Pair)>("fastdhm::conv_weight_grad");
    const auto saved = context->get_saved_variables();
    const Tensor &x = saved[0], &narrow = saved[1], grad_y = in_order(grads[0]);
    const auto stride = context->saved_data["stride"].toIntVector();
    const auto padding = context->saved_data["padding"].toIntVector();
    Tensor grad_x, grad_weight;
    if (context->needs_input_grad(0)) grad_x = input_grad.call(grad_y, x, narrow, stride, padding);
    if (context->needs_input_grad(1)) {
      grad_weight = weight_grad.call(grad_y, x, narrow.sizes().slice(2), stride, padding);
    }
    return {grad_x, grad_weight, Tensor(), Tensor()};
  }
};

at::Tensor conv2d_autograd(const at::Tensor& x, const at::Tensor& weight, at::IntArrayRef stride,
                           at::IntArrayRef padding) {
  return Conv2dAutograd::apply(x, weight, stride.vec(), padding.vec());
}

}  // namespace

TORCH_LIBRARY_IMPL(fastdhm, CPU, m) { m.impl("conv2d", &conv2d_cpu); }

TORCH_LIBRARY_IMPL(fastdhm, Autograd, m) { m.impl("conv2d", &conv2d_autograd); }

}  // namespace fastdhm
