// The CPU form of fastdhm::batch_norm_act and its gradient. Legend: R rows (a row is one pixel of one image), C
// channels.
#include "norm/batch_norm_act.h"

#include <ATen/MemoryOverlap.h>
#include <ATen/Parallel.h>
#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>
#include <c10/util/BFloat16.h>
#include <torch/csrc/autograd/custom_function.h>
#include <torch/library.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <optional>
#include <tuple>
#include <vector>

#include "find_op.h"
#include "norm/batch_norm_act_simd.h"
#include "simd/scalar.h"
#include "simd/simd.h"

namespace fastdhm {
namespace {

BatchNormActCode<double> double_code() { return BatchNormActRows<One<double>, double>::code(); }

BatchNormActCode<float> float_code(at::ScalarType dtype) {
  const bool narrow = dtype == at::kBFloat16;
  if (const BatchNormActSimd* code = FASTDHM_CODE_IN_USE(kBatchNormAct)) return narrow ? code->bfloat16 : code->float32;
  return narrow ? BatchNormActRows<One<float>, c10::BFloat16>::code() : BatchNormActRows<One<float>, float>::code();
}

void check_channels_last(const at::Tensor& tensor, const char* name, const at::Tensor& x) {
  TORCH_CHECK_VALUE(tensor.sizes() == x.sizes() && tensor.scalar_type() == x.scalar_type() &&
                        tensor.is_contiguous(at::MemoryFormat::ChannelsLast),
                    name, " must be ", x.dtype(), " ", x.sizes(), " in channels-last order, got ", tensor.dtype(), " ",
                    tensor.sizes());
}

void check(const at::Tensor& x, std::initializer_list<const at::Tensor*> vectors) {
  const at::ScalarType dtype = x.scalar_type(), own = dtype == at::kDouble ? at::kDouble : at::kFloat;
  TORCH_CHECK_VALUE(x.dim() == 4 && (dtype == at::kFloat || dtype == at::kBFloat16 || dtype == at::kDouble),
                    "x must be float32, bfloat16 or float64 [B, C, H, W], got ", x.dtype(), " ", x.sizes());
  check_channels_last(x, "x", x);
  TORCH_CHECK_VALUE(x.numel() > 0, "x has no elements: there is nothing to take a mean of");
  for (const at::Tensor* vector : vectors) {
    TORCH_CHECK_VALUE(
        vector->sizes() == at::IntArrayRef{x.size(1)} && vector->scalar_type() == own && vector->is_contiguous(),
        "vectors must be contiguous ", own, " [", x.size(1), "], got ", vector->dtype(), " ", vector->sizes());
  }
}

template <class S>
const S* read(const at::Tensor& vector) {
  return vector.const_data_ptr<S>();
}

const void* data(const std::optional<at::Tensor>& tensor) {
  return tensor.has_value() ? tensor->const_data_ptr() : nullptr;
}

// Splits rows into groups and calls body(first row, last row, sums of the group [2, C]) for each. The number of groups
// depends only on the shape, so any number of threads gives the same bits. Returns the total, [2, C].
template <class Body>
std::vector<double> sums_over_rows(int64_t R, int64_t C, const Body& body) {
  const int64_t groups = std::clamp<int64_t>(std::min(R * C / 65536, R / 128), 1, 256);
  std::vector<double> sums(groups * 2 * C);
  at::parallel_for(0, groups, 1, [&](int64_t first, int64_t last) {
    for (int64_t g = first; g < last; ++g) body(R * g / groups, R * (g + 1) / groups, sums.data() + g * 2 * C);
  });
  for (int64_t i = 2 * C; i < static_cast<int64_t>(sums.size()); ++i) sums[i % (2 * C)] += sums[i];
  sums.resize(2 * C);
  return sums;
}

template <class Body>
void for_rows(int64_t R, int64_t C, const Body& body) {
  at::parallel_for(0, R, std::max<int64_t>(1, 32768 / C), body);
}

// y before the residual and the relu is x * scale + shift. Both come from values that are kept for the backward pass,
// which needs the same bits.
template <class S>
struct Affine {
  std::vector<S> scale, shift;

