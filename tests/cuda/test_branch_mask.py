"""The CUDA form of the mask: the rule as nvcc compiles it, what is in the built module, and, with a GPU, its bits.

Legend: S side branches.
"""

import os
import shutil
import subprocess
from pathlib import Path

import pytest
import torch

from fastdhm.ops import _extension, philox
from fastdhm.ops.branch_mask import branch_mask

ROOT = Path(__file__).parents[2]
INFO = _extension.require("these tests").build_info() if _extension.available() else {"cuda": False}
WHY = _extension.reason() or INFO.get("why_no_cuda", "")
needs_cuda_code = pytest.mark.skipif(not INFO["cuda"], reason=f"built without CUDA code: {WHY}")

# counter and seed -> Philox words, as the authors' known answers in tests/ops/test_philox.py
KNOWN_ANSWERS = [
    pytest.param((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8), id="zeros"),
    pytest.param((0xFFFFFFFF,) * 4, (0xFFFFFFFF,) * 2, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD), id="ones"),
    pytest.param(
        (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
        (0xA4093822, 0x299F31D0),
        (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
        id="pi",
    ),
]

# Takes numbers, prints numbers; a CUDA source, so that nvcc reads the headers as it does for the device.
PROGRAM = """
#include <cstdio>
#include <cstdlib>

#include "branch_mask/branch_mask.h"

int main(int argc, char** argv) {
  uint64_t number[6] = {};
  for (int n = 0; n < argc - 1; ++n) number[n] = std::strtoull(argv[n + 1], nullptr, 10);
  if (argc == 7) {
    const auto word = [&](int n) { return static_cast<uint32_t>(number[n]); };
    const auto out = fastdhm::philox4x32({{word(0), word(1), word(2), word(3)}}, word(4), word(5));
    std::printf("%u %u %u %u\\n", out.word[0], out.word[1], out.word[2], out.word[3]);
  } else {
    const double prob = static_cast<double>(number[0]) / 4294967296.0;
    for (uint32_t s = 0; s < 64; ++s) std::printf("%d ", fastdhm::branch_is_in(prob, s, number[1], number[2]));
  }
}
"""


@pytest.fixture(scope="module")
def by_nvcc(tmp_path_factory):
    """Runs the host program that nvcc made of the headers, on numbers; returns the numbers that it prints."""
    nvcc = shutil.which("nvcc") or shutil.which(f"{os.environ.get('CUDA_HOME', '/usr/local/cuda')}/bin/nvcc")
    if nvcc is None:
        pytest.skip("nvcc is not installed")
    folder = tmp_path_factory.mktemp("nvcc")
    (folder / "program.cu").write_text(PROGRAM)
    program = folder / "program"
    command = [nvcc, "-std=c++17", f"-I{ROOT / 'csrc'}", "-o", program, folder / "program.cu"]
    subprocess.run(command, check=True, timeout=300)
    return lambda *numbers: tuple(
        map(int, subprocess.run([program, *map(str, numbers)], capture_output=True, check=True).stdout.split())
    )


@pytest.mark.parametrize(("counter", "key", "answer"), KNOWN_ANSWERS)
def test_known_answers_by_nvcc(by_nvcc, counter, key, answer):
    assert by_nvcc(*counter, *key) == answer


@pytest.mark.parametrize("word", [0, 1, 2**31, 2**32 - 1, 2**32], ids="prob={}/2**32".format)
@pytest.mark.parametrize(
    ("step", "seed"), [(0, 0), (678, 12345), (2**63 - 1, 2**64 - 1)], ids=["zero", "some", "large"]
)
def test_the_rule_by_nvcc(by_nvcc, word, step, seed):
    probs_S = torch.full((64,), word / 2**32, dtype=torch.float64)
    assert by_nvcc(word, step, seed) == tuple(branch_mask(probs_S, seed, step, impl="eager").int().tolist())


def test_the_threshold_by_nvcc_is_exact(by_nvcc):
    word = philox.draw(3, 5, philox.STREAM_BRANCH_MASK, 7)[0]
    assert (by_nvcc(word, 5, 7)[3], by_nvcc(word + 1, 5, 7)[3]) == (0, 1)


@needs_cuda_code
def test_the_module_holds_machine_code_for_each_architecture():
    cuobjdump = shutil.which("cuobjdump") or _cuobjdump_of_triton()
    if cuobjdump is None:
        pytest.skip("neither a CUDA toolkit's nor triton's cuobjdump is installed")
    module = _extension.require("this test").__file__

    def listed(flag):
        return subprocess.run([cuobjdump, flag, module], capture_output=True, text=True, check=True).stdout

    for arch in INFO["cuda_archs"].replace(" ", ";").split(";"):
        name = arch.removesuffix("+PTX").replace(".", "")
        assert f"sm_{name}." in listed("--list-elf")
        assert (f"sm_{name}." in listed("--list-ptx")) == arch.endswith("+PTX")


def _cuobjdump_of_triton():
    try:
        import triton
    except ImportError:
        return None
    return shutil.which(str(Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"))


@needs_cuda_code
def test_the_op_has_a_cuda_form():
    assert torch._C._dispatch_has_kernel_for_dispatch_key("fastdhm::branch_mask", "CUDA")


@pytest.mark.skipif(not _extension.available() or INFO["cuda"], reason="CUDA code was built, or nothing was")
def test_without_cuda_code_the_impl_says_why_and_what_to_do():
    with pytest.raises(ValueError, match="needs CUDA code, .*built without .*pip install --no-build-isolation"):
        branch_mask(torch.full((3,), 0.5), 0, 0, impl="cuda")


@needs_cuda_code
def test_a_tensor_on_the_cpu_is_refused():
    with pytest.raises(ValueError, match="probs_S is on cpu: impl='cuda' runs on CUDA devices"):
        branch_mask(torch.full((3,), 0.5), 0, 0, impl="cuda")


CUDA_IMPLS = ["eager", pytest.param("cuda", marks=needs_cuda_code), "auto"]


@pytest.mark.gpu
@pytest.mark.parametrize("impl", CUDA_IMPLS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
def test_cuda_gives_the_bits_of_the_cpu(impl, dtype):
    probs_S = torch.linspace(0, 1, 1001, dtype=dtype)[::2]
    for seed, step in [(0, 0), (2**64 - 1, 2**63 - 1), (12345, 678)]:
        expected_S = branch_mask(probs_S, seed, step, impl="eager")
        assert torch.equal(branch_mask(probs_S.cuda(), seed, step, impl=impl).cpu(), expected_S)
        on_device = torch.tensor(step).cuda()
        assert torch.equal(branch_mask(probs_S.cuda(), seed, on_device, impl=impl).cpu(), expected_S)


@pytest.mark.gpu
@pytest.mark.parametrize("impl", CUDA_IMPLS)
def test_a_captured_graph_advances_its_step(impl):
    probs_S, step = torch.full((64,), 0.5, device="cuda"), torch.zeros((), dtype=torch.int64, device="cuda")
    branch_mask(probs_S, 9, step, impl=impl)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        mask_S = branch_mask(probs_S, 9, step, impl=impl)
        step += 1
    for expected_step in range(3):
        graph.replay()
        assert torch.equal(mask_S.cpu(), branch_mask(probs_S.cpu(), 9, expected_step))


@pytest.mark.gpu
@needs_cuda_code
def test_no_branches_and_no_waiting_on_cuda():
    assert branch_mask(torch.empty(0, device="cuda"), 0, 0, impl="cuda").shape == (0,)
    probs_S, step = torch.full((3,), 0.5, device="cuda"), torch.tensor(4, device="cuda")
    torch.cuda.set_sync_debug_mode("error")
    try:
        branch_mask(probs_S, 0, step, impl="cuda")
    finally:
        torch.cuda.set_sync_debug_mode("default")
