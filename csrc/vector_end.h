// Closes the region that avx2.h or avx512.h opened.
#ifdef __clang__
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif
