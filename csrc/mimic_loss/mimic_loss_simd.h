// The mimicking loss row by row in vectors of floats, for an instruction set V (simd/avx512.h shows what V gives).
// Include no header with inline functions here or below: they would be compiled for V but called by all code.
//
// A row of all used branches is computed in blocks of classes that fit in the first-level cache:
//   1. x = (z - max z) / T, e = exp(x), s = sum e, and for each pair the sums of e_p (x_p - x_q) and e_q (x_q - x_p):
//      KL(P_p || P_q) = sum_k e_p (x_p - x_q) / s_p + log s_q - log s_p
//   2. the gradient, a linear combination of the e's.
// So each logit is read once from memory and has one exponential (two if T is not 1). Only the sums of pairs are
// quadratic in A.

namespace fastdhm {
namespace {

constexpr float kLowest = -3.40282347e38f;
constexpr int64_t kBlockFloats = 3072;    // of x, and of e, in a block: they stay in the first-level cache
constexpr int64_t kKeptFloats = 1 << 18;  // e of a row is kept if it fits, else computed again for the gradient
constexpr double kLarge = 1e200;          // a product of sums of e: one more factor fits

// Floats from one branch's row of n classes to the next: four whole vectors are read at a time, and rows a multiple of
// 4 KiB apart would contend for the same lines of the cache.
inline int64_t padded(int64_t n) { return (n + 63) / 64 * 64 + 16; }

// A thread's scratch.
template <class V>
struct Scratch {
  bool kept;                             // whether e and sharp hold a whole row, not a block
  int64_t block;                         // classes
  int64_t pitch, x_pitch;                // floats from one branch's e, and x, to the next
  float *x, *e, *sharp;                  // [A, x_pitch], [A, pitch], and, where T is not 1, [A, pitch] exp(z - max z)
  float* sums;                           // [A, 3] vectors: sums of e, of sharp and of z - max z
  float *pair, *total;                   // [A, A] vectors: sums of pairs in a row, and over rows, each divided by its s
  float *top, *inverse, *inverse_sharp;  // [A] max z, 1 / sum e, 1 / sum sharp
  float* share;                          // [A] weight of each teacher
  double *soft, *hard;                   // [A] products over rows: of sum e; of sum sharp, where a label weighs 1

  static bool keeps(const MimicLossWork& work) {
    return work.grad != nullptr && exponentials(work) * padded(work.classes) <= kKeptFloats;
  }
  static int64_t exponentials(const MimicLossWork& work) { return work.used * (work.temperature == 1 ? 1 : 2); }
  static int64_t block_of(const MimicLossWork& work) {
    const int64_t block = kBlockFloats / work.used / 64 * 64;
    return block < 128 ? 128 : block < work.classes ? block : work.classes;
  }
  static int64_t x_pitch_of(const MimicLossWork& work) { return padded(block_of(work)); }
  static int64_t pitch_of(const MimicLossWork& work) { return keeps(work) ? padded(work.classes) : x_pitch_of(work); }
  static int64_t floats(const MimicLossWork& work) {
    const int64_t A = work.used;
    return A * x_pitch_of(work) + exponentials(work) * pitch_of(work) + (2 * A + 3) * A * V::kWidth + 8 * A;
  }

