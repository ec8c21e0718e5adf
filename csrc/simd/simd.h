// Which instruction set the vector code of the CPU ops uses: the fastest that this processor has, unless a test chooses.
#pragma once

// Whether the compiler knows products of bfloat16 pairs; which processor has them shows at run time.
#if defined(__x86_64__) && defined(__GNUC__) && (defined(__clang__) || __GNUC__ >= 11)
#define FASTDHM_BFLOAT16_PRODUCTS
#endif

#include <string>
#include <vector>

namespace fastdhm {

enum class Simd { none, avx2, avx512 };

Simd simd();                             // the one in use
std::string simd_name();                 // its name
std::vector<std::string> simd_names();   // those of this processor, none aside, the fastest last
bool has_bfloat16_products();            // of pairs, by AVX-512: in use, compiled, and in this processor
void set_simd(const std::string& name);  // have all ops use another one, to test it

}  // namespace fastdhm
