// The module fastdhm._C: the schemas of all ops, and how it was built. Each op's code is in the folder of its name.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>
#include <torch/csrc/autograd/autograd_not_implemented_fallback.h>
#include <torch/library.h>
#include <torch/version.h>

#include <array>
#include <cstdint>
#include <string>
#include <vector>

#include "branch_mask/philox.h"
#include "conv/conv3x3.h"
#include "mimic_loss/fits.h"
#include "simd/simd.h"

namespace py = pybind11;

TORCH_LIBRARY(fastdhm, m) {
  m.def("branch_mask(Tensor probs, int seed, Tensor step) -> Tensor", {at::Tag::pt2_compliant_tag});
  m.def(
      "match_ranks(Tensor distances, Tensor query, Tensor gallery, Tensor left_query, Tensor left_gallery, "
      "Tensor junk, int top_k) -> (Tensor ranks, Tensor nearest, int wrong_row)");
  m.def(
      "batch_norm_act(Tensor x, Tensor(a!) running_mean, Tensor(b!) running_var, Tensor weight, Tensor bias, "
      "Tensor? residual, float momentum, float eps, bool relu) -> (Tensor y, Tensor mean, Tensor variance)");
  m.def(
      "batch_norm_act_backward(Tensor grad_y, Tensor x, Tensor? y, Tensor weight, Tensor bias, Tensor mean, "
      "Tensor variance, float eps, bool relu, bool need_residual) -> "
      "(Tensor grad_x, Tensor grad_weight, Tensor grad_bias, Tensor grad_residual)");
  m.def("shortcut(Tensor x, int channels) -> Tensor");
  m.def("shortcut_backward(Tensor grad_y, Tensor x) -> Tensor");
  m.def("conv3x3(Tensor x, Tensor weight) -> Tensor");
  m.def("conv3x3_input_grad(Tensor grad_y, Tensor weight) -> Tensor");
  m.def("conv3x3_weight_grad(Tensor grad_y, Tensor x) -> Tensor");
  m.def("conv2d(Tensor x, Tensor weight, int[2] stride, int[2] padding) -> Tensor");
  m.def("conv2d_input_grad(Tensor grad_y, Tensor x, Tensor weight, int[2] stride, int[2] padding) -> Tensor");
  m.def("conv_weight_grad(Tensor grad_y, Tensor x, int[2] kernel, int[2] stride, int[2] padding) -> Tensor");
}

// The gradient of these gradients is an error, not a warning and 0.
TORCH_LIBRARY_IMPL(fastdhm, Autograd, m) {
  for (const char* op : {"batch_norm_act_backward", "shortcut_backward", "conv3x3_input_grad", "conv3x3_weight_grad",
                         "conv2d_input_grad", "conv_weight_grad"}) {
    m.impl(op, torch::autograd::autogradNotImplementedFallback());
  }
}

namespace {

// The features of this processor among those that the code may choose at run time.
std::vector<std::string> cpu_features() {
  std::vector<std::string> names;
#ifdef FASTDHM_X86
  __builtin_cpu_init();
  if (__builtin_cpu_supports("avx2")) names.emplace_back("avx2");
  if (__builtin_cpu_supports("fma")) names.emplace_back("fma");
  if (__builtin_cpu_supports("avx512f")) names.emplace_back("avx512f");
  if (__builtin_cpu_supports("avx512bw")) names.emplace_back("avx512bw");
#ifdef FASTDHM_BFLOAT16_PRODUCTS
  if (__builtin_cpu_supports("avx512bf16")) names.emplace_back("avx512_bf16");
#endif
#endif
  return names;
}

py::dict build_info() {
  py::dict info;
#if defined(__clang__) || !defined(__GNUC__)
  info["compiler"] = __VERSION__;
#else
  info["compiler"] = "GCC " __VERSION__;
#endif
  info["cxx_standard"] = static_cast<int64_t>(__cplusplus);
  info["torch"] = TORCH_VERSION;
#ifdef FASTDHM_CUDA_ARCHS
  info["cuda"] = true;
  info["cuda_archs"] = FASTDHM_CUDA_ARCHS;
#else
  info["cuda"] = false;
  info["why_no_cuda"] = FASTDHM_WHY_NO_CUDA;
#endif
#ifdef _OPENMP
  info["openmp"] = true;
#else
  info["openmp"] = false;
#endif
  info["cpu_features"] = cpu_features();
  return info;
}

std::array<uint32_t, 4> philox4x32(const std::array<uint32_t, 4>& counter, const std::array<uint32_t, 2>& key) {
  const fastdhm::PhiloxWords out =
      fastdhm::philox4x32({{counter[0], counter[1], counter[2], counter[3]}}, key[0], key[1]);
  return {out.word[0], out.word[1], out.word[2], out.word[3]};
}

}  // namespace

PYBIND11_MODULE(TORCH_EXTENSION_NAME, m) {
  m.doc() = "C++ ops of fastdhm, reached as torch.ops.fastdhm.*";
  m.def("build_info", &build_info,
        "How the extension was built: compiler, C++ standard, torch, CUDA; and this CPU's features.");
  m.def("simds", &fastdhm::simd_names, "Instruction sets that the CPU ops can use here, the fastest last.");
  m.def("simd", &fastdhm::simd_name, "The one they use, or none.");
  m.def("set_simd", &fastdhm::set_simd, py::arg("name"), "Have them use another one, to test it.");
  m.def(
      "conv3x3_width", &fastdhm::conv3x3_width, py::arg("dtype"),
      "What conv3x3 needs the channels of such activations to be multiples of; 0 where it has no code for them here.");
  m.def(
      "mimic_loss_fits",
      [](py::handle logits_MBK, py::handle target_B, py::handle weights_MM, py::handle mix, py::handle row_weight_B) {
        return fastdhm::mimic_loss_fits(logits_MBK.ptr(), target_B.ptr(), weights_MM.ptr(), mix.ptr(),
                                        row_weight_B.ptr());
      },
      "Whether these are arguments that the mimicking loss takes on a CPU.");
  m.def("philox4x32", &philox4x32, py::arg("counter"), py::arg("key"), "Philox 4x32-10 as the C++ ops compute it.");
}
