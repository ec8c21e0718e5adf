// All convolutions in vectors, for products P of an instruction set (Singles shows what P gives) and activations of
// type T.

#include "conv/conv3x3_simd.h"
#include "conv/input_grad_simd.h"
#include "conv/weight_grad_simd.h"

namespace fastdhm {
namespace {

template <class P, class T>
constexpr ConvCode<typename P::S> conv_code() {
  return {Conv3x3<P, T>::code(), ConvInputGrad<P>::code(), ConvWeightGrad<P>::code()};
}

}  // namespace
}  // namespace fastdhm