  Scratch(const MimicLossWork& work, float* memory)
      : kept(keeps(work)), block(block_of(work)), pitch(pitch_of(work)), x_pitch(x_pitch_of(work)) {
    const int64_t A = work.used;
    x = memory;
    e = x + A * x_pitch;
    sharp = e + A * pitch;
    sums = e + exponentials(work) * pitch;
    pair = sums + 3 * A * V::kWidth;
    total = pair + A * A * V::kWidth;
    soft = reinterpret_cast<double*>(total + A * A * V::kWidth);
    hard = soft + A;
    top = reinterpret_cast<float*>(hard + A);
    inverse = top + A;
    inverse_sharp = inverse + A;
    share = inverse_sharp + A;
  }
};

// exp(x) for x <= 0, as 2^n p(f): n is x / ln 2 rounded, f the remainder, and p a polynomial with p(0) = 1.
// Relative error 1e-7 + 1.3e-8 |x|; 0 where the result would be below the normal numbers.
template <class V>
inline typename V::F exp_vector(typename V::F x) {
  using F = typename V::F;
  const F n = V::round(x * V::all(1.44269502f));
  const F f = V::fms(x, V::all(1.44269502f), n);
  F y = V::all(1.32647261e-3f);
  y = V::fma(y, f, V::all(9.67151299e-3f));
  y = V::fma(y, f, V::all(5.55073358e-2f));
  y = V::fma(y, f, V::all(2.40222424e-1f));
  y = V::fma(y, f, V::all(6.93147004e-1f));
  y = V::fma(y, f, V::all(1));
  return V::scale(y, n);
}

template <class V, class T>
float max_of(const T* z, int64_t n) {
  constexpr int64_t W = V::kWidth;
  typename V::F top[4];
  for (auto& lane : top) lane = V::all(kLowest);
  int64_t k = 0;
  for (; k + 4 * W <= n; k += 4 * W) {
    for (int64_t u = 0; u < 4; ++u) top[u] = V::max(top[u], V::load(z + k + u * W));
  }
  for (; k + W <= n; k += W) top[0] = V::max(top[0], V::load(z + k));
  if (k < n) top[1] = V::max(top[1], V::load_first(z + k, n - k, kLowest));
  return V::max_lane(V::max(V::max(top[0], top[1]), V::max(top[2], top[3])));
}

// x / T, e and sharp of `n` classes of one branch, zero up to the next whole vector; adds to their sums, and to that of
// x.
template <class V, bool kTempered, bool kSmoothed, class T>
void exp_block(const T* z, int64_t n, float top, float coldness, float* x, float* e, float* sharp, float* sums) {
  using F = typename V::F;
  constexpr int64_t W = V::kWidth;
  const F shift = V::all(top), scale = V::all(coldness);
  F sum_e = V::all(0), sum_sharp = V::all(0),
    sum_x = V::all(0);  // of this block only: short chains of additions lose less
  for (int64_t k = 0; k < n; k += W) {
    const int64_t lanes = n - k;
    F x_k = (lanes < W ? V::load_first(z + k, lanes, top) : V::load(z + k)) - shift;
    if constexpr (kSmoothed) sum_x = sum_x + x_k;
    if constexpr (kTempered) {
      F sharp_k = exp_vector<V>(x_k);
      if (lanes < W) sharp_k = V::keep_first(sharp_k, lanes);
      sum_sharp = sum_sharp + sharp_k;
      V::store(sharp + k, sharp_k);
      x_k = x_k * scale;
    }
    F e_k = exp_vector<V>(x_k);
    if (lanes < W) e_k = V::keep_first(e_k, lanes);
    sum_e = sum_e + e_k;
    V::store(x + k, x_k);
    V::store(e + k, e_k);
  }
  V::store(sums, V::load(sums) + sum_e);
  V::store(sums + W, V::load(sums + W) + sum_sharp);
  V::store(sums + 2 * W, V::load(sums + 2 * W) + sum_x);
}

// The sums of pairs of branch p with Q branches from q on.
template <class V, int Q>
void pair_block(const float* x, const float* e, int64_t x_pitch, int64_t pitch, int64_t n, int64_t p, int64_t q,
                int64_t A, float* pair) {
  using F = typename V::F;
  constexpr int64_t W = V::kWidth;
  F from_p[Q], to_p[Q];
  for (int i = 0; i < Q; ++i) from_p[i] = to_p[i] = V::all(0);
  const float *x_p = x + p * x_pitch, *e_p = e + p * pitch, *x_q = x + q * x_pitch, *e_q = e + q * pitch;
  for (int64_t k = 0; k < n; k += W) {
    const F x_pk = V::load(x_p + k), e_pk = V::load(e_p + k);
    for (int i = 0; i < Q; ++i) {
      const F gap = x_pk - V::load(x_q + i * x_pitch + k);
      from_p[i] = V::fma(e_pk, gap, from_p[i]);
      to_p[i] = V::fnma(V::load(e_q + i * pitch + k), gap, to_p[i]);
    }
  }
  for (int i = 0; i < Q; ++i) {
    float *pq = pair + (p * A + q + i) * W, *qp = pair + ((q + i) * A + p) * W;
    V::store(pq, V::load(pq) + from_p[i]);
    V::store(qp, V::load(qp) + to_p[i]);
  }
}

template <class V>
void pairs_block(const float* x, const float* e, int64_t x_pitch, int64_t pitch, int64_t n, int64_t A, float* pair) {
  for (int64_t p = 0; p < A; ++p) {
    int64_t q = p + 1;
    for (; q + 4 <= A; q += 4) pair_block<V, 4>(x, e, x_pitch, pitch, n, p, q, A, pair);
    if (q + 2 <= A) pair_block<V, 2>(x, e, x_pitch, pitch, n, p, q, A, pair), q += 2;
    if (q < A) pair_block<V, 1>(x, e, x_pitch, pitch, n, p, q, A, pair);
  }
}

// mix = sum_p share_p e_p, four vectors at a time, over the end into the padding.
template <class V>
void mix_teachers(const float* e, int64_t pitch, int64_t n, int64_t A, const float* share, float* mix) {
  using F = typename V::F;
  constexpr int64_t W = V::kWidth, kAtOnce = 4;
  for (int64_t k = 0; k < n; k += kAtOnce * W) {
    F sum[kAtOnce] = {V::all(0), V::all(0), V::all(0), V::all(0)};
    for (int64_t p = 0; p < A; ++p) {
      const F share_p = V::all(share[p]);
      for (int64_t u = 0; u < kAtOnce; ++u) sum[u] = V::fma(share_p, V::load(e + p * pitch + k + u * W), sum[u]);
    }
    for (int64_t u = 0; u < kAtOnce; ++u) V::store(mix + k + u * W, sum[u]);
  }
}

// The gradient of `n` classes of all branches from class k0 on, where `e` and `sharp` begin:
//   grad_q = own_q e_q + own_sharp_q sharp_q - even_q - sum_p w_pq P_p, and at a label of that share less
//            W_qq (1 - smoothing) share
// If T is 1, sharp is e and own_q holds both. If the weights are separable, all students use one sum over the
// teachers.
template <class V, bool kTempered, class T>
void grad_block(const MimicLossWork& work, int64_t b, int64_t k0, int64_t n, const float* e, const float* sharp,
                const Scratch<V>& scratch) {
  using F = typename V::F;
  constexpr int64_t W = V::kWidth;
  const int64_t A = work.used, K = work.classes, pitch = scratch.pitch;
  const MimicLossLabel label = label_of(work, b);
  float *mix = scratch.x, *share = scratch.share;  // the teachers' sum (x is no longer needed) and their weights in it
  if (work.separable) {
    for (int64_t p = 0; p < A; ++p) share[p] = static_cast<float>(work.teacher[p]) * scratch.inverse[p];
    mix_teachers<V>(e, pitch, n, A, share, mix);
  }
  for (int64_t q = 0; q < A; ++q) {
    const auto weight = [&](int64_t p) { return p == q ? 0.0 : work.factor[p * A + q]; };
    double mimic = work.separable ? work.student[q] * work.teacher[q] : 0;
    for (int64_t p = 0; p < A; ++p) mimic += weight(p);
    if (!work.separable) {
      for (int64_t p = 0; p < A; ++p) share[p] = static_cast<float>(weight(p)) * scratch.inverse[p];
      mix_teachers<V>(e, pitch, n, A, share, mix);
    }
    const double ce = label.weight * work.factor[q * A + q];
    const float own = static_cast<float>(mimic + (kTempered ? 0 : ce)) * scratch.inverse[q];
    const float own_sharp = kTempered ? static_cast<float>(ce) * scratch.inverse_sharp[q] : 0;
    const float even = static_cast<float>(ce * work.smoothing / K);
    const float scale = work.separable ? static_cast<float>(work.student[q]) : 1;
    const F own_F = V::all(own), own_sharp_F = V::all(own_sharp), even_F = V::all(even), scale_F = V::all(scale);
    const float *e_q = e + q * pitch, *sharp_q = sharp + q * pitch;
    auto* grad = static_cast<GradOf<T>*>(work.grad) + (work.branch[q] * work.batch + b) * K + k0;
    for (int64_t k = 0; k < n; k += W) {
      F g = V::fms(own_F, V::load(e_q + k), even_F);
      if constexpr (kTempered) g = V::fma(own_sharp_F, V::load(sharp_q + k), g);
      g = V::fnma(scale_F, V::load(mix + k), g);
      n - k < W ? V::store_first(grad + k, g, n - k) : V::store(grad + k, g);
    }
    const auto at_label = [&](int64_t k, double part) {
      if (k < 0 || k >= n) return;
      float g = own * e_q[k] - even - scale * mix[k] - static_cast<float>(ce * (1 - work.smoothing) * part);
      if constexpr (kTempered) g += own_sharp * sharp_q[k];
      grad[k] = static_cast<GradOf<T>>(g);
    };
    if (label.weight == 0) continue;
    at_label(label.first - k0, label.share);
    if (label.second != label.first) at_label(label.second - k0, 1 - label.share);
  }
}

// Adds the logarithms of branch m's products over rows, and begins with new ones. A row's own logarithms would take as
// long as its exponentials.
template <class V>
void add_logs(const Scratch<V>& scratch, int64_t m, int64_t A, double* sum) {
  const double log_s = std::log(scratch.soft[m]);
  for (int64_t p = 0; p < A; ++p) {
    if (p != m) sum[m * A + p] -= log_s, sum[p * A + m] += log_s;
  }
  sum[m * A + m] += std::log(scratch.hard[m]);
  scratch.soft[m] = scratch.hard[m] = 1;
}

template <class V, bool kTempered, bool kSmoothed, class T>
void row(const MimicLossWork& work, int64_t b, const Scratch<V>& scratch, double* sum) {
  using F = typename V::F;
  constexpr int64_t W = V::kWidth;
  const int64_t A = work.used, K = work.classes, block = scratch.block;
  const MimicLossLabel label = label_of(work, b);
  const float coldness = static_cast<float>(1 / work.temperature);
  const auto z = [&](int64_t m) {
    return static_cast<const T*>(work.logits) + work.branch[m] * work.stride_branch + b * work.stride_row;
  };
  const auto exponentials = [&](int64_t k0, int64_t n, int64_t at) {
    for (int64_t m = 0; m < A; ++m) {
      const int64_t place = m * scratch.pitch + at;
      exp_block<V, kTempered, kSmoothed>(z(m) + k0, n, scratch.top[m], coldness, scratch.x + m * scratch.x_pitch,
                                         scratch.e + place, scratch.sharp + place, scratch.sums + 3 * m * W);
    }
  };

  for (int64_t m = 0; m < A; ++m) scratch.top[m] = max_of<V>(z(m), K);
  for (int64_t i = 0; i < (A + 3) * A; ++i) V::store(scratch.sums + i * W, V::all(0));  // and the pairs behind them
  for (int64_t k0 = 0; k0 < K; k0 += block) {
    const int64_t n = K - k0 < block ? K - k0 : block, at = scratch.kept ? k0 : 0;
    exponentials(k0, n, at);
    pairs_block<V>(scratch.x, scratch.e + at, scratch.x_pitch, scratch.pitch, n, A, scratch.pair);
  }
  for (int64_t m = 0; m < A; ++m) {
    const float* sums = scratch.sums + 3 * m * W;
    const float s = V::sum_lanes(V::load(sums)), s_sharp = kTempered ? V::sum_lanes(V::load(sums + W)) : s;
    scratch.inverse[m] = 1 / s;
    scratch.inverse_sharp[m] = 1 / s_sharp;
    const F inverse = V::all(scratch.inverse[m]);
    for (int64_t p = 0; p < A; ++p) {
      float* total = scratch.total + (m * A + p) * W;
      V::store(total, V::fma(V::load(scratch.pair + (m * A + p) * W), inverse, V::load(total)));
    }
    scratch.soft[m] *= s;
    if (label.weight == 1) scratch.hard[m] *= s_sharp;
    if (scratch.soft[m] > kLarge || scratch.hard[m] > kLarge) add_logs(scratch, m, A, sum);
    const double log_s = label.weight == 1 ? 0 : std::log(static_cast<double>(s_sharp));
    if (label.weight == 0) {
      sum[m * A + m] += 0 * log_s;  // keeps a sum that is not finite visible
      continue;
    }
    const auto x_of = [&](int64_t k) { return static_cast<double>(static_cast<float>(z(m)[k])) - scratch.top[m]; };
    double log_p = x_of(label.first);
    if (label.second != label.first) log_p = label.share * log_p + (1 - label.share) * x_of(label.second);
    log_p *= 1 - work.smoothing;
    if constexpr (kSmoothed) log_p += work.smoothing / K * V::sum_lanes(V::load(sums + 2 * W));
    sum[m * A + m] += label.weight * (log_s - log_p);
  }

  if (work.grad == nullptr) return;
  for (int64_t k0 = 0; k0 < K; k0 += block) {
    const int64_t n = K - k0 < block ? K - k0 : block, at = scratch.kept ? k0 : 0;
    if (!scratch.kept) exponentials(k0, n, 0);
    grad_block<V, kTempered, T>(work, b, k0, n, scratch.e + at, scratch.sharp + at, scratch);
  }
}

template <class V, bool kTempered, bool kSmoothed, class T>
void rows_of(const MimicLossWork& work, int64_t begin, int64_t end, const Scratch<V>& scratch, double* sum) {
  constexpr int64_t W = V::kWidth;
  const int64_t A = work.used;
  for (int64_t i = 0; i < A * A; ++i) V::store(scratch.total + i * W, V::all(0));
  for (int64_t m = 0; m < A; ++m) scratch.soft[m] = scratch.hard[m] = 1;
  for (int64_t b = begin; b < end; ++b) row<V, kTempered, kSmoothed, T>(work, b, scratch, sum);
  for (int64_t m = 0; m < A; ++m) add_logs(scratch, m, A, sum);
  for (int64_t i = 0; i < A * A; ++i) sum[i] += V::sum_lanes(V::load(scratch.total + i * W));
}

template <class V, class T>
void rows(const MimicLossWork& work, int64_t begin, int64_t end, float* memory, double* sum) {
  const Scratch<V> scratch(work, memory);
  const bool tempered = work.temperature != 1, smoothed = work.smoothing != 0;
  (tempered   ? smoothed ? rows_of<V, true, true, T> : rows_of<V, true, false, T>
   : smoothed ? rows_of<V, false, true, T>
              : rows_of<V, false, false, T>)(work, begin, end, scratch, sum);
}

}  // namespace
}  // namespace fastdhm
