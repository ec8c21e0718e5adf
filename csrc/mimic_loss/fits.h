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

inline bool is_vector(PyObject* object, bool whole, int64_t size) {
  const at::Tensor* tensor = cpu_tensor(object);
  return tensor != nullptr && tensor->sizes() == at::IntArrayRef{size} &&
         (whole ? tensor->scalar_type() == at::kLong : is_float(*tensor));
}

// `mix` is a pair, and it and `row_weight_B` may be None.
inline bool mimic_loss_fits(PyObject* logits_MBK, PyObject* target_B, PyObject* weights_MM, PyObject* mix,
                            PyObject* row_weight_B) {
  const at::Tensor *logits = cpu_tensor(logits_MBK), *weights = cpu_tensor(weights_MM);
  if (logits == nullptr || weights == nullptr || logits->dim() != 3 || !is_float(*logits)) return false;
  const int64_t M = logits->size(0), B = logits->size(1), K = logits->size(2);
  if (M == 0 || K == 0 || weights->sizes() != at::IntArrayRef({M, M}) || !is_float(*weights)) return false;
  if (!is_vector(target_B, true, B) || (row_weight_B != Py_None && !is_vector(row_weight_B, false, B))) return false;
  if (mix == Py_None) return true;
  return PyTuple_Check(mix) && PyTuple_GET_SIZE(mix) == 2 && is_vector(PyTuple_GET_ITEM(mix, 0), true, B) &&
         is_vector(PyTuple_GET_ITEM(mix, 1), false, B);
}

}  // namespace fastdhm
