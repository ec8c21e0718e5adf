// The gradient of fastdhm::mimic_loss on a CPU. In C++, because in Python it costs more than the loss of a small batch.
// Elsewhere it is that of fastdhm/ops/_fused_mimic_loss.py, with the same meaning.
#include <ATen/TensorSubclassLikeUtils.h>
#include <ATen/core/Tensor.h>
#include <ATen/ops/mul.h>
#include <torch/csrc/autograd/custom_function.h>
#include <torch/library.h>

#include <optional>
#include <tuple>
#include <utility>

#include "find_op.h"

namespace fastdhm {
namespace {

using at::Tensor;
using torch::autograd::AutogradContext;
using torch::autograd::variable_list;
using MaybeTensor = std::optional<Tensor>;
using Results = std::tuple<Tensor, Tensor, Tensor>;
using Op = Results(const Tensor&, const Tensor&, const Tensor&, double, double, int64_t, bool, const MaybeTensor&,
                   const MaybeTensor&, const MaybeTensor&);

const c10::TypedOperatorHandle<Op>& mimic_loss_op() {
  static const auto op = find_op<Op>("fastdhm::mimic_loss");
  return op;
}

// What the op takes besides the logits, and what it returns besides the loss: nothing of it has a gradient, so autograd
// does not see it.
struct Call {
  const Tensor &target, &weights;
  double temperature, label_smoothing;
  int64_t ignore_index;
  bool need_grad;
  const MaybeTensor &target2, &share, &row_weight;
  Tensor terms, grad;
};

// Its derivative raises, so that it is not silently missing.
struct NoSecondDerivative : torch::autograd::Function<NoSecondDerivative> {
  static Tensor forward(AutogradContext*, const Tensor& grad, const Tensor&, const Tensor&) {
    return grad.view_as(grad);
  }

  static variable_list backward(AutogradContext*, const variable_list&) {
    TORCH_CHECK(false, "the fused mimic_loss has no second derivative: use impl='eager' for it");
  }
};

// In place where both hold values. Otherwise a compiler traces them, or they stand for a batch of tensors.
Tensor scaled(const Tensor& grad, const Tensor& factor) {
  if (at::isTensorSubclassLike(grad) || at::isTensorSubclassLike(factor)) return at::mul(grad, factor);
  const bool is_wide = factor.scalar_type() == at::kDouble;
  const double value = is_wide ? *factor.const_data_ptr<double>() : *factor.const_data_ptr<float>();
  return value == 1 ? grad : grad.mul_(value);
}

struct MimicLossAutograd : torch::autograd::Function<MimicLossAutograd> {
  static Tensor forward(AutogradContext* context, const Tensor& logits, Call* call) {
    const at::AutoDispatchBelowADInplaceOrView below;
    const MaybeTensor &target2 = call->target2, &share = call->share, &row_weight = call->row_weight;
    Tensor loss;
    std::tie(loss, call->terms, call->grad) =
        mimic_loss_op().call(logits, call->target, call->weights, call->temperature, call->label_smoothing,
                             call->ignore_index, call->need_grad, target2, share, row_weight);
    context->save_for_backward({logits, call->target, call->weights, target2.value_or(Tensor()),
                                share.value_or(Tensor()), row_weight.value_or(Tensor())});
    context->saved_data["temperature"] = call->temperature;
    context->saved_data["smoothing"] = call->label_smoothing;
    context->saved_data["ignore_index"] = call->ignore_index;
    context->saved_data["grad"] = call->need_grad ? call->grad : Tensor();
    context->set_materialize_grads(false);
    return loss;
  }

  // The gradient from forward, scaled in place. A second backward through the same graph computes it again. The engine
  // gives it the type of the logits.
  static variable_list backward(AutogradContext* context, const variable_list& grads) {
    if (!grads[0].defined()) return {Tensor(), Tensor()};
    Tensor grad = std::exchange(context->saved_data["grad"], Tensor()).toTensor();
    if (!grad.defined()) grad = computed_again(context);
    grad = scaled(grad, grads[0]);
    if (at::GradMode::is_enabled()) {  // create_graph=True
      grad = NoSecondDerivative::apply(grad, grads[0], context->get_saved_variables()[0]);
    }
    return {grad, Tensor()};
  }

  static Tensor computed_again(AutogradContext* context) {
    const variable_list saved = context->get_saved_variables();
    const auto given = [&](size_t i) { return saved[i].defined() ? MaybeTensor(saved[i]) : std::nullopt; };
    auto& settings = context->saved_data;
    return std::get<2>(mimic_loss_op().call(saved[0], saved[1], saved[2], settings["temperature"].toDouble(),
                                            settings["smoothing"].toDouble(), settings["ignore_index"].toInt(), true,
                                            given(3), given(4), given(5)));
  }
};

Results mimic_loss_autograd(const Tensor& logits, const Tensor& target, const Tensor& weights, double temperature,
                            double label_smoothing, int64_t ignore_index, bool need_grad, const MaybeTensor& target2,
                            const MaybeTensor& share, const MaybeTensor& row_weight) {
  const bool tracked = at::GradMode::is_enabled() && logits.requires_grad();
  if (!tracked && !logits._fw_grad(0).defined()) {  // nothing to keep
    const at::AutoDispatchBelowADInplaceOrView below;
    return mimic_loss_op().call(logits, target, weights, temperature, label_smoothing, ignore_index, need_grad, target2,
                                share, row_weight);
  }
  Call call{target,  weights, temperature, label_smoothing, ignore_index, need_grad,
            target2, share,   row_weight,  Tensor(),        Tensor()};
  const Tensor loss = MimicLossAutograd::apply(logits, &call);
  return {loss, call.terms, call.grad};
}

}  // namespace

TORCH_LIBRARY_IMPL(fastdhm, AutogradCPU, m) { m.impl("mimic_loss", &mimic_loss_autograd); }

}  // namespace fastdhm
