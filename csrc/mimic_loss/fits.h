// Whether arguments of the mimicking loss are what its CPU form takes, for Python, where this check takes longer than a
// small loss. See fastdhm/ops/_mimic_loss_input.py, which says what is wrong with others.
#pragma once

#include <ATen/core/Tensor.h>
#include <torch/csrc/autograd/python_variable.h>

namespace fastdhm {

// Null where it is no tensor on a CPU, or one that stands for others while a graph is traced.
inline const at::Tensor* cpu_tensor(PyObject* object) {
  if (!THPVariable_Check(object)) return nullptr;
  const at::Tensor& tensor = THPVariable_Unpack(object);
  const c10::DispatchKeySet traced({c10::DispatchKey::Python, c10::DispatchKey::Functionalize});
  return tensor.is_cpu() && !tensor.unsafeGetTensorImpl()->key_set().has_any(traced) ? &tensor : nullptr;
}

inline bool is_float(const at::Tensor& tensor) {
  const at::ScalarType dtype = tensor.scalar_type();
  return dtype == at::kFloat || dtype == at::kBFloat16 || dtype == at::kHalf || dtype == at::kDouble;
}

inline bool mimic_loss_fits(PyObject* logits_MBK, PyObject* target_B, PyObject* weights_MM) {
  const at::Tensor *logits = cpu_tensor(logits_MBK), *target = cpu_tensor(target_B), *weights = cpu_tensor(weights_MM);
  if (logits == nullptr || target == nullptr || weights == nullptr) return false;
  if (logits->dim() != 3 || !is_float(*logits) || !is_float(*weights) || target->scalar_type() != at::kLong) return false;
  const int64_t M = logits->size(0);
  return M > 0 && logits->size(2) > 0 && target->sizes() == at::IntArrayRef{logits->size(1)} &&
         weights->sizes() == at::IntArrayRef({M, M});
}

}  // namespace fastdhm
