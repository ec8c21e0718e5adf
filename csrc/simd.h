// Which instruction set the vector code of the CPU ops uses: the fastest that this processor has, unless a test chooses.
#pragma once

#include <string>
#include <vector>

namespace fastdhm {

enum class Simd { none, avx2, avx512 };

Simd simd();                             // the one in use
std::string simd_name();                 // its name
std::vector<std::string> simd_names();   // those of this processor, none aside, the fastest last
void set_simd(const std::string& name);  // have all ops use another one, to test it

}  // namespace fastdhm
