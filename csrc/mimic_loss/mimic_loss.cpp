// The CPU form of fastdhm::mimic_loss and fastdhm::scale_. Legend: M branches, A of them used, B batch, K classes.
#include "mimic_loss/mimic_loss.h"

#include <ATen/Dispatch.h>
#include <ATen/Parallel.h>
#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <torch/library.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <memory>
#include <optional>
#include <tuple>
#include <vector>

#include "mimic_loss/mimic_loss_exact.h"
#include "simd/simd.h"

namespace fastdhm {
namespace {

MimicLossRows simd_rows(const MimicLossSimd* code, at::ScalarType dtype) {
  if (code == nullptr) return nullptr;
  if (dtype == at::kFloat) return code->float32;
  if (dtype == at::kBFloat16) return code->bfloat16;
  if (dtype == at::kHalf) return code->float16;
  return nullptr;
}

MimicLossRows exact_rows(at::ScalarType dtype) {
  MimicLossRows rows = nullptr;
  AT_DISPATCH_FLOATING_TYPES_AND2(at::kHalf, at::kBFloat16, dtype, "mimic_loss",
                                  [&] { rows = &mimic_loss_rows_exact<scalar_t>; });
  return rows;
}

// The numbers of a vector or a matrix, row by row.
std::vector<double> numbers(const at::Tensor& x) {
  std::vector<double> found;
  found.reserve(x.numel());
  const int64_t columns = x.size(-1), step = x.stride(-1), row_step = x.dim() == 2 ? x.stride(0) : 0;
  AT_DISPATCH_FLOATING_TYPES_AND2(at::kHalf, at::kBFloat16, x.scalar_type(), "mimic_loss", [&] {
    const scalar_t* row = x.const_data_ptr<scalar_t>();
    for (int64_t left = x.numel(); left > 0; left -= columns, row += row_step) {
      for (int64_t i = 0; i < columns; ++i) found.push_back(static_cast<double>(row[i * step]));
    }
  });
  return found;
}

// The labels of the rows; all but the first may be missing.
struct Labels {
  at::Tensor target, second;
  std::vector<double> share, weight;

  Labels(const at::Tensor& target_B, const std::optional<at::Tensor>& target2_B,
         const std::optional<at::Tensor>& share_B, const std::optional<at::Tensor>& row_weight_B, int64_t B) {
    TORCH_CHECK_VALUE(target2_B.has_value() == share_B.has_value(), "target2 and share must be given together");
    target = checked(target_B, "target", true, B).contiguous();
    if (target2_B) second = checked(*target2_B, "target2", true, B).contiguous();
    if (share_B) share = numbers(checked(*share_B, "share", false, B));
    if (row_weight_B) weight = numbers(checked(*row_weight_B, "row_weight", false, B));
  }

  static const at::Tensor& checked(const at::Tensor& x_B, const char* name, bool whole, int64_t B) {
    TORCH_CHECK_VALUE(
        x_B.sizes() == at::IntArrayRef{B} && (whole ? x_B.scalar_type() == at::kLong : x_B.is_floating_point()), name,
        " must be ", whole ? "int64" : "floating point", " [B], got ", x_B.dtype(), " ", x_B.sizes());
    return x_B;
  }
};

// Refuses a target that is neither a class nor ignored: it would be out of bounds.
void check_classes(const char* name, const int64_t* target, const MimicLossWork& work) {
  for (int64_t b = 0; target != nullptr && b < work.batch; ++b) {
    TORCH_CHECK_VALUE(target[b] == work.ignore_index || (target[b] >= 0 && target[b] < work.classes), name, " holds ",
                      target[b], ": needs a class in [0, ", work.classes, "), or ignore_index (", work.ignore_index,
                      ")");
  }
}

// The sum of the weights of all labels, after a check of every number that makes up a label.
double weigh_labels(const MimicLossWork& work) {
  check_classes("target_B", work.target, work);
  check_classes("target2_B", work.second, work);
  double total = 0;
  for (int64_t b = 0; b < work.batch; ++b) {
    const double share = work.share == nullptr ? 1 : work.share[b];
    const double weight = work.weight == nullptr ? 1 : work.weight[b];
    TORCH_CHECK_VALUE(share >= 0 && share <= 1, "share_B holds ", share, ": needs a number in [0, 1]");
    TORCH_CHECK_VALUE(weight >= 0 && std::isfinite(weight), "row_weight_B holds ", weight,
                      ": needs a finite number, 0 or more");
    total += label_of(work, b).weight;
  }
  return total;
}

// Read from the weights: which branches are used, and how the gradient depends on them.
struct Weights {
  std::vector<int64_t> branch;
  std::vector<double> value, factor, teacher, student;  // [A, A], [A, A], [A], [A]
  bool separable = true;

