// Products of small matrices in vectors, for products P of an instruction set (Singles shows what P gives). Include
// no header with inline functions here or below: they would be compiled for P's instructions but called by all code.
#pragma once

#include <cstdint>

namespace fastdhm {
namespace {

constexpr int64_t kMostRows = 8;  // of a product, computed side by side

// Call body.run<N>(v) for the vectors from 0 on, in blocks of N side by side.
template <int kAtOnce, class Body>
inline void for_vector_blocks(int64_t vectors, const Body& body) {
  int64_t v = 0;
  if constexpr (kAtOnce >= 4) {
    for (; v + 4 <= vectors; v += 4) body.template run<4>(v);
  }
  for (; v + 2 <= vectors; v += 2) body.template run<2>(v);
  for (; v < vectors; ++v) body.template run<1>(v);
}

// Products of the numbers of V themselves, N vectors side by side: for float32, and for double.
template <class V, int N>
struct Singles : V {
  using Element = typename V::S;
  using Packed = typename V::F;
  static constexpr int64_t kPair = 1;
  static constexpr int kVectors = N;

  static Packed load_packed(const Element* p) { return V::load(p); }
  static Packed broadcast(const Element* p) { return V::all(*p); }
  static Packed dot(Packed sum, Packed a, Packed b) { return V::fma(a, b, sum); }
  static void store_element(Element* p, Packed x) { V::store(p, x); }
  static void store_pair(Element* p, Packed, Packed x) { V::store(p, x); }
  static void store_both(Element* p, const Element* one, const Element*) { V::store(p, V::load(one)); }
};

// Rows of a product that share a load of N vectors: as many as fit in registers.
template <class P>
constexpr int kRows(int N) {
  return 4 * P::kVectors / N < kMostRows ? 4 * P::kVectors / N : kMostRows;
}

// to[r, n] (+)= sum over lines and their pairs of a(r, line, pair) * b(n, line, pair), for kRows<P>(N) rows of N
// vectors that lie to_row apart; a and b locate a pair and a vector of pairs. The loops are unrolled early, and
// this is a function of its own; otherwise the sums would not stay in registers.
template <class P, int N, bool kAccumulate, class A, class B>
__attribute__((noinline)) void multiply(A a, B b, int64_t lines, int64_t pairs, typename P::S* to, int64_t to_row) {
  using F = typename P::F;
  constexpr int64_t W = P::kWidth;
  constexpr int R = kRows<P>(N);
  F sum[R][N];
#pragma GCC unroll 8
  for (int r = 0; r < R; ++r) {
#pragma GCC unroll 8
    for (int n = 0; n < N; ++n) sum[r][n] = kAccumulate ? P::load(to + r * to_row + n * W) : P::all(0);
  }
  for (int64_t line = 0; line < lines; ++line) {
    for (int64_t pair = 0; pair < pairs; ++pair) {
      typename P::Packed w[N];
#pragma GCC unroll 8
      for (int n = 0; n < N; ++n) w[n] = P::load_packed(b(n, line, pair));
#pragma GCC unroll 8
      for (int r = 0; r < R; ++r) {
        const typename P::Packed one = P::broadcast(a(r, line, pair));
#pragma GCC unroll 8
        for (int n = 0; n < N; ++n) sum[r][n] = P::dot(sum[r][n], one, w[n]);
      }
    }
  }
#pragma GCC unroll 8
  for (int r = 0; r < R; ++r) {
#pragma GCC unroll 8
    for (int n = 0; n < N; ++n) P::store(to + r * to_row + n * W, sum[r][n]);
  }
}
template <class P, int N, class A, class B>
void multiply(A a, B b, int64_t lines, int64_t pairs, typename P::S* to, int64_t to_row, bool accumulate) {
  accumulate ? multiply<P, N, true>(a, b, lines, pairs, to, to_row)
             : multiply<P, N, false>(a, b, lines, pairs, to, to_row);
}

// The same for one line, of a(r, pair) and b(n, pair).
template <class P, int N, class A, class B>
void multiply(A a, B b, int64_t pairs, typename P::S* to, int64_t to_row, bool accumulate) {
  multiply<P, N>([=](int r, int64_t, int64_t pair) { return a(r, pair); },
                 [=](int n, int64_t, int64_t pair) { return b(n, pair); }, 1, pairs, to, to_row, accumulate);
}

}  // namespace
}  // namespace fastdhm
