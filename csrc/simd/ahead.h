// Prefetches memory before it is needed, between the products of data in the near cache. Include no header with inline
// functions here: they would be compiled for an instruction set but called by all code.
#pragma once

#include <cstdint>

namespace fastdhm {
namespace {

// Cache lines to prefetch, a few at a time.
struct Ahead {
  struct Range {
    const char* at;
    int64_t bytes;
  };
  static constexpr int64_t kLine = 64;

  Range ranges[4];
  int count = 0;
  int64_t share = 0;  // bytes at a time

  void add(const void* at, int64_t bytes, int64_t begin, int64_t end, int64_t parts) {
    const int64_t first = bytes * begin / parts, last = bytes * end / parts;
    if (last > first) ranges[count++] = {static_cast<const char*>(at) + first, last - first};
  }

  void divide(int64_t times) {
    for (int i = 0; i < count; ++i) share += ranges[i].bytes;
    share = (share / times / kLine + 1) * kLine;
  }

  void call() {
    for (int64_t left = share; left > 0 && count > 0; left -= kLine) {
      Range& last = ranges[count - 1];
      __builtin_prefetch(last.at, 0, 2);
      last.at += kLine;
      last.bytes -= kLine;
      if (last.bytes <= 0) --count;
    }
  }
};

}  // namespace
}  // namespace fastdhm