  Weights(const double* weights, int64_t M, double per_label, double per_row) {
    for (int64_t i = 0; i < M * M; ++i) {
      TORCH_CHECK_VALUE(weights[i] >= 0 && std::isfinite(weights[i]), "weights_MM[", i / M, ", ", i % M, "] is ",
                        weights[i], ": needs a finite number, 0 or more");
    }
    for (int64_t m = 0; m < M; ++m) {
      bool used = false;
      for (int64_t i = 0; i < M; ++i) used |= weights[m * M + i] != 0 || weights[i * M + m] != 0;
      if (used) branch.push_back(m);
    }
    const int64_t A = branch.size();
    value.resize(A * A), factor.resize(A * A), teacher.assign(A, 0), student.assign(A, 0);
    for (int64_t p = 0; p < A; ++p) {
      for (int64_t q = 0; q < A; ++q) {
        const double w = weights[branch[p] * M + branch[q]];
        value[p * A + q] = w;
        factor[p * A + q] = w * (p == q ? per_label : per_row);
        if (p != q && w != 0) teacher[p] = 1, student[q] = factor[p * A + q];
      }
    }
    for (int64_t p = 0; p < A; ++p) {
      for (int64_t q = 0; q < A; ++q) separable &= p == q || factor[p * A + q] == teacher[p] * student[q];
    }
  }
};

bool all_finite(const std::vector<double>& values) {
  return std::all_of(values.begin(), values.end(), [](double value) { return std::isfinite(value); });
}

at::Tensor tensor_of(const double* values, at::IntArrayRef shape, const at::TensorOptions& options) {
  at::Tensor tensor = at::empty(shape, options);
  if (tensor.scalar_type() == at::kDouble) {
    std::copy_n(values, tensor.numel(), tensor.mutable_data_ptr<double>());
  } else {
    std::copy_n(values, tensor.numel(), tensor.mutable_data_ptr<float>());
  }
  return tensor;
}

std::tuple<at::Tensor, at::Tensor, at::Tensor> mimic_loss_cpu(
    const at::Tensor& logits_MBK, const at::Tensor& target_B, const at::Tensor& weights_MM, double temperature,
    double label_smoothing, int64_t ignore_index, bool need_grad, const std::optional<at::Tensor>& target2_B,
    const std::optional<at::Tensor>& share_B, const std::optional<at::Tensor>& row_weight_B) {
  TORCH_CHECK_VALUE(logits_MBK.dim() == 3 && logits_MBK.size(0) > 0 && logits_MBK.size(2) > 0,
                    "logits must be [M, B, K] with at least one branch and class, got ", logits_MBK.sizes());
  TORCH_CHECK_VALUE(logits_MBK.is_floating_point(), "logits must be floating point, got ", logits_MBK.dtype());
  TORCH_CHECK_VALUE(
      weights_MM.sizes() == at::IntArrayRef({logits_MBK.size(0), logits_MBK.size(0)}) && weights_MM.is_floating_point(),
      "weights must be floating point [M, M], got ", weights_MM.dtype(), " ", weights_MM.sizes());
  TORCH_CHECK_VALUE(temperature > 0 && std::isfinite(temperature) && label_smoothing >= 0 && label_smoothing <= 1,
                    "temperature must be a finite number above 0 and label_smoothing in [0, 1], got ", temperature,
                    " and ", label_smoothing);
  const at::Tensor logits = logits_MBK.stride(2) == 1 ? logits_MBK : logits_MBK.contiguous();
  const int64_t M = logits.size(0), B = logits.size(1), K = logits.size(2);
  const at::ScalarType dtype = logits.scalar_type();
  const Labels labels(target_B, target2_B, share_B, row_weight_B, B);
  MimicLossWork work{};
  work.batch = B, work.classes = K;
  work.logits = logits.const_data_ptr(), work.stride_branch = logits.stride(0), work.stride_row = logits.stride(1);
  work.target = labels.target.const_data_ptr<int64_t>();
  work.second = target2_B ? labels.second.const_data_ptr<int64_t>() : nullptr;
  work.share = share_B ? labels.share.data() : nullptr, work.weight = row_weight_B ? labels.weight.data() : nullptr;
  work.ignore_index = ignore_index;
  work.temperature = temperature, work.smoothing = label_smoothing;

  const double label_weight = weigh_labels(work), per_label = label_weight > 0 ? 1 / label_weight : 1;
  const double per_row = 1.0 / B;
  const Weights W(numbers(weights_MM).data(), M, per_label, temperature * per_row);
  const int64_t A = W.branch.size();
  const auto options = logits.options().dtype(dtype == at::kHalf ? at::kFloat : dtype);
  at::Tensor grad = at::empty(need_grad ? logits.sizes() : at::IntArrayRef{0}, options);
  work.used = A, work.branch = W.branch.data();
  work.factor = W.factor.data();
  work.separable = W.separable, work.teacher = W.teacher.data(), work.student = W.student.data();
  work.grad = need_grad ? grad.mutable_data_ptr() : nullptr;

  // The sums of a group of rows do not depend on the thread, so any number of threads gives the same bits.
  const int64_t group = std::max<int64_t>(4, 2048 / K), groups = (B + group - 1) / group;
  std::vector<double> sums(groups * A * A);
  const MimicLossSimd* code = FASTDHM_CODE_IN_USE(kMimicLoss);
  const MimicLossRows fast = A > 0 ? simd_rows(code, dtype) : nullptr, exact = exact_rows(dtype);
  const int64_t row_bytes = K * grad.element_size();
  const int64_t grain = std::max<int64_t>(1, 16384 / (group * std::max<int64_t>(A, 1) * K));
  at::parallel_for(0, groups, grain, [&](int64_t first, int64_t last) {
    const int64_t floats = fast == nullptr ? 0 : code->scratch_floats(work);
    std::unique_ptr<float[]> scratch(new float[floats + 16]);
    const auto address = reinterpret_cast<uintptr_t>(scratch.get());
    float* aligned = scratch.get() + (-(address / sizeof(float)) & 15);  // to 64 bytes
    std::vector<double> sum(A * A);
    for (int64_t g = first; g < last; ++g) {
      const int64_t begin = g * group, end = std::min(B, begin + group);
      std::fill(sum.begin(), sum.end(), 0.0);
      if (fast != nullptr) fast(work, begin, end, aligned, sum.data());
      if (fast == nullptr || !all_finite(sum)) {
        std::fill(sum.begin(), sum.end(), 0.0);
        exact(work, begin, end, nullptr, sum.data());
      }
      std::copy(sum.begin(), sum.end(), sums.begin() + g * A * A);
      if (!need_grad || A == M) continue;
      for (int64_t m = 0; m < M; ++m) {  // unused branches
        if (std::binary_search(W.branch.begin(), W.branch.end(), m)) continue;
        std::memset(static_cast<char*>(work.grad) + (m * B + begin) * row_bytes, 0, (end - begin) * row_bytes);
      }
    }
  });

  std::vector<double> terms(M * M);
  double loss = 0;
  for (int64_t p = 0; p < A; ++p) {
    for (int64_t q = 0; q < A; ++q) {
      double value = 0;
      for (int64_t g = 0; g < groups; ++g) value += sums[(g * A + p) * A + q];
      // as in torch, the mean of an empty batch is NaN
      value *= p != q  ? temperature * temperature * per_row
               : B > 0 ? per_label
                       : std::numeric_limits<double>::quiet_NaN();
      terms[W.branch[p] * M + W.branch[q]] = value;
      if (W.value[p * A + q] != 0) loss += W.value[p * A + q] * value;
    }
  }
  const auto result = logits.options().dtype(dtype == at::kDouble ? at::kDouble : at::kFloat);
  return {tensor_of(&loss, {}, result), tensor_of(terms.data(), {M, M}, result), grad};
}

void scale_cpu(at::Tensor& grad, const at::Tensor& factor) {
  TORCH_CHECK_VALUE(grad.is_floating_point() && factor.is_floating_point() && factor.dim() == 0,
                    "grad must be floating point and factor a floating point number without dimensions, got ",
                    grad.dtype(), " and ", factor.dtype(), " ", factor.sizes());
  if (factor.item<double>() != 1) grad.mul_(factor);
}

}  // namespace

TORCH_LIBRARY_IMPL(fastdhm, CPU, m) {
  m.impl("mimic_loss", &mimic_loss_cpu);
  m.impl("scale_", &scale_cpu);
}

}  // namespace fastdhm
