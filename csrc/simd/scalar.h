// One number at a time: the exact form for double, and for other types if no vector code fits. avx512.h has the same
// for vectors.
#pragma once

#include <cstdint>

namespace fastdhm {
namespace {

template <class Scalar>
struct One {
  using S = Scalar;
  using F = Scalar;
  static constexpr int64_t kWidth = 1;

  static F all(S x) { return x; }
  static F fma(F a, F b, F c) { return a * b + c; }
  static F max(F a, F b) { return a > b ? a : b; }
  static F where_above(F y, S limit, F x) { return y <= limit ? 0 : x; }
  template <class T>
  static F load(const T* p) {
    return static_cast<F>(*p);
  }
  template <class T>
  static F load_first(const T* p, int64_t, S) {
    return static_cast<F>(*p);
  }
  template <class T>
  static void store(T* p, F x) {
    *p = static_cast<T>(x);
  }
  template <class T>
  static void store_first(T* p, F x, int64_t) {
    *p = static_cast<T>(x);
  }
};

}  // namespace
}  // namespace fastdhm
