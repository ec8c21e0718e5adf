// Loops over vectors, of which the last may be partial, for an instruction set V. Include it inside the region of
// avx2.h or avx512.h, or outside of both for one number at a time.
#pragma once

#include <cstdint>

namespace fastdhm {
namespace {

template <class V, class T>
inline typename V::F load_lanes(const T* p, int64_t lanes) {
  return lanes == V::kWidth ? V::load(p) : V::load_first(p, lanes, 0);
}
template <class V, class T>
inline void store_lanes(T* p, typename V::F x, int64_t lanes) {
  if (lanes == V::kWidth) {
    V::store(p, x);
  } else {
    V::store_first(p, x, lanes);
  }
}

}  // namespace
}  // namespace fastdhm
