// The code of all convolutions for one type of activations.
#pragma once

#include "conv/conv3x3.h"
#include "conv/input_grad.h"
#include "conv/weight_grad.h"

namespace fastdhm {

// Real is what weights and sums are: float, or double for double.
template <class Real>
struct ConvCode {
  Conv3x3Code<Real> conv3x3;
  ConvInputGradCode input_grad;
  ConvWeightGradCode<Real> weight_grad;
};

extern const ConvCode<float> kConvAvx2, kConvAvx512, kConvAvx512BFloat16;
extern const ConvCode<double> kConvExact;

}  // namespace fastdhm
