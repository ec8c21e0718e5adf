// Which instruction set the vector code of the CPU ops uses: the fastest that this processor has, unless a test
// chooses.
#pragma once

// The instruction sets that the compiler supports; those of the processor are found at run time.
#if defined(__x86_64__) && defined(__GNUC__)
#define FASTDHM_X86
#if defined(__clang__) || __GNUC__ >= 11
#define FASTDHM_BFLOAT16_PRODUCTS  // dot products of bfloat16 pairs (AVX512_BF16)
#endif
#endif

#include <string>
#include <vector>

namespace fastdhm {

enum class Simd { none, avx2, avx512 };

Simd simd();                             // the one in use
std::string simd_name();                 // its name
std::vector<std::string> simd_names();   // those of this processor, without none, the fastest last
bool has_bfloat16_products();            // whether dot products of bfloat16 pairs (AVX512_BF16) are in use
void set_simd(const std::string& name);  // make all ops use another one, for tests

// Address of nameAvx512 or nameAvx2, whichever is in use; null if neither.
#ifdef FASTDHM_X86
#define FASTDHM_CODE_IN_USE(name) \
  (simd() == Simd::avx512 ? &name##Avx512 : simd() == Simd::avx2 ? &name##Avx2 : nullptr)
#else
#define FASTDHM_CODE_IN_USE(name) nullptr
#endif

}  // namespace fastdhm
