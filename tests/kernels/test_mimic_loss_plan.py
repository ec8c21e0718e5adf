"""What is launched for a shape; no GPU is needed to say.

Legend: M branches, B batch, K classes.
"""

import itertools

import pytest
import torch

pytest.importorskip("triton")
from fastdhm.kernels import mimic_loss as kernel


def rows_of(M, B, K, dtype=torch.float32, temperature=1.0):
    """The first launch: a program takes whole rows."""
    tensors = torch.empty(M, B, K, dtype=dtype), torch.empty(B, dtype=torch.int64), torch.empty(M, M)
    return kernel.plan(*tensors, temperature, 0.0, -100, True)[0][0]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64], ids=str)
def test_threads_share_a_tile_evenly(dtype):
    names = kernel.mimic_loss_fwd_kernel.arg_names
    for M, K, temperature in itertools.product((1, 2, 3, 5, 8, 17), (1, 8, 10, 100, 1000, 4096, 21841), (1.0, 3.0)):
        values = dict(zip(names, rows_of(M, 2, K, dtype, temperature).arguments, strict=True))
        assert values["BK"] % (values["T"] * values["ALIGN"]) == 0 and values["BM"] >= M, (M, K, temperature)
        assert values["stride_g"] * (values["ALIGN"] if K % values["ALIGN"] == 0 else 1) == K


@pytest.mark.parametrize(("M", "programs"), [(3, 3 * 132), (8, 132)])
def test_a_gpu_gets_as_many_programs_as_it_holds(M, programs):
    """One more would wait until others are through, and then have the GPU to itself."""
    assert rows_of(M, 8192, 1000).grid == (programs,)
    assert rows_of(M, 7, 1000).grid == (7,)
