"""A batch norm of several processes is torch's own of their batches in one."""

import pytest
import torch
import torch.distributed as dist
from many_processes import outputs

from fastdhm.ops.shared_norm import shared_batch_norm

SAME = """
import itertools
import torch.nn.functional as F
from fastdhm.ops.shared_norm import shared_batch_norm

SHAPES = (12, 5, 3, 4), (12, 1, 1, 1), (12, 7), (12, 3, 2), (12, 3, 2, 3, 2)
TOLERANCES = {torch.float64: 1e-11, torch.float32: 2e-5, torch.bfloat16: 1e-2}

def all_of(norm, x, grad, kind, *rest):
    x, C = x.clone().requires_grad_(), x.shape[1]
    own = [p[:C].to(kind).requires_grad_() for p in (weight, bias)] if affine else [None, None]
    mean, var = torch.zeros(C, dtype=kind), torch.ones(C, dtype=kind)
    y = norm(x, mean, var, *own, *rest, 0.3, 1e-5)
    y.backward(grad)
    return [y.detach(), x.grad], [mean, var], [p.grad for p in own if p is not None]

with d.joined("cpu"):
    sizes = {2: [9, 3], 3: [1, 4, 7]}[d.count()]
    torch.manual_seed(0)
    weight, bias = torch.randn(2, 7, dtype=torch.float64)
    for shape, dtype, affine in itertools.product(SHAPES, TOLERANCES, (True, False)):
        x, grad = (t.to(dtype) for t in (3 * torch.randn(shape) + 10, torch.randn(shape)))
        whole, running, grads = all_of(F.batch_norm, x.double(), grad.double(), torch.float64, True)
        own = [t.split(sizes)[d.rank()] for t in (x, grad)]
        if x.ndim == 4:
            own = [t.contiguous(memory_format=torch.channels_last) for t in own]
        kind = dtype if dtype == torch.float64 else torch.float32
        found, found_running, found_grads = all_of(shared_batch_norm, *own, kind, d.group())
        assert all(t.dtype == dtype for t in found)
        d.sum_(*found_grads)  # as those of any parameter
        expected = [*(t.split(sizes)[d.rank()] for t in whole), *running, *grads]
        for ours, right in zip((*found, *found_running, *found_grads), expected, strict=True):
            off = (ours - right).norm() / right.norm().clamp_min(1)
            assert off < TOLERANCES[dtype], (shape, dtype, affine, off)
"""
MODULES = """
from torch import nn
from fastdhm.engine.fast.synced_norm import sync_batch_norms

with d.joined("cpu"):
    torch.manual_seed(0)
    image = torch.randn(6, 3, 4, 4).double()
    for momentum, tracks in ((0.2, True), (None, True), (0.1, False)):
        ours, torchs = (nn.BatchNorm2d(3, momentum=momentum, track_running_stats=tracks).double() for _ in range(2))
        sync_batch_norms(ours, d.group())
        for step in range(3):
            expected, found = torchs(image * (step + 1)), ours((image * (step + 1)).split([1, 5])[d.rank()])
            torch.testing.assert_close(found, expected.split([1, 5])[d.rank()])
            torch.testing.assert_close(dict(ours.state_dict()), dict(torchs.state_dict()))
        torch.testing.assert_close(ours.eval()(image), torchs.eval()(image))
        if d.rank() == 0:  # whoever asks for shapes may be alone
            with torch.no_grad():
                ours.train()(image)
"""


@pytest.mark.slow
@pytest.mark.parametrize("number", [2, 3])
def test_batches_of_any_sizes_are_normed_as_one(number):
    outputs(SAME, number)


@pytest.mark.slow
def test_modules_keep_what_they_are():
    """Momentum, the mean over all batches, no running statistics, evaluation."""
    outputs(MODULES, 2)


@pytest.fixture
def group():
    """A group of this process alone: the calls send their messages, and the sums are its own."""
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield dist.distributed_c10d._get_default_group().group_name
    dist.destroy_process_group()


def test_gradcheck(group):
    x = torch.randn(4, 3, 2, 2, dtype=torch.float64, requires_grad=True)
    weight_C, bias_C = torch.randn(2, 3, dtype=torch.float64, requires_grad=True).unbind()

    def norm(x, weight_C=None, bias_C=None):
        return shared_batch_norm(x, None, None, weight_C, bias_C, group)

    assert torch.autograd.gradcheck(norm, (x, weight_C, bias_C))
    assert torch.autograd.gradcheck(norm, x)


@pytest.mark.slow
def test_in_a_compiled_function(group):
    """In one piece, and as it is without."""

    def norm(x, weight_C, bias_C):
        return shared_batch_norm(x, None, None, weight_C, bias_C, group)

    given = [torch.randn(shape, requires_grad=True) for shape in ((4, 3, 2, 2), 3, 3)]
    compiled = torch.compile(norm, backend="aot_eager", fullgraph=True)
    found, expected = (torch.autograd.grad(f(*given).square().sum(), given) for f in (compiled, norm))
    for ours, right in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, right)
