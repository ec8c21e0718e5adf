// Closes the region that avx2.h, avx512.h or the file itself opened.
#ifdef __clang__
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif
