// The mimicking loss row by row in double: for float64, for logits that are not finite, and if no vector code fits.
#pragma once

#include <cmath>
#include <limits>
#include <vector>

#include "mimic_loss/mimic_loss.h"

namespace fastdhm {

// Two passes over a row: the logarithms of the sums, then every term and the gradient, class by class.
template <class T>
void mimic_loss_rows_exact(const MimicLossWork& work, int64_t begin, int64_t end, float*, double* sum) {
  const int64_t A = work.used, K = work.classes;
  const double coldness = 1 / work.temperature, smoothing = work.smoothing;
  std::vector<const T*> z(A);
  std::vector<double> top(A), lse(A), lse_soft(A), log_p(A), p(A);
  for (int64_t b = begin; b < end; ++b) {
    for (int64_t m = 0; m < A; ++m) {
      z[m] = static_cast<const T*>(work.logits) + work.branch[m] * work.stride_branch + b * work.stride_row;
      top[m] = -std::numeric_limits<double>::infinity();
      for (int64_t k = 0; k < K; ++k) top[m] = std::fmax(top[m], static_cast<double>(z[m][k]));
      double total = 0, total_soft = 0;
      for (int64_t k = 0; k < K; ++k) {
        const double x = static_cast<double>(z[m][k]) - top[m];
        total += std::exp(x);
        total_soft += std::exp(x * coldness);
      }
      lse[m] = std::log(total);
      lse_soft[m] = std::log(total_soft);
    }
    const MimicLossLabel label = label_of(work, b);
    for (int64_t k = 0; k < K; ++k) {
      const double hard = k == label.first ? label.share : k == label.second ? 1 - label.share : 0;
      const double target = hard * (1 - smoothing) + smoothing / K;
      for (int64_t m = 0; m < A; ++m) {
        const double x = static_cast<double>(z[m][k]) - top[m];
        log_p[m] = x * coldness - lse_soft[m];
        p[m] = std::exp(log_p[m]);
        if (label.weight > 0 && target > 0) sum[m * A + m] -= label.weight * target * (x - lse[m]);
      }
      for (int64_t t = 0; t < A; ++t) {
        if (log_p[t] == -std::numeric_limits<double>::infinity()) continue;  // a class that P_p excludes adds 0
        for (int64_t q = 0; q < A; ++q) {
          const double gap = log_p[t] - log_p[q];  // infinite if only the student excludes it, however small p is
          if (t != q) sum[t * A + q] += gap == std::numeric_limits<double>::infinity() ? gap : p[t] * gap;
        }
      }
      if (work.grad == nullptr) continue;
      for (int64_t q = 0; q < A; ++q) {
        const double ce = label.weight * work.factor[q * A + q];
        double g = ce != 0 ? ce * (std::exp(static_cast<double>(z[q][k]) - top[q] - lse[q]) - target) : 0;
        for (int64_t t = 0; t < A; ++t) {
          const double weight = work.factor[t * A + q];
          if (t != q && weight != 0) g += weight * (p[q] - p[t]);
        }
        static_cast<GradOf<T>*>(work.grad)[(work.branch[q] * work.batch + b) * K + k] = static_cast<GradOf<T>>(g);
      }
    }
  }
}

}  // namespace fastdhm