  Affine(const at::Tensor& weight, const at::Tensor& bias, const at::Tensor& mean, const at::Tensor& variance,
         double eps) {
    for (int64_t c = 0; c < weight.size(0); ++c) {
      const double scaled = read<S>(weight)[c] / std::sqrt(read<S>(variance)[c] + eps);
      scale.push_back(static_cast<S>(scaled));
      shift.push_back(static_cast<S>(read<S>(bias)[c] - read<S>(mean)[c] * scaled));
    }
  }
};

// Move a running statistic towards that of this batch.
template <class S>
void move(const at::Tensor& running, int64_t c, double found, double momentum) {
  S& value = running.mutable_data_ptr<S>()[c];
  value = static_cast<S>(value + momentum * (found - value));
}

// A pivot per channel, near enough to its mean that squares of differences from it lose no precision: the median of
// some rows, so that a few outliers do not matter.
template <class S, class T>
std::vector<S> middles(const void* x, int64_t R, int64_t C) {
  constexpr int64_t kRows = 9;
  std::vector<S> found(C);
  for (int64_t c = 0; c < C; ++c) {
    std::array<S, kRows> some;
    for (int64_t i = 0; i < kRows; ++i) {
      const S value = static_cast<S>(static_cast<const T*>(x)[(R - 1) * i / (kRows - 1) * C + c]);
      some[i] = std::isfinite(value) ? value : 0;
    }
    std::nth_element(some.begin(), some.begin() + kRows / 2, some.end());
    found[c] = some[kRows / 2];
  }
  return found;
}

using Result = std::tuple<at::Tensor, at::Tensor, at::Tensor>;
template <class S>
Result forward(const BatchNormActCode<S>& code, const at::Tensor& x, const at::Tensor& running_mean,
               const at::Tensor& running_var, const at::Tensor& weight, const at::Tensor& bias, const void* residual,
               double momentum, double eps, bool relu) {
  const int64_t C = x.size(1), R = x.numel() / C;
  at::Tensor y = at::empty_like(x), mean = at::empty_like(weight), variance = at::empty_like(weight);
  const void* from = x.const_data_ptr();
  const std::vector<S> pivot =
      x.scalar_type() == at::kBFloat16 ? middles<S, c10::BFloat16>(from, R, C) : middles<S, S>(from, R, C);
  const std::vector<double> sums = sums_over_rows(
      R, C, [&](int64_t begin, int64_t end, double* sum) { code.moments(from, pivot.data(), begin, end, C, sum); });
  for (int64_t c = 0; c < C; ++c) {
    const double offset = sums[c] / R;
    const double var = std::max(sums[C + c] / R - offset * offset, 0.0);  // NaN stays NaN
    mean.mutable_data_ptr<S>()[c] = static_cast<S>(pivot[c] + offset);
    variance.mutable_data_ptr<S>()[c] = static_cast<S>(var);
    move<S>(running_mean, c, pivot[c] + offset, momentum);
    move<S>(running_var, c, var * R / (R - 1), momentum);
  }
  const Affine<S> affine(weight, bias, mean, variance, eps);
  for_rows(R, C, [&](int64_t begin, int64_t end) {
    code.forward(from, residual, y.mutable_data_ptr(), affine.scale.data(), affine.shift.data(), relu, begin, end, C);
  });
  return {y, mean, variance};
}

Result batch_norm_act_cpu(const at::Tensor& x, const at::Tensor& running_mean, const at::Tensor& running_var,
                          const at::Tensor& weight, const at::Tensor& bias, const std::optional<at::Tensor>& residual,
                          double momentum, double eps, bool relu) {
  check(x, {&running_mean, &running_var, &weight, &bias});
  if (residual.has_value()) check_channels_last(*residual, "residual", x);
  TORCH_CHECK_VALUE(x.numel() > x.size(1), "x must have more than one value per channel, got ", x.sizes());
  at::assert_no_overlap(running_mean, running_var);
  for (const at::Tensor* read : {&x, &weight, &bias}) {
    at::assert_no_overlap(running_mean, *read);
    at::assert_no_overlap(running_var, *read);
  }
  return x.scalar_type() == at::kDouble ? forward<double>(double_code(), x, running_mean, running_var, weight, bias,
                                                          data(residual), momentum, eps, relu)
                                        : forward<float>(float_code(x.scalar_type()), x, running_mean, running_var,
                                                         weight, bias, data(residual), momentum, eps, relu);
}

using Grads = std::tuple<at::Tensor, at::Tensor, at::Tensor, at::Tensor>;
template <class S>
Grads backward(const BatchNormActCode<S>& code, const at::Tensor& grad_y, const at::Tensor& x, const void* y,
               const at::Tensor& weight, const at::Tensor& bias, const at::Tensor& mean, const at::Tensor& variance,
               double eps, Mask mask, bool need_residual) {
  const int64_t C = x.size(1), R = x.numel() / C;
  at::Tensor grad_x = at::empty_like(x), grad_weight = at::empty_like(weight), grad_bias = at::empty_like(weight);
  // If the gradient is masked, the residual's gradient is written once and then read instead of grad_y and y.
  at::Tensor masked = need_residual ? at::empty_like(x) : at::empty({0}, x.options());
  void* keep = need_residual ? masked.mutable_data_ptr() : nullptr;
  const Affine<S> affine(weight, bias, mean, variance, eps);
  BatchNormActGradInputs<S> inputs = {
      grad_y.const_data_ptr(), y, x.const_data_ptr(), read<S>(mean), affine.scale.data(), affine.shift.data(), mask};
  const std::vector<double> sums = sums_over_rows(
      R, C, [&](int64_t begin, int64_t end, double* sum) { code.backward_sums(inputs, keep, begin, end, C, sum); });
  if (need_residual) {
    inputs.grad_y = keep;
    inputs.mask = Mask::none;
  }
  std::vector<S> a(C), b(C), shift(C);
  for (int64_t c = 0; c < C; ++c) {
    const double inverse = 1 / std::sqrt(read<S>(variance)[c] + eps);
    const double factor = read<S>(weight)[c] * inverse;
    a[c] = static_cast<S>(factor);
    b[c] = static_cast<S>(-factor * inverse * inverse * sums[C + c] / R);
    shift[c] = static_cast<S>(-factor * sums[c] / R);
    grad_weight.mutable_data_ptr<S>()[c] = static_cast<S>(sums[C + c] * inverse);
    grad_bias.mutable_data_ptr<S>()[c] = static_cast<S>(sums[c]);
  }
  for_rows(R, C, [&](int64_t begin, int64_t end) {
    code.backward(inputs, a.data(), b.data(), shift.data(), grad_x.mutable_data_ptr(), begin, end, C);
  });
  return {grad_x, grad_weight, grad_bias, masked};
}

Grads batch_norm_act_backward_cpu(const at::Tensor& grad_y, const at::Tensor& x, const std::optional<at::Tensor>& y,
                                  const at::Tensor& weight, const at::Tensor& bias, const at::Tensor& mean,
                                  const at::Tensor& variance, double eps, bool relu, bool need_residual) {
  check(x, {&weight, &bias, &mean, &variance});
  check_channels_last(grad_y, "grad_y", x);
  if (y.has_value()) check_channels_last(*y, "y", x);
  TORCH_CHECK_VALUE(relu || !y.has_value(), "y says nothing where there is no relu");
  TORCH_CHECK_VALUE(y.has_value() || !need_residual, "without y the residual's gradient is grad_y itself");
  const Mask mask = !relu ? Mask::none : y.has_value() ? Mask::by_y : Mask::by_x;
  return x.scalar_type() == at::kDouble ? backward<double>(double_code(), grad_y, x, data(y), weight, bias, mean,
                                                           variance, eps, mask, need_residual)
                                        : backward<float>(float_code(x.scalar_type()), grad_y, x, data(y), weight, bias,
                                                          mean, variance, eps, mask, need_residual);
}

// In C++, because in Python a call and its gradient cost as much as a small norm.
struct BatchNormActAutograd : torch::autograd::Function<BatchNormActAutograd> {
  // Tensors first: gradients are returned in the same places.
  static torch::autograd::variable_list forward(torch::autograd::AutogradContext* context, const at::Tensor& x,
                                                const at::Tensor& weight, const at::Tensor& bias,
                                                const std::optional<at::Tensor>& residual,
                                                const at::Tensor& running_mean, const at::Tensor& running_var,
                                                double momentum, double eps, bool relu) {
    const at::AutoDispatchBelowADInplaceOrView below;
    static const auto op = find_op<decltype(batch_norm_act_cpu)>("fastdhm::batch_norm_act");
    const auto [y, mean, variance] = op.call(x, running_mean, running_var, weight, bias, residual, momentum, eps, relu);
    for (const at::Tensor& written : {running_mean, running_var}) written.unsafeGetTensorImpl()->bump_version();
    // y shows what the relu cut off. Without a residual x shows it too, so y is neither kept nor read.
    context->save_for_backward({x, weight, bias, mean, variance, relu && residual ? y : at::Tensor()});
    context->saved_data["residual"] = residual.has_value();
    context->saved_data["eps"] = eps;
    context->saved_data["relu"] = relu;
    context->mark_non_differentiable({mean, variance});
    context->set_materialize_grads(false);
    return {y, mean, variance};
  }

