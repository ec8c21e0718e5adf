// The CPU form of fastdhm::match_ranks. Q: queries, G: gallery, P: matches; of one query, M matches.
//
// A distance becomes an integer that orders as it does, so that the processor compares exactly whatever its floating
// point mode, and "as near or nearer" is "below the next integer". Nothing is sorted: a row is copied once into scratch
// that stays in the cache, and the entries below each match are counted there.
#include <ATen/Parallel.h>
#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <torch/library.h>

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <cstring>
#include <limits>
#include <tuple>
#include <type_traits>
#include <utility>
#include <vector>

// Compiled once for each of these, and the best that the processor has is picked when the module is loaded.
#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__) && defined(__GLIBC__)
#define FASTDHM_FOR_EACH_PROCESSOR __attribute__((target_clones("avx512f", "avx2", "default")))
#else
#define FASTDHM_FOR_EACH_PROCESSOR
#endif
#define FASTDHM_INLINE inline __attribute__((always_inline))

namespace fastdhm {
namespace {

// With more matches in a row, sorting them and looking each gallery entry up among them is faster: the limit was 200 to
// 300 in float32 and 110 to 150 in float64, with AVX2 and AVX-512, for 20,000 entries.
template <typename Key>
constexpr int64_t kFew = 1024 / sizeof(Key);
constexpr int64_t kGrain = 1 << 16;  // distances for which another thread is worth it

template <typename scalar_t>
using KeyOf = std::conditional_t<std::is_same_v<scalar_t, float>, int32_t, int64_t>;

// The key of infinity, above all finite keys: for entries that no ranking contains.
template <typename Key>
constexpr Key kOut = sizeof(Key) == 4 ? Key(0x7f800000) : Key(0x7ff0000000000000);

// The keys of a row, each at least its floor; returns whether a distance is NaN or infinite.
template <typename scalar_t, typename Key = KeyOf<scalar_t>>
FASTDHM_INLINE bool keys_of_row(const scalar_t* __restrict__ distance, const Key* __restrict__ floor, int64_t G,
                                Key* __restrict__ key) {
  Key wrong = 0;
  for (int64_t g = 0; g < G; ++g) {
    Key bits;
    std::memcpy(&bits, &distance[g], sizeof(bits));
    wrong |= (bits & kOut<Key>) == kOut<Key>;
    const Key ordered = bits >= 0 ? bits : std::numeric_limits<Key>::min() - bits;  // -0 and 0 are the same
    key[g] = ordered > floor[g] ? ordered : floor[g];
  }
  return wrong != 0;
}

// below[m] += how many of the keys are below threshold[m]. Four at a time: a key is loaded once for them.
template <typename Key>
FASTDHM_INLINE void count_below(const Key* __restrict__ key, int64_t num_keys, const Key* __restrict__ threshold,
                                int64_t M, Key* __restrict__ below) {
  int64_t m = 0;
  for (; m + 4 <= M; m += 4) {
    const Key t0 = threshold[m], t1 = threshold[m + 1], t2 = threshold[m + 2], t3 = threshold[m + 3];
    Key n0 = 0, n1 = 0, n2 = 0, n3 = 0;
    for (int64_t g = 0; g < num_keys; ++g) {
      n0 += key[g] < t0;
      n1 += key[g] < t1;
      n2 += key[g] < t2;
      n3 += key[g] < t3;
    }
    below[m] += n0, below[m + 1] += n1, below[m + 2] += n2, below[m + 3] += n3;
  }
  for (; m < M; ++m) {
    const Key t = threshold[m];
    Key n = 0;
    for (int64_t g = 0; g < num_keys; ++g) n += key[g] < t;
    below[m] += n;
  }
}

// first[g]: how many of N sorted values, N at least 1 and the last of them the greatest there is, are below key[g].
template <typename Key>
FASTDHM_INLINE void look_up_each(const Key* __restrict__ key, int64_t num_keys, const Key* __restrict__ value, Key N,
                                 Key* __restrict__ first) {
  constexpr int64_t kAbreast = 16;  // searches that run side by side
  for (int64_t g = 0; g < num_keys; g += kAbreast) {
    const int64_t some = std::min(kAbreast, num_keys - g);
    Key at[kAbreast] = {}, wanted[kAbreast] = {};
    std::copy_n(key + g, some, wanted);
    for (Key left = N; left > 1; left -= left / 2) {
      const Key half = left / 2;
      // without branches, which could not be predicted
      for (int64_t i = 0; i < kAbreast; ++i) at[i] += -Key{value[at[i] + half - 1] < wanted[i]} & half;
    }
    std::copy_n(at, some, first + g);
  }
}

FASTDHM_FOR_EACH_PROCESSOR bool keys_of(const float* distance, const int32_t* floor, int64_t G, int32_t* key) {
  return keys_of_row(distance, floor, G, key);
}
FASTDHM_FOR_EACH_PROCESSOR bool keys_of(const double* distance, const int64_t* floor, int64_t G, int64_t* key) {
  return keys_of_row(distance, floor, G, key);
}
FASTDHM_FOR_EACH_PROCESSOR void count(const int32_t* key, int64_t num_keys, const int32_t* threshold, int64_t M,
                                      int32_t* below) {
  count_below(key, num_keys, threshold, M, below);
}
FASTDHM_FOR_EACH_PROCESSOR void count(const int64_t* key, int64_t num_keys, const int64_t* threshold, int64_t M,
                                      int64_t* below) {
  count_below(key, num_keys, threshold, M, below);
}

FASTDHM_FOR_EACH_PROCESSOR void look_up(const int32_t* key, int64_t num_keys, const int32_t* value, int64_t N,
                                        int32_t* first) {
  look_up_each(key, num_keys, value, static_cast<int32_t>(N), first);
}
FASTDHM_FOR_EACH_PROCESSOR void look_up(const int64_t* key, int64_t num_keys, const int64_t* value, int64_t N,
                                        int64_t* first) {
  look_up_each(key, num_keys, value, N, first);
}

// The memory of a thread, used again for every row.
template <typename Key>
struct Scratch {
  std::vector<Key> key, threshold, below, first;
  std::vector<int64_t> nearer, as_near;
  std::vector<std::pair<Key, int64_t>> nearest;
};

// Few matches: the row is split into stretches from one match to the next. In a stretch, the matches after it count
// entries that are as near or nearer, those before it only nearer ones: so equal distances keep the gallery's order.
template <typename Key>
void ranks_by_counting(Scratch<Key>& at, int64_t G, const int64_t* gallery, int64_t M, int64_t* rank) {
  at.threshold.resize(M);
  at.below.assign(M, 0);
  for (int64_t m = 0; m < M; ++m) at.threshold[m] = at.key[gallery[m]] + 1;
  for (int64_t m = 0, first = 0; m <= M; ++m) {
    const int64_t last = m < M ? gallery[m] : G;
    count(at.key.data() + first, last - first, at.threshold.data(), M, at.below.data());
    if (m < M) --at.threshold[m];
    first = last;
  }
  std::copy(at.below.begin(), at.below.end(), rank);
}

// Many matches: each entry of the row is looked up among their sorted keys and counted at the first key that is not
// nearer.
template <typename Key>
void ranks_by_lookup(Scratch<Key>& at, int64_t G, const int64_t* gallery, int64_t M, int64_t* rank) {
  auto& matches = at.threshold;
  matches.resize(M);
  for (int64_t m = 0; m < M; ++m) matches[m] = at.key[gallery[m]];
  std::sort(matches.begin(), matches.end());
  matches.erase(std::unique(matches.begin(), matches.end()), matches.end());
  const int64_t N = matches.size();
  matches.push_back(std::numeric_limits<Key>::max());
  at.first.resize(G);
  look_up(at.key.data(), G, matches.data(), N + 1, at.first.data());
  at.nearer.assign(N + 1, 0);  // [N], and the entries farther than all matches
  at.as_near.assign(N + 1, 0);
  for (int64_t g = 0, m = 0; g < G; ++g) {
    const Key n = at.first[g];
    if (m < M && gallery[m] == g) rank[m++] = at.as_near[n];
    ++(matches[n] == at.key[g] ? at.as_near : at.nearer)[n];
  }
  for (int64_t n = 1; n < N; ++n) at.nearer[n] += at.nearer[n - 1] + at.as_near[n - 1];
  for (int64_t m = 0; m < M; ++m) rank[m] += at.nearer[at.first[gallery[m]]];
}

// The K nearest, nearest first; of equal distances the earlier entry first; -1 if fewer are left.
template <typename Key>
void nearest_of_row(Scratch<Key>& at, int64_t G, int64_t K, int64_t* index) {
  auto& heap = at.nearest;  // the farthest one is in front
  heap.assign(K, {kOut<Key>, -1});
  for (int64_t g = 0; g < G; ++g) {
    if (at.key[g] >= heap.front().first) continue;
    std::pop_heap(heap.begin(), heap.end());
    heap.back() = {at.key[g], g};
    std::push_heap(heap.begin(), heap.end());
  }
  std::sort_heap(heap.begin(), heap.end());
  for (int64_t k = 0; k < K; ++k) index[k] = heap[k].second;
}

// Pairs of a query and a gallery entry, in order: those of query q are gallery[start[q]] to gallery[start[q + 1] - 1].
struct Pairs {
  std::vector<int64_t> start;  // [Q + 1]
  at::Tensor gallery;          // [P]
};

// Refuses pairs that are out of bounds or out of order.
Pairs checked_pairs(const char* name, const at::Tensor& query_P, const at::Tensor& gallery_P, int64_t Q, int64_t G) {
  TORCH_CHECK_VALUE(query_P.dim() == 1 && query_P.sizes() == gallery_P.sizes() && query_P.scalar_type() == at::kLong &&
                        gallery_P.scalar_type() == at::kLong,
                    name, ": needs two int64 tensors of one dimension and the same length, query and gallery indices");
  const at::Tensor query = query_P.contiguous(), gallery = gallery_P.contiguous();
  const int64_t* q = query.const_data_ptr<int64_t>();
  const int64_t* g = gallery.const_data_ptr<int64_t>();
  std::vector<int64_t> start(Q + 1, 0);
  for (int64_t p = 0; p < query.numel(); ++p) {
    TORCH_CHECK_VALUE(q[p] >= 0 && q[p] < Q && g[p] >= 0 && g[p] < G, name, ": pair ", p, " is query ", q[p],
                      ", gallery ", g[p], ": distances_QG is [", Q, ", ", G, "]");
    TORCH_CHECK_VALUE(p == 0 || q[p - 1] < q[p] || (q[p - 1] == q[p] && g[p - 1] < g[p]), name, ": pair ", p,
                      " does not come after pair ", p - 1, ": needs them in order of query, then of gallery");
    ++start[q[p] + 1];
  }
  for (int64_t i = 0; i < Q; ++i) start[i + 1] += start[i];
  return {std::move(start), gallery};
}

// [G]: the lowest key of each entry; that of junk is above all others, so junk is farthest.
template <typename Key>
std::vector<Key> floors(const at::Tensor& junk_J, int64_t G) {
  TORCH_CHECK_VALUE(junk_J.dim() == 1 && junk_J.scalar_type() == at::kLong,
                    "junk: needs an int64 tensor of one dimension, gallery indices");
  const at::Tensor junk = junk_J.contiguous();
  const int64_t* index = junk.const_data_ptr<int64_t>();
  std::vector<Key> floor(G, std::numeric_limits<Key>::min());
  for (int64_t j = 0; j < junk.numel(); ++j) {
    TORCH_CHECK_VALUE(index[j] >= 0 && index[j] < G, "junk: ", index[j], " is not a gallery index below ", G);
    floor[index[j]] = kOut<Key>;
  }
  return floor;
}

// Fills ranks and nearest; returns the first row with a distance that is NaN or infinite, or -1.
template <typename scalar_t>
int64_t rank_rows(const at::Tensor& distances_QG, const Pairs& matches, const Pairs& left_out, const at::Tensor& junk_J,
                  at::Tensor& rank_P, at::Tensor& nearest_QK) {
  using Key = KeyOf<scalar_t>;
  const int64_t Q = distances_QG.size(0), G = distances_QG.size(1), stride = distances_QG.stride(0);
  const int64_t K = nearest_QK.size(1);
  const scalar_t* distance = distances_QG.const_data_ptr<scalar_t>();
  const int64_t* match = matches.gallery.const_data_ptr<int64_t>();
  const int64_t* left = left_out.gallery.const_data_ptr<int64_t>();
  int64_t* rank = rank_P.mutable_data_ptr<int64_t>();
  int64_t* nearest = nearest_QK.mutable_data_ptr<int64_t>();
  const std::vector<Key> floor = floors<Key>(junk_J, G);
  // Each row goes to the next free thread: a processor that is also used by others then does not delay half the rows.
  const int64_t threads = std::min<int64_t>(at::get_num_threads(), Q * G / kGrain + 1);
  std::atomic<int64_t> next{0}, first_wrong{Q};
  at::parallel_for(0, threads, 1, [&](int64_t, int64_t) {
    Scratch<Key> scratch;
    scratch.key.resize(G);
    for (int64_t q = next++; q < first_wrong; q = next++) {
      if (keys_of(distance + q * stride, floor.data(), G, scratch.key.data())) {
        int64_t seen = first_wrong;
        while (q < seen && !first_wrong.compare_exchange_weak(seen, q)) continue;
        return;
      }
      for (int64_t n = left_out.start[q]; n < left_out.start[q + 1]; ++n) scratch.key[left[n]] = kOut<Key>;
      const int64_t start = matches.start[q], M = matches.start[q + 1] - start;
      const auto ranks = M < kFew<Key> ? ranks_by_counting<Key> : ranks_by_lookup<Key>;
      if (M > 0) ranks(scratch, G, match + start, M, rank + start);
      if (K > 0) nearest_of_row(scratch, G, K, nearest + q * K);
    }
  });
  return first_wrong < Q ? first_wrong.load() : -1;
}

std::tuple<at::Tensor, at::Tensor, int64_t> match_ranks_cpu(const at::Tensor& distances_QG, const at::Tensor& query_P,
                                                            const at::Tensor& gallery_P, const at::Tensor& left_query_N,
                                                            const at::Tensor& left_gallery_N, const at::Tensor& junk_J,
                                                            int64_t top_k) {
  const auto dtype = distances_QG.scalar_type();
  TORCH_CHECK_VALUE(distances_QG.dim() == 2 && (dtype == at::kFloat || dtype == at::kDouble), "distances_QG is ", dtype,
                    " ", distances_QG.sizes(), ": needs float32 or float64 [Q, G]");
  const int64_t Q = distances_QG.size(0), G = distances_QG.size(1);
  TORCH_CHECK_VALUE(G > 0 && G <= std::numeric_limits<int32_t>::max(), "the gallery has ", G,
                    " entries: needs 1 to 2**31 - 1");
  TORCH_CHECK_VALUE(top_k >= 0, "top_k is ", top_k, ": needs 0 or more");
  const at::Tensor distances = distances_QG.stride(1) == 1 ? distances_QG : distances_QG.contiguous();
  const Pairs matches = checked_pairs("matches", query_P, gallery_P, Q, G);
  const Pairs left_out = checked_pairs("left_out", left_query_N, left_gallery_N, Q, G);
  at::Tensor rank_P = at::empty(query_P.sizes(), query_P.options());
  at::Tensor nearest_QK = at::empty({Q, std::min(top_k, G)}, query_P.options());
  const auto rows = dtype == at::kFloat ? rank_rows<float> : rank_rows<double>;
  const int64_t wrong_row = rows(distances, matches, left_out, junk_J, rank_P, nearest_QK);
  return {rank_P, nearest_QK, wrong_row};
}

}  // namespace

TORCH_LIBRARY_IMPL(fastdhm, CPU, m) { m.impl("match_ranks", &match_ranks_cpu); }

}  // namespace fastdhm