  static torch::autograd::variable_list backward(torch::autograd::AutogradContext* context,
                                                 torch::autograd::variable_list grads) {
    torch::autograd::variable_list to(9);
    if (!grads[0].defined()) return to;
    const auto saved = context->get_saved_variables();
    const at::Tensor &x = saved[0], &y = saved[5];
    const at::Tensor grad_y = grads[0].to(x.scalar_type()).contiguous(at::MemoryFormat::ChannelsLast);
    const bool has_residual = context->saved_data["residual"].toBool();
    const bool need_masked = y.defined() && context->needs_input_grad(3);
    static const auto op = find_op<decltype(batch_norm_act_backward_cpu)>("fastdhm::batch_norm_act_backward");
    at::Tensor masked;
    std::tie(to[0], to[1], to[2], masked) =
        op.call(grad_y, x, y.defined() ? std::make_optional(y) : std::nullopt, saved[1], saved[2], saved[3], saved[4],
                context->saved_data["eps"].toDouble(), context->saved_data["relu"].toBool(), need_masked);
    if (has_residual) to[3] = need_masked ? masked : grad_y;
    return to;
  }
};

Result batch_norm_act_autograd(const at::Tensor& x, const at::Tensor& running_mean, const at::Tensor& running_var,
                               const at::Tensor& weight, const at::Tensor& bias,
                               const std::optional<at::Tensor>& residual, double momentum, double eps, bool relu) {
  const auto results =
      BatchNormActAutograd::apply(x, weight, bias, residual, running_mean, running_var, momentum, eps, relu);
  return {results[0], results[1], results[2]};
}

}  // namespace

TORCH_LIBRARY_IMPL(fastdhm, CPU, m) {
  m.impl("batch_norm_act", &batch_norm_act_cpu);
  m.impl("batch_norm_act_backward", &batch_norm_act_backward_cpu);
}

TORCH_LIBRARY_IMPL(fastdhm, Autograd, m) { m.impl("batch_norm_act", &batch_norm_act_autograd); }

}  // namespace fastdhm
